//! Whether both builds have the features that the migration of RAM is to use: multifd, compression, xbzrle, postcopy.
//!
//! Pure. Only features that are asked for are checked: others that are set are turned off for the migration, and put
//! back.

use super::{finding::Finding, subject::CheckSubject};
use crate::{
    codes::{FindingCode, Setting},
    memory::tuning::{Compression, MigrationTuning, ThrottleMode},
    preflight::facts::SideFacts,
    qemu::Features,
    quantity::Bytes,
};

pub(super) fn run(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        [subject.source, subject.destination].into_iter().flat_map(|side| missing(subject, side)).collect();
    findings.extend(conflicts(subject.tuning, &subject.source.name));
    if subject.tuning.postcopy {
        findings.extend(postcopy(subject.source, subject.destination));
    }
    findings
}

/// Why the destination could not fetch pages in postcopy.
fn postcopy(source: &SideFacts, destination: &SideFacts) -> Vec<Finding> {
    let mut why = Vec::new();
    if destination.process.catches_faults == Some(false) {
        why.push(
            "this QEMU may not use userfaultfd: vm.unprivileged_userfaultfd is 0, and its user has neither CAP_SYS_PTRACE \
             nor the right to open /dev/userfaultfd"
                .to_owned(),
        );
    }
    if let (Some(blocks), Some(others)) = (&source.machine.ram_blocks, &destination.machine.ram_blocks) {
        let other_pages = blocks.iter().filter_map(|(name, block)| Some((name, block.page, others.get(name)?.page)));
        why.extend(other_pages.filter(|(_, page, other)| page != other).map(|(name, page, other)| {
            let (page, other) = (Bytes(page).exactly(), Bytes(other).exactly());
            format!("{name} has pages of {other} on the destination and of {page} on the source")
        }));
    }
    let finding = |why| Finding::new(FindingCode::PostcopyUnable, &destination.name, why);
    why.into_iter().map(finding).collect()
}

/// The capabilities and the compression that are asked for and that one side's build lacks.
fn missing(subject: &CheckSubject<'_>, side: &SideFacts) -> Vec<Finding> {
    let wanted = subject.tuning;
    let mut asked = wanted.asked_for();
    if side.name == subject.source.name && matches!(wanted.throttle, ThrottleMode::OwnSteps(_)) {
        asked.push(("auto-converge", format!("auto-converge in the {}", Setting::Policy)));
    }
    lacking(&side.features, &asked, wanted.compress.map(Compression::as_str))
        .into_iter()
        .map(|(message, remedy)| Finding::new(FindingCode::CapabilityMissing, &side.name, message).with_remedy(remedy))
        .collect()
}

/// Message and remedy for each feature that a build lacks. `asked` has each capability with the setting that asks for
/// it.
fn lacking(features: &Features, asked: &[(&str, String)], compress: Option<&str>) -> Vec<(String, String)> {
    let absent = asked.iter().filter(|(name, _)| !features.migration_capabilities.contains(*name));
    let mut found: Vec<(String, String)> = absent
        .map(|(name, by)| {
            let message = format!("this QEMU has no migration capability {name}, which {by} asks for");
            (message, format!("leave {by} out, or use a QEMU that has it"))
        })
        .collect();
    if let Some(how) = compress.filter(|how| !features.multifd_compressions.contains(*how)) {
        let known: Vec<&str> =
            features.multifd_compressions.iter().map(String::as_str).filter(|name| *name != "none").collect();
        let leave_out = format!("leave {} out", Setting::Compress);
        let instead = match known.as_slice() {
            [] => leave_out,
            known => {
                format!("choose one that both QEMUs have, or {leave_out}: this one has {}", known.join(", "))
            }
        };
        let by = Setting::Compress.set_to(how);
        found.push((format!("the multifd-compression of this QEMU has no {how}, which {by} asks for"), instead));
    }
    found
}

/// The settings that do not go together. QEMU 7.2 accepts multifd with xbzrle and with postcopy, 10.0 refuses both
/// and 11.1 refuses the first. The schema does not tell them apart, so both are refused for every QEMU.
fn conflicts(wanted: &MigrationTuning, source: &str) -> Vec<Finding> {
    let (multifd, compress, policy) = (Setting::Multifd, Setting::Compress, Setting::Policy);
    let conflict = |message: String, remedy: String| {
        Finding::new(FindingCode::CapabilityConflict, source, message).with_remedy(remedy)
    };
    let mut found = Vec::new();
    if wanted.multifd.is_some() && wanted.xbzrle.is_some() {
        found.push(conflict(
            format!("multifd ({multifd}) and xbzrle (of the {policy}) do not go together in QEMU"),
            format!("leave out {multifd}, or xbzrle in the policy"),
        ));
    }
    if wanted.multifd.is_some() && wanted.postcopy {
        found.push(conflict(
            format!("multifd ({multifd}) and postcopy (in the {policy}) do not go together in every QEMU"),
            format!("leave out {multifd}, or take a policy without postcopy"),
        ));
    }
    if wanted.compress.is_some() && wanted.multifd.is_none() {
        found.push(conflict(
            format!("{compress} compresses multifd channels, and there are none without {multifd}"),
            format!("add {}, or leave {compress} out", multifd.set_to(2)),
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::Schema;
    use std::collections::BTreeSet;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn features(capabilities: &[&str], compressions: &[&str]) -> Features {
        Features {
            incoming_exit_on_error: true,
            block_job_change: true,
            mirror_target_is_zero: true,
            avail_switchover_bandwidth: true,
            zero_page_detection: true,
            multifd_compressions: set(compressions),
            migration_capabilities: set(capabilities),
            missing: Vec::new(),
            ..Features::read(&Schema::default())
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let (multifd, compress) = (Some(2), Some(Compression::Zstd));
        let xbzrle = Some(Bytes(1 << 26));
        let none = MigrationTuning::default();
        for (wanted, words) in [
            (MigrationTuning { multifd, compress, ..none.clone() }, &[][..]),
            (MigrationTuning { xbzrle, postcopy: true, bitmaps: true, ..none.clone() }, &[]),
            (MigrationTuning { compress, ..none.clone() }, &["add `multifd: 2`"]),
            (MigrationTuning { multifd, xbzrle, ..none.clone() }, &["or xbzrle in the policy"]),
            (MigrationTuning { multifd, postcopy: true, ..none.clone() }, &["a policy without postcopy"]),
            (MigrationTuning { multifd, xbzrle, postcopy: true, ..none.clone() }, &["or xbzrle", "without postcopy"]),
        ] {
            let found = conflicts(&wanted, "a");
            assert_eq!(found.len(), words.len(), "{found:?}");
            for (finding, word) in found.iter().zip(words) {
                assert_eq!((finding.code.as_str(), finding.subject.as_str()), ("capability-conflict", "a"));
                assert!(finding.remedy.contains(word), "{finding}");
            }
        }
    }

    #[test]
    fn what_a_build_lacks_is_named_with_the_option() {
        let asked = [("multifd", "`multifd`".to_owned()), ("xbzrle", "xbzrle of the `policy`".to_owned())];
        let all = features(&["multifd", "xbzrle"], &["none", "zlib", "zstd"]);
        assert_eq!(lacking(&all, &asked, Some("zstd")), []);
        assert_eq!(lacking(&features(&[], &[]), &[], None), [], "nothing is asked for");
        for (features, word, remedy) in [
            (features(&["xbzrle"], &["zstd"]), "capability multifd, which `multifd`", "leave `multifd` out"),
            (features(&["multifd"], &["zstd"]), "capability xbzrle, which xbzrle of", "leave xbzrle"),
            (
                features(&["multifd", "xbzrle"], &["none", "zlib"]),
                "no zstd, which `compress: zstd`",
                "this one has zlib",
            ),
            (features(&["multifd", "xbzrle"], &["none"]), "no zstd", "leave `compress` out"),
        ] {
            let found = lacking(&features, &asked, Some("zstd"));
            let [(message, instead)] = found.as_slice() else { panic!("{found:?}") };
            assert!(message.contains(word) && instead.contains(remedy), "{message} ({instead})");
        }
    }
}
