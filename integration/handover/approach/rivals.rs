//! Two engines that do not know of each other: with one source and two destinations, with two sources and one
//! destination, or with one pair.
//!
//! Each run is an approach of its own, with the same driver and the same shipped decisions. What the two share, a QEMU
//! and its migration, is carried over to the other run after each step. Both engines begin after their checks, which
//! saw both sides free: an engine that comes later is refused. What is left to tell one from the other is what QEMU
//! refuses, the looks at both sides before each step that needs them free, and the events.

use super::{
    engine::ApproachStage,
    model::{ApproachAction, ApproachModel, ApproachMutation},
    properties::{AGAINST_OWNER, DISKS, FOREIGN, KILLED, NONE, STOPPED, TRUE, TWO_RUNNERS, UNDONE},
    world::{ApproachWorld, DestinationPhase, GuestStand, MirrorPhase, QemuPresence},
};
use qferry::internals::progress::{Ending, Side};
use stateright::{Model, Property};

/// What the two runs have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SharedSide {
    Source,
    Destination,
    Both,
}

impl SharedSide {
    fn has_source(self) -> bool {
        self != Self::Destination
    }

    fn has_destination(self) -> bool {
        self != Self::Source
    }
}

/// Two engines at work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RivalModel {
    pub(crate) shared: SharedSide,
    /// What each of the two does, and which faults there are.
    pub(crate) each: ApproachModel,
}

/// How often each copy of a guest has begun to run, as far as the copy has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct GuestVersions {
    source: u8,
    /// What is on its way to the destination of a run.
    sent: [u8; 2],
    destination: [u8; 2],
}

/// Both runs, each with both sides as it meets them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RivalWorld {
    pub(crate) runs: [ApproachWorld; 2],
    /// Whose migration the shared source has, or had last.
    sends_for: Option<usize>,
    /// Whose migration the shared destination takes.
    listens_for: Option<usize>,
    /// One guest, or one of each source.
    versions: [GuestVersions; 2],
    faults: u8,
    undone: bool,
}

/// One run's step, or what happens to a side as this run meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RivalAction(usize, ApproachAction);

impl RivalModel {
    /// The number of a run's guest.
    fn guest_of(&self, run: usize) -> usize {
        if self.shared.has_source() { 0 } else { run }
    }

    /// Whether the destination of a run runs that run's guest.
    fn runs_on_destination(&self, world: &RivalWorld, run: usize) -> bool {
        let is_other = self.shared.has_destination() && world.listens_for != Some(run);
        world.runs[run].destination.runs && !is_other
    }

    fn count_runners(&self, world: &RivalWorld, guest: usize) -> usize {
        let destinations = (0..2).filter(|run| self.guest_of(*run) == guest);
        usize::from(world.runs[guest].source.runs())
            + destinations.filter(|run| self.runs_on_destination(world, *run)).count()
    }

    /// Carries over what the run `acted` has done to what both share.
    fn share(&self, before: &RivalWorld, world: &mut RivalWorld, acted: usize) {
        let other = 1 - acted;
        let (was, is) = (&before.runs[acted], world.runs[acted].clone());
        if self.shared.has_source() {
            let has_begun = was.is_source_idle() && !is.is_source_idle();
            let has_ended = !was.is_source_idle() && is.is_source_idle();
            let hears = self.each.mutation != Some(ApproachMutation::EveryMigrationIsOurs);
            if has_begun {
                world.sends_for = Some(acted);
            }
            let [run, rival] = world.runs.get_disjoint_mut([acted, other]).expect("two runs");
            rival.engine.is_followed |= hears && has_begun && rival.engine.reaches_source && !rival.engine.is_over();
            let mirror = rival.source.mirror;
            rival.source.clone_from(&is.source);
            rival.source.mirror = mirror;
            if world.sends_for == Some(other) {
                rival.sent |= is.sent && !was.sent;
                rival.channel &= !has_ended;
                (run.sent, run.channel) = (was.sent, was.channel);
            }
        }
        if self.shared.has_destination() {
            if was.destination.phase == DestinationPhase::Fresh && is.destination.phase == DestinationPhase::Listens {
                world.listens_for = Some(acted);
            }
            let rival = &mut world.runs[other].destination;
            let exported = rival.exported && is.destination.presence == QemuPresence::Up;
            rival.clone_from(&is.destination);
            rival.exported = exported;
        }
        let is_busy = |run: &ApproachWorld| matches!(run.source.mirror, MirrorPhase::Copies | MirrorPhase::Ready);
        let mirrors = [is_busy(&world.runs[0]), is_busy(&world.runs[1])];
        let exported = [world.runs[0].destination.exported, world.runs[1].destination.exported];
        for (n, run) in world.runs.iter_mut().enumerate() {
            if self.shared.has_source() {
                run.source.is_foreign = world.sends_for.is_some_and(|owner| owner != n);
                run.source.is_mirrored = mirrors[1 - n];
            }
            if self.shared.has_destination() {
                run.destination.is_foreign = world.listens_for.is_some_and(|owner| owner != n);
                run.destination.is_served = exported[1 - n];
            }
            run.channel &= run.source.is_up() && run.destination.is_up();
        }
        self.age(before, world);
    }

    /// Keeps count of what each copy of a guest has.
    fn age(&self, before: &RivalWorld, world: &mut RivalWorld) {
        for run in 0..2 {
            let guest = self.guest_of(run);
            let (was, is) = (&before.runs[run], &world.runs[run]);
            let (has_sent, has_loaded) = (
                is.sent && !was.sent,
                was.destination.phase != DestinationPhase::Loaded && is.destination.phase == DestinationPhase::Loaded,
            );
            let versions = &mut world.versions[guest];
            if has_sent {
                versions.sent[run] = versions.source;
            }
            if has_loaded && !is.destination.is_foreign {
                versions.destination[run] = versions.sent[run];
            }
        }
        for run in 0..2 {
            let guest = self.guest_of(run);
            if self.runs_on_destination(world, run) && !self.runs_on_destination(before, run) {
                let versions = &mut world.versions[guest];
                world.undone |= versions.destination[run] < versions.latest();
                versions.destination[run] = versions.latest() + 1;
            }
            if guest == run && world.runs[run].source.runs() && !before.runs[run].source.runs() {
                let versions = &mut world.versions[guest];
                world.undone |= versions.source < versions.latest();
                versions.source = versions.latest() + 1;
                for run in world.runs.iter_mut().filter(|run| run.sent) {
                    run.source_ran_on = true;
                }
            }
        }
    }

    /// Whether a recovery of a run is refused: the other engine, whose journal tells of it, is at work, or the names of
    /// its objects are in one of the two QEMUs.
    fn is_refused(run: &ApproachWorld, rival: &ApproachWorld) -> bool {
        run.source.is_mirrored || run.destination.is_served || !rival.engine.is_over()
    }

    fn list_actions(&self, world: &RivalWorld, n: usize) -> Vec<ApproachAction> {
        let run = &world.runs[n];
        let mut actions = Vec::new();
        if self.each.can_step(run) {
            actions.push(ApproachAction::Step);
        }
        if run.engine.can_go_back() {
            actions.push(ApproachAction::Interrupt);
        }
        let may_recover =
            matches!(run.engine.stage, ApproachStage::Died | ApproachStage::Over(Ending::Undetermined | Ending::Stuck));
        if may_recover && run.recoveries < self.each.recoveries && !Self::is_refused(run, &world.runs[1 - n]) {
            actions.push(ApproachAction::Recover);
        }
        ApproachModel::list_qemu_actions(run, &mut actions);
        if world.faults < self.each.faults {
            self.each.list_faults(run, &mut actions);
        }
        // What a migration does is listed with the run whose migration that is.
        actions.retain(|action| match action {
            ApproachAction::Halt
            | ApproachAction::SwitchOver
            | ApproachAction::Complete
            | ApproachAction::FailSource
            | ApproachAction::CutChannel => !run.source.is_foreign,
            ApproachAction::Load | ApproachAction::FailDestination => !run.destination.is_foreign,
            ApproachAction::Die(Side::Source) => n == 0 || !self.shared.has_source(),
            ApproachAction::Die(Side::Destination) => n == 0 || !self.shared.has_destination(),
            _ => true,
        });
        actions
    }

    fn is_over(world: &RivalWorld) -> bool {
        let is_over = |run: &ApproachWorld| matches!(run.engine.stage, ApproachStage::Over(_));
        world.runs.iter().all(|run| is_over(run) && ApproachModel::is_at_rest(run))
    }

    /// Both engines are over, nothing but the two has happened, and a guest runs nowhere.
    fn is_left_standing(&self, world: &RivalWorld) -> bool {
        let guests = if self.shared.has_source() { 1 } else { 2 };
        Self::is_over(world) && world.faults == 0 && (0..guests).any(|guest| self.count_runners(world, guest) == 0)
    }

    /// A run's mirror writes to the disks of a guest that another run has handed over.
    fn is_written_over(&self, world: &RivalWorld) -> bool {
        let writes = |run: &ApproachWorld| {
            run.source.is_up() && matches!(run.source.mirror, MirrorPhase::Copies | MirrorPhase::Ready)
        };
        self.shared.has_destination()
            && world.runs.iter().any(|run| run.destination.runs && run.destination.is_foreign && writes(run))
    }
}

impl GuestVersions {
    fn latest(&self) -> u8 {
        self.source.max(self.destination[0]).max(self.destination[1])
    }
}

impl Model for RivalModel {
    type State = RivalWorld;
    type Action = RivalAction;

    fn init_states(&self) -> Vec<RivalWorld> {
        let run = ApproachWorld::new(GuestStand::Runs);
        vec![RivalWorld {
            runs: [run.clone(), run],
            sends_for: None,
            listens_for: None,
            versions: [GuestVersions::default(); 2],
            faults: 0,
            undone: false,
        }]
    }

    fn actions(&self, world: &RivalWorld, actions: &mut Vec<RivalAction>) {
        for n in 0..2 {
            actions.extend(self.list_actions(world, n).into_iter().map(|action| RivalAction(n, action)));
        }
    }

    fn next_state(&self, before: &RivalWorld, RivalAction(n, action): RivalAction) -> Option<RivalWorld> {
        let mut world = before.clone();
        world.runs[n] = self.each.next_state(&before.runs[n], action)?;
        world.faults += world.runs[n].faults;
        world.runs[n].faults = 0;
        self.share(before, &mut world, n);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(TWO_RUNNERS, |model: &Self, world: &RivalWorld| {
                (0..2).all(|guest| model.count_runners(world, model.guest_of(guest)) < 2)
            }),
            Property::always(UNDONE, |_, world: &RivalWorld| !world.undone),
            Property::always(KILLED, |_, world: &RivalWorld| world.runs.iter().all(|run| !run.broken.killed)),
            Property::always(STOPPED, |_, world: &RivalWorld| world.runs.iter().all(|run| !run.broken.stopped)),
            Property::always(AGAINST_OWNER, |_, world: &RivalWorld| {
                world.runs.iter().all(|run| !run.broken.against_owner)
            }),
            Property::always(TRUE, |model: &Self, world: &RivalWorld| {
                // A recovery has heard no event, and nothing else tells where a source that has ended passed its guest.
                let is_told = |run: usize| {
                    let ApproachWorld { engine, recoveries, .. } = &world.runs[run];
                    engine.stage == ApproachStage::Over(Ending::Ended) && *recoveries == 0
                };
                let is_wrong = |run| is_told(run) && model.count_runners(world, model.guest_of(run)) > 0;
                !(0..2).any(is_wrong) && world.runs.iter().all(|run| !run.broken.untrue)
            }),
            Property::always(DISKS, |model: &Self, world: &RivalWorld| {
                world.runs.iter().all(|run| !run.broken.torn_disks) && !model.is_written_over(world)
            }),
            Property::always(FOREIGN, |_, world: &RivalWorld| {
                world.runs.iter().all(|run| !run.broken.foreign_cancelled)
            }),
            Property::always(NONE, |model: &Self, world: &RivalWorld| !model.is_left_standing(world)),
            Property::sometimes("one moves its guest and the other goes back", |_, world: &RivalWorld| {
                let ended = |run: usize, ending| world.runs[run].engine.stage == ApproachStage::Over(ending);
                ended(0, Ending::Moved) && (ended(1, Ending::RolledBack) || ended(1, Ending::Undetermined))
            }),
        ]
    }
}
