//! The state of each side: run states, migrations, features, leftovers, jobs, exports, RAM.
//!
//! Pure.

use super::{finding::Finding, subject::KnownRun};
use crate::{
    codes::FindingCode,
    preflight::facts::SideFacts,
    qemu::reply::{MigrationStatus, RunState},
    quantity::Bytes,
    storage::{mirror::leftover::Leftover, model::layout::PREFIX},
};

pub(super) fn run(source: &SideFacts, destination: &SideFacts, clean: bool, known: &[KnownRun]) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(same_process(source, destination));
    findings.extend(features(source));
    findings.extend(features(destination));
    findings.extend(source_state(source));
    findings.extend(suspended(source, destination));
    findings.extend(source_migration(source));
    findings.extend(destination_state(destination));
    findings.extend(autostart(destination));
    findings.extend(ram(source, destination));
    findings.extend(at_work(source, known, |run| run.has_source));
    findings.extend(at_work(destination, known, |run| run.has_destination));
    findings.extend(leftovers(source, clean, known));
    findings.extend(leftovers(destination, clean, known));
    findings.extend(unfinished(source, clean, known));
    findings.extend(shared_memory(source, destination));
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
        // a suspended guest has a check of its own
        RunState::Running | RunState::Paused | RunState::Suspended => None,
        // To get away from a full or broken disk is a reason to move.
        RunState::IoError => {
            let message = "the guest stands still after an error of a disk, and stays so where it arrives".to_owned();
            Some(Finding::new(FindingCode::GuestIoError, &source.name, message))
        }
        RunState::PostMigrate => Some(finding.with_remedy(
            "an earlier migration from this QEMU completed: make sure that the guest runs nowhere else before you send cont",
        )),
        RunState::InMigrate => {
            Some(finding.with_remedy("this QEMU waits for a guest: check that source and destination are not swapped"))
        }
        _ => Some(finding),
    }
}

/// A guest that sleeps (S3), where one of the builds does not carry that over.
fn suspended(source: &SideFacts, destination: &SideFacts) -> Option<Finding> {
    let awakens = [source, destination].into_iter().find(|side| side.machine.version.wakes_migrated_guests())?;
    let message = format!(
        "the guest is suspended, and QEMU {} does not carry that over: the guest would be awake where it arrives",
        awakens.machine.version
    );
    (source.run == RunState::Suspended).then(|| Finding::new(FindingCode::GuestSuspended, &awakens.name, message))
}

fn source_migration(source: &SideFacts) -> Option<Finding> {
    let blocked = &source.migration.blocked_reasons;
    if !blocked.is_empty() {
        let message = format!("QEMU cannot migrate this guest: {}", blocked.join("; "));
        return Some(Finding::new(FindingCode::MigrationBlocked, &source.name, message));
    }
    let status = source.migration.status.as_ref().filter(|status| source.connects_on || !status.is_over())?;
    if source.connects_on {
        let message = format!(
            "the last migration is {status}, and QEMU still waits for its connection: it would refuse another, and send \
             the guest over the old connection once that is made"
        );
        let remedy = "wait until the kernel gives the connection up, some two minutes after it was begun, or, as root, end \
                      it with ss -K and its address";
        return Some(Finding::new(FindingCode::MigrationUnderWay, &source.name, message).with_remedy(remedy));
    }
    let message = format!("a migration is under way: {status}");
    Some(Finding::new(FindingCode::MigrationUnderWay, &source.name, message))
}

fn destination_state(destination: &SideFacts) -> Option<Finding> {
    if destination.run != RunState::InMigrate {
        let message = format!("this QEMU does not wait for a guest: {}", destination.run);
        return Some(Finding::new(FindingCode::DestinationState, &destination.name, message));
    }
    let status = destination.migration.status.as_ref().filter(|status| **status != MigrationStatus::None)?;
    let message = match status {
        MigrationStatus::Setup => {
            "this QEMU listens for a migration already: it was started with an address for -incoming \
                                   in place of defer, or somebody has told it to listen"
                .to_owned()
        }
        status => format!("this QEMU was used before: its incoming migration is {status}"),
    };
    Some(Finding::new(FindingCode::DestinationUsed, &destination.name, message))
}

/// A destination without `-S` would run the guest by itself.
fn autostart(destination: &SideFacts) -> Option<Finding> {
    let starts = destination.run == RunState::InMigrate && destination.process.starts_stopped == Some(false);
    let message = "this QEMU was started without -S, so that by itself it would run a guest as soon as it has one";
    starts.then(|| Finding::new(FindingCode::DestinationAutostart, &destination.name, message))
}

/// RAM that was plugged in is not compared: a waiting QEMU does not count the memory that virtio-mem is going to have.
/// The blocks of RAM behind all of it are compared.
fn ram(source: &SideFacts, destination: &SideFacts) -> Option<Finding> {
    let message = format!(
        "the source was started with {} of RAM, the destination with {}",
        Bytes(source.base_ram).exactly(),
        Bytes(destination.base_ram).exactly()
    );
    (source.base_ram != destination.base_ram).then(|| Finding::new(FindingCode::RamSize, &destination.name, message))
}

/// The other engines that are at work with a QEMU.
fn at_work(side: &SideFacts, known: &[KnownRun], has_side: fn(&KnownRun) -> bool) -> Vec<Finding> {
    let found = |run: &KnownRun| {
        let pid = run.engine_pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
        let message = format!("another qferry{pid} is at work with this QEMU: its journal is {}", run.journal);
        Finding::new(FindingCode::QemuInUse, &side.name, message)
    };
    known.iter().filter(|run| run.engine_lives && has_side(run)).map(found).collect()
}

/// The runs of this very pair whose engine died, where no leftover tells of them.
fn unfinished(source: &SideFacts, clean: bool, known: &[KnownRun]) -> Vec<Finding> {
    let found = |run: &KnownRun| {
        let message = format!("an engine died in a migration of this pair: its journal is {}", run.journal);
        let finding = Finding::new(FindingCode::JournalLeft, &source.name, message);
        match clean {
            true => finding.with_remedy("the migration is recovered from it before this one begins"),
            false => finding.with_remedy(recovering(run)),
        }
    };
    known.iter().filter(|run| run.is_this_pair && !run.engine_lives).map(found).collect()
}

fn recovering(run: &KnownRun) -> String {
    format!("run qferry recover {}, which also puts back what that engine had set", run.journal)
}

fn leftovers(side: &SideFacts, clean: bool, known: &[KnownRun]) -> Vec<Finding> {
    // Names of earlier versions do not tell their run: the journal of this very pair is taken for theirs.
    let owner = |left: &Leftover| {
        let run = left.run();
        known.iter().find(|known| known.run == run && (!run.is_of_earlier_version() || known.is_this_pair))
    };
    let found = |left: &Leftover| match (left, clean) {
        // a read-only export does not hinder a comparison, which removes it
        (Leftover::ReadExport(_), false) => {
            let message = format!("there is a {left}, of a check that was killed or is still running");
            Finding::new(FindingCode::LeftoverView, &side.name, message)
        }
        _ => {
            let finding = Finding::new(FindingCode::Leftover, &side.name, format!("there is already a {left}"));
            match (owner(left), clean) {
                (Some(run), _) if run.engine_lives => {
                    finding.with_remedy(format!("its engine lives, by the journal {}: wait for that one", run.journal))
                }
                (Some(run), clean) if !clean || !run.is_this_pair => finding.with_remedy(recovering(run)),
                (Some(run), _) => finding
                    .into_warning()
                    .with_remedy(format!("its migration is recovered first, from the journal {}", run.journal)),
                (None, true) => {
                    finding.into_warning().with_remedy("the leftover is removed before the migration begins")
                }
                (None, false) => finding,
            }
        }
    };
    side.leftovers.iter().map(found).collect()
}

/// Names a file that both QEMUs have mapped as shared memory: what the destination loads, old pages too, is written
/// over the memory of the guest that still runs.
fn shared_memory(source: &SideFacts, destination: &SideFacts) -> Option<Finding> {
    let (_, file) =
        source.process.shared_memory.iter().find(|(id, _)| destination.process.shared_memory.contains_key(id))?;
    if source.pid == destination.pid {
        return None;
    }
    let message =
        format!("both QEMUs have {file} mapped as shared memory: the destination would write over the guest's");
    Some(Finding::new(FindingCode::RamShared, &destination.name, message))
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
