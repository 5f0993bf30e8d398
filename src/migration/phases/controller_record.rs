//! What the controller is given, for the transcript: with it another policy can be replayed on the same samples.
//!
//! Nothing is written where no transcript is kept, and nothing waits for the transcript.

use crate::{
    convergence::{BudgetQuestion, ControllerBegin, ControllerNote, ConvergenceJob, PendingRest},
    migration::{context::Context, work_order::WorkOrder},
    qemu::Features,
};
use std::time::Duration;

/// Notes what the controller begins with.
pub(super) fn note_begin(context: &Context, order: &WorkOrder, features: &Features, job: &ConvergenceJob) {
    note(context, || {
        let disks = order.route.pairs.iter().map(|pair| pair.source.name().to_owned()).collect();
        let (policy, build) = (context.settings.policy.clone(), order.build_abilities(&context.settings, features));
        let begin = ControllerBegin { v: ControllerBegin::VERSION, policy, job: job.clone(), build, disks };
        ControllerNote::Begin(Box::new(begin))
    });
}

/// Notes whether the guest may be kept waiting, as it was answered.
pub(super) fn note_question(context: &Context, stood: Duration, rest: PendingRest, kept: bool) {
    note(context, || {
        let left = match rest {
            PendingRest::Mirrors => None,
            PendingRest::Memory(left) => Some(left.0),
        };
        let stood_us = u64::try_from(stood.as_micros()).unwrap_or(u64::MAX);
        ControllerNote::BudgetAsked(BudgetQuestion { stood_us, left, kept })
    });
}

/// A time in whole microseconds, as the transcript has it.
pub(super) fn whole_micros(time: Duration) -> Duration {
    Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// Notes one thing, where a transcript is kept.
pub(super) fn note(context: &Context, make: impl FnOnce() -> ControllerNote) {
    let Some(recorder) = &context.monitors.recorder else { return };
    let note = make();
    let is_sample = matches!(&note, ControllerNote::Look(look) if look.decision.is_none());
    // notes always serialise
    recorder.record_controller(&serde_json::to_value(&note).unwrap_or_default(), is_sample);
}
