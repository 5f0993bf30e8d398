//! Guests that dirty more than the link carries, moved by postcopy: over a channel that holds, over one that is cut, and
//! with a side that dies.

use super::support::{
    MIB, WAIT, builder, judge_back, judge_disks, judge_running, migrate, migrate_and, migrate_when, settings, spec,
    start,
};
use qferry::{
    convergence::Policy,
    migration::{Builder, Migration, Settings},
    progress::{Ending, Event, Kind, Outcome, Phase, PhaseState, RunsOn},
    quantity::Rate,
};
use qferry_bed::{Event as BedEvent, Guest, Pair, Side, Spec, Workload};
use serde_json::json;
use std::time::Duration;

/// A guest that dirties more than [`postcopy`] lets through.
fn heavy(version: &str) -> Spec {
    let workload = Workload { ram: 48 * MIB, dirty: 60 * MIB, write: 50, read: 100, ..Workload::default() };
    spec(version, workload)
}

fn postcopy(pair: &Pair) -> Builder {
    let at_once = "name = \"at-once\"\nram = []\n[schedule]\npoll = \"100ms\"\ndowntime = \"1ms\"\nsteps = [{ then = \"postcopy\" }]";
    let policy: Policy = at_once.parse().unwrap();
    builder(pair).settings(Settings { policy, bandwidth: Some(Rate(24 * MIB)), ..settings(pair) })
}

fn cut(pair: &Pair) {
    pair.source.qmp("yank", &json!({"instances": [{"type": "migration"}]})).unwrap();
}

fn actions(events: &[Event], wanted: &str) -> usize {
    events.iter().filter(|event| matches!(&event.kind, Kind::Action { action, .. } if *action == wanted)).count()
}

fn warned(events: &[Event], wanted: &str) -> bool {
    events.iter().any(|event| matches!(&event.kind, Kind::Warning { code, .. } if *code == wanted))
}

fn judge(pair: &Pair, outcome: &Outcome) {
    assert!(outcome.ram.postcopy, "{outcome:#?}");
    judge_running(pair, outcome);
}

fn moves(version: &str) {
    let pair = start(&heavy(version));
    let outcome = migrate(postcopy(&pair));
    judge(&pair, &outcome);
    // what remained went over after the guest had resumed, within the ceiling
    let blackout = outcome.blackout_ms.unwrap();
    assert!(outcome.total_ms as f64 > blackout * 3.0, "{outcome:#?}");
}

#[test]
fn a_guest_moves_by_postcopy() {
    moves("10.0.13");
}

#[test]
fn a_guest_moves_by_postcopy_on_11_1() {
    moves("11.1");
}

#[test]
fn a_guest_moves_by_postcopy_on_7_2() {
    moves("7.2");
}

#[test]
fn a_paused_guest_moves_by_postcopy_and_stays_paused() {
    let pair = start(&Spec { guest: Guest::Paused, ..heavy("10.0.13") });
    let outcome = migrate(postcopy(&pair));
    super::support::judge_moved(&pair, &outcome);
    assert_eq!(pair.destination.status().unwrap(), "paused");
    judge_disks(&pair, Side::Destination);
}

/// Cuts the channel as soon as pages are fetched.
fn is_cut_and_recovers(version: &str) {
    let pair = start(&heavy(version));
    let (outcome, events) = migrate_and(postcopy(&pair), Phase::Postcopy, |_| cut(&pair));
    judge(&pair, &outcome);
    assert_eq!(actions(&events, "recover-postcopy"), 1, "{events:#?}");
    assert!(warned(&events, "postcopy-paused"), "{events:#?}");
}

#[test]
fn a_channel_that_is_cut_is_made_anew() {
    is_cut_and_recovers("10.0.13");
}

#[test]
fn a_channel_that_is_cut_is_made_anew_on_11_1() {
    is_cut_and_recovers("11.1");
}

#[test]
fn a_channel_that_is_cut_is_made_anew_on_7_2() {
    is_cut_and_recovers("7.2");
}

#[test]
fn a_port_is_used_again_for_the_new_channel() {
    let pair = start(&heavy("10.0.13"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nbd = qferry::endpoint::Address::unix(pair.run_dir().join("nbd")).unwrap();
    let ram = format!("tcp:127.0.0.1:{port}").parse().unwrap();
    let (outcome, events) = migrate_and(postcopy(&pair).addresses(nbd, ram), Phase::Postcopy, |_| cut(&pair));
    judge(&pair, &outcome);
    assert!(actions(&events, "recover-postcopy") >= 1, "{events:#?}");
}

#[test]
fn a_cancel_in_postcopy_is_too_late() {
    let pair = start(&heavy("10.0.13"));
    let (outcome, events) = migrate_and(postcopy(&pair), Phase::Postcopy, Migration::cancel);
    judge(&pair, &outcome);
    assert!(warned(&events, "too-late-to-cancel"), "{events:#?}");
}

#[test]
fn a_cancel_before_postcopy_rolls_back() {
    let pair = start(&heavy("10.0.13"));
    let (outcome, _) = migrate_and(postcopy(&pair), Phase::Switchover, Migration::cancel);
    judge_back(&pair, &outcome, Ending::Cancelled, "running");
    assert!(!outcome.ram.postcopy, "{outcome:#?}");
    judge_disks(&pair, Side::Source);
}

#[test]
fn the_source_dies_with_pages_that_the_guest_lacks() {
    let pair = start(&heavy("10.0.13"));
    let (outcome, _) = migrate_and(postcopy(&pair), Phase::Postcopy, |_| pair.source.kill().unwrap());
    assert_eq!(outcome.outcome, Ending::Undetermined, "{outcome:#?}");
    assert_eq!(outcome.runs_on, RunsOn::Destination);
    let reason = outcome.reason.unwrap();
    assert_eq!(reason.code, "source-gone");
    assert!(reason.message.contains("start it anew"), "{}", reason.message);
    assert!(pair.destination.alive().unwrap(), "what is left of the guest is its owner's to end");
}

#[test]
fn the_destination_dies_with_the_guest_in_postcopy() {
    let pair = start(&heavy("10.0.13"));
    let (outcome, _) = migrate_and(postcopy(&pair), Phase::Postcopy, |_| pair.destination.kill().unwrap());
    assert_eq!(outcome.outcome, Ending::Undetermined, "{outcome:#?}");
    assert_eq!(outcome.runs_on, RunsOn::Unknown);
    assert_eq!(outcome.reason.unwrap().code, "destination-gone");
    assert_ne!(pair.source.status().unwrap(), "running", "its disks are old");
}

/// Kills the destination once the source has sent it the devices, before it could load them.
fn destination_dies_in_the_handover(version: &str, sent: &'static str) -> (Pair, Outcome) {
    let pair = start(&heavy(version));
    let outcome = std::thread::scope(|scope| {
        let (outcome, _) = migrate_and(postcopy(&pair), Phase::Handover, |_| {
            pair.destination.stop_process().unwrap();
            scope.spawn(|| {
                let is_sent = |event: &BedEvent| event.name == "MIGRATION" && event.data["status"] == sent;
                pair.source.wait_for_event(WAIT, is_sent).unwrap();
                pair.destination.kill().unwrap();
            });
        });
        outcome
    });
    (pair, outcome)
}

#[test]
fn the_destination_dies_before_it_runs() {
    let (pair, outcome) = destination_dies_in_the_handover("10.0.13", "postcopy-active");
    // 10.0 lets a source go no further back, although nothing of it was loaded: that is said, and nothing is tried
    assert_eq!(outcome.outcome, Ending::Undetermined, "{outcome:#?}");
    assert_eq!(outcome.runs_on, RunsOn::Unknown);
    let message = outcome.reason.unwrap().message;
    assert!(message.contains("the source is in postcopy"), "{message}");
    assert_eq!(pair.source.status().unwrap(), "finish-migrate");
    let migration = pair.source.qmp("query-migrate", &json!({})).unwrap();
    assert_eq!(migration["status"], "postcopy-paused");
}

#[test]
fn the_destination_dies_before_it_runs_on_11_1() {
    let (pair, outcome) = destination_dies_in_the_handover("11.1", "postcopy-device");
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    assert!(!outcome.ram.postcopy, "{outcome:#?}");
    judge_disks(&pair, Side::Source);
}

#[test]
fn a_destination_that_refuses_the_state_leaves_the_guest_on_11_1() {
    let pair = start(&heavy("11.1"));
    pair.source.qmp("device_add", &json!({"driver": "virtio-rng-pci", "id": "only-here"})).unwrap();
    let outcome = migrate(postcopy(&pair).force("device-missing"));
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    judge_disks(&pair, Side::Source);
}

#[test]
fn a_channel_that_is_cut_twice_is_made_anew_twice() {
    let pair = start(&heavy("10.0.13"));
    let recovering = std::cell::Cell::new(false);
    let holds_again = |kind: &Kind| {
        match kind {
            Kind::Phase { phase: Phase::Postcopy, state: PhaseState::Begin } => cut(&pair),
            Kind::Action { action, .. } if action == "recover-postcopy" => recovering.set(true),
            Kind::Memory { status, .. } => return recovering.get() && status == "postcopy-active",
            _ => {}
        }
        false
    };
    let (outcome, events) = migrate_when(postcopy(&pair), holds_again, |_| cut(&pair));
    judge(&pair, &outcome);
    assert!(actions(&events, "recover-postcopy") >= 2, "{events:#?}");
}

#[test]
fn a_channel_that_carries_nothing_is_made_anew() {
    let pair = start(&heavy("10.0.13"));
    let (outcome, events) = std::thread::scope(|scope| {
        migrate_and(postcopy(&pair), Phase::Postcopy, |_| {
            // nothing is closed, and nobody reads
            pair.destination.stop_process().unwrap();
            scope.spawn(|| {
                std::thread::sleep(Duration::from_secs(15));
                pair.destination.continue_process().unwrap();
            });
        })
    });
    judge(&pair, &outcome);
    assert!(actions(&events, "recover-postcopy") >= 1, "{events:#?}");
}

#[test]
fn a_new_channel_is_tried_until_there_is_one() {
    let pair = start(&heavy("10.0.13"));
    let away = pair.run_dir().with_extension("away");
    let (outcome, events) = std::thread::scope(|scope| {
        migrate_and(postcopy(&pair), Phase::Postcopy, |_| {
            // no socket can be made there for a while
            std::fs::rename(pair.run_dir(), &away).unwrap();
            cut(&pair);
            scope.spawn(|| {
                std::thread::sleep(Duration::from_secs(6));
                std::fs::rename(&away, pair.run_dir()).unwrap();
            });
        })
    });
    judge(&pair, &outcome);
    assert!(actions(&events, "recover-postcopy") >= 3, "{events:#?}");
}
