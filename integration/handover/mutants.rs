//! That the model can fail: each mutant tells the shipped judgement one lie, or drives it wrongly in one way, and must
//! be found.

use crate::{
    explorations::MOST,
    model::{HANDOVER, HandoverModel, Mutation, REMOTE},
    properties::{KILLED, TWO_RUNNERS, UNDONE, WAY_ON},
};
use stateright::{Checker, HasDiscoveries, Model};
use std::time::Instant;

/// Explores until one of these properties is broken.
#[track_caller]
fn breaks(model: HandoverModel, expected: &[&'static str]) {
    let began = Instant::now();
    let enough = HasDiscoveries::AnyOf(expected.iter().copied().collect());
    let checker = model.checker().finish_when(enough).target_state_count(MOST).spawn_bfs().join();
    let found = expected.iter().any(|name| checker.discovery(name).is_some());
    println!("{} states, {:.1?}", checker.unique_state_count(), began.elapsed());
    assert!(found, "none of {expected:?} was broken");
}

fn with(mutation: Mutation) -> HandoverModel {
    HandoverModel { mutation: Some(mutation), ..HANDOVER }
}

#[test]
fn a_source_that_is_resumed_without_proof_is_found() {
    breaks(with(Mutation::SilenceIsAnAnswer), &[TWO_RUNNERS]);
}

#[test]
fn a_destination_that_is_started_without_proof_is_found() {
    breaks(with(Mutation::SourceAlwaysStands), &[TWO_RUNNERS]);
}

#[test]
fn a_fence_that_hits_a_runner_is_found() {
    breaks(with(Mutation::ContIsForgotten), &[KILLED]);
}

#[test]
fn a_fence_that_is_believed_without_success_is_found() {
    breaks(with(Mutation::EveryFenceSucceeds), &[TWO_RUNNERS]);
}

#[test]
fn an_engine_that_gives_up_too_early_is_found() {
    let model = HandoverModel { source: REMOTE, destination: REMOTE, ..with(Mutation::SourceIsUnheard) };
    breaks(model, &[WAY_ON]);
}

#[test]
fn a_recovery_that_forgets_what_given_means_is_found() {
    breaks(with(Mutation::GivenIsForgotten), &[UNDONE]);
}

#[test]
fn a_recovery_that_forgets_who_else_may_have_started_the_guest_is_found() {
    breaks(with(Mutation::PersonIsForgotten), &[UNDONE, KILLED]);
}

#[test]
fn a_source_that_ran_while_no_one_looked_is_found() {
    breaks(with(Mutation::MissedEventsForgotten), &[UNDONE]);
}

#[test]
fn a_source_that_ran_unseen_before_it_was_ended_is_found() {
    breaks(with(Mutation::EndHidesTheCut), &[UNDONE]);
}

#[test]
fn an_intent_to_resume_that_is_written_too_early_is_found() {
    breaks(with(Mutation::ResumingIsEarly), &[UNDONE]);
}

#[test]
fn a_recovery_beside_a_living_engine_is_found() {
    breaks(HandoverModel { lock: false, faults: 2, ..HANDOVER }, &[TWO_RUNNERS, UNDONE]);
}
