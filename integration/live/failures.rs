//! Migrations that fail: the guest stays on the source, and nothing is left behind.

mod attacks;
mod faults;
mod fence;
mod interference;
mod pivot;
mod settings;
mod two_engines;
mod two_sources;

use super::support::{
    MIB, block_on, builder, busy, cancel, idle, judge_back, judge_disks, judge_running, migrate, migrate_and,
    migrate_when, spec, start,
};
use qferry::internals::{
    endpoint::Address,
    migration::Migration,
    progress::{Ending, Event, EventKind, Outcome, Phase},
    quantity::Rate,
    storage::verify::identity::ProofLevel,
};
use qferry_bed::{DiskSpec, Guest, Pair, Side, Spec};
use std::time::Duration;

/// A pair whose disk takes a while to copy, so that a test can interfere.
fn slow(version: &str) -> Spec {
    Spec { disks: vec![DiskSpec { overlay_data: 32 * MIB, ..DiskSpec::default() }], ..spec(version, busy()) }
}

fn again(mut pair: Pair) {
    pair.restart_destination(true).unwrap();
    let outcome = migrate(builder(&pair));
    judge_running(&pair, &outcome);
}

fn killed_at(pair: &Pair, phase: Phase, code: &str) {
    let (outcome, _) =
        migrate_and(builder(pair).bandwidth(Rate(64 * MIB)), phase, |_| pair.destination.kill().unwrap());
    judge_back(pair, &outcome, Ending::RolledBack, "running");
    assert_eq!(outcome.reason.as_ref().unwrap().code, code, "{phase:?}: {outcome:#?}");
}

#[test]
fn a_destination_that_dies_at_once_changes_nothing() {
    let mut pair = start(&spec("10.0.13", busy()));
    let (outcome, _) = migrate_and(builder(&pair), Phase::Connect, |_| pair.destination.kill().unwrap());
    // The engine may still read the destination's last answers after its death, and then has something to roll back.
    assert!(matches!(outcome.outcome, Ending::Refused | Ending::RolledBack), "{outcome:#?}");
    assert_eq!(pair.source.status().unwrap(), "running");
    assert_eq!(pair.source.leftovers().unwrap(), Vec::<String>::new());
    pair.restart_destination(false).unwrap();
    let outcome = migrate(builder(&pair));
    judge_running(&pair, &outcome);
}

/// One guest outlives a destination in each phase, and moves to the last one.
#[test]
fn the_destination_dies_in_each_phase() {
    let mut pair = start(&slow("10.0.13"));
    for phase in [Phase::Prepare, Phase::Storage, Phase::Memory, Phase::Switchover] {
        killed_at(&pair, phase, "destination-gone");
        pair.restart_destination(true).unwrap();
    }
    let (outcome, _) = migrate_and(builder(&pair), Phase::Handover, |_| pair.destination.kill().unwrap());
    // The destination was never told to run and is proved dead, so the guest goes back.
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    again(pair);
}

#[test]
fn the_destination_dies_in_pre_switchover_on_11_1() {
    let pair = start(&slow("11.1"));
    killed_at(&pair, Phase::Switchover, "destination-gone");
    again(pair);
}

#[test]
fn the_destination_dies_in_pre_switchover_on_7_2() {
    let pair = start(&slow("7.2"));
    let (outcome, _) = migrate_and(builder(&pair), Phase::Switchover, |_| pair.destination.kill().unwrap());
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:#?}");
    assert_eq!(pair.source.status().unwrap(), "running");
    assert_eq!(pair.source.leftovers().unwrap(), Vec::<String>::new());
    judge_disks(&pair, Side::Source);
}

/// One guest outlives a cancel in each phase but the last, which has to go through with the move.
#[test]
fn cancelled_in_each_phase() {
    let mut pair = start(&slow("10.0.13"));
    for phase in [Phase::Connect, Phase::Preflight, Phase::Prepare, Phase::Storage, Phase::Memory, Phase::Switchover] {
        let (outcome, _) = migrate_and(builder(&pair).bandwidth(Rate(64 * MIB)), phase, cancel);
        judge_back(&pair, &outcome, Ending::Cancelled, "running");
        // A destination that was only prepared can be used again.
        if phase >= Phase::Storage {
            pair.restart_destination(true).unwrap();
        }
    }
    let (outcome, _) = migrate_and(builder(&pair), Phase::Handover, cancel);
    judge_running(&pair, &outcome);
}

/// Where RAM has not begun, the same destination is used again, and what its images hold is copied over.
#[test]
fn a_destination_that_got_disks_alone_is_used_again() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let pair = start(&slow(version));
        call_off_while_disks_are_copied(&pair);
        let (outcome, events) = migrate_and(builder(&pair), Phase::Connect, |_| ());
        let is_told = |event: &Event| matches!(&event.kind, EventKind::Warning { code, .. } if code == "image-spent");
        assert!(events.iter().any(is_told), "{version}: {outcome:#?}");
        judge_running(&pair, &outcome);
    }
}

#[test]
fn what_somebody_touched_after_a_broken_try_is_not_built_upon() {
    let mut pair = start(&slow("10.0.13"));
    call_off_while_disks_are_copied(&pair);
    call_off_while_disks_are_copied(&pair);
    let image = std::fs::File::open(&pair.destination.disks()[0].overlay).unwrap();
    image.set_modified(std::time::SystemTime::now()).unwrap();
    let outcome = migrate(builder(&pair));
    judge_back(&pair, &outcome, Ending::Refused, "running");
    assert_eq!(outcome.reason.as_ref().unwrap().code, "overlay-not-empty", "{outcome:#?}");
    pair.restart_destination(true).unwrap();
    let outcome = migrate(builder(&pair));
    judge_running(&pair, &outcome);
}

/// Cancels a migration while its disks are copied, and leaves the destination as it is then.
fn call_off_while_disks_are_copied(pair: &Pair) {
    let copied = |kind: &EventKind| matches!(kind, EventKind::Disk { copied, .. } if *copied > MIB);
    let (outcome, _) = migrate_when(builder(pair).bandwidth(Rate(16 * MIB)), copied, cancel);
    judge_back(pair, &outcome, Ending::Cancelled, "running");
    let message = &outcome.reason.as_ref().unwrap().message;
    assert!(message.contains("can use the same destination"), "{message}");
    let needed = outcome.another_try.as_ref().expect("the images hold a part");
    assert!(!needed.start_destination && needed.images.len() == pair.spec().disks.len(), "{needed:?}");
}

#[test]
fn a_handle_that_is_dropped_rolls_back() {
    let pair = start(&slow("10.0.13"));
    block_on(async {
        let migration = builder(&pair).bandwidth(Rate(16 * MIB)).start_here().unwrap();
        let mut events = migration.events();
        let mut migration = Some(migration);
        while let Some(event) = events.next().await {
            match event.kind {
                EventKind::Disk { .. } => drop(migration.take()),
                EventKind::Outcome(outcome) => {
                    judge_back(&pair, &outcome, Ending::Cancelled, "running");
                    return;
                }
                _ => {}
            }
        }
        panic!("no outcome");
    });
}

#[test]
fn a_paused_guest_is_paused_after_a_rollback() {
    let pair = start(&Spec { guest: Guest::Paused, ..slow("10.0.13") });
    let (outcome, _) = migrate_and(builder(&pair), Phase::Switchover, cancel);
    judge_back(&pair, &outcome, Ending::Cancelled, "paused");
    judge_disks(&pair, Side::Source);
}

#[test]
fn addresses_that_cannot_be_listened_at_are_named() {
    let pair = start(&spec("10.0.13", busy()));
    let nowhere: Address = format!("unix:{}", pair.run_dir().join("none/x").display()).parse().unwrap();
    let somewhere = |name| Address::unix(pair.run_dir().join(name)).unwrap();
    for (nbd, ram, option) in
        [(nowhere.clone(), somewhere("ram"), "`nbd_address`"), (somewhere("nbd"), nowhere.clone(), "`migrate_address`")]
    {
        let outcome = migrate(builder(&pair).addresses(nbd, ram));
        judge_back(&pair, &outcome, Ending::Refused, "running");
        let message = &outcome.reason.as_ref().unwrap().message;
        assert!(message.contains(option) && message.contains("none/x"), "{message}");
        assert!(pair.destination.alive().unwrap());
    }
    again(pair);
}

#[test]
fn a_server_of_somebody_else_is_left_alone() {
    let pair = start(&spec("10.0.13", busy()));
    let socket = pair.run_dir().join("theirs");
    let server = serde_json::json!({"addr": {"type": "unix", "data": {"path": socket}}});
    pair.destination.qmp("nbd-server-start", &server).unwrap();
    let outcome = migrate(builder(&pair));
    assert_eq!(outcome.outcome, Ending::Refused, "{outcome:#?}");
    assert!(outcome.reason.as_ref().unwrap().message.contains("runs there already"), "{outcome:#?}");
    let outcome = migrate(builder(&pair).verify_backing(ProofLevel::Off));
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:#?}");
    assert!(outcome.reason.as_ref().unwrap().message.contains("already running"), "{outcome:#?}");
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok(), "it still listens");
    pair.destination.qmp("nbd-server-stop", &serde_json::json!({})).unwrap();
    let outcome = migrate(builder(&pair));
    judge_running(&pair, &outcome);
}

/// One guest outlives its timeout and both broken channels, and moves in the end.
#[test]
fn the_timeout_and_a_broken_channel_roll_back() {
    let mut pair = start(&slow("10.0.13"));
    let went_back = |pair: &Pair, outcome: &Outcome, code: &str| {
        judge_back(pair, outcome, Ending::RolledBack, "running");
        assert_eq!(outcome.reason.as_ref().unwrap().code, code, "{outcome:#?}");
    };
    let outcome = migrate(builder(&pair).bandwidth(Rate(2 * MIB)).timeout(Duration::from_secs(1)));
    went_back(&pair, &outcome, "timeout");
    pair.restart_destination(true).unwrap();

    let copying = |kind: &EventKind| matches!(kind, EventKind::Disk { copied, .. } if *copied > 0);
    let (outcome, _) = migrate_when(builder(&pair).bandwidth(Rate(8 * MIB)), copying, |_| {
        pair.destination.qmp("nbd-server-stop", &serde_json::json!({})).unwrap();
    });
    went_back(&pair, &outcome, "mirror-failed");
    pair.restart_destination(true).unwrap();

    let sending = |kind: &EventKind| matches!(kind, EventKind::Memory { transferred, .. } if *transferred > MIB);
    let (outcome, _) = migrate_when(builder(&pair).bandwidth(Rate(16 * MIB)), sending, |_| {
        let yank = serde_json::json!({"instances": [{"type": "migration"}]});
        pair.destination.qmp("yank", &yank).unwrap();
    });
    went_back(&pair, &outcome, "migration-failed");
    again(pair);
}

#[test]
fn a_destination_that_refuses_the_state_leaves_the_guest_on_the_source() {
    let pair = start(&spec("10.0.13", busy()));
    // The destination meets the state of this device last, after `migrate-continue`.
    let device = serde_json::json!({"driver": "virtio-rng-pci", "id": "only-here"});
    pair.source.qmp("device_add", &device).unwrap();
    let refused = migrate(builder(&pair));
    assert_eq!(refused.reason.as_ref().unwrap().code, "device-missing", "{refused:#?}");
    let outcome = migrate(builder(&pair).force("device-missing"));
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    assert_eq!(outcome.reason.as_ref().unwrap().code, "handover-failed", "{outcome:#?}");
    // The guest stood still, and resumed on the source.
    let blackout = outcome.blackout_ms.expect("it was stopped");
    assert_eq!(
        outcome.ledger.first().map(|span| span.span.as_str()),
        Some("quiesce"),
        "each mark counts once: {outcome:#?}"
    );
    assert!((outcome.ledger.iter().map(|span| span.ms).sum::<f64>() - blackout).abs() < 0.001, "{outcome:#?}");
    judge_disks(&pair, Side::Source);
}

#[test]
fn what_is_not_right_is_refused_and_nothing_is_touched() {
    let pair = start(&spec("10.0.13", idle()));
    let (source, destination) =
        (Address::unix(pair.source.qmp_path()).unwrap(), Address::unix(pair.destination.qmp_path()).unwrap());
    let swapped = migrate(Migration::builder(destination.clone(), source.clone()).runtime_dir(pair.run_dir()));
    assert_eq!(swapped.outcome, Ending::Refused, "{swapped:#?}");
    assert!(swapped.reason.as_ref().unwrap().message.contains("swapped"), "{swapped:#?}");
    let missing = migrate(builder(&pair).disk("disk0", Some("nothing".to_owned())));
    assert!(missing.reason.as_ref().unwrap().message.contains("no disk of this name"), "{missing:#?}");
    let nowhere = migrate(Migration::builder(source, Address::unix(pair.run_dir().join("none")).unwrap()));
    assert_eq!(nowhere.reason.as_ref().unwrap().code, "unreachable", "{nowhere:#?}");
    for side in [&pair.source, &pair.destination] {
        assert_eq!(side.leftovers().unwrap(), Vec::<String>::new());
    }
    assert_eq!(pair.destination.status().unwrap(), "inmigrate");
    let outcome = migrate(builder(&pair));
    judge_running(&pair, &outcome);
}
