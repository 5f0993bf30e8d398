//! Migrations that nobody looks after, and guests that have arrived unheard.

use super::{codes, diagnosed_for, expect, guest, healthy, short, wait_for_migration};
use crate::{machines::ask, support::WAIT};
use qferry_bed::Bare;
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;

/// A source and a destination without a guest system.
fn bare(more: &[&str]) -> [Bare; 2] {
    let incoming = [more, &["-incoming", "defer", "-S"]].concat();
    [Bare::start("10.0.13", more).unwrap(), Bare::start("10.0.13", &incoming).unwrap()]
}

fn look(machines: &[&Bare]) -> (i32, Value) {
    let paths: Vec<String> = machines.iter().map(|machine| machine.qmp_path().display().to_string()).collect();
    diagnosed_for("2500ms", &paths.iter().map(String::as_str).collect::<Vec<_>>())
}

fn send([source, destination]: &[Bare; 2], parameters: &Value) {
    let at = format!("unix:{}", destination.qmp_path().with_file_name("ram").display());
    ask(source, "migrate-set-parameters", parameters);
    ask(destination, "migrate-incoming", &json!({ "uri": at }));
    ask(source, "migrate", &json!({ "uri": at }));
}

/// A program that is gone, and one that still has a monitor.
#[test]
fn a_migration_without_an_owner_is_told_from_one_whose_owner_is_connected() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    let chardev = format!("socket,id=other,path={},server=on,wait=off", other.display());
    // a serial port that nobody listens to is no monitor
    let more = ["-chardev", &chardev, "-mon", "chardev=other,mode=control", "-serial", "null"];
    let destination = Bare::start("10.0.13", &["-incoming", "defer", "-S"]).unwrap();
    let pair = [Bare::start("10.0.13", &more).unwrap(), destination];
    let pause = json!({ "capabilities": [{ "capability": "pause-before-switchover", "state": true }] });
    ask(&pair[0], "migrate-set-capabilities", &pause);
    send(&pair, &json!({ "downtime-limit": 2000 }));
    wait_for_migration("pre-switchover", || ask(&pair[0], "query-migrate", &json!({})));
    let told = look(&[&pair[0], &pair[1]]);
    expect("waiting-for-continue", &told);
    let found = codes(&told.1);
    assert_eq!(found, ["waiting-for-continue", "ownerless"], "{:#}", told.1);
    let owner = UnixStream::connect(&other).unwrap();
    let told = look(&[&pair[0], &pair[1]]);
    assert_eq!(codes(&told.1), ["waiting-for-continue"], "{:#}", told.1);
    drop(owner);
}

/// QEMU that was told to announce nothing, and a card whose interface has carried nothing.
#[test]
fn a_guest_that_arrives_unheard_is_named() {
    let pair = bare(&["-device", "e1000,romfile="]);
    ask(&pair[1], "migrate-set-parameters", &json!({ "announce-rounds": 0 }));
    send(&pair, &json!({ "downtime-limit": 2000 }));
    wait_for_migration("completed", || ask(&pair[1], "query-migrate", &json!({})));
    ask(&pair[1], "cont", &json!({}));
    let told = look(&[&pair[0], &pair[1]]);
    expect("network-unannounced", &told);
    assert_eq!(told.1["causes"][0]["confidence"], "possible", "{:#}", told.1);
    // QEMU announces five times by itself
    let pair = bare(&["-device", "e1000,romfile="]);
    send(&pair, &json!({ "downtime-limit": 2000 }));
    wait_for_migration("completed", || ask(&pair[1], "query-migrate", &json!({})));
    ask(&pair[1], "cont", &json!({}));
    healthy(&look(&[&pair[0], &pair[1]]));
}

/// A guest that QEMU says cannot be migrated as it is.
#[test]
fn a_guest_that_may_not_migrate_is_named_by_qemus_reason() {
    let folder = tempfile::tempdir().unwrap();
    let fat = format!("driver=vvfat,node-name=fat,dir={},rw=on", folder.path().display());
    let machine = Bare::start("10.0.13", &["-blockdev", &fat]).unwrap();
    expect("migration-blocked", &look(&[&machine]));
}

/// A guest that stands on both sides: its image is in use elsewhere, or nobody has started it.
#[test]
fn an_image_in_use_is_told_from_a_guest_that_nobody_has_started() {
    let pair = guest("10.0.13", None);
    let overlay = pair.destination.disks()[0].overlay.display().to_string();
    let file = format!("driver=file,node-name=f,filename={overlay}");
    let device =
        ["-blockdev", &file, "-blockdev", "driver=qcow2,node-name=q,file=f", "-device", "virtio-blk-pci,drive=q"];
    let holder = Bare::start("10.0.13", &device).unwrap();
    super::send(&pair, &[], &json!({ "downtime-limit": 2000 }));
    wait_for_migration("completed", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    pair.destination.wait_for_status("paused", WAIT).unwrap();
    assert!(pair.destination.qmp("cont", &json!({})).is_err(), "the image is in use");
    let told = short(&pair);
    expect("image-locked", &told);
    assert!(told.1["causes"][0]["evidence"].to_string().contains(&overlay), "{:#}", told.1);
    drop(holder);
    let told = short(&pair);
    assert_eq!(codes(&told.1), ["both-paused"], "{:#}", told.1);
}
