//! The explorations of the approach: each visits every state of one kind of faults.
//!
//! Promise: one-runner, left-as-it-stands.

use super::model::{APPROACH, ApproachModel, FaultKinds, NO_FAULTS};
use super::rivals::{RivalModel, SharedSide};
use crate::explorations::visit_all;
use stateright::{Checker, Expectation, Model};
use std::{fmt::Debug, hash::Hash};

/// Explores every state.
#[track_caller]
fn explore<M>(what: &str, model: M)
where
    M: Model<State: Clone + Debug + Hash + PartialEq + Send + Sync, Action: Clone + Debug + PartialEq + Send + Sync>
        + Send
        + Sync
        + 'static,
{
    let checker = visit_all(what, model);
    let mut wrong = 0;
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        let is_good = match property.expectation {
            Expectation::Sometimes => found.is_some(),
            _ => found.is_none(),
        };
        if !is_good {
            wrong += 1;
            println!("{}:", property.name);
        }
        if let (false, Some(path)) = (is_good, found) {
            println!("{:#?}\n{:?}\n", path.last_state().clone(), path.into_actions());
        }
    }
    assert_eq!(wrong, 0, "{what}");
}

#[test]
fn a_guest_that_stops_by_itself() {
    let kinds = FaultKinds { guest: true, ..NO_FAULTS };
    explore("the guest stops by itself", ApproachModel { kinds, ..APPROACH });
}

#[test]
fn an_owner_who_stops_resumes_and_resets() {
    let kinds = FaultKinds { owner: true, ..NO_FAULTS };
    explore("the owner acts", ApproachModel { kinds, ..APPROACH });
}

#[test]
fn another_client() {
    let kinds = FaultKinds { client: true, ..NO_FAULTS };
    explore("another client", ApproachModel { kinds, ..APPROACH });
}

#[test]
fn another_client_and_a_channel_that_breaks() {
    let kinds = FaultKinds { client: true, channel: true, ..NO_FAULTS };
    explore("another client, and the channel breaks", ApproachModel { kinds, overlaps: false, ..APPROACH });
}

#[test]
fn another_client_and_processes_that_end() {
    let kinds = FaultKinds { client: true, deaths: true, ..NO_FAULTS };
    explore("another client, and processes end", ApproachModel { kinds, overlaps: false, ..APPROACH });
}

#[test]
fn a_channel_that_breaks_and_an_engine_that_dies() {
    let kinds = FaultKinds { channel: true, engine: true, ..NO_FAULTS };
    explore("the channel breaks, the engine dies", ApproachModel { kinds, ..APPROACH });
}

#[test]
fn processes_that_end() {
    let kinds = FaultKinds { deaths: true, engine: true, ..NO_FAULTS };
    explore("processes end", ApproachModel { kinds, ..APPROACH });
}

#[test]
fn monitors_that_close_and_an_engine_that_dies() {
    let kinds = FaultKinds { monitors: true, engine: true, channel: true, ..NO_FAULTS };
    explore("monitors close", ApproachModel { kinds, overlaps: false, ..APPROACH });
}

/// Promise: asked-before-ended.
#[test]
fn a_person_who_finishes_by_hand() {
    let kinds = FaultKinds { engine: true, person: true, ..NO_FAULTS };
    explore("a person finishes by hand", ApproachModel { kinds, overlaps: false, faults: 4, ..APPROACH });
}

/// Promise: only-who-took-part.
#[test]
fn qemus_that_are_replaced() {
    let kinds = FaultKinds { engine: true, replaced: true, ..NO_FAULTS };
    explore("QEMUs are replaced", ApproachModel { kinds, overlaps: false, ..APPROACH });
}

#[test]
fn qemus_elsewhere_that_are_replaced() {
    let kinds = FaultKinds { engine: true, replaced: true, ..NO_FAULTS };
    for same_numbers in [false, true] {
        let model = ApproachModel { kinds, overlaps: false, local: false, same_numbers, ..APPROACH };
        explore("QEMUs elsewhere are replaced", model);
    }
}

#[test]
fn processes_elsewhere_that_end() {
    let kinds = FaultKinds { deaths: true, engine: true, ..NO_FAULTS };
    explore("processes elsewhere end", ApproachModel { kinds, local: false, ..APPROACH });
}

#[test]
fn monitors_elsewhere_that_close() {
    let kinds = FaultKinds { monitors: true, engine: true, channel: true, ..NO_FAULTS };
    explore("monitors elsewhere close", ApproachModel { kinds, overlaps: false, local: false, ..APPROACH });
}

#[test]
fn a_person_who_finishes_elsewhere_by_hand() {
    let kinds = FaultKinds { engine: true, person: true, ..NO_FAULTS };
    let model = ApproachModel { kinds, overlaps: false, local: false, faults: 4, ..APPROACH };
    explore("a person finishes elsewhere by hand", model);
}

/// Explores two engines, which have no disks to copy or have some.
#[track_caller]
fn explore_rivals(what: &str, shared: SharedSide, kinds: FaultKinds) {
    for disks in [false, true] {
        let each = ApproachModel { kinds, disks, overlaps: false, faults: 1, ..APPROACH };
        explore(what, RivalModel { shared, each });
    }
}

#[test]
fn two_engines_with_the_same_source() {
    let kinds = FaultKinds { channel: true, ..NO_FAULTS };
    explore_rivals("two engines with the same source", SharedSide::Source, kinds);
}

#[test]
fn two_engines_with_the_same_source_and_one_that_dies() {
    let kinds = FaultKinds { engine: true, ..NO_FAULTS };
    explore_rivals("two engines with the same source, one dies", SharedSide::Source, kinds);
}

#[test]
fn two_engines_with_the_same_destination() {
    let kinds = FaultKinds { channel: true, engine: true, deaths: true, ..NO_FAULTS };
    explore_rivals("two engines with the same destination", SharedSide::Destination, kinds);
}

#[test]
fn two_engines_with_the_same_pair() {
    let kinds = FaultKinds { channel: true, engine: true, deaths: true, ..NO_FAULTS };
    explore_rivals("two engines with the same pair", SharedSide::Both, kinds);
}
