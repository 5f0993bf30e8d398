//! What must hold in every state of the approach, and the ends that must be reached in some.

use super::{
    engine::ApproachStage,
    model::ApproachModel,
    world::{ApproachWorld, DestinationPhase, GuestStand, MirrorPhase, SourcePhase},
};
use qferry::internals::progress::Ending;
use stateright::Property;

pub(crate) const TWO_RUNNERS: &str = "there are never two runners";
pub(crate) const UNDONE: &str = "nothing that a guest did is undone";
pub(crate) const KILLED: &str = "no guest that runs is ended";
pub(crate) const STOPPED: &str = "nobody else's guest is stopped";
pub(crate) const AGAINST_OWNER: &str = "a guest that stopped by itself or its owner is sent no cont";
pub(crate) const DISKS: &str = "no guest is started with disks that are not whole";
pub(crate) const FOREIGN: &str = "nobody else's migration is cancelled";
pub(crate) const HELD: &str = "nobody else's migration is held by a capability of ours";
pub(crate) const STRANGER: &str = "no other QEMU is taken for the one that took part";
pub(crate) const TRUE: &str = "what an engine says is true";
pub(crate) const NONE: &str = "a guest that is to run runs";
pub(crate) const WAITS: &str = "no owner waits for the disks to have the guest back";
pub(crate) const VAGUE: &str = "no end is vaguer than what is proved";

/// All properties.
pub(crate) fn list() -> Vec<Property<ApproachModel>> {
    vec![
        Property::always(TWO_RUNNERS, |_, world: &ApproachWorld| {
            !(world.source.runs() && world.destination.runs) || world.foreign_cont
        }),
        Property::always(UNDONE, |_, world: &ApproachWorld| !world.broken.undone || world.foreign_cont),
        Property::always(KILLED, |_, world: &ApproachWorld| !world.broken.killed),
        Property::always(STOPPED, |_, world: &ApproachWorld| !world.broken.stopped),
        Property::always(AGAINST_OWNER, |_, world: &ApproachWorld| !world.broken.against_owner),
        Property::always(TRUE, |_, world: &ApproachWorld| !world.broken.untrue),
        Property::always(DISKS, |_, world: &ApproachWorld| !world.broken.torn_disks),
        Property::always(HELD, |_, world: &ApproachWorld| {
            !(world.source.is_foreign && world.source.phase == SourcePhase::Waits)
        }),
        Property::always(STRANGER, |_, world: &ApproachWorld| !world.broken.stranger),
        Property::always("the QEMU that took part is recognized", |_, world: &ApproachWorld| {
            !world.broken.unrecognized
        }),
        Property::always(FOREIGN, |_, world: &ApproachWorld| !world.broken.foreign_cancelled),
        Property::always(NONE, |model: &ApproachModel, world: &ApproachWorld| !is_left_standing(model, world)),
        Property::always(VAGUE, |model: &ApproachModel, world: &ApproachWorld| !is_vague(model, world)),
        Property::always(WAITS, |model: &ApproachModel, world: &ApproachWorld| !is_kept_waiting(model, world)),
        Property::sometimes("moved", |_, world| ended(world, Ending::Moved)),
        Property::sometimes("back", |_, world| ended(world, Ending::RolledBack)),
    ]
}

fn ended(world: &ApproachWorld, ending: Ending) -> bool {
    world.engine.stage == ApproachStage::Over(ending)
}

fn is_over(world: &ApproachWorld) -> bool {
    matches!(world.engine.stage, ApproachStage::Over(_)) && ApproachModel::is_at_rest(world)
}

/// The engine is over, and a guest that is to run stands still, though an answer or the end of a process proves which
/// side may run it.
fn is_left_standing(model: &ApproachModel, world: &ApproachWorld) -> bool {
    let ApproachWorld { source, destination, .. } = world;
    let is_whole = source.is_up() || source.mirror == MirrorPhase::Settled;
    let has_all = destination.is_up() && destination.phase == DestinationPhase::Loaded && is_whole;
    let can_run = match source.is_up() {
        // Where the destination ran and has ended, its memory is lost.
        true => has_all || !(world.destination_ran || world.is_cont_in_doubt()),
        false => has_all && !world.source_ran_on && !is_source_in_doubt(world) && !world.foreign_continued,
    };
    // Another client's migration that completed has taken the guest elsewhere.
    let runs = source.runs() || destination.runs || source.is_foreign;
    is_over(world)
        && source.stand == GuestStand::Runs
        && can_run
        && !runs
        && !model.is_out_of_reach(world)
        && !world.person_continued
}

/// A recovery cannot know whether a source that has ended had run on before.
fn is_source_in_doubt(world: &ApproachWorld) -> bool {
    world.recoveries > 0 && !world.source.is_up() && world.destination.is_up()
}

/// The engine says that nothing is proved, though each side answers or is proved to have ended, and no `cont` is in
/// doubt.
fn is_vague(model: &ApproachModel, world: &ApproachWorld) -> bool {
    // The only whole copy of the memory is the destination's, and nobody knows of its disks, or who is to start it.
    let has_only_copy = !world.source.is_up()
        && world.destination.is_up()
        && world.destination.phase == DestinationPhase::Loaded
        && (world.source.mirror != MirrorPhase::Settled || world.foreign_continued);
    // The destination has an older state than a source that has resumed and died, and a person decides about it.
    let has_older_copy = !world.source.is_up()
        && world.source_ran_on
        && world.destination.is_up()
        && world.destination.phase == DestinationPhase::Loaded;
    // While another client's migration stops the guest, nothing tells how the guest stands.
    let in_doubt = world.destination_ran
        || world.is_cont_in_doubt()
        || is_source_in_doubt(world)
        || has_only_copy
        || has_older_copy
        || model.is_out_of_reach(world)
        || world.person_continued
        || world.source.is_foreign;
    is_over(world) && ended(world, Ending::Undetermined) && !in_doubt
}

/// The engine waits for the disks with a guest that QEMU keeps from its owner until then.
fn is_kept_waiting(model: &ApproachModel, world: &ApproachWorld) -> bool {
    let waits = world.engine.stage == ApproachStage::WaitForMirrors && world.source.mirror == MirrorPhase::Copies;
    waits && !world.engine.guest.wants_running() && !model.can_step(world)
}
