//! The clean-up after a guest that moved: what the engine made is removed from both sides, and the source quits.

use super::write_times::{ask_counts, take_counts};
use crate::{
    handover::{
        exchange,
        way_back::{LostDestination, has_ended_on_destination},
    },
    memory::{self, apply},
    migration::{
        Effect, Failure,
        attempt::Attempt,
        context::Context,
        ending::End,
        pair::QemuPair,
        way_back::{
            fence::QUIT,
            last_events::hear_out,
            leftovers::{hidden_leftover, remove_socket},
            reconnect::reach_side,
        },
        work_order::Route,
    },
    progress::{Ending, RunsOn, Side, describe},
    qemu::{Process, ProcessError, reply::RunState, trace_events},
    storage::mirror::{mirror_job, write_histogram},
};
use qapi::qmp;
use std::{pin::Pin, time::Duration};

/// How long a destination whose monitor has closed may take to be seen to have ended.
const DIES: Duration = Duration::from_secs(1);

/// What a side answers, in time.
type PendingAnswer<'p, T> = Pin<Box<dyn Future<Output = Result<T, ProcessError>> + Send + 'p>>;

/// Removes what was made from both sides, and quits the source.
///
/// A guest that is shut down on the destination meanwhile, with its QEMU, has moved all the same.
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
    let runs_on = match asked {
        Ok(answer) => {
            if attempt.guest.wants_running() && answer.status != RunState::Running {
                report.warn("guest-state", format!("the guest moved and is now {}", answer.status));
            }
            RunsOn::Destination
        }
        Err(_) if was_shut_down(pair, attempt).await => {
            report.warn("guest-state", "the guest moved, and its QEMU was shut down there".to_owned());
            RunsOn::None
        }
        Err(error) => return Err(error.into()),
    };
    let counted = ask_counts(source, &attempt.write_counts);
    if let Ok(migration) = source.ask(&qmp::query_migrate {}).await {
        attempt.downtime = migration.downtime;
        memory::sample::fold(&mut attempt.ram, &migration);
    }
    take_counts(counted, &mut attempt.write_counts).await;
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
            Effect::Tuned { side: Side::Source, .. }
            | Effect::Traced { side: Side::Source, .. }
            | Effect::WriteTimes(_)
                if !context.settings.keep_source => {}
            Effect::WriteTimes(device) => match write_histogram::remove(source, device).await {
                Ok(left) => left.into_iter().for_each(|words| report.warn("cleanup", words)),
                Err(error) => problems.push(error),
            },
            Effect::Tuned { side: Side::Destination, .. } | Effect::Traced { side: Side::Destination, .. }
                if runs_on == RunsOn::None => {}
            Effect::Traced { side, events } => {
                let switched = insist(context, pair, *side, |process| {
                    let events = events.clone();
                    Box::pin(async move { trace_events::switch(process, &events, false).await })
                });
                let switched = switched.await;
                attempt.leftovers.extend(unless_ended(pair, effect, switched.as_ref().err()).await);
                problems.extend(switched.err());
            }
            Effect::Tuned { side, before } => {
                let restored = insist(context, pair, *side, |process| {
                    let before = before.clone();
                    Box::pin(async move { apply::restore(process, &before).await })
                });
                let restored = restored.await;
                attempt.leftovers.extend(unless_ended(pair, effect, restored.as_ref().err()).await);
                problems.extend(restored.err());
            }
            Effect::NbdServer | Effect::Mirror(_) | Effect::Stopped | Effect::Incoming | Effect::Migrate => {}
        }
    }
    for problem in problems {
        report.warn("cleanup", describe(&problem));
    }
    Ok(End { ending: Ending::Moved, runs_on, reason: None })
}

/// What an effect leaves that could not be undone; nothing where it was undone, or has ended with its QEMU.
async fn unless_ended(pair: &QemuPair, effect: &Effect, error: Option<&ProcessError>) -> Option<String> {
    let error = error?;
    match pair.side(effect.traits().side).has_ended().await {
        true => None,
        false => hidden_leftover(pair, effect, error),
    }
}

/// Whether a destination that is lost is proved to have ended without having run the guest, as that of a guest that
/// stays paused: then the source has the guest yet.
pub(crate) async fn ended_without_running(pair: &QemuPair, attempt: &Attempt) -> bool {
    let destination = &pair.destination;
    let has_heard_all = attempt.destination_followed && !destination.is_reconnected();
    has_heard_all && exchange::prove_ended(destination, DIES).await.is_some() && !was_started(pair, attempt)
}

/// Whether a destination that is lost has run the guest and was shut down.
pub(crate) async fn was_shut_down(pair: &QemuPair, attempt: &Attempt) -> bool {
    let destination = &pair.destination;
    hear_out(destination).await;
    let is_gone = destination.is_gone();
    let told = destination.observed().halts_as() == Some(&RunState::Shutdown);
    has_ended_on_destination(&LostDestination { has_run: was_started(pair, attempt), told, is_gone })
}

fn was_started(pair: &QemuPair, attempt: &Attempt) -> bool {
    attempt.guest.wants_running() || pair.destination.observed().resumed.is_some()
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
