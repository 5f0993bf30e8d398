//! Passes the guest on, or takes it back: the only sender of `migrate-continue` and `cont`.
//!
//! Neither command may ever be sent without the proof that the signature asks for. The proofs that rest on QEMU's
//! answers are made in this file, from answers that were asked for in this file.

use super::ownership::{
    ArrivalProof, BeforeContinue, ContinueSent, DestinationCannotRun, DestinationLoaded, DisksDisengaged, ProcessEnded,
    SourceCannotRun, SourceStands, count_sent_pages,
};
use crate::{
    progress::{Moment, Side},
    qemu::{Observed, Process, ProcessError, reply::MigrationStatus},
};
use qapi::qmp;
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// The pause between two questions about what no event tells, with the guest stopped.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// The time within which the events that came before the end of a connection are taken in.
const LAST_EVENTS: Duration = Duration::from_secs(1);

/// How the exchange can fail.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// One side ended the migration badly after `migrate-continue`.
    #[error("the {side} reported '{status}' after migrate-continue: {words}")]
    Ended {
        /// Which side.
        side: Side,
        /// The status that this side reported.
        status: MigrationStatus,
        /// QEMU's own words for the failure.
        words: String,
    },
    /// A command failed or an answer is missing.
    #[error("the handover could not be carried through")]
    Process(#[from] ProcessError),
}

/// Lets the source send the rest. From here the source may not be resumed without proof, whatever the answer; so there
/// is a [`ContinueSent`] in any case. The future resolves only where the command certainly had no effect, and gives
/// back the token that was consumed: about any other answer, or none, [`await_arrival`] tells more.
pub(crate) fn relinquish(
    source: &Process,
    disengaged: DisksDisengaged,
    before: BeforeContinue,
) -> (ContinueSent, impl Future<Output = (ProcessError, BeforeContinue)> + use<>) {
    let answer = source.act(&qmp::migrate_continue { state: qmp::MigrationStatus::pre_switchover });
    let without_effect = async {
        match answer.await {
            Err(error) if error.is_without_effect() => (error, BeforeContinue::without_effect()),
            _ => std::future::pending().await,
        }
    };
    (ContinueSent::new(disengaged, before), without_effect)
}

/// How the guest arrived.
#[derive(Debug)]
pub(crate) struct GuestArrival {
    /// The proof that starting the guest takes.
    pub(crate) proof: ArrivalProof,
    /// When the source had sent what the destination needs.
    pub(crate) sent: Moment,
    /// When the destination had it.
    pub(crate) loaded: Moment,
    /// The guest's pages still come from the source, which must stay until both sides say `completed`.
    pub(crate) postcopy: bool,
}

/// Waits until the destination has what it needs to run the guest: all, or in postcopy all but pages. `pages` is how
/// many pages the source had sent when the guest was stopped, where that is known; postcopy is proved sooner with it.
///
/// # Errors
/// Either side reports a failure, goes away, or reports nothing in time.
pub(crate) async fn await_arrival(
    source: &Process,
    destination: &Process,
    continued: ContinueSent,
    deadline: Instant,
    pages: Option<u64>,
) -> Result<GuestArrival, ExchangeError> {
    let arrived = async {
        tokio::try_join!(
            await_standing_source(source, deadline, pages),
            await_loaded_destination(destination, deadline)
        )
    };
    match arrived.await {
        // What the source reports is another client's migration, which led the guest elsewhere.
        Ok(_) if source.own_migration.is_followed(&source.observed()) => Err(ExchangeError::Ended {
            side: Side::Source,
            status: MigrationStatus::Failed,
            words: "another client has begun a migration of the guest since".to_owned(),
        }),
        Ok(((stands, sent, source_in_postcopy), (has_loaded, loaded, destination_in_postcopy))) => {
            // A source that already reports `completed` may have passed through postcopy: look at the statuses it
            // entered.
            let passed_through = source.observed().migration.keys().any(MigrationStatus::is_postcopy);
            let postcopy = source_in_postcopy || destination_in_postcopy || passed_through;
            Ok(GuestArrival { proof: ArrivalProof::new(continued, stands, has_loaded), sent, loaded, postcopy })
        }
        // The source often tells only that the destination failed, so the destination is asked for the cause.
        Err(ExchangeError::Ended { side: Side::Source, status, words }) => {
            let words = match ask_for_cause(destination).await {
                Some(cause) => format!("{words}; the destination: {cause}"),
                None => words,
            };
            Err(ExchangeError::Ended { side: Side::Source, status, words })
        }
        Err(error) => Err(error),
    }
}

/// Starts the guest on the destination, and gives the moment of its RESUME.
///
/// # Errors
/// QEMU refuses or does not answer in time; only a refusal proves that the guest does not run.
pub(crate) async fn start_guest(
    destination: &Process,
    _: ArrivalProof,
    deadline: Instant,
) -> Result<Moment, ProcessError> {
    let waited = time_left(deadline);
    match timeout_at(deadline, destination.act(&qmp::cont {})).await {
        Ok(done) => done?,
        Err(_) => {
            let at = destination.name().clone();
            return Err(ProcessError::Late { at, what: "answer to cont", waited });
        }
    }
    let asked = || async {
        let status = destination.ask(&qmp::query_status {}).await.ok()?.status;
        status.is_live().then(Moment::now)
    };
    destination.until_known("RESUME", time_left(deadline), |seen| seen.resumed, asked).await
}

/// Whether a `cont` that failed is proved to have had no effect: QEMU has refused the command, or has ended for
/// somebody's `quit` before the guest ran.
pub(crate) async fn had_no_effect(destination: &Process, error: &ProcessError) -> bool {
    if error.is_refusal() || !destination.is_gone() {
        return error.is_refusal();
    }
    // the state is watched no more once every event has been taken in
    let mut observed = destination.watch();
    let all = async { while observed.changed().await.is_ok() {} };
    timeout(LAST_EVENTS, all).await.is_ok() && destination.observed().ended_before_it_ran()
}

/// Waits up to `patience` for proof that the process of one side has ended.
pub(crate) async fn prove_ended(process: &Process, patience: Duration) -> Option<ProcessEnded> {
    process.proved_dead(patience).await.then(|| ProcessEnded::new(process.name().side))
}

/// Quits the destination. Once QEMU has accepted `quit` it runs no guest any more, even before the process is gone.
///
/// # Errors
/// QEMU refuses or does not answer, which proves nothing.
pub(crate) async fn quit_destination(destination: &Process) -> Result<DestinationCannotRun, ProcessError> {
    destination.quit().await?;
    Ok(DestinationCannotRun::of_accepted_quit())
}

/// The proof for a destination that has all state, once the source cannot run the guest.
pub(crate) fn prove_outlived(ended: &SourceCannotRun) -> ArrivalProof {
    ArrivalProof::outlived(ended)
}

/// The proof for two sides that both say `completed`, with the destination waiting to be started; asked for anew, so
/// that no older answer counts.
///
/// # Errors
/// A side does not answer.
pub(crate) async fn prove_settled(
    source: &Process,
    destination: &Process,
) -> Result<Option<ArrivalProof>, ProcessError> {
    let (sent, loaded, run) = tokio::try_join!(
        source.ask(&qmp::query_migrate {}),
        destination.ask(&qmp::query_migrate {}),
        destination.ask(&qmp::query_status {}),
    )?;
    let both = SourceStands::prove(&sent, None).zip(DestinationLoaded::waits(&loaded, &run.status));
    Ok(both.map(|(stands, loaded)| ArrivalProof::settled(stands, loaded)))
}

/// Resumes the guest on the source.
///
/// # Errors
/// QEMU refuses or does not answer.
pub(crate) async fn resume_source(source: &Process, why: &DestinationCannotRun) -> Result<(), ProcessError> {
    tracing::info!(destination = why.describe(), "resuming the guest on the source");
    source.act(&qmp::cont {}).await?;
    let status = source.ask(&qmp::query_status {}).await?.status;
    if status.is_live() {
        return Ok(());
    }
    let at = source.name().clone();
    Err(ProcessError::State { at, expected: "running after cont", found: status.to_string() })
}

/// Waits until the source stands still for good, and tells since when, and whether in postcopy.
async fn await_standing_source(
    source: &Process,
    deadline: Instant,
    mut pages: Option<u64>,
) -> Result<(SourceStands, Moment, bool), ExchangeError> {
    let waited = time_left(deadline);
    let (status, moment) = await_landing(source, deadline).await?;
    if status == MigrationStatus::Completed {
        return Ok((SourceStands::completed(), moment, false));
    }
    let proved = async {
        loop {
            let answer = source.ask(&qmp::query_migrate {}).await?;
            if let Some(proof) = SourceStands::prove(&answer, pages) {
                return Ok((proof, moment, true));
            }
            if let Some(status) = answer.status.clone().filter(is_bad_end) {
                return Err(describe_bad_end(source, status).await);
            }
            pages = pages.or_else(|| count_sent_pages(&answer));
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout_at(deadline, proved).await.unwrap_or_else(|_| Err(describe_delay(source, "page sent in postcopy", waited)))
}

/// Waits until the destination has what it needs to run, and tells since when, and whether in postcopy.
async fn await_loaded_destination(
    destination: &Process,
    deadline: Instant,
) -> Result<(DestinationLoaded, Moment, bool), ExchangeError> {
    let waited = time_left(deadline);
    let (status, moment) = await_landing(destination, deadline).await?;
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
                return Err(describe_bad_end(destination, status).await);
            }
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout_at(deadline, proved)
        .await
        .unwrap_or_else(|_| Err(describe_delay(destination, "loaded device state", waited)))
}

/// Waits for `completed`, or for a status of postcopy.
async fn await_landing(process: &Process, deadline: Instant) -> Result<(MigrationStatus, Moment), ExchangeError> {
    let is_landed =
        |status: &MigrationStatus| *status == MigrationStatus::Completed || is_bad_end(status) || status.is_postcopy();
    let told = |seen: &Observed| {
        let landed = seen.migration.iter().filter(|(status, _)| is_landed(status));
        // The end of a migration counts more than any status before it.
        let worst = landed.max_by_key(|(status, _)| (is_bad_end(status), **status == MigrationStatus::Completed));
        worst.map(|(status, moment)| (status.clone(), *moment))
    };
    let asked = || async {
        let status = process.ask(&qmp::query_migrate {}).await.ok()?.status?;
        is_landed(&status).then(|| (status, Moment::now()))
    };
    let (status, moment) = process.until_known("completed migration", time_left(deadline), told, asked).await?;
    if is_bad_end(&status) {
        return Err(describe_bad_end(process, status).await);
    }
    Ok((status, moment))
}

/// The time left until the deadline.
fn time_left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn is_bad_end(status: &MigrationStatus) -> bool {
    matches!(status, MigrationStatus::Failed | MigrationStatus::Failing | MigrationStatus::Cancelled)
}

async fn describe_bad_end(process: &Process, status: MigrationStatus) -> ExchangeError {
    let words = ask_for_cause(process).await.unwrap_or_else(|| "its stderr may say why".to_owned());
    ExchangeError::Ended { side: process.name().side, status, words }
}

fn describe_delay(process: &Process, what: &'static str, waited: Duration) -> ExchangeError {
    ProcessError::Late { at: process.name().clone(), what, waited }.into()
}

/// QEMU's words for how the migration failed.
async fn ask_for_cause(process: &Process) -> Option<String> {
    process.ask(&qmp::query_migrate {}).await.ok()?.error_desc
}
