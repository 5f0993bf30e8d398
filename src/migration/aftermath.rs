//! Finds out who has the guest after a handover that failed, and brings about what is proved to be safe.
//!
//! The decisions are [`verdict`]'s. It must never act on one side while the other is not proved to be out of the way.

use super::rollback::{QUIT, Sides};
use crate::{
    handover::{
        exchange,
        ownership::DestinationCannotRun,
        verdict::{self, Facts, Fences, Seen, Start, Verdict},
    },
    memory::precopy,
    progress::{Reporter, describe},
    qemu::{Observed, Process, ProcessError, reply::MigrationStatus},
};
use qapi::qmp;
use std::time::Duration;
use tokio::try_join;

/// How long a source whose migration failed may take to say so and to resume.
const AFTERMATH: Duration = Duration::from_secs(5);
/// How often the verdict is looked for again: each round does one thing, and three are the most that any case needs (the
/// destination is quit, the migration cancelled, the source resumed).
const ROUNDS: u32 = 6;

/// The end where a side answers, and yet does not do what is asked of it.
const NO_EFFECT: &str = "what would be safe was tried and had no effect: ask both sides with query-status and query-migrate \
     before cont is sent to one";

/// Finds out who has the guest after a handover that failed, and brings about what is proved to be safe.
pub(super) async fn judge(sides: &Sides, mut start: Start, report: &Reporter) -> Verdict {
    let Sides { source, destination, was_running } = sides;
    let (mut quit, mut followed) = (false, true);
    for _ in 0..ROUNDS {
        settle_down(source, *was_running).await;
        let (here, there) = (look(source).await, if quit { Seen::Dead } else { look(destination).await });
        // what it does behind a monitor that is closed, no event tells
        followed &= here != Seen::Silent || !source.is_gone();
        let facts = Facts {
            source: here,
            destination: there,
            start,
            was_running: *was_running,
            source_resumed: !followed || gave_up(&source.observed()),
            fences: Fences::default(),
        };
        let verdict = verdict::decide(&facts);
        start = facts.start();
        report.action("judge-handover", format!("{facts:?}: {verdict:?}"));
        let done = match verdict {
            Verdict::OnDestination | Verdict::OnSource | Verdict::Undetermined(_) => return verdict,
            Verdict::QuitDestination => {
                // a QEMU that accepted `quit` runs no guest any more, even before it is gone
                quit = destination.act(&qmp::quit {}).await.is_ok() || destination.proved_dead(QUIT).await;
                Ok(())
            }
            Verdict::ResumeSource => {
                let why = if quit { DestinationCannotRun::Quit } else { DestinationCannotRun::Dead };
                exchange::resume_source(source, why).await
            }
            Verdict::CancelMigration => precopy::cancel(source).await.map(drop),
            Verdict::StartDestination => {
                let arrived = match facts.source {
                    Seen::Dead => Ok(exchange::outlived(source, QUIT).await),
                    _ => exchange::settled(source, destination).await,
                };
                match arrived {
                    Ok(Some(arrived)) => {
                        let done = exchange::start_guest(destination, arrived).await.map(drop);
                        start = start.told(done.as_ref().is_err_and(ProcessError::is_refusal));
                        done
                    }
                    other => other.map(drop),
                }
            }
            // nothing can be fenced yet, so none of these is asked for but the last, of a source that is never seen to hang
            Verdict::FenceDestination | Verdict::FenceSource | Verdict::FreeSource => Ok(()),
        };
        if let Err(error) = done {
            report.warn("handover-failed", describe(&error));
        }
    }
    Verdict::Undetermined(NO_EFFECT)
}

/// Gives a source whose migration fails the time to say so, and to resume the guest by itself.
async fn settle_down(source: &Process, was_running: bool) {
    let told = source.until("end of the migration", AFTERMATH, |seen| {
        let over = seen.migration.keys().find(|status| status.is_over())?;
        (*over == MigrationStatus::Completed || seen.runs_again() || !was_running).then_some(())
    });
    if let Err(error) = told.await {
        tracing::debug!(%error, "judging all the same");
    }
}

/// Whether a source has given its migration up after it stopped the guest: QEMU then resumes it by itself.
fn gave_up(seen: &Observed) -> bool {
    seen.runs_again() || [MigrationStatus::Failed, MigrationStatus::Cancelled].iter().any(|s| seen.entered(s).is_some())
}

/// What one side is seen to be.
async fn look(process: &Process) -> Seen {
    let asked = try_join!(process.ask(&qmp::query_status {}), process.ask(&qmp::query_migrate {}));
    match asked {
        Ok((status, migration)) => {
            Seen::Answers { run: status.status, migration: migration.status.unwrap_or(MigrationStatus::None) }
        }
        Err(_) if process.proved_dead(AFTERMATH).await => Seen::Dead,
        Err(_) => Seen::Silent,
    }
}
