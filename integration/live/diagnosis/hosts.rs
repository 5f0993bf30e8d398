//! Limits of the host and of the way that stand in a migration's way, without any hardware.

use super::{channels::fill, codes, diagnosed_for, expect, short, wait_for_migration};
use crate::{
    machines::ask,
    support::{MIB, WAIT, start, until, writes},
};
use qferry_bed::{Bare, BootSector, DiskSpec, Link, Side, Spec, free_port};
use serde_json::{Value, json};
use std::{
    fs::{Permissions, set_permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

const AS_NOBODY: [&str; 2] = ["-run-with", "user=nobody"];

fn look(machines: &[&Bare]) -> (i32, Value) {
    let paths: Vec<String> = machines.iter().map(|machine| machine.qmp_path().display().to_string()).collect();
    diagnosed_for("2500ms", &paths.iter().map(String::as_str).collect::<Vec<_>>())
}

fn waiting(version: &str, more: &[&str]) -> Bare {
    Bare::start(version, &[more, &["-incoming", "defer", "-S"]].concat()).unwrap()
}

fn turn_on(machine: &Bare, names: &[&str]) {
    let on: Vec<Value> = names.iter().map(|name| json!({ "capability": name, "state": true })).collect();
    ask(machine, "migrate-set-capabilities", &json!({ "capabilities": on }));
}

fn status_of(machine: &Bare) -> impl Fn() -> Value {
    || ask(machine, "query-migrate", &json!({}))
}

/// Runs a program that must succeed.
fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The MTU of the way shrinks once the channel is connected: full segments vanish, and small ones pass.
#[test]
fn full_segments_that_vanish_are_one_of_two_reasons_of_a_silent_channel() {
    let boot = Some(BootSector::new().write(64, 1).repeat(|steps| steps.dirty(128)));
    let disks = vec![DiskSpec { overlay_data: 64 << 10, ..DiskSpec::small() }];
    let pair = start(&Spec { boot, disks, link: Some(Link::gigabit()), ..Spec::quick() });
    until(&pair, "query-blockstats", |blocks| writes(blocks) > 0);
    let wire = pair.wire().unwrap();
    let device = |side, words: &[&str]| {
        wire.on(side, || run("ip", &[&["link", "set", "veth0"], words].concat())).unwrap();
    };
    // a veth passes on what the kernel puts together of several segments, whatever the MTU
    device(Side::Source, &["gso_max_segs", "1"]);
    let slow = json!({ "max-bandwidth": 16 << 10, "downtime-limit": 1, "avail-switchover-bandwidth": 1000 });
    pair.source.qmp("migrate-set-parameters", &slow).unwrap();
    pair.destination.qmp("migrate-incoming", &json!({ "uri": wire.ram() })).unwrap();
    pair.source.qmp("migrate", &json!({ "uri": wire.ram() })).unwrap();
    wait_for_migration("active", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    device(Side::Destination, &["mtu", "600"]);
    let sent = || pair.source.qmp("query-migrate", &json!({})).unwrap()["ram"]["transferred"].as_u64().unwrap();
    let before = sent();
    pair.source.qmp("migrate-set-parameters", &json!({ "max-bandwidth": 64 * MIB })).unwrap();
    let begun = Instant::now();
    // the socket takes this much, and then nothing
    let (mut last, mut since) = (before, Instant::now());
    while last < before + (32 << 10) || since.elapsed() < Duration::from_secs(1) {
        assert!(begun.elapsed() < WAIT, "{last} bytes sent, {before} before");
        sleep(Duration::from_millis(100));
        let now = sent();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    let told = short(&pair);
    expect("link-dead", &told);
    assert_eq!(codes(&told.1), ["link-dead", "mtu"], "{:#}", told.1);
    assert!(told.1["causes"][1]["evidence"].to_string().contains("ping -M do"), "{:#}", told.1);
    // the channel had no other fault
    device(Side::Destination, &["mtu", "1500"]);
    until(&pair, "query-migrate", |info| info["ram"]["transferred"].as_u64() > Some(last));
}

/// A destination that gave up its rights refuses the capability, and fails when RAM comes for postcopy all the same.
/// The words of 10.0 do not tell why.
#[test]
fn a_destination_that_may_not_use_userfaultfd_is_named() {
    for version in ["10.0.13", "11.1"] {
        let (source, destination) = (Bare::start(version, &[]).unwrap(), waiting(version, &AS_NOBODY));
        let folder = tempfile::tempdir().unwrap();
        set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let at = format!("unix:{}", folder.path().join("ram").display());
        turn_on(&source, &["postcopy-ram"]);
        ask(&destination, "migrate-incoming", &json!({ "uri": at, "exit-on-error": false }));
        ask(&source, "migrate", &json!({ "uri": at }));
        wait_for_migration("failed", status_of(&destination));
        let told = look(&[&source, &destination]);
        expect("userfaultfd", &told);
        let cause = &told.1["causes"][0];
        assert_eq!(cause["confidence"], "likely", "{version}: {cause:#}");
        assert!(cause["evidence"].to_string().contains("unprivileged_userfaultfd is 0"), "{version}: {cause:#}");
    }
}

/// Zero copy pins the pages that are under way, for which the source may lock nothing.
#[test]
fn a_source_that_may_lock_too_little_memory_is_named() {
    let (source, destination) = (Bare::start("10.0.13", &AS_NOBODY).unwrap(), waiting("10.0.13", &[]));
    // without a capability that root may lack, only the process's own user may lower its limits
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    run("setpriv", &[&nobody[..], &["prlimit", "--pid", &source.pid().to_string(), "--memlock=0:0"]].concat());
    turn_on(&source, &["multifd", "zero-copy-send"]);
    turn_on(&destination, &["multifd"]);
    let at = format!("tcp:127.0.0.1:{}", free_port().unwrap());
    ask(&destination, "migrate-incoming", &json!({ "uri": at, "exit-on-error": false }));
    ask(&source, "migrate", &json!({ "uri": at }));
    for machine in [&source, &destination] {
        wait_for_migration("failed", status_of(machine));
    }
    let told = look(&[&source, &destination]);
    expect("memlock", &told);
    let evidence = told.1["causes"][0]["evidence"].to_string();
    assert!(evidence.contains("MSG_ZEROCOPY") && evidence.contains("may lock 0 bytes"), "{:#}", told.1);
}

/// QEMU waits for a connection that nobody answers, and ends no such wait. 10.0 says that all is cancelled meanwhile.
#[test]
fn a_cancellation_that_waits_for_a_connection_is_named() {
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = full.local_addr().unwrap();
    let _held = fill(address);
    let address = &address;
    std::thread::scope(|scope| {
        for (version, said) in [("7.2", "cancelling"), ("10.0.13", "cancelled"), ("11.1", "cancelling")] {
            scope.spawn(move || {
                let source = Bare::start(version, &[]).unwrap();
                ask(&source, "migrate", &json!({ "uri": format!("tcp:{address}") }));
                wait_for_migration("setup", status_of(&source));
                ask(&source, "migrate_cancel", &json!({}));
                wait_for_migration(said, status_of(&source));
                let told = look(&[&source]);
                expect("cancelling-stuck", &told);
                let cause = &told.1["causes"][0];
                let evidence = cause["evidence"].to_string();
                let whom = format!("no answer to the first segment from {address}");
                assert!(evidence.contains(&whom) && evidence.contains(said), "{version}: {cause:#}");
                assert_eq!((&cause["confidence"], &cause["fixable"]), (&json!("certain"), &json!(false)), "{cause:#}");
                // whatever QEMU calls it, the next migration is not begun beside the old connection
                let other = Bare::start(version, &["-incoming", "defer"]).unwrap();
                let [from, to] = [&source, &other].map(|machine| machine.qmp_path().to_str().unwrap().to_owned());
                let mut check = Command::new(env!("CARGO_BIN_EXE_qferry"));
                let checked = check.args(["check", "--json", "--no-measure", "--source", &from, "--destination", &to]);
                let findings = String::from_utf8(checked.output().unwrap().stdout).unwrap();
                assert!(findings.contains("\"migration-under-way\""), "{version}: {findings}");
            });
        }
    });
}
