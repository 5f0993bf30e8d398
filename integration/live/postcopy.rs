//! Guests that dirty more than the link carries, moved by postcopy, also when the channel breaks or a side dies.

use super::support::{
    MIB, WAIT, begins, builder, cancel, hurry, judge_back, judge_disks, judge_running, migrate_when, settings, spec,
    start,
};
use qferry::internals::{
    endpoint::Address,
    migration::{Builder, Migration, Running, Settings},
    progress::{Ending, Event, EventKind, Outcome, Phase, RunsOn},
    quantity::Rate,
};
use qferry_bed::{Deed, Event as BedEvent, Guest, MonitorProxy, Pair, Side, Spec, Tape, Workload, nth};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::cell::Cell;

/// A guest that dirties more than the ceiling.
fn heavy(version: &str) -> Spec {
    let workload = Workload { ram: 48 * MIB, dirty: 60 * MIB, write: 50, read: 100, ..Workload::default() };
    spec(version, workload)
}

fn at_once(pair: &Pair) -> Settings {
    let policy = "name = \"at-once\"\nram = []\n[schedule]\npoll = \"100ms\"\ndowntime = \"1ms\"\nsteps = [{ then = \"postcopy\" }]";
    let mut settings = settings(pair);
    settings.policy = policy.parse().unwrap();
    settings
}

/// A migration without a ceiling, which would replace the limit that [`slowly`] sets.
fn postcopy(pair: &Pair) -> Builder {
    builder(pair).settings(at_once(pair))
}

/// Limits the background of postcopy until [`hurry`], so that most pages are still on the source however late a busy
/// host lets this process act. The limit is set once RAM is sent, after the engine's own parameters.
fn slowly(pair: &Pair, fits: impl Fn(&EventKind) -> bool) -> impl Fn(&EventKind) -> bool {
    limiting(pair, json!({"max-bandwidth": MIB, "max-postcopy-bandwidth": MIB}), fits)
}

/// Sets these limits once RAM is sent.
fn limiting(pair: &Pair, limits: Value, fits: impl Fn(&EventKind) -> bool) -> impl Fn(&EventKind) -> bool {
    let is_limited = Cell::new(false);
    move |kind| {
        if matches!(kind, EventKind::Memory { .. }) && !is_limited.replace(true) {
            pair.source.qmp("migrate-set-parameters", &limits).unwrap();
        }
        fits(kind)
    }
}

/// Migrates with the limit of [`slowly`], and acts at the begin of a phase.
fn migrate_slowly(
    pair: &Pair,
    builder: Builder,
    at: Phase,
    act: impl FnOnce(&Running<Outcome>),
) -> (Outcome, Vec<Event>) {
    migrate_when(builder, slowly(pair, |kind| begins(kind, at)), act)
}

fn cut(pair: &Pair) {
    pair.source.qmp("yank", &json!({"instances": [{"type": "migration"}]})).unwrap();
}

fn actions(events: &[Event], wanted: &str) -> usize {
    events.iter().filter(|event| matches!(&event.kind, EventKind::Action { action, .. } if *action == wanted)).count()
}

fn warned(events: &[Event], wanted: &str) -> bool {
    events.iter().any(|event| matches!(&event.kind, EventKind::Warning { code, .. } if *code == wanted))
}

/// The number of new channels, by the source's events, and as many attempts. Attempts that the destination refuses are
/// not counted: it may not know yet that the channel is broken.
fn judge_channels(pair: &Pair, events: &[Event], wanted: usize) {
    let told = pair.source.events().unwrap();
    let statuses: Vec<_> =
        told.iter().filter(|event| event.name == "MIGRATION").map(|event| &event.data["status"]).collect();
    let made = statuses.windows(2).filter(|two| *two == ["postcopy-recover", "postcopy-active"]).count();
    assert_eq!(made, wanted, "{statuses:?}");
    let is_refused = |kind: &EventKind| matches!(kind, EventKind::Warning { message, .. } if message.contains("refused migrate-recover"));
    let refused = events.iter().filter(|event| is_refused(&event.kind)).count();
    assert_eq!(actions(events, "recover-postcopy") - refused, wanted, "{events:#?}");
}

fn judge(pair: &Pair, outcome: &Outcome) {
    assert!(outcome.ram.postcopy, "{outcome:#?}");
    // The kernel counts for every QEMU, and from 10.1 on QEMU tells of the faults, too.
    let waited = outcome.ram.postcopy_blocktime.as_ref().expect("the destination counts");
    assert!(!waited.vcpu_ms.is_empty(), "{outcome:#?}");
    assert_eq!(waited.mean_fault_us.is_some(), pair.spec().version == "11.1", "{outcome:#?}");
    judge_running(pair, outcome);
}

fn moves(version: &str) {
    let pair = start(&heavy(version));
    let ceiling = Rate(24 * MIB);
    let limited = builder(&pair).settings(at_once(&pair)).bandwidth(ceiling);
    let sampled = |kind: &EventKind| match kind {
        EventKind::Memory { status, .. } => ["postcopy-active", "completed"].contains(&status.as_str()),
        _ => false,
    };
    // The engine's own limit of postcopy is looked at, and a busy host may deliver the first event after that was set.
    let sampled = limiting(&pair, json!({"max-bandwidth": MIB}), sampled);
    let (outcome, events) = migrate_when(limited, sampled, |_| {
        let parameters = pair.source.qmp("query-migrate-parameters", &json!({})).unwrap();
        assert_eq!(parameters["max-postcopy-bandwidth"], ceiling.0);
    });
    judge(&pair, &outcome);
    // The pages that the guest keeps in use were sent after the handover.
    let before = events.iter().take_while(|event| !begins(&event.kind, Phase::Handover));
    let sent = |event: &Event| match event.kind {
        EventKind::Memory { transferred, .. } => Some(transferred),
        _ => None,
    };
    let before = before.filter_map(sent).last().unwrap_or_default();
    let ram = pair.spec().workload.ram;
    assert!(outcome.ram.bytes - before >= ram, "{before} bytes before: {outcome:#?}");
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
    let (outcome, _) = migrate_slowly(&pair, postcopy(&pair), Phase::Postcopy, |_| hurry(&pair));
    super::support::judge_moved(&pair, &outcome);
    assert_eq!(pair.destination.status().unwrap(), "paused");
    judge_disks(&pair, Side::Destination);
}

/// Cuts the channel at the begin of postcopy.
fn is_cut_and_recovers(version: &str) {
    let pair = start(&heavy(version));
    let (outcome, events) = migrate_slowly(&pair, postcopy(&pair), Phase::Postcopy, |_| {
        cut(&pair);
        hurry(&pair);
    });
    judge(&pair, &outcome);
    assert!(warned(&events, "postcopy-paused"), "{events:#?}");
    judge_channels(&pair, &events, 1);
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
    let nbd = Address::unix(pair.run_dir().join("nbd")).unwrap();
    let ram = format!("tcp:127.0.0.1:{port}").parse().unwrap();
    let (outcome, events) = migrate_slowly(&pair, postcopy(&pair).addresses(nbd, ram), Phase::Postcopy, |_| {
        cut(&pair);
        hurry(&pair);
    });
    judge(&pair, &outcome);
    assert!(actions(&events, "recover-postcopy") >= 1, "{events:#?}");
}

#[test]
fn a_cancel_in_postcopy_is_too_late() {
    let pair = start(&heavy("10.0.13"));
    let (outcome, events) = migrate_slowly(&pair, postcopy(&pair), Phase::Postcopy, |migration| {
        migration.control().cancel();
        hurry(&pair);
    });
    judge(&pair, &outcome);
    assert!(warned(&events, "too-late-to-cancel"), "{events:#?}");
}

#[test]
fn a_cancel_before_postcopy_rolls_back() {
    let pair = start(&heavy("10.0.13"));
    let (outcome, _) = migrate_slowly(&pair, postcopy(&pair), Phase::Switchover, cancel);
    judge_back(&pair, &outcome, Ending::Cancelled, "running");
    assert!(!outcome.ram.postcopy, "{outcome:#?}");
    judge_disks(&pair, Side::Source);
}

#[test]
fn the_source_dies_with_pages_that_the_guest_lacks() {
    let pair = start(&heavy("10.0.13"));
    let (outcome, _) = migrate_slowly(&pair, postcopy(&pair), Phase::Postcopy, |_| pair.source.kill().unwrap());
    assert_eq!(outcome.outcome, Ending::Undetermined, "{outcome:#?}");
    assert_eq!(outcome.runs_on, RunsOn::Destination);
    let reason = outcome.reason.unwrap();
    assert_eq!(reason.code, "source-gone");
    assert!(reason.message.contains("start it anew"), "{}", reason.message);
    assert!(pair.destination.alive().unwrap(), "what is left of the guest is its owner's to end");
}

/// Nobody needs the pages that such a guest lacks.
#[test]
fn a_guest_that_is_shut_down_in_postcopy_has_moved() {
    for version in ["10.0.13", "7.2"] {
        let pair = start(&heavy(version));
        let (outcome, _) = migrate_slowly(&pair, postcopy(&pair), Phase::Postcopy, |_| {
            pair.destination.qmp("quit", &json!({})).unwrap();
        });
        assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Moved, RunsOn::None), "{version}: {outcome:#?}");
        pair.source.wait_for_end(WAIT).unwrap();
        pair.destination.wait_for_end(WAIT).unwrap();
        judge_disks(&pair, Side::Destination);
    }
}

#[test]
fn the_destination_dies_with_the_guest_in_postcopy() {
    let pair = start(&heavy("10.0.13"));
    let (outcome, _) = migrate_slowly(&pair, postcopy(&pair), Phase::Postcopy, |_| pair.destination.kill().unwrap());
    assert_eq!(outcome.outcome, Ending::Undetermined, "{outcome:#?}");
    assert_eq!(outcome.runs_on, RunsOn::Unknown);
    assert_eq!(outcome.reason.unwrap().code, "destination-gone");
    assert_ne!(pair.source.status().unwrap(), "running", "its disks are old");
}

/// Kills the destination after the source has sent the device state, and before the destination has loaded it: a proxy
/// stops the destination's process before it passes `migrate-continue` on to the source.
fn destination_dies_in_the_handover(version: &str, sent: &'static str) -> (Pair, Outcome) {
    let pair = start(&heavy(version));
    let folder = pair.run_dir().with_file_name("proxied");
    std::fs::create_dir(&folder).unwrap();
    let proxy =
        MonitorProxy::start(Side::Source, folder.join("qmp"), pair.source.qmp_path(), &Tape::default()).unwrap();
    let destination = Pid::from_raw(pair.destination.pid().cast_signed()).unwrap();
    let stop = move || kill_process(destination, Signal::STOP).unwrap();
    proxy.rule(nth(Side::Source, "migrate-continue", 1), stop, Deed::Pass);
    let address = |path| Address::unix(path).unwrap();
    // The engine does not know that the proxied source is on this host, so the addresses are given.
    let channel = |name| Some(address(folder.join(name)));
    let mut settings = at_once(&pair);
    settings.nbd_address = channel("nbd");
    settings.migrate_address = channel("ram");
    settings.source_nbd_address = channel("source-nbd");
    let sides = Migration::builder(address(proxy.path().to_owned()), address(pair.destination.qmp_path()));
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            let is_sent = |event: &BedEvent| event.name == "MIGRATION" && event.data["status"] == sent;
            pair.source.wait_for_event(WAIT, is_sent).unwrap();
            pair.destination.kill().unwrap();
        });
        migrate_slowly(&pair, sides.settings(settings), Phase::Handover, |_| ()).0
    });
    (pair, outcome)
}

#[test]
fn the_destination_dies_before_it_runs() {
    let (pair, outcome) = destination_dies_in_the_handover("10.0.13", "postcopy-active");
    // A source of 10.0 in postcopy cannot go back, although the destination has loaded nothing. The engine says so, and
    // tries nothing.
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
    let forced = postcopy(&pair).force("device-missing");
    let (outcome, _) = migrate_slowly(&pair, forced, Phase::Handover, |_| ());
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    judge_disks(&pair, Side::Source);
}

#[test]
fn a_channel_that_is_cut_twice_is_made_anew_twice() {
    let pair = start(&heavy("10.0.13"));
    let recovering = Cell::new(false);
    let holds_again = |kind: &EventKind| {
        match kind {
            kind if begins(kind, Phase::Postcopy) => cut(&pair),
            EventKind::Action { action, .. } if action == "recover-postcopy" => recovering.set(true),
            EventKind::Memory { status, .. } => return recovering.get() && status == "postcopy-active",
            _ => {}
        }
        false
    };
    let (outcome, events) = migrate_when(postcopy(&pair), slowly(&pair, holds_again), |_| {
        cut(&pair);
        hurry(&pair);
    });
    judge(&pair, &outcome);
    judge_channels(&pair, &events, 2);
}

#[test]
fn a_channel_that_carries_nothing_is_made_anew() {
    let pair = start(&heavy("10.0.13"));
    let is_given_up = |kind: &EventKind| {
        if begins(kind, Phase::Postcopy) {
            // The channel stays open, and nobody reads from it.
            pair.destination.stop_process().unwrap();
        }
        matches!(kind, EventKind::Warning { code, .. } if code == "postcopy-paused")
    };
    let (outcome, events) = migrate_when(postcopy(&pair), slowly(&pair, is_given_up), |_| {
        pair.destination.continue_process().unwrap();
        hurry(&pair);
    });
    judge(&pair, &outcome);
    assert!(actions(&events, "recover-postcopy") >= 1, "{events:#?}");
}

#[test]
fn a_new_channel_is_tried_until_there_is_one() {
    let pair = start(&heavy("10.0.13"));
    let away = pair.run_dir().with_extension("away");
    let tries = Cell::new(0);
    let third_try = |kind: &EventKind| {
        match kind {
            kind if begins(kind, Phase::Postcopy) => {
                // Without the folder no socket can be created.
                std::fs::rename(pair.run_dir(), &away).unwrap();
                cut(&pair);
            }
            EventKind::Action { action, .. } if action == "recover-postcopy" => tries.set(tries.get() + 1),
            _ => {}
        }
        tries.get() == 3
    };
    let (outcome, events) = migrate_when(postcopy(&pair), slowly(&pair, third_try), |_| {
        std::fs::rename(&away, pair.run_dir()).unwrap();
        hurry(&pair);
    });
    judge(&pair, &outcome);
    assert!(actions(&events, "recover-postcopy") >= 3, "{events:#?}");
    judge_channels(&pair, &events, 1);
}
