//! Looks at both machines again: what the checks proved of them must hold until QEMU lets nobody change them any more.
//!
//! Disks are copied for hours, and QEMU lets every client plug devices and change media meanwhile. From `migrate` on,
//! the source refuses that. So both sides are asked before `migrate` and once more behind it, and as soon as an event
//! tells that a device is gone or that a tray has moved.

use crate::{
    codes::{FailureCode, FindingCode},
    migration::{
        Failure,
        pair::QemuPair,
        work_order::{ProvedFacts, WorkOrder},
    },
    preflight::{
        facts::{self, SideFacts},
        machine_change::changes,
    },
    qemu::{
        Observed, Process, ProcessError,
        reply::{MigrationInfo, MigrationStatus, RunState},
    },
    storage::model::layout::Disk,
};
use qapi::qmp;
use std::{collections::BTreeSet, time::Duration};
use tokio::{time::sleep, try_join};

/// The time between two questions whether somebody else migrates the guest.
const POLL: Duration = Duration::from_millis(100);

/// Looks at both sides before the first command of RAM's migration: nothing has changed, the source does not migrate,
/// and the destination waits and is used by nobody else.
pub(super) async fn before_memory(qemus: &QemuPair, order: &WorkOrder) -> Result<(), Failure> {
    let (source, destination) = look(qemus, &order.proved).await?;
    require_unchanged(&order.proved.source, &source)?;
    require_unchanged(&order.proved.destination, &destination)?;
    require_no_migration(&qemus.source, &source.migration)?;
    let exports: Vec<&str> = order.route.pairs.iter().map(|pair| pair.names.export.as_str()).collect();
    require_waiting(&destination, &exports)
}

/// Looks at both sides, whose machines must be as they were proved.
pub(super) async fn both_sides(qemus: &QemuPair, order: &WorkOrder) -> Result<(), Failure> {
    let (source, destination) = look(qemus, &order.proved).await?;
    require_unchanged(&order.proved.source, &source)?;
    require_unchanged(&order.proved.destination, &destination)
}

/// Looks at the destination before it is told anything, and again once it serves disks: nobody hands a guest to it.
/// The checks may have been minutes ago, and the guest that somebody else has moved there since would be stopped, or
/// its disks written over. Another run's server refuses this run's, so that of two runs with disks one sees the other.
pub(super) async fn require_free(destination: &Process) -> Result<(), Failure> {
    let asked = try_join!(destination.ask(&qmp::query_status {}), destination.ask(&qmp::query_migrate {}));
    let (run, migration) = asked?;
    refuse_used(&destination.name().to_string(), &run.status, &migration, None)
}

/// Does the work unless events tell of a change and a look confirms it.
pub(crate) async fn unless_changed<T>(
    qemus: &QemuPair,
    order: &WorkOrder,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    unless(changed(qemus, order), work).await
}

/// Does the work, which copies disks, unless something changes or somebody else begins a migration.
///
/// That migration is left alone and the mirrors must be out of its way at once: where a migration completes beside a
/// mirror that copies, QEMU 10.0.13 makes the mirror's nodes inactive and aborts at the mirror's next write.
pub(crate) async fn unless_interfered<T>(
    qemus: &QemuPair,
    order: &WorkOrder,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    unless(other_migration(&qemus.source), unless_changed(qemus, order, work)).await
}

/// Does the work unless this failure comes first.
async fn unless<T>(
    stops: impl Future<Output = Failure>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        failure = stops => Err(failure),
        done = work => done,
    }
}

/// Waits until a migration is under way that is not the engine's. Without the capability `events`, which the engine
/// sets only when its own begins, no event tells of that.
async fn other_migration(source: &Process) -> Failure {
    loop {
        sleep(POLL).await;
        // a source that does not answer is found out by the work
        if let Ok(migration) = source.ask(&qmp::query_migrate {}).await {
            if let Err(failure) = require_no_migration(source, &migration) {
                return failure;
            }
        }
    }
}

/// Whether a migration is under way, as far as QEMU says.
pub(super) async fn is_migrating(process: &Process) -> bool {
    process.ask(&qmp::query_migrate {}).await.is_ok_and(|migration| under_way(&migration).is_some())
}

/// Refuses to go on beside a migration of somebody else.
pub(super) fn require_no_migration(process: &Process, migration: &MigrationInfo) -> Result<(), Failure> {
    let Some(status) = under_way(migration) else { return Ok(()) };
    let message = format!("{}: somebody else's migration is under way: {status}", process.name());
    Err(Failure::Interfered { code: FindingCode::MigrationUnderWay.into(), message })
}

fn under_way(migration: &MigrationInfo) -> Option<&MigrationStatus> {
    migration.status.as_ref().filter(|status| !status.is_over())
}

async fn look(qemus: &QemuPair, proved: &ProvedFacts) -> Result<(SideFacts, SideFacts), ProcessError> {
    // boxed: the future of a whole migration would otherwise be as large as all these queries
    try_join!(
        Box::pin(facts::look_again(&qemus.source, &proved.source)),
        Box::pin(facts::look_again(&qemus.destination, &proved.destination))
    )
}

/// Refuses to go on with a machine that is not as it was proved.
fn require_unchanged(before: &SideFacts, now: &SideFacts) -> Result<(), Failure> {
    if let Some(change) = changes(before, now).first() {
        let message = format!("{}: {change}", now.name);
        return Err(Failure::Interfered { code: FailureCode::MachineChanged, message });
    }
    match now.migration.blocked_reasons.as_slice() {
        [] => Ok(()),
        blocked => {
            let message = format!("{}: QEMU cannot migrate this guest any more: {}", now.name, blocked.join("; "));
            Err(Failure::Interfered { code: FindingCode::MigrationBlocked.into(), message })
        }
    }
}

/// Refuses to go on with a destination that does not wait, or that somebody else uses. `exports` are the engine's own.
fn require_waiting(destination: &SideFacts, exports: &[&str]) -> Result<(), Failure> {
    let foreign = destination.exports.iter().find(|id| !exports.contains(&id.as_str()));
    refuse_used(&destination.name, &destination.run, &destination.migration, foreign)
}

fn refuse_used(name: &str, run: &RunState, migration: &MigrationInfo, foreign: Option<&String>) -> Result<(), Failure> {
    let used = migration.status.as_ref().filter(|status| **status != MigrationStatus::None);
    let (code, message) = match (run, used, foreign) {
        (RunState::InMigrate, None, None) => return Ok(()),
        (RunState::InMigrate, Some(status), _) => {
            (FindingCode::DestinationUsed, format!("somebody else has begun its incoming migration: {status}"))
        }
        (RunState::InMigrate, None, Some(export)) => {
            (FindingCode::ExportOpen, format!("somebody else has added the export {export}"))
        }
        (run, ..) => (FindingCode::DestinationState, format!("this QEMU does not wait for a guest any more: {run}")),
    };
    Err(Failure::Interfered { code: code.into(), message: format!("{name}: {message}") })
}

/// Waits for an event that tells of a change, and for the look that confirms it.
async fn changed(qemus: &QemuPair, order: &WorkOrder) -> Failure {
    let (mut source, mut destination) = (qemus.source.watch(), qemus.destination.watch());
    let mut seen = (BTreeSet::new(), BTreeSet::new(), 0, 0);
    loop {
        let now = {
            let (source, destination) = (source.borrow_and_update(), destination.borrow_and_update());
            let unplugged = (source.unplugged.clone(), destination.unplugged.clone());
            (unplugged.0, unplugged.1, source.tray_moves, destination.tray_moves)
        };
        if now != seen {
            if let Some(failure) = judge_events(qemus, order, &now.0, &now.1) {
                return failure;
            }
            // a side that does not answer is found out by the work
            if let Err(failure @ Failure::Interfered { .. }) = both_sides(qemus, order).await {
                return failure;
            }
            seen = now;
        }
        let told = |seen: &Observed, unplugged: &BTreeSet<String>, trays: u64| {
            seen.unplugged != *unplugged || seen.tray_moves != trays
        };
        let waited = tokio::select! {
            waited = source.wait_for(|now| told(now, &seen.0, seen.2)) => waited.is_ok(),
            waited = destination.wait_for(|now| told(now, &seen.1, seen.3)) => waited.is_ok(),
        };
        if !waited {
            // a connection is gone, which the interruption notices and names
            std::future::pending::<()>().await;
        }
    }
}

/// A disk that moves and was unplugged is gone, whatever is in its place now: a device on the same node again would
/// write past the mirror.
fn judge_events(
    qemus: &QemuPair,
    order: &WorkOrder,
    on_source: &BTreeSet<String>,
    on_destination: &BTreeSet<String>,
) -> Option<Failure> {
    let sides = [(&qemus.source, on_source), (&qemus.destination, on_destination)];
    let disks = order.route.pairs.iter().flat_map(|pair| [&pair.source, &pair.destination].into_iter().zip(sides));
    let (disk, (process, _)) = disks.into_iter().find(|(disk, (_, unplugged))| is_unplugged(disk, unplugged))?;
    let message = format!("{}: {} was unplugged while it was copied", process.name(), disk.name());
    Some(Failure::Interfered { code: FailureCode::MachineChanged, message })
}

fn is_unplugged(disk: &Disk, unplugged: &BTreeSet<String>) -> bool {
    let is_below = |path: &str| {
        let rest = disk.path.as_deref().and_then(|disk| disk.strip_prefix(path));
        path.starts_with('/') && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    unplugged.iter().any(|name| disk.qdev.as_deref() == Some(name) || is_below(name))
}
