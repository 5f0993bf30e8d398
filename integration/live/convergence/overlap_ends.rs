//! A guest whose owner pauses it shortly before RAM, which is sent beside a slow mirror, comes to its end.

use super::overlap::{SLOW, overlapping};
use crate::support::{begins, builder, cancel, judge_back, migrate_when, start};
use qferry::internals::progress::{Ending, EventKind, Phase};
use serde_json::json;
use std::cell::Cell;

/// QEMU stands in pre-switchover when the run goes back. Its owner has paused the guest by then, so nobody resumes it.
#[test]
fn a_guest_that_is_paused_right_before_pre_switchover_stays_paused_on_the_way_back() {
    let pair = start(&overlapping("10.0.13"));
    let stopped = Cell::new(false);
    let switches = |kind: &EventKind| {
        let nears_its_end = matches!(kind, EventKind::Disk { copied, total, .. } if *copied * 100 > *total * 80);
        if nears_its_end && !stopped.replace(true) {
            let ram = pair.source.qmp("query-migrate", &json!({})).unwrap();
            assert_eq!(ram["status"], "active", "RAM is sent beside the mirror: {ram:#}");
            pair.source.qmp("stop", &json!({})).unwrap();
        }
        begins(kind, Phase::Switchover)
    };
    let (outcome, _) = migrate_when(builder(&pair).disk_bandwidth(SLOW), switches, |running| {
        assert!(stopped.get());
        assert_eq!(pair.source.status().unwrap(), "finish-migrate");
        cancel(running);
    });
    judge_back(&pair, &outcome, Ending::Cancelled, "paused");
    let resumed = pair.source.events().unwrap().into_iter().filter(|event| event.name == "RESUME").count();
    assert_eq!(resumed, 0, "{outcome:#?}");
}
