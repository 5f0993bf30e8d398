//! What must hold in every state, and the ends that must be reached in some.

use crate::{
    engines::EngineStage,
    model::{HandoverModel, ModelAction},
    world::{HandoverWorld, MigrationPhase, QemuLife},
};
use qferry::internals::{
    handover::{
        judgement::JudgementStep,
        verdict::{ContKnowledge, HandoverFacts, HandoverVerdict},
    },
    progress::Side,
};
use stateright::{Model, Property};
use std::mem::discriminant;

pub(crate) const TWO_RUNNERS: &str = "there are never two runners";
pub(crate) const UNDONE: &str = "nothing that a guest did is undone";
pub(crate) const KILLED: &str = "no destination that runs is ended";
pub(crate) const WAY_ON: &str = "an engine that gives up had no safe way on";

/// All properties of one model.
pub(crate) fn list(model: &HandoverModel) -> Vec<Property<HandoverModel>> {
    let mut properties = vec![
        Property::always(TWO_RUNNERS, |_, world: &HandoverWorld| !(world.source.runs && world.destination.runs)),
        Property::always(UNDONE, |_, world: &HandoverWorld| !world.undone),
        Property::always(KILLED, |_, world: &HandoverWorld| !world.killed),
        Property::always("what an engine says is true", |_, world: &HandoverWorld| {
            world.engines.iter().all(|engine| match engine.stage {
                EngineStage::Over(_, HandoverVerdict::OnDestination) => world.destination_ran && !world.source_ran,
                EngineStage::Over(_, HandoverVerdict::OnSource) => world.source_ran && !world.destination_ran,
                EngineStage::Over(_, HandoverVerdict::Ended) => {
                    !world.destination_ran && [&world.source, &world.destination].iter().all(|side| !side.runs)
                }
                _ => true,
            })
        }),
        Property::always(WAY_ON, |model: &HandoverModel, world: &HandoverWorld| {
            world.engines.iter().enumerate().all(|(number, engine)| match &engine.stage {
                EngineStage::Over(Some(facts), HandoverVerdict::Undetermined(_)) => {
                    !has_way_on(model, world, number) || !is_settled(model, world, number, facts)
                }
                _ => true,
            })
        }),
        // Each of these ends is reached, so none of the properties above holds for want of a case.
        Property::sometimes("moved", |_, world| came_to(world, HandoverVerdict::OnDestination)),
        Property::sometimes("back", |_, world| came_to(world, HandoverVerdict::OnSource)),
        Property::sometimes("started", |_, world| came_to(world, HandoverVerdict::StartDestination)),
        Property::sometimes("resumed", |_, world| came_to(world, HandoverVerdict::ResumeSource)),
        Property::sometimes("cancelled", |_, world| came_to(world, HandoverVerdict::CancelMigration)),
        Property::sometimes("quit", |_, world| came_to(world, HandoverVerdict::QuitDestination)),
        Property::sometimes("freed", |_, world| came_to(world, HandoverVerdict::FreeSource)),
        Property::sometimes("undetermined", |_, world| came_to(world, HandoverVerdict::Undetermined(""))),
    ];
    if model.source.proves_death && model.destination.proves_death {
        let ended = |_: &HandoverModel, world: &HandoverWorld| came_to(world, HandoverVerdict::Ended);
        properties.push(Property::sometimes("ended", ended));
    }
    if model.source.fence {
        let fenced = |_: &HandoverModel, world: &HandoverWorld| came_to(world, HandoverVerdict::FenceSource);
        properties.push(Property::sometimes("source fenced", fenced));
    }
    if model.destination.fence {
        let fenced = |_: &HandoverModel, world: &HandoverWorld| came_to(world, HandoverVerdict::FenceDestination);
        properties.push(Property::sometimes("destination fenced", fenced));
    }
    properties
}

/// Whether an engine has come to a verdict of this kind.
fn came_to(world: &HandoverWorld, kind: HandoverVerdict) -> bool {
    world.engines.iter().any(|engine| {
        let verdict = match (&engine.stage, engine.step_due()) {
            (EngineStage::Over(_, verdict), _) => *verdict,
            (_, Some(JudgementStep::CarryOut(verdict))) => verdict,
            _ => return false,
        };
        discriminant(&verdict) == discriminant(&kind)
    })
}

/// Whether an engine that sees all there is to see has a safe way on: told from the true state of the world, not by the
/// verdict. A fence that failed once is no way on for the engine that tried it.
fn has_way_on(model: &HandoverModel, world: &HandoverWorld, engine: usize) -> bool {
    let HandoverWorld { source, destination, source_ran, .. } = world;
    let own = &world.engines[engine];
    let (cont, fences) = (own.judgement.cont(), own.judgement.fences());
    let served = |side: Side| model.is_served(world, engine, side);
    let answers = |side: Side| world.qemu(side).life == QemuLife::Up && served(side);
    let known_dead = |side: Side| model.is_known_dead(world, engine, side);
    let loaded = destination.phase == MigrationPhase::Completed;
    let completed = source.phase == MigrationPhase::Completed;
    // Nothing is left to be done but to say where the guest is. A source that was resumed without a record of the proof
    // looks to a recovery like a source that somebody else resumed.
    if (answers(Side::Destination) && destination.runs) || (answers(Side::Source) && source.runs && !world.record_lost)
    {
        return true;
    }
    let never_ran = match cont {
        ContKnowledge::Never | ContKnowledge::Refused => true,
        ContKnowledge::Unknown | ContKnowledge::NotByEngine => {
            (answers(Side::Source) && !completed) || (answers(Side::Destination) && !loaded)
        }
        ContKnowledge::Sent => false,
    };
    let watched = own.watches_source && !source_ran;
    let stands = (answers(Side::Source) && completed) || (known_dead(Side::Source) && watched);
    let may_fence = fences.source && !answers(Side::Source) && !known_dead(Side::Source) && watched;
    let waits = answers(Side::Destination) && loaded;
    let refused = cont == ContKnowledge::Refused;
    let finish = waits && (stands || (may_fence && !refused));
    // A source that hangs is no good reason to give up a destination that has everything.
    let lives = answers(Side::Source) || (source.life == QemuLife::Hung && served(Side::Source) && !waits);
    let aside = known_dead(Side::Destination) || answers(Side::Destination) || fences.destination;
    finish || (never_ran && lives && aside)
}

/// Whether everything that was seen is still so, and nothing will change by itself.
fn is_settled(model: &HandoverModel, world: &HandoverWorld, engine: usize, facts: &HandoverFacts) -> bool {
    let stays = |action: &ModelAction| {
        !matches!(action, ModelAction::Deliver(_) | ModelAction::Load | ModelAction::Complete | ModelAction::Fail(_))
    };
    let now = HandoverFacts { cont: facts.cont, ..model.facts_now(world, engine) };
    let mut actions = Vec::new();
    model.actions(world, &mut actions);
    now == *facts && actions.iter().all(stays)
}
