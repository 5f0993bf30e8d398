//! What a guest and other clients of QEMU do meanwhile: a reset in any phase, and a mirror or a migration of the
//! engine's that somebody else cancels or pauses.

use crate::support::{MIB, WAIT, begins, builder, judge_back, judge_moved, migrate_when, start};
use qferry::internals::{
    migration::Builder,
    progress::{Ending, EventKind, Phase},
    quantity::Rate,
};
use qferry_bed::{BootSector, DiskSpec, Machine, Pair, Spec};
use serde_json::{Value, json};

/// The moment at which somebody acts.
type When = fn(&EventKind) -> bool;

/// A guest that writes to memory and disk, all the time.
fn writer(version: &str) -> Pair {
    let disks = vec![DiskSpec { overlay_data: 4 * MIB, ..DiskSpec::small() }];
    let boot = BootSector::new().repeat(|steps| steps.dirty(8).wait(1).write(64, 8));
    // The bed has a reset end QEMU, for a guest that panics must not boot again.
    let extra = ["-action", "reboot=reset"].map(str::to_owned).into();
    start(&Spec { version: version.to_owned(), boot: Some(boot), disks, extra, ..Spec::quick() })
}

/// A migration that gives the test the time to act.
fn slowly(pair: &Pair) -> Builder {
    builder(pair).disk_bandwidth(Rate(4 * MIB)).bandwidth(Rate(16 * MIB))
}

fn copying(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Disk { .. })
}

fn sending(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Memory { status, .. } if status == "active")
}

#[test]
fn a_guest_that_is_reset_in_any_phase_moves() {
    let phases: [(&str, When); 3] = [
        ("10.0.13", copying),
        ("11.1", |kind| begins(kind, Phase::Memory)),
        ("7.2", |kind| begins(kind, Phase::Switchover)),
    ];
    for (version, when) in phases {
        let pair = writer(version);
        let (outcome, _) =
            migrate_when(slowly(&pair), when, |_| drop(pair.source.qmp("system_reset", &json!({})).unwrap()));
        judge_moved(&pair, &outcome);
        pair.destination.wait_for_status("running", WAIT).unwrap();
        pair.destination.finish().unwrap();
    }
}

/// The id of the engine's mirror.
fn mirror(source: &Machine) -> String {
    let jobs = source.qmp("query-block-jobs", &json!({})).unwrap();
    let mirrors: Vec<&Value> = jobs.as_array().unwrap().iter().filter(|job| job["type"] == "mirror").collect();
    assert_eq!(mirrors.len(), 1, "{jobs}");
    mirrors[0]["device"].as_str().unwrap().to_owned()
}

#[test]
fn what_somebody_else_cancels_or_pauses_leads_back() {
    for (version, when, command, bandwidth) in [
        ("10.0.13", copying as When, "block-job-cancel", 16 * MIB),
        ("7.2", copying, "block-job-pause", 16 * MIB),
        // RAM is still sent when the command comes, however little of its time the guest gets
        ("11.1", sending, "migrate_cancel", MIB / 2),
    ] {
        let pair = writer(version);
        let (outcome, _) = migrate_when(slowly(&pair).bandwidth(Rate(bandwidth)), when, |_| {
            let arguments = match command {
                "migrate_cancel" => json!({}),
                _ => json!({ "device": mirror(&pair.source) }),
            };
            pair.source.qmp(command, &arguments).unwrap();
        });
        judge_back(&pair, &outcome, Ending::RolledBack, "running");
    }
}
