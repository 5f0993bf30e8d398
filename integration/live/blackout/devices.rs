//! How long each device took: told of both sides where QEMU's log is a file, and said once where it is none.

use crate::support::{begins, builder, cancel, judge_back, migrate_and, migrate_when, start};
use qferry::internals::progress::{DevicePhase, Ending, Event, EventKind, Phase, Side};
use qferry_bed::{Machine, Pair, Spec};
use serde_json::json;

const EVENTS: &str = "vmstate_downtime_*";
const CHECKPOINT: &str = "vmstate_downtime_checkpoint";

fn quick(version: &str, extra: &[&str]) -> Pair {
    let extra = extra.iter().map(|word| (*word).to_owned()).collect();
    start(&Spec { version: version.to_owned(), extra, ..Spec::quick() })
}

/// The trace events of a QEMU that are on.
fn on(machine: &Machine) -> Vec<String> {
    let known = machine.qmp("trace-event-get-state", &json!({ "name": EVENTS })).unwrap();
    let on = known.as_array().unwrap().iter().filter(|event| event["state"] == "enabled");
    on.map(|event| event["name"].as_str().unwrap().to_owned()).collect()
}

fn said(events: &[Event]) -> Vec<&str> {
    let of = |event: &&Event| match &event.kind {
        EventKind::Action { action, .. } if action == "no-device-times" => true,
        EventKind::Warning { message, .. } => message.contains("device"),
        _ => false,
    };
    events
        .iter()
        .filter(of)
        .map(|event| match &event.kind {
            EventKind::Action { because, .. } => because.as_str(),
            _ => "a warning",
        })
        .collect()
}

#[test]
fn devices_of_both_sides_are_told_and_the_events_are_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("qemu-%d.log");
    let log = log.to_str().unwrap();
    // a log of its own for each QEMU, with times, and one on stderr
    for (version, extra) in [("10.0.13", &["-D", log, "-msg", "timestamp=on"][..]), ("11.1", &[])] {
        let pair = quick(version, extra);
        // somebody else has switched one on, which stays on
        pair.destination.qmp("trace-event-set-state", &json!({ "name": CHECKPOINT, "enable": true })).unwrap();
        let mut during = Vec::new();
        let sent = |kind: &EventKind| begins(kind, Phase::Switchover);
        let (outcome, events) = migrate_when(builder(&pair).keep_source(), sent, |_| during = on(&pair.source));
        assert_eq!((outcome.outcome, &outcome.devices_unknown), (Ending::Moved, &None), "{version}: {outcome:#?}");
        assert_eq!(said(&events), Vec::<&str>::new(), "{version}");
        assert_eq!(during.len(), 3, "{version}: {during:?}");
        assert_eq!((on(&pair.source), on(&pair.destination)), (vec![], vec![CHECKPOINT.to_owned()]), "{version}");
        let span = outcome.ledger.iter().find(|span| span.span == "ram-and-devices").expect("a span");
        for (side, phase) in [(Side::Source, DevicePhase::Save), (Side::Destination, DevicePhase::Load)] {
            let devices: Vec<_> = outcome.devices.iter().filter(|device| device.side == side).collect();
            let names: Vec<&str> = devices.iter().map(|device| device.device.as_str()).collect();
            let has = |wanted: &str| names.iter().any(|name| name.ends_with(wanted));
            assert!(["ram", "cpu", "i8254", "virtio-blk"].into_iter().all(has), "{version} {side}: {names:?}");
            assert!(devices.iter().all(|device| device.phase == phase), "{version} {side}: {devices:?}");
            // QEMU serves one device after the other, between `migrate-continue` and `completed`
            let sum = devices.iter().map(|device| device.us).sum::<u64>() as f64 / 1000.0;
            assert!(sum > 0.0 && sum <= span.ms + 1.0, "{version} {side}: {sum} ms of {span:?}");
        }
        let sum: f64 = outcome.ledger.iter().map(|span| span.ms).sum();
        assert!((sum - outcome.blackout_ms.unwrap()).abs() < 1e-6, "{version}: {outcome:#?}");
    }
}

#[test]
fn where_the_times_cannot_be_had_it_is_said_once() {
    for (version, extra, words) in [
        ("7.2", &[][..], "has no trace events that tell the times of devices, as QEMU before 8.2"),
        ("10.0.13", &["-D", "/dev/null"], "writes its log to /dev/null"),
    ] {
        let pair = quick(version, extra);
        let (outcome, events) = migrate_and(builder(&pair).keep_source(), Phase::Connect, |_| ());
        assert_eq!((outcome.outcome, outcome.devices.len()), (Ending::Moved, 0), "{version}: {outcome:#?}");
        let unknown = outcome.devices_unknown.as_deref().unwrap_or_default();
        assert_eq!((unknown.matches(words).count(), said(&events)), (2, vec![unknown]), "{version}");
        let remedy = unknown.ends_with("start QEMU with -D and a file that qferry may read");
        assert_eq!(remedy, !extra.is_empty(), "{version}: {unknown}");
        assert_eq!((on(&pair.source), on(&pair.destination)), (vec![], vec![]), "{version}");
    }
}

#[test]
fn a_migration_that_is_called_off_leaves_no_event_on() {
    let pair = quick("10.0.13", &[]);
    let (mut during, sent) = (Vec::new(), |kind: &EventKind| begins(kind, Phase::Switchover));
    let (outcome, _) = migrate_when(builder(&pair), sent, |running| {
        during = on(&pair.source);
        cancel(running);
    });
    judge_back(&pair, &outcome, Ending::Cancelled, "running");
    assert_eq!((during.len(), on(&pair.source)), (3, vec![]), "{outcome:#?}");
}
