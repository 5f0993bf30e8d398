//! Finds out who has the guest after a handover that failed, and brings about what is proved to be safe.
//!
//! The decisions are [`verdict`]'s. It must never act on one side while the other is not proved to be out of the way.

use super::rollback::{QUIT, Sides};
use crate::{
    handover::{
        exchange,
        ownership::DestinationCannotRun,
        verdict::{self, Facts, Seen, Verdict},
    },
    memory::precopy,
    progress::{Reporter, describe},
    qemu::{Observed, Process, reply::MigrationStatus},
};
use qapi::qmp;
use std::time::Duration;
use tokio::try_join;

/// How long a source whose migration failed may take to say so and to resume.
const AFTERMATH: Duration = Duration::from_secs(5);
/// How often the verdict is looked for again: each round does one thing, and three are the most that any case needs (the
/// destination is quit, the migration cancelled, the source resumed).
const ROUNDS: u32 = 6;

/// Finds out who has the guest after a handover that failed, and brings about what is proved to be safe.
pub(super) async fn judge(sides: &Sides, mut started: bool, report: &Reporter) -> Verdict {
    let Sides { source, destination, was_running } = sides;
    let mut quit = false;
    for _ in 0..ROUNDS {
        settle_down(source, *was_running).await;
        let facts = Facts {
            source: look(source).await,
            destination: if quit { Seen::Dead } else { look(destination).await },
            started,
            was_running: *was_running,
            source_resumed: gave_up(&source.observed()),
        };
        let verdict = verdict::decide(&facts);
        report.action("judge-handover", format!("{facts:?}: {verdict:?}"));
        let done = match verdict {
            Verdict::OnDestination | Verdict::OnSource | Verdict::Undetermined => return verdict,
            Verdict::QuitDestination => {
                // a QEMU that accepted `quit` runs no guest any more, even before it is gone
                quit = destination.act(&qmp::quit {}).await.is_ok() || destination.proved_dead(QUIT).await;
                Ok(())
            }
            Verdict::ResumeSource => exchange::resume_source(source, DestinationCannotRun::Dead).await,
            Verdict::CancelMigration => precopy::cancel(source).await.map(drop),
            Verdict::StartDestination => match exchange::outlived(source, QUIT).await {
                Some(arrived) => {
                    let done = exchange::start_guest(destination, arrived).await.map(drop);
                    started = done.as_ref().err().is_none_or(|error| !error.is_refusal());
                    done
                }
                None => Ok(()),
            },
        };
        if let Err(error) = done {
            report.warn("handover-failed", describe(&error));
        }
    }
    Verdict::Undetermined
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
