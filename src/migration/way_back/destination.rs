//! Puts the destination out of the way: looks at it, has [`decide_destination`] decide, and does what that says.
//!
//! Nothing is ended that may run the guest, nor by force what could not be asked.

use super::{
    fence::{QUIT, kill},
    last_events::hear_out,
};
use crate::{
    handover::{
        exchange,
        ownership::DestinationCannotRun,
        way_back::{
            CourseFacts, DestinationFacts, DestinationFate, DestinationSight, LeaveReason, MigrationCourse,
            SourceHolding, WayBackGround, decide_destination, find_course,
        },
    },
    memory::precopy,
    migration::pair::QemuPair,
    progress::Reporter,
    qemu::{
        Process, ProcessError,
        reply::{MigrationStatus, RunState},
    },
};
use qapi::qmp;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long a side may take to say, for the way back, how its guest stands.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// How long a destination may take to accept a source's connection, or to load what a source has passed on.
const CHANGES: Duration = Duration::from_secs(1);

/// How long a migration may take to notice that its destination is dead.
const FAILS: Duration = Duration::from_secs(3);

/// What the way back knows of the destination before the look.
#[derive(Debug, Clone, Copy)]
pub(super) struct DestinationPast {
    /// What is proved of the guest.
    pub(super) ground: WayBackGround,
    /// Every event of the destination was heard since before it was told to listen.
    pub(super) followed: bool,
    /// The destination was told to listen, and this engine has not put it out of the way since.
    pub(super) listened: bool,
}

/// What came of putting the destination out of the way.
pub(super) enum DestinationEnd {
    /// It is gone, or has accepted `quit`; with the proof where there is one.
    Gone(Option<DestinationCannotRun>),
    /// It was left alone.
    Left(LeaveReason),
    /// It was to end, and has not.
    Failed(ProcessError),
}

/// Looks at both sides and decides what becomes of the destination.
pub(super) async fn decide_fate(pair: &QemuPair, past: DestinationPast) -> DestinationFate {
    let QemuPair { source, destination } = pair;
    let (sight, source) = tokio::join!(see(destination), see_holding(source));
    let has_run = has_run(destination).await;
    let facts = DestinationFacts {
        ground: past.ground,
        sight,
        listened: past.listened,
        asked: !destination.is_absent(),
        followed: past.followed && !destination.is_reconnected(),
        has_run,
        killable: destination.peer().is_some(),
        source,
    };
    let fate = decide_destination(&facts);
    tracing::info!(?facts, ?fate, "the destination on the way back");
    fate
}

/// Where the source's migration leads, which has this status and is under way or has completed; with the status that
/// the source has by then. A destination that changes yet is given the time to come to its end, and so is a migration
/// that nothing proves to be this run's: this run's fails by itself once its destination is dead.
pub(super) async fn follow_course(
    pair: &QemuPair,
    past: DestinationPast,
    status: MigrationStatus,
) -> (MigrationCourse, MigrationStatus) {
    let QemuPair { source, destination } = pair;
    let followed = past.followed && !destination.is_reconnected();
    let told = |status| followed && destination.observed().entered(&status).is_some();
    let is_begun = source.own_migration.is_begun();
    let until = Instant::now() + if is_begun { CHANGES } else { FAILS };
    let (is_followed, waited, told_active, told_completed) = (false, false, false, false);
    let mut facts =
        CourseFacts { source: status, destination: None, is_followed, is_begun, waited, told_active, told_completed };
    loop {
        facts.waited = Instant::now() >= until;
        facts.is_followed = source.own_migration.is_followed(&source.observed());
        (facts.told_active, facts.told_completed) = (told(MigrationStatus::Active), told(MigrationStatus::Completed));
        // The guest may stand still: where the events have told, nothing is asked.
        let is_told = facts.told_completed || (facts.told_active && facts.source != MigrationStatus::Completed);
        if !is_told {
            facts.destination = ask(destination).await.map(|(_, migration)| migration);
        }
        let course = find_course(&facts);
        if course != MigrationCourse::NotKnownYet || facts.waited {
            tracing::info!(?facts, ?course, "the source's migration on the way back");
            return (course, facts.source);
        }
        sleep(CHANGES / 20).await;
        if !is_begun {
            match ask(source).await.map(|(_, status)| status) {
                Some(status) if status.is_over() && status != MigrationStatus::Completed => return (course, status),
                Some(status) => facts.source = status,
                None => {}
            }
        }
    }
}

/// Whether the source answers that its migration is over, at once or in a moment.
pub(super) async fn is_over_soon(source: &Process) -> bool {
    let until = Instant::now() + CHANGES;
    loop {
        let Some((_, status)) = ask(source).await else { return false };
        if status.is_over() || Instant::now() >= until {
            return status.is_over();
        }
        sleep(CHANGES / 20).await;
    }
}

/// Does what was decided. A destination that has accepted `quit` runs nothing any more, and is not waited for.
pub(super) async fn carry_out(destination: &Process, fate: DestinationFate, report: &Reporter) -> DestinationEnd {
    let end = match fate {
        DestinationFate::AlreadyGone => DestinationEnd::Gone(prove_ended(destination).await),
        DestinationFate::LeaveAlone(reason) => DestinationEnd::Left(reason),
        DestinationFate::Fence => fence_silent(destination, "it does not answer, and is not needed", report).await,
        DestinationFate::Quit => quit(destination, report).await,
    };
    match end {
        // Somebody's `cont` came between the look and the end.
        DestinationEnd::Gone(_) if has_run(destination).await => DestinationEnd::Left(LeaveReason::HasRun),
        end => end,
    }
}

/// Whether the destination's events told that it ran, the last ones of a destination that is gone among them.
pub(super) async fn has_run(destination: &Process) -> bool {
    hear_out(destination).await;
    destination.observed().resumed.is_some()
}

async fn fence_silent(destination: &Process, why: &str, report: &Reporter) -> DestinationEnd {
    match kill(destination, why, report).await.flatten() {
        Some(ended) => DestinationEnd::Gone(DestinationCannotRun::of_ended_process(ended)),
        None => DestinationEnd::Failed(late(destination)),
    }
}

async fn quit(destination: &Process, report: &Reporter) -> DestinationEnd {
    let told = tokio::select! {
        // An answer counts for more than the end that follows: of a QEMU on another host only the answer is proof.
        biased;
        told = timeout(QUIT, exchange::quit_destination(destination)) => told,
        // QEMU may exit before it answers `quit`
        () = destination.ended() => return DestinationEnd::Gone(prove_ended(destination).await),
    };
    match told {
        Ok(Ok(proof)) => DestinationEnd::Gone(Some(proof)),
        _ if destination.has_ended().await => DestinationEnd::Gone(prove_ended(destination).await),
        Ok(Err(refused)) if refused.is_refusal() => DestinationEnd::Failed(refused),
        _ if has_run(destination).await => DestinationEnd::Left(LeaveReason::HasRun),
        // It has answered a moment ago that it does not run the guest, and so it does not run now.
        _ if destination.peer().is_some() => fence_silent(destination, "it was told to quit and has not", report).await,
        Ok(Err(error)) => DestinationEnd::Failed(error),
        Err(_) => DestinationEnd::Failed(late(destination)),
    }
}

/// Waits for the end of a destination that has accepted `quit`, and ends its process where it does not end by itself.
pub(super) async fn await_end(destination: &Process, report: &Reporter) -> Result<(), ProcessError> {
    if destination.has_ended().await || destination.ends_within(QUIT).await {
        return Ok(());
    }
    match kill(destination, "it has accepted quit and has not ended", report).await.flatten() {
        Some(_) => Ok(()),
        None => Err(late(destination)),
    }
}

async fn prove_ended(destination: &Process) -> Option<DestinationCannotRun> {
    exchange::prove_ended(destination, LOOK).await.and_then(DestinationCannotRun::of_ended_process)
}

fn late(destination: &Process) -> ProcessError {
    ProcessError::Late { at: destination.name().clone(), what: "end after quit", waited: QUIT }
}

async fn see(destination: &Process) -> DestinationSight {
    if destination.has_ended().await {
        return DestinationSight::Ended;
    }
    if destination.was_replaced() {
        return DestinationSight::Another;
    }
    if destination.is_gone() {
        return DestinationSight::Unreachable;
    }
    match ask(destination).await {
        Some((run, migration)) => DestinationSight::Answers { run, migration },
        None if destination.has_ended().await => DestinationSight::Ended,
        None if destination.is_gone() => DestinationSight::Unreachable,
        None => DestinationSight::Silent,
    }
}

/// What the source has passed on. Only a source that answers has the guest yet, whatever its events have said.
async fn see_holding(source: &Process) -> SourceHolding {
    match ask(source).await {
        Some((_, status)) => SourceHolding::of_answer(&status),
        None => SourceHolding::without_answer(source.has_ended().await),
    }
}

async fn ask(process: &Process) -> Option<(RunState, MigrationStatus)> {
    timeout(LOOK, precopy::run_and_status(process)).await.ok()?.ok()
}

/// Whether the guest has used a disk on a destination, and so has run there: QEMU counts the requests of the guest's
/// own devices, and a migration passes no counter on. A mirror writes through an export, which is no device. `None`
/// where QEMU does not answer.
pub(super) async fn has_made_requests(destination: &Process) -> Option<bool> {
    let asked = timeout(LOOK, destination.ask(&qmp::query_blockstats { query_nodes: None }));
    match asked.await {
        Ok(Ok(devices)) => Some(devices.0.iter().any(|device| device.stats.has_requests())),
        Ok(Err(error)) if !error.is_silence() => Some(false),
        _ => None,
    }
}
