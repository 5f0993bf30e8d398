//! Upgrades of QEMU by moving the guest, and the way back: the core of the table that `scripts/compatibility` makes.
//! The guest is booted, has drivers for virtio-blk, virtio-scsi and virtio-net, and the machine types are versioned.

use super::super::support::{WAIT, builder, idle, judge_moved, judge_running, migrate, spec, start};
use qferry::internals::progress::Ending;
use qferry_bed::{Deviation, Guest, Pair, Side, Spec};
use serde_json::json;

fn pair(source: &str, destination: &str, machine: &str, scsi: &str, more: Spec) -> Pair {
    let devices = ["-machine", machine, "-cpu", "qemu64", "-device", scsi, "-device", "scsi-cd,bus=scsi0.0,id=cd0"];
    let with = spec(source, idle());
    start(&Spec {
        version: with.version,
        workload: with.workload,
        destination_version: Some(destination.to_owned()),
        more_drivers: true,
        extra: devices.map(str::to_owned).into(),
        ..more
    })
}

/// The guest is paused for the move: 7.2 under TCG loses pages that a guest dirties while RAM is sent, whatever the
/// engine and the destination are.
#[test]
fn from_7_2_to_11_1_with_disk_controller_and_network() {
    let more = Spec { network: true, guest: Guest::Paused, ..Spec::default() };
    let pair = pair("7.2", "11.1", "pc-q35-7.2", "virtio-scsi-pci,id=scsi0", more);
    let outcome = migrate(builder(&pair));
    judge_moved(&pair, &outcome);
    assert_eq!(pair.destination.status().unwrap(), "paused");
    pair.destination.qmp("cont", &json!({})).unwrap();
    pair.destination.answers_at_its_card(WAIT).unwrap();
    pair.wait_until_verified(WAIT).unwrap();
    pair.destination.finish().unwrap();
    assert_eq!(pair.errors(), Vec::<String>::new());
    pair.check_disks(Side::Destination).unwrap();
}

#[test]
fn from_10_0_13_to_11_1_with_disk_and_controller_that_have_room() {
    let more = Spec { destination: vec![Deviation::LargerRings { disk: 0 }], ..Spec::default() };
    let scsi = "virtio-scsi-pci,id=scsi0,virtqueue_size=1024";
    let pair = pair("10.0.13", "11.1", "pc-i440fx-10.0", scsi, more);
    let outcome = migrate(builder(&pair));
    judge_running(&pair, &outcome);
}

/// An older QEMU is refused, and by force the guest goes back to it: the machine type is one of the older QEMU.
#[test]
fn back_from_11_1_to_10_0_13_by_force() {
    let more = Spec { network: true, ..Spec::default() };
    let pair = pair("11.1", "10.0.13", "pc-i440fx-10.0", "virtio-scsi-pci,id=scsi0", more);
    pair.source.answers_at_its_card(WAIT).unwrap();
    let refused = migrate(builder(&pair));
    assert_eq!(refused.reason.as_ref().map(|reason| reason.code.as_str()), Some("qemu-older"), "{refused:#?}");
    let outcome = migrate(builder(&pair).force("qemu-older"));
    assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}");
    pair.destination.answers_at_its_card(WAIT).unwrap();
    judge_running(&pair, &outcome);
}
