//! Everything that can happen next, and the world after it.

use crate::{
    engines::{EngineStage, ModelledEngine, ModelledJudgement},
    properties,
    world::{HandoverWorld, MigrationPhase, ModelledQemu, MonitorClient, MonitorCommand, QemuLife},
};
use qferry::internals::{
    handover::{
        judgement::{Judgement, JudgementStep, OUT_OF_TIME, RecordedHandover, StepOutcome},
        verdict::{ContKnowledge, HandoverVerdict},
    },
    progress::Side,
};
use stateright::{Model, Property};

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModelAction {
    Step(usize),
    /// The engine looks at both sides, and the destination answers first.
    LookAtDestination(usize),
    /// The engine looks at the second side, and there is no time in which a refused `cont` could be sent again.
    LookLate(usize),
    /// The engine waits no longer.
    Tire(usize),
    Recover,
    /// QEMU carries out the oldest command that it was sent.
    Deliver(Side),
    Load,
    Complete,
    Fail(Side),
    Thaw(Side),
    Leave(Side),
    // Each of the following is a fault.
    Refuse,
    LoadBadly,
    Freeze(Side),
    Hang,
    Die(Side),
    CutChannel,
    CutMonitor(Side),
    KillEngine(usize),
    /// A person finishes the handover after the engine has died.
    PersonStarts,
    /// A second migration takes the monitor that has no client.
    Take(Side),
    /// The fence kills or not, and does not say that it did.
    FenceUnsure(usize, bool),
    /// `Resuming` cannot be written, and the engine goes on without; or `Starting` cannot, and no `cont` is sent.
    LoseRecord(usize),
    /// The time for the switchover is over.
    RunOut(usize),
}

/// How far an engine reaches a side that does not answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SideReach {
    pub(crate) proves_death: bool,
    pub(crate) fence: bool,
}

pub(crate) const LOCAL: SideReach = SideReach { proves_death: true, fence: true };
pub(crate) const REMOTE: SideReach = SideReach { proves_death: false, fence: false };
pub(crate) const FENCED: SideReach = SideReach { proves_death: false, fence: true };

/// One lie to the judgement, or one thing that its driver does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A destination that does not answer is taken for dead, and its `cont` for refused.
    SilenceIsAnAnswer,
    /// The source is always said to have completed.
    SourceAlwaysStands,
    /// Every `cont` to the destination is said to have been refused.
    ContIsForgotten,
    /// The source is never heard.
    SourceIsUnheard,
    /// A recovery does not know that `Given` is in the journal.
    GivenIsForgotten,
    /// A recovery takes what an engine has not done for what nobody has done.
    PersonIsForgotten,
    /// The source's monitor is always said to have been open.
    MissedEventsForgotten,
    /// A cut of the source's monitor counts only as long as the source is not known to be dead.
    EndHidesTheCut,
    /// `Resuming` is written before the destination is out of the way.
    ResumingIsEarly,
    /// A fence is always taken to have succeeded.
    EveryFenceSucceeds,
}

/// What is explored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HandoverModel {
    pub(crate) source: SideReach,
    pub(crate) destination: SideReach,
    /// How many faults there may be in one run.
    pub(crate) faults: u8,
    /// How often the handover is recovered from the journal.
    pub(crate) recoveries: u8,
    /// The first engine connects anew too.
    pub(crate) reconnects: bool,
    /// The time for the switchover may be over between any two steps.
    pub(crate) times_out: bool,
    /// The journal's lock keeps a recovery off while the engine lives.
    pub(crate) lock: bool,
    pub(crate) mutation: Option<Mutation>,
}

pub(crate) const HANDOVER: HandoverModel = HandoverModel {
    source: LOCAL,
    destination: LOCAL,
    faults: 4,
    recoveries: 1,
    reconnects: false,
    times_out: false,
    lock: true,
    mutation: None,
};

impl ModelAction {
    fn is_fault(self) -> bool {
        match self {
            Self::Refuse
            | Self::LoadBadly
            | Self::Freeze(_)
            | Self::Hang
            | Self::Die(_)
            | Self::CutChannel
            | Self::CutMonitor(_)
            | Self::KillEngine(_)
            | Self::PersonStarts
            | Self::Take(_)
            | Self::FenceUnsure(..)
            | Self::LoseRecord(_)
            | Self::RunOut(_) => true,
            Self::Step(_)
            | Self::LookAtDestination(_)
            | Self::LookLate(_)
            | Self::Tire(_)
            | Self::Recover
            | Self::Deliver(_)
            | Self::Load
            | Self::Complete
            | Self::Fail(_)
            | Self::Thaw(_)
            | Self::Leave(_) => false,
        }
    }
}

impl HandoverModel {
    pub(crate) fn reach(&self, side: Side) -> SideReach {
        match side {
            Side::Source => self.source,
            Side::Destination => self.destination,
        }
    }

    /// The judgement of an engine that recovers from the journal.
    pub(crate) fn take_up(&self, world: &HandoverWorld) -> ModelledJudgement {
        let fences = self.fences();
        let forgets_given = self.mutation == Some(Mutation::GivenIsForgotten);
        match (world.resuming, world.given) {
            (true, _) => Judgement::take_up(true, RecordedHandover::Resuming(()), fences),
            (false, true) if self.mutation == Some(Mutation::MissedEventsForgotten) => {
                Judgement::begin(true, ContKnowledge::Unknown, fences)
            }
            (false, true) if !forgets_given => {
                let cont = match (world.starting, self.mutation) {
                    (true, _) => ContKnowledge::Unknown,
                    (false, Some(Mutation::PersonIsForgotten)) => ContKnowledge::Never,
                    (false, _) => ContKnowledge::NotByEngine,
                };
                Judgement::take_up(true, RecordedHandover::Given { cont }, fences)
            }
            (false, _) => {
                let mut judgement = Judgement::begin(true, ContKnowledge::Never, fences);
                judgement.lose_track_of_source();
                judgement
            }
        }
    }

    fn list_engine_actions(&self, world: &HandoverWorld, actions: &mut Vec<ModelAction>) {
        for engine in 0..world.engines.len() {
            if self.can_step(world, engine) {
                actions.push(ModelAction::Step(engine));
            }
            if self.can_look_at_destination_first(world, engine) {
                actions.push(ModelAction::LookAtDestination(engine));
            }
            let own = &world.engines[engine];
            let is_refused = own.judgement.cont() == ContKnowledge::Refused;
            if is_refused && matches!(own.stage, EngineStage::LookedAt(..)) && self.can_step(world, engine) {
                actions.push(ModelAction::LookLate(engine));
            }
            if self.can_tire(world, engine) {
                actions.push(ModelAction::Tire(engine));
            }
        }
        let has_ended = |engine: &ModelledEngine| {
            let undetermined = matches!(engine.stage, EngineStage::Over(_, HandoverVerdict::Undetermined(_)));
            undetermined || engine.stage == EngineStage::Died || !self.lock
        };
        if world.recoveries < self.recoveries && world.engines.iter().all(has_ended) {
            actions.push(ModelAction::Recover);
        }
    }

    fn list_migration_actions(world: &HandoverWorld, actions: &mut Vec<ModelAction>) {
        let HandoverWorld { source, destination, .. } = world;
        let sends = source.life == QemuLife::Up && source.phase == MigrationPhase::Sends;
        let loads = destination.life == QemuLife::Up && destination.phase == MigrationPhase::Loads;
        if loads && world.sent {
            actions.push(ModelAction::Load);
        }
        // The source waits for the destination's word, which may be lost with the channel.
        if sends && destination.phase == MigrationPhase::Completed {
            actions.push(ModelAction::Complete);
        }
        if sends && (!world.channel || destination.phase == MigrationPhase::Failed) {
            actions.push(ModelAction::Fail(Side::Source));
        }
        if loads && !world.channel {
            actions.push(ModelAction::Fail(Side::Destination));
        }
    }

    fn list_side_actions(world: &HandoverWorld, side: Side, may_fault: bool, actions: &mut Vec<ModelAction>) {
        let qemu = world.qemu(side);
        if qemu.life == QemuLife::Up && !qemu.inbox.is_empty() {
            actions.push(ModelAction::Deliver(side));
            if may_fault && side == Side::Destination && qemu.inbox[0] == MonitorCommand::ContDestination {
                actions.push(ModelAction::Refuse);
            }
        }
        if matches!(qemu.life, QemuLife::Frozen | QemuLife::Hung) {
            actions.push(ModelAction::Thaw(side));
        }
        if qemu.client == MonitorClient::Another {
            actions.push(ModelAction::Leave(side));
        }
        if !may_fault || qemu.life == QemuLife::Dead {
            return;
        }
        actions.push(ModelAction::Die(side));
        if qemu.life == QemuLife::Up {
            actions.push(ModelAction::Freeze(side));
        }
        match qemu.client {
            MonitorClient::Engine(_) => actions.push(ModelAction::CutMonitor(side)),
            MonitorClient::Nobody if qemu.life == QemuLife::Up => actions.push(ModelAction::Take(side)),
            MonitorClient::Nobody | MonitorClient::Another => {}
        }
    }

    fn list_other_faults(&self, world: &HandoverWorld, actions: &mut Vec<ModelAction>) {
        let HandoverWorld { source, destination, .. } = world;
        let sends_or_waits = matches!(source.phase, MigrationPhase::Waits | MigrationPhase::Sends);
        if source.life == QemuLife::Up && sends_or_waits {
            actions.push(ModelAction::Hang);
        }
        let loads = destination.phase == MigrationPhase::Loads;
        if destination.life == QemuLife::Up && loads && world.sent {
            actions.push(ModelAction::LoadBadly);
        }
        if world.channel && (source.phase == MigrationPhase::Sends || loads) {
            actions.push(ModelAction::CutChannel);
        }
        // Who asks both sides first, as docs/handover.md tells a person, finds that both say `completed`.
        let is_complete = |qemu: &ModelledQemu| qemu.life == QemuLife::Up && qemu.phase == MigrationPhase::Completed;
        let is_free = destination.client == MonitorClient::Nobody && destination.inbox.is_empty();
        let nobody_runs = !(source.runs || destination.runs || world.source_ran);
        let has_died = |engine: &ModelledEngine| engine.stage == EngineStage::Died;
        if is_free
            && nobody_runs
            && is_complete(source)
            && is_complete(destination)
            && world.engines.iter().all(has_died)
        {
            actions.push(ModelAction::PersonStarts);
        }
        for (number, engine) in world.engines.iter().enumerate() {
            if !engine.is_over() {
                actions.push(ModelAction::KillEngine(number));
            }
            if engine.stage == EngineStage::Arrived {
                actions.push(ModelAction::LoseRecord(number));
            }
            if self.times_out && engine.stage == EngineStage::Judging {
                actions.push(ModelAction::RunOut(number));
            }
            match engine.step_due() {
                Some(JudgementStep::CarryOut(HandoverVerdict::FenceSource | HandoverVerdict::FenceDestination)) => {
                    actions.extend([true, false].map(|kills| ModelAction::FenceUnsure(number, kills)));
                }
                Some(JudgementStep::RecordResuming | JudgementStep::RecordStarting) => {
                    actions.push(ModelAction::LoseRecord(number));
                }
                _ => {}
            }
        }
    }
}

impl Model for HandoverModel {
    type State = HandoverWorld;
    type Action = ModelAction;

    fn init_states(&self) -> Vec<HandoverWorld> {
        vec![HandoverWorld::new(ModelledEngine::new(self.fences()))]
    }

    fn actions(&self, world: &HandoverWorld, actions: &mut Vec<ModelAction>) {
        let may_fault = world.faults < self.faults;
        self.list_engine_actions(world, actions);
        Self::list_migration_actions(world, actions);
        for side in [Side::Source, Side::Destination] {
            Self::list_side_actions(world, side, may_fault, actions);
        }
        if may_fault {
            self.list_other_faults(world, actions);
        }
    }

    fn next_state(&self, before: &HandoverWorld, action: ModelAction) -> Option<HandoverWorld> {
        let mut world = before.clone();
        world.faults += u8::from(action.is_fault());
        match action {
            ModelAction::Step(engine) => self.step(&mut world, engine),
            ModelAction::LookAtDestination(engine) => self.look_first(&mut world, engine, Side::Destination),
            ModelAction::LookLate(engine) => self.finish_look_late(&mut world, engine),
            ModelAction::Tire(engine) => self.tire(&mut world, engine),
            ModelAction::Recover => {
                let judgement = self.take_up(&world);
                world.recoveries += 1;
                if self.lock {
                    world.hang_up(0);
                    world.engines.clear();
                }
                world.engines.push(ModelledEngine::recover(judgement));
            }
            ModelAction::Deliver(side) => {
                let client = world.qemu(side).client;
                let command = world.qemu_mut(side).inbox.remove(0);
                let accepted = world.carry_out(command);
                self.answer(&mut world, client, command, accepted);
            }
            ModelAction::Refuse => {
                let client = world.destination.client;
                let command = world.destination.inbox.remove(0);
                self.answer(&mut world, client, command, false);
            }
            ModelAction::Load => world.destination.phase = MigrationPhase::Completed,
            ModelAction::LoadBadly | ModelAction::Fail(Side::Destination) => {
                world.destination.phase = MigrationPhase::Failed;
            }
            ModelAction::Complete => world.source.phase = MigrationPhase::Completed,
            ModelAction::Fail(Side::Source) => world.fail_source(),
            ModelAction::Thaw(side) => world.qemu_mut(side).life = QemuLife::Up,
            ModelAction::Leave(side) => world.qemu_mut(side).client = MonitorClient::Nobody,
            ModelAction::Take(side) => {
                let qemu = world.qemu_mut(side);
                qemu.inbox.clear();
                qemu.client = MonitorClient::Another;
            }
            ModelAction::Freeze(side) => world.qemu_mut(side).life = QemuLife::Frozen,
            ModelAction::Hang => world.source.life = QemuLife::Hung,
            ModelAction::Die(side) => {
                if let (MonitorClient::Engine(engine), Side::Source) = (world.qemu(side).client, side) {
                    world.engines[engine].watches_source &= self.source.proves_death;
                }
                world.die(side);
            }
            ModelAction::CutChannel => world.channel = false,
            ModelAction::CutMonitor(side) => {
                if let (MonitorClient::Engine(engine), Side::Source) = (world.qemu(side).client, side) {
                    let own = &mut world.engines[engine];
                    (own.watches_source, own.source_cut) = (false, true);
                }
                world.qemu_mut(side).client = MonitorClient::Nobody;
            }
            ModelAction::KillEngine(engine) => {
                world.engines[engine].stage = EngineStage::Died;
                world.hang_up(engine);
            }
            ModelAction::PersonStarts => {
                world.carry_out(MonitorCommand::ContDestination);
            }
            ModelAction::FenceUnsure(engine, kills) => self.fence_unsurely(&mut world, engine, kills),
            ModelAction::LoseRecord(engine) => {
                let own = &mut world.engines[engine];
                match own.step_due() {
                    Some(JudgementStep::RecordResuming) => {
                        own.judgement.confirm_recorded();
                        world.record_lost = true;
                    }
                    Some(_) => own.judgement.take_outcome(StepOutcome::ContSent { refused: true }),
                    None => self.begin_judging(&mut world, engine, ContKnowledge::Refused),
                }
            }
            ModelAction::RunOut(engine) => {
                self.end(&mut world, engine, None, HandoverVerdict::Undetermined(OUT_OF_TIME));
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::list(self)
    }
}
