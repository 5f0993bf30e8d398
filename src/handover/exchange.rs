//! Passes the guest on, or takes it back: the only sender of `migrate-continue` and `cont`.
//!
//! It must never send either without the proof that its signature asks for.

use super::ownership::{Arrived, DestinationCannotRun, Disengaged, Handed, SourceCannotRun};
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

/// How long the last RAM and the device state may take beyond what was asked for, and the guest's resumption.
const EXCHANGE: Duration = Duration::from_secs(30);

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

/// Waits until both sides report `completed`; when each did. `downtime` is the budget that QEMU reckoned with: it may send
/// RAM for as long.
///
/// # Errors
/// Either reports a failure, goes away, or reports nothing in time.
pub async fn arrival(
    source: &Process,
    destination: &Process,
    handed: Handed,
    downtime: Duration,
) -> Result<(Arrived, Moment, Moment), ExchangeError> {
    // twice, for its measure of the bandwidth may have been too good
    let deadline = EXCHANGE.saturating_add(downtime.saturating_mul(2));
    match tokio::try_join!(completed(source, deadline), completed(destination, deadline)) {
        Ok((gone, there)) => Ok((Arrived::new(handed), gone, there)),
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
/// QEMU refuses or does not answer; only a refusal proves that the guest does not run.
pub async fn start_guest(destination: &Process, _: Arrived) -> Result<Moment, ProcessError> {
    destination.act(&qmp::cont {}).await?;
    let asked = || async {
        let status = destination.ask(&qmp::query_status {}).await.ok()?.status;
        (status == RunState::Running).then(Moment::now)
    };
    destination.until_known("RESUME", EXCHANGE, |seen| seen.resumed, asked).await
}

/// The proof for a destination that has all state while the source's process is seen to have ended.
pub async fn outlived(source: &Process, patience: Duration) -> Option<Arrived> {
    source.proved_dead(patience).await.then(|| Arrived::outlived(SourceCannotRun::dead()))
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

async fn completed(process: &Process, deadline: Duration) -> Result<Moment, ExchangeError> {
    let ends =
        [MigrationStatus::Completed, MigrationStatus::Failed, MigrationStatus::Failing, MigrationStatus::Cancelled];
    let told =
        |seen: &Observed| ends.iter().find_map(|status| seen.entered(status).map(|moment| (status.clone(), moment)));
    let asked = || async {
        let status = process.ask(&qmp::query_migrate {}).await.ok()?.status?;
        ends.contains(&status).then(|| (status, Moment::now()))
    };
    match process.until_known("completed migration", deadline, told, asked).await? {
        (MigrationStatus::Completed, moment) => Ok(moment),
        (status, _) => {
            let words = words_of(process).await.unwrap_or_else(|| "its stderr may say why".to_owned());
            Err(ExchangeError::Ended { side: process.name().side, status, words })
        }
    }
}

/// QEMU's words for how the migration failed.
async fn words_of(process: &Process) -> Option<String> {
    process.ask(&qmp::query_migrate {}).await.ok()?.error_desc
}
