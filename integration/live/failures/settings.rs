//! Another client that changes a capability between the engine's last look at the settings and the command that they
//! are for.

use crate::{
    proxied::Proxied,
    support::{MIB, judge_back, start},
};
use qferry::internals::{progress::Ending, quantity::Rate};
use qferry_bed::{Pair, Side, Spec};
use serde_json::json;

fn switch_off(pair: &Pair, side: Side, capability: &str) {
    let off = json!({"capabilities": [{"capability": capability, "state": false}]});
    pair.machine(side).qmp("migrate-set-capabilities", &off).unwrap();
}

/// Without `pause-before-switchover` nobody asks before the source passes the guest on: RAM is called off, or where it
/// has arrived the guest is taken back from a destination that never ran it.
/// Promise: own-settings.
#[test]
fn a_pause_that_somebody_switched_off_right_before_migrate_leads_back() {
    // RAM that is still being sent when the engine looks, and RAM that has arrived by then.
    for (version, ceiling) in [("10.0.13", Some(Rate(2 * MIB))), ("10.0.13", None), ("7.2", None)] {
        let pair = start(&Spec { version: version.to_owned(), ..Spec::quick() });
        let proxied = Proxied::new(&pair);
        let builder = match ceiling {
            Some(ceiling) => proxied.builder().bandwidth(ceiling),
            None => proxied.builder(),
        };
        let act = || switch_off(&pair, Side::Source, "pause-before-switchover");
        let (outcome, _) = proxied.migrate_and_at(builder, (Side::Source, "migrate"), act);
        judge_back(&pair, &outcome, Ending::RolledBack, "running");
        let reason = outcome.reason.as_ref().unwrap();
        assert_eq!(reason.code, "settings-changed", "{outcome:#?}");
        assert!(reason.message.contains("pause-before-switchover"), "{outcome:#?}");
        assert_eq!(pair.runners().unwrap(), [Side::Source], "{outcome:#?}");
    }
}
