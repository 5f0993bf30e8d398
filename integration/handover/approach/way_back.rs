//! The way back, in the order of `migration/way_back/rollback.rs`, and the judgement of a handover that failed.

use super::{
    engine::ApproachStage,
    model::{ApproachModel, ApproachMutation},
    world::{
        ApproachWorld, DestinationPhase, GuestStand, MigrationHalt, MirrorPhase, MonitorAddress, RecordedClaim,
        SourcePhase,
    },
};
use crate::engines::ModelledJudgement;
use qferry::internals::{
    handover::{
        judgement::{Judgement, JudgementStep, PairSighting, RecordedHandover, SideSighting, StepOutcome},
        verdict::{ContKnowledge, HandoverVerdict, UsableFences},
        way_back::{
            self, CourseFacts, DestinationFacts, DestinationFate, DestinationSight, LostSource, MigrationCourse,
            SourceFacts, SourceHolding, SourceStep, WayBackGround,
        },
    },
    migration::GuestIntent,
    progress::{Ending, Side},
    qemu::reply::{MigrationStatus, RunState},
};

/// The next step of the way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WayBackStep {
    Look,
    Cancel,
    Resume,
    /// The source passes the guest on, or has, without this engine: the destination is put out of the way first.
    TakeBack,
    /// The destination is proved to be out of the way.
    CancelWithProof,
    EndDestination,
    Tidy,
    Conclude,
}

impl ApproachModel {
    /// A failure, or the user, sends the engine back before `migrate-continue`.
    pub(crate) fn turn_back(&self, world: &mut ApproachWorld) {
        self.reach_again(world);
        let given = world.journal.claim == RecordedClaim::Given;
        world.engine.stage = ApproachStage::GoBack(if given { WayBackStep::Cancel } else { WayBackStep::Look });
        if given {
            world.journal.claim = RecordedClaim::Source;
        }
    }

    pub(crate) fn go_back(&self, world: &mut ApproachWorld, step: WayBackStep) {
        let next = match step {
            WayBackStep::Look => {
                if world.asks(Side::Source) {
                    world.engine.guest.look(&self.read_run(world));
                    world.journal_guest();
                }
                WayBackStep::Cancel
            }
            WayBackStep::Cancel => {
                if !world.asks(Side::Source) && self.end_with_source(world) {
                    return world.end(Ending::Ended);
                }
                let is_begun = world.journal.migrate && world.asks(Side::Source);
                let is_passing = matches!(world.source.phase, SourcePhase::Device | SourcePhase::Completed)
                    && self.mutation != Some(ApproachMutation::SourceIsCancelledFirst);
                let has_passed = world.source.phase == SourcePhase::Completed;
                let is_asked = world.engine.may_resume && (is_passing || !world.is_source_idle());
                let course = if is_asked { self.find_course(world) } else { MigrationCourse::ToDestination };
                let is_found = !world.engine.may_resume && world.engine.guest.wants_running();
                match course {
                    _ if !is_begun || is_found => WayBackStep::EndDestination,
                    // A recovery waits for a migration that nothing proves to be the run's to fail by itself.
                    MigrationCourse::NotKnownYet
                        if (has_passed || world.recoveries > 0) && !Self::is_at_rest(world) =>
                    {
                        WayBackStep::Cancel
                    }
                    MigrationCourse::ToDestination if is_asked && is_passing => WayBackStep::TakeBack,
                    MigrationCourse::ToDestination => {
                        self.cancel(world);
                        if world.engine.may_resume { WayBackStep::Resume } else { WayBackStep::EndDestination }
                    }
                    _ if is_passing => return world.end(Ending::Undetermined),
                    _ => {
                        world.journal.migrate = false;
                        WayBackStep::EndDestination
                    }
                }
            }
            WayBackStep::Resume => {
                self.resume(world, false);
                WayBackStep::EndDestination
            }
            WayBackStep::TakeBack => match self.end_destination(world) {
                DestinationFate::LeaveAlone(_) => return world.end(Ending::Undetermined),
                DestinationFate::AlreadyGone if !self.proves_end(world, Side::Destination) => {
                    return world.end(Ending::Undetermined);
                }
                _ => WayBackStep::CancelWithProof,
            },
            WayBackStep::CancelWithProof => {
                if world.asks(Side::Source) {
                    self.cancel(world);
                }
                self.resume(world, true);
                WayBackStep::EndDestination
            }
            WayBackStep::EndDestination => {
                world.engine.listened |= world.journal.incoming;
                match self.end_destination(world) {
                    DestinationFate::LeaveAlone(reason) if reason.is_taken_over() => {
                        return world.end(Ending::Undetermined);
                    }
                    DestinationFate::LeaveAlone(_) => world.engine.leaves_something = true,
                    _ => world.journal.incoming = false,
                }
                WayBackStep::Tidy
            }
            WayBackStep::Tidy => {
                // QEMU changes no capability while a migration is under way.
                if world.asks(Side::Source) {
                    world.source.mirror = MirrorPhase::None;
                    world.journal.mirrored = false;
                    if world.is_source_idle() && world.journal.tuned {
                        (world.source.pauses, world.source.returns, world.journal.tuned) = (false, false, false);
                    }
                }
                world.destination.exported &= !world.asks(Side::Destination);
                world.journal.exported &= world.destination.exported;
                WayBackStep::Conclude
            }
            WayBackStep::Conclude => {
                if !world.asks(Side::Source) && self.end_with_source(world) {
                    return world.end(Ending::Ended);
                }
                let (run, migration) = world.source.answer();
                let facts = SourceFacts {
                    wants_running: world.engine.guest.wants_running(),
                    run,
                    migration,
                    stopped_by_engine: false,
                    waited: true,
                    is_anothers: false,
                    destination_has_run: self.has_heard_run(world),
                    destination_ended: world.engine.ended_destination || self.proves_end(world, Side::Destination),
                };
                let as_before = world.asks(Side::Source) && way_back::is_left_on_source(&facts);
                return world.end(match (as_before, world.engine.leaves_something) {
                    (false, _) => Ending::Undetermined,
                    (true, true) => Ending::Stuck,
                    (true, false) => Ending::RolledBack,
                });
            }
        };
        world.engine.stage = ApproachStage::GoBack(next);
    }

    /// Whether the source's migration leads to this run's destination, as far as the shipped decision can tell.
    fn find_course(&self, world: &ApproachWorld) -> MigrationCourse {
        let destination = &world.destination;
        let is_heard = world.engine.follows_destination;
        let facts = CourseFacts {
            source: world.source.answer().1,
            destination: world.asks(Side::Destination).then(|| destination.answer(world.source.stand).1),
            is_followed: world.engine.is_followed,
            is_begun: world.recoveries == 0,
            waited: Self::is_at_rest(world),
            told_active: is_heard && destination.is_connected,
            told_completed: is_heard && destination.phase == DestinationPhase::Loaded,
        };
        match self.mutation {
            Some(ApproachMutation::EveryMigrationLeadsHere) => MigrationCourse::ToDestination,
            _ => way_back::find_course(&facts),
        }
    }

    /// The source's run state, as the engine reads it.
    pub(crate) fn read_run(&self, world: &ApproachWorld) -> RunState {
        match world.source.answer().0 {
            RunState::Prelaunch if self.mutation == Some(ApproachMutation::ResetIsNoStop) => RunState::FinishMigrate,
            run => run,
        }
    }

    /// Ends the source's migration.
    fn cancel(&self, world: &mut ApproachWorld) {
        if !world.is_source_idle() {
            world.broken.foreign_cancelled |= world.source.is_foreign;
            world.end_source_migration(SourcePhase::Cancelled);
        }
        world.journal.migrate = false;
    }

    /// The end of a guest whose source has ended before the guest was passed on; whether that is proved.
    fn end_with_source(&self, world: &mut ApproachWorld) -> bool {
        let destination = self.decide_fate(world, true);
        let has_failed = matches!(world.source.phase, SourcePhase::Failed | SourcePhase::Cancelled);
        let has_arrived = world.engine.follows_destination && world.destination.phase == DestinationPhase::Loaded;
        let has_completed = world.engine.may_resume && world.source.phase == SourcePhase::Completed && !has_arrived;
        let has_passed = has_completed || (world.engine.is_followed && !has_failed);
        let lost = LostSource {
            proved: self.proves_end(world, Side::Source),
            told: world.source.stand == GuestStand::Shutdown && world.engine.follows_source,
            passed: world.engine.follows_source && has_passed,
            listened: (world.journal.incoming || world.engine.listened) && !world.engine.ended_destination,
            never_ran: !world.engine.may_resume || (world.engine.follows_destination && !world.destination_ran),
            destination,
        };
        let has_ended = way_back::has_ended(&lost);
        let is_used = world.journal.incoming || world.journal.exported;
        if has_ended && is_used && matches!(destination, DestinationFate::Quit | DestinationFate::Fence) {
            self.quit_destination(world);
        }
        world.destination.exported &= !(has_ended && world.asks(Side::Destination));
        has_ended
    }

    /// Does with a destination that was told to listen what the shipped decision says.
    fn end_destination(&self, world: &mut ApproachWorld) -> DestinationFate {
        let fate = self.decide_fate(world, world.journal.incoming);
        if matches!(fate, DestinationFate::Quit | DestinationFate::Fence) {
            self.quit_destination(world);
        }
        fate
    }

    /// What becomes of the destination, where this run has `used` it.
    fn decide_fate(&self, world: &ApproachWorld, used: bool) -> DestinationFate {
        let (run, migration) = world.destination.answer(world.source.stand);
        let facts = DestinationFacts {
            listened: world.journal.incoming || self.mutation == Some(ApproachMutation::ServedIsOurs),
            ground: match world.engine.may_resume || self.mutation == Some(ApproachMutation::VerdictForgotten) {
                true => WayBackGround::NotGiven,
                false => WayBackGround::OnSource,
            },
            sight: match (world.asks(Side::Destination), world.destination.address) {
                (true, _) => DestinationSight::Answers { run, migration },
                _ if world.engine.ended_destination => DestinationSight::Ended,
                (false, _) if self.proves_end(world, Side::Destination) => DestinationSight::Ended,
                (false, MonitorAddress::Another) => DestinationSight::Another,
                (false, _) => DestinationSight::Unreachable,
            },
            asked: world.asks(Side::Destination) || world.engine.follows_destination,
            followed: world.engine.follows_destination,
            has_run: self.has_heard_run(world),
            killable: self.local,
            source: match world.asks(Side::Source) {
                true => SourceHolding::of_answer(&world.source.answer().1),
                false if self.mutation == Some(ApproachMutation::EventsAreAnswers) && world.has_passed() => {
                    SourceHolding::Passed
                }
                false => SourceHolding::without_answer(self.proves_end(world, Side::Source)),
            },
        };
        match used {
            true => way_back::decide_destination(&facts),
            false => DestinationFate::AlreadyGone,
        }
    }

    /// Whether the destination's events have told the engine that the destination ran.
    fn has_heard_run(&self, world: &ApproachWorld) -> bool {
        let is_deaf = self.mutation == Some(ApproachMutation::RunIsForgotten);
        world.engine.follows_destination && world.destination_ran && !is_deaf
    }

    /// Whether the end of a side's process is proved to the engine.
    pub(crate) fn proves_end(&self, world: &ApproachWorld, side: Side) -> bool {
        self.local && !world.is_up(side)
    }

    /// A side that could not be asked is not fenced.
    fn fences(&self, world: &ApproachWorld) -> UsableFences {
        let is_blind = self.mutation == Some(ApproachMutation::UnaskedIsFenced);
        let can = |reached: bool| self.local && (reached || is_blind);
        UsableFences { source: can(world.engine.reaches_source), destination: can(world.engine.reaches_destination) }
    }

    fn quit_destination(&self, world: &mut ApproachWorld) {
        // What the destination has is the only copy where the source is gone before any verdict.
        let is_only = world.engine.may_resume
            && !world.source.is_up()
            && world.destination.phase == DestinationPhase::Loaded
            && !world.source_ran_on;
        world.broken.killed |= world.destination.runs || is_only || world.destination.is_foreign;
        world.die(Side::Destination);
        world.engine.ended_destination = true;
    }

    /// Does with the source's guest what the shipped decision says. QEMU resumes a guest in the step in which the
    /// migration ends, so that whoever waits for it has waited.
    fn resume(&self, world: &mut ApproachWorld, destination_ended: bool) {
        let (run, migration) = world.source.answer();
        let facts = SourceFacts {
            wants_running: world.engine.guest.wants_running(),
            run,
            migration,
            stopped_by_engine: self.mutation == Some(ApproachMutation::PausedNeedsCont),
            waited: true,
            destination_ended,
            destination_has_run: self.has_heard_run(world),
            is_anothers: false,
        };
        if !world.asks(Side::Source) {
            return;
        }
        match way_back::decide_source(&facts) {
            SourceStep::Cont => self.send_cont_to_source(world),
            SourceStep::Leave if world.engine.may_resume && world.is_source_idle() => {
                world.engine.guest.look(&facts.run);
                world.journal_guest();
            }
            SourceStep::Leave | SourceStep::AwaitResume => {}
        }
    }

    /// `cont` to the source.
    fn send_cont_to_source(&self, world: &mut ApproachWorld) {
        world.broken.against_owner |= !world.source.stand.is_live();
        world.continue_source();
    }

    pub(crate) fn begin_judging(&self, world: &mut ApproachWorld, cont: ContKnowledge) {
        world.journal.starting &= !matches!(cont, ContKnowledge::Never | ContKnowledge::Refused);
        let fences = self.fences(world);
        self.reach_again(world);
        let mut judgement = Judgement::begin(world.engine.guest.wants_running(), cont, fences);
        if !world.engine.follows_source {
            judgement.lose_track_of_source();
        }
        world.engine.stage = ApproachStage::Judge(Box::new(judgement));
    }

    pub(crate) fn take_up(&self, world: &ApproachWorld, guest: &GuestIntent) -> ModelledJudgement {
        let recorded = match world.journal.claim {
            RecordedClaim::Resuming => RecordedHandover::Resuming(()),
            RecordedClaim::Given | RecordedClaim::Source => {
                // What only the journal or only the question keeps safe is not kept safe twice, so that each is found.
                let trusts = [ApproachMutation::StartIsForgotten, ApproachMutation::UnaskedIsFenced];
                let unsent = match self.mutation.is_some_and(|mutation| trusts.contains(&mutation)) {
                    true => ContKnowledge::Never,
                    false => ContKnowledge::NotByEngine,
                };
                let cont = if world.journal.starting { ContKnowledge::Unknown } else { unsent };
                RecordedHandover::Given { cont }
            }
        };
        Judgement::take_up(guest.wants_running(), recorded, self.fences(world))
    }

    fn look(&self, world: &ApproachWorld, side: Side) -> SideSighting<()> {
        let (run, migration) = match side {
            Side::Source => world.source.answer(),
            Side::Destination => world.destination.answer(world.source.stand),
        };
        match world.asks(side) {
            true => SideSighting::Answered { run, migration },
            false if self.proves_end(world, side) => SideSighting::Ended(()),
            false => SideSighting::Silent,
        }
    }

    fn look_at_both(&self, world: &ApproachWorld) -> PairSighting<(), ()> {
        PairSighting {
            source: match world.engine.is_followed {
                true => self.look(world, Side::Source).forget_migration(),
                false => self.look(world, Side::Source),
            },
            destination: self.look(world, Side::Destination),
            source_gave_up: world.engine.is_followed
                || matches!(world.source.phase, SourcePhase::Failed | SourcePhase::Cancelled),
            source_cut: !world.engine.reaches_source,
            retries_cont: false,
        }
    }

    /// Whether another look tells the judgement more than its last one.
    fn sees_more(&self, world: &ApproachWorld, judgement: &ModelledJudgement) -> bool {
        let mut again = judgement.clone();
        again.look_again();
        again.see(self.look_at_both(world));
        again != *judgement
    }

    /// One step of the shipped judgement.
    pub(crate) fn judge(&self, world: &mut ApproachWorld, mut judgement: ModelledJudgement) {
        match judgement.next_step() {
            JudgementStep::LookAtBoth => {
                judgement.see(self.look_at_both(world));
            }
            JudgementStep::RecordResuming => {
                world.journal.claim = RecordedClaim::Resuming;
                judgement.confirm_recorded();
            }
            // What the last look found is not so any more.
            JudgementStep::CarryOut(_) if world.engine.is_followed && judgement.source_ended().is_none() => {
                judgement.look_again();
            }
            JudgementStep::CarryOut(verdict) => {
                let outlived = judgement.source_ended().is_some();
                let outcome = self.carry_out_verdict(world, verdict, outlived);
                judgement.take_outcome(outcome);
            }
            JudgementStep::End(HandoverVerdict::OnDestination) => {
                world.engine.stage = ApproachStage::Tidy;
                return;
            }
            JudgementStep::End(HandoverVerdict::OnSource) => {
                world.engine.stage = ApproachStage::GoBack(WayBackStep::Cancel);
                return;
            }
            JudgementStep::End(HandoverVerdict::Ended) => {
                let has_ended = self.end_with_source(world);
                return world.end(if has_ended { Ending::Ended } else { Ending::Undetermined });
            }
            JudgementStep::RecordStarting => {
                world.journal.starting = true;
                judgement.confirm_starting();
            }
            // Both sides have the time to come to their ends.
            JudgementStep::Wait(_) if !Self::is_at_rest(world) || self.sees_more(world, &judgement) => {
                judgement.look_again();
            }
            JudgementStep::Wait(_) | JudgementStep::End(_) => {
                world.journal.starting &= !judgement.must_tell_not_started();
                return world.end(Ending::Undetermined);
            }
        }
        world.engine.stage = ApproachStage::Judge(Box::new(judgement));
    }

    fn carry_out_verdict(
        &self,
        world: &mut ApproachWorld,
        verdict: HandoverVerdict,
        outlived: bool,
    ) -> StepOutcome<(), ()> {
        match verdict {
            HandoverVerdict::StartDestination => {
                if !outlived && !self.is_settled(world) {
                    return StepOutcome::NothingProved;
                }
                let known = self.start_destination(world);
                return StepOutcome::ContSent { refused: known == ContKnowledge::Refused };
            }
            HandoverVerdict::QuitDestination if world.asks(Side::Destination) => {
                self.quit_destination(world);
                return StepOutcome::DestinationEnded(());
            }
            HandoverVerdict::FenceDestination => {
                self.quit_destination(world);
                return StepOutcome::DestinationEnded(());
            }
            HandoverVerdict::FenceSource => {
                world.broken.killed |= world.source.runs();
                world.die(Side::Source);
                return StepOutcome::SourceEnded { proof: (), after_cut: true };
            }
            HandoverVerdict::CancelMigration if world.asks(Side::Source) && !world.is_source_idle() => {
                world.end_source_migration(SourcePhase::Cancelled);
            }
            HandoverVerdict::ResumeSource if world.asks(Side::Source) => self.send_cont_to_source(world),
            _ => {}
        }
        StepOutcome::NothingProved
    }

    /// Both sides say `completed`, and the destination waits: the proof that `cont` takes.
    fn is_settled(&self, world: &ApproachWorld) -> bool {
        let (run, migration) = world.destination.answer(world.source.stand);
        let waits = world.asks(Side::Destination) && run == RunState::Paused && migration == MigrationStatus::Completed;
        world.asks(Side::Source) && world.source.halt == Some(MigrationHalt::Completed) && waits
    }
}
