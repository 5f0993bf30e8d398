//! Postcopy: the guest goes on at the destination before all its pages are there, and the source sends the rest.
//!
//! From the source's `postcopy-active` on there is no way back: QEMU refuses to cancel or to resume there, and each side
//! has a part of the guest that the other lacks. So nothing here ends a process or gives the source up; a channel that
//! broke is made anew. QEMU's main loop can hang on the destination while a page is missing, which is why it is never
//! asked for progress, and is told in out-of-band commands.

use super::{apply, sample};
use crate::{
    endpoint::Address,
    progress::{RamOutcome, Reporter},
    qemu::{
        Gone, Observed, Process, ProcessError,
        reply::{MigrationInfo, MigrationStatus},
    },
    quantity::Rate,
};
use qapi::qmp;
use serde_json::{Map, json};
use std::{future::pending, time::Duration};
use thiserror::Error;
use tokio::time::{Instant, interval, sleep};

/// The migration capability that both sides need, set before `migrate`.
pub const CAPABILITY: &str = "postcopy-ram";
/// The parameter that is `max-bandwidth` in postcopy; 0 is no limit.
pub const BANDWIDTH: &str = "max-postcopy-bandwidth";

/// How often RAM is sampled.
const SAMPLE: Duration = Duration::from_millis(500);
/// How long nothing may have been sent before the channel is taken to be broken: a dead peer's connection can stay open
/// for minutes.
const STALL: Duration = Duration::from_secs(10);
/// How long a source may not answer: it may yet send, so this is the longer one.
const SILENCE: Duration = Duration::from_secs(30);
/// How long pages are waited for whose source cannot be asked: the destination does not tell whether any come.
const UNSEEN: Duration = Duration::from_secs(60);
/// How long the source may take to be `postcopy-paused` once its channel is shut down.
const PAUSE: Duration = Duration::from_secs(10);

/// Why pages stopped coming.
#[derive(Debug, Error)]
pub enum PostcopyError {
    /// The channel broke: it can be made anew.
    #[error("the RAM channel broke in postcopy: {0}")]
    Broken(String),
    /// The source is gone with pages that the guest lacks.
    #[error("the source is gone, and with it the pages that the guest on the destination has not fetched yet")]
    SourceGone(#[source] Gone),
    /// The destination is gone, or its monitor is.
    #[error("the destination is gone, where the guest ran: what the source has is from before")]
    DestinationGone(#[source] Gone),
    /// The source ended the migration.
    #[error("the source reported '{status}' in postcopy: {words}")]
    Ended {
        /// Its status.
        status: MigrationStatus,
        /// What QEMU says of it.
        words: String,
    },
    /// A command failed.
    #[error("the guest's pages could not be fetched")]
    Process(#[from] ProcessError),
}

/// Has the source switch over to postcopy as soon as it can: it then stops the guest and waits in `pre-switchover` as
/// ever. The capability must be on, and the migration `active`.
///
/// # Errors
/// What QEMU says.
pub async fn start(source: &Process) -> Result<(), ProcessError> {
    source.act(&qmp::migrate_start_postcopy {}).await
}

/// Limits what is sent from now on. Not before the guest has resumed: a limit makes QEMU sleep, 11.1 notices only in between
/// that the destination has its devices, and the guest stands still for up to 200 ms longer.
///
/// # Errors
/// What QEMU says.
pub async fn limit(source: &Process, rate: Rate) -> Result<(), ProcessError> {
    apply::set_parameters(source, &Map::from_iter([(BANDWIDTH.to_owned(), json!(rate.0))])).await
}

/// Waits until all pages are on the destination and both sides have said `completed`, sampling on the way.
///
/// # Errors
/// The channel broke, a side is gone, or the source ended the migration.
pub async fn until_completed(
    source: &Process,
    destination: &Process,
    totals: &mut RamOutcome,
    report: &Reporter,
) -> Result<(), PostcopyError> {
    let both = async { tokio::join!(told(source), told(destination)) };
    let end = tokio::select! {
        biased;
        _ = both => return Ok(()),
        gone = source.gone() => Err(PostcopyError::SourceGone(gone)),
        gone = destination.gone() => Err(PostcopyError::DestinationGone(gone)),
        end = sampling(source, totals, report) => end,
    };
    match end {
        // its last page may have come just before, and others may come yet where only its monitor closed
        Ok(()) | Err(PostcopyError::SourceGone(_)) => match (completed(destination).await, end) {
            (true, _) => Ok(()),
            (false, Err(error)) => Err(error),
            (false, Ok(())) => Err(PostcopyError::Broken("the source has sent all, not all has arrived".to_owned())),
        },
        Err(error) => Err(error),
    }
}

/// Shuts down what is left of a broken channel on both sides, so that both wait for a new one.
///
/// # Errors
/// The source does not become `postcopy-paused`.
pub async fn pause(source: &Process, destination: &Process) -> Result<(), ProcessError> {
    // one that is paused already refuses
    let (here, there) =
        tokio::join!(source.act_oob(&qmp::migrate_pause {}), destination.act_oob(&qmp::migrate_pause {}));
    for error in [here.err(), there.err()].into_iter().flatten() {
        tracing::debug!(%error, "pausing");
    }
    let paused = |status: &MigrationStatus| (*status == MigrationStatus::PostcopyPaused).then_some(());
    let asked = || async { paused(&source.ask(&qmp::query_migrate {}).await.ok()?.status?) };
    source.until_known("postcopy-paused", PAUSE, |seen| paused(latest(seen)?), asked).await
}

/// Has the destination listen for a new channel.
///
/// # Errors
/// What QEMU says: above all that it cannot listen there.
pub async fn listen(destination: &Process, address: &Address) -> Result<(), ProcessError> {
    destination.act_oob(&qmp::migrate_recover { uri: address.to_string() }).await
}

/// Has the source send the rest over a new channel. Whether that comes about is told by [`until_completed`].
///
/// # Errors
/// What QEMU says, or it does not begin.
pub async fn resume(source: &Process, address: &Address) -> Result<(), ProcessError> {
    let uri = Some(address.to_string());
    source.act(&qmp::migrate { uri, channels: None, detach: None, resume: Some(true) }).await?;
    let begun = |status: &MigrationStatus| (*status != MigrationStatus::PostcopyPaused).then_some(());
    let asked = || async { begun(&source.ask(&qmp::query_migrate {}).await.ok()?.status?) };
    source.until_known("attempt to make the RAM channel anew", PAUSE, |seen| begun(latest(seen)?), asked).await
}

/// The status entered last, as far as events have told.
fn latest(seen: &Observed) -> Option<&MigrationStatus> {
    seen.migration.iter().max_by_key(|(_, moment)| moment.local).map(|(status, _)| status)
}

/// Waits for the event `completed`.
async fn told(process: &Process) {
    if process.watch().wait_for(|seen| seen.entered(&MigrationStatus::Completed).is_some()).await.is_err() {
        // that it is gone is found elsewhere
        pending::<()>().await;
    }
}

/// Whether the destination gets to `completed`. It does not where its channel broke, nor where it says nothing: its main
/// loop hangs on a page that does not come.
async fn completed(destination: &Process) -> bool {
    let (began, mut silent) = (Instant::now(), Instant::now());
    while silent.elapsed() < STALL && began.elapsed() < UNSEEN && !destination.is_gone() {
        let status = match destination.ask(&qmp::query_migrate {}).await {
            Ok(answer) => {
                silent = Instant::now();
                answer.status
            }
            Err(_) => latest(&destination.observed()).cloned(),
        };
        match status {
            Some(MigrationStatus::Completed) => return true,
            Some(MigrationStatus::PostcopyPaused) => return false,
            _ => sleep(SAMPLE).await,
        }
    }
    false
}

/// Samples until the source has completed, or does not get on.
async fn sampling(source: &Process, totals: &mut RamOutcome, report: &Reporter) -> Result<(), PostcopyError> {
    let (mut tick, mut sent, mut since) = (interval(SAMPLE), None, Instant::now());
    loop {
        tick.tick().await;
        let migration = match source.ask(&qmp::query_migrate {}).await {
            Ok(migration) => migration,
            // no progress is seen, and that has a limit
            Err(_) if since.elapsed() < SILENCE => continue,
            Err(error) => return Err(error.into()),
        };
        sample::fold(totals, &migration);
        if let Some(event) = sample::event(&migration) {
            report.emit(event);
        }
        let MigrationInfo { status, ram, error_desc, .. } = migration;
        let words = error_desc.unwrap_or_else(|| "no reason given".to_owned());
        match status {
            Some(MigrationStatus::Completed) => return Ok(()),
            Some(MigrationStatus::PostcopyPaused) => return Err(PostcopyError::Broken(words)),
            Some(status) if status.is_over() || status == MigrationStatus::Failing => {
                return Err(PostcopyError::Ended { status, words });
            }
            _ => {}
        }
        let now = ram.map(|ram| ram.transferred);
        if now != sent {
            (sent, since) = (now, Instant::now());
        } else if since.elapsed() > STALL {
            return Err(PostcopyError::Broken(format!("nothing was sent for {STALL:?}")));
        }
    }
}
