//! Everything that can happen on the way to the handover, and the world after it.

use super::{
    engine::{ApproachEngine, ApproachStage},
    properties,
    world::{ApproachWorld, DestinationPhase, GuestStand, MigrationHalt, MirrorPhase, MonitorAddress, SourcePhase},
};
use qferry::internals::progress::{Ending, Side};
use stateright::{Model, Property};

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApproachAction {
    Step,
    /// The user, the budget or a deadline ends the work.
    Interrupt,
    Recover,
    // What QEMU does.
    MirrorReady,
    /// QEMU stops the guest for the switchover.
    Halt,
    /// `pre-switchover`, or the rest without it.
    SwitchOver,
    Load,
    Complete,
    FailSource,
    FailDestination,
    // Each of the following is a fault.
    Guest(GuestStand),
    /// The guest powers off in a QEMU that ends then, or the source's owner sends `quit`, or the source crashes.
    Die(Side),
    OwnerStops,
    OwnerContinues,
    OwnerResets,
    /// Another client turns the capability off.
    ForeignPausesOff,
    ForeignReturnsOff,
    /// Another client begins a migration, to a file.
    ForeignMigrate,
    /// Another client plugs another device, or changes a medium.
    ForeignPlug,
    ForeignCancel,
    /// Another client sends `migrate-continue`.
    ForeignContinue,
    /// Another client sends `cont` to the destination.
    ForeignCont,
    CutChannel,
    KillEngine,
    /// The monitor of a side closes, and its process lives on.
    CutMonitor(Side),
    /// The process of a side ends, and another QEMU answers at its address.
    Replace(Side),
    /// A person's client takes a monitor that has no client, and leaves it again.
    Hold(Side),
    Leave(Side),
    /// A person finishes by hand, once the engine has died.
    PersonContinues,
    PersonStarts,
    PersonCancels,
}

/// Which faults one exploration has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FaultKinds {
    /// The guest stops or suspends by itself.
    pub(crate) guest: bool,
    /// The guest's owner stops, resumes and resets it.
    pub(crate) owner: bool,
    /// Another client changes capabilities, migrates, cancels, and starts the destination.
    pub(crate) client: bool,
    /// A process ends.
    pub(crate) deaths: bool,
    /// The RAM channel breaks.
    pub(crate) channel: bool,
    /// The engine dies.
    pub(crate) engine: bool,
    /// Monitors close, though their processes live on.
    pub(crate) monitors: bool,
    /// A QEMU is replaced by another at the same address.
    pub(crate) replaced: bool,
    /// A person finishes by hand what a dead engine had begun.
    pub(crate) person: bool,
}

/// One wrong thing that the engine's driver does, or says to a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApproachMutation {
    /// The way back does not know that a verdict has found the guest on the source.
    VerdictForgotten,
    /// Capabilities are set before the disks are copied, and are not looked at again.
    CapabilitiesAreEarly,
    /// A `migrate` that QEMU refused is undone.
    RefusalIsAnEffect,
    /// `stop` goes to the destination once, before the disks.
    StopIsSentOnce,
    /// A side that could not be asked is fenced.
    UnaskedIsFenced,
    /// `paused` on the way back is taken for the engine's own stop.
    PausedNeedsCont,
    /// The run state is not asked for: each stop while RAM is sent is taken for QEMU's.
    EveryStopIsQemus,
    /// No event tells why a guest stands.
    HaltsAreUnheard,
    /// `prelaunch` is not taken for a guest that stands.
    ResetIsNoStop,
    /// The machines are looked at once, by the checks.
    OneLookAtTheMachines,
    /// Whatever answers at an address is taken for the QEMU that took part.
    EveryAnswerIsOurs,
    /// An event that told `completed` counts as an answer of a source that is gone.
    EventsAreAnswers,
    /// What the destination's events have told of a guest that ran there is forgotten.
    RunIsForgotten,
    /// A source that passes the guest on without this engine is cancelled before the destination is put out of the way.
    SourceIsCancelledFirst,
    /// A guest that is not to run waits for the disks for as long as they take.
    OwnerWaitsForDisks,
    /// The destination is looked at by the checks, and not again before its disks are served and mirrored.
    DestinationIsLookedAtOnce,
    /// A migration of the source that passes the guest on is taken for one to this run's destination.
    EveryMigrationLeadsHere,
    /// No event tells that another client has begun a migration since.
    EveryMigrationIsOurs,
    /// A destination that serves this run's disks is taken for one that takes this run's guest.
    ServedIsOurs,
    /// No journal tells that `cont` may have been sent to the destination.
    StartIsForgotten,
}

/// What is explored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ApproachModel {
    pub(crate) kinds: FaultKinds,
    /// How many faults there may be in one run.
    pub(crate) faults: u8,
    /// How often the run is recovered from the journal.
    pub(crate) recoveries: u8,
    /// There are disks to copy.
    pub(crate) disks: bool,
    /// RAM is begun beside the mirrors.
    pub(crate) overlaps: bool,
    /// Both QEMUs are processes of the engine's host, which proves their ends and can end them.
    pub(crate) local: bool,
    /// A QEMU that is started anew has the numbers of threads that the earlier one had, as in a container.
    pub(crate) same_numbers: bool,
    pub(crate) mutation: Option<ApproachMutation>,
}

pub(crate) const NO_FAULTS: FaultKinds = FaultKinds {
    guest: false,
    owner: false,
    client: false,
    deaths: false,
    channel: false,
    engine: false,
    monitors: false,
    replaced: false,
    person: false,
};

pub(crate) const APPROACH: ApproachModel = ApproachModel {
    kinds: NO_FAULTS,
    faults: 2,
    recoveries: 1,
    disks: true,
    overlaps: true,
    local: true,
    same_numbers: false,
    mutation: None,
};

impl ApproachModel {
    pub(super) fn list_qemu_actions(world: &ApproachWorld, actions: &mut Vec<ApproachAction>) {
        let ApproachWorld { source, destination, .. } = world;
        if source.is_up() && source.mirror == MirrorPhase::Copies && destination.is_up() {
            actions.push(ApproachAction::MirrorReady);
        }
        let listens = destination.is_up() && destination.phase == DestinationPhase::Listens;
        let sends = matches!(source.phase, SourcePhase::Sends | SourcePhase::Device) && !source.is_foreign;
        if source.is_up() && source.phase == SourcePhase::Sends && (world.channel || source.is_foreign) {
            match source.halt {
                None if is_followed(world) => actions.push(ApproachAction::Halt),
                None => {}
                Some(_) => actions.push(ApproachAction::SwitchOver),
            }
        }
        // What is in the channel's buffers arrives though the source has closed it.
        if listens && world.sent {
            actions.push(ApproachAction::Load);
        }
        let is_told = (destination.phase == DestinationPhase::Loaded || !source.returns) && world.channel;
        if source.is_up() && source.phase == SourcePhase::Device && is_told && !source.is_foreign {
            actions.push(ApproachAction::Complete);
        }
        if source.is_up() && sends && (!world.channel || destination.phase == DestinationPhase::Failed) {
            actions.push(ApproachAction::FailSource);
        }
        if listens && !world.channel {
            actions.push(ApproachAction::FailDestination);
        }
    }

    pub(super) fn list_faults(&self, world: &ApproachWorld, actions: &mut Vec<ApproachAction>) {
        let ApproachWorld { source, destination, engine, .. } = world;
        let FaultKinds { guest, owner, client, deaths, channel, engine: dies, monitors, replaced, person } = self.kinds;
        // Events of the destination's guest after it moved are not the engine's any more.
        if source.is_up() && source.halt != Some(MigrationHalt::Completed) {
            if guest && source.runs() {
                let stands = [GuestStand::Shutdown, GuestStand::Panicked, GuestStand::IoError, GuestStand::Suspended];
                actions.extend(stands.map(ApproachAction::Guest));
            }
            if owner && source.runs() {
                actions.push(ApproachAction::OwnerStops);
            }
            if owner && source.halt.is_none() && !source.runs() {
                actions.extend([ApproachAction::OwnerContinues, ApproachAction::OwnerResets]);
            }
        }
        if client && source.is_up() {
            if world.is_source_idle() {
                if source.pauses {
                    actions.push(ApproachAction::ForeignPausesOff);
                }
                if source.returns {
                    actions.push(ApproachAction::ForeignReturnsOff);
                }
                if engine.is_before_migrate() && !source.changed {
                    actions.push(ApproachAction::ForeignPlug);
                }
                // Capabilities and `migrate` are one burst.
                let in_burst = engine.stage == ApproachStage::Migrate;
                if engine.is_before_migrate() && !in_burst && source.halt.is_none() {
                    actions.push(ApproachAction::ForeignMigrate);
                }
            } else {
                actions.push(ApproachAction::ForeignCancel);
            }
            if source.phase == SourcePhase::Waits {
                actions.push(ApproachAction::ForeignContinue);
            }
        }
        let can_start = !destination.autostart && destination.phase != DestinationPhase::Failed && !destination.runs;
        if client && destination.is_up() && can_start {
            actions.push(ApproachAction::ForeignCont);
        }
        if deaths {
            for side in [Side::Source, Side::Destination] {
                if world.is_up(side) {
                    actions.push(ApproachAction::Die(side));
                }
            }
        }
        let under_way = matches!(source.phase, SourcePhase::Sends | SourcePhase::Waits | SourcePhase::Device)
            || destination.phase == DestinationPhase::Listens;
        if channel && world.channel && under_way {
            actions.push(ApproachAction::CutChannel);
        }
        if dies && !engine.is_over() {
            actions.push(ApproachAction::KillEngine);
        }
        for side in [Side::Source, Side::Destination] {
            if replaced && world.is_up(side) {
                actions.push(ApproachAction::Replace(side));
            }
            if monitors && world.asks(side) && !engine.is_over() {
                actions.push(ApproachAction::CutMonitor(side));
            }
            let is_free = world.is_up(side) && world.address(side) == MonitorAddress::Free && !world.asks(side);
            if person && is_free {
                actions.push(ApproachAction::Hold(side));
            }
        }
        if person && engine.stage == ApproachStage::Died {
            let waits = source.is_up() && source.phase == SourcePhase::Waits;
            if waits {
                actions.push(ApproachAction::PersonContinues);
            }
            if source.is_up() && !world.is_source_idle() && destination.phase != DestinationPhase::Loaded {
                actions.push(ApproachAction::PersonCancels);
            }
            let is_loaded = destination.is_up() && destination.phase == DestinationPhase::Loaded && !destination.runs;
            if is_loaded && source.halt == Some(MigrationHalt::Completed) {
                actions.push(ApproachAction::PersonStarts);
            }
        }
    }

    /// Whether a side neither answers the engine nor is proved to have ended.
    pub(crate) fn is_out_of_reach(&self, world: &ApproachWorld) -> bool {
        [Side::Source, Side::Destination].into_iter().any(|side| !world.asks(side) && !self.proves_end(world, side))
    }

    /// Whether nothing happens any more by itself.
    pub(crate) fn is_at_rest(world: &ApproachWorld) -> bool {
        let mut actions = Vec::new();
        Self::list_qemu_actions(world, &mut actions);
        actions.is_empty()
    }
}

/// Whether the engine knows of every stop by the guest's owner, of which no event tells whose it is. Nothing but time
/// tells the one from the other where QEMU's own follows at once; the model leaves that instant out.
fn is_followed(world: &ApproachWorld) -> bool {
    match world.engine.stage {
        _ if world.source.stand.is_halted() => true,
        ApproachStage::Confirm | ApproachStage::Follow => {
            let mut guest = world.engine.guest.clone();
            let seen = world.source.seen.observed();
            if guest.follow(&seen) {
                guest.answered(&world.source.answer().0, &seen);
            }
            guest == world.engine.guest
        }
        ApproachStage::Ask(_) => false,
        _ => true,
    }
}

impl ApproachAction {
    fn is_fault(self) -> bool {
        use ApproachAction::{
            Complete, FailDestination, FailSource, Halt, Interrupt, Leave, Load, MirrorReady, Recover, Step, SwitchOver,
        };
        !matches!(
            self,
            Step | Interrupt
                | Recover
                | MirrorReady
                | Halt
                | SwitchOver
                | Load
                | Complete
                | FailSource
                | FailDestination
                | Leave(_)
        )
    }
}

impl Model for ApproachModel {
    type State = ApproachWorld;
    type Action = ApproachAction;

    fn init_states(&self) -> Vec<ApproachWorld> {
        vec![ApproachWorld::new(GuestStand::Runs), ApproachWorld::new(GuestStand::Paused)]
    }

    fn actions(&self, world: &ApproachWorld, actions: &mut Vec<ApproachAction>) {
        let ApproachEngine { stage, .. } = &world.engine;
        if self.can_step(world) {
            actions.push(ApproachAction::Step);
        }
        if world.engine.can_go_back() {
            actions.push(ApproachAction::Interrupt);
        }
        let may_recover =
            matches!(stage, ApproachStage::Died | ApproachStage::Over(Ending::Undetermined | Ending::Stuck));
        if may_recover && world.recoveries < self.recoveries {
            actions.push(ApproachAction::Recover);
        }
        Self::list_qemu_actions(world, actions);
        for side in [Side::Source, Side::Destination] {
            if world.address(side) == MonitorAddress::Held {
                actions.push(ApproachAction::Leave(side));
            }
        }
        if world.faults < self.faults {
            self.list_faults(world, actions);
        }
    }

    fn next_state(&self, before: &ApproachWorld, action: ApproachAction) -> Option<ApproachWorld> {
        let mut world = before.clone();
        world.faults += u8::from(action.is_fault());
        match action {
            ApproachAction::Step => self.step(&mut world),
            ApproachAction::Interrupt => self.turn_back(&mut world),
            ApproachAction::Recover => self.recover(&mut world),
            ApproachAction::MirrorReady => world.source.mirror = MirrorPhase::Ready,
            ApproachAction::Halt => world.halt_source(),
            ApproachAction::SwitchOver if world.source.pauses => world.source.phase = SourcePhase::Waits,
            ApproachAction::SwitchOver => {
                world.source.phase = SourcePhase::Device;
                world.sent |= !world.source.is_foreign;
            }
            ApproachAction::Load => world.load(),
            ApproachAction::Complete => {
                world.source.phase = SourcePhase::Completed;
                world.source.halt = Some(MigrationHalt::Completed);
            }
            ApproachAction::FailSource => world.end_source_migration(SourcePhase::Failed),
            ApproachAction::FailDestination => world.destination.phase = DestinationPhase::Failed,
            ApproachAction::Guest(stand) => {
                world.source.stop_by_itself(stand);
                if self.mutation == Some(ApproachMutation::HaltsAreUnheard) {
                    world.source.seen.halted = None;
                }
            }
            ApproachAction::Die(side) => world.die(side),
            ApproachAction::OwnerStops => world.source.stop_by_itself(GuestStand::Paused),
            ApproachAction::OwnerContinues => {
                world.continue_source();
            }
            ApproachAction::OwnerResets => world.source.stand = GuestStand::Prelaunch,
            ApproachAction::ForeignPausesOff => world.source.pauses = false,
            ApproachAction::ForeignReturnsOff => world.source.returns = false,
            ApproachAction::ForeignMigrate => {
                (world.source.phase, world.source.is_foreign) = (SourcePhase::Sends, true);
            }
            ApproachAction::ForeignPlug => world.source.changed = true,
            ApproachAction::ForeignCancel => world.end_source_migration(SourcePhase::Cancelled),
            ApproachAction::ForeignContinue => {
                (world.source.phase, world.sent, world.foreign_continued) = (SourcePhase::Device, true, true);
            }
            ApproachAction::ForeignCont => world.continue_destination_for_another(),
            ApproachAction::CutChannel => world.channel = false,
            ApproachAction::CutMonitor(side) => world.lose_contact(side),
            ApproachAction::Replace(side) => {
                world.die(side);
                world.set_address(side, MonitorAddress::Another);
            }
            ApproachAction::Hold(side) => world.set_address(side, MonitorAddress::Held),
            ApproachAction::Leave(side) => world.set_address(side, MonitorAddress::Free),
            ApproachAction::PersonContinues => {
                (world.source.phase, world.sent, world.person_continued) = (SourcePhase::Device, true, true);
            }
            ApproachAction::PersonStarts => {
                world.person_continued = true;
                world.run_destination();
            }
            ApproachAction::PersonCancels => world.end_source_migration(SourcePhase::Cancelled),
            ApproachAction::KillEngine => {
                let engine = &mut world.engine;
                (engine.reaches_source, engine.reaches_destination) = (false, false);
                world.cont_forgotten |= !world.engine.may_resume;
                world.engine.stage = ApproachStage::Died;
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::list()
    }
}
