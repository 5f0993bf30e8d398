//! Passes the guest on, or takes it back: the only sender of `migrate-continue` and `cont`.
//!
//! It must never send either without the proof that its signature asks for.

use super::ownership::{
    Arrived, DestinationCannotRun, DestinationLoaded, Disengaged, Handed, SourceCannotRun, SourceStands, pages,
};
use crate::{
    progress::{Moment, Side},
    qemu::{
        Observed, Process, ProcessError,
        reply::{MigrationStatus, RunState},
    },
};
use qapi::qmp;
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout_at};

/// Between two looks at what no event tells, with the guest stopped.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How the exchange can fail.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// One side ended the migration badly after `migrate-continue`.
    #[error("the {side} reported '{status}' after migrate-continue: {words}")]
    Ended {
        /// Which side.
        side: Side,
        /// Its status.
        status: MigrationStatus,
        /// What QEMU says of it.
        words: String,
    },
    /// A command failed or an answer is missing.
    #[error("the handover could not be carried through")]
    Process(#[from] ProcessError),
}

/// Lets the source send the rest. From here it may not be resumed without proof, whatever the answer; so there is a
/// [`Handed`] in any case. Resolves only where the command certainly had no effect: any other answer, or none, is told
/// better by [`arrival`].
pub fn relinquish(source: &Process, disengaged: Disengaged) -> (Handed, impl Future<Output = ProcessError> + use<>) {
    let answer = source.act(&qmp::migrate_continue { state: qmp::MigrationStatus::pre_switchover });
    let without_effect = async {
        match answer.await {
            Err(error) if error.is_without_effect() => error,
            _ => std::future::pending().await,
        }
    };
    (Handed::new(disengaged), without_effect)
}

/// How the guest arrived.
#[derive(Debug)]
pub struct Arrival {
    /// What starting it takes.
    pub proof: Arrived,
    /// When the source had sent what the destination needs.
    pub gone: Moment,
    /// When the destination had it.
    pub there: Moment,
    /// Its pages still come from the source, which must stay until both sides say `completed`.
    pub postcopy: bool,
}

/// Waits until the destination has what it needs to run the guest: all, or in postcopy all but pages. `sent` is how many
/// pages the source had sent when the guest was stopped, where that is known; postcopy is proved quicker with it.
///
/// # Errors
/// Either reports a failure, goes away, or reports nothing in time.
pub async fn arrival(
    source: &Process,
    destination: &Process,
    handed: Handed,
    deadline: Instant,
    sent: Option<u64>,
) -> Result<Arrival, ExchangeError> {
    let arrived = async { tokio::try_join!(stands(source, deadline, sent), loaded(destination, deadline)) };
    match arrived.await {
        Ok(((stands, gone, here), (loaded, there, yonder))) => {
            // one that is through with it has been in it
            let been = source.observed().migration.keys().any(MigrationStatus::is_postcopy);
            let postcopy = here || yonder || been;
            Ok(Arrival { proof: Arrived::new(handed, stands, loaded), gone, there, postcopy })
        }
        // the source often only tells that the destination failed
        Err(ExchangeError::Ended { side: Side::Source, status, words }) => {
            let words = match words_of(destination).await {
                Some(cause) => format!("{words}; the destination: {cause}"),
                None => words,
            };
            Err(ExchangeError::Ended { side: Side::Source, status, words })
        }
        Err(error) => Err(error),
    }
}

/// Starts the guest on the destination; when it resumed.
///
/// # Errors
/// QEMU refuses or does not answer in time; only a refusal proves that the guest does not run.
pub async fn start_guest(destination: &Process, _: Arrived, deadline: Instant) -> Result<Moment, ProcessError> {
    let waited = left(deadline);
    match timeout_at(deadline, destination.act(&qmp::cont {})).await {
        Ok(done) => done?,
        Err(_) => {
            let at = destination.name().clone();
            return Err(ProcessError::Late { at, what: "answer to cont", waited });
        }
    }
    let asked = || async {
        let status = destination.ask(&qmp::query_status {}).await.ok()?.status;
        (status == RunState::Running).then(Moment::now)
    };
    destination.until_known("RESUME", left(deadline), |seen| seen.resumed, asked).await
}

/// The proof for a destination that has all state while the source's process is seen to have ended, or was `fenced`.
pub async fn outlived(source: &Process, fenced: bool, patience: Duration) -> Option<Arrived> {
    (fenced || source.proved_dead(patience).await).then(|| Arrived::outlived(SourceCannotRun::dead()))
}

/// The proof for two sides that both say `completed`, with the destination waiting to be started; asked for anew, so that
/// it rests on nothing older than this.
///
/// # Errors
/// A side does not answer.
pub async fn settled(source: &Process, destination: &Process) -> Result<Option<Arrived>, ProcessError> {
    let (gone, there, run) = tokio::try_join!(
        source.ask(&qmp::query_migrate {}),
        destination.ask(&qmp::query_migrate {}),
        destination.ask(&qmp::query_status {}),
    )?;
    let both = SourceStands::prove(&gone, None).zip(DestinationLoaded::waits(&there, &run.status));
    Ok(both.map(|(stands, loaded)| Arrived::settled(stands, loaded)))
}

/// Resumes the guest on the source.
///
/// # Errors
/// QEMU refuses or does not answer.
pub async fn resume_source(source: &Process, why: DestinationCannotRun) -> Result<(), ProcessError> {
    tracing::info!(?why, "resuming the guest on the source");
    source.act(&qmp::cont {}).await?;
    let status = source.ask(&qmp::query_status {}).await?.status;
    if status == RunState::Running {
        return Ok(());
    }
    Err(ProcessError::Late { at: source.name().clone(), what: "running guest after cont", waited: Duration::ZERO })
}

/// Waits until the source stands still for good, and tells since when, and whether in postcopy.
async fn stands(
    source: &Process,
    deadline: Instant,
    mut sent: Option<u64>,
) -> Result<(SourceStands, Moment, bool), ExchangeError> {
    let waited = left(deadline);
    let (status, moment) = landed(source, deadline).await?;
    if status == MigrationStatus::Completed {
        return Ok((SourceStands::completed(), moment, false));
    }
    let proved = async {
        loop {
            let answer = source.ask(&qmp::query_migrate {}).await?;
            if let Some(proof) = SourceStands::prove(&answer, sent) {
                return Ok((proof, moment, true));
            }
            if let Some(status) = answer.status.clone().filter(is_bad_end) {
                return Err(ended(source, status).await);
            }
            sent = sent.or_else(|| pages(&answer));
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout_at(deadline, proved).await.unwrap_or_else(|_| Err(late(source, "page sent in postcopy", waited)))
}

/// Waits until the destination has what it needs to run, and tells since when, and whether in postcopy.
async fn loaded(destination: &Process, deadline: Instant) -> Result<(DestinationLoaded, Moment, bool), ExchangeError> {
    let waited = left(deadline);
    let (status, moment) = landed(destination, deadline).await?;
    if status == MigrationStatus::Completed {
        return Ok((DestinationLoaded::completed(), moment, false));
    }
    let proved = async {
        loop {
            let run = destination.ask(&qmp::query_status {}).await?.status;
            if let Some(proof) = DestinationLoaded::prove(&run) {
                return Ok((proof, Moment::now(), true));
            }
            if let Some(status) = destination.ask(&qmp::query_migrate {}).await?.status.filter(is_bad_end) {
                return Err(ended(destination, status).await);
            }
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout_at(deadline, proved).await.unwrap_or_else(|_| Err(late(destination, "loaded device state", waited)))
}

/// Waits for `completed`, or for a status of postcopy.
async fn landed(process: &Process, deadline: Instant) -> Result<(MigrationStatus, Moment), ExchangeError> {
    let is_landed =
        |status: &MigrationStatus| *status == MigrationStatus::Completed || is_bad_end(status) || status.is_postcopy();
    let told = |seen: &Observed| {
        let landed = seen.migration.iter().filter(|(status, _)| is_landed(status));
        // an end outweighs what came before it
        let worst = landed.max_by_key(|(status, _)| (is_bad_end(status), **status == MigrationStatus::Completed));
        worst.map(|(status, moment)| (status.clone(), *moment))
    };
    let asked = || async {
        let status = process.ask(&qmp::query_migrate {}).await.ok()?.status?;
        is_landed(&status).then(|| (status, Moment::now()))
    };
    let (status, moment) = process.until_known("completed migration", left(deadline), told, asked).await?;
    if is_bad_end(&status) {
        return Err(ended(process, status).await);
    }
    Ok((status, moment))
}

/// What is left until then.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn is_bad_end(status: &MigrationStatus) -> bool {
    matches!(status, MigrationStatus::Failed | MigrationStatus::Failing | MigrationStatus::Cancelled)
}

async fn ended(process: &Process, status: MigrationStatus) -> ExchangeError {
    let words = words_of(process).await.unwrap_or_else(|| "its stderr may say why".to_owned());
    ExchangeError::Ended { side: process.name().side, status, words }
}

fn late(process: &Process, what: &'static str, waited: Duration) -> ExchangeError {
    ProcessError::Late { at: process.name().clone(), what, waited }.into()
}

/// QEMU's words for how the migration failed.
async fn words_of(process: &Process) -> Option<String> {
    process.ask(&qmp::query_migrate {}).await.ok()?.error_desc
}
