//! The state of each side: run states, migrations, features, leftovers, jobs, exports, RAM.
//!
//! Pure.

use super::finding::Finding;
use crate::{
    codes::FindingCode,
    preflight::facts::SideFacts,
    qemu::reply::{MigrationStatus, RunState},
    quantity::Bytes,
    storage::{mirror::leftover::Leftover, model::layout::PREFIX},
};

pub(super) fn run(source: &SideFacts, destination: &SideFacts, clean: bool) -> Vec<Finding> {
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

fn same_process(source: &SideFacts, destination: &SideFacts) -> Option<Finding> {
    let pid = source.pid.filter(|_| source.pid == destination.pid)?;
    let message = format!("source and destination are the same process, pid {pid}");
    Some(Finding::new(FindingCode::SameProcess, &destination.name, message))
}

fn features(side: &SideFacts) -> Option<Finding> {
    let missing = &side.features.missing;
    let message = format!("this QEMU lacks {}", missing.join(", "));
    (!missing.is_empty()).then(|| Finding::new(FindingCode::QemuLacks, &side.name, message))
}

fn source_state(source: &SideFacts) -> Option<Finding> {
    let message = format!("the guest is neither running nor paused: {}", source.run);
    let finding = Finding::new(FindingCode::SourceState, &source.name, message);
    match source.run {
        RunState::Running | RunState::Paused => None,
        RunState::PostMigrate => Some(finding.with_remedy(
            "an earlier migration from this QEMU completed: make sure that the guest runs nowhere else before you send cont",
        )),
        RunState::InMigrate => {
            Some(finding.with_remedy("this QEMU waits for a guest: check that source and destination are not swapped"))
        }
        _ => Some(finding),
    }
}

fn source_migration(source: &SideFacts) -> Option<Finding> {
    let blocked = &source.migration.blocked_reasons;
    if !blocked.is_empty() {
        let message = format!("QEMU cannot migrate this guest: {}", blocked.join("; "));
        return Some(Finding::new(FindingCode::MigrationBlocked, &source.name, message));
    }
    let status = source.migration.status.as_ref().filter(|status| !status.is_over())?;
    let message = format!("a migration is under way: {status}");
    Some(Finding::new(FindingCode::MigrationUnderWay, &source.name, message))
}

fn destination_state(destination: &SideFacts) -> Option<Finding> {
    if destination.run != RunState::InMigrate {
        let message = format!("this QEMU does not wait for a guest: {}", destination.run);
        return Some(Finding::new(FindingCode::DestinationState, &destination.name, message));
    }
    let status = destination.migration.status.as_ref().filter(|status| **status != MigrationStatus::None)?;
    let message = format!("this QEMU was used before: its incoming migration is {status}");
    Some(Finding::new(FindingCode::DestinationUsed, &destination.name, message))
}

fn ram(source: &SideFacts, destination: &SideFacts) -> Option<Finding> {
    let message = format!(
        "the source has {} of RAM, the destination {}",
        Bytes(source.ram).exactly(),
        Bytes(destination.ram).exactly()
    );
    (source.ram != destination.ram).then(|| Finding::new(FindingCode::RamSize, &destination.name, message))
}

fn leftovers(side: &SideFacts, clean: bool) -> Vec<Finding> {
    let found = |left: &Leftover| match (left, clean) {
        // a read-only export does not hinder a comparison, which removes it
        (Leftover::ReadExport(_), false) => {
            let message = format!("there is a {left}, of a check that was killed or is still running");
            Finding::new(FindingCode::LeftoverView, &side.name, message)
        }
        _ => {
            let finding = Finding::new(FindingCode::Leftover, &side.name, format!("there is already a {left}"));
            match clean {
                true => finding.into_warning().with_remedy("the leftover is removed before the migration begins"),
                false => finding,
            }
        }
    };
    side.leftovers.iter().map(found).collect()
}

fn jobs(source: &SideFacts) -> Vec<Finding> {
    let foreign = source.jobs.iter().filter(|id| !id.starts_with(PREFIX));
    let found = |id| Finding::new(FindingCode::JobRunning, &source.name, format!("the job {id} is running"));
    foreign.map(|id| found(id).into_warning()).collect()
}

fn exports(destination: &SideFacts) -> Option<Finding> {
    let foreign: Vec<&str> =
        destination.exports.iter().map(String::as_str).filter(|id| !id.starts_with(PREFIX)).collect();
    let message = format!("this QEMU has the exports {} already", foreign.join(", "));
    (!foreign.is_empty()).then(|| Finding::new(FindingCode::ExportOpen, &destination.name, message))
}
