//! Guests whose owner pauses them while RAM is sent beside mirrors that still copy. All of their RAM is zeros, which
//! pass below any ceiling.

use crate::support::{MIB, WAIT, builder, judge_back, judge_moved, migrate_and, start};
use qferry::internals::{
    progress::{Ending, Phase},
    quantity::Rate,
};
use qferry_bed::{BootSector, DiskSpec, Pair, Spec};
use serde_json::json;
use std::{thread, time::Duration};

/// A pair whose disk takes twelve seconds to copy at [`SLOW`], and whose RAM is large enough to be sent beside it. A
/// mirror copies 16 MiB at once and then waits for its limit, so its pace is known only after several such bursts.
pub(super) fn overlapping(version: &str) -> Spec {
    let disk = DiskSpec { size: 128 * MIB, overlay_data: 96 * MIB, ..DiskSpec::small() };
    let boot = Some(BootSector::new().wait_for_key());
    Spec { version: version.to_owned(), memory: 2048, boot, disks: vec![disk], ..Spec::quick() }
}

pub(super) const SLOW: Rate = Rate(8 * MIB);

/// The owner pauses the guest once RAM is sent, and resumes it two seconds later. QEMU takes the `cont`, and the disk
/// is still being copied then.
fn pause_and_resume(pair: &Pair, meanwhile: &dyn Fn()) {
    let sends = |event: &qferry_bed::Event| event.name == "MIGRATION" && event.data["status"] == "active";
    pair.source.wait_for_event(WAIT, sends).unwrap();
    pair.source.qmp("stop", &json!({})).unwrap();
    thread::sleep(Duration::from_secs(1));
    meanwhile();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(pair.source.status().unwrap(), "paused", "QEMU refuses `cont` in another state");
    pair.source.qmp("cont", &json!({})).unwrap();
    let jobs = pair.source.qmp("query-block-jobs", &json!({})).unwrap();
    assert!(jobs[0]["ready"] == false, "{jobs:#}");
}

#[test]
fn a_guest_that_is_paused_beside_its_mirrors_can_be_resumed_at_once() {
    for version in ["10.0.13", "11.1"] {
        let pair = start(&overlapping(version));
        let outcome = thread::scope(|scope| {
            let mut owner = None;
            let act = |_: &_| owner = Some(scope.spawn(|| pause_and_resume(&pair, &|| ())));
            let (outcome, _) = migrate_and(builder(&pair).disk_bandwidth(SLOW), Phase::Memory, act);
            owner.expect("RAM was begun").join().unwrap();
            outcome
        });
        judge_moved(&pair, &outcome);
        assert_eq!(pair.destination.status().unwrap(), "running");
    }
}

#[test]
fn a_guest_that_is_paused_beside_mirrors_of_a_frozen_destination_is_its_owners() {
    let pair = start(&overlapping("10.0.13"));
    let freeze = || pair.destination.stop_process().unwrap();
    let policy = "give-up = '4s'".parse().unwrap();
    let outcome = thread::scope(|scope| {
        let mut owner = None;
        let act = |_: &_| owner = Some(scope.spawn(|| pause_and_resume(&pair, &freeze)));
        let migrating = builder(&pair).disk_bandwidth(SLOW).policy(policy);
        let (outcome, _) = migrate_and(migrating, Phase::Memory, act);
        owner.expect("RAM was begun").join().unwrap();
        outcome
    });
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
}
