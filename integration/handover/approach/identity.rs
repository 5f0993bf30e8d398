//! Who answers at an address, as the shipped judgement of participants tells.

use super::{
    model::{ApproachModel, ApproachMutation},
    world::{ApproachWorld, MirrorPhase, MonitorAddress},
};
use qferry::internals::{
    memory::tuning::PreviousTuning,
    migration::{Effect, ParticipantTraits, judge_participant, record::Party},
    progress::Side,
    qemu::reply::MigrationStatus,
};

/// The threads of the QEMUs that take part.
const THREADS: [i64; 1] = [7];

impl ApproachModel {
    /// Reaches the sides again whose monitors closed, where they serve this engine and are taken for the QEMUs that
    /// took part.
    pub(crate) fn reach_again(&self, world: &mut ApproachWorld) {
        for side in [Side::Source, Side::Destination] {
            let reaches = match (world.is_up(side), world.address(side)) {
                (true, MonitorAddress::Free) if !world.asks(side) => {
                    let is_known = self.is_taken_for_ours(side, world, &describe(side, world), self.local);
                    world.broken.unrecognized |= !is_known;
                    is_known
                }
                (false, MonitorAddress::Another) => {
                    world.broken.stranger |= self.takes_stranger(side, world);
                    false
                }
                _ => false,
            };
            match side {
                Side::Source => world.engine.reaches_source |= reaches,
                Side::Destination => world.engine.reaches_destination |= reaches,
            }
        }
    }

    /// Whether another QEMU at this side's address is taken for the one that took part, and would be changed.
    fn takes_stranger(&self, side: Side, world: &ApproachWorld) -> bool {
        let is_changed = list_effects(world).iter().any(|effect| match effect {
            Effect::NbdServer | Effect::Incoming => side == Side::Destination,
            Effect::Mirror(_) | Effect::Migrate => side == Side::Source,
            _ => false,
        });
        let threads = if self.same_numbers { THREADS.to_vec() } else { vec![9] };
        let anew =
            ParticipantTraits { threads, migration: MigrationStatus::None, has_leftovers: false, is_tuned: false };
        // On this host the kernel tells that the process is another.
        let is_taken = !self.local && self.is_taken_for_ours(side, world, &anew, false);
        is_changed && (is_taken || self.mutation == Some(ApproachMutation::EveryAnswerIsOurs))
    }

    fn is_taken_for_ours(
        &self,
        side: Side,
        world: &ApproachWorld,
        found: &ParticipantTraits,
        is_same_process: bool,
    ) -> bool {
        let party = Party { address: String::new(), process: None, threads: THREADS.to_vec() };
        judge_participant(side, &party, is_same_process, &list_effects(world), found).is_ok()
    }
}

/// The effects that the journal has.
fn list_effects(world: &ApproachWorld) -> Vec<Effect> {
    let journal = &world.journal;
    let tuned = |side| {
        let before = PreviousTuning { capabilities: Vec::new(), parameters: serde_json::Map::new() };
        Effect::Tuned { side, before }
    };
    let others = [
        (journal.exported, Effect::NbdServer),
        (journal.mirrored, Effect::Mirror(String::new())),
        (journal.incoming, Effect::Incoming),
        (journal.migrate, Effect::Migrate),
    ];
    let others = others.into_iter().filter(|(noted, _)| *noted).map(|(_, effect)| effect);
    [tuned(Side::Source), tuned(Side::Destination)].into_iter().chain(others).collect()
}

/// What the QEMU that took part tells of itself.
fn describe(side: Side, world: &ApproachWorld) -> ParticipantTraits {
    let (migration, has_leftovers, is_tuned) = match side {
        Side::Source => {
            let source = &world.source;
            (source.answer().1, source.mirror != MirrorPhase::None, source.pauses || source.returns)
        }
        Side::Destination => (world.destination.answer(world.source.stand).1, world.destination.exported, false),
    };
    ParticipantTraits { threads: THREADS.to_vec(), migration, has_leftovers, is_tuned }
}
