//! The start-write race, on a QEMU with that defect.

use crate::support::{MIB, builder, judge_running, migrate_and, spec, start};
use qferry::internals::progress::{EventKind, Phase};
use qferry_bed::{DiskSpec, Spec, Workload};
use serde_json::json;

/// QEMU 10.0.2 loses a write that falls into the start of a mirror. Reads of the overlay's metadata are limited to 30 a
/// second, so that the first start takes seconds, and the guest writes all the time. (Later starts find the metadata
/// cached.) The guest's writes are limited, too, so that some are under way at the begin and at the end of each start.
#[test]
fn no_write_is_lost_while_a_mirror_starts() {
    let disk = DiskSpec {
        size: 32 << 30,
        backing: 32 << 30,
        backing_data: 8 * MIB,
        overlay_data: 4 * MIB,
        throttled_reads: Some(30),
        ..DiskSpec::default()
    };
    let workload = Workload { write: 20, read: 0, stride: 128 << 20, slots: 200, ..Workload::default() };
    let pair = start(&Spec { disks: vec![disk], ..spec("10.0.2", workload) });
    let limits = json!({"path": "/objects/reads0", "property": "limits", "value": {"iops-read": 30, "iops-write": 30}});
    pair.source.qmp("qom-set", &limits).unwrap();
    // The disk of 32 GiB is never filled.
    let (outcome, events) = migrate_and(builder(&pair).overcommit(), Phase::Connect, |_| ());
    let restarted = |kind: &EventKind| matches!(kind, EventKind::Action { action, .. } if action == "restart-mirror");
    assert!(events.iter().any(|event| restarted(&event.kind)), "the first start was not free of a write: {events:#?}");
    judge_running(&pair, &outcome);
}
