//! Guests that end, or stop by themselves or by their owner, while they are moved: they are left as they are.
//!
//! Promise: left-as-it-stands.

mod commands;

use super::support::{MIB, WAIT, begins, builder, cancel, judge_back, migrate, migrate_and, migrate_when, start};
use qferry::internals::{
    endpoint::Address,
    migration::{Builder, Migration},
    progress::{Ending, EventKind, Outcome, Phase, RunsOn},
    quantity::Rate,
};
use qferry_bed::{BootSector, ChannelProxy, DiskSpec, Filter, MonitorProxy, Pair, Side, Spec, Tape};
use serde_json::json;
use std::cell::Cell;

/// A pair whose guest waits for a key and then does something. Its disk takes seconds to copy at [`slow`]'s rate.
fn waiting(version: &str, then: impl FnOnce(BootSector) -> BootSector, extra: &[&str]) -> Spec {
    let disk = DiskSpec { overlay_data: 4 * MIB, ..DiskSpec::small() };
    let boot = Some(then(BootSector::new().wait_for_key()));
    let extra = extra.iter().map(|word| (*word).to_owned()).collect();
    Spec { version: version.to_owned(), boot, extra, disks: vec![disk], ..Spec::quick() }
}

/// Disks at a rate that leaves seconds to act in.
fn slow(pair: &Pair) -> Builder {
    builder(pair).disk_bandwidth(Rate(MIB / 2))
}

/// Disks are being copied, and the guest has booted: its write to the boot disk's first sector is none.
fn copies(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Disk { copied, .. } if *copied > 0)
}

fn press(pair: &Pair) {
    pair.source.press_key().unwrap_or_else(|error| panic!("{error}"));
}

/// The guest runs nowhere, the destination has ended, and nothing is left.
fn judge_ended(pair: &Pair, outcome: &Outcome, code: &str) {
    assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Ended, RunsOn::None), "{outcome:#?}");
    assert_eq!(outcome.outcome.exit_code(), 8);
    assert_eq!(outcome.reason.as_ref().map(|reason| reason.code.as_str()), Some(code), "{outcome:#?}");
    assert_eq!(outcome.leftovers, Vec::<String>::new());
    pair.source.wait_for_end(WAIT).unwrap();
    pair.destination.wait_for_end(WAIT).unwrap();
    assert_eq!(std::fs::read_dir(pair.run_dir()).unwrap().count(), 0, "left behind in the runtime directory");
}

/// Nobody has resumed the source's guest.
fn never_resumed(pair: &Pair) {
    let events = pair.source.events().unwrap();
    let last = events.iter().rfind(|event| ["STOP", "RESUME"].contains(&event.name.as_str()));
    assert_eq!(last.map(|event| event.name.as_str()), Some("STOP"), "{events:#?}");
}

#[test]
fn a_guest_that_powers_off_has_ended() {
    for version in ["10.0.13", "7.2"] {
        for at in [Phase::Storage, Phase::Memory] {
            let pair = start(&waiting(version, BootSector::power_off, &[]));
            let builder = match at {
                Phase::Storage => slow(&pair),
                _ => builder(&pair).bandwidth(Rate(2 * MIB)),
            };
            let when = move |kind: &EventKind| match at {
                Phase::Storage => copies(kind),
                _ => matches!(kind, EventKind::Memory { transferred, .. } if *transferred > 0),
            };
            let (outcome, _) = migrate_when(builder, when, |_| press(&pair));
            judge_ended(&pair, &outcome, "guest-shutdown");
        }
    }
}

/// Promise: ended-is-proved.
#[test]
fn a_source_that_is_quit_or_crashes_has_ended() {
    let pair = start(&waiting("10.0.13", |boot| boot, &[]));
    let quit = |_: &_| drop(pair.source.ask("quit", &json!({})));
    let (outcome, _) = migrate_when(slow(&pair), copies, quit);
    judge_ended(&pair, &outcome, "host-qmp-quit");
    let pair = start(&waiting("10.0.13", |boot| boot, &[]));
    let (outcome, _) = migrate_when(slow(&pair), copies, |_| pair.source.kill().unwrap());
    judge_ended(&pair, &outcome, "source-gone");
}

/// A guest that waits for a key, and whose write then meets a full disk.
fn full(version: &str) -> Spec {
    let mut spec = waiting(version, |boot| boot.write(64, 8), &[]);
    spec.disks[0].filter_below = Some(Filter::Full);
    spec
}

/// To get away from a full disk is a reason to move: the guest arrives as it stands, and goes on there.
#[test]
fn a_guest_that_stands_after_a_disk_error_moves_as_it_stands() {
    for version in ["10.0.13", "7.2"] {
        let pair = start(&full(version));
        press(&pair);
        pair.source.wait_for_status("io-error", WAIT).unwrap();
        let (outcome, events) = migrate_and(builder(&pair), Phase::Connect, |_| ());
        assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Moved, RunsOn::Destination), "{outcome:#?}");
        let warned = |kind: &EventKind| matches!(kind, EventKind::Warning { code, .. } if code == "guest-io-error");
        assert!(events.iter().any(|event| warned(&event.kind)), "{events:#?}");
        let state = pair.destination.status().unwrap();
        assert!(["io-error", "paused"].contains(&state.as_str()), "{state}");
        assert!(pair.destination.events().unwrap().iter().all(|event| event.name != "RESUME"), "sent cont by nobody");
        pair.source.wait_for_end(WAIT).unwrap();
        pair.destination.qmp("cont", &json!({})).unwrap();
        pair.destination.wait_for_status("running", WAIT).unwrap();
    }
}

#[test]
fn a_guest_that_stops_by_itself_is_left_so_at_once() {
    const PANIC: [&str; 4] = ["-device", "pvpanic", "-action", "panic=pause"];
    const WATCHDOG: [&str; 4] = ["-device", "ib700", "-action", "watchdog=pause"];
    // The port that starts the watchdog ib700, and the value for the shortest time.
    const IB700: u16 = 0x443;
    const SHORTEST: u8 = 15;
    for version in ["10.0.13", "11.1"] {
        let off = waiting(version, BootSector::power_off, &["-no-shutdown"]);
        let panic = waiting(version, BootSector::panic, &PANIC);
        let dog = waiting(version, |boot| boot.out_byte(IB700, SHORTEST), &WATCHDOG);
        let standing = [(off, "shutdown"), (panic, "guest-panicked"), (full(version), "io-error"), (dog, "watchdog")];
        for (spec, state) in standing {
            let pair = start(&spec);
            let (outcome, _) = migrate_when(slow(&pair), copies, |_| press(&pair));
            judge_back(&pair, &outcome, Ending::RolledBack, state);
            let reason = outcome.reason.as_ref().unwrap();
            assert_eq!(reason.code, "guest-halted", "{outcome:#?}");
            assert!(reason.message.contains(state), "{}", reason.message);
            assert!(outcome.disks[0].bytes_copied < 4 * MIB, "back at once: {outcome:#?}");
            never_resumed(&pair);
        }
    }
}

#[test]
fn a_guest_that_stops_by_itself_while_ram_is_sent_is_left_so() {
    for version in ["10.0.13", "7.2"] {
        let pair = start(&waiting(version, BootSector::panic, &["-device", "pvpanic", "-action", "panic=pause"]));
        let sends = |kind: &EventKind| matches!(kind, EventKind::Memory { transferred, .. } if *transferred > 0);
        let (outcome, _) = migrate_when(builder(&pair).bandwidth(Rate(MIB / 4)), sends, |_| press(&pair));
        // QEMU 7.2 forgets the state of a guest that stood still when it was stopped for the switchover
        let state = pair.source.status().unwrap();
        assert!(state == "guest-panicked" || (version == "7.2" && state == "postmigrate"), "{state}");
        judge_back(&pair, &outcome, Ending::RolledBack, &state);
        assert_eq!(outcome.reason.as_ref().unwrap().code, "guest-halted", "{outcome:#?}");
        never_resumed(&pair);
    }
}

/// What the owner or the guest does while disks are copied is left by a cancel.
#[test]
fn a_cancel_leaves_a_guest_that_is_suspended_paused_or_reset() {
    type Deed = fn(&Pair);
    let pause: Deed = |pair| drop(pair.source.qmp("stop", &json!({})).unwrap());
    let reset: Deed = |pair| {
        pair.source.qmp("stop", &json!({})).unwrap();
        pair.source.qmp("system_reset", &json!({})).unwrap();
    };
    for (deed, state) in [(press as Deed, "suspended"), (pause, "paused"), (reset, "prelaunch")] {
        let pair = start(&waiting("10.0.13", BootSector::suspend, &["-action", "reboot=reset"]));
        let (outcome, _) = migrate_when(slow(&pair), copies, |running| {
            deed(&pair);
            pair.source.wait_for_status(state, WAIT).unwrap();
            cancel(running);
        });
        judge_back(&pair, &outcome, Ending::Cancelled, state);
    }
}

/// The guest has suspended itself while disks were copied, and the cancel comes later.
#[test]
fn a_cancel_while_ram_is_sent_or_in_pre_switchover_leaves_a_guest_suspended() {
    let sends = |kind: &EventKind| matches!(kind, EventKind::Memory { transferred, .. } if *transferred > 0);
    let switches = |kind: &EventKind| begins(kind, Phase::Switchover);
    type When = fn(&EventKind) -> bool;
    for (version, when) in [("11.1", sends as When), ("10.0.13", switches)] {
        let pair = start(&waiting(version, BootSector::suspend, &[]));
        let sleeps = Cell::new(false);
        let cancels = |kind: &EventKind| {
            if copies(kind) && !sleeps.replace(true) {
                press(&pair);
                pair.source.wait_for_status("suspended", WAIT).unwrap();
            }
            when(kind)
        };
        let builder = builder(&pair).bandwidth(Rate(4 * MIB));
        let (outcome, _) = migrate_when(builder, cancels, |running| {
            assert!(sleeps.get(), "disks were copied before");
            cancel(running);
        });
        judge_back(&pair, &outcome, Ending::Cancelled, "suspended");
    }
}

/// The source hears nothing of what the destination says at the end: the destination has everything, the source fails
/// and runs on. What the destination has is older then.
#[test]
fn a_stale_copy_is_ended_where_the_ram_channel_breaks_at_the_end() {
    for version in ["10.0.13", "11.1", "7.2"] {
        let pair = start(&waiting(version, |boot| boot.repeat(|steps| steps.dirty(8).wait(1)), &[]));
        let folder = pair.run_dir().with_file_name("proxied");
        std::fs::create_dir(&folder).unwrap();
        let (front, behind) = (folder.join("front"), folder.join("behind"));
        let channel = ChannelProxy::start(front.clone(), behind.clone()).unwrap();
        let proxy =
            MonitorProxy::start(Side::Destination, folder.join("qmp"), pair.destination.qmp_path(), &Tape::default());
        let proxy = proxy.unwrap();
        proxy.replace("migrate-incoming", front.to_str().unwrap(), behind.to_str().unwrap());
        channel.swallow_answers();
        let address = |path| Address::unix(path).unwrap();
        let mut settings = super::support::settings(&pair);
        settings.migrate_address = Some(address(front));
        settings.nbd_address = Some(address(folder.join("nbd")));
        settings.source_nbd_address = Some(address(folder.join("source-nbd")));
        let sides = Migration::builder(address(pair.source.qmp_path()), address(proxy.path().to_owned()));
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                let loaded =
                    |event: &qferry_bed::Event| event.name == "MIGRATION" && event.data["status"] == "completed";
                pair.destination.wait_for_event(WAIT, loaded).unwrap();
                channel.cut();
            });
            migrate(sides.settings(settings))
        });
        assert_eq!(outcome.leftovers, Vec::<String>::new(), "{outcome:#?}");
        judge_back(&pair, &outcome, Ending::RolledBack, "running");
        pair.destination.wait_for_end(WAIT).unwrap();
    }
}
