//! One migration, top to bottom: every phase in its order, and where each leads when it fails.
//!
//! Up to `migrate-continue` every failure leads back to the source. After it [`Judge`] finds out who has the guest, and
//! where nothing is proved nothing is done.

use super::{
    Failure,
    attempt::Attempt,
    check,
    connection::connect,
    context::Context,
    deadlines::{self, DISENGAGED},
    ending::{End, Unproved, conclude, undetermined, untouched},
    interrupt::{Bounds, unless_cancelled, unless_interrupted},
    pair::QemuPair,
    phases::{
        cleanup,
        convergence::Controller,
        handover::{self, HandoverFailure},
        postcopy, setup, switchover,
    },
    way_back::{
        judge::Judge,
        reconnect::reach_again,
        rollback::{go_back, look_back},
    },
    work_order::Route,
};
use crate::{
    endpoint::Endpoint,
    handover::{ownership::DisksDisengaged, verdict::HandoverVerdict},
    memory::postcopy::PostcopyError,
    progress::{Mark, Outcome, Phase, RunsOn, describe},
};

/// Moves the guest, or tells why not.
pub(crate) async fn migrate(context: &Context, source: &Endpoint, destination: &Endpoint) -> Outcome {
    let report = &context.report;

    // Connect and preflight change nothing: a failure is a refusal.
    let looked = async {
        let connecting = connect(source, destination, context.monitors.recorder.as_ref());
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

    // From the first change to the last point from which the way back is cheap: no export is open, the guest stands still.
    let carried_over: Result<DisksDisengaged, Failure> = async {
        let bounds = Bounds::before_memory(context);
        let prepared = report.during(Phase::Prepare, setup::prepare(context, &pair, &order, &mut attempt));
        unless_interrupted(context, &pair, bounds, prepared).await?;

        // The controller reports the phases `storage` and `memory`: RAM may be begun beside the mirrors.
        let mut controller = Controller::new(context, &order, &pair, &attempt);
        let copied = controller.copy_disks(&pair, &mut attempt);
        unless_interrupted(context, &pair, bounds, copied).await?;
        setup::look_before_memory(&pair, &mut attempt).await?;
        let bounds = Bounds::while_memory_is_sent(context);
        let stopped = unless_interrupted(context, &pair, bounds, controller.send_memory(&pair, &mut attempt)).await;
        // The last word of the guest's owner, before anything is waited for. The journal is told of it with `Given`.
        attempt.guest.settle(&pair.source.observed());
        let stopped = stopped?;
        attempt.history = Some(controller.history);

        let bounds = Bounds::for_the_switchover(context, deadlines::left(context, &pair, &attempt.guest, DISENGAGED));
        let disengaged = switchover::disengage(context, &pair, route, stopped, &mut attempt);
        unless_interrupted(context, &pair, bounds, report.during(Phase::Switchover, disengaged)).await
    }
    .await;

    let end = match carried_over {
        Ok(disengaged) => {
            let handed = handover::hand_over(context, &pair, disengaged, &mut attempt);
            match report.during(Phase::Handover, handed).await {
                Ok(()) => finish(context, &pair, route, &mut attempt).await,
                Err(failure) => after_a_failed_handover(context, &mut pair, route, failure, &mut attempt).await,
            }
        }
        Err(failure) => {
            reach_again(context, &mut pair).await;
            if !attempt.given {
                look_back(context, &pair, &failure, &mut attempt).await;
            }
            go_back(context, &pair, route, &failure, &mut attempt).await
        }
    };
    if let Some(stopped) = pair.source.observed().stopped {
        attempt.ledger.mark(Mark::Stop, stopped);
    }
    conclude(context, route, end, attempt).await
}

/// The guest is on the destination: waits for the pages that postcopy has to fetch yet, then cleans up.
async fn finish(context: &Context, pair: &QemuPair, route: &Route, attempt: &mut Attempt) -> End {
    let report = &context.report;
    if attempt.ram.postcopy {
        let fetched = report.during(Phase::Postcopy, postcopy::fetch(context, pair, route, attempt)).await;
        if let Err(failure) = fetched {
            let runs_on = match failure {
                Failure::Postcopy(PostcopyError::DestinationGone(_)) => RunsOn::Unknown,
                _ => RunsOn::Destination,
            };
            return Unproved { runs_on, reason: failure.reason() }.into();
        }
    }
    report.during(Phase::Cleanup, cleanup::tidy(context, pair, route, attempt)).await
}

/// The handover failed: goes back where `migrate-continue` had no effect, and else finds out who has the guest.
async fn after_a_failed_handover(
    context: &Context,
    pair: &mut QemuPair,
    route: &Route,
    HandoverFailure { failure, given }: HandoverFailure,
    attempt: &mut Attempt,
) -> End {
    let missed_events = reach_again(context, pair).await;
    context.report.warn("handover-failed", describe(&failure));
    let Some(cont) = given else {
        return go_back(context, pair, route, &failure, attempt).await;
    };
    let judge = Judge::begin(context, pair, route, attempt.guest.clone(), cont, !missed_events);
    let verdict = judge.judge(&attempt.log).await;
    follow_verdict(context, pair, route, failure, verdict, attempt).await
}

/// Does what follows once it is known who has the guest, or that nobody can know.
pub(crate) async fn follow_verdict(
    context: &Context,
    pair: &QemuPair,
    route: &Route,
    failure: Failure,
    verdict: HandoverVerdict,
    attempt: &mut Attempt,
) -> End {
    match verdict {
        HandoverVerdict::OnDestination => {
            if let Some(resumed) = pair.destination.observed().resumed {
                attempt.ledger.mark(Mark::Resume, resumed);
            }
            attempt.ram.postcopy |= pair.has_been_in_postcopy() || postcopy::may_lack_pages(pair).await;
            finish(context, pair, route, attempt).await
        }
        // the guest is as it was already: nothing is left to resume
        HandoverVerdict::OnSource => go_back(context, pair, route, &failure, attempt).await,
        HandoverVerdict::Undetermined(advice) => {
            attempt.ram.postcopy = pair.has_been_in_postcopy();
            undetermined(&failure, advice)
        }
        // the judge itself acts on all others
        verdict => undetermined(&failure, &format!("{verdict:?} did not come to an end")),
    }
}
