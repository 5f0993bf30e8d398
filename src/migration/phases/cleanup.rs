//! The clean-up after a guest that moved: what the engine made is removed from both sides, and the source quits.

use crate::{
    handover::exchange,
    memory::{self, apply},
    migration::{
        Effect, Failure,
        attempt::Attempt,
        context::Context,
        ending::End,
        pair::QemuPair,
        way_back::{
            fence::QUIT,
            leftovers::{hidden_leftover, remove_socket},
            reconnect::reach_side,
        },
        work_order::Route,
    },
    progress::{Ending, RunsOn, Side, describe},
    qemu::{Process, ProcessError, reply::RunState},
    storage::mirror::mirror_job,
};
use qapi::qmp;
use std::{pin::Pin, time::Duration};

/// How long a destination whose monitor has closed may take to be seen to have ended.
const DIES: Duration = Duration::from_secs(1);

/// What a side answers, in time.
type PendingAnswer<'p, T> = Pin<Box<dyn Future<Output = Result<T, ProcessError>> + Send + 'p>>;

/// Removes what was made from both sides, and quits the source.
///
/// # Errors
/// The destination is lost by now, and nothing was done: the source's is the only state that is known to exist.
pub(crate) async fn tidy(
    context: &Context,
    pair: &QemuPair,
    route: &Route,
    attempt: &mut Attempt,
) -> Result<End, Failure> {
    let (source, report) = (&pair.source, &context.report);
    let asked = insist(context, pair, Side::Destination, |side| Box::pin(side.ask(&qmp::query_status {}))).await;
    let run = asked?.status;
    if attempt.guest.wants_running() && run != RunState::Running {
        report.warn("guest-state", format!("the guest moved and is now {run}"));
    }
    if let Ok(migration) = source.ask(&qmp::query_migrate {}).await {
        attempt.downtime = migration.downtime;
        memory::sample::fold(&mut attempt.ram, &migration);
    }
    let mut problems = Vec::new();
    if context.settings.keep_source {
        problems.extend(mirror_job::dismiss(source, &route.pairs).await.err());
    } else {
        let quit = insist(context, pair, Side::Source, |source| Box::pin(source.quit())).await;
        if !source.ends_within(QUIT).await {
            problems.extend(quit.err());
            attempt.leftovers.push(format!("{}: its process, with the guest as it was", source.name()));
            report.warn("source-not-gone", format!("{} was told to quit and has not", source.name()));
        }
    }
    let lasting: Vec<Effect> =
        attempt.log.effects().iter().rev().filter(|effect| effect.traits().outlives_the_move).cloned().collect();
    for effect in &lasting {
        match effect {
            Effect::SocketFile(path) => attempt.leftovers.extend(remove_socket(path)),
            // a source that quits takes its settings with it
            Effect::Tuned { side: Side::Source, .. } if !context.settings.keep_source => {}
            Effect::Tuned { side, before } => {
                let restored = insist(context, pair, *side, |process| {
                    let before = before.clone();
                    Box::pin(async move { apply::restore(process, &before).await })
                });
                if let Err(error) = restored.await {
                    if !pair.side(*side).has_ended().await {
                        attempt.leftovers.extend(hidden_leftover(pair, effect, &error));
                    }
                    problems.push(error);
                }
            }
            Effect::NbdServer | Effect::Mirror(_) | Effect::Stopped | Effect::Incoming | Effect::Migrate => {}
        }
    }
    for problem in problems {
        report.warn("cleanup", describe(&problem));
    }
    Ok(End { ending: Ending::Moved, runs_on: RunsOn::Destination, reason: None })
}

/// Whether a destination that is lost is proved to have ended without having run the guest, as that of a guest that
/// stays paused: then the source has the guest yet.
pub(crate) async fn ended_without_running(pair: &QemuPair, attempt: &Attempt) -> bool {
    let destination = &pair.destination;
    let has_heard_all = attempt.destination_followed && !destination.is_reconnected();
    let was_started = attempt.guest.wants_running() || destination.observed().resumed.is_some();
    has_heard_all && !was_started && exchange::prove_ended(destination, DIES).await.is_some()
}

/// Asks a side, and asks once more over another connection where the first brought no answer.
async fn insist<T>(
    context: &Context,
    pair: &QemuPair,
    side: Side,
    ask: impl for<'p> Fn(&'p Process) -> PendingAnswer<'p, T>,
) -> Result<T, ProcessError> {
    match ask(pair.side(side)).await {
        Err(error) => match reach_side(context, pair, side).await {
            Some(process) => ask(&process).await,
            None => Err(error),
        },
        answer => answer,
    }
}
