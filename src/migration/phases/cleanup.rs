//! How a run ends: cleans up after a guest that moved, goes back to the source, or says what is not known.

use crate::migration::{
    Effect, Failure,
    engine::{Attempt, Context},
    record::{Ended, Record},
    way_back::rollback::{QUIT, QemuPair, RolledBack, remove_socket, roll_back, unseen},
    work_order::Route,
};
use crate::{
    convergence::DiskEstimate,
    handover::ownership::BeforeContinue,
    memory::{apply, postcopy::PostcopyError},
    progress::{DiskOutcome, Ending, Mark, Outcome, Phase, Reason, RunsOn, Side, describe},
    qemu::{
        Process, ProcessError,
        reply::{MigrationStatus, RunState},
    },
    storage::{layout::Pair, mirror},
};
use qapi::qmp;
use std::pin::Pin;
use tokio::time::timeout;

/// What a side says, in time.
type Answer<'p, T> = Pin<Box<dyn Future<Output = Result<T, ProcessError>> + Send + 'p>>;

/// The end of a run, without its figures.
pub(crate) struct End {
    pub(crate) ending: Ending,
    pub(crate) runs_on: RunsOn,
    pub(crate) failure: Option<Reason>,
}

impl Context {
    /// Notes the end, and tells it.
    pub(crate) async fn conclude(&self, route: &Route, end: End, course: Attempt) -> Outcome {
        let outcome = self.outcome(route, end, &course);
        let ended = Ended {
            outcome: outcome.outcome,
            runs_on: outcome.runs_on,
            reason: outcome.reason.clone(),
            leftovers: outcome.leftovers.clone(),
        };
        course.log.end(ended, &self.report).await;
        outcome
    }

    /// The guest is on the destination: waits for what postcopy has to fetch yet, then cleans up.
    pub(crate) async fn complete(&self, sides: &QemuPair, route: &Route, course: &mut Attempt) -> End {
        if course.ram.postcopy {
            let fetched = self.report.during(Phase::Postcopy, self.fetch(sides, route, course)).await;
            if let Err(failure) = fetched {
                let runs_on = match failure {
                    Failure::Postcopy(PostcopyError::DestinationGone(_)) => RunsOn::Unknown,
                    _ => RunsOn::Destination,
                };
                return End { ending: Ending::Undetermined, runs_on, failure: Some(failure.reason()) };
            }
        }
        self.report.during(Phase::Cleanup, self.tidy(sides, route, course)).await
    }

    /// Removes what was made, from both sides, and quits the source: unless the destination is lost by now, when the
    /// source's is the only state that is known to be there.
    async fn tidy(&self, sides: &QemuPair, route: &Route, course: &mut Attempt) -> End {
        let source = &sides.source;
        let asked = self.insist(sides, Side::Destination, |side| Box::pin(side.ask(&qmp::query_status {}))).await;
        let run = match asked {
            Ok(answer) => answer.status,
            Err(error) => return undetermined(&error.into(), NOT_PROVED),
        };
        if sides.was_running && run != RunState::Running {
            self.report.warn("guest-state", format!("the guest moved and is now {run}"));
        }
        if let Ok(migration) = source.ask(&qmp::query_migrate {}).await {
            course.downtime = migration.downtime;
            crate::memory::sample::fold(&mut course.ram, &migration);
        }
        let mut problems = Vec::new();
        if self.settings.keep_source {
            problems.extend(mirror::dismiss(source, &route.pairs).await.err());
        } else {
            let quit = self.insist(sides, Side::Source, |source| Box::pin(source.act(&qmp::quit {}))).await;
            if timeout(QUIT, source.ended()).await.is_err() {
                problems.extend(quit.err());
                course.leftovers.push(format!("{}: its process, with the guest as it was", source.name()));
                self.report.warn("source-not-gone", format!("{} was told to quit and has not", source.name()));
            }
        }
        for effect in course.log.effects().iter().rev() {
            match effect {
                Effect::SocketFile(path) => remove_socket(path, &mut course.leftovers),
                Effect::Tuned { side: Side::Source, .. } if !self.settings.keep_source => {}
                Effect::Tuned { side, before } => {
                    let restored = self.insist(sides, *side, |process| {
                        let before = before.clone();
                        Box::pin(async move { apply::restore(process, &before).await })
                    });
                    if let Err(error) = restored.await {
                        if !sides.side(*side).has_ended().await {
                            course.leftovers.extend(unseen(sides, effect, &error));
                        }
                        problems.push(error);
                    }
                }
                _ => {}
            }
        }
        for problem in problems {
            self.report.warn("cleanup", describe(&problem));
        }
        End { ending: Ending::Moved, runs_on: RunsOn::Destination, failure: None }
    }

    /// Has something asked of a side, and once more over another connection where the first did not bring an answer.
    async fn insist<T>(
        &self,
        sides: &QemuPair,
        side: Side,
        ask: impl for<'p> Fn(&'p Process) -> Answer<'p, T>,
    ) -> Result<T, ProcessError> {
        match ask(sides.side(side)).await {
            Err(error) => match self.other(sides, side).await {
                Some(process) => ask(&process).await,
                None => Err(error),
            },
            answer => answer,
        }
    }

    /// Goes back to the source. Before `migrate-continue` the guest is resumed there; after it, a verdict has found the guest
    /// on the source as it is to be.
    pub(crate) async fn retreat(
        &self,
        sides: &QemuPair,
        route: &Route,
        failure: &Failure,
        course: &mut Attempt,
    ) -> End {
        let before_continue = course.before_continue.take();
        let may_resume = before_continue.as_ref().map(BeforeContinue::destination_cannot_run);
        // what was asked for has not come about
        course.ram.postcopy = is_postcopy(sides);
        let mut reason = failure.reason();
        self.report.action("roll-back", reason.message.clone());
        if course.given && may_resume.is_some() {
            course.log.tell(Record::Kept, &self.report).await;
        }
        // what does not answer now would hold up the way back, too: the guest's own return waits for its disks
        if may_resume.is_some() && (failure.is_silence() || sides.source.is_silent()) {
            self.free(sides, route).await;
        }
        let effects = course.log.effects();
        let listened = effects.contains(&Effect::Incoming) && !sides.destination.is_gone();
        let mirrored = effects.iter().any(|effect| matches!(effect, Effect::Mirror(_)));
        let rolled_back = roll_back(sides, &route.pairs, &mut course.log, may_resume, &self.report);
        let RolledBack { as_before, leftovers } = self.report.during(Phase::Cleanup, rolled_back).await;
        course.leftovers.extend(leftovers);
        let seen = sides.source.observed();
        if let Some(resumed) = seen.resumed.filter(|_| seen.runs_again()) {
            // it stood still, if only to go on where it was
            course.ledger.mark(Mark::Resume, resumed);
        }
        let ending = match (as_before, failure) {
            (true, Failure::RuntimeDir { .. }) => Ending::Refused,
            (false, _) => Ending::Undetermined,
            (true, _) if !course.leftovers.is_empty() => Ending::Stuck,
            (true, Failure::Cancelled) => Ending::Cancelled,
            (true, _) => Ending::RolledBack,
        };
        if mirrored && ending != Ending::Undetermined {
            reason
                .message
                .push_str("; the destination's images hold a part of the disks: make them anew before another try");
        }
        if listened && sides.destination.is_gone() {
            reason
                .message
                .push_str("; a QEMU takes one incoming migration, so the destination has been ended: start it anew");
        }
        let runs_on = if as_before { RunsOn::Source } else { RunsOn::Unknown };
        End { ending, runs_on, failure: Some(reason) }
    }

    pub(crate) fn outcome(&self, route: &Route, end: End, course: &Attempt) -> Outcome {
        let (ledger, blackout_ms) = course.ledger.spans().map_or((Vec::new(), None), |(spans, ms)| (spans, Some(ms)));
        let known = course.history.as_ref().map(|history| history.estimates().disks).unwrap_or_default();
        let latency = |pair: &Pair, of: fn(&DiskEstimate) -> Option<f64>| {
            known.get(pair.source.name()).and_then(of).map(|ms| (ms * 1000.0).round() as u64)
        };
        let disk = |pair: &Pair| DiskOutcome {
            source: pair.source.name().to_owned(),
            destination: pair.destination.name().to_owned(),
            bytes_copied: course.copied.get(&pair.names.job).copied().unwrap_or(0),
            virtual_size: pair.source.virtual_size,
            mode: pair.mode.as_str(),
            write_latency_us: latency(pair, |disk| disk.latency_before),
            write_blocking_latency_us: latency(pair, |disk| disk.latency_since),
        };
        Outcome {
            outcome: end.ending,
            runs_on: end.runs_on,
            reason: end.failure,
            total_ms: self.report.elapsed_ms(),
            ledger_clock: blackout_ms.map(|_| course.ledger.clock()),
            blackout_ms,
            qemu_downtime_ms: course.downtime,
            ledger,
            disks: route.pairs.iter().map(disk).collect(),
            ram: course.ram.clone(),
            predicted: course.predicted.clone(),
            leftovers: course.leftovers.clone(),
        }
    }
}

/// What is to be done by hand where nothing is proved.
const NOT_PROVED: &str =
    "neither side is proved to have the guest: ask both with query-status before you send cont to one";

/// Whether the source has been in postcopy.
pub(crate) fn is_postcopy(sides: &QemuPair) -> bool {
    sides.source.observed().migration.keys().any(MigrationStatus::is_postcopy)
}

/// The end where nothing is proved, and nothing more is done.
pub(crate) fn undetermined(failure: &Failure, advice: &str) -> End {
    let mut reason = failure.reason();
    reason.message = format!("{}; {advice}", reason.message);
    End { ending: Ending::Undetermined, runs_on: RunsOn::Unknown, failure: Some(reason) }
}
