//! The way back: undoes the effects in reverse, the guest first.
//!
//! The way back is open before `migrate-continue`, or once it is decided that the guest stays on the source. Every
//! step is idempotent, for an effect that was noted may not have come about. Nothing is touched that the engine did
//! not make, and what cannot be undone is named.

use super::{
    fence::{QUIT, free, kill},
    leftovers::{hidden_leftover, left_behind, migration_under_way},
    reconnect::reach_again,
};
use crate::{
    handover::{
        exchange,
        ownership::{BeforeContinue, DestinationCannotRun},
        watchdog,
    },
    memory::{apply, precopy},
    migration::{
        Effect, Failure,
        attempt::Attempt,
        context::Context,
        ending::{End, Whereabouts},
        guest::GuestIntent,
        intents::IntentLog,
        pair::QemuPair,
        record::Record,
        work_order::Route,
    },
    progress::{Ending, LedgerMark, Phase, Reporter, RunsOn, Side, describe},
    qemu::{
        Observed, Process, ProcessError,
        reply::{MigrationStatus, RunState},
    },
    run_id::RunId,
    storage::{
        mirror::{export, mirror_job},
        model::layout::DiskPair,
    },
};
use qapi::qmp;
use std::{fs, io, path::Path, time::Duration};
use tokio::{
    time::{sleep, timeout},
    try_join,
};

/// How long QEMU may take to resume a guest by itself after a cancelled migration: it does so in milliseconds.
const RESUME: Duration = Duration::from_secs(2);

/// How long a side may take to say, for the way back, how its guest stands.
const LOOK: Duration = Duration::from_secs(1);

/// How often a step is tried that failed without having been refused: each is idempotent.
const TRIES: u32 = 2;

/// What the undoing came to.
#[derive(Debug, Default)]
struct RolledBack {
    /// Whether the source was seen in the run state that it had before.
    as_before: bool,
    /// What the engine made and is still there, and why.
    leftovers: Vec<String>,
}

/// Prepares the way back from before the handover: reaches a side again whose monitor closed, and asks once more how
/// the guest stands. What the guest's owner has done with it since must not be undone by the way back.
pub(crate) async fn look_back(
    context: &Context,
    pair: &mut QemuPair,
    failure: Failure,
    attempt: &mut Attempt,
) -> Whereabouts {
    reach_again(context, pair).await;
    if !attempt.given {
        take_last_look(context, &pair.source, &failure, attempt).await;
    }
    Whereabouts::OnSource(failure)
}

/// Asks how the guest stands, unless it stands by the engine's own command or its source does not answer.
pub(crate) async fn take_last_look(context: &Context, source: &Process, failure: &Failure, attempt: &mut Attempt) {
    let stands_by_command = attempt.log.effects().contains(&Effect::Stopped);
    if !stands_by_command && !failure.is_silence() && !source.is_silent() {
        // a question without an answer is ignored: the commands of the way back show whether the source answers
        if let Ok(Ok(answer)) = timeout(LOOK, source.ask(&qmp::query_status {})).await {
            attempt.guest.look(&answer.status);
        }
    }
    attempt.journal_guest_on_the_way_back(&context.report).await;
}

/// Goes back to the source. Before `migrate-continue` the guest is resumed there; after it, a verdict has found the
/// guest on the source as it is to be.
pub(crate) async fn go_back(
    context: &Context,
    pair: &QemuPair,
    route: &Route,
    failure: &Failure,
    attempt: &mut Attempt,
) -> End {
    let report = &context.report;
    let before_continue = attempt.before_continue.take();
    let may_resume = before_continue.as_ref().map(BeforeContinue::destination_cannot_run);
    // postcopy that was asked for need not have come about
    attempt.ram.postcopy = pair.has_been_in_postcopy();
    let mut reason = failure.reason();
    report.action("roll-back", reason.message.clone());
    if attempt.given && may_resume.is_some() {
        attempt.log.tell(Record::Kept, report).await;
    }
    // a source that does not answer now would hold up the way back, too: the guest's own return waits for its disks
    if may_resume.is_some() && (failure.is_silence() || pair.source.is_silent()) {
        free(context, pair, route).await;
    }
    let effects = attempt.log.effects();
    let listened = effects.contains(&Effect::Incoming) && !pair.destination.is_gone();
    let mirrored = effects.iter().any(|effect| matches!(effect, Effect::Mirror(_)));
    let rolled_back = roll_back(pair, &route.pairs, &attempt.guest, &mut attempt.log, may_resume, report);
    let RolledBack { as_before, leftovers } = report.during(Phase::Cleanup, rolled_back).await;
    attempt.leftovers.extend(leftovers);
    let seen = pair.source.observed();
    if let Some(resumed) = seen.resumed.filter(|_| seen.runs_again()) {
        // the guest stopped and resumed on the source: that pause is a blackout, too
        attempt.ledger.mark(LedgerMark::Resume, resumed);
    }
    let ending = match (as_before, failure) {
        (true, Failure::RuntimeDir { .. }) => Ending::Refused,
        (false, _) => Ending::Undetermined,
        (true, _) if !attempt.leftovers.is_empty() => Ending::Stuck,
        (true, Failure::Cancelled) => Ending::Cancelled,
        (true, _) => Ending::RolledBack,
    };
    if mirrored && ending != Ending::Undetermined {
        reason
            .message
            .push_str("; the destination's images hold a part of the disks: make them anew before another try");
    }
    if listened && pair.destination.is_gone() {
        reason
            .message
            .push_str("; a QEMU takes one incoming migration, so the destination has been ended: start it anew");
    }
    let runs_on = if as_before { RunsOn::Source } else { RunsOn::Unknown };
    End { ending, runs_on, reason: Some(reason) }
}

/// Undoes every effect that the log has.
async fn roll_back(
    pair: &QemuPair,
    mirrored: &[DiskPair],
    guest: &GuestIntent,
    log: &mut IntentLog,
    may_resume: Option<&DestinationCannotRun>,
    report: &Reporter,
) -> RolledBack {
    let QemuPair { source, destination } = pair;
    let mut leftovers = Vec::new();
    let effects = log.effects().to_vec();
    for effect in effects.iter().rev() {
        let mut undone = Undone::Done;
        for _ in 0..TRIES {
            undone = undo(pair, log.run(), mirrored, guest, effect, may_resume, &mut leftovers, report).await;
            match &undone {
                Undone::Failed(error) if !error.is_refusal() && !pair.side(effect.traits().side).is_gone() => {}
                _ => break,
            }
        }
        match undone {
            Undone::Done => log.undone(effect, report).await,
            Undone::Failed(error) => {
                leftovers.extend(hidden_leftover(pair, effect, &error));
                report.warn("not-undone", describe(&error));
            }
            Undone::TakenOver => {
                report.warn("taken-over", "somebody else handed the guest over: everything is left as it is");
                return RolledBack { as_before: false, leftovers: left_behind(source, log.run()).await };
            }
        }
    }
    // a migration that the engine has not begun, or that was cancelled, is somebody else's
    if log.effects().contains(&Effect::Migrate) {
        leftovers.extend(migration_under_way(source).await);
    }
    leftovers.extend(left_behind(source, log.run()).await);
    if !destination.has_ended().await {
        leftovers.extend(left_behind(destination, log.run()).await);
    }
    RolledBack { as_before: is_as_before(source, guest).await, leftovers }
}

/// What became of one step of the way back.
enum Undone {
    Done,
    Failed(ProcessError),
    /// The migration went on without this engine's `migrate-continue`: somebody else hands the guest over, and may
    /// run it.
    TakenOver,
}

impl From<Result<(), ProcessError>> for Undone {
    fn from(result: Result<(), ProcessError>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Done)
    }
}

#[allow(clippy::too_many_arguments, reason = "one call passes on all that the way back needs")]
async fn undo(
    pair: &QemuPair,
    run: &RunId,
    mirrored: &[DiskPair],
    guest: &GuestIntent,
    effect: &Effect,
    may_resume: Option<&DestinationCannotRun>,
    leftovers: &mut Vec<String>,
    report: &Reporter,
) -> Undone {
    let QemuPair { source, destination } = pair;
    let result = match effect {
        Effect::Migrate => match precopy::cancel(source).await {
            Ok(status) if may_resume.is_some() && (status == MigrationStatus::Completed || !status.is_over()) => {
                return Undone::TakenOver;
            }
            Ok(_) => resume(source, guest, may_resume).await,
            Err(error) => Err(error),
        },
        Effect::Stopped => resume(source, guest, may_resume).await,
        Effect::Mirror(job) => match mirrored.iter().find(|pair| pair.names.job == *job) {
            Some(pair) => {
                let removed = remove_mirror(source, pair).await;
                if removed.as_ref().is_err_and(|error| !error.is_refusal()) {
                    // the NBD server may be behind a dead link, and then nothing else ends the mirror; the next try
                    // removes it
                    let freed = watchdog::free(source, [pair.names.nbd.as_str()].into_iter(), false).await;
                    tracing::info!(?freed, "the mirror did not end");
                }
                removed
            }
            // a mirror that the route does not know is found among the leftovers, by its name
            None => Ok(()),
        },
        Effect::NbdServer | Effect::Tuned { side: Side::Destination, .. } if destination.has_ended().await => Ok(()),
        Effect::NbdServer => allow_refusal(export::stop_own_server(destination, run).await),
        Effect::Tuned { side, before } => apply::restore(pair.side(*side), before).await,
        Effect::SocketFile(path) => {
            leftovers.extend(remove_socket(path));
            Ok(())
        }
        Effect::Incoming if has_the_guest(destination).await => return Undone::TakenOver,
        Effect::Incoming => quit(destination, report).await,
    };
    result.into()
}

/// Removes a socket's file, and names it where that cannot be done; that there is none is fine.
pub(crate) fn remove_socket(path: &Path) -> Option<String> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Some(format!("{}: {error}", path.display())),
        _ => None,
    }
}

/// Sees to it that a guest that ran runs again: QEMU resumes it by itself after a cancelled migration, as a rule.
async fn resume(
    source: &Process,
    guest: &GuestIntent,
    may_resume: Option<&DestinationCannotRun>,
) -> Result<(), ProcessError> {
    let Some(proof) = may_resume.filter(|_| guest.wants_running()) else { return Ok(()) };
    if is_as_before(source, guest).await {
        return Ok(());
    }
    let resumed = |seen: &Observed| seen.runs_again().then_some(());
    let run = source.ask(&qmp::query_status {}).await?.status;
    if run == RunState::InMigrate {
        // a QEMU that waits for a guest is not the one that had it
        let at = source.name().clone();
        return Err(ProcessError::State { at, expected: "the guest that it had", found: run.to_string() });
    }
    let paused = run == RunState::Paused;
    if !paused && source.until("RESUME", RESUME, resumed).await.is_ok() {
        return Ok(());
    }
    exchange::resume_source(source, proof).await
}

async fn is_as_before(source: &Process, guest: &GuestIntent) -> bool {
    source.ask(&qmp::query_status {}).await.is_ok_and(|answer| guest.is_as_before(&answer.status))
}

async fn remove_mirror(source: &Process, pair: &DiskPair) -> Result<(), ProcessError> {
    mirror_job::abort(source, &pair.names.job).await?;
    allow_refusal(source.act(&mirror_job::remove_bitmap(pair)).await)
}

/// Whether a destination runs the guest, or has all of it: somebody else handed it over, after this engine had died
/// or past it.
async fn has_the_guest(destination: &Process) -> bool {
    let asked = async { try_join!(destination.ask(&qmp::query_status {}), destination.ask(&qmp::query_migrate {})) };
    match timeout(LOOK, asked).await {
        Ok(Ok((run, migration))) => {
            run.status == RunState::Running || migration.status == Some(MigrationStatus::Completed)
        }
        _ => false,
    }
}

/// Ends a destination that was told to listen: QEMU listens once, so it can take no other migration, and part of a
/// guest may be in it that nobody must start. A destination that does not do as it is told, being frozen, is killed
/// where it is a process of this host.
async fn quit(destination: &Process, report: &Reporter) -> Result<(), ProcessError> {
    if destination.has_ended().await {
        return Ok(());
    }
    let told = destination.act(&qmp::quit {});
    tokio::pin!(told);
    let told = tokio::select! {
        told = &mut told => Some(told),
        // QEMU may exit before it answers `quit`
        () = destination.ended() => return Ok(()),
        () = sleep(QUIT) => None,
    };
    if timeout(QUIT, destination.ended()).await.is_ok() {
        return Ok(());
    }
    if matches!(kill(destination, "it was told to quit and has not", report).await, Some(Some(_))) {
        return Ok(());
    }
    let late = || ProcessError::Late { at: destination.name().clone(), what: "end after quit", waited: QUIT };
    Err(told.and_then(Result::err).unwrap_or_else(late))
}

/// A refusal to remove what is not there is no failure; that nothing is there is asked afterwards.
fn allow_refusal(result: Result<(), ProcessError>) -> Result<(), ProcessError> {
    match result {
        Err(error) if error.is_refusal() => Ok(()),
        other => other,
    }
}
