//! The protocol that follows a handover that failed: everything that is remembered between two looks at both sides, and
//! the next step.
//!
//! Pure. A driver looks, writes and sends; the [`Judgement`] names the next step and takes in its outcome. Three
//! drivers use this one type: the engine after its own handover, `qferry recover` from the journal of an engine that
//! died, and the model in `integration/handover/`, which explores every fault in every order. Both proofs are type
//! parameters: the engine fills in the sealed types of [`super::ownership`], so that no `Judgement` of an engine can
//! hold a proof that nobody made, and the model fills in `()`.
//!
//! A `Judgement` must never let the source go on before `Resuming` is in the journal, and must never take a side for
//! dead without holding the proof.

use super::{
    ownership::{DestinationCannotRun, SourceCannotRun},
    verdict::{self, ContKnowledge, HandoverFacts, HandoverVerdict, SideState, UsableFences},
};
use crate::qemu::reply::{MigrationStatus, RunState};

/// What a person must find out where a judgement ran out of time.
pub const OUT_OF_TIME: &str = "the time for the switchover was over before it was proved which side has the guest: \
     ask both with query-status before you send cont to either, or run qferry recover";

/// How one side answered a look; `P` is the proof that the side cannot run the guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SideSighting<P> {
    /// QEMU answered.
    Answered {
        /// QEMU's run state.
        run: RunState,
        /// The status of the migration, as this side reports it.
        migration: MigrationStatus,
    },
    /// QEMU answered out of band only: its main loop hangs.
    Hung,
    /// QEMU did not answer, or was not asked because its end is proved already.
    Silent,
    /// The side is proved unable to run the guest.
    Ended(P),
}

impl<P> SideSighting<P> {
    /// The same of a source where another client has begun a migration since: that source knows of this run's as little
    /// as another QEMU does.
    pub fn forget_migration(self) -> Self {
        match self {
            Self::Answered { run, .. } => Self::Answered { run, migration: MigrationStatus::None },
            other => other,
        }
    }

    /// The same sighting with the proof that follows from this one; an end that does not prove anything is silence.
    pub(crate) fn and_prove<Q>(self, prove: impl FnOnce(P) -> Option<Q>) -> SideSighting<Q> {
        match self {
            Self::Answered { run, migration } => SideSighting::Answered { run, migration },
            Self::Hung => SideSighting::Hung,
            Self::Silent => SideSighting::Silent,
            Self::Ended(proof) => prove(proof).map_or(SideSighting::Silent, SideSighting::Ended),
        }
    }
}

/// Both sides, as one look found them, and the source's events up to then.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PairSighting<S, D> {
    /// The source.
    pub source: SideSighting<S>,
    /// The destination.
    pub destination: SideSighting<D>,
    /// The source's events told that it gave the migration up, whereupon QEMU resumes the guest.
    pub source_gave_up: bool,
    /// The source's monitor closed while its process lived on, or may have: the events after that were missed.
    pub source_cut: bool,
    /// There is time to send a refused `cont` again.
    pub retries_cont: bool,
}

/// The next thing that a driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JudgementStep {
    /// Look at both sides, and pass the answers to [`Judgement::see`].
    LookAtBoth,
    /// Write `Resuming` to the journal, then call [`Judgement::confirm_recorded`].
    RecordResuming,
    /// Write `Starting` to the journal, then call [`Judgement::confirm_starting`]. Where the record cannot be written,
    /// no `cont` may be sent: pass on the outcome of a `cont` that was refused.
    RecordStarting,
    /// Nothing is proved yet, and time alone may change that: while there is time, let some of it pass and call
    /// [`Judgement::look_again`]; else end with this verdict.
    Wait(HandoverVerdict),
    /// Carry out what the verdict says, and pass the outcome to [`Judgement::take_outcome`].
    CarryOut(HandoverVerdict),
    /// Nothing is left to be done.
    End(HandoverVerdict),
}

/// What came of a step that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StepOutcome<S, D> {
    /// `cont` was sent to the destination.
    ContSent {
        /// QEMU refused it; any other answer, or none, may mean that the guest runs.
        refused: bool,
    },
    /// The source is proved unable to run the guest.
    SourceEnded {
        /// The proof.
        proof: S,
        /// The source's monitor was cut before that: the source may have resumed unseen, and been ended only then.
        after_cut: bool,
    },
    /// The destination is proved unable to run the guest, and never ran it.
    DestinationEnded(D),
    /// The step proved nothing; the next look shows what it did.
    NothingProved,
}

/// What the journal of an engine that died says about the handover.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RecordedHandover<D> {
    /// `Given` is in the journal: the destination may have everything.
    Given {
        /// What the journal tells of `cont` to the destination.
        cont: ContKnowledge,
    },
    /// `Resuming` is in the journal: that engine held the proof that the destination cannot run the guest.
    Resuming(D),
}

/// Everything that is remembered between two looks. `S` and `D` are the proofs that the source and the destination
/// cannot run the guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Judgement<S = SourceCannotRun, D = DestinationCannotRun> {
    /// The guest is to run wherever it ends.
    was_running: bool,
    /// What is known of `cont` to the destination.
    cont: ContKnowledge,
    /// The guest is proved to have run on the destination.
    has_run: bool,
    /// The source's events were followed since the guest was stopped, or since the source was last seen not to run.
    source_followed: bool,
    source_ended: Option<S>,
    destination_ended: Option<D>,
    /// The fences that were not tried yet.
    fences: UsableFences,
    /// The user vouches that nobody has started the guest on a destination that cannot be asked.
    consents: bool,
    /// `Resuming` is in the journal.
    resuming_recorded: bool,
    /// `Resuming` is to be written before anything else is done.
    must_record: bool,
    /// The journal says that `cont` may have been sent.
    starting_recorded: bool,
    /// The verdict of the last look, until its step was carried out.
    pending: Option<HandoverVerdict>,
    /// A later look may come to another verdict, though nothing is done meanwhile.
    may_change: bool,
}

impl<S, D> Judgement<S, D> {
    /// Begins after a handover of this engine's own that failed, with what the engine knows of its `cont`. Where `cont`
    /// is known to have had no effect, the journal must be told so (`NotStarted`) first.
    pub fn begin(was_running: bool, cont: ContKnowledge, fences: UsableFences) -> Self {
        Self {
            was_running,
            cont,
            has_run: false,
            source_followed: true,
            source_ended: None,
            destination_ended: None,
            fences,
            consents: false,
            resuming_recorded: false,
            must_record: false,
            starting_recorded: cont.may_be_an_engines(),
            pending: None,
            may_change: false,
        }
    }

    /// Takes up a handover of another engine, which died, from its journal. Nobody has followed the source's events.
    pub fn take_up(was_running: bool, recorded: RecordedHandover<D>, fences: UsableFences) -> Self {
        let (cont, destination_ended) = match recorded {
            // A destination that was proved unable to run the guest never ran it.
            RecordedHandover::Resuming(proof) => (ContKnowledge::Never, Some(proof)),
            RecordedHandover::Given { cont } => (cont, None),
        };
        let resuming_recorded = destination_ended.is_some();
        let begun = Self::begin(was_running, cont, fences);
        Self { source_followed: false, destination_ended, resuming_recorded, ..begun }
    }

    /// Notes that events of the source were missed, as while its monitor was closed.
    pub fn lose_track_of_source(&mut self) {
        self.source_followed = false;
    }

    /// Notes the word of the user that nobody has started the guest on a destination that cannot be asked. The word
    /// holds until that destination answers.
    pub fn note_consent(&mut self) {
        self.consents = true;
    }

    /// Notes that the guest has run on the destination.
    pub fn note_ran(&mut self) {
        self.has_run = true;
    }

    /// The next step.
    pub fn next_step(&self) -> JudgementStep {
        match self.pending {
            _ if self.must_record => JudgementStep::RecordResuming,
            Some(verdict @ HandoverVerdict::Undetermined(_)) if self.may_change => JudgementStep::Wait(verdict),
            Some(verdict) if verdict.is_end() => JudgementStep::End(verdict),
            Some(HandoverVerdict::StartDestination) if !self.starting_recorded => JudgementStep::RecordStarting,
            Some(verdict) => JudgementStep::CarryOut(verdict),
            None => JudgementStep::LookAtBoth,
        }
    }

    /// Takes in one look at both sides, decides, and gives the verdict with the facts that it rests on.
    pub fn see(&mut self, sighting: PairSighting<S, D>) -> (HandoverFacts, HandoverVerdict) {
        let PairSighting { source, destination, source_gave_up, source_cut, retries_cont } = sighting;
        let cut_before_end = source_cut && self.source_ended.is_none();
        let source = conclude_state(source, &mut self.source_ended);
        let destination = conclude_state(destination, &mut self.destination_ended);
        self.consents &= !matches!(destination, SideState::Answers { .. });
        // A source that is seen not to run can only run later, and then its events tell.
        self.source_followed |= matches!(&source, SideState::Answers { run, .. } if *run != RunState::Running);
        // With the monitor closed its events are missed: the source may have resumed unseen, and even have died since.
        self.source_followed &= !cut_before_end;
        let facts = HandoverFacts {
            source,
            destination,
            cont: self.cont,
            has_run: self.has_run,
            source_gave_up,
            was_running: self.was_running,
            source_resumed: !self.source_followed || source_gave_up,
            fences: self.fences,
            consents: self.consents,
            retries_cont,
        };
        let verdict = verdict::decide(&facts);
        self.cont = facts.infer_cont();
        self.may_change = facts.may_change();
        self.must_record = verdict.resumes_source() && !self.resuming_recorded;
        self.pending = Some(verdict);
        (facts, verdict)
    }

    /// Notes that `Resuming` was written. A driver whose journal cannot be written goes on all the same: a guest that
    /// stands still for the sake of a full disk would be worse.
    pub fn confirm_recorded(&mut self) {
        (self.resuming_recorded, self.must_record) = (true, false);
    }

    /// Notes that `Starting` was written.
    pub fn confirm_starting(&mut self) {
        self.starting_recorded = true;
    }

    /// Drops a verdict that proved nothing, for another look.
    pub fn look_again(&mut self) {
        self.pending = None;
    }

    /// Whether the journal says that `cont` may have been sent, and none was, or each was refused: `NotStarted` is to
    /// be written, so that a later engine may fence a destination that does not answer.
    pub fn must_tell_not_started(&self) -> bool {
        self.starting_recorded && !self.resuming_recorded && !self.has_run && self.cont.had_no_effect()
    }

    /// Whether the guest is proved to have run on the destination, which the journal does not tell: `Starting` is to be
    /// written, so that no later engine takes the destination for one that never ran.
    pub fn must_tell_started(&self) -> bool {
        self.has_run && !self.starting_recorded && !self.resuming_recorded
    }

    /// Takes in what came of the step that was carried out.
    pub fn take_outcome(&mut self, outcome: StepOutcome<S, D>) {
        let carried_out = self.pending.take();
        // Without `Starting` in the journal no `cont` left this process, so QEMU has refused none.
        let unsent = carried_out == Some(HandoverVerdict::StartDestination) && !self.starting_recorded;
        match carried_out {
            // A fence that failed once is not tried again by the same engine.
            Some(HandoverVerdict::FenceSource) => self.fences.source = false,
            Some(HandoverVerdict::FenceDestination) => self.fences.destination = false,
            _ => {}
        }
        match outcome {
            StepOutcome::ContSent { .. } if unsent && self.cont == ContKnowledge::NotByEngine => {}
            StepOutcome::ContSent { refused } => self.cont = self.cont.take_answer(refused),
            StepOutcome::SourceEnded { proof, after_cut } => {
                self.source_ended = Some(proof);
                self.source_followed &= !after_cut;
            }
            StepOutcome::DestinationEnded(proof) => {
                self.destination_ended = Some(proof);
                // Where the user has vouched for what no answer told, the fence is carried out on that word, and the
                // source goes on by it.
                if self.cont == ContKnowledge::NotByEngine {
                    self.cont = ContKnowledge::Never;
                }
                // A later engine cannot tell that a silent destination was fenced or has accepted `quit`, so that is
                // recorded at once, in case the time is over now.
                self.must_record = !self.resuming_recorded;
            }
            StepOutcome::NothingProved => {}
        }
    }

    /// The proof that the source cannot run the guest, once there is one.
    pub fn source_ended(&self) -> Option<&S> {
        self.source_ended.as_ref()
    }

    /// The proof that the destination cannot run the guest, once there is one.
    pub fn destination_ended(&self) -> Option<&D> {
        self.destination_ended.as_ref()
    }

    /// What is known of `cont` to the destination.
    pub fn cont(&self) -> ContKnowledge {
        self.cont
    }

    /// The fences that can still be tried.
    pub fn fences(&self) -> UsableFences {
        self.fences
    }
}

/// The state of a side by what was seen now and proved before. An end that is proved stays proved.
fn conclude_state<P>(sighting: SideSighting<P>, ended: &mut Option<P>) -> SideState {
    match sighting {
        _ if ended.is_some() => SideState::Dead,
        SideSighting::Answered { run, migration } => SideState::Answers { run, migration },
        SideSighting::Hung => SideState::Hung,
        SideSighting::Silent => SideState::Silent,
        SideSighting::Ended(proof) => {
            *ended = Some(proof);
            SideState::Dead
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type PlainJudgement = Judgement<(), ()>;

    const FENCES: UsableFences = UsableFences { source: true, destination: true };

    fn answered(run: &str, migration: &str) -> SideSighting<()> {
        SideSighting::Answered { run: RunState::from(run), migration: MigrationStatus::from(migration) }
    }

    fn sighting(source: SideSighting<()>, destination: SideSighting<()>) -> PairSighting<(), ()> {
        PairSighting { source, destination, source_gave_up: false, source_cut: false, retries_cont: false }
    }

    #[test]
    fn resuming_is_recorded_once_before_the_source_goes_on() {
        let mut judgement = PlainJudgement::begin(true, ContKnowledge::Never, FENCES);
        assert_eq!(judgement.next_step(), JudgementStep::LookAtBoth);
        let waits = || answered("finish-migrate", "pre-switchover");
        judgement.see(sighting(waits(), answered("inmigrate", "active")));
        assert_eq!(judgement.next_step(), JudgementStep::CarryOut(HandoverVerdict::QuitDestination));
        // A later engine could not tell that the destination has accepted `quit`.
        judgement.take_outcome(StepOutcome::DestinationEnded(()));
        assert_eq!(judgement.next_step(), JudgementStep::RecordResuming);
        judgement.confirm_recorded();
        assert_eq!(judgement.next_step(), JudgementStep::LookAtBoth);
        for _ in 0..2 {
            judgement.see(sighting(waits(), SideSighting::Silent));
            assert_eq!(judgement.next_step(), JudgementStep::CarryOut(HandoverVerdict::CancelMigration));
            judgement.take_outcome(StepOutcome::NothingProved);
        }
    }

    #[test]
    fn a_fence_of_the_destination_is_recorded_at_once_and_tried_once() {
        for outcome in [StepOutcome::DestinationEnded(()), StepOutcome::NothingProved] {
            let mut judgement = PlainJudgement::begin(true, ContKnowledge::Never, FENCES);
            judgement.see(sighting(answered("postmigrate", "completed"), SideSighting::Silent));
            assert_eq!(judgement.next_step(), JudgementStep::CarryOut(HandoverVerdict::FenceDestination));
            let fenced = outcome == StepOutcome::DestinationEnded(());
            judgement.take_outcome(outcome);
            let next = if fenced { JudgementStep::RecordResuming } else { JudgementStep::LookAtBoth };
            assert_eq!(judgement.next_step(), next);
            assert_eq!(judgement.fences(), UsableFences { destination: false, ..FENCES });
        }
    }

    #[test]
    fn a_source_that_was_cut_before_its_end_may_have_run() {
        let loaded = || answered("paused", "completed");
        for cut in [false, true] {
            let mut by_look = PlainJudgement::begin(true, ContKnowledge::Never, FENCES);
            let ended = sighting(SideSighting::Ended(()), loaded());
            let (facts, _) = by_look.see(PairSighting { source_cut: cut, ..ended });
            assert_eq!(facts.source_resumed, cut);
            let mut by_fence = PlainJudgement::begin(true, ContKnowledge::Never, FENCES);
            by_fence.see(sighting(SideSighting::Silent, loaded()));
            assert_eq!(by_fence.next_step(), JudgementStep::CarryOut(HandoverVerdict::FenceSource));
            by_fence.take_outcome(StepOutcome::SourceEnded { proof: (), after_cut: cut });
            // The fence itself closes the monitor.
            let (facts, _) =
                by_fence.see(PairSighting { source_cut: true, ..sighting(SideSighting::Silent, loaded()) });
            assert_eq!((facts.source, facts.source_resumed), (SideState::Dead, cut));
        }
    }

    #[test]
    fn a_recovery_knows_what_the_journal_says() {
        let recover = |recorded| PlainJudgement::take_up(true, recorded, FENCES);
        for cont in [ContKnowledge::NotByEngine, ContKnowledge::Unknown, ContKnowledge::Sent] {
            assert_eq!(recover(RecordedHandover::Given { cont }).cont(), cont);
        }
        let mut resuming = recover(RecordedHandover::Resuming(()));
        assert_eq!(resuming.cont(), ContKnowledge::Never);
        let (facts, verdict) = resuming.see(sighting(answered("postmigrate", "completed"), SideSighting::Silent));
        assert_eq!((facts.destination, verdict), (SideState::Dead, HandoverVerdict::ResumeSource));
        assert_eq!(resuming.next_step(), JudgementStep::CarryOut(verdict), "it is in the journal already");
    }

    #[test]
    fn starting_is_recorded_before_the_first_cont() {
        let both_wait = || sighting(answered("postmigrate", "completed"), answered("paused", "completed"));
        for (cont, recorded) in [(ContKnowledge::Never, false), (ContKnowledge::Sent, true)] {
            let mut judgement = PlainJudgement::begin(true, cont, FENCES);
            judgement.see(both_wait());
            if !recorded {
                assert_eq!(judgement.next_step(), JudgementStep::RecordStarting);
                judgement.confirm_starting();
            }
            assert_eq!(judgement.next_step(), JudgementStep::CarryOut(HandoverVerdict::StartDestination));
            judgement.take_outcome(StepOutcome::ContSent { refused: true });
            // A later engine is told that each was refused, unless one was not.
            assert_eq!(judgement.must_tell_not_started(), !recorded);
        }
        // A record that cannot be written is as good as a `cont` that was refused: none is sent, the source goes on.
        let mut judgement = PlainJudgement::begin(true, ContKnowledge::Never, FENCES);
        judgement.see(both_wait());
        assert_eq!(judgement.next_step(), JudgementStep::RecordStarting);
        judgement.take_outcome(StepOutcome::ContSent { refused: true });
        judgement.see(both_wait());
        assert_eq!(judgement.next_step(), JudgementStep::CarryOut(HandoverVerdict::QuitDestination));
        assert!(!judgement.must_tell_not_started());
    }

    #[test]
    fn a_recovery_that_may_not_write_starting_has_learned_nothing() {
        let given = RecordedHandover::Given { cont: ContKnowledge::NotByEngine };
        let mut judgement = PlainJudgement::take_up(true, given, FENCES);
        let both_wait = || sighting(answered("postmigrate", "completed"), answered("paused", "completed"));
        judgement.see(both_wait());
        assert_eq!(judgement.next_step(), JudgementStep::RecordStarting);
        judgement.take_outcome(StepOutcome::ContSent { refused: true });
        assert_eq!(judgement.cont(), ContKnowledge::NotByEngine);
        // QEMU's own refusal is another matter.
        judgement.see(both_wait());
        judgement.confirm_starting();
        judgement.take_outcome(StepOutcome::ContSent { refused: true });
        assert_eq!((judgement.cont(), judgement.must_tell_not_started()), (ContKnowledge::Refused, true));
    }

    #[test]
    fn the_word_of_a_user_holds_until_the_destination_answers() {
        let stands = || answered("postmigrate", "completed");
        let begin = || {
            let given = RecordedHandover::Given { cont: ContKnowledge::NotByEngine };
            let mut judgement = PlainJudgement::take_up(true, given, FENCES);
            judgement.note_consent();
            judgement.see(sighting(stands(), SideSighting::Silent));
            assert_eq!(judgement.next_step(), JudgementStep::CarryOut(HandoverVerdict::FenceDestination));
            // What is known is what was known: the word has replaced nothing.
            assert_eq!(judgement.cont(), ContKnowledge::NotByEngine);
            judgement
        };
        let mut fenced = begin();
        fenced.take_outcome(StepOutcome::DestinationEnded(()));
        fenced.confirm_recorded();
        fenced.see(sighting(stands(), SideSighting::Silent));
        assert_eq!(fenced.next_step(), JudgementStep::CarryOut(HandoverVerdict::ResumeSource));
        // A destination that ends by itself was not fenced, and may have run what a person had started.
        let mut ended = begin();
        ended.take_outcome(StepOutcome::NothingProved);
        ended.see(sighting(stands(), SideSighting::Ended(())));
        assert!(matches!(ended.next_step(), JudgementStep::End(HandoverVerdict::Undetermined(_))), "{ended:?}");
        // A destination that answers again is believed. The source was resumed and stopped again meanwhile.
        let mut reached = begin();
        reached.look_again();
        let paused = || answered("paused", "completed");
        for destination in [answered("paused", "completed"), SideSighting::Silent] {
            reached.see(sighting(paused(), destination));
            assert!(!matches!(reached.next_step(), JudgementStep::CarryOut(_)), "{reached:?}");
        }
    }

    #[test]
    fn a_guest_that_has_run_on_the_destination_is_not_started_there() {
        for cont in [ContKnowledge::NotByEngine, ContKnowledge::Unknown, ContKnowledge::Sent] {
            let mut judgement = PlainJudgement::take_up(true, RecordedHandover::Given { cont }, FENCES);
            judgement.note_ran();
            judgement.see(sighting(answered("postmigrate", "completed"), answered("paused", "completed")));
            assert_eq!(judgement.next_step(), JudgementStep::End(HandoverVerdict::OnDestination));
            assert_eq!((judgement.cont(), judgement.must_tell_not_started()), (cont, false));
        }
    }

    #[test]
    fn what_may_change_is_looked_at_again() {
        let mut judgement = PlainJudgement::begin(true, ContKnowledge::Sent, FENCES);
        judgement.see(sighting(answered("postmigrate", "completed"), SideSighting::Silent));
        let JudgementStep::Wait(HandoverVerdict::Undetermined(_)) = judgement.next_step() else {
            panic!("{judgement:?}")
        };
        judgement.look_again();
        assert_eq!(judgement.next_step(), JudgementStep::LookAtBoth);
        judgement.see(sighting(answered("postmigrate", "completed"), answered("running", "completed")));
        assert_eq!(judgement.next_step(), JudgementStep::End(HandoverVerdict::OnDestination));
        judgement.see(sighting(answered("postmigrate", "completed"), SideSighting::Ended(())));
        assert!(matches!(judgement.next_step(), JudgementStep::End(HandoverVerdict::Undetermined(_))));
    }

    #[test]
    fn a_refused_cont_is_tried_again_while_there_is_time() {
        let mut judgement = PlainJudgement::begin(true, ContKnowledge::Refused, FENCES);
        for retries_cont in [true, false] {
            let both_wait = sighting(answered("postmigrate", "completed"), answered("paused", "completed"));
            let (_, verdict) = judgement.see(PairSighting { retries_cont, ..both_wait });
            let expected =
                if retries_cont { HandoverVerdict::StartDestination } else { HandoverVerdict::QuitDestination };
            assert_eq!(verdict, expected);
            judgement.take_outcome(StepOutcome::ContSent { refused: true });
        }
    }
}
