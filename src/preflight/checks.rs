//! One function per check, each over facts gathered once.
//!
//! Pure. A finding names what it is about, why it matters and what to do.

use super::facts::Facts;
use crate::{
    endpoint::Address,
    qemu::reply::{MigrationStatus, RunState},
    storage::layout::{PREFIX, Pair, PairingProblem},
};
use serde::Serialize;
use std::{fmt, net::IpAddr};

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The migration may not start.
    Blocker,
    /// It may, but the user should know.
    Warning,
    /// Worth telling.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Blocker => "blocker",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// Something a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A stable word for programs.
    pub code: &'static str,
    /// How grave it is.
    pub severity: Severity,
    /// What it is about: a side, a disk, an address.
    pub subject: String,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)?;
        match self.remedy.as_str() {
            "" => Ok(()),
            remedy => write!(f, " ({remedy})"),
        }
    }
}

/// Everything the checks look at.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The source.
    pub source: &'a Facts,
    /// The destination.
    pub destination: &'a Facts,
    /// The disks that would move.
    pub pairs: &'a [Pair],
    /// What pairing them met.
    pub problems: &'a [PairingProblem],
    /// Disks that both sides have open, which are left alone.
    pub shared: &'a [String],
    /// Writable disks that the user's choice leaves behind without saying so.
    pub left_out: &'a [String],
    /// The listening addresses, with the option that sets each; `None` where none could be chosen.
    pub addresses: &'a [(&'static str, Option<Address>)],
    /// The user allows plain text on the network.
    pub allow_plaintext: bool,
}

/// Runs every check; blockers come first.
pub fn run(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Subject { source, destination, .. } = *subject;
    findings.extend(same_process(source, destination));
    findings.extend(features(source));
    findings.extend(features(destination));
    findings.extend(source_state(source));
    findings.extend(source_migration(source));
    findings.extend(destination_state(destination));
    findings.extend(ram(source, destination));
    findings.extend(leftovers(source));
    findings.extend(leftovers(destination));
    findings.extend(jobs(source));
    findings.extend(exports(destination));
    findings.extend(subject.problems.iter().map(pairing));
    findings.extend(subject.shared.iter().map(|disk| shared(disk)));
    findings.extend(subject.left_out.iter().map(|disk| left_out(disk)));
    findings.extend(
        subject
            .addresses
            .iter()
            .filter_map(|(option, address)| listen(option, address.as_ref(), subject.allow_plaintext)),
    );
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// Makes a finding.
pub(crate) fn finding(
    severity: Severity,
    code: &'static str,
    subject: &str,
    message: impl Into<String>,
    remedy: &str,
) -> Finding {
    Finding { code, severity, subject: subject.to_owned(), message: message.into(), remedy: remedy.to_owned() }
}

/// Makes a finding that forbids to go on.
pub(crate) fn blocker(code: &'static str, subject: &str, message: impl Into<String>, remedy: &str) -> Finding {
    finding(Severity::Blocker, code, subject, message, remedy)
}

fn same_process(source: &Facts, destination: &Facts) -> Option<Finding> {
    let pid = source.pid.filter(|_| source.pid == destination.pid)?;
    let message = format!("source and destination are the same process, pid {pid}");
    Some(blocker("same-process", &destination.name, message, "give the QMP socket of the destination's own QEMU"))
}

fn features(side: &Facts) -> Option<Finding> {
    let missing = &side.features.missing;
    let message = format!("this QEMU lacks {}", missing.join(", "));
    (!missing.is_empty()).then(|| {
        blocker("qemu-lacks", &side.name, message, "QEMU 6.2 or later built with block jobs and NBD is needed")
    })
}

fn source_state(source: &Facts) -> Option<Finding> {
    let remedy = match source.run {
        RunState::Running | RunState::Paused => return None,
        RunState::PostMigrate => {
            "an earlier migration completed here: make sure that the guest runs nowhere else before you send cont"
        }
        RunState::InMigrate => "this one waits for a guest: are source and destination swapped?",
        _ => "only a guest that runs or is paused can be moved",
    };
    Some(blocker(
        "source-state",
        &source.name,
        format!("the guest is neither running nor paused: {}", source.run),
        remedy,
    ))
}

fn source_migration(source: &Facts) -> Option<Finding> {
    let blocked = &source.migration.blocked_reasons;
    if !blocked.is_empty() {
        let message = format!("QEMU cannot migrate this guest: {}", blocked.join("; "));
        return Some(blocker("migration-blocked", &source.name, message, "remove what blocks it"));
    }
    let status = source.migration.status.as_ref().filter(|status| !status.is_over())?;
    let message = format!("a migration is under way: {status}");
    Some(blocker("migration-under-way", &source.name, message, "wait for it, or end it with migrate_cancel"))
}

fn destination_state(destination: &Facts) -> Option<Finding> {
    let restart = "start the destination QEMU with -incoming defer -S";
    if destination.run != RunState::InMigrate {
        let message = format!("it does not wait for a guest: {}", destination.run);
        return Some(blocker("destination-state", &destination.name, message, restart));
    }
    let status = destination.migration.status.as_ref().filter(|status| **status != MigrationStatus::None)?;
    let message = format!("it was used before: its incoming migration is {status}");
    Some(blocker(
        "destination-used",
        &destination.name,
        message,
        "a QEMU takes one incoming migration: start it anew with -incoming defer -S",
    ))
}

fn ram(source: &Facts, destination: &Facts) -> Option<Finding> {
    let message = format!("the source has {} bytes of RAM, the destination {}", source.ram, destination.ram);
    (source.ram != destination.ram)
        .then(|| blocker("ram-size", &destination.name, message, "start it with the source's -m"))
}

fn leftovers(side: &Facts) -> Vec<Finding> {
    let remedy = "an earlier migration of ours left it, or one is running now: remove it, or wait";
    side.leftovers
        .iter()
        .map(|left| blocker("leftover", &side.name, format!("there is already a {left}"), remedy))
        .collect()
}

fn jobs(source: &Facts) -> Vec<Finding> {
    let foreign = source.jobs.iter().filter(|id| !id.starts_with(PREFIX));
    let remedy = "a job can keep its disk from being mirrored: wait for it";
    foreign
        .map(|id| finding(Severity::Warning, "job-running", &source.name, format!("the job {id} is there"), remedy))
        .collect()
}

fn exports(destination: &Facts) -> Option<Finding> {
    let foreign: Vec<&str> =
        destination.exports.iter().map(String::as_str).filter(|id| !id.starts_with(PREFIX)).collect();
    let message = format!("it exports {} already", foreign.join(", "));
    (!foreign.is_empty()).then(|| {
        blocker(
            "export-open",
            &destination.name,
            message,
            "a QEMU has one NBD server, and nobody else may write to the disks: stop it",
        )
    })
}

fn pairing(problem: &PairingProblem) -> Finding {
    match problem {
        PairingProblem::Unknown { name, on_source } => {
            let side = if *on_source { "source" } else { "destination" };
            blocker(
                "disk-unknown",
                name,
                format!("the {side} has no disk of this name"),
                "query-block shows qdev, device and node names",
            )
        }
        PairingProblem::Missing(disk) => {
            let remedy = "give the destination a device of the same id, name the pair with --disk SOURCE=DESTINATION, or leave it out with --skip-disk";
            blocker("disk-missing", disk.name(), "the destination has no disk like it", remedy)
        }
        PairingProblem::Ambiguous(disk) => blocker(
            "disk-ambiguous",
            disk.name(),
            "more than one disk matches",
            "name each pair with --disk SOURCE=DESTINATION",
        ),
        PairingProblem::ReadOnly(pair) => blocker(
            "disk-read-only",
            pair.source.name(),
            format!("the destination's {} is read-only", pair.destination.name()),
            "start the destination with it writable",
        ),
        PairingProblem::Size(pair) => {
            let (here, there) = (pair.source.virtual_size, pair.destination.virtual_size);
            let message = format!("it has {here} bytes, the destination's {} has {there}", pair.destination.name());
            blocker(
                "disk-size",
                pair.source.name(),
                message,
                "create the destination's overlay with exactly the source's virtual size",
            )
        }
    }
}

fn shared(disk: &str) -> Finding {
    finding(Severity::Note, "disk-shared", disk, "both sides have the same file open: it is not copied", "")
}

fn left_out(disk: &str) -> Finding {
    let message = "it is writable and is not moved: the guest will find whatever the destination has in its place";
    finding(Severity::Warning, "disk-left-out", disk, message, "name it with --disk too, or say --skip-disk")
}

/// Whether an address can be listened at: that there is one, and that it is not open to a network without the user's word.
pub(crate) fn listen(option: &str, address: Option<&Address>, allow_plaintext: bool) -> Option<Finding> {
    let Some(address) = address else {
        return Some(blocker(
            "address-missing",
            option,
            "no address can be chosen: the two QEMUs are not both known to be local processes, or a socket in XDG_RUNTIME_DIR would have too long a path",
            &format!("give {option}, where the destination is to listen"),
        ));
    };
    let Address::Tcp { host, .. } = address else { return None };
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let message = "the guest's data would cross the network in plain text";
    match (loopback, allow_plaintext) {
        (true, _) => None,
        (false, true) => Some(finding(Severity::Warning, "plaintext", &address.to_string(), message, "")),
        (false, false) => Some(blocker(
            "plaintext",
            &address.to_string(),
            message,
            "say --allow-plaintext if the network is trusted, or tunnel it",
        )),
    }
}
