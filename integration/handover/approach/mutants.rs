//! That the approach can fail: each mutant takes one mend back, by a lie to a shipped decision or by a step that the
//! driver leaves out, and must be found.
//!
//! The cases of issue 12, and what undoing the mend of each breaks:
//!
//! | case | mutant | property |
//! |---|---|---|
//! | A3, a verdict that the way back does not know | `VerdictForgotten` | `VAGUE` |
//! | A4, other QEMUs at the addresses | `EveryAnswerIsOurs` | `STRANGER` |
//! | A5, a guest that a person has handed over | `UnaskedIsFenced` | `KILLED` |
//! | A6, A11, capabilities that another client meets or changes | `CapabilitiesAreEarly` | `HELD` |
//! | A6, a migration that completes without the engine | `EventsAreAnswers` | `KILLED` |
//! | the same, with a destination that was told `cont` | `SourceIsCancelledFirst` | `TWO_RUNNERS` |
//! | the same, with a destination that ran and is gone | `RunIsForgotten` | `UNDONE` |
//! | A7, a machine that changes | `OneLookAtTheMachines` | `DISKS` |
//! | A8, an owner's stop | `PausedNeedsCont`, `EveryStopIsQemus` | `AGAINST_OWNER` |
//! | A9, an owner who waits for the disks | `OwnerWaitsForDisks` | `WAITS` |
//! | A10, a guest that halts | `HaltsAreUnheard` | `AGAINST_OWNER` |
//! | A10, a reset of a paused guest | `ResetIsNoStop` | `AGAINST_OWNER` |
//! | A11, what QEMU refused | `RefusalIsAnEffect` | `FOREIGN`, and `KILLED` of two engines |
//! | A12, a destination that was told `cont` | `StopIsSentOnce` | `TWO_RUNNERS` |
//! | B2, a `cont` that no journal tells of | `StartIsForgotten` | `UNDONE` |
//! | two engines with one source | `EveryMigrationLeadsHere`, `EveryMigrationIsOurs` | `TWO_RUNNERS` |
//! | two engines with one destination | `DestinationIsLookedAtOnce`, `ServedIsOurs` | `STOPPED`, `DISKS`, `KILLED` |

use super::{
    model::{APPROACH, ApproachModel, ApproachMutation, FaultKinds, NO_FAULTS},
    properties::{AGAINST_OWNER, DISKS, FOREIGN, HELD, KILLED, STOPPED, STRANGER, TWO_RUNNERS, UNDONE, VAGUE, WAITS},
    rivals::{RivalModel, SharedSide},
};
use crate::explorations::MOST;
use stateright::{Checker, HasDiscoveries, Model};
use std::{fmt::Debug, hash::Hash};

const CLIENT: FaultKinds = FaultKinds { client: true, channel: true, ..NO_FAULTS };
const OWNER: FaultKinds = FaultKinds { owner: true, ..NO_FAULTS };

/// Explores until this property is broken.
#[track_caller]
fn breaks(mutation: ApproachMutation, model: ApproachModel, expected: &'static str) {
    explore_until(mutation, ApproachModel { mutation: Some(mutation), ..model }, expected);
}

/// The same for two engines.
#[track_caller]
fn breaks_rivals(mutation: ApproachMutation, shared: SharedSide, model: ApproachModel, expected: &'static str) {
    let each = ApproachModel { mutation: Some(mutation), overlaps: false, ..model };
    explore_until(mutation, RivalModel { shared, each }, expected);
}

#[track_caller]
fn explore_until<M>(mutation: ApproachMutation, model: M, expected: &'static str)
where
    M: Model<State: Clone + Debug + Hash + PartialEq + Send + Sync, Action: Clone + Debug + PartialEq + Send + Sync>
        + Send
        + Sync
        + 'static,
{
    let enough = HasDiscoveries::AnyOf([expected].into());
    let checker = model.checker().finish_when(enough).target_state_count(MOST).spawn_bfs().join();
    println!("{mutation:?}: {} states", checker.unique_state_count());
    assert!(checker.discovery(expected).is_some(), "not broken: {expected}");
}

#[test]
fn a_verdict_that_the_way_back_forgets_is_found() {
    let kinds = FaultKinds { channel: true, engine: true, ..NO_FAULTS };
    breaks(ApproachMutation::VerdictForgotten, ApproachModel { kinds, ..APPROACH }, VAGUE);
}

#[test]
fn a_side_that_is_fenced_though_it_could_not_be_asked_is_found() {
    let kinds = FaultKinds { engine: true, person: true, ..NO_FAULTS };
    let model = ApproachModel { kinds, overlaps: false, faults: 4, ..APPROACH };
    breaks(ApproachMutation::UnaskedIsFenced, model, KILLED);
}

#[test]
fn capabilities_that_are_set_early_are_found() {
    breaks(ApproachMutation::CapabilitiesAreEarly, ApproachModel { kinds: CLIENT, ..APPROACH }, HELD);
}

#[test]
fn a_machine_that_is_looked_at_once_is_found() {
    breaks(ApproachMutation::OneLookAtTheMachines, ApproachModel { kinds: CLIENT, ..APPROACH }, DISKS);
}

#[test]
fn a_paused_guest_that_is_sent_cont_is_found() {
    breaks(ApproachMutation::PausedNeedsCont, ApproachModel { kinds: OWNER, ..APPROACH }, AGAINST_OWNER);
}

#[test]
fn a_stop_that_is_taken_for_qemus_is_found() {
    breaks(ApproachMutation::EveryStopIsQemus, ApproachModel { kinds: OWNER, ..APPROACH }, AGAINST_OWNER);
}

#[test]
fn a_reset_that_is_no_stop_is_found() {
    breaks(ApproachMutation::ResetIsNoStop, ApproachModel { kinds: OWNER, ..APPROACH }, AGAINST_OWNER);
}

#[test]
fn a_refused_migrate_that_is_undone_is_found() {
    breaks(ApproachMutation::RefusalIsAnEffect, ApproachModel { kinds: CLIENT, ..APPROACH }, FOREIGN);
}

#[test]
fn a_destination_that_is_told_to_stop_once_is_found() {
    let model = ApproachModel { kinds: CLIENT, overlaps: false, ..APPROACH };
    breaks(ApproachMutation::StopIsSentOnce, model, TWO_RUNNERS);
}

#[test]
fn a_guest_that_stops_by_itself_unheard_is_found() {
    let kinds = FaultKinds { guest: true, ..NO_FAULTS };
    breaks(ApproachMutation::HaltsAreUnheard, ApproachModel { kinds, ..APPROACH }, AGAINST_OWNER);
}

#[test]
fn an_owner_who_waits_for_the_disks_is_found() {
    breaks(ApproachMutation::OwnerWaitsForDisks, ApproachModel { kinds: OWNER, ..APPROACH }, WAITS);
}

#[test]
fn another_qemu_that_is_taken_for_ours_is_found() {
    let kinds = FaultKinds { engine: true, replaced: true, ..NO_FAULTS };
    for local in [false, true] {
        let model = ApproachModel { kinds, overlaps: false, local, ..APPROACH };
        breaks(ApproachMutation::EveryAnswerIsOurs, model, STRANGER);
    }
}

#[test]
fn an_event_that_is_taken_for_an_answer_is_found() {
    let kinds = FaultKinds { client: true, deaths: true, ..NO_FAULTS };
    breaks(ApproachMutation::EventsAreAnswers, ApproachModel { kinds, overlaps: false, ..APPROACH }, KILLED);
}

#[test]
fn a_destination_that_ran_and_is_gone_and_is_forgotten_is_found() {
    let kinds = FaultKinds { client: true, deaths: true, ..NO_FAULTS };
    let model = ApproachModel { kinds, overlaps: false, disks: false, faults: 3, ..APPROACH };
    breaks(ApproachMutation::RunIsForgotten, model, UNDONE);
}

#[test]
fn a_source_that_is_cancelled_before_its_destination_is_out_of_the_way_is_found() {
    let model = ApproachModel { kinds: CLIENT, overlaps: false, ..APPROACH };
    breaks(ApproachMutation::SourceIsCancelledFirst, model, TWO_RUNNERS);
}

#[test]
fn a_cont_that_no_journal_tells_of_is_found() {
    let kinds = FaultKinds { deaths: true, engine: true, ..NO_FAULTS };
    breaks(ApproachMutation::StartIsForgotten, ApproachModel { kinds, ..APPROACH }, UNDONE);
}

#[test]
fn a_migration_that_leads_elsewhere_and_is_taken_back_is_found() {
    let model = ApproachModel { disks: false, faults: 0, ..APPROACH };
    breaks_rivals(ApproachMutation::EveryMigrationLeadsHere, SharedSide::Source, model, TWO_RUNNERS);
}

#[test]
fn a_migration_of_another_engine_that_is_taken_for_the_own_one_is_found() {
    let kinds = FaultKinds { channel: true, ..NO_FAULTS };
    let model = ApproachModel { kinds, disks: false, faults: 1, ..APPROACH };
    breaks_rivals(ApproachMutation::EveryMigrationIsOurs, SharedSide::Source, model, TWO_RUNNERS);
}

#[test]
fn a_destination_that_is_looked_at_once_is_found() {
    let model = ApproachModel { faults: 0, ..APPROACH };
    for expected in [STOPPED, DISKS] {
        breaks_rivals(ApproachMutation::DestinationIsLookedAtOnce, SharedSide::Destination, model, expected);
    }
}

#[test]
fn a_destination_that_serves_disks_and_is_ended_for_that_is_found() {
    let kinds = FaultKinds { deaths: true, ..NO_FAULTS };
    let model = ApproachModel { kinds, faults: 1, ..APPROACH };
    breaks_rivals(ApproachMutation::ServedIsOurs, SharedSide::Destination, model, KILLED);
}

#[test]
fn a_refused_incoming_migration_that_is_undone_is_found() {
    let model = ApproachModel { disks: false, faults: 0, ..APPROACH };
    breaks_rivals(ApproachMutation::RefusalIsAnEffect, SharedSide::Destination, model, KILLED);
}
