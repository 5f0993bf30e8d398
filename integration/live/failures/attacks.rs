//! A short `scripts/faults --chaos`: fixed plans of an attacker, each judged in full from outside of the engine.

use std::path::Path;

#[allow(dead_code, unused_imports, reason = "scripts/faults uses all of it")]
#[path = "../../bed/examples/faults/chaos/mod.rs"]
mod chaos;

use chaos::{Plan, tell, try_plan};

/// Seeds and numbers of plans that differ in what strikes and when.
const PLANS: [(u64, u64); 8] = [(100, 0), (100, 1), (100, 3), (100, 5), (100, 9), (100, 11), (7, 0), (7, 2)];

#[test]
fn an_attacker_finds_no_second_runner_and_no_lost_write() {
    let mut wrong = Vec::new();
    for (seed, number) in PLANS {
        let verdict = try_plan(&Plan::draw(seed, number), Path::new(env!("CARGO_BIN_EXE_qferry")), "10.0.13");
        tell(seed, &verdict, false);
        wrong.extend(verdict.wrong.iter().map(|text| format!("--chaos {seed} --only {number}: {text}")));
    }
    assert_eq!(wrong, Vec::<String>::new());
}
