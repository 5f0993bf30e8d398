//! Finds out which side has the guest after a handover that failed, and brings about what is proved to be safe.
//!
//! The protocol is [`Judgement`]'s: this file looks, does and records what the judgement asks for, and decides nothing.
//! A step on one side must never be taken while the other side is not proved to be out of the way.

use super::{
    fence::{fence, yank},
    reconnect::{is_cut, reach_again},
};
use crate::{
    handover::{
        exchange,
        judgement::{Judgement, JudgementStep, OUT_OF_TIME, PairSighting, RecordedHandover, SideSighting, StepOutcome},
        ownership::{DestinationCannotRun, ProcessEnded, SourceCannotRun},
        verdict::{ContKnowledge, HandoverVerdict, UsableFences},
    },
    memory::precopy,
    migration::{
        Failure,
        attempt::{Attempt, HandoverFailure},
        context::Context,
        deadlines,
        ending::{NOT_PROVED, Whereabouts},
        guest::GuestIntent,
        intents::IntentLog,
        pair::QemuPair,
        record::Record,
        work_order::Route,
    },
    progress::{LedgerMark, describe},
    qemu::{Observed, Process, ProcessError, reply::MigrationStatus},
};
use qapi::qmp;
use std::{
    convert::Infallible,
    future::pending,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{
    time::{Instant, sleep, timeout},
    try_join,
};

/// How long a source whose migration failed may take to say so and to resume.
const AFTERMATH: Duration = Duration::from_secs(1);
/// The least time that a judgement gets: as much as one that comes late needs to look at both sides and do one thing.
const LEAST: Duration = Duration::from_secs(4);

/// A sighting and an outcome of this engine's, with the proofs that only QEMU, the kernel or a fence can give.
type ProvedSighting = PairSighting<SourceCannotRun, DestinationCannotRun>;
type ProvedOutcome = StepOutcome<SourceCannotRun, DestinationCannotRun>;

/// Finds out what a failed handover means: nothing, where `migrate-continue` had no effect; else a judgement tells
/// which side has the guest.
pub(crate) async fn judge_failed_handover(
    context: &Context,
    pair: &mut QemuPair,
    route: &Route,
    HandoverFailure { failure, given }: HandoverFailure,
    attempt: &mut Attempt,
) -> Whereabouts {
    let missed_events = reach_again(context, pair).await;
    context.report.warn("handover-failed", describe(&failure));
    let Some(cont) = given else { return Whereabouts::OnSource(failure) };
    let judge = Judge::begin(context, pair, route, attempt.guest.clone(), cont, !missed_events);
    judge.find_guest(failure, attempt).await
}

/// The same for the handover of an engine that died, from its journal.
pub(crate) async fn judge_recorded_handover(
    context: &Context,
    pair: &QemuPair,
    route: &Route,
    failure: Failure,
    recorded: RecordedHandover<DestinationCannotRun>,
    attempt: &mut Attempt,
) -> Whereabouts {
    Judge::take_up(context, pair, route, attempt.guest.clone(), recorded).find_guest(failure, attempt).await
}

/// Carries a [`Judgement`] out on the two QEMUs.
struct Judge<'a> {
    context: &'a Context,
    pair: &'a QemuPair,
    route: &'a Route,
    guest: GuestIntent,
    judgement: Judgement,
}

impl<'a> Judge<'a> {
    /// For a handover of this engine's own, with what is known of its `cont`. `followed` says that the source's events
    /// were followed since the guest was stopped.
    fn begin(
        context: &'a Context,
        pair: &'a QemuPair,
        route: &'a Route,
        guest: GuestIntent,
        cont: ContKnowledge,
        followed: bool,
    ) -> Self {
        let mut judgement = Judgement::begin(guest.wants_running(), cont, find_fences(context, pair));
        if !followed {
            judgement.lose_track_of_source();
        }
        Self { context, pair, route, guest, judgement }
    }

    /// For the handover of an engine that died, from its journal.
    fn take_up(
        context: &'a Context,
        pair: &'a QemuPair,
        route: &'a Route,
        guest: GuestIntent,
        recorded: RecordedHandover<DestinationCannotRun>,
    ) -> Self {
        let judgement = Judgement::take_up(guest.wants_running(), recorded, find_fences(context, pair));
        Self { context, pair, route, guest, judgement }
    }

    /// Judges, and notes what the verdict says of the run.
    async fn find_guest(self, failure: Failure, attempt: &mut Attempt) -> Whereabouts {
        let pair = self.pair;
        match self.judge(&attempt.log).await {
            HandoverVerdict::OnDestination => {
                if let Some(resumed) = pair.destination.observed().resumed {
                    attempt.ledger.mark(LedgerMark::Resume, resumed);
                }
                attempt.ram.postcopy |= pair.has_been_in_postcopy() || may_lack_pages(pair).await;
                Whereabouts::OnDestination
            }
            HandoverVerdict::OnSource => Whereabouts::OnSource(failure),
            HandoverVerdict::Undetermined(advice) => {
                attempt.ram.postcopy = pair.has_been_in_postcopy();
                Whereabouts::Unknown { failure, advice }
            }
            // the judgement itself acts on all others
            _ => Whereabouts::Unknown { failure, advice: NOT_PROVED },
        }
    }

    /// Finds out which side has the guest, and brings about what is proved to be safe, for as long as the switchover
    /// may take.
    async fn judge(self, log: &IntentLog) -> HandoverVerdict {
        let (source, source_cut) = (&self.pair.source, AtomicBool::new(false));
        tokio::select! {
            never = notice_cut(source, &source_cut) => match never {},
            verdict = self.take_steps(&source_cut, log) => verdict,
        }
    }

    /// What is left of the time that the switchover may take.
    fn time_left(&self) -> Duration {
        deadlines::left(self.context, &self.pair.source, &self.guest, 1.0).max(LEAST)
    }

    async fn take_steps(mut self, source_cut: &AtomicBool, log: &IntentLog) -> HandoverVerdict {
        let over = Instant::now() + self.time_left();
        settle_down(&self.pair.source, self.guest.wants_running()).await;
        loop {
            let left = over.saturating_duration_since(Instant::now());
            let in_time = match self.judgement.next_step() {
                JudgementStep::End(verdict) => return verdict,
                // A record has a deadline of its own, and is due also where the time is over.
                JudgementStep::RecordResuming => {
                    log.tell(Record::Resuming, &self.context.report).await;
                    self.judgement.confirm_recorded();
                    continue;
                }
                JudgementStep::LookAtBoth => timeout(left, self.look_at_both(source_cut)).await,
                JudgementStep::CarryOut(verdict) => timeout(left, self.carry_out(verdict, source_cut)).await,
            };
            if in_time.is_err() {
                return HandoverVerdict::Undetermined(OUT_OF_TIME);
            }
        }
    }

    /// Looks at both sides once, at the same time, for a guest may stand still.
    async fn look_at_both(&mut self, source_cut: &AtomicBool) {
        let QemuPair { source, destination } = self.pair;
        let ended = (self.judgement.source_ended().is_some(), self.judgement.destination_ended().is_some());
        let (seen_source, seen_destination) = tokio::join!(look(source, ended.0), look(destination, ended.1));
        let unheard = matches!(seen_source, SideSighting::Silent | SideSighting::Hung);
        let sighting = ProvedSighting {
            source: seen_source.and_prove(SourceCannotRun::of_ended_process),
            destination: seen_destination.and_prove(DestinationCannotRun::of_ended_process),
            source_gave_up: gave_up(&source.observed()),
            source_cut: (unheard && source.is_gone()) || source_cut.load(Ordering::Relaxed),
        };
        let (facts, verdict) = self.judgement.see(sighting);
        self.context.report.action("judge-handover", format!("{facts:?}: {verdict:?}"));
    }

    async fn carry_out(&mut self, verdict: HandoverVerdict, source_cut: &AtomicBool) {
        let outcome = self.try_step(verdict, source_cut).await.unwrap_or_else(|error| {
            self.context.report.warn("handover-failed", describe(&error));
            StepOutcome::NothingProved
        });
        self.judgement.take_outcome(outcome);
    }

    async fn try_step(&self, verdict: HandoverVerdict, source_cut: &AtomicBool) -> Result<ProvedOutcome, ProcessError> {
        let QemuPair { source, destination } = self.pair;
        let proved = match verdict {
            HandoverVerdict::OnDestination | HandoverVerdict::OnSource | HandoverVerdict::Undetermined(_) => None,
            HandoverVerdict::QuitDestination => {
                // A destination that freezes now is fenced after the next look.
                let quit = timeout(AFTERMATH, exchange::quit_destination(destination)).await;
                let ended = match quit {
                    Ok(Ok(proof)) => Some(proof),
                    _ => exchange::prove_ended(destination, AFTERMATH)
                        .await
                        .and_then(DestinationCannotRun::of_ended_process),
                };
                ended.map(StepOutcome::DestinationEnded)
            }
            HandoverVerdict::ResumeSource => {
                if let Some(proof) = self.judgement.destination_ended() {
                    exchange::resume_source(source, proof).await?;
                }
                None
            }
            HandoverVerdict::CancelMigration => {
                precopy::cancel(source).await?;
                None
            }
            HandoverVerdict::StartDestination => self.start_destination().await?,
            HandoverVerdict::FenceDestination => {
                let because = "it does not answer, and must not run the guest that the source takes back";
                let fenced = fence(self.context, destination, because).await;
                fenced.and_then(DestinationCannotRun::of_fence).map(StepOutcome::DestinationEnded)
            }
            HandoverVerdict::FenceSource => {
                let because = "it does not answer, and must not run the guest that the destination has";
                // The fence closes the monitor too, so this is asked before.
                let after_cut = is_cut(source).await || source_cut.load(Ordering::Relaxed);
                let fenced = fence(self.context, source, because).await;
                fenced.and_then(SourceCannotRun::of_fence).map(|proof| StepOutcome::SourceEnded { proof, after_cut })
            }
            HandoverVerdict::FreeSource => {
                yank(self.context, source, self.route).await;
                None
            }
        };
        Ok(proved.unwrap_or(StepOutcome::NothingProved))
    }

    /// Starts the guest on the destination, where the proof for it can still be had.
    async fn start_destination(&self) -> Result<Option<ProvedOutcome>, ProcessError> {
        let QemuPair { source, destination } = self.pair;
        let arrived = match self.judgement.source_ended() {
            Some(ended) => Some(exchange::prove_outlived(ended)),
            None => exchange::prove_settled(source, destination).await?,
        };
        let Some(arrived) = arrived else { return Ok(None) };
        let limit = self.time_left();
        let started = exchange::start_guest(destination, arrived, Instant::now() + limit).await;
        let refused = started.as_ref().is_err_and(ProcessError::is_refusal);
        if let Err(error) = started {
            self.context.report.warn("handover-failed", describe(&error));
        }
        Ok(Some(StepOutcome::ContSent { refused }))
    }
}

/// The sides that can be fenced: processes of this host, and with a fence command any.
fn find_fences(context: &Context, pair: &QemuPair) -> UsableFences {
    let can = |process: &Process| process.peer().is_some() || context.settings.fence_command.is_some();
    UsableFences { source: can(&pair.source), destination: can(&pair.destination) }
}

/// Notices that the source's monitor closes while its process lives on: later events are missed, also where the process
/// ends before the next look.
async fn notice_cut(source: &Process, source_cut: &AtomicBool) -> Infallible {
    source.gone().await;
    source_cut.store(is_cut(source).await, Ordering::Relaxed);
    pending().await
}

/// Whether the destination may lack pages yet. The events of postcopy may have been another engine's to see. A source
/// that says nothing may still have pages, or have taken them with it: then the destination alone can say that it has
/// all.
async fn may_lack_pages(pair: &QemuPair) -> bool {
    for side in [&pair.source, &pair.destination] {
        let answer = side.ask(&qmp::query_migrate {}).await;
        if let Some(status) = answer.ok().and_then(|answer| answer.status) {
            return status.is_postcopy();
        }
    }
    true
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

/// Whether a source has given its migration up after it stopped the guest: QEMU then resumes the guest by itself.
fn gave_up(seen: &Observed) -> bool {
    seen.runs_again() || [MigrationStatus::Failed, MigrationStatus::Cancelled].iter().any(|s| seen.entered(s).is_some())
}

/// Looks at one side; a side whose end is proved is not asked again.
async fn look(process: &Process, ended: bool) -> SideSighting<ProcessEnded> {
    if ended {
        return SideSighting::Silent;
    }
    let asked = async {
        match try_join!(process.ask(&qmp::query_status {}), process.ask(&qmp::query_migrate {})) {
            Ok(answers) => answers,
            Err(_) => pending().await,
        }
    };
    let died = async {
        match exchange::prove_ended(process, AFTERMATH).await {
            Some(ended) => ended,
            None => pending().await,
        }
    };
    let hangs = async { tokio::join!(process.answers_out_of_band(), sleep(AFTERMATH)).0 };
    // The three questions run at the same time, for a guest may stand still.
    tokio::select! {
        biased;
        (status, migration) = asked => {
            let migration = migration.status.unwrap_or(MigrationStatus::None);
            SideSighting::Answered { run: status.status, migration }
        }
        ended = died => SideSighting::Ended(ended),
        hangs = hangs => if hangs { SideSighting::Hung } else { SideSighting::Silent },
    }
}
