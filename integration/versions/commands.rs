//! Every recorded command, checked against the schema of the QEMU that received it.

use super::{
    misfits::misfits,
    recording::{golden, versions},
};
use qferry::internals::{
    qemu::reply::MigrationStatus,
    qmp::{ErrorClass, frame::QmpFrame, transcript::LineDirection},
};
use std::collections::BTreeSet;

#[test]
fn every_command_is_in_the_schema_with_all_its_arguments() {
    for version in versions() {
        for (course, side, line) in version.lines(LineDirection::Send) {
            let command = line["execute"].as_str().or_else(|| line["exec-oob"].as_str()).unwrap();
            let misfits = misfits(&version.schema, command, &line["arguments"]);
            assert!(misfits.is_empty(), "{} {course} {side}: {misfits:?} in {line}", version.name);
        }
    }
}

/// The commands that QEMU refuses in the recordings: the removal of a bitmap that is gone, and a property that a device
/// does not have.
#[test]
fn only_the_expected_is_refused() {
    for version in versions() {
        for (course, side, line) in version.lines(LineDirection::Receive) {
            let QmpFrame::Reply(reply) = QmpFrame::classify(line.clone()).unwrap() else { continue };
            if let Err(refusal) = reply.result {
                let id = line["id"].as_str().unwrap();
                assert_eq!(refusal.class, ErrorClass::GenericError, "{} {course} {side}: {line}", version.name);
                let removed = id.starts_with("block-dirty-bitmap-remove#") && course != "succeeds";
                let absent = id.starts_with("qom-get#") && refusal.desc.ends_with(".addr' not found");
                assert!(removed || absent, "{} {course} {side}: {line}", version.name);
            }
        }
    }
}

/// Statuses without a name in the engine, for which it keeps waiting.
const UNNAMED: [&str; 7] = [
    "colo",
    "postcopy-active",
    "postcopy-device",
    "postcopy-paused",
    "postcopy-recover",
    "postcopy-recover-setup",
    "wait-unplug",
];

#[test]
fn every_migration_status_is_known_or_deliberately_not() {
    for version in versions() {
        let all = version.schema().argument_values("migrate-continue", "state");
        assert!(all.len() > 10, "{}: {all:?}", version.name);
        let known = |status: &str| !matches!(MigrationStatus::from(status), MigrationStatus::Other(_));
        for status in &all {
            assert!(known(status) || UNNAMED.contains(status), "{}: {status}", version.name);
        }
        let named: BTreeSet<&str> = all.into_iter().filter(|status| known(status)).collect();
        let without_failing =
            ["none", "setup", "active", "pre-switchover", "device", "completed", "failed", "cancelling", "cancelled"];
        assert!(without_failing.iter().all(|status| named.contains(status)), "{}: {named:?}", version.name);
    }
}

#[test]
fn features_are_as_they_were() {
    for version in versions() {
        let features = version.features();
        assert_eq!(features.missing, Vec::<String>::new(), "{}", version.name);
        let text = serde_json::to_string_pretty(&features).unwrap() + "\n";
        golden(&version.folder.join("features.json"), &text);
    }
}
