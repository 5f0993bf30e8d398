//! The engines: the handover up to its failure, and then the shipped [`Judgement`], driven step by step.

use crate::{
    model::{HandoverModel, Mutation},
    world::{HandoverWorld, MigrationPhase, MonitorClient, MonitorCommand, QemuLife},
};
use qferry::internals::{
    handover::{
        judgement::{Judgement, JudgementStep, PairSighting, SideSighting, StepOutcome},
        verdict::{ContKnowledge, HandoverFacts, HandoverVerdict, UsableFences},
    },
    progress::Side,
    qemu::reply::{MigrationStatus, RunState},
};

/// The judgement of a modelled engine, whose proofs are the model's own word.
pub(crate) type ModelledJudgement = Judgement<(), ()>;

/// How far one engine is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EngineStage {
    Begin,
    /// `Given` is in the journal.
    Given,
    /// `migrate-continue` is sent.
    Continued,
    /// Both sides were seen to have completed.
    Arrived,
    /// `Starting` is in the journal.
    Prepared,
    /// The first `cont` is sent.
    Starting,
    /// The handover is over, and the judgement names the next step.
    Judging,
    /// This side was looked at, and the other one is looked at next. The engine asks both at the same time, so either
    /// answer may be the older one.
    LookedAt(Side, SideSighting<()>),
    /// The engine waits for the answer to the command of this verdict.
    Awaiting(HandoverVerdict),
    /// Nothing is proved, and time alone may change that.
    Waiting(HandoverFacts, HandoverVerdict),
    /// The judgement has ended, with the facts of its last look; without, it ran out of time.
    Over(Option<HandoverFacts>, HandoverVerdict),
    Died,
}

/// One engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ModelledEngine {
    pub(crate) stage: EngineStage,
    pub(crate) judgement: ModelledJudgement,
    /// The source's events told this engine that the source resumed.
    pub(crate) heard_resume: bool,
    /// The source's monitor was cut while its process lived on, and was not reached again.
    pub(crate) source_cut: bool,
    /// Nothing that the source did since it stood can have been missed: for the property that no safe way on is left
    /// out.
    pub(crate) watches_source: bool,
    /// The engine recovers from the journal of another.
    pub(crate) recovers: bool,
}

impl ModelledEngine {
    /// The engine that hands the guest over.
    pub(crate) fn new(fences: UsableFences) -> Self {
        Self {
            stage: EngineStage::Begin,
            judgement: Judgement::begin(true, ContKnowledge::Never, fences),
            heard_resume: false,
            source_cut: false,
            watches_source: true,
            recovers: false,
        }
    }

    /// The engine that takes the handover up from the journal.
    pub(crate) fn recover(judgement: ModelledJudgement) -> Self {
        Self {
            stage: EngineStage::Judging,
            judgement,
            heard_resume: false,
            source_cut: false,
            watches_source: false,
            recovers: true,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, EngineStage::Over(..) | EngineStage::Died)
    }

    /// The step that the judgement asks for, where the engine has come to it.
    pub(crate) fn step_due(&self) -> Option<JudgementStep> {
        (self.stage == EngineStage::Judging).then(|| self.judgement.next_step())
    }
}

/// Whether a question waits: answers come in order, so QEMU reads the commands first that were sent before.
fn has_unread(world: &HandoverWorld, engine: usize, side: Side) -> bool {
    let qemu = world.qemu(side);
    qemu.client == MonitorClient::Engine(engine) && qemu.life == QemuLife::Up && !qemu.inbox.is_empty()
}

fn opposite(side: Side) -> Side {
    match side {
        Side::Source => Side::Destination,
        Side::Destination => Side::Source,
    }
}

/// The command by which a verdict is carried out, and the side that gets it.
pub(crate) fn command_of(verdict: HandoverVerdict) -> Option<(Side, MonitorCommand)> {
    match verdict {
        HandoverVerdict::StartDestination => Some((Side::Destination, MonitorCommand::ContDestination)),
        HandoverVerdict::QuitDestination => Some((Side::Destination, MonitorCommand::QuitDestination)),
        HandoverVerdict::CancelMigration => Some((Side::Source, MonitorCommand::CancelMigration)),
        HandoverVerdict::ResumeSource => Some((Side::Source, MonitorCommand::ContSource)),
        _ => None,
    }
}

impl HandoverModel {
    pub(crate) fn fences(&self) -> UsableFences {
        UsableFences { source: self.source.fence, destination: self.destination.fence }
    }

    /// Whether an engine is served, or would be if it connected.
    pub(crate) fn is_served(&self, world: &HandoverWorld, engine: usize, side: Side) -> bool {
        let qemu = world.qemu(side);
        let connects = self.reconnects || world.engines[engine].recovers;
        match qemu.client {
            MonitorClient::Engine(client) => client == engine,
            MonitorClient::Nobody => connects && qemu.life == QemuLife::Up,
            MonitorClient::Another => false,
        }
    }

    /// Whether the end of this side is proved to an engine.
    pub(crate) fn is_known_dead(&self, world: &HandoverWorld, engine: usize, side: Side) -> bool {
        let judgement = &world.engines[engine].judgement;
        let proved = match side {
            Side::Source => judgement.source_ended().is_some(),
            Side::Destination => judgement.destination_ended().is_some(),
        };
        proved || (world.qemu(side).life == QemuLife::Dead && self.reach(side).proves_death)
    }

    /// A side as an engine sees it; a mutant sees something else.
    fn look(&self, world: &HandoverWorld, engine: usize, side: Side) -> SideSighting<()> {
        let qemu = world.qemu(side);
        let seen = match qemu.life {
            QemuLife::Dead if self.reach(side).proves_death => SideSighting::Ended(()),
            _ if !self.is_served(world, engine, side) => SideSighting::Silent,
            QemuLife::Up => {
                let (run, migration) = qemu.answer(side);
                SideSighting::Answered { run, migration }
            }
            QemuLife::Hung => SideSighting::Hung,
            QemuLife::Frozen | QemuLife::Dead => SideSighting::Silent,
        };
        match (self.mutation, side, &seen) {
            (Some(Mutation::SilenceIsAnAnswer), Side::Destination, SideSighting::Silent) => SideSighting::Ended(()),
            (Some(Mutation::SourceIsUnheard), Side::Source, _) => SideSighting::Silent,
            (Some(Mutation::SourceAlwaysStands), Side::Source, _) => {
                SideSighting::Answered { run: RunState::PostMigrate, migration: MigrationStatus::Completed }
            }
            _ => seen,
        }
    }

    /// Both sides as an engine sees them, once the source was looked at.
    fn sight_both(
        &self,
        world: &HandoverWorld,
        engine: usize,
        source: SideSighting<()>,
        destination: SideSighting<()>,
        retries_cont: bool,
    ) -> PairSighting<(), ()> {
        let own = &world.engines[engine];
        let is_hidden = self.mutation == Some(Mutation::EndHidesTheCut) && source == SideSighting::Ended(());
        let source_cut = self.is_source_cut(world, engine) && !is_hidden;
        PairSighting { source, destination, source_gave_up: own.heard_resume, source_cut, retries_cont }
    }

    /// Whether the source's monitor was cut, as far as an engine can tell: where the end of a process cannot be proved,
    /// the end of the process looks the same.
    fn is_source_cut(&self, world: &HandoverWorld, engine: usize) -> bool {
        let closed = world.source.client != MonitorClient::Engine(engine);
        let cut = closed && (world.engines[engine].source_cut || !self.source.proves_death);
        cut && self.mutation != Some(Mutation::MissedEventsForgotten)
    }

    fn is_source_ended_after_cut(&self, world: &HandoverWorld, engine: usize) -> bool {
        self.is_source_cut(world, engine) && self.mutation != Some(Mutation::EndHidesTheCut)
    }

    /// The facts as they would be if the engine looked now.
    pub(crate) fn facts_now(&self, world: &HandoverWorld, engine: usize) -> HandoverFacts {
        let (source, destination) =
            (self.look(world, engine, Side::Source), self.look(world, engine, Side::Destination));
        let sighting = self.sight_both(world, engine, source, destination, false);
        world.engines[engine].judgement.clone().see(sighting).0
    }

    /// The engine begins a look with this side.
    pub(crate) fn look_first(&self, world: &mut HandoverWorld, engine: usize, side: Side) {
        let seen = self.connect_and_look(world, engine, side);
        world.engines[engine].stage = EngineStage::LookedAt(side, seen);
    }

    /// Whether the engine may begin a look with the destination.
    pub(crate) fn can_look_at_destination_first(&self, world: &HandoverWorld, engine: usize) -> bool {
        let due = world.engines[engine].step_due() == Some(JudgementStep::LookAtBoth);
        due && !has_unread(world, engine, Side::Destination)
    }

    /// Connects where that is possible, and looks.
    fn connect_and_look(&self, world: &mut HandoverWorld, engine: usize, side: Side) -> SideSighting<()> {
        let seen = self.look(world, engine, side);
        if self.is_served(world, engine, side) && world.qemu(side).client == MonitorClient::Nobody {
            let qemu = world.qemu_mut(side);
            // The earlier connection is closed, with the commands that were still in it.
            qemu.inbox.clear();
            qemu.client = MonitorClient::Engine(engine);
            if side == Side::Source && self.mutation != Some(Mutation::MissedEventsForgotten) {
                let own = &mut world.engines[engine];
                own.judgement.lose_track_of_source();
                own.source_cut = false;
            }
        }
        if side == Side::Source && matches!(seen, SideSighting::Answered { .. }) {
            world.engines[engine].watches_source = true;
        }
        seen
    }

    /// Whether the engine can go on by itself.
    pub(crate) fn can_step(&self, world: &HandoverWorld, engine: usize) -> bool {
        let unread = |side: Side| has_unread(world, engine, side);
        let own = &world.engines[engine];
        match own.stage {
            EngineStage::Begin
            | EngineStage::Given
            | EngineStage::Arrived
            | EngineStage::Prepared
            | EngineStage::Waiting(..) => true,
            EngineStage::Continued => [Side::Source, Side::Destination].into_iter().all(|side| {
                let qemu = world.qemu(side);
                let heard = qemu.client == MonitorClient::Engine(engine) && qemu.life == QemuLife::Up;
                heard && qemu.phase == MigrationPhase::Completed
            }),
            EngineStage::Judging => own.judgement.next_step() != JudgementStep::LookAtBoth || !unread(Side::Source),
            EngineStage::LookedAt(side, _) => !unread(opposite(side)),
            EngineStage::Starting | EngineStage::Awaiting(_) | EngineStage::Over(..) | EngineStage::Died => false,
        }
    }

    /// Whether the engine may give up waiting.
    pub(crate) fn can_tire(&self, world: &HandoverWorld, engine: usize) -> bool {
        let unanswered = |side: Side| {
            let qemu = world.qemu(side);
            qemu.client != MonitorClient::Engine(engine) || qemu.life != QemuLife::Up
        };
        match world.engines[engine].stage {
            EngineStage::Continued | EngineStage::Waiting(..) => true,
            EngineStage::Starting => unanswered(Side::Destination),
            EngineStage::Awaiting(verdict) => command_of(verdict).is_some_and(|(side, _)| unanswered(side)),
            _ => false,
        }
    }

    /// The engine goes on by itself.
    pub(crate) fn step(&self, world: &mut HandoverWorld, engine: usize) {
        match world.engines[engine].stage.clone() {
            EngineStage::Begin => {
                world.given = true;
                world.engines[engine].stage = EngineStage::Given;
            }
            EngineStage::Given if world.send(engine, Side::Source, MonitorCommand::Continue) => {
                world.engines[engine].stage = EngineStage::Continued;
            }
            EngineStage::Given => self.begin_judging(world, engine, ContKnowledge::Never),
            EngineStage::Continued => world.engines[engine].stage = EngineStage::Arrived,
            EngineStage::Arrived => {
                world.starting = true;
                world.engines[engine].stage = EngineStage::Prepared;
            }
            EngineStage::Prepared if world.send(engine, Side::Destination, MonitorCommand::ContDestination) => {
                world.engines[engine].stage = EngineStage::Starting;
            }
            // A `cont` that could not be sent is not told from a `cont` without an answer.
            EngineStage::Prepared => self.begin_judging(world, engine, self.learn_cont(ContKnowledge::Never, false)),
            EngineStage::Waiting(..) => {
                let own = &mut world.engines[engine];
                own.judgement.look_again();
                own.stage = EngineStage::Judging;
            }
            EngineStage::Judging => self.take_step(world, engine),
            EngineStage::LookedAt(side, first) => self.finish_look(world, engine, side, first, true),
            EngineStage::Starting | EngineStage::Awaiting(_) | EngineStage::Over(..) | EngineStage::Died => {}
        }
    }

    /// The other side is looked at, too, and the judgement decides.
    fn finish_look(
        &self,
        world: &mut HandoverWorld,
        engine: usize,
        side: Side,
        first: SideSighting<()>,
        retries_cont: bool,
    ) {
        let second = self.connect_and_look(world, engine, opposite(side));
        let (source, destination) = if side == Side::Source { (first, second) } else { (second, first) };
        let sighting = self.sight_both(world, engine, source, destination, retries_cont);
        let own = &mut world.engines[engine];
        let (facts, verdict) = own.judgement.see(sighting);
        match own.judgement.next_step() {
            JudgementStep::End(verdict) => self.end(world, engine, Some(facts), verdict),
            JudgementStep::Wait(_) => own.stage = EngineStage::Waiting(facts, verdict),
            _ => own.stage = EngineStage::Judging,
        }
    }

    /// The same where there is no time left in which a refused `cont` could be sent again.
    pub(crate) fn finish_look_late(&self, world: &mut HandoverWorld, engine: usize) {
        if let EngineStage::LookedAt(side, first) = world.engines[engine].stage.clone() {
            self.finish_look(world, engine, side, first, false);
        }
    }

    /// The judgement ends.
    pub(crate) fn end(
        &self,
        world: &mut HandoverWorld,
        engine: usize,
        facts: Option<HandoverFacts>,
        verdict: HandoverVerdict,
    ) {
        let own = &mut world.engines[engine];
        own.stage = EngineStage::Over(facts, verdict);
        if own.judgement.must_tell_not_started() {
            world.starting = false;
        }
    }

    /// The engine waits no longer.
    pub(crate) fn tire(&self, world: &mut HandoverWorld, engine: usize) {
        match world.engines[engine].stage.clone() {
            EngineStage::Continued => self.begin_judging(world, engine, ContKnowledge::Never),
            EngineStage::Waiting(facts, verdict) => self.end(world, engine, Some(facts), verdict),
            EngineStage::Starting => {
                let refused = self.mutation == Some(Mutation::SilenceIsAnAnswer);
                self.begin_judging(world, engine, self.learn_cont(ContKnowledge::Never, refused));
            }
            EngineStage::Awaiting(HandoverVerdict::StartDestination) => {
                let refused = self.mutation == Some(Mutation::SilenceIsAnAnswer);
                self.finish_step(world, engine, self.cont(refused));
            }
            _ => self.finish_step(world, engine, StepOutcome::NothingProved),
        }
    }

    /// The handover of the first engine has failed, or is over: its judgement begins as the engine's does.
    pub(crate) fn begin_judging(&self, world: &mut HandoverWorld, engine: usize, cont: ContKnowledge) {
        let own = &mut world.engines[engine];
        own.judgement = Judgement::begin(true, cont, self.fences());
        own.stage = EngineStage::Judging;
        if matches!(cont, ContKnowledge::Never | ContKnowledge::Refused) {
            world.starting = false;
        }
    }

    /// Carries out the step that the judgement asks for.
    fn take_step(&self, world: &mut HandoverWorld, engine: usize) {
        match world.engines[engine].judgement.next_step() {
            JudgementStep::LookAtBoth => self.look_first(world, engine, Side::Source),
            JudgementStep::RecordResuming => {
                world.resuming = true;
                world.engines[engine].judgement.confirm_recorded();
            }
            JudgementStep::RecordStarting => {
                world.starting = true;
                world.engines[engine].judgement.confirm_starting();
            }
            JudgementStep::CarryOut(verdict) => self.carry_out(world, engine, verdict),
            JudgementStep::Wait(verdict) | JudgementStep::End(verdict) => self.end(world, engine, None, verdict),
        }
    }

    fn carry_out(&self, world: &mut HandoverWorld, engine: usize, verdict: HandoverVerdict) {
        self.record_early(world, verdict);
        if let Some((side, command)) = command_of(verdict) {
            if world.send(engine, side, command) {
                world.engines[engine].stage = EngineStage::Awaiting(verdict);
                return;
            }
            // Before `cont` both sides are asked once more, and without an answer nothing is sent; unless the source is
            // proved to have ended.
            let source_ended = world.engines[engine].judgement.source_ended().is_some();
            let outcome = match (verdict, source_ended) {
                (HandoverVerdict::StartDestination, true) => self.cont(false),
                _ => StepOutcome::NothingProved,
            };
            return self.finish_step(world, engine, outcome);
        }
        let outcome = match verdict {
            HandoverVerdict::FenceSource => {
                let after_cut = self.is_source_ended_after_cut(world, engine);
                world.end(Side::Source);
                StepOutcome::SourceEnded { proof: (), after_cut }
            }
            HandoverVerdict::FenceDestination => {
                world.end(Side::Destination);
                StepOutcome::DestinationEnded(())
            }
            HandoverVerdict::FreeSource => {
                let held = world.source.client == MonitorClient::Engine(engine);
                if held && world.source.life == QemuLife::Hung {
                    world.source.life = QemuLife::Up;
                    if world.source.phase != MigrationPhase::Completed {
                        world.fail_source();
                    }
                }
                StepOutcome::NothingProved
            }
            _ => StepOutcome::NothingProved,
        };
        self.finish_step(world, engine, outcome);
    }

    /// A fence kills or not, and does not say that it did.
    pub(crate) fn fence_unsurely(&self, world: &mut HandoverWorld, engine: usize, kills: bool) {
        let Some(JudgementStep::CarryOut(verdict)) = world.engines[engine].step_due() else { return };
        self.record_early(world, verdict);
        let side = if verdict == HandoverVerdict::FenceSource { Side::Source } else { Side::Destination };
        let after_cut = self.is_source_ended_after_cut(world, engine);
        if kills {
            world.end(side);
        }
        let outcome = match (self.mutation, side) {
            (Some(Mutation::EveryFenceSucceeds), Side::Source) => StepOutcome::SourceEnded { proof: (), after_cut },
            (Some(Mutation::EveryFenceSucceeds), Side::Destination) => StepOutcome::DestinationEnded(()),
            _ => StepOutcome::NothingProved,
        };
        self.finish_step(world, engine, outcome);
    }

    fn record_early(&self, world: &mut HandoverWorld, verdict: HandoverVerdict) {
        let too_early = matches!(verdict, HandoverVerdict::QuitDestination | HandoverVerdict::FenceDestination);
        world.resuming |= too_early && self.mutation == Some(Mutation::ResumingIsEarly);
    }

    fn finish_step(&self, world: &mut HandoverWorld, engine: usize, outcome: StepOutcome<(), ()>) {
        let own = &mut world.engines[engine];
        own.judgement.take_outcome(outcome);
        own.stage = EngineStage::Judging;
    }

    /// QEMU's answer reaches the engine that waits for it.
    pub(crate) fn answer(
        &self,
        world: &mut HandoverWorld,
        client: MonitorClient,
        command: MonitorCommand,
        accepted: bool,
    ) {
        let MonitorClient::Engine(engine) = client else { return };
        match world.engines[engine].stage {
            EngineStage::Starting if command == MonitorCommand::ContDestination => {
                self.begin_judging(world, engine, self.learn_cont(ContKnowledge::Never, !accepted));
            }
            EngineStage::Awaiting(verdict) if command_of(verdict).is_some_and(|(_, awaited)| awaited == command) => {
                let outcome = match command {
                    MonitorCommand::ContDestination => self.cont(!accepted),
                    MonitorCommand::QuitDestination if accepted => StepOutcome::DestinationEnded(()),
                    _ => StepOutcome::NothingProved,
                };
                self.finish_step(world, engine, outcome);
            }
            _ => {}
        }
    }

    /// The outcome of a `cont` to the destination; a mutant takes every one for refused.
    fn cont(&self, refused: bool) -> StepOutcome<(), ()> {
        StepOutcome::ContSent { refused: refused || self.mutation == Some(Mutation::ContIsForgotten) }
    }

    fn learn_cont(&self, before: ContKnowledge, refused: bool) -> ContKnowledge {
        before.take_answer(refused || self.mutation == Some(Mutation::ContIsForgotten))
    }
}
