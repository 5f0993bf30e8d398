//! Another client of a QEMU, beside the engine: that client migrates, or changes devices, while disks are copied.

use super::*;
use crate::support::judge_moved;
use qferry::internals::migration::Builder;
use qferry_bed::{Machine, Result as BedResult};
use serde_json::{Value, json};
use std::{thread::sleep, time::Instant};

/// The time for a QEMU to do what another client has told it.
const DONE: Duration = Duration::from_secs(30);

/// A pair without a guest system: a disk that takes a while to copy, and on both sides a disk that is not copied, a CD
/// and their controller.
fn furnished(version: &str) -> Pair {
    let null = |node: &str, read_only: bool| json!({"driver": "null-co", "node-name": node, "size": 1 << 20, "read-zeroes": true, "read-only": read_only});
    let extra = [
        ["-device".to_owned(), "virtio-scsi-pci,id=scsi0".to_owned()],
        ["-blockdev".to_owned(), null("spare-node", false).to_string()],
        ["-device".to_owned(), "scsi-hd,bus=scsi0.0,lun=1,drive=spare-node,id=spare".to_owned()],
        ["-blockdev".to_owned(), null("cd-node", true).to_string()],
        ["-device".to_owned(), "scsi-cd,bus=scsi0.0,lun=2,drive=cd-node,id=cd".to_owned()],
    ];
    let disks = vec![DiskSpec { overlay_data: 4 * MIB, ..DiskSpec::small() }];
    // With this much memory a migration to a file lasts for minutes at a page a second.
    start(&Spec { version: version.to_owned(), memory: 256, disks, extra: extra.concat(), ..Spec::quick() })
}

/// A migration that copies for two seconds.
fn slowly(pair: &Pair) -> Builder {
    builder(pair).skip_disk("spare").disk_bandwidth(Rate(2 * MIB))
}

fn copying(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Disk { copied, .. } if *copied > 0)
}

/// Asks a QEMU until it answers as it should.
#[track_caller]
fn until(machine: &Machine, command: &str, done: impl Fn(&Value) -> bool) {
    let begun = Instant::now();
    loop {
        let answer = machine.qmp(command, &json!({})).unwrap();
        if done(&answer) {
            return;
        }
        assert!(begun.elapsed() < DONE, "{command}: {answer:#}");
        sleep(Duration::from_millis(20));
    }
}

fn capability(machine: &Machine, name: &str) -> Value {
    let all = machine.qmp("query-migrate-capabilities", &json!({})).unwrap();
    all.as_array().unwrap().iter().find(|one| one["capability"] == name).unwrap()["state"].clone()
}

/// Begins a migration to a file that lasts until somebody ends it.
fn migrate_elsewhere(pair: &Pair) -> BedResult<Value> {
    pair.source.qmp("migrate-set-parameters", &json!({"max-bandwidth": 4096})).unwrap();
    let path = pair.run_dir().with_file_name("elsewhere");
    pair.source.qmp("migrate", &json!({"uri": format!("exec:cat > {}", path.display())}))
}

/// Cancels that migration, and puts its setting back.
fn end_elsewhere(pair: &Pair) {
    pair.source.qmp("migrate_cancel", &json!({})).unwrap();
    until(&pair.source, "query-migrate", |answer| answer["status"] == "cancelled");
    pair.source.qmp("migrate-set-parameters", &json!({"max-bandwidth": 128 * MIB})).unwrap();
}

#[track_caller]
fn went_back(pair: &Pair, outcome: &Outcome, code: &str, words: &[&str]) {
    judge_back(pair, outcome, Ending::RolledBack, "running");
    let reason = outcome.reason.as_ref().unwrap();
    assert_eq!(reason.code, code, "{outcome:#?}");
    assert!(words.iter().all(|word| reason.message.contains(word)), "{words:?}: {}", reason.message);
}

/// Neither side has a setting of the engine while disks are copied. A migration of somebody else that is under way is
/// left alone, and one that was cancelled before is not taken for the engine's.
/// Promise: own-settings.
#[test]
fn a_migration_of_somebody_else_is_left_alone() {
    for version in ["10.0.13", "7.2"] {
        let mut pair = furnished(version);
        let (outcome, _) = migrate_when(slowly(&pair), copying, |_| {
            assert_eq!(capability(&pair.source, "pause-before-switchover"), false);
            assert_eq!(capability(&pair.destination, "late-block-activate"), false);
            migrate_elsewhere(&pair).unwrap();
        });
        until(&pair.source, "query-migrate", |answer| answer["status"] == "active");
        end_elsewhere(&pair);
        went_back(&pair, &outcome, "migration-under-way", &["source", "somebody else"]);

        pair.restart_destination(true).unwrap();
        let (outcome, _) = migrate_when(slowly(&pair), copying, |_| {
            migrate_elsewhere(&pair).unwrap();
            end_elsewhere(&pair);
        });
        judge_moved(&pair, &outcome);
    }
}

/// A disk that was unplugged, a medium that was taken out, and a device that was plugged in.
/// Promise: same-machines.
#[test]
fn a_machine_that_is_changed_while_disks_are_copied_leads_back() {
    type Change = fn(&Pair);
    let changes: [(Change, &[&str]); 4] = [
        (|pair| drop(pair.source.qmp("device_del", &json!({"id": "spare"})).unwrap()), &["source", "spare"]),
        (
            |pair| drop(pair.source.qmp("eject", &json!({"id": "cd", "force": true})).unwrap()),
            &["cd", "cd-node", "none"],
        ),
        (
            |pair| {
                let nic = json!({"driver": "virtio-net-pci", "id": "nic1"});
                drop(pair.source.qmp("device_add", &nic).unwrap());
            },
            &["source", "nic1", "virtio-net-pci"],
        ),
        (|pair| drop(pair.destination.qmp("device_del", &json!({"id": "spare"})).unwrap()), &["destination", "spare"]),
    ];
    for (change, words) in changes {
        let pair = furnished("10.0.13");
        let (outcome, _) = migrate_when(slowly(&pair), copying, |_| change(&pair));
        went_back(&pair, &outcome, "machine-changed", words);
        assert_eq!(pair.destination.status().unwrap(), "inmigrate", "no RAM was sent");
    }
}

/// Another image is plugged in at the place of a disk that is copied.
#[test]
fn a_disk_that_is_replaced_while_it_is_copied_leads_back() {
    let disks = vec![DiskSpec { overlay_data: 4 * MIB, ..DiskSpec::small() }];
    let scsi = |node: &str| format!("scsi-hd,bus=scsi0.0,lun=1,drive={node},id=spare");
    let null = |node: &str| json!({"driver": "null-co", "node-name": node, "size": 1 << 20, "read-zeroes": true});
    let extra = [
        ["-device".to_owned(), "virtio-scsi-pci,id=scsi0".to_owned()],
        ["-blockdev".to_owned(), null("one").to_string()],
        ["-blockdev".to_owned(), null("two").to_string()],
        ["-device".to_owned(), scsi("one")],
    ];
    let pair = start(&Spec { disks, extra: extra.concat(), ..Spec::quick() });
    let (outcome, _) =
        migrate_when(builder(&pair).disk_bandwidth(Rate(2 * MIB)).verify_backing(ProofLevel::Off), copying, |_| {
            pair.source.qmp("device_del", &json!({"id": "spare"})).unwrap();
            let there = |answer: &Value| {
                answer
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|drive| drive["qdev"].as_str().is_some_and(|qdev| qdev.contains("spare")))
            };
            until(&pair.source, "query-block", |answer| !there(answer));
            let device = json!({"driver": "scsi-hd", "bus": "scsi0.0", "lun": 1, "drive": "two", "id": "spare"});
            pair.source.qmp("device_add", &device).unwrap();
        });
    went_back(&pair, &outcome, "machine-changed", &["source", "spare"]);
}

/// Somebody has sent `cont` to the waiting destination: when it has everything it still waits for the engine's word.
#[test]
fn a_destination_that_somebody_told_to_run_waits_all_the_same() {
    let pair = furnished("10.0.13");
    let told = std::cell::Cell::new(false);
    let handover = |kind: &EventKind| {
        if copying(kind) && !told.replace(true) {
            pair.destination.qmp("cont", &json!({})).unwrap();
        }
        matches!(kind, EventKind::Phase { phase: Phase::Handover, .. })
    };
    // The engine is on this thread: while it stands still, somebody lets the source send the rest.
    let (outcome, _) = migrate_when(slowly(&pair), handover, |_| {
        assert!(told.get());
        drop(pair.source.qmp("migrate-continue", &json!({"state": "pre-switchover"})));
        until(&pair.destination, "query-migrate", |answer| answer["status"] == "completed");
        assert_eq!(pair.destination.status().unwrap(), "paused");
    });
    assert!(pair.runners().unwrap().len() <= 1, "{outcome:#?}");
}
