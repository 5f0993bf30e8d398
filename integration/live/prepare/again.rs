//! Another try: images of a migration that was called off, or whose engine died, are made anew.

use super::{Place, prepared, ran};
use crate::support::MIB;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::MetadataExt,
    process::{Child, Command, Stdio},
};

/// `qferry migrate` from the source to the destination.
fn migrate(place: &Place) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
    command.args(["migrate", "--json", "--disk-bandwidth", "1MiB/s", "--verify-backing", "sample", "--source"]);
    command.arg(place.path("source.qmp")).arg("--destination").arg(place.path("destination.qmp"));
    command.env("XDG_RUNTIME_DIR", place.folder.path()).env("XDG_STATE_HOME", place.path("state"));
    command
}

/// Cancels a migration once a part of the disk is copied, and gives its outcome.
fn call_off(place: &Place) -> Value {
    let (mut child, last) = signalled(place, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(5), "{last:#}");
    last
}

/// Sends a signal to the engine once a part of the disk is copied, and gives its last line.
fn signalled(place: &Place, signal: Signal) -> (Child, Value) {
    let mut child = migrate(place).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let lines = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let (mut last, mut is_sent) = (Value::Null, false);
    for line in lines {
        if !is_sent && line["copied"].as_u64() >= Some(MIB) {
            kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), signal).unwrap();
            is_sent = true;
        }
        last = line;
    }
    (child, last)
}

/// A disk with less data than the one of the migration that was called off would show what that one left.
#[test]
fn an_image_that_holds_more_than_the_next_copy_writes_is_refused() {
    let place = Place::new("10.0.13");
    place.image("base.raw", "raw", None, 24 * MIB, 1, &[0]);
    let over = Some(("base.raw", "raw"));
    let at: Vec<u64> = (0..20).map(|megabyte| megabyte * MIB).collect();
    let top = place.image("top.qcow2", "qcow2", over, 24 * MIB, 2, &at);
    let other = place.image("other.qcow2", "qcow2", over, 24 * MIB, 3, &[20 * MIB]);
    let source = place.source(&[("disk0", "qcow2", &top)]);
    let to = place.path("d").display().to_string();
    ran(&mut place.prepare(&["--to", to.as_str(), "--json", "--apply"]), 0);
    let destination = place.destination(&place.path("d").join("top.qcow2"));
    call_off(&place);
    drop(source);

    let source = place.source(&[("disk0", "qcow2", &other)]);
    let output = migrate(&place).output().unwrap();
    let outcome = String::from_utf8_lossy(&output.stdout).lines().last().map(serde_json::from_str::<Value>);
    let outcome = outcome.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(3), "{outcome:#}");
    assert_eq!(outcome["reason"]["code"], "overlay-not-empty", "{outcome:#}");
    assert!(outcome["reason"]["message"].as_str().unwrap().contains("--again"), "{outcome:#}");
    drop(destination);
    place.is_clean(&source);
}

/// A migration that is cancelled while disks are copied leaves images that only its record proves to be nobody's.
#[test]
fn images_of_a_migration_that_was_called_off_are_made_anew() {
    let place = Place::new("10.0.13");
    place.image("base.raw", "raw", None, 24 * MIB, 1, &[0]);
    let at: Vec<u64> = (0..20).map(|megabyte| megabyte * MIB).collect();
    let top = place.image("top.qcow2", "qcow2", Some(("base.raw", "raw")), 24 * MIB, 2, &at);
    let source = place.source(&[("disk0", "qcow2", &top)]);
    let to = place.path("d").display().to_string();
    let again = |more: &[&str], code| {
        let words = [&["--to", to.as_str(), "--json"], more].concat();
        prepared(&ran(&mut place.prepare(&words), code))
    };
    again(&["--apply"], 0);
    let made = place.path("d").join("top.qcow2");
    let destination = place.destination(&made);
    let last = call_off(&place);
    assert_eq!(last["another_try"], json!({"images": [made], "start_destination": false}), "{last:#}");
    let message = last["reason"]["message"].as_str().unwrap();
    assert!(message.contains("--again") && message.contains(made.to_str().unwrap()), "{message}");

    let before = fs::metadata(&made).unwrap();
    let message = |prepared: &Value| prepared["reason"]["message"].as_str().unwrap().to_owned();
    let refused = again(&["--again", "--apply"], 3);
    assert!(message(&refused).contains("is in use: end that destination first"), "{refused:#}");
    drop(destination);
    let refused = again(&["--apply"], 3);
    assert!(message(&refused).contains("a migration that was called off"), "{refused:#}");
    assert!(refused["findings"][0]["remedy"].as_str().unwrap().contains("--again"), "{refused:#}");
    let planned = again(&["--again"], 0);
    assert_eq!(planned["steps"][1]["action"], "remake", "{planned:#}");
    assert_eq!(fs::metadata(&made).unwrap().ino(), before.ino());
    again(&["--again", "--apply"], 0);
    let map = place.img(&["map", "--output=json", made.to_str().unwrap()]);
    let map: Value = serde_json::from_str(&map).unwrap();
    assert!(map.as_array().unwrap().iter().all(|range| range["depth"] != 0), "{map:#}");

    // What somebody wrote since is somebody's.
    place.build.io(&made, ["write 0 64k"]).unwrap();
    let refused = again(&["--again", "--apply"], 3);
    assert!(message(&refused).contains("holds data"), "{refused:#}");
    place.is_clean(&source);
}

/// An engine that is killed while disks are copied keeps no record: its recovery does, with a destination that has had
/// the image open all the time, and not with one that somebody has ended since.
#[test]
fn images_of_a_migration_whose_engine_died_are_made_anew() {
    let place = Place::new("11.1");
    place.image("base.raw", "raw", None, 24 * MIB, 1, &[0]);
    let at: Vec<u64> = (0..20).map(|megabyte| megabyte * MIB).collect();
    let top = place.image("top.qcow2", "qcow2", Some(("base.raw", "raw")), 24 * MIB, 2, &at);
    let source = place.source(&[("disk0", "qcow2", &top)]);
    let to = place.path("d").display().to_string();
    let made = place.path("d").join("top.qcow2");
    let again = |code| prepared(&ran(&mut place.prepare(&["--to", to.as_str(), "--json", "--again", "--apply"]), code));
    again(0);
    for (somebody, ends_before) in [("nobody", false), ("writes", false), ("quits", true)] {
        let destination = place.destination(&made);
        assert!(!signalled(&place, Signal::KILL).0.wait().unwrap().success());
        let quit = || destination.ask("quit", &json!({}));
        if ends_before {
            quit();
        }
        let outcome = recover(&place);
        if !ends_before {
            quit();
        }
        drop(destination);
        let reason = outcome["reason"]["message"].as_str().unwrap();
        match ends_before {
            // Nothing proves that no QEMU has used the image since.
            true => {
                assert_eq!(outcome["another_try"], json!({"images": [], "start_destination": true}), "{outcome:#}");
                assert!(reason.contains("start it anew") && !reason.contains("--again"), "{reason}");
            }
            false => {
                let needed = json!({"images": [made], "start_destination": false});
                assert_eq!(outcome["another_try"], needed, "{outcome:#}");
                assert!(reason.contains("--again") && reason.contains(made.to_str().unwrap()), "{reason}");
            }
        }
        if somebody == "writes" {
            place.build.io(&made, ["write 0 64k"]).unwrap();
        }
        if somebody == "nobody" {
            let steps = again(0)["steps"].clone();
            assert_eq!(steps[1]["action"], "remake", "{steps:#}");
            continue;
        }
        let before = fs::metadata(&made).unwrap();
        let refused = again(3);
        assert!(refused["reason"]["message"].as_str().unwrap().contains("holds data"), "{somebody}: {refused:#}");
        assert_eq!(fs::metadata(&made).unwrap().ino(), before.ino(), "{somebody}");
        fs::remove_file(&made).unwrap();
        again(0);
    }
    place.is_clean(&source);
}

/// The outcome of `qferry recover` of the one journal that is there.
fn recover(place: &Place) -> Value {
    let journals: Vec<_> =
        fs::read_dir(place.path("state/qferry")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let journal = journals.iter().find(|path| path.extension().is_some_and(|end| end == "journal"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
    command.args(["recover", "--json"]).arg(journal.unwrap_or_else(|| panic!("{journals:?}")));
    command.env("XDG_RUNTIME_DIR", place.folder.path()).env("XDG_STATE_HOME", place.path("state"));
    let output = command.output().unwrap();
    let outcome = String::from_utf8_lossy(&output.stdout).lines().last().map(serde_json::from_str::<Value>);
    let outcome = outcome.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(4), "{outcome:#}");
    outcome
}
