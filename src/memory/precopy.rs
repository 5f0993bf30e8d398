//! The precopy migration, from `migrate-incoming` to the source's wait in `pre-switchover`.

use crate::{
    endpoint::Address,
    progress::Moment,
    qemu::{
        Observed, Process, ProcessError,
        reply::{MigrationInfo, MigrationStatus},
    },
};
use qapi::qmp;
use std::time::Duration;
use thiserror::Error;

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

/// Waits until its events tell that the guest is stopped and the source waits in `pre-switchover`.
///
/// # Errors
/// QEMU ends the migration.
pub async fn until_pre_switchover(source: &Process) -> Result<Moment, PrecopyError> {
    let mut watch = source.watch();
    let seen = watch.wait_for(|seen| arrival(seen).is_some()).await.ok().and_then(|seen| arrival(&seen));
    match seen {
        Some(Arrival::PreSwitchover(moment)) => Ok(moment),
        Some(Arrival::Over(reason)) => Err(PrecopyError::Failed(why(source, reason).await)),
        None => Err(ProcessError::from(source.gone().await).into()),
    }
}

/// The same by an answer to `query-migrate`, where no event told it: events are hints, queries are truth.
///
/// # Errors
/// QEMU ended the migration.
pub fn arrived(migration: &MigrationInfo) -> Result<Option<Moment>, PrecopyError> {
    match &migration.status {
        Some(MigrationStatus::PreSwitchover) => Ok(Some(Moment::now())),
        Some(status) if status.is_over() => {
            let words = migration.error_desc.clone();
            Err(PrecopyError::Failed(words.unwrap_or_else(|| format!("status {status}, no reason given"))))
        }
        _ => Ok(None),
    }
}

/// Cancels the migration, waits until it is over, and tells how it ended; that none is under way is fine. One in postcopy
/// is left alone: the guest is on the destination by then, and 7.2 would let itself be told and lose its pages.
///
/// # Errors
/// QEMU does not answer, or does not end it.
pub async fn cancel(source: &Process) -> Result<MigrationStatus, ProcessError> {
    let status = |migration: MigrationInfo| migration.status.unwrap_or(MigrationStatus::None);
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

/// QEMU's own words for how a migration ended.
async fn why(source: &Process, status: MigrationStatus) -> String {
    match source.ask(&qmp::query_migrate {}).await {
        Ok(MigrationInfo { error_desc: Some(error), .. }) => error,
        _ => format!("status {status}, no reason given"),
    }
}
