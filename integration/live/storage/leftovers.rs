//! Leftovers of an earlier migration are in the way, are named, and are removed only if the user says so.

use super::{
    super::support::{MIB, WAIT, migrate, start},
    Expected, State, engine, expected, found, look, quick, serve, warning,
};
use qferry::internals::{preflight::checks::Severity, progress::Ending};
use qferry_bed::{DiskSpec, Event, Machine, Pair};
use serde_json::json;

fn export(machine: &Machine, id: &str, node: &str, writable: bool) {
    let export = json!({"type": "nbd", "id": id, "node-name": node, "name": id, "writable": writable});
    machine.qmp("block-export-add", &export).unwrap();
}

fn bitmap(machine: &Machine, name: &str) {
    machine.qmp("block-dirty-bitmap-add", &json!({"node": "disk0", "name": name})).unwrap();
}

/// The leftovers of a killed engine among things of somebody else: a guard bitmap, a mirror and its target on the
/// source, and an export on the destination.
fn leave(pair: &Pair) {
    let null = |name: &str| json!({"driver": "null-co", "node-name": name, "size": 16 * MIB});
    for name in ["qferry-target-0", "theirs-qferry-"] {
        pair.source.qmp("blockdev-add", &null(name)).unwrap();
    }
    bitmap(&pair.source, "qferry-guard-0");
    bitmap(&pair.source, "daily");
    let mirror = json!({
        "job-id": "qferry-mirror-0", "device": "disk0", "target": "qferry-target-0", "sync": "top", "auto-dismiss": false,
    });
    pair.source.qmp("blockdev-mirror", &mirror).unwrap();
    serve(&pair.destination, &pair.run_dir().join("old"));
    export(&pair.destination, "qferry-export-0", "disk0", true);
}

fn expected_all(severity: Severity) -> Vec<Expected> {
    [
        ("source", "block job qferry-mirror-0"),
        ("source", "block node qferry-target-0"),
        ("source", "dirty bitmap qferry-guard-0 on node disk0"),
        ("destination", "block export qferry-export-0"),
    ]
    .map(|(side, what)| expected(severity, "leftover", side, [&what]))
    .into()
}

#[test]
fn what_is_left_is_named_and_removed_on_the_users_word() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let pair = start(&qferry_bed::Spec { version: version.to_owned(), ..quick([DiskSpec::small()]) });
        leave(&pair);
        pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_READY").unwrap();
        found(&look(&pair, |_| ()), expected_all(Severity::Blocker));
        // A plan removes nothing.
        let warned = look(&pair, |settings| settings.clean = true);
        let unread: Vec<_> = warned.verified.iter().collect();
        assert!(unread.is_empty(), "nothing is opened where another may be at work: {unread:?}");
        let unproved = warning("backing-unverified", "disk0", [&"no image was read"]);
        found(&warned, expected_all(Severity::Warning).into_iter().chain([unproved]));
        let before = State::of(&pair);
        let refused = migrate(engine(&pair, |_| ()));
        assert_eq!(refused.outcome, Ending::Refused, "{refused:#?}");
        let reason = refused.reason.unwrap();
        assert!(reason.code == "leftover" && reason.message.contains("`clean`"), "{reason:?}");
        before.is_still(&pair);

        let outcome = migrate(engine(&pair, |settings| settings.clean = true));
        assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}");
        pair.source.wait_for_end(WAIT).unwrap();
        // The bitmap of somebody else moved with the guest.
        let named: Vec<_> = pair.destination.bitmaps(0).unwrap().into_iter().map(|bitmap| bitmap.name).collect();
        assert_eq!(named, ["daily"]);
        let events = pair.source.events().unwrap();
        let of_job = |event: &&Event| event.data["device"].as_str().is_some_and(|job| job.ends_with("mirror-0"));
        assert!(events.iter().filter(of_job).count() > 2, "the old one and the new one: {events:#?}");
        pair.destination.finish().unwrap();
        pair.guest_visible_equal(0).unwrap();
    }
}

/// A migration that is refused all the same removes nothing, and one that goes on only what the engine made.
#[test]
fn what_is_not_of_the_engine_is_never_removed() {
    let pair = start(&quick([DiskSpec::small(), DiskSpec::small()]));
    leave(&pair);
    export(&pair.destination, "theirs", "disk1", false);
    let before = State::of(&pair);
    let refused = migrate(engine(&pair, |settings| settings.clean = true));
    assert_eq!(refused.outcome, Ending::Refused, "{refused:#?}");
    let reason = refused.reason.unwrap();
    assert!(reason.code == "export-open" && reason.message.contains("theirs"), "{reason:?}");
    before.is_still(&pair);

    pair.destination.qmp("block-export-del", &json!({"id": "theirs"})).unwrap();
    let builder = engine(&pair, |settings| settings.clean = true).keep_source();
    let outcome = migrate(builder);
    assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}");
    assert_eq!(pair.source.leftovers().unwrap(), ["dirty bitmap daily on node disk0", "node theirs-qferry-"]);
}

/// A node in use cannot be removed: a finding says so, and nothing is broken.
#[test]
fn what_cannot_be_removed_is_told() {
    let pair = start(&quick([DiskSpec::small()]));
    pair.source.qmp("blockdev-add", &json!({"driver": "null-co", "node-name": "qferry-below", "size": MIB})).unwrap();
    let above = json!({"driver": "raw", "node-name": "theirs", "file": "qferry-below"});
    pair.source.qmp("blockdev-add", &above).unwrap();
    let outcome = migrate(engine(&pair, |settings| settings.clean = true));
    assert_eq!(outcome.outcome, Ending::Refused, "{outcome:#?}");
    let message = outcome.reason.unwrap().message;
    assert!(message.contains("in use"), "{message}");
    assert_eq!(pair.source.status().unwrap(), "running");
}
