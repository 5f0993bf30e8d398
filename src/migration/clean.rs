//! The setting `clean`, where the engine of an earlier migration of the pair died and its journal is there: that
//! migration is recovered first, by the same code as `qferry recover`. Only its journal knows what it had set.
//!
//! The monitors are free meanwhile: a monitor takes one client.

use super::{
    check::party,
    connection::connect,
    context::Context,
    ending::untouched,
    interrupt::unless_cancelled,
    journals::{self, Parties},
    pair::QemuPair,
    recovery::Recovery,
};
use crate::{
    endpoint::Endpoint,
    progress::{Ending, Outcome, RunsOn},
};
use std::path::PathBuf;
use tokio::task::spawn_blocking;

/// What came of the recoveries that go before a migration.
pub(super) enum RecoveredFirst {
    /// The guest is on the source, and the migration may begin.
    GoOn {
        /// The journals that were recovered.
        recovered: Vec<PathBuf>,
        /// Both QEMUs, where they were reached and no journal was recovered: a connector may reach a QEMU only once.
        reached: Option<Box<QemuPair>>,
    },
    /// A recovery ended so that no migration can follow.
    End(Box<Outcome>),
}

/// Recovers the migrations of this pair whose engines died, the latest first: what a run found set and puts back, an
/// earlier one had set.
pub(super) async fn recover_first(context: &Context, source: &Endpoint, destination: &Endpoint) -> RecoveredFirst {
    let mut recovered = Vec::new();
    let (journals, reached) = journals_to_recover(context, source, destination).await;
    for journal in journals {
        let because = format!("an engine died in a migration of this pair: {} is recovered first", journal.display());
        context.report.action("recover", because);
        let mut recovery =
            Recovery::new(journal.clone()).on_the_way().source(source.clone()).destination(destination.clone());
        if let Some(command) = &context.settings.fence_command {
            recovery = recovery.fence_command(command);
        }
        if let Some(recorder) = &context.monitors.recorder {
            recovery = recovery.transcript(recorder.clone());
        }
        let outcome = match recovery.recover(&context.report, context.cancel.clone()).await {
            Ok(outcome) => outcome,
            Err(failure) => after_recovery(untouched(&failure, &context.report), &recovered),
        };
        match outcome.outcome {
            Ending::RolledBack if outcome.leftovers.is_empty() => recovered.push(journal),
            _ => return RecoveredFirst::End(Box::new(outcome)),
        }
    }
    RecoveredFirst::GoOn { recovered, reached: reached.map(Box::new) }
}

/// The outcome of a migration that followed the recoveries: where it was refused, something was changed all the same.
pub(super) fn after_recovery(mut outcome: Outcome, recovered: &[PathBuf]) -> Outcome {
    if outcome.outcome == Ending::Refused && !recovered.is_empty() {
        let journals: Vec<String> = recovered.iter().map(|path| path.display().to_string()).collect();
        // a recovery that ended `rolled-back` has seen the guest on the source
        (outcome.outcome, outcome.runs_on) = (Ending::RolledBack, RunsOn::Source);
        if let Some(reason) = &mut outcome.reason {
            let more = format!("; before that, an earlier migration was recovered from {}", journals.join(" and "));
            reason.message.push_str(&more);
        }
    }
    outcome
}

/// The journals to be recovered; where there is none, both QEMUs, if they were reached to find that out.
async fn journals_to_recover(
    context: &Context,
    source: &Endpoint,
    destination: &Endpoint,
) -> (Vec<PathBuf>, Option<QemuPair>) {
    let settings = context.settings.clone();
    if !settings.clean || !spawn_blocking(move || journals::has_unfinished(&settings)).await.unwrap_or(false) {
        return (Vec::new(), None);
    }
    // Nothing is said of a side that cannot be reached: the migration itself says so.
    let connecting = connect(source, destination, context.monitors.recorder.as_ref());
    let Ok(Ok(pair)) = unless_cancelled(&context.cancel, connecting).await else { return (Vec::new(), None) };
    let (source, destination) = tokio::join!(party(&pair.source), party(&pair.destination));
    let parties = Parties { source, destination };
    let (settings, run) = (context.settings.clone(), context.run.clone());
    let runs = spawn_blocking(move || journals::runs_of(&settings, &run, &parties)).await.unwrap_or_default();
    if runs.iter().any(|(known, _)| known.engine_lives) {
        // the migration is refused, and nothing is touched
        return (Vec::new(), Some(pair));
    }
    let of_pair = runs.into_iter().filter(|(known, _)| known.is_this_pair);
    let journals: Vec<PathBuf> = of_pair.map(|(_, found)| found.info.path).rev().collect();
    let reached = journals.is_empty().then_some(pair);
    (journals, reached)
}
