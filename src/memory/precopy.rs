//! The precopy migration, from `migrate-incoming` to the source's wait in `pre-switchover`.

use crate::{
    endpoint::Address,
    progress::Moment,
    qemu::{
        Observed, Process, ProcessError, SentCommand, keep_alive,
        reply::{MigrationInfo, MigrationStatus, RunState},
    },
};
use qapi::qmp;
use std::time::Duration;
use thiserror::Error;
use tokio::try_join;

/// The time for a cancelled migration to end.
const CANCEL: Duration = Duration::from_secs(10);

/// What is said of a migration whose own end was not seen.
const FOLLOWED: &str = "another client has begun a migration of the guest since";

/// Why RAM could not be migrated.
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
/// QEMU refuses, above all because it cannot bind or took a migration before; or does not answer.
pub async fn listen(destination: &Process, address: &Address) -> Result<(), ProcessError> {
    // Without `exit-on-error=false` a destination that fails exits and leaves the reason on its stderr alone.
    let exit_on_error = destination.features().incoming_exit_on_error.then_some(false);
    let uri = Some(keep_alive::uri(address, destination.features()));
    destination.act(&qmp::migrate_incoming { uri, channels: None, exit_on_error }).await
}

/// Has the source connect and send RAM; the command is sent when the function is called.
///
/// # Errors
/// QEMU refuses, above all because the guest cannot be migrated; or does not answer.
pub fn send(source: &Process, address: &Address) -> SentCommand<()> {
    let uri = Some(keep_alive::uri(address, source.features()));
    source.act(&qmp::migrate { uri, channels: None, detach: None, resume: None })
}

/// Waits until the source's events tell that the guest is stopped and the migration waits in `pre-switchover`.
///
/// An end that an event tells is asked about: the last event of an earlier migration can arrive behind the first of
/// this one.
///
/// # Errors
/// QEMU ends the migration.
pub async fn until_pre_switchover(source: &Process) -> Result<Moment, PrecopyError> {
    let mut watch = source.watch();
    let mut stale = None;
    loop {
        let end = |seen: &Observed| precopy_end(seen, stale);
        // Another client's migration begins once this one is over, and its end is not the end of this one.
        let is_anothers = |seen: &Observed| source.own_migration.is_followed(seen);
        let told = watch.wait_for(|seen| is_anothers(seen) || end(seen).is_some()).await;
        let seen = told.ok().map(|seen| (is_anothers(&seen), end(&seen)));
        match seen.and_then(|(is_anothers, end)| if is_anothers { Some(PrecopyEnd::Followed) } else { end }) {
            Some(PrecopyEnd::Followed) => return Err(PrecopyError::Failed(FOLLOWED.to_owned())),
            Some(PrecopyEnd::PreSwitchover(moment)) => return Ok(moment),
            Some(PrecopyEnd::Over(status, moment)) => match source.ask(&qmp::query_migrate {}).await {
                Ok(MigrationInfo { status: Some(now), .. }) if !now.is_over() => stale = Some(moment),
                Ok(MigrationInfo { error_desc: Some(error), .. }) => return Err(PrecopyError::Failed(error)),
                _ => return Err(PrecopyError::Failed(no_reason(&status))),
            },
            None => return Err(ProcessError::from(source.gone().await).into()),
        }
    }
}

/// [`until_pre_switchover`] for one reply to `query-migrate`, which tells the same where an event was lost: `None`
/// while RAM is being sent.
///
/// # Errors
/// QEMU ended the migration.
pub fn arrived(migration: &MigrationInfo) -> Result<Option<Moment>, PrecopyError> {
    match &migration.status {
        Some(MigrationStatus::PreSwitchover) => Ok(Some(Moment::now())),
        Some(status) if status.is_over() => {
            let words = migration.error_desc.clone();
            Err(PrecopyError::Failed(words.unwrap_or_else(|| no_reason(status))))
        }
        _ => Ok(None),
    }
}

/// Cancels the migration, waits for its end, and returns its last status; no error where none is under way.
///
/// A migration in postcopy is left alone: the guest is on the destination by then, and QEMU 7.2 would obey and lose the
/// guest's pages.
///
/// # Errors
/// QEMU does not answer, or does not end the migration.
pub async fn cancel(source: &Process) -> Result<MigrationStatus, ProcessError> {
    let now = status(source).await?;
    cancel_from(source, now).await
}

/// How a guest stands, and how the last migration, both asked for at once.
///
/// # Errors
/// QEMU does not answer one of the two questions.
pub async fn run_and_status(process: &Process) -> Result<(RunState, MigrationStatus), ProcessError> {
    let (run, migration) = try_join!(process.ask(&qmp::query_status {}), process.ask(&qmp::query_migrate {}))?;
    Ok((run.status, status_of(migration)))
}

/// The status of the source's migration.
///
/// # Errors
/// QEMU does not answer.
pub async fn status(source: &Process) -> Result<MigrationStatus, ProcessError> {
    Ok(status_of(source.ask(&qmp::query_migrate {}).await?))
}

fn status_of(migration: MigrationInfo) -> MigrationStatus {
    migration.status.unwrap_or(MigrationStatus::None)
}

/// [`cancel`] for a migration whose status was asked for a moment ago.
///
/// # Errors
/// QEMU does not answer, or does not end the migration.
pub async fn cancel_from(source: &Process, now: MigrationStatus) -> Result<MigrationStatus, ProcessError> {
    if now.is_over() || now.is_postcopy() || now == MigrationStatus::PostcopyDevice {
        return Ok(now);
    }
    source.act(&qmp::migrate_cancel {}).await?;
    let told = |seen: &Observed| seen.migration.keys().find(|status| status.is_over()).cloned();
    let asked = || async {
        let migration = source.ask(&qmp::query_migrate {}).await.ok()?;
        Some(status_of(migration)).filter(MigrationStatus::is_over)
    };
    source.until_known("end of the cancelled migration", CANCEL, told, asked).await
}

/// The end of precopy, as events tell it.
enum PrecopyEnd {
    /// The guest is stopped and the source waits.
    PreSwitchover(Moment),
    /// QEMU ended the migration with this status, at this moment.
    Over(MigrationStatus, Moment),
    /// Another client has begun a migration since.
    Followed,
}

/// The end of precopy; `stale` is when a status was entered that belongs to an earlier migration.
fn precopy_end(seen: &Observed, stale: Option<Moment>) -> Option<PrecopyEnd> {
    let is_new = |moment: &Moment| stale.is_none_or(|stale| moment.local > stale.local);
    let over = seen.migration.iter().find(|(status, moment)| status.is_over() && is_new(moment));
    match (over, seen.entered(&MigrationStatus::PreSwitchover)) {
        (Some((status, moment)), _) => Some(PrecopyEnd::Over(status.clone(), *moment)),
        (None, Some(moment)) => Some(PrecopyEnd::PreSwitchover(moment)),
        (None, None) => None,
    }
}

fn no_reason(status: &MigrationStatus) -> String {
    format!("status {status}, no reason given")
}
