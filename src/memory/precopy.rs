//! The precopy migration, from `migrate-incoming` to the source's wait in `pre-switchover`.

use super::sample;
use crate::{
    endpoint::Address,
    progress::{Moment, RamOutcome, Reporter},
    qemu::{
        Observed, Process, ProcessError,
        reply::{Migration, MigrationStatus},
    },
};
use qapi::qmp;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::time::interval;

/// How often RAM is sampled: QEMU recalculates its own figures every 100 ms, and no event carries them.
const SAMPLE: Duration = Duration::from_millis(500);
/// How long after STOP the event `pre-switchover` is overdue: QEMU drains and flushes its disks in between.
const OVERDUE: Duration = Duration::from_secs(5);
/// How long a cancelled migration may take to be over.
const CANCEL: Duration = Duration::from_secs(10);

/// Why RAM could not be carried over.
#[derive(Debug, Error)]
pub enum PrecopyError {
    /// QEMU ended the migration.
    #[error("QEMU ended the RAM migration: {0}")]
    Failed(String),
    /// A command failed.
    #[error("RAM could not be migrated")]
    Process(#[from] ProcessError),
}

/// Has the destination listen.
///
/// # Errors
/// What QEMU says: above all that it cannot bind, or was used before.
pub async fn listen(destination: &Process, address: &Address) -> Result<(), ProcessError> {
    // where it exists: without it a failed destination exits, and its reason is only on its stderr
    let exit_on_error = destination.features().incoming_exit_on_error.then_some(false);
    destination.act(&qmp::migrate_incoming { uri: Some(address.to_string()), channels: None, exit_on_error }).await
}

/// Starts sending.
///
/// # Errors
/// What QEMU says: above all that the guest cannot be migrated.
pub async fn send(source: &Process, address: &Address) -> Result<(), ProcessError> {
    source.act(&qmp::migrate { uri: Some(address.to_string()), channels: None, detach: None, resume: None }).await
}

/// Waits until the guest is stopped and the source waits in `pre-switchover`, sampling on the way.
///
/// # Errors
/// QEMU ends the migration.
pub async fn until_pre_switchover(
    source: &Process,
    totals: &mut RamOutcome,
    report: &Reporter,
) -> Result<Moment, PrecopyError> {
    let arrived = async {
        let mut watch = source.watch();
        match watch.wait_for(|seen| arrival(seen).is_some()).await {
            Ok(seen) => arrival(&seen),
            Err(_) => None,
        }
    };
    let outcome = tokio::select! {
        // an event, so that nothing waits for a sample that is under way
        biased;
        outcome = arrived => outcome,
        truth = sampling(source, totals, report) => Some(truth?),
    };
    match outcome {
        Some(Arrival::PreSwitchover(moment)) => Ok(moment),
        Some(Arrival::Over(reason)) => Err(PrecopyError::Failed(why(source, reason).await)),
        None => Err(ProcessError::from(source.gone().await).into()),
    }
}

/// Cancels the migration, waits until it is over, and tells how it ended; that none is under way is fine. One in postcopy
/// is left alone: the guest is on the destination by then, and 7.2 would let itself be told and lose its pages.
///
/// # Errors
/// QEMU does not answer, or does not end it.
pub async fn cancel(source: &Process) -> Result<MigrationStatus, ProcessError> {
    let status = |migration: Migration| migration.status.unwrap_or(MigrationStatus::None);
    let now = status(source.ask(&qmp::query_migrate {}).await?);
    if now.is_over() || now.is_postcopy() || now == MigrationStatus::PostcopyDevice {
        return Ok(now);
    }
    source.act(&qmp::migrate_cancel {}).await?;
    let told = |seen: &Observed| seen.migration.keys().find(|status| status.is_over()).cloned();
    let asked = || async {
        let migration = source.ask(&qmp::query_migrate {}).await.ok()?;
        Some(status(migration)).filter(MigrationStatus::is_over)
    };
    source.until_known("end of the cancelled migration", CANCEL, told, asked).await
}

enum Arrival {
    PreSwitchover(Moment),
    Over(MigrationStatus),
}

fn arrival(seen: &Observed) -> Option<Arrival> {
    let over = seen.migration.keys().find(|status| status.is_over());
    match (over, seen.entered(&MigrationStatus::PreSwitchover)) {
        (Some(status), _) => Some(Arrival::Over(status.clone())),
        (None, Some(moment)) => Some(Arrival::PreSwitchover(moment)),
        (None, None) => None,
    }
}

/// Samples until a query shows an end that no event told: events are hints, queries are truth.
async fn sampling(source: &Process, totals: &mut RamOutcome, report: &Reporter) -> Result<Arrival, ProcessError> {
    let (began, mut tick, mut waited) = (Instant::now(), interval(SAMPLE), false);
    loop {
        tick.tick().await;
        let stopped = source.observed().stopped.is_some_and(|stopped| stopped.local >= began);
        if stopped && !waited {
            // with the guest stopped nothing is asked, unless the event that is about to come stays away
            waited = true;
            tick.reset_after(OVERDUE);
            continue;
        }
        let migration = source.ask(&qmp::query_migrate {}).await?;
        sample::fold(totals, &migration);
        if let Some(event) = sample::event(&migration) {
            report.emit(event);
        }
        match migration.status {
            Some(MigrationStatus::PreSwitchover) => return Ok(Arrival::PreSwitchover(Moment::now())),
            Some(status) if status.is_over() => return Ok(Arrival::Over(status)),
            _ => {}
        }
    }
}

/// QEMU's own words for how a migration ended.
async fn why(source: &Process, status: MigrationStatus) -> String {
    match source.ask(&qmp::query_migrate {}).await {
        Ok(Migration { error_desc: Some(error), .. }) => error,
        _ => format!("status {status}, no reason given"),
    }
}
