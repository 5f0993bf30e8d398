//! The two machines: QEMU's versions, machine types, how many CPUs, what RAM is made of.
//!
//! Pure.

use super::{Finding, blocker, note};
use crate::{
    preflight::facts::{Facts, machine::Machine, ram_blocks::RamBlock},
    qmp::QemuVersion,
};

pub(super) fn run(source: &Facts, destination: &Facts) -> Vec<Finding> {
    let (here, there, name) = (&source.machine, &destination.machine, destination.name.as_str());
    let checks = [version, machine_type, cpu_count, ram_blocks];
    checks.into_iter().filter_map(|check| check(here, there, name)).collect()
}

/// From micro 50 on it is a development version, which counts to the release that it becomes.
fn release(version: QemuVersion) -> (u64, u64, bool) {
    (version.major, version.minor, version.micro >= 50)
}

fn version(here: &Machine, there: &Machine, name: &str) -> Option<Finding> {
    let (here, there) = (here.version, there.version);
    let message = format!("QEMU {there} is older than the source's {here}");
    if release(there) < release(here) {
        let remedy = "an older QEMU may not understand the state that it is sent: start a newer one";
        return Some(blocker("qemu-older", name, message, remedy));
    }
    // stable releases of one series are made to migrate both ways
    let older = release(there) == release(here) && there < here;
    older.then(|| note("qemu-older-micro", name, format!("{message}, of the same series")))
}

fn machine_type(here: &Machine, there: &Machine, name: &str) -> Option<Finding> {
    let (Some(here), Some(there)) = (&here.kind, &there.kind) else {
        return Some(note("not-compared", name, "the machine type is not known on both sides"));
    };
    let plain = |kind: &str| kind.strip_suffix("-machine").unwrap_or(kind).to_owned();
    let (here_plain, there_plain) = (plain(here), plain(there));
    let message = format!("its machine type is {there_plain}, the source's is {here_plain}");
    (here != there)
        .then(|| blocker("machine-type", name, message, &format!("start it with the source's: -machine {here_plain}")))
}

fn cpu_count(here: &Machine, there: &Machine, name: &str) -> Option<Finding> {
    let (here, there) = (here.cpus, there.cpus);
    let message = format!("the source has {here} virtual CPUs, the destination {there}");
    (here != there).then(|| blocker("cpu-count", name, message, "start it with the source's -smp"))
}

fn ram_blocks(here: &Machine, there: &Machine, name: &str) -> Option<Finding> {
    let (Some(here), Some(there)) = (&here.ram_blocks, &there.ram_blocks) else {
        return Some(note("not-compared", name, "the RAM blocks are not known on both sides"));
    };
    let differences: Vec<String> = here
        .iter()
        .filter_map(|(block, here)| match there.get(block) {
            None => Some(format!("it has no {block}")),
            Some(there) if fits(block, here, there) => None,
            Some(there) => Some(format!("{block} holds {} bytes there, {} on the source", there.total, here.total)),
        })
        .collect();
    let message = format!("its RAM blocks are not the source's: {}", differences.join(", "));
    let remedy = "start it with the source's -m, memory backends, devices and firmware";
    (!differences.is_empty()).then(|| blocker("ram-blocks", name, message, remedy))
}

/// Blocks of firmware tables are resized by what comes in, up to what they can hold; all others must be the same.
fn fits(name: &str, here: &RamBlock, there: &RamBlock) -> bool {
    match name.starts_with("/rom@") {
        true => here.used <= there.total,
        false => here.total == there.total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::{checks::Severity, facts::devices::Devices};
    use std::collections::BTreeMap;

    type Blocks = BTreeMap<String, RamBlock>;
    type Change = fn(&mut Blocks);

    fn sample() -> Machine {
        let block = |used, total| RamBlock { used, total };
        let blocks = [("pc.ram", block(512, 512)), ("/rom@etc/acpi/tables", block(20, 200))];
        Machine {
            version: QemuVersion { major: 10, minor: 0, micro: 13 },
            kind: Some("pc-i440fx-10.0-machine".to_owned()),
            cpus: 2,
            cpu: None,
            ram_blocks: Some(blocks.map(|(name, block)| (name.to_owned(), block)).into()),
            devices: Devices::default(),
        }
    }

    /// What one check finds, with one side changed.
    fn found(
        check: fn(&Machine, &Machine, &str) -> Option<Finding>,
        change: impl Fn(&mut Machine),
    ) -> Option<(&'static str, Severity, String)> {
        let (here, mut there) = (sample(), sample());
        assert_eq!(check(&here, &there, "b"), None, "equal machines");
        change(&mut there);
        check(&here, &there, "b").map(|finding| (finding.code, finding.severity, finding.message + &finding.remedy))
    }

    #[test]
    fn an_older_release_is_refused_and_a_newer_is_not() {
        for (major, minor, micro, wanted) in [
            (7, 2, 22, Some(("qemu-older", Severity::Blocker))),
            (9, 2, 90, Some(("qemu-older", Severity::Blocker))),
            (10, 0, 2, Some(("qemu-older-micro", Severity::Note))),
            (10, 0, 14, None),
            (10, 0, 90, None),
            (11, 1, 3, None),
        ] {
            let version_of = QemuVersion { major, minor, micro };
            let found = found(version, |there| there.version = version_of);
            assert_eq!(found.as_ref().map(|(code, severity, _)| (*code, *severity)), wanted, "{version_of}");
            if let Some((.., text)) = found {
                assert!(text.contains("10.0.13") && text.contains(&version_of.to_string()), "{text}");
            }
        }
        let development = Machine { version: QemuVersion { major: 10, minor: 0, micro: 91 }, ..sample() };
        assert_eq!(version(&development, &sample(), "b").map(|finding| finding.code), Some("qemu-older"));
    }

    #[test]
    fn another_machine_type_is_refused() {
        let (code, severity, text) =
            found(machine_type, |there| there.kind = Some("pc-q35-10.0-machine".to_owned())).expect("a finding");
        assert_eq!((code, severity), ("machine-type", Severity::Blocker));
        assert!(text.contains("is pc-q35-10.0,") && text.contains("-machine pc-i440fx-10.0"), "{text}");
        let (code, severity, _) = found(machine_type, |there| there.kind = None).expect("a finding");
        assert_eq!((code, severity), ("not-compared", Severity::Note));
    }

    #[test]
    fn another_number_of_cpus_is_refused() {
        let (code, severity, text) = found(cpu_count, |there| there.cpus = 3).expect("a finding");
        assert_eq!((code, severity), ("cpu-count", Severity::Blocker));
        assert!(text.contains("has 2 ") && text.contains("destination 3"), "{text}");
    }

    #[test]
    fn ram_blocks_must_be_there_and_hold_what_comes() {
        let with = |change: Change| found(ram_blocks, move |there| change(there.ram_blocks.as_mut().expect("blocks")));
        let silent: [Change; 3] = [
            |blocks| blocks.get_mut("/rom@etc/acpi/tables").expect("a block").used = 40,
            |blocks| blocks.get_mut("/rom@etc/acpi/tables").expect("a block").total = 400,
            |blocks| {
                blocks.insert("vga.vram".to_owned(), RamBlock { used: 1, total: 1 });
            },
        ];
        for change in silent {
            assert_eq!(with(change), None);
        }
        let loud: [(Change, &str); 3] = [
            (
                |blocks| {
                    blocks.remove("pc.ram");
                },
                "no pc.ram",
            ),
            (|blocks| blocks.get_mut("pc.ram").expect("a block").total = 256, "256 bytes there, 512 on the source"),
            (|blocks| blocks.get_mut("/rom@etc/acpi/tables").expect("a block").total = 19, "/rom@etc/acpi/tables"),
        ];
        for (change, word) in loud {
            let (code, severity, text) = with(change).expect(word);
            assert_eq!((code, severity), ("ram-blocks", Severity::Blocker));
            assert!(text.contains(word), "{text}");
        }
        let (code, severity, _) = found(ram_blocks, |there| there.ram_blocks = None).expect("a finding");
        assert_eq!((code, severity), ("not-compared", Severity::Note));
    }
}
