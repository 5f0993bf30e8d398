//! The start-write race, on a QEMU with that defect.

use crate::{
    proxied::Proxied,
    support::{MIB, builder, judge_back, judge_running, migrate, migrate_and, spec, start},
};
use qferry::internals::progress::{Ending, EventKind, PauseCause, Phase};
use qferry_bed::{Deed, DiskSpec, Pair, Side, Spec, Workload, nth};
use serde_json::json;
use std::{thread::sleep, time::Duration};

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

/// The time that each start of a mirror takes at least, while the guest runs.
const STARTS: Duration = Duration::from_millis(200);

/// A guest that writes during each of those starts.
fn always_writing() -> Pair {
    start(&spec("10.0.2", Workload { write: 200, read: 0, ..Workload::default() }))
}

/// Has each start last long enough for a write. The engine makes 16 starts at most before it stops the guest.
fn start_slowly(pair: &Pair) -> Proxied<'_> {
    let proxied = Proxied::new(pair);
    for number in 1..=16 {
        let start = nth(Side::Source, "drive-mirror", number);
        proxied.monitor(Side::Source).rule(start, || sleep(STARTS), Deed::Pass);
    }
    proxied
}

/// A guest is not stopped for a start that takes longer than the budget allows.
#[test]
fn a_guest_is_not_stopped_for_a_start_beyond_the_budget() {
    let pair = always_writing();
    let proxied = start_slowly(&pair);
    let outcome = migrate(proxied.builder().downtime(STARTS / 2).strict_budget());
    let reason = outcome.reason.as_ref().unwrap_or_else(|| panic!("{outcome:#?}"));
    assert_eq!(reason.code, "over-budget", "{outcome:#?}");
    assert!(reason.message.contains("wrote during each of"), "{outcome:#?}");
    assert!(outcome.pauses.is_empty(), "{outcome:#?}");
    let events = pair.source.events().unwrap();
    assert!(events.iter().all(|event| event.name != "STOP"), "{events:#?}");
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
}

/// A pause for the start of a mirror is told beside that of the switchover, and counts.
#[test]
fn a_stop_for_the_start_of_a_mirror_is_a_pause_of_the_run() {
    let pair = always_writing();
    let proxied = start_slowly(&pair);
    let outcome = migrate(proxied.builder());
    let causes: Vec<_> = outcome.pauses.iter().map(|pause| pause.why).collect();
    assert_eq!(causes, [PauseCause::MirrorStart, PauseCause::Switchover], "{outcome:#?}");
    let sum: f64 = outcome.pauses.iter().map(|pause| pause.ms).sum();
    assert!((sum - outcome.paused_ms).abs() < 0.001, "{outcome:#?}");
    judge_running(&pair, &outcome);
}
