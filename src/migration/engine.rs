//! One migration, top to bottom: every phase in its order, and where each leads when it fails.
//!
//! Up to `migrate-continue` every failure leads back to the source. After it a judgement finds out which side has the
//! guest, and where nothing is proved nothing is done.

use super::{
    Failure,
    attempt::Attempt,
    check,
    connection::connect,
    context::Context,
    deadlines::{self, DISENGAGED},
    ending::{End, NOT_PROVED, Whereabouts, conclude, still_in_postcopy, undetermined, untouched},
    interrupt::{Bounds, Interruption, unless_cancelled},
    pair::QemuPair,
    phases::{
        announcement::announce_beside,
        cleanup,
        convergence::Controller,
        device_times,
        guest_watch::refuse_halted,
        handover,
        memory_start::look_before_memory,
        postcopy,
        second_look::{unless_changed, unless_interfered},
        setup, switchover,
    },
    way_back::{
        guest_end::end_after_handover,
        judge::judge_failed_handover,
        leftovers::left_as_it_is,
        rollback::{go_back, look_back},
    },
    work_order::Route,
};
use crate::{
    endpoint::Endpoint,
    handover::ownership::DisksDisengaged,
    progress::{Ending, Outcome, Phase},
};

/// Moves the guest, or tells why not. `reached` are the two QEMUs, where they were reached before.
pub(crate) async fn migrate(
    context: &Context,
    source: &Endpoint,
    destination: &Endpoint,
    reached: Option<QemuPair>,
) -> Outcome {
    let report = &context.report;

    // Each phase is in a box of its own, so that a process with a thousand migrations has room for what each does now
    // and not for all that it may do.

    // Connect and preflight change nothing: a failure is a refusal.
    let looked = async {
        let connecting = async {
            match reached {
                Some(pair) => Ok(pair),
                None => connect(source, destination, context.monitors.recorder.as_ref()).await,
            }
        };
        let connecting = report.during(Phase::Connect, connecting);
        let pair = unless_cancelled(&context.cancel, connecting).await??;
        let (order, attempt) = report.during(Phase::Preflight, Box::pin(check::begin(context, &pair))).await?;
        Ok((pair, order, attempt))
    };
    let (mut pair, order, mut attempt) = match looked.await {
        Ok(begun) => begun,
        Err(failure) => return untouched(&failure, report),
    };
    let route = &order.route;

    // From the first change to the last point from which the way back is cheap: no export is open, the guest stands
    // still.
    let carried_over: Result<DisksDisengaged, Failure> = async {
        let interruption = Interruption::new(context, &pair);
        let prepared = report.during(Phase::Prepare, Box::pin(setup::prepare(context, &pair, &order, &mut attempt)));
        interruption.unless(Bounds::before_memory(context), prepared).await?;

        // The controller reports the phases `storage` and `memory`: RAM may be begun beside the mirrors.
        let mut controller = Controller::new(context, &order, &pair);
        let copied = unless_interfered(&pair, &order, Box::pin(controller.copy_disks(&pair, &mut attempt)));
        interruption.unless(Bounds::before_memory(context), copied).await?;
        look_before_memory(context, &pair, &mut attempt).await?;
        let sent = unless_changed(&pair, &order, Box::pin(controller.send_memory(&pair, &mut attempt)));
        let stopped = interruption.unless(Bounds::while_memory_is_sent(context), sent).await;
        // The last word of the guest's owner, before anything is waited for. The journal is told of it with `Given`.
        attempt.guest.settle(&pair.source.observed());
        let stopped = stopped?;
        refuse_halted(&attempt)?;
        attempt.history = Some(controller.history);

        let left = deadlines::left(context, &pair.source, &attempt.guest, DISENGAGED);
        let disengaged = Box::pin(switchover::disengage(context, &pair, route, stopped, &mut attempt));
        let disengaged = report.during(Phase::Switchover, disengaged);
        interruption.unless(Bounds::for_the_switchover(context, left), disengaged).await
    }
    .await;

    // From here only a failure ends the handover, and what it means is found out.
    let whereabouts = match carried_over {
        Err(failure) => Box::pin(look_back(context, &mut pair, failure, &mut attempt)).await,
        Ok(disengaged) => {
            let handed_over = Box::pin(handover::hand_over(context, &pair, disengaged, &mut attempt));
            match report.during(Phase::Handover, handed_over).await {
                Ok(()) => Whereabouts::OnDestination,
                Err(failure) => Box::pin(judge_failed_handover(context, &mut pair, route, failure, &mut attempt)).await,
            }
        }
    };
    let end = Box::pin(bring_to_end(context, &pair, route, whereabouts, &mut attempt)).await;
    attempt.take_stop(&pair.source.observed(), report);
    device_times::take(&mut attempt, end.ending == Ending::Moved).await;
    conclude(context, route, end, attempt).await
}

/// The last phases, `postcopy` and `cleanup`, or the way back: whichever the whereabouts of the guest ask for. A
/// recovery ends here, too.
pub(crate) async fn bring_to_end(
    context: &Context,
    pair: &QemuPair,
    route: &Route,
    whereabouts: Whereabouts,
    attempt: &mut Attempt,
) -> End {
    let report = &context.report;
    match whereabouts {
        Whereabouts::OnDestination if attempt.guest.wants_running() => {
            let rest = Box::pin(finish(context, pair, route, attempt));
            announce_beside(context, &pair.destination, rest).await
        }
        Whereabouts::OnDestination => finish(context, pair, route, attempt).await,
        Whereabouts::OnSource(failure) => go_back(context, pair, route, &failure, attempt).await,
        Whereabouts::Nowhere(failure) => end_after_handover(pair, &failure, attempt, report).await,
        Whereabouts::Unknown { failure, advice } => {
            attempt.leftovers.extend(left_as_it_is(pair, &attempt.log).await);
            undetermined(&failure, &advice)
        }
    }
}

/// The phases of a guest that is on the destination.
async fn finish(context: &Context, pair: &QemuPair, route: &Route, attempt: &mut Attempt) -> End {
    let report = &context.report;
    if attempt.ram.postcopy {
        let fetched = report.during(Phase::Postcopy, postcopy::fetch(context, pair, route, attempt)).await;
        match fetched {
            // Nobody needs the pages of a guest that was shut down.
            Err(_) if cleanup::was_shut_down(pair, attempt).await => {}
            Err(failure) => return still_in_postcopy(&failure),
            Ok(()) => {}
        }
    }
    match report.during(Phase::Cleanup, cleanup::tidy(context, pair, route, attempt)).await {
        Ok(end) => end,
        Err(failure) if cleanup::ended_without_running(pair, attempt).await => {
            go_back(context, pair, route, &failure, attempt).await
        }
        Err(failure) => undetermined(&failure, NOT_PROVED),
    }
}
