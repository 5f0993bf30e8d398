//! Leaves the source's guest as it was: has [`decide_source`] decide whether the guest is sent `cont`, and does so.

use super::destination::{LOOK, has_run};
use crate::{
    handover::{
        exchange,
        ownership::DestinationCannotRun,
        way_back::{SourceFacts, SourceStep, decide_source, is_left_on_source},
    },
    memory::precopy,
    migration::{guest::GuestIntent, pair::QemuPair},
    qemu::{
        Observed, Process, ProcessError,
        reply::{MigrationStatus, RunState},
    },
};
use qapi::qmp;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long QEMU may take to resume a guest by itself after a cancelled migration: it does so in milliseconds.
const RESUME: Duration = Duration::from_secs(2);
/// How long the end of another engine's migration of the same guest is waited for, and how often it is asked about.
const PASSES: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What allows the source to be resumed.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResumePermit<'p> {
    /// That the destination cannot run the guest.
    pub(super) proof: &'p DestinationCannotRun,
    /// The proof is of a destination that was put out of the way: it holds for a source that has passed all on, too.
    pub(super) destination_ended: bool,
    /// The engine's own `stop` is not undone.
    pub(super) stopped_by_engine: bool,
}

/// Sees to it that a guest that ran runs again, and takes in how a guest stands that is left: as its owner, or the
/// guest itself, has stopped it.
///
/// # Errors
/// The source does not answer, refuses `cont`, or is not the QEMU that had the guest.
pub(super) async fn settle_source(
    pair: &QemuPair,
    guest: &mut GuestIntent,
    permit: ResumePermit<'_>,
) -> Result<(), ProcessError> {
    let QemuPair { source, destination } = pair;
    let mut waited = false;
    loop {
        let (run, migration) = precopy::run_and_status(source).await?;
        let facts = SourceFacts {
            wants_running: guest.wants_running(),
            run,
            migration,
            stopped_by_engine: permit.stopped_by_engine,
            waited,
            destination_ended: permit.destination_ended,
            destination_has_run: has_run(destination).await,
            is_anothers: false,
        };
        let step = decide_source(&facts);
        tracing::info!(?facts, ?step, "the source on the way back");
        match step {
            SourceStep::Cont => return exchange::resume_source(source, permit.proof).await,
            SourceStep::AwaitResume => {
                let told = |seen: &Observed| seen.runs_again().then_some(());
                if let Err(error) = source.until("RESUME", RESUME, told).await {
                    tracing::debug!(%error, "looking again");
                }
                waited = true;
            }
            SourceStep::Leave if facts.wants_running && facts.run == RunState::InMigrate => {
                // a QEMU that waits for a guest is not the one that had it
                let (at, found) = (source.name().clone(), facts.run.to_string());
                return Err(ProcessError::State { at, expected: "the guest that it had", found });
            }
            SourceStep::Leave => {
                guest.look(&facts.run);
                return Ok(());
            }
        }
    }
}

/// What the last look at the source rests on.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastLook {
    /// The engine's own `stop` is not undone.
    pub(super) stopped_by_engine: bool,
    /// The source's last migration was this engine's.
    pub(super) is_own: bool,
    /// The engine has put the destination out of the way, which never ran the guest.
    pub(super) put_aside: bool,
    /// The destination is out of the way, and never ran the guest.
    pub(super) destination_ended: bool,
}

/// Whether the guest is on the source, as it stood before, or as its owner or the guest itself has made it stand by
/// now: either may have acted while the way back went on.
///
/// Where another engine passes the guest on to the same destination, its end is waited for: until then nobody can say
/// where the guest stays.
pub(super) async fn ends_on_source(pair: &QemuPair, guest: &mut GuestIntent, look: LastLook) -> bool {
    let QemuPair { source, destination } = pair;
    let began = Instant::now();
    loop {
        let Ok((run, migration)) = precopy::run_and_status(source).await else { return false };
        // What the destination has taken in of a migration that is somebody else's; `None` where it does not answer.
        let taken = match look.is_own {
            true => None,
            false => timeout(LOOK, precopy::status(destination)).await.ok().and_then(Result::ok),
        };
        let facts = SourceFacts {
            wants_running: guest.wants_running(),
            run,
            migration,
            stopped_by_engine: look.stopped_by_engine,
            waited: true,
            destination_ended: look.is_own && look.destination_ended,
            destination_has_run: has_run(destination).await,
            is_anothers: !look.is_own && (look.put_aside || taken == Some(MigrationStatus::None)),
        };
        let is_passed_on = !facts.migration.is_over() && taken.is_some_and(|status| takes_in(&status));
        if is_passed_on && began.elapsed() < PASSES {
            sleep(LOOK_AGAIN).await;
            continue;
        }
        let is_left = !is_passed_on && is_left_on_source(&facts);
        if is_left {
            guest.look(&facts.run);
        }
        tracing::info!(?facts, is_passed_on, is_left, "the source at the end of the way back");
        return is_left;
    }
}

/// Whether the guest came to the source by the migration of which the source tells this status, so that this run's was
/// never begun: a guest that QEMU has passed on stands in `postmigrate`.
///
/// # Errors
/// The source does not answer.
pub(super) async fn came_by_it(source: &Process, status: &MigrationStatus) -> Result<bool, ProcessError> {
    if *status != MigrationStatus::Completed || source.own_migration.is_begun() {
        return Ok(false);
    }
    let run = source.ask(&qmp::query_status {}).await?.status;
    Ok(run.is_live() || run == RunState::Paused)
}

/// Whether a destination with this status takes a guest in, or has.
fn takes_in(status: &MigrationStatus) -> bool {
    *status == MigrationStatus::Completed || !status.is_over()
}
