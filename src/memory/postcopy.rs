//! Postcopy: the guest resumes on the destination before all its pages are there, and the source sends the rest.
//!
//! From the source's `postcopy-active` on there is no way back: QEMU refuses to cancel or to resume there, and each
//! side has a part of the guest that the other lacks. So this module never ends a process and never gives the source
//! up; a channel that broke is made anew. The destination's main loop can hang while a page is missing, which is why
//! the destination is never asked for progress and takes its commands out of band.

use super::{apply, sample, tuning};
use crate::{
    endpoint::Address,
    progress::{PostcopyBlocktime, RamOutcome, Reporter},
    qemu::{
        Gone, Observed, Process, ProcessError, keep_alive,
        reply::{MigrationInfo, MigrationStatus},
    },
    quantity::Rate,
};
use qapi::qmp;
use std::{future::pending, time::Duration};
use thiserror::Error;
use tokio::time::{Instant, interval, sleep, timeout};

/// The time between two samples of RAM.
const SAMPLE: Duration = Duration::from_millis(500);
/// The time without a byte from the source after which the channel counts as broken: the connection to a dead peer can
/// stay open for minutes.
const STALL: Duration = Duration::from_secs(10);
/// The time for which the source may leave queries unanswered. A source that does not answer may still be sending, so
/// this limit is longer than [`STALL`].
const SILENCE: Duration = Duration::from_secs(30);
/// The time for the last pages to arrive once the source cannot be asked: the destination does not tell
/// whether pages arrive.
const UNSEEN: Duration = Duration::from_secs(60);
/// The time for the source to report `postcopy-paused` once its channel is shut down.
const PAUSE: Duration = Duration::from_secs(10);

/// The time for the destination to tell how long its guest waited.
const TELLS: Duration = Duration::from_secs(1);

/// Why pages stopped arriving.
#[derive(Debug, Error)]
pub enum PostcopyError {
    /// The channel broke; it can be made anew.
    #[error("the RAM channel broke in postcopy: {0}")]
    Broken(String),
    /// The source is gone, with pages that the guest lacks.
    #[error("the source is gone, and with it the pages that the guest on the destination has not fetched yet")]
    SourceGone(#[source] Gone),
    /// The destination is gone, or its monitor is.
    #[error("the destination, where the guest ran, is gone: the source only has the guest's state from before")]
    DestinationGone(#[source] Gone),
    /// The source ended the migration.
    #[error("the source reported '{status}' in postcopy: {words}")]
    Ended {
        /// The source's migration status.
        status: MigrationStatus,
        /// QEMU's words.
        words: String,
    },
    /// A command failed.
    #[error("the guest's pages could not be fetched")]
    Process(#[from] ProcessError),
}

/// Has the source switch over to postcopy as soon as it can; it then stops the guest and waits in `pre-switchover`, as
/// it does without postcopy. The capability must be on, and the migration `active`.
///
/// # Errors
/// QEMU refuses or does not answer.
pub async fn start(source: &Process) -> Result<(), ProcessError> {
    source.act(&qmp::migrate_start_postcopy {}).await
}

/// Limits the rate at which the source sends from now on.
///
/// The limit must not be set before the guest has resumed. A limited source sleeps between its sends, and QEMU 11.1
/// only notices between two sleeps that the destination has loaded the devices: the guest's pause would be up to 200 ms
/// longer.
///
/// # Errors
/// QEMU refuses or does not answer.
pub async fn limit(source: &Process, rate: Rate) -> Result<(), ProcessError> {
    apply::set_parameters(source, &tuning::postcopy_bandwidth(Some(rate))).await
}

/// Waits until all pages are on the destination and both sides report `completed`, and reports samples meanwhile.
///
/// # Errors
/// The channel broke, a side is gone, or the source ended the migration.
pub async fn until_completed(
    source: &Process,
    destination: &Process,
    totals: &mut RamOutcome,
    report: &Reporter,
) -> Result<(), PostcopyError> {
    let both = async { tokio::join!(completed_event(source), completed_event(destination)) };
    let end = tokio::select! {
        biased;
        _ = both => return Ok(()),
        gone = source.gone() => Err(PostcopyError::SourceGone(gone)),
        gone = destination.gone() => Err(PostcopyError::DestinationGone(gone)),
        end = sampling(source, totals, report) => end,
    };
    match end {
        // The last page may have arrived just before the source was gone, and a source of which only the monitor closed
        // still sends.
        Ok(()) | Err(PostcopyError::SourceGone(_)) => match (completes(destination).await, end) {
            (true, _) => Ok(()),
            (false, Err(error)) => Err(error),
            (false, Ok(())) => {
                Err(PostcopyError::Broken("the source has sent all pages, but not all have arrived".to_owned()))
            }
        },
        Err(error) => Err(error),
    }
}

/// Asks the destination for how long the guest waited for pages, once all are there. A destination that cannot count,
/// or does not answer in time, leaves that untold.
pub async fn blocktime(destination: &Process) -> Option<PostcopyBlocktime> {
    if !destination.features().migration_capabilities.contains("postcopy-blocktime") {
        return None;
    }
    let asked = destination.ask(&qmp::query_migrate {});
    sample::blocktime(&timeout(TELLS, asked).await.ok()?.ok()?)
}

/// Shuts down the rest of a broken channel on both sides, so that both wait for a new one.
///
/// # Errors
/// The source does not become `postcopy-paused`.
pub async fn pause(source: &Process, destination: &Process) -> Result<(), ProcessError> {
    // A side that is paused already refuses.
    let paused = tokio::join!(source.act_oob(&qmp::migrate_pause {}), destination.act_oob(&qmp::migrate_pause {}));
    for error in [paused.0.err(), paused.1.err()].into_iter().flatten() {
        tracing::debug!(%error, "pausing");
    }
    let paused = |status: &MigrationStatus| (*status == MigrationStatus::PostcopyPaused).then_some(());
    let asked = || async { paused(&source.ask(&qmp::query_migrate {}).await.ok()?.status?) };
    source.until_known("postcopy-paused", PAUSE, |seen| paused(latest(seen)?), asked).await
}

/// Has the destination listen for a new channel.
///
/// # Errors
/// QEMU refuses, above all because it cannot listen there; or does not answer.
pub async fn listen(destination: &Process, address: &Address) -> Result<(), ProcessError> {
    destination.act_oob(&qmp::migrate_recover { uri: keep_alive::uri(address, destination.features()) }).await
}

/// Has the source send the rest over a new channel. Only [`until_completed`] tells whether the rest arrives.
///
/// # Errors
/// QEMU refuses, does not answer, or does not begin.
pub async fn resume(source: &Process, address: &Address) -> Result<(), ProcessError> {
    let uri = Some(keep_alive::uri(address, source.features()));
    source.act(&qmp::migrate { uri, channels: None, detach: None, resume: Some(true) }).await?;
    let begun = |status: &MigrationStatus| (*status != MigrationStatus::PostcopyPaused).then_some(());
    let asked = || async { begun(&source.ask(&qmp::query_migrate {}).await.ok()?.status?) };
    source.until_known("attempt to reconnect the RAM channel", PAUSE, |seen| begun(latest(seen)?), asked).await
}

/// The status entered last, as far as events tell.
fn latest(seen: &Observed) -> Option<&MigrationStatus> {
    seen.migration.iter().max_by_key(|(_, moment)| moment.local).map(|(status, _)| status)
}

/// Waits for the event that the migration is `completed`.
async fn completed_event(process: &Process) {
    if process.watch().wait_for(|seen| seen.entered(&MigrationStatus::Completed).is_some()).await.is_err() {
        // `Process::gone` beside this wait reports a lost process.
        pending::<()>().await;
    }
}

/// Whether the destination gets to `completed`. A destination whose channel broke does not; nor does one that stays
/// silent, because its main loop hangs on a page that does not arrive.
async fn completes(destination: &Process) -> bool {
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

/// Samples until the source has completed or makes no progress.
async fn sampling(source: &Process, totals: &mut RamOutcome, report: &Reporter) -> Result<(), PostcopyError> {
    let (mut tick, mut sent, mut since) = (interval(SAMPLE), None, Instant::now());
    loop {
        tick.tick().await;
        let migration = match source.ask(&qmp::query_migrate {}).await {
            Ok(migration) => migration,
            // An unanswered query shows no progress, and `SILENCE` limits the time without progress.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_whose_sources_host_is_gone_notices_before_the_engine_does() {
        assert!(keep_alive::GONE_AFTER < STALL);
    }
}
