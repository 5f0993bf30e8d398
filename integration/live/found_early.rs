//! What would be found late, after hours of copying, or never: users that cannot reach sockets, addresses that do not
//! answer, settings that earlier tools left, a guest that sleeps, images that block a migration.

use super::support::{
    MIB, WAIT, begins, builder, judge_back, judge_moved, migrate, migrate_when, on_source_host, start,
};
use qferry::internals::{
    endpoint::Address,
    migration::{Builder, JournalPlace, Migration},
    preflight::checks::{Finding, Severity},
    progress::{Ending, EventKind, Outcome, Phase, RunsOn},
    quantity::Rate,
};
use qferry_bed::{Bare, BootSector, DiskSpec, Link, Machine, Pair, Side, Spec, Wire};
use serde_json::{Value, json};
use std::{
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::Command,
};

const VERSIONS: [&str; 3] = ["7.2", "10.0.13", "11.1"];

fn bare(version: &str, arguments: &[&str]) -> Bare {
    Bare::start(version, arguments).unwrap_or_else(|error| panic!("{error}"))
}

fn between(source: &Bare, destination: &Bare) -> Builder {
    let address = |bare: &Bare| Address::unix(bare.qmp_path()).unwrap();
    Migration::builder(address(source), address(destination)).journal(JournalPlace::Nowhere)
}

/// The finding of a code, which a check must come to.
#[track_caller]
fn found(builder: Builder, code: &str) -> Finding {
    let plan = builder.check().unwrap().wait_blocking().unwrap_or_else(|error| panic!("{error:?}"));
    let found = plan.findings.iter().find(|finding| finding.code == code).cloned();
    found.unwrap_or_else(|| panic!("{code} is not among {:#?}", plan.findings))
}

#[track_caller]
fn reason(outcome: &Outcome) -> (&str, &str) {
    let reason = outcome.reason.as_ref().unwrap_or_else(|| panic!("{outcome:#?}"));
    (reason.code.as_str(), &reason.message)
}

/// QEMUs that run as another user cannot make their sockets in a folder of qferry's user alone. In a folder of their
/// own they can.
#[test]
fn qemus_of_another_user_are_known_before_anything_is_begun() {
    const NOBODY: u32 = 65534;
    for (version, user) in [("7.2", ["-runas", "nobody"]), ("11.1", ["-run-with", "user=nobody"])] {
        let source = bare(version, &user);
        let destination = bare(version, &[&user[..], &["-incoming", "defer", "-S"]].concat());
        let [folder, run] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let with_sockets = |name: &str| {
            let socket = |channel: &str| Address::unix(folder.path().join(name).join(channel)).unwrap();
            between(&source, &destination).runtime_dir(run.path()).addresses(socket("nbd"), socket("ram"))
        };
        let refused = found(between(&source, &destination).runtime_dir(folder.path()), "socket-forbidden");
        assert_eq!(refused.severity, Severity::Blocker);
        assert!(refused.message.contains("runs as another user than qferry"), "{version}: {refused}");
        // folders of qferry's user, and none
        for (name, words) in [("closed", "may make no socket in"), ("none", "there is no folder")] {
            if name == "closed" {
                std::fs::create_dir(folder.path().join(name)).unwrap();
            }
            let refused = found(with_sockets(name), "socket-forbidden");
            assert!(refused.message.contains(words), "{version}: {refused}");
        }
        let own = folder.path().join("own");
        std::fs::create_dir(&own).unwrap();
        for folder in [folder.path(), &own] {
            chown(folder, Some(NOBODY), None).unwrap();
        }
        let outcome = migrate(with_sockets("own"));
        assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Moved, RunsOn::Destination), "{version}: {outcome:#?}");
    }
}

/// A socket that root's QEMU makes lets in nobody else's, unless its umask lets them.
#[test]
fn a_socket_that_the_other_user_may_not_connect_to_is_known() {
    for (version, user) in [("7.2", ["-runas", "nobody"]), ("10.0.13", ["-run-with", "user=nobody"])] {
        let [folder, run] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let source = bare(version, &user);
        let destination = bare(version, &["-incoming", "defer", "-S"]);
        let socket = |channel: &str| Address::unix(folder.path().join(channel)).unwrap();
        let builder = between(&source, &destination).runtime_dir(run.path()).addresses(socket("nbd"), socket("ram"));
        let refused = found(builder, "socket-forbidden");
        assert_eq!(refused.severity, Severity::Blocker, "{refused}");
        assert!(refused.message.contains("user 65534") && refused.message.contains("may not connect"), "{refused}");
        // The other way round root may connect.
        let (source, destination) =
            (bare(version, &[]), bare(version, &[&user[..], &["-incoming", "defer", "-S"]].concat()));
        let socket = |channel: &str| Address::unix(folder.path().join(channel)).unwrap();
        let builder = between(&source, &destination).runtime_dir(run.path()).addresses(socket("nbd"), socket("ram"));
        let outcome = migrate(builder);
        assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Moved, RunsOn::Destination), "{version}: {outcome:#?}");
    }
}

fn tcp(text: &str) -> Address {
    text.parse().unwrap()
}

/// From now on the destination's host answers the source's no more.
fn dig_hole(wire: &Wire) {
    let hole = || Command::new("ip").args(["route", "add", "blackhole", "10.0.0.1/32"]).status().unwrap();
    assert!(wire.on(Side::Destination, hole).unwrap().success());
}

/// An address that nobody answers at is known beforehand. One that falls silent later is given up by the engine's own
/// deadline, and named; QEMU is not told to open it for disks, for its guest would stand meanwhile.
#[test]
fn an_address_that_does_not_answer_is_named() {
    let disk = DiskSpec { overlay_data: 64 << 10, ..DiskSpec::small() };
    let pair = start(&Spec { disks: vec![disk], link: Some(Link::gigabit()), ..Spec::quick() });
    let wire = pair.wire().unwrap();
    let silent = || builder(&pair).addresses(tcp("tcp:10.0.0.9:4444"), tcp("tcp:10.0.0.9:4445"));
    let finding = on_source_host(&pair, || found(silent(), "port-unreachable"));
    assert_eq!(finding.severity, Severity::Blocker);
    assert!(finding.message.contains("no answer from tcp:10.0.0.9:444"), "{finding}");
    let outcome = on_source_host(&pair, || {
        migrate_when(builder(&pair), |kind| begins(kind, Phase::Prepare), |_| dig_hole(wire)).0
    });
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    let (code, message) = reason(&outcome);
    assert!(code == "no-answer" && message.contains("no answer from tcp:10.0.0.2:10809 within 2s"), "{outcome:#?}");
    assert_eq!(outcome.blackout_ms, None, "{outcome:#?}");
}

#[test]
fn an_address_for_ram_that_does_not_answer_is_named() {
    let wire = Wire::start(Link::gigabit()).unwrap();
    let source = wire.on(Side::Source, || bare("10.0.13", &[])).unwrap();
    let destination = wire.on(Side::Destination, || bare("10.0.13", &["-incoming", "defer", "-S"])).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let over = |builder: Builder| {
        let addresses = (tcp(&wire.nbd(Side::Destination)), tcp(&wire.ram()));
        builder.runtime_dir(folder.path()).addresses(addresses.0, addresses.1).allow_plaintext()
    };
    let begins_ram = |kind: &EventKind| begins(kind, Phase::Memory);
    let work = || migrate_when(over(between(&source, &destination)), begins_ram, |_| dig_hole(&wire)).0;
    let outcome = wire.on(Side::Source, work).unwrap();
    let (code, message) = reason(&outcome);
    assert_eq!((outcome.outcome, outcome.runs_on), (Ending::RolledBack, RunsOn::Source), "{outcome:#?}");
    assert!(code == "no-answer" && message.contains("no answer from tcp:10.0.0.2:4445 within 10s"), "{outcome:#?}");
}

/// What earlier tools left in the settings of both sides is out of force for the run, and then as it was.
#[test]
fn settings_that_earlier_tools_left_change_nothing_and_are_put_back() {
    for version in VERSIONS {
        let pair = start(&Spec { version: version.to_owned(), ..Spec::quick() });
        let has = |machine: &Machine, query: &str| machine.qmp(query, &json!({})).unwrap();
        let candidates = [
            ("tls-creds", json!("gone0")),
            ("tls-hostname", json!("elsewhere")),
            ("tls-authz", json!("gone1")),
            ("mode", json!("cpr-reboot")),
            ("avail-switchover-bandwidth", json!(1)),
            ("zero-page-detection", json!("none")),
            ("multifd-channels", json!(7)),
            ("multifd-compression", json!("zlib")),
            ("max-bandwidth", json!(1)),
            ("downtime-limit", json!(0)),
            ("max-postcopy-bandwidth", json!(4096)),
        ];
        let sides = [&pair.source, &pair.destination];
        let known = has(&pair.source, "query-migrate-parameters");
        let left: serde_json::Map<String, Value> = candidates
            .into_iter()
            .filter(|(name, _)| known.get(name).is_some())
            .map(|(n, v)| (n.to_owned(), v))
            .collect();
        let all = has(&pair.source, "query-migrate-capabilities");
        let is_known = |name: &str| all.as_array().unwrap().iter().any(|known| known["capability"] == name);
        let on: Vec<&str> = ["return-path", "release-ram", "xbzrle", "switchover-ack"]
            .into_iter()
            .filter(|name| is_known(name))
            .collect();
        // some capabilities are on at one side alone, as two different tools would leave them
        let of = |machine: &Machine| on.iter().take(if machine.side() == Side::Source { 4 } else { 2 }).copied();
        for machine in sides {
            let on: Vec<Value> = of(machine).map(|name| json!({"capability": name, "state": true})).collect();
            machine.qmp("migrate-set-capabilities", &json!({"capabilities": on})).unwrap();
            machine.qmp("migrate-set-parameters", &left.clone().into()).unwrap();
        }
        let outcome = migrate(builder(&pair).keep_source());
        assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Moved, RunsOn::Destination), "{version}: {outcome:#?}");
        for machine in sides {
            let side = machine.side();
            let now = has(machine, "query-migrate-parameters");
            for (name, value) in &left {
                assert_eq!(&now[name], value, "{version} {side}: {name}");
            }
            let now = has(machine, "query-migrate-capabilities");
            for name in of(machine) {
                let back = now.as_array().unwrap().iter().any(|is| is["capability"] == name && is["state"] == true);
                assert!(back, "{version} {side}: {name}");
            }
        }
    }
}

/// A guest that sleeps (S3) is asleep where it arrives, and wakes there. QEMU before 9.0 would have it awake.
#[test]
fn a_guest_that_sleeps_moves_where_qemu_carries_that_over() {
    for version in VERSIONS {
        let boot = Some(BootSector::new().wait(9).suspend());
        let pair = start(&Spec { version: version.to_owned(), boot, ..Spec::quick() });
        pair.source.wait_for_status("suspended", WAIT).unwrap();
        let outcome = migrate(builder(&pair));
        if version == "7.2" {
            assert_eq!((outcome.outcome, reason(&outcome).0), (Ending::Refused, "guest-suspended"), "{outcome:#?}");
            assert!(reason(&outcome).1.contains("QEMU 7.2.22 does not carry that over"), "{outcome:#?}");
            assert_eq!(outcome.findings.len(), 1, "{outcome:#?}");
            continue;
        }
        judge_moved(&pair, &outcome);
        assert_eq!(pair.destination.status().unwrap(), "suspended", "{version}");
        pair.destination.qmp("system_wakeup", &json!({})).unwrap();
        pair.destination.wait_for_status("running", WAIT).unwrap();
    }
}

/// What keeps QEMU from migrating at all, and comes while disks are copied, is asked for again before RAM is sent. An
/// image of a format that does not move stands for whatever adds such a reason, as a 9p mount of the guest does.
#[test]
fn a_reason_against_migration_that_comes_while_disks_are_copied_leads_back() {
    let disk = DiskSpec { overlay_data: 4 * MIB, ..DiskSpec::small() };
    let pair = start(&Spec { disks: vec![disk], ..Spec::quick() });
    let image = pair.source.folder().join("other.vdi");
    vdi(&pair, &image);
    let copies = |kind: &EventKind| matches!(kind, EventKind::Disk { copied, .. } if *copied > 0);
    let (outcome, _) = migrate_when(builder(&pair).disk_bandwidth(Rate(2 * MIB)), copies, |_| {
        let file = json!({"driver": "file", "filename": image});
        pair.source.qmp("blockdev-add", &json!({"driver": "vdi", "node-name": "other", "file": file})).unwrap();
    });
    pair.source.qmp("blockdev-del", &json!({"node-name": "other"})).unwrap();
    std::fs::remove_file(&image).unwrap();
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    let (code, message) = reason(&outcome);
    assert!(code == "migration-blocked" && message.contains("vdi"), "{outcome:#?}");
    assert_eq!(pair.destination.status().unwrap(), "inmigrate", "no RAM was sent");
}

fn vdi(pair: &Pair, image: &Path) {
    let build = qferry_bed::Build::locate(&pair.spec().version).unwrap();
    let path = image.display().to_string();
    build.img(["create", "-q", "-f", "vdi", &path, "1M"]).unwrap();
}
