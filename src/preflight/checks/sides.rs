//! What each side is and is doing: run states, migrations, features, leftovers, jobs, exports, RAM.
//!
//! Pure.

use super::{Finding, Severity, blocker, finding};
use crate::{
    preflight::facts::Facts,
    qemu::reply::{MigrationStatus, RunState},
    storage::{mirror::leftover::Leftover, model::layout::PREFIX},
};

pub(super) fn run(source: &Facts, destination: &Facts, clean: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(same_process(source, destination));
    findings.extend(features(source));
    findings.extend(features(destination));
    findings.extend(source_state(source));
    findings.extend(source_migration(source));
    findings.extend(destination_state(destination));
    findings.extend(ram(source, destination));
    findings.extend(leftovers(source, clean));
    findings.extend(leftovers(destination, clean));
    findings.extend(jobs(source));
    findings.extend(exports(destination));
    findings
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

fn leftovers(side: &Facts, clean: bool) -> Vec<Finding> {
    let (severity, remedy) = match clean {
        true => (Severity::Warning, "it is removed before the migration begins"),
        false => (
            Severity::Blocker,
            "an earlier migration of ours left it, or one is running now: wait, or if none is, remove it with --clean",
        ),
    };
    let told = |left: &Leftover| match (left, clean) {
        // it can be read through again, and is removed then
        (Leftover::ReadExport(_), false) => {
            let message = format!("there is a {left}, of a check that was killed or goes on");
            let remedy = "the next comparison of backing files removes it, if nobody reads from it; so does --clean";
            finding(Severity::Warning, "leftover-view", &side.name, message, remedy)
        }
        _ => finding(severity, "leftover", &side.name, format!("there is already a {left}"), remedy),
    };
    side.leftovers.iter().map(told).collect()
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
