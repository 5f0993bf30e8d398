//! Migrations that QEMU says have failed, and guests that it says cannot be migrated: causes by QEMU's own words.
//!
//! Pure.

use super::super::{
    cause::{Cause, Confidence},
    pair::{PairLooks, SideLooks},
};
use crate::{
    codes::DiagnosisCode,
    progress::Side,
    qemu::reply::{MigrationInfo, MigrationStatus},
};

/// The capability with which the guest's pages are sent on demand.
const POSTCOPY: &str = "postcopy-ram";
/// The remedy where the destination may not catch page faults.
const LET_IT_CATCH_FAULTS: &str = "on the destination's host set vm.unprivileged_userfaultfd to 1, or let QEMU open \
                                   /dev/userfaultfd, and look at its seccomp profile; or migrate without postcopy";

/// QEMU's words, the cause that they are evidence of, the remedy and its risk. The first row that fits counts.
const WORDS: &[(&[&str], DiagnosisCode, &str, &str)] = &[
    (
        &[
            "failed to get \"write\" lock",
            "failed to get shared \"write\" lock",
            "failed to get \"consistent read\" lock",
        ],
        DiagnosisCode::ImageLocked,
        "find the process that holds the image (lslocks, or fuser on the image) and end its use",
        "where the holder is the other side of the migration, its guest may still write",
    ),
    (
        &["rehandshake", "rekey", "key update", "unexpected tls packet", "gnutls_e_again"],
        DiagnosisCode::TlsRekey,
        "begin again with a GnuTLS and a QEMU that change keys in time, or with a cipher that needs no change (a priority \
         of tls-creds that prefers CHACHA20-POLY1305)",
        "the copied data is lost",
    ),
    (
        &["tls", "certificate", "gnutls", "handshake"],
        DiagnosisCode::Tls,
        "mend the credentials: the names in the server's certificate, the CA on both sides, tls-hostname",
        "none",
    ),
    (
        &["userfault", "postcopy is not supported", "unprivileged_userfaultfd"],
        DiagnosisCode::Userfaultfd,
        LET_IT_CATCH_FAULTS,
        "none for the guest",
    ),
    (
        &["mlock", "memlock", "cannot lock memory", "lock enough memory", "zero copy", "zero-copy", "ibv_reg_mr"],
        DiagnosisCode::Memlock,
        "raise the limit of locked memory of the QEMU that says so (ulimit -l, LimitMEMLOCK) above the guest's RAM",
        "none",
    ),
    (
        &["multifd"],
        DiagnosisCode::MultifdIncompatible,
        "begin again without multifd, or with the same QEMU version and settings of multifd on both sides",
        "the copied data is lost",
    ),
    (
        &[
            "unknown savevm section",
            "error while loading state",
            "load of migration failed",
            "missing section footer",
            "unknown ramblock",
            "length mismatch",
            "machine type received",
            "configuration section",
            "not a migration stream",
        ],
        DiagnosisCode::StateRefused,
        "make machine type, devices and their properties, CPU, memory and capabilities of migrations of the destination \
         those of the source: the words name the section; qferry check names the difference",
        "none: the guest is on the source",
    ),
    (
        &["connection refused", "no route to host", "network is unreachable", "no such file or directory", "timed out"],
        DiagnosisCode::SetupBlocked,
        "have the destination listen where the source connects to, and let a firewall in between pass that port",
        "none: the guest is on the source",
    ),
    (
        &["connection reset", "broken pipe", "input/output error", "unexpected end-of-file", "yank"],
        DiagnosisCode::LinkDead,
        "look why the other side closed the channel: its own log and its query-migrate say more",
        "none: the guest is on the source",
    ),
];

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    if let Some(source) = &looks.source {
        causes.extend(blocked(source));
    }
    let failed = looks.sides().filter_map(|(side, seen)| failure(side, seen));
    let mut found: Vec<Cause> = failed.collect();
    if !found.iter().any(|cause| cause.code == DiagnosisCode::Userfaultfd) {
        found.extend(userfaultfd(looks));
    }
    explain(&mut found);
    // The destination's words say what was wrong with what came, and the source's only that the channel closed.
    let explained = found.iter().any(|cause| cause.code != DiagnosisCode::LinkDead);
    causes.extend(found.into_iter().filter(|cause| !explained || cause.code != DiagnosisCode::LinkDead));
}

/// Takes down the confidence of a state that was refused because the source has sent no more of it, or because it came
/// for postcopy.
fn explain(found: &mut [Cause]) {
    let is_reason = |cause: &&Cause| {
        matches!(cause.code, DiagnosisCode::Memlock | DiagnosisCode::Userfaultfd)
            && cause.confidence != Confidence::Possible
    };
    let Some(reason) = found.iter().find(is_reason).map(|cause| cause.code) else { return };
    for cause in found.iter_mut().filter(|cause| cause.code == DiagnosisCode::StateRefused) {
        cause.confidence = Confidence::Possible;
        cause.evidence.push(format!("follows from {reason}"));
    }
}

/// A destination that does not take what comes for postcopy. Where it may not catch the guest's page faults, it refuses
/// the capability beforehand, and says only that afterwards.
fn userfaultfd(looks: &PairLooks) -> Option<Cause> {
    let (source, destination) = looks.source.as_ref().zip(looks.destination.as_ref())?;
    let migration = destination.migration().filter(|migration| has_failed(migration))?;
    let words = migration.error_desc.as_ref().filter(|words| words.contains("load of migration failed"))?;
    if !source.capabilities.contains(POSTCOPY) {
        return None;
    }
    let mut evidence = vec![format!("the destination's query-migrate: failed: {words}")];
    let has = destination.capabilities.contains(POSTCOPY);
    evidence.push(match has {
        true => format!("the capability {POSTCOPY} is on at both sides"),
        false => off_at_destination(),
    });
    let process = destination.process.as_ref();
    let denied = process.filter(|process| process.catches_faults == Some(false));
    let confidence = match (denied, has) {
        (Some(process), _) => {
            let why = "vm.unprivileged_userfaultfd is 0, and its user has neither CAP_SYS_PTRACE nor the right to open \
                       /dev/userfaultfd";
            evidence.push(format!("the destination's process {} may not use userfaultfd: {why}", process.pid));
            Confidence::Likely
        }
        (None, false) => {
            let apart = "migrate-set-capabilities tells on a destination that waits: QEMU refuses the capability where its \
                         host or a seccomp profile bars it from userfaultfd";
            evidence.push(apart.to_owned());
            Confidence::Possible
        }
        (None, true) => return None,
    };
    Some(Cause::new(DiagnosisCode::Userfaultfd, confidence, evidence).remedy(LET_IT_CATCH_FAULTS, "none for the guest"))
}

fn off_at_destination() -> String {
    format!("the capability {POSTCOPY} is on at the source and off at the destination")
}

/// A guest that cannot be migrated as it is.
fn blocked(source: &SideLooks) -> Option<Cause> {
    let reasons = &source.migration()?.blocked_reasons;
    if reasons.is_empty() {
        return None;
    }
    let evidence = reasons.iter().map(|reason| format!("query-migrate: blocked-reasons: {reason}")).collect();
    let cause = Cause::new(DiagnosisCode::MigrationBlocked, Confidence::Certain, evidence);
    Some(cause.remedy("take away what is named, for as long as the guest moves", "what the guest loses with that"))
}

/// A migration that has failed, and what QEMU says of that.
fn failure(side: Side, seen: &SideLooks) -> Option<Cause> {
    let migration = seen.migration().filter(|migration| has_failed(migration))?;
    let words = migration.error_desc.as_ref()?;
    let lower = words.to_lowercase();
    let fits = |row: &&(&[&str], DiagnosisCode, &str, &str)| row.0.iter().any(|part| lower.contains(part));
    let &(_, code, remedy, risk) = WORDS.iter().find(fits)?;
    let mut evidence = vec![format!("the {side}'s query-migrate: failed: {words}")];
    let limited = seen.process.as_ref().and_then(|process| Some((process.pid, process.memlock?)));
    if let (DiagnosisCode::Memlock, Some((pid, bytes))) = (code, limited) {
        evidence.push(format!("the {side}'s process {pid} may lock {bytes} bytes (Max locked memory)"));
    }
    Some(Cause::new(code, Confidence::Likely, evidence).remedy(remedy, risk))
}

fn has_failed(migration: &MigrationInfo) -> bool {
    matches!(migration.status, Some(MigrationStatus::Failed | MigrationStatus::Failing))
}
