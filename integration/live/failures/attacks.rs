//! A short `scripts/faults --chaos`: fixed plans of an attacker, each judged in full from outside of the engine. They
//! take five minutes of a processor together. A plan is one whatever the host's speed; how far the engine is when an
//! attack strikes is not, so each of many endings may be right, and rules.rs of the attacker says which.
//!
//! Promise: one-runner, no-lost-write.

use std::path::Path;

#[allow(dead_code, unused_imports, reason = "scripts/faults uses all of it")]
#[path = "../../bed/examples/faults/chaos/mod.rs"]
mod chaos;

use chaos::{Plan, tell, try_plan};

/// The seed of the plans that are not chosen.
const SEED: u64 = 22;

/// Carries out these plans, each by its seed and number.
#[track_caller]
fn attack(plans: impl IntoIterator<Item = (u64, u64)>) {
    let mut wrong = Vec::new();
    for (seed, number) in plans {
        let verdict = try_plan(&Plan::draw(seed, number), Path::new(env!("CARGO_BIN_EXE_qferry")), "10.0.13");
        tell(seed, &verdict, false);
        let replay = format!("scripts/faults --chaos {seed} --only {number}");
        wrong.extend(verdict.wrong.iter().map(|text| format!("{replay}: {text}")));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

fn drawn(numbers: std::ops::Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    numbers.map(|number| (SEED, number))
}

#[test]
fn an_attacker_does_no_harm_in_migrations_0_to_5() {
    attack(drawn(0..6));
}

#[test]
fn an_attacker_does_no_harm_in_migrations_6_to_11() {
    attack(drawn(6..12));
}

#[test]
fn an_attacker_does_no_harm_in_migrations_12_to_17() {
    attack(drawn(12..18));
}

#[test]
fn an_attacker_does_no_harm_in_migrations_18_to_23() {
    attack(drawn(18..24));
}

/// Chosen plans: a second engine before and during the first one's work, and clocks and flushes at the handover.
/// Promise: true-blackout.
#[test]
fn an_attacker_with_an_engine_or_a_clock_does_no_harm() {
    attack([(12, 6), (12, 9), (12, 28), (12, 87), (12, 4)]);
}
