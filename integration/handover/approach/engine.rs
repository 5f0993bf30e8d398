//! The engine from its first change to the guest that runs on the destination, and the recovery that takes it up.
//!
//! What the guest's owner wants is the shipped [`GuestIntent`]'s to tell; which step follows a handover that failed is
//! the shipped judgement's.

use super::{
    model::{ApproachModel, ApproachMutation},
    way_back::WayBackStep,
    world::{
        ApproachWorld, DestinationPhase, DestinationQemu, GuestStand, MigrationHalt, MirrorPhase, RecordedClaim,
        SeenEvents, SourcePhase,
    },
};
use crate::engines::ModelledJudgement;
use qferry::internals::{
    handover::verdict::ContKnowledge,
    migration::GuestIntent,
    progress::{Ending, Side},
    qemu::reply::RunState,
};

/// How far the engine is; the name is that of the step it takes next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ApproachStage {
    /// The destination is told to wait, if it still does.
    SetUp,
    /// The destination serves its disks, which it does for one run at a time.
    Serve,
    /// Whoever serves the disks looks whether somebody else hands the destination a guest.
    LookAtDestination,
    StartMirrors,
    /// RAM is begun once the mirrors are ready, or beside them.
    CopyDisks,
    /// Asks for the last time before RAM is sent how the guest stands.
    LookBeforeMemory,
    /// Nothing has changed since the checks, and nobody else uses either side.
    LookAgain,
    Listen,
    /// Capabilities are set right before `migrate`.
    Tune,
    Migrate,
    /// Right behind `migrate` the capabilities are asked for once more: QEMU lets nobody change them any more.
    Confirm,
    /// Follows the source's events while RAM is sent.
    Follow,
    /// `query-status` is asked, since the events ask for it.
    Ask(SeenEvents),
    /// The guest is stopped in `pre-switchover`.
    WaitForMirrors,
    Disengage,
    Continue,
    Arrive,
    Start,
    Tidy,
    GoBack(WayBackStep),
    /// The handover has failed after `migrate-continue`.
    Judge(Box<ModelledJudgement>),
    Over(Ending),
    Died,
}

/// The engine, or the recovery that took its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ApproachEngine {
    pub(crate) stage: ApproachStage,
    pub(crate) guest: GuestIntent,
    /// `migrate-continue` was not sent: the source may be resumed without further proof.
    pub(crate) may_resume: bool,
    /// The connection to the source is open.
    pub(crate) reaches_source: bool,
    pub(crate) reaches_destination: bool,
    /// The engine has heard every event of the source, and of the destination.
    pub(crate) follows_source: bool,
    pub(crate) follows_destination: bool,
    /// The source's events have told that another migration began after this run's.
    pub(crate) is_followed: bool,
    /// The engine has ended the destination, or the destination has accepted `quit`.
    pub(crate) ended_destination: bool,
    /// The destination was told to listen, though that may be undone by now.
    pub(crate) listened: bool,
    /// The way back has left something alone.
    pub(crate) leaves_something: bool,
}

impl ApproachEngine {
    pub(crate) fn new(run: &RunState) -> Self {
        Self {
            stage: ApproachStage::SetUp,
            guest: GuestIntent::new(run),
            may_resume: true,
            reaches_source: true,
            reaches_destination: true,
            follows_source: true,
            follows_destination: true,
            is_followed: false,
            ended_destination: false,
            listened: false,
            leaves_something: false,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, ApproachStage::Over(_) | ApproachStage::Died)
    }

    /// The engine has not sent `migrate` yet.
    pub(crate) fn is_before_migrate(&self) -> bool {
        use ApproachStage::{
            CopyDisks, Listen, LookAgain, LookAtDestination, LookBeforeMemory, Migrate, Serve, SetUp, StartMirrors,
            Tune,
        };
        let is_setting_up = matches!(self.stage, SetUp | Serve | LookAtDestination | StartMirrors | CopyDisks);
        is_setting_up || matches!(self.stage, LookBeforeMemory | LookAgain | Listen | Tune | Migrate)
    }

    /// Whether a failure, or the user, still sends this engine back to the source without a judgement.
    pub(crate) fn can_go_back(&self) -> bool {
        use ApproachStage::{Ask, Confirm, Continue, Disengage, Follow, WaitForMirrors};
        let under_way = matches!(self.stage, Confirm | Follow | Ask(_) | WaitForMirrors | Disengage | Continue);
        self.is_before_migrate() || under_way
    }
}

impl ApproachModel {
    /// Whether the engine can take its next step; a step that would change nothing is none.
    pub(crate) fn can_step(&self, world: &ApproachWorld) -> bool {
        let ApproachWorld { source, destination, engine, .. } = world;
        match &engine.stage {
            ApproachStage::CopyDisks => {
                let mut guest = engine.guest.clone();
                guest.look(&source.answer().0);
                let is_changed = guest != engine.guest;
                let is_done = self.overlaps || source.mirror == MirrorPhase::Ready;
                is_done || is_changed || world.is_migrated_by_another() || self.has_to_go_back(world)
            }
            ApproachStage::Follow => {
                let mut guest = engine.guest.clone();
                let must_ask = guest.follow(&source.seen.observed());
                let has_told = source.phase != SourcePhase::Sends || engine.is_followed;
                must_ask || guest != engine.guest || has_told || self.has_to_go_back(world)
            }
            ApproachStage::WaitForMirrors => {
                let waits = source.mirror == MirrorPhase::Copies && !self.may_end_the_wait(world);
                !waits || self.has_to_go_back(world)
            }
            ApproachStage::Arrive => {
                let both = source.phase == SourcePhase::Completed
                    && !source.is_foreign
                    && destination.phase == DestinationPhase::Loaded;
                both || self.has_to_judge(world)
            }
            ApproachStage::Over(_) | ApproachStage::Died => false,
            _ => true,
        }
    }

    /// Whether the wait for the mirrors has an end: the budget of a guest that is to run, or the time for which another
    /// guest's owner may be kept from it.
    fn may_end_the_wait(&self, world: &ApproachWorld) -> bool {
        let is_mended = self.mutation != Some(ApproachMutation::OwnerWaitsForDisks);
        is_mended || world.engine.guest.wants_running()
    }

    /// Whether a side is gone, as its monitor tells: up to `migrate-continue` that ends the work.
    pub(crate) fn has_to_go_back(&self, world: &ApproachWorld) -> bool {
        !world.asks(Side::Source) || !world.asks(Side::Destination)
    }

    /// Whether a side has told that the handover failed.
    fn has_to_judge(&self, world: &ApproachWorld) -> bool {
        let failed = matches!(world.source.phase, SourcePhase::Failed | SourcePhase::Cancelled)
            || world.destination.phase == DestinationPhase::Failed;
        failed || world.engine.is_followed || self.has_to_go_back(world)
    }

    /// The engine takes its next step.
    pub(crate) fn step(&self, world: &mut ApproachWorld) {
        if world.engine.can_go_back() && self.has_to_go_back(world) {
            return self.turn_back(world);
        }
        match world.engine.stage.clone() {
            ApproachStage::SetUp => {
                if self.mutation == Some(ApproachMutation::CapabilitiesAreEarly) {
                    (world.source.pauses, world.source.returns, world.journal.tuned) = (true, true, true);
                }
                if !self.is_waiting(world) {
                    return self.turn_back(world);
                }
                world.broken.stopped |= world.destination.runs;
                (world.destination.autostart, world.destination.runs) = (false, false);
                world.engine.stage = if self.disks { ApproachStage::Serve } else { ApproachStage::LookBeforeMemory };
            }
            // Another run's server refuses this one, and an effect that was refused is no effect.
            ApproachStage::Serve if world.destination.is_served => self.turn_back(world),
            ApproachStage::Serve => {
                (world.journal.exported, world.destination.exported) = (true, true);
                world.engine.stage = ApproachStage::LookAtDestination;
            }
            ApproachStage::LookAtDestination => match self.is_waiting(world) {
                true => world.engine.stage = ApproachStage::StartMirrors,
                false => self.turn_back(world),
            },
            ApproachStage::StartMirrors => {
                world.journal.mirrored = true;
                if world.source.is_mirrored {
                    return self.turn_back(world);
                }
                world.source.mirror = MirrorPhase::Copies;
                world.engine.stage = ApproachStage::CopyDisks;
            }
            ApproachStage::CopyDisks if world.is_migrated_by_another() => self.turn_back(world),
            ApproachStage::CopyDisks => {
                world.engine.guest.look(&world.source.answer().0);
                world.journal_guest();
                if world.engine.guest.halt().is_some() {
                    return self.turn_back(world);
                }
                if self.overlaps || world.source.mirror == MirrorPhase::Ready {
                    world.engine.stage = ApproachStage::LookBeforeMemory;
                }
            }
            ApproachStage::LookBeforeMemory => {
                let guest = &mut world.engine.guest;
                guest.begin_memory(&world.source.seen.observed());
                guest.look(&world.source.answer().0);
                world.journal_guest();
                world.engine.stage = ApproachStage::LookAgain;
            }
            ApproachStage::LookAgain => {
                let is_one_look = self.mutation == Some(ApproachMutation::OneLookAtTheMachines);
                let is_free = world.is_source_idle()
                    && world.destination.phase == DestinationPhase::Fresh
                    && !world.destination.is_served;
                match is_one_look || (is_free && !world.source.changed) {
                    true => world.engine.stage = ApproachStage::Listen,
                    false => self.turn_back(world),
                }
            }
            ApproachStage::Listen => {
                let is_taken = world.destination.phase != DestinationPhase::Fresh;
                world.journal.incoming = !is_taken || self.mutation == Some(ApproachMutation::RefusalIsAnEffect);
                if is_taken {
                    return self.turn_back(world);
                }
                world.destination.phase = DestinationPhase::Listens;
                world.engine.stage = ApproachStage::Tune;
            }
            ApproachStage::Tune => {
                // QEMU refuses to change a capability while a migration is under way, which is somebody else's. An
                // effect that was refused is no effect.
                let is_early = self.mutation == Some(ApproachMutation::CapabilitiesAreEarly);
                let is_free = world.is_source_idle();
                world.journal.migrate = is_free || self.mutation == Some(ApproachMutation::RefusalIsAnEffect);
                if is_free && !is_early {
                    (world.source.pauses, world.source.returns, world.journal.tuned) = (true, true, true);
                }
                match is_free {
                    true => world.engine.stage = ApproachStage::Migrate,
                    false => self.turn_back(world),
                }
            }
            // QEMU migrates no guest that a migration has stopped.
            ApproachStage::Migrate if !world.is_source_idle() || world.source.halt.is_some() => {
                world.journal.migrate = self.mutation == Some(ApproachMutation::RefusalIsAnEffect);
                self.turn_back(world);
            }
            ApproachStage::Migrate => {
                (world.source.phase, world.source.is_foreign) = (SourcePhase::Sends, false);
                (world.destination.is_connected, world.engine.is_followed) = (true, false);
                world.engine.stage = ApproachStage::Confirm;
            }
            ApproachStage::Confirm => {
                let is_early = self.mutation == Some(ApproachMutation::CapabilitiesAreEarly);
                let is_as_proved =
                    !world.source.changed || self.mutation == Some(ApproachMutation::OneLookAtTheMachines);
                match is_as_proved && ((world.source.pauses && world.source.returns) || is_early) {
                    true => world.engine.stage = ApproachStage::Follow,
                    false => self.turn_back(world),
                }
            }
            ApproachStage::Follow => self.follow(world),
            ApproachStage::Ask(seen) => {
                let run = match self.mutation {
                    Some(ApproachMutation::EveryStopIsQemus) => RunState::FinishMigrate,
                    _ => self.read_run(world),
                };
                world.engine.guest.answered(&run, &seen.observed());
                world.journal_guest();
                match world.engine.guest.halt() {
                    Some(_) => self.turn_back(world),
                    None => world.engine.stage = ApproachStage::Follow,
                }
            }
            // The time for the mirrors may be over at any moment.
            ApproachStage::WaitForMirrors if world.source.mirror == MirrorPhase::Copies => self.turn_back(world),
            ApproachStage::WaitForMirrors => world.engine.stage = ApproachStage::Disengage,
            ApproachStage::Disengage => self.disengage(world),
            // QEMU refuses `migrate-continue` outside `pre-switchover`, and the refusal had no effect.
            ApproachStage::Continue if world.source.phase != SourcePhase::Waits => self.turn_back(world),
            ApproachStage::Continue => {
                world.engine.may_resume = false;
                (world.source.phase, world.sent) = (SourcePhase::Device, true);
                world.engine.stage = ApproachStage::Arrive;
            }
            ApproachStage::Arrive if self.has_to_judge(world) => self.begin_judging(world, ContKnowledge::Never),
            ApproachStage::Arrive => {
                let runs = world.engine.guest.wants_running();
                world.journal.starting |= runs && self.mutation != Some(ApproachMutation::StartIsForgotten);
                world.engine.stage = if runs { ApproachStage::Start } else { ApproachStage::Tidy };
            }
            ApproachStage::Start => {
                let known = self.start_destination(world);
                match known {
                    ContKnowledge::Sent if world.destination.runs => world.engine.stage = ApproachStage::Tidy,
                    known => self.begin_judging(world, known),
                }
            }
            ApproachStage::Tidy => self.tidy(world),
            ApproachStage::GoBack(step) => self.go_back(world, step),
            ApproachStage::Judge(judgement) => self.judge(world, *judgement),
            ApproachStage::Over(_) | ApproachStage::Died => {}
        }
    }

    /// Whether the destination still waits, as far as this engine looks.
    fn is_waiting(&self, world: &ApproachWorld) -> bool {
        let is_looked_at = self.mutation != Some(ApproachMutation::DestinationIsLookedAtOnce);
        world.destination.phase == DestinationPhase::Fresh || !is_looked_at
    }

    /// One look at the source's events while RAM is sent.
    fn follow(&self, world: &mut ApproachWorld) {
        match world.source.phase {
            _ if world.engine.is_followed => return self.turn_back(world),
            SourcePhase::Waits => {
                world.engine.guest.settle(&world.source.seen.observed());
                match world.engine.guest.halt() {
                    Some(_) => self.turn_back(world),
                    None => world.engine.stage = ApproachStage::WaitForMirrors,
                }
                return;
            }
            // `completed` without our `migrate-continue` is an end like any other for the events' reader.
            SourcePhase::Failed | SourcePhase::Cancelled | SourcePhase::Completed => return self.turn_back(world),
            SourcePhase::Idle | SourcePhase::Sends | SourcePhase::Device => {}
        }
        let seen = world.source.seen;
        let must_ask = world.engine.guest.follow(&seen.observed());
        world.journal_guest();
        if world.engine.guest.halt().is_some() {
            self.turn_back(world);
        } else if must_ask {
            world.engine.stage = ApproachStage::Ask(seen);
        }
    }

    /// The mirrors are settled, the exports closed, and `Given` is on the disk.
    fn disengage(&self, world: &mut ApproachWorld) {
        world.journal_guest();
        world.journal.claim = RecordedClaim::Given;
        world.source.mirror = MirrorPhase::Settled;
        let told_again = self.mutation != Some(ApproachMutation::StopIsSentOnce);
        if told_again {
            world.destination.autostart = false;
        }
        (world.destination.exported, world.disengaged) = (false, true);
        let inmigrate = world.destination.phase == DestinationPhase::Listens || !told_again;
        match inmigrate && !world.destination.is_served {
            true => world.engine.stage = ApproachStage::Continue,
            false => self.turn_back(world),
        }
    }

    /// `cont` to the destination.
    pub(crate) fn start_destination(&self, world: &mut ApproachWorld) -> ContKnowledge {
        if !world.asks(Side::Destination) {
            // A `cont` that could not be sent is not told from a `cont` without an answer.
            world.cont_lost = true;
            return ContKnowledge::Sent;
        }
        if world.destination.phase != DestinationPhase::Loaded {
            return ContKnowledge::Refused;
        }
        let stand = world.source.stand;
        world.broken.against_owner |= !stand.is_live();
        world.broken.torn_disks |= world.source.mirror != MirrorPhase::Settled || world.source.changed;
        if stand == GuestStand::Shutdown {
            return ContKnowledge::Refused;
        }
        world.run_destination();
        ContKnowledge::Sent
    }

    /// The guest is on the destination: the source is quit.
    fn tidy(&self, world: &mut ApproachWorld) {
        if !world.asks(Side::Destination) {
            let was_started = world.engine.guest.wants_running() || world.destination_ran;
            return match self.proves_end(world, Side::Destination) && world.engine.follows_destination && !was_started {
                true => world.engine.stage = ApproachStage::GoBack(WayBackStep::Cancel),
                false => world.end(Ending::Undetermined),
            };
        }
        if world.asks(Side::Source) {
            world.broken.killed |= world.source.runs();
            world.die(Side::Source);
        }
        world.end(Ending::Moved);
    }

    /// The engine takes up the journal of the engine before.
    pub(crate) fn recover(&self, world: &mut ApproachWorld) {
        world.recoveries += 1;
        let guest = GuestIntent::from_journal(world.journal.runs);
        let may_resume = world.journal.claim == RecordedClaim::Source;
        world.engine = ApproachEngine {
            stage: ApproachStage::Died,
            guest: guest.clone(),
            may_resume,
            reaches_source: false,
            reaches_destination: false,
            follows_source: false,
            follows_destination: false,
            is_followed: false,
            ended_destination: false,
            listened: false,
            leaves_something: false,
        };
        self.reach_again(world);
        let stage = match may_resume {
            true => ApproachStage::GoBack(WayBackStep::Look),
            false => ApproachStage::Judge(Box::new(self.take_up(world, &guest))),
        };
        world.engine.stage = stage;
    }
}

impl ApproachWorld {
    /// The journal is told whether the guest is to run, where that has changed.
    pub(crate) fn journal_guest(&mut self) {
        if let Some(runs) = self.engine.guest.take_change() {
            self.journal.runs = runs;
        }
    }

    /// The engine ends, and says how.
    pub(crate) fn end(&mut self, ending: Ending) {
        self.broken.untrue |= !self.is_true(ending);
        self.engine.stage = ApproachStage::Over(ending);
    }

    /// Whether an ending is so, by the true state of both sides.
    fn is_true(&self, ending: Ending) -> bool {
        // A guest that was not to run is as it was in `postmigrate`, too.
        let stands = self.source.halt == Some(MigrationHalt::Completed) && !self.source.stand.is_live();
        let on_source = self.source.is_up()
            && (self.source.halt.is_none() || stands)
            && (!self.destination_ran || self.foreign_cont);
        match ending {
            Ending::Moved => {
                let arrived = self.destination.phase == DestinationPhase::Loaded && !self.source_ran_on;
                arrived
                    && (self.destination.runs == self.source.stand.is_live()
                        || self.foreign_cont
                        || self.person_continued)
            }
            Ending::RolledBack | Ending::Cancelled => on_source && !self.is_destination_left_over(),
            Ending::Stuck => on_source,
            Ending::Ended => !self.source.is_up() && !self.is_destination_left_over() && !self.destination_ran,
            _ => true,
        }
    }

    /// A destination that was told to listen lives on, with the guest or a part of it.
    pub(crate) fn is_destination_left_over(&self) -> bool {
        let DestinationQemu { phase, is_foreign, .. } = &self.destination;
        self.destination.is_up() && *phase != DestinationPhase::Fresh && !is_foreign
    }
}
