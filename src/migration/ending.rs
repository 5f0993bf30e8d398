//! How a run ends, in the journal and in the outcome.

use super::{Failure, attempt::Attempt, context::Context, record::MigrationEnd, work_order::Route};
use crate::{
    convergence::DiskEstimate,
    memory::postcopy::PostcopyError,
    progress::{
        DiskOutcome, Ending, EventKind, GuestPause, Outcome, PauseCause, RamOutcome, Reason, Reporter, RunsOn, describe,
    },
    storage::model::layout::DiskPair,
};

/// The end of a run, without its figures.
pub(crate) struct End {
    pub(crate) ending: Ending,
    pub(crate) runs_on: RunsOn,
    pub(crate) reason: Option<Reason>,
}

/// What a person is to do where nothing is proved.
pub(crate) const NOT_PROVED: &str =
    "neither side is proved to have the guest: ask both with query-status before you send cont to one";

/// Where the guest is, once a run comes to its end.
pub(crate) enum Whereabouts {
    /// The destination has the guest.
    OnDestination,
    /// The source has the guest, and keeps it for this reason.
    OnSource(Failure),
    /// No side has the guest: both have ended, and the destination never ran the guest.
    Nowhere(Failure),
    /// Nothing is proved.
    Unknown {
        failure: Failure,
        /// What a person is to find out, and do.
        advice: String,
    },
}

/// The end of a guest that runs on the destination, or did, while its pages are not all there.
pub(crate) fn still_in_postcopy(failure: &Failure) -> End {
    let runs_on = match failure {
        Failure::Postcopy(PostcopyError::DestinationGone(_)) => RunsOn::Unknown,
        _ => RunsOn::Destination,
    };
    End { ending: Ending::Undetermined, runs_on, reason: Some(failure.reason()) }
}

/// The end where nothing is proved, with what a person is to find out.
pub(crate) fn undetermined(failure: &Failure, advice: &str) -> End {
    let mut reason = failure.reason();
    reason.message = format!("{}; {advice}", reason.message);
    End { ending: Ending::Undetermined, runs_on: RunsOn::Unknown, reason: Some(reason) }
}

/// Ends the journal, and gives the outcome.
pub(crate) async fn conclude(context: &Context, route: &Route, end: End, attempt: Attempt) -> Outcome {
    let outcome = outcome(context, route, end, &attempt);
    let ended = MigrationEnd {
        outcome: outcome.outcome,
        runs_on: outcome.runs_on,
        reason: outcome.reason.clone(),
        leftovers: outcome.leftovers.clone(),
        another_try: outcome.another_try.clone(),
    };
    attempt.log.end(ended, &context.report).await;
    outcome
}

/// The outcome of a run with its figures.
pub(crate) fn outcome(context: &Context, route: &Route, end: End, attempt: &Attempt) -> Outcome {
    let pauses = pauses(&end, attempt);
    let (ledger, blackout_ms) = attempt.ledger.spans().map_or((Vec::new(), None), |(spans, ms)| (spans, Some(ms)));
    let known = attempt.history.as_ref().map(|history| history.estimates().disks).unwrap_or_default();
    let latency = |pair: &DiskPair, of: fn(&DiskEstimate) -> Option<f64>| {
        known.get(pair.source.name()).and_then(of).map(|ms| (ms * 1000.0).round() as u64)
    };
    let disk = |pair: &DiskPair| DiskOutcome {
        source: pair.source.name().to_owned(),
        destination: pair.destination.name().to_owned(),
        bytes_copied: attempt.copied.get(&pair.names.job).copied().unwrap_or(0),
        virtual_size: pair.source.virtual_size,
        mode: pair.mode.as_str().to_owned(),
        write_latency_us: latency(pair, |disk| disk.latency_before),
        write_blocking_latency_us: latency(pair, |disk| disk.latency_since),
        guest_writes: attempt.write_counts.told(pair),
    };
    Outcome {
        outcome: end.ending,
        runs_on: end.runs_on,
        reason: end.reason,
        findings: Vec::new(),
        total_ms: context.report.elapsed_ms(),
        ledger_clock: blackout_ms.map(|_| attempt.ledger.clock()),
        blackout_ms,
        // the sum of nothing would be -0.0
        paused_ms: pauses.iter().fold(0.0, |sum, pause| sum + pause.ms),
        pauses,
        qemu_downtime_ms: attempt.downtime,
        ledger,
        devices: attempt.device_logs.told.clone(),
        devices_unknown: attempt.device_logs.describe_unknown(),
        disks: route.pairs.iter().map(disk).collect(),
        ram: attempt.ram.clone(),
        predicted: attempt.predicted.clone(),
        leftovers: attempt.leftovers.clone(),
        another_try: attempt.another_try.clone(),
    }
}

/// Every time for which the guest stood still because of the run.
fn pauses(end: &End, attempt: &Attempt) -> Vec<GuestPause> {
    let why = match (&end.ending, &end.runs_on) {
        // A guest that has moved may have been shut down on the destination since.
        (Ending::Moved, _) | (_, RunsOn::Destination) => PauseCause::Switchover,
        _ => PauseCause::WentBack,
    };
    let last = attempt.ledger.spans().map(|(_, ms)| GuestPause::new(why, ms));
    attempt.pauses.iter().cloned().chain(last).collect()
}

/// The outcome of a migration that was never begun.
pub(crate) fn untouched(failure: &Failure, report: &Reporter) -> Outcome {
    tracing::debug!(error = describe(failure), "nothing was changed");
    let (ending, seen) = match failure {
        Failure::Cancelled => (Ending::Cancelled, true),
        Failure::Refused { on_source, .. } => (Ending::Refused, *on_source),
        // Something was changed, so the end is no refusal. Leftovers are removed only where the guest is on the source.
        Failure::Cleaned { failure, .. } => match **failure {
            Failure::Cancelled => (Ending::Cancelled, true),
            Failure::Refused { on_source: true, .. } => (Ending::RolledBack, true),
            Failure::Process(ref error) if error.is_refusal() => (Ending::RolledBack, true),
            _ => (Ending::Undetermined, false),
        },
        _ => (Ending::Refused, false),
    };
    // a guest that was not looked at, or is not on the source, is not claimed to be
    let runs_on = if seen { RunsOn::Source } else { RunsOn::Unknown };
    let findings = failure.findings().to_vec();
    Outcome { findings, ..without_figures(ending, runs_on, failure.reason(), report) }
}

/// The outcome of an engine that came to no end: its runtime was shut down under it, it panicked twice, or it never
/// began.
pub(crate) fn lost(begun: bool, report: &Reporter) -> Outcome {
    let (ending, message) = match begun {
        true => (
            Ending::Undetermined,
            "the engine came to no end, for a panic or since its runtime was shut down: recover from its journal",
        ),
        false => (Ending::Refused, "no thread or runtime could be started for the engine"),
    };
    let outcome = without_figures(ending, RunsOn::Unknown, Failure::Internal(message.to_owned()).reason(), report);
    report.emit(EventKind::Outcome(Box::new(outcome.clone())));
    outcome
}

/// What is said of a panic of the engine.
pub(crate) fn panicked(words: &str) -> String {
    format!("the engine panicked, which is a defect of qferry ({words})")
}

/// What a run came to whose engine had panicked, in words.
pub(crate) fn came_to(ending: Ending, runs_on: RunsOn, reason: Option<&Reason>) -> String {
    let whereabouts = match (ending, reason) {
        (Ending::Undetermined, Some(reason)) => return reason.message.clone(),
        (Ending::Moved, _) if runs_on == RunsOn::None => "the guest has moved, and was shut down on the destination",
        (Ending::Moved, _) => "the guest is on the destination",
        (Ending::Ended, _) => "the guest has ended on the source",
        (Ending::Stuck, _) => return "the guest is on the source, as before, and leftovers are named".to_owned(),
        _ => "the guest is on the source, as before",
    };
    format!("{whereabouts}, and nothing is left to recover")
}

/// The outcome after a panic where nothing more can be said of the guest.
pub(crate) fn after_panic(message: String, report: &Reporter) -> Outcome {
    without_figures(Ending::Undetermined, RunsOn::Unknown, Failure::Internal(message).reason(), report)
}

fn without_figures(ending: Ending, runs_on: RunsOn, reason: Reason, report: &Reporter) -> Outcome {
    Outcome {
        outcome: ending,
        runs_on,
        reason: Some(reason),
        findings: Vec::new(),
        total_ms: report.elapsed_ms(),
        blackout_ms: None,
        pauses: Vec::new(),
        paused_ms: 0.0,
        qemu_downtime_ms: None,
        ledger: Vec::new(),
        ledger_clock: None,
        devices: Vec::new(),
        devices_unknown: None,
        disks: Vec::new(),
        ram: RamOutcome::default(),
        predicted: None,
        leftovers: Vec::new(),
        another_try: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_side_is_said_to_have_a_guest_that_was_shut_down() {
        let reason = Failure::Internal("a panic".to_owned()).reason();
        let said = |ending, runs_on| came_to(ending, runs_on, Some(&reason));
        let nothing_left = ", and nothing is left to recover";
        for (ending, runs_on, words) in [
            (Ending::Moved, RunsOn::Destination, "the guest is on the destination"),
            (Ending::Moved, RunsOn::None, "the guest has moved, and was shut down on the destination"),
            (Ending::Ended, RunsOn::None, "the guest has ended on the source"),
            (Ending::RolledBack, RunsOn::Source, "the guest is on the source, as before"),
        ] {
            assert_eq!(said(ending, runs_on), format!("{words}{nothing_left}"));
        }
        assert!(said(Ending::Stuck, RunsOn::Source).ends_with("leftovers are named"));
        assert!(said(Ending::Undetermined, RunsOn::Unknown).contains("a panic"));
    }
}
