//! The way back: undoes the effects in reverse, the guest first.
//!
//! Only before `migrate-continue`, or once it is decided that the guest stays on the source. Every step is idempotent,
//! for an effect that was noted may not have come about. It must never touch what is not ours, and never hide what it
//! could not undo.

use crate::migration::{Effect, intents::IntentLog, way_back::fence::kill};
use crate::{
    handover::{exchange, ownership::DestinationCannotRun, watchdog},
    memory::{apply, precopy},
    progress::{Moment, Reporter, Side, describe},
    qemu::{
        Process, ProcessError,
        reply::{MigrationStatus, RunState},
    },
    storage::{
        export,
        layout::Pair,
        leftover::{self, Leftover},
        mirror,
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
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// How often a step is tried that failed without having been refused: each is idempotent.
const TRIES: u32 = 2;

/// How long a process that was told to quit may take to be gone.
pub(crate) const QUIT: Duration = Duration::from_secs(4);

/// What the way back came to.
#[derive(Debug, Default)]
pub(crate) struct RolledBack {
    /// Whether the source was seen in the run state it had before.
    pub(crate) as_before: bool,
    /// What of ours is still there, and why.
    pub(crate) leftovers: Vec<String>,
}

/// Both QEMUs, and whether the guest is to run.
pub(crate) struct QemuPair {
    pub(crate) source: Process,
    pub(crate) destination: Process,
    pub(crate) was_running: bool,
}

/// Goes back. `may_resume` is the proof that allows a `cont` on the source; without one, the guest is already as it is to
/// be.
pub(crate) async fn roll_back(
    sides: &QemuPair,
    pairs: &[Pair],
    log: &mut IntentLog,
    may_resume: Option<&DestinationCannotRun>,
    report: &Reporter,
) -> RolledBack {
    let QemuPair { source, destination, .. } = sides;
    let mut leftovers = Vec::new();
    let effects = log.effects().to_vec();
    for effect in effects.iter().rev() {
        let mut undone = Undone::Done;
        for _ in 0..TRIES {
            undone = undo(sides, pairs, effect, may_resume, &mut leftovers, report).await;
            match &undone {
                Undone::Failed(error) if !error.is_refusal() && !sides.is_gone_for(effect) => {}
                _ => break,
            }
        }
        match undone {
            Undone::Done => log.undone(effect, report).await,
            Undone::Failed(error) => {
                leftovers.extend(unseen(sides, effect, &error));
                report.warn("not-undone", describe(&error));
            }
            Undone::TakenOver => {
                report.warn("taken-over", "the guest was passed on by someone else: everything is left as it is");
                return RolledBack { as_before: false, leftovers: left_behind(source).await };
            }
        }
    }
    leftovers.extend(under_way(source).await);
    leftovers.extend(left_behind(source).await);
    if !destination.has_ended().await {
        leftovers.extend(left_behind(destination).await);
    }
    RolledBack { as_before: is_as_before(sides).await, leftovers }
}

/// What became of one step of the way back.
enum Undone {
    Done,
    Failed(ProcessError),
    /// Without our `migrate-continue` the migration went on: someone else passes the guest on, and may run it.
    TakenOver,
}

impl From<Result<(), ProcessError>> for Undone {
    fn from(result: Result<(), ProcessError>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Done)
    }
}

async fn undo(
    sides: &QemuPair,
    pairs: &[Pair],
    effect: &Effect,
    may_resume: Option<&DestinationCannotRun>,
    leftovers: &mut Vec<String>,
    report: &Reporter,
) -> Undone {
    let QemuPair { source, destination, .. } = sides;
    let result = match effect {
        Effect::Migrate => match precopy::cancel(source).await {
            Ok(status) if may_resume.is_some() && (status == MigrationStatus::Completed || !status.is_over()) => {
                return Undone::TakenOver;
            }
            Ok(_) => resume(sides, may_resume).await,
            Err(error) => Err(error),
        },
        Effect::Stopped => resume(sides, may_resume).await,
        Effect::Mirror(job) => match pairs.iter().find(|pair| pair.names.job == *job) {
            Some(pair) => {
                let removed = remove_mirror(source, pair).await;
                if removed.as_ref().is_err_and(|error| !error.is_refusal()) {
                    // its NBD server may be behind a dead link, and then nothing else ends it; the next try removes it
                    let freed = watchdog::free(source, [pair.names.nbd.as_str()].into_iter(), false).await;
                    tracing::info!(?freed, "the mirror did not end");
                }
                removed
            }
            // what there is of it is found by its name afterwards
            None => Ok(()),
        },
        Effect::NbdServer | Effect::Tuned { side: Side::Destination, .. } if destination.has_ended().await => Ok(()),
        Effect::NbdServer => allow_refusal(export::stop_server(destination).await.map(drop)),
        Effect::Tuned { side, before } => apply::restore(sides.side(*side), before).await,
        Effect::SocketFile(path) => {
            remove_socket(path, leftovers);
            Ok(())
        }
        Effect::Incoming if has_the_guest(destination).await => return Undone::TakenOver,
        Effect::Incoming => quit(destination, report).await,
    };
    result.into()
}

impl QemuPair {
    /// Whether the side is gone that an effect is on: then there is nothing more to be tried.
    fn is_gone_for(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Migrate | Effect::Stopped | Effect::Mirror(_) => self.source.is_gone(),
            Effect::Tuned { side, .. } => self.side(*side).is_gone(),
            Effect::NbdServer | Effect::Incoming | Effect::SocketFile(_) => self.destination.is_gone(),
        }
    }

    /// Takes the guest's state for what it is to be wherever the migration ends. Only while none of our commands has stopped
    /// it.
    pub(crate) async fn look_again(&mut self) {
        match self.source.ask(&qmp::query_status {}).await.map(|status| status.status) {
            Ok(RunState::Running) => self.was_running = true,
            Ok(RunState::Paused) => self.was_running = false,
            // what to make of anything else is told by what comes next
            Ok(_) | Err(_) => {}
        }
    }

    /// How long the guest has stood still: since its STOP where that was seen, and else since `found`.
    pub(crate) fn stood(&self, found: Moment) -> Duration {
        let told = self.source.observed().stands_since();
        told.map_or(found.elapsed(), |told| told.elapsed().max(found.elapsed()))
    }

    /// One of the two.
    pub(crate) fn side(&self, side: Side) -> &Process {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }
}

/// Removes a socket's file; that there is none is fine.
pub(crate) fn remove_socket(path: &Path, leftovers: &mut Vec<String>) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => leftovers.push(format!("{}: {error}", path.display())),
        _ => {}
    }
}

/// Sees to it that a guest that ran runs again: QEMU resumes it by itself after a cancelled migration, as a rule.
async fn resume(sides: &QemuPair, may_resume: Option<&DestinationCannotRun>) -> Result<(), ProcessError> {
    let source = &sides.source;
    let Some(proof) = may_resume.filter(|_| sides.was_running) else { return Ok(()) };
    if is_as_before(sides).await {
        return Ok(());
    }
    let resumed = |seen: &crate::qemu::Observed| seen.runs_again().then_some(());
    let run = source.ask(&qmp::query_status {}).await?.status;
    if run == RunState::InMigrate {
        // one that waits for a guest is not the one that had it
        let at = source.name().clone();
        return Err(ProcessError::Late { at, what: "guest that it had", waited: Duration::ZERO });
    }
    let paused = run == RunState::Paused;
    if !paused && source.until("RESUME", RESUME, resumed).await.is_ok() {
        return Ok(());
    }
    exchange::resume_source(source, proof).await
}

async fn is_as_before(sides: &QemuPair) -> bool {
    match sides.source.ask(&qmp::query_status {}).await.map(|answer| answer.status) {
        Ok(RunState::Running) => sides.was_running,
        // a paused guest whose migration completed, to a destination that is dead now
        Ok(RunState::Paused | RunState::PostMigrate) => !sides.was_running,
        _ => false,
    }
}

/// What an effect that could not be undone leaves, where [`left_behind`] cannot see it, and why.
pub(crate) fn unseen(sides: &QemuPair, effect: &Effect, why: &ProcessError) -> Option<String> {
    let (side, what) = match effect {
        Effect::Tuned { side, .. } => (*side, "migration capabilities and parameters"),
        Effect::Incoming => (Side::Destination, "an incoming migration"),
        _ => return None,
    };
    Some(format!("{}: {what} ({})", sides.side(side).name(), describe(why)))
}

/// A migration that could not be cancelled: it would stop the guest yet.
async fn under_way(source: &Process) -> Option<String> {
    // a source that does not answer is named by `left_behind`
    let status = source.ask(&qmp::query_migrate {}).await.ok()?.status.filter(|status| !status.is_over())?;
    Some(format!("{}: the migration is under way ({status})", source.name()))
}

async fn remove_mirror(source: &Process, pair: &Pair) -> Result<(), ProcessError> {
    mirror::abort(source, &pair.names.job).await?;
    allow_refusal(source.act(&mirror::remove_bitmap(pair)).await)
}

/// Whether a destination runs the guest, or has all of it: someone else passed it on, after our engine had died or past it.
async fn has_the_guest(destination: &Process) -> bool {
    let asked = async { try_join!(destination.ask(&qmp::query_status {}), destination.ask(&qmp::query_migrate {})) };
    match timeout(LOOK, asked).await {
        Ok(Ok((run, migration))) => {
            run.status == RunState::Running || migration.status == Some(MigrationStatus::Completed)
        }
        _ => false,
    }
}

/// Ends a destination that was told to listen: it listens once, so it can take no other migration, and part of a guest
/// may be in it that nobody must start. One that does not do as it is told, being frozen, is ended all the same where it is a
/// process of this host.
async fn quit(destination: &Process, report: &Reporter) -> Result<(), ProcessError> {
    if destination.has_ended().await {
        return Ok(());
    }
    let told = destination.act(&qmp::quit {});
    tokio::pin!(told);
    let told = tokio::select! {
        told = &mut told => Some(told),
        // an end that its answer does not survive
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

/// Asks one side what of ours is there.
pub(crate) async fn ours(process: &Process) -> Result<Vec<Leftover>, ProcessError> {
    let (jobs, nodes, exports) = try_join!(
        process.ask(&qmp::query_jobs {}),
        process.ask(&qmp::query_named_block_nodes { flat: Some(true) }),
        process.ask(&qmp::query_block_exports {}),
    )?;
    Ok(leftover::list(&jobs.0, &nodes.0, &exports.0))
}

/// The same in words.
async fn left_behind(process: &Process) -> Vec<String> {
    let name = process.name();
    match ours(process).await {
        Ok(ours) => ours.iter().map(|left| format!("{name}: {left}")).collect(),
        Err(error) => vec![format!("{name}: cannot look ({})", describe(&error))],
    }
}
