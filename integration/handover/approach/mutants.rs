//! That the approach can fail: each mutant takes one mend back, by a lie to a shipped decision or by a step that the
//! driver leaves out, and must be found.

use super::{
    model::{APPROACH, ApproachModel, ApproachMutation, FaultKinds, NO_FAULTS},
    properties::{AGAINST_OWNER, DISKS, FOREIGN, HELD, KILLED, STRANGER, TWO_RUNNERS, VAGUE, WAITS},
};
use crate::explorations::MOST;
use stateright::{Checker, HasDiscoveries, Model};

const CLIENT: FaultKinds = FaultKinds { client: true, channel: true, ..NO_FAULTS };
const OWNER: FaultKinds = FaultKinds { owner: true, ..NO_FAULTS };

/// Explores until this property is broken.
#[track_caller]
fn breaks(mutation: ApproachMutation, model: ApproachModel, expected: &'static str) {
    let model = ApproachModel { mutation: Some(mutation), ..model };
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
    breaks(ApproachMutation::ResetIsNoStop, ApproachModel { kinds: OWNER, ..APPROACH }, VAGUE);
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
fn a_source_that_is_cancelled_before_its_destination_is_out_of_the_way_is_found() {
    let model = ApproachModel { kinds: CLIENT, overlaps: false, ..APPROACH };
    breaks(ApproachMutation::SourceIsCancelledFirst, model, TWO_RUNNERS);
}
