//! The explorations: each visits every state of one arrangement of sides, fences and recoveries.
//!
//! Promise: one-runner, no-lost-write.

use crate::model::{FENCED, HANDOVER, HandoverModel, REMOTE};
use stateright::{Checker, Model};
use std::{fmt::Debug, hash::Hash, time::Instant};

/// Far more states than any exploration meets, each counted as often as it is met; an exploration that goes on for so
/// long would never end.
pub(crate) const MOST: usize = 2_000_000;

/// Visits every state of a model.
#[track_caller]
pub(crate) fn visit_all<M>(what: &str, model: M) -> impl Checker<M>
where
    M: Model<State: Clone + Debug + Hash + PartialEq + Send + Sync, Action: Clone + Debug + PartialEq + Send + Sync>
        + Send
        + Sync
        + 'static,
{
    let began = Instant::now();
    let checker = model.checker().target_state_count(MOST).spawn_bfs().join();
    println!(
        "{what}: {} states of {} met, {:.1?}",
        checker.unique_state_count(),
        checker.state_count(),
        began.elapsed()
    );
    assert!(checker.state_count() < MOST, "{what}: not complete");
    checker
}

fn explore(what: &str, model: HandoverModel) {
    visit_all(what, model).assert_properties();
}

#[test]
fn both_sides_on_this_host() {
    explore("both sides on this host", HANDOVER);
}

#[test]
fn both_sides_elsewhere() {
    explore("both sides elsewhere", HandoverModel { source: REMOTE, destination: REMOTE, ..HANDOVER });
}

#[test]
fn both_sides_elsewhere_with_a_fence() {
    let model = HandoverModel { source: FENCED, destination: FENCED, ..HANDOVER };
    explore("both sides elsewhere, with a fence", model);
}

#[test]
fn a_source_on_this_host_and_a_destination_elsewhere() {
    explore("the destination elsewhere", HandoverModel { destination: REMOTE, reconnects: true, ..HANDOVER });
}

#[test]
fn a_second_recovery() {
    explore(
        "recovered twice",
        HandoverModel { recoveries: 2, reconnects: true, times_out: true, faults: 3, ..HANDOVER },
    );
}
