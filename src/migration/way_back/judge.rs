//! Finds out which side has the guest after a handover that failed, and brings about what is proved to be safe.
//!
//! The protocol is [`Judgement`]'s: this file looks, does and records what the judgement asks for, and decides nothing.
//! A step on one side must never be taken while the other side is not proved to be out of the way.

use super::{
    destination::{has_made_requests, has_run},
    fence::{consents, fence, find_fences, yank},
    reconnect::{is_cut, reach_again},
    sighting::{gave_up, is_followed, look},
};
use crate::{
    handover::{
        exchange,
        judgement::{Judgement, JudgementStep, OUT_OF_TIME, PairSighting, RecordedHandover, SideSighting, StepOutcome},
        ownership::{DestinationCannotRun, SourceCannotRun},
        verdict::{ContKnowledge, HandoverVerdict},
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
    qemu::{
        Process, ProcessError,
        reply::{MigrationStatus, RunState},
    },
};
use qapi::qmp;
use std::{
    convert::Infallible,
    future::pending,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// How long a source whose migration failed may take to say so and to resume.
const AFTERMATH: Duration = Duration::from_secs(1);
/// The least time that a judgement gets: as much as one that comes late needs to look at both sides and do one thing.
const LEAST: Duration = Duration::from_secs(4);

/// What a person must do where the journal does not take `Starting`.
const UNWRITTEN: &str = "the destination has the whole guest and waits, and was not started, since a later recovery would \
     not know that the guest may have run there: make room on the journal's disk, or copy the journal to a disk that can \
     be written, and run qferry recover with it";

/// How long a `cont` is sent again that the destination refuses, while the source could take the guest back: somebody
/// may hold the lock of an image for a moment.
const RETRIES: Duration = Duration::from_secs(1);
/// The pause before the second look at what may change by itself; each later pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest of those pauses.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

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
    if matches!(given, Some(ContKnowledge::Never | ContKnowledge::Refused)) && !has_run(&pair.destination).await {
        // The record is on its way, and nothing waits for it: a later engine that does not find it knows less.
        drop(attempt.log.write(Record::NotStarted));
    }
    let missed_events = reach_again(context, pair).await;
    context.report.warn("handover-failed", describe(&failure));
    let Some(cont) = given else { return Whereabouts::OnSource(failure) };
    let mut judgement = Judgement::begin(attempt.guest.wants_running(), cont, find_fences(context, pair, false));
    if missed_events {
        judgement.lose_track_of_source();
    }
    find_guest(context, pair, route, judgement, failure, attempt).await
}

/// The same for the handover of an engine that died, from its journal. `is_asked_for`: see [`consents`].
pub(crate) async fn judge_recorded_handover(
    context: &Context,
    pair: &mut QemuPair,
    route: &Route,
    failure: Failure,
    (recorded, is_asked_for): (RecordedHandover<DestinationCannotRun>, bool),
    attempt: &mut Attempt,
) -> Whereabouts {
    let is_open = matches!(recorded, RecordedHandover::Given { cont: ContKnowledge::NotByEngine });
    let is_vouched_for = is_open && consents(context, &pair.destination, is_asked_for).await;
    let fences = find_fences(context, pair, is_vouched_for);
    let mut judgement = Judgement::take_up(attempt.guest.wants_running(), recorded, fences);
    if is_vouched_for {
        judgement.note_consent();
    }
    find_guest(context, pair, route, judgement, failure, attempt).await
}

/// Judges, and notes what the verdict says of the run.
async fn find_guest(
    context: &Context,
    pair: &mut QemuPair,
    route: &Route,
    mut judgement: Judgement,
    failure: Failure,
    attempt: &mut Attempt,
) -> Whereabouts {
    let log = &attempt.log;
    let mut judge = Judge::begin(context, pair, route, attempt);
    let verdict = loop {
        match judge.take_steps(pair, &mut judgement, log).await {
            Pause::End(verdict) => break verdict,
            Pause::Reconnect => judge.reconnect(pair, &mut judgement).await,
        }
    };
    if judgement.must_tell_not_started() {
        log.tell(Record::NotStarted, &context.report).await;
    }
    if judgement.must_tell_started() {
        log.tell(Record::Starting, &context.report).await;
    }
    match verdict {
        HandoverVerdict::OnDestination => {
            if let Some(resumed) = pair.destination.observed().resumed {
                attempt.ledger.mark(LedgerMark::Resume, resumed);
            }
            attempt.ram.postcopy |= pair.has_been_in_postcopy() || may_lack_pages(pair).await;
            Whereabouts::OnDestination
        }
        HandoverVerdict::OnSource => Whereabouts::OnSource(failure),
        HandoverVerdict::Ended => Whereabouts::Nowhere(failure),
        HandoverVerdict::Undetermined(advice) => {
            attempt.ram.postcopy = pair.has_been_in_postcopy();
            let advice = match judge.unwritten {
                Some(unwritten) if advice == UNWRITTEN => format!("{unwritten}; {advice}"),
                _ => advice.to_owned(),
            };
            Whereabouts::Unknown { failure, advice }
        }
        // the judgement itself acts on all others
        _ => Whereabouts::Unknown { failure, advice: NOT_PROVED.to_owned() },
    }
}

/// Where the judging stops.
enum Pause {
    /// There is nothing more to be done.
    End(HandoverVerdict),
    /// A monitor that has closed is to be dialled again, before the next look.
    Reconnect,
}

/// Carries a [`Judgement`] out on the two QEMUs.
struct Judge<'a> {
    context: &'a Context,
    route: &'a Route,
    guest: GuestIntent,
    /// When the time for the switchover is over.
    over: Instant,
    /// Until when a refused `cont` is sent again.
    retries_until: Instant,
    /// The pause before the next look at what has not changed.
    pause: Duration,
    /// The verdict whose step was carried out last.
    carried_out: Option<HandoverVerdict>,
    /// What is to be said where the time is over.
    undetermined: HandoverVerdict,
    /// The first error of the journal that kept `cont` from being sent to the destination.
    unwritten: Option<String>,
    /// The source's monitor closed while its process lived on.
    source_cut: AtomicBool,
    /// The sides were given the time to say how their migration ended.
    settled: bool,
    /// Another engine began the handover, and nobody has followed the destination since that engine's end.
    recovers: bool,
}

impl<'a> Judge<'a> {
    fn begin(context: &'a Context, pair: &QemuPair, route: &'a Route, attempt: &Attempt) -> Self {
        let time = deadlines::left(context, &pair.source, &attempt.guest, 1.0).max(LEAST);
        let now = Instant::now();
        Self {
            context,
            route,
            guest: attempt.guest.clone(),
            over: now + time,
            retries_until: now + RETRIES.min(time / 4),
            pause: FIRST_PAUSE,
            carried_out: None,
            undetermined: HandoverVerdict::Undetermined(OUT_OF_TIME),
            unwritten: None,
            source_cut: AtomicBool::new(false),
            settled: false,
            recovers: !attempt.destination_followed,
        }
    }

    fn time_left(&self) -> Duration {
        self.over.saturating_duration_since(Instant::now())
    }

    /// Dials a monitor again that has closed: whoever held it may be gone, or the network may be back.
    async fn reconnect(&mut self, pair: &mut QemuPair, judgement: &mut Judgement) {
        let left = self.time_left();
        if matches!(timeout(left, reach_again(self.context, pair)).await, Ok(true)) {
            judgement.lose_track_of_source();
        }
        if !pair.source.is_gone() {
            self.source_cut.store(false, Ordering::Relaxed);
        }
        judgement.look_again();
    }

    /// Finds out which side has the guest, and brings about what is proved to be safe, for as long as the switchover
    /// may take.
    async fn take_steps(&mut self, pair: &QemuPair, judgement: &mut Judgement, log: &IntentLog) -> Pause {
        let source_cut = std::mem::take(&mut self.source_cut);
        let pause = tokio::select! {
            never = notice_cut(&pair.source, &source_cut) => match never {},
            pause = self.follow(pair, judgement, &source_cut, log) => pause,
        };
        self.source_cut = source_cut;
        pause
    }

    async fn follow(
        &mut self,
        pair: &QemuPair,
        judgement: &mut Judgement,
        source_cut: &AtomicBool,
        log: &IntentLog,
    ) -> Pause {
        if !std::mem::replace(&mut self.settled, true) {
            settle_down(&pair.source, self.guest.wants_running()).await;
        }
        loop {
            let left = self.time_left();
            let in_time = match judgement.next_step() {
                JudgementStep::End(verdict) => return Pause::End(verdict),
                // A record has a deadline of its own, and is due also where the time is over.
                JudgementStep::RecordResuming => {
                    log.tell(Record::Resuming, &self.context.report).await;
                    judgement.confirm_recorded();
                    continue;
                }
                JudgementStep::RecordStarting => {
                    match log.write_in_time(Record::Starting).await {
                        Ok(()) => judgement.confirm_starting(),
                        Err(failure) => {
                            let why = describe(&failure);
                            self.context.report.warn("journal", why.clone());
                            // The errors after the first only say that there was one.
                            self.unwritten.get_or_insert(why);
                            self.undetermined = HandoverVerdict::Undetermined(UNWRITTEN);
                            judgement.take_outcome(StepOutcome::ContSent { refused: true });
                            if !self.let_time_pass().await {
                                return Pause::End(self.undetermined);
                            }
                        }
                    }
                    continue;
                }
                JudgementStep::Wait(verdict) => {
                    self.undetermined = verdict;
                    if !self.let_time_pass().await {
                        return Pause::End(verdict);
                    }
                    if pair.source.may_be_reached_again() || pair.destination.may_be_reached_again() {
                        return Pause::Reconnect;
                    }
                    judgement.look_again();
                    continue;
                }
                JudgementStep::LookAtBoth => timeout(left, self.look_at_both(pair, judgement, source_cut)).await,
                JudgementStep::CarryOut(verdict) => {
                    let step = self.carry_out(pair, judgement, verdict, source_cut);
                    let in_time = match verdict {
                        // A fence has a deadline of its own, and what it allows takes time after it.
                        HandoverVerdict::FenceSource | HandoverVerdict::FenceDestination => {
                            step.await;
                            self.over = self.over.max(Instant::now() + LEAST);
                            Ok(())
                        }
                        _ => timeout(left, step).await,
                    };
                    // A step that is due again did not do what it was to do.
                    if self.carried_out.replace(verdict) == Some(verdict) && !self.let_time_pass().await {
                        return Pause::End(self.undetermined);
                    }
                    in_time
                }
            };
            if in_time.is_err() {
                return Pause::End(self.undetermined);
            }
        }
    }

    /// Lets a little time pass, more each time; false where none is left.
    async fn let_time_pass(&mut self) -> bool {
        let pause = self.pause;
        if self.time_left() <= pause {
            return false;
        }
        sleep(pause).await;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        true
    }

    /// Looks at both sides once, at the same time, for a guest may stand still.
    async fn look_at_both(&self, pair: &QemuPair, judgement: &mut Judgement, source_cut: &AtomicBool) {
        let QemuPair { source, destination } = pair;
        let ended = (judgement.source_ended().is_some(), judgement.destination_ended().is_some());
        let (seen_source, seen_destination) = tokio::join!(look(source, ended.0), look(destination, ended.1));
        let seen_source = if is_followed(source) { seen_source.forget_migration() } else { seen_source };
        let unheard = matches!(seen_source, SideSighting::Silent | SideSighting::Hung);
        let mut sighting = ProvedSighting {
            source: seen_source.and_prove(SourceCannotRun::of_ended_process),
            destination: seen_destination.and_prove(DestinationCannotRun::of_ended_process),
            // A source begins another migration only once the last one is over.
            source_gave_up: gave_up(&source.observed()) || is_followed(source),
            source_cut: (unheard && source.is_gone()) || source_cut.load(Ordering::Relaxed),
            retries_cont: Instant::now() < self.retries_until,
        };
        let ran = match &sighting.destination {
            // Somebody's `cont` makes a destination run as soon as it has everything.
            _ if has_run(destination).await => Some(true),
            SideSighting::Answered { run: RunState::Running, migration: MigrationStatus::Completed } => Some(true),
            SideSighting::Answered { run, .. } if self.recovers && !run.is_live() && *run != RunState::InMigrate => {
                has_made_requests(destination).await
            }
            _ => Some(false),
        };
        match ran {
            Some(true) => judgement.note_ran(),
            Some(false) => {}
            None => sighting.destination = SideSighting::Silent,
        }
        let (facts, verdict) = judgement.see(sighting);
        self.context.report.action("judge-handover", format!("{facts:?}: {verdict:?}"));
    }

    async fn carry_out(
        &self,
        pair: &QemuPair,
        judgement: &mut Judgement,
        verdict: HandoverVerdict,
        source_cut: &AtomicBool,
    ) {
        if is_followed(&pair.source) && judgement.source_ended().is_none() {
            // What the last look found is not so any more.
            return judgement.look_again();
        }
        let outcome = self.try_step(pair, judgement, verdict, source_cut).await.unwrap_or_else(|error| {
            self.context.report.warn("handover-failed", describe(&error));
            StepOutcome::NothingProved
        });
        judgement.take_outcome(outcome);
    }

    async fn try_step(
        &self,
        pair: &QemuPair,
        judgement: &Judgement,
        verdict: HandoverVerdict,
        source_cut: &AtomicBool,
    ) -> Result<ProvedOutcome, ProcessError> {
        let QemuPair { source, destination } = pair;
        let proved = match verdict {
            HandoverVerdict::OnDestination
            | HandoverVerdict::OnSource
            | HandoverVerdict::Ended
            | HandoverVerdict::Undetermined(_) => None,
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
                if let Some(proof) = judgement.destination_ended() {
                    exchange::resume_source(source, proof).await?;
                }
                None
            }
            HandoverVerdict::CancelMigration => {
                precopy::cancel(source).await?;
                None
            }
            HandoverVerdict::StartDestination => self.start_destination(pair, judgement).await?,
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
    async fn start_destination(
        &self,
        pair: &QemuPair,
        judgement: &Judgement,
    ) -> Result<Option<ProvedOutcome>, ProcessError> {
        let QemuPair { source, destination } = pair;
        let arrived = match judgement.source_ended() {
            Some(ended) => Some(exchange::prove_outlived(ended)),
            None => exchange::prove_settled(source, destination).await?,
        };
        let Some(arrived) = arrived else { return Ok(None) };
        let limit = self.time_left();
        let started = exchange::start_guest(destination, arrived, Instant::now() + limit).await;
        let refused = match started {
            Ok(_) => false,
            Err(error) => {
                self.context.report.warn("handover-failed", describe(&error));
                exchange::had_no_effect(destination, &error).await
            }
        };
        Ok(Some(StepOutcome::ContSent { refused }))
    }
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
