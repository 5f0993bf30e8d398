//! The rings of virtio devices. 10.0.13 makes each of them with 1024 entries, and 11.1 refuses what is larger than its
//! own device has room for.

use super::{codes, compare, only};
use crate::support::{builder, idle, judge_running, migrate, spec, start};
use qferry::internals::{
    preflight::checks::Severity,
    progress::{Ending, RunsOn},
};
use qferry_bed::{Deviation, Spec};

const NODE: &str = "-blockdev null-co,node-name=n0,size=1048576,read-zeroes=on";

/// Devices that no driver has: their state has the sizes of their rings all the same.
#[test]
fn a_ring_that_does_not_fit_is_found_and_its_remedy_is_enough() {
    let machine = "-machine pc-q35-7.2";
    for (device, remedy, property) in [
        ("virtio-scsi-pci,id=d", "virtqueue_size=1024 ", Some(",virtqueue_size=1024")),
        ("virtio-net-pci,id=d", "no property", None),
        ("virtio-balloon-pci,id=d", "no property", None),
        ("virtio-rng-pci,id=d", "no property", None),
        ("virtio-serial-pci,id=d", "and 63 more queues", None),
        // Without an id, too.
        ("virtio-rng-pci", "peripheral-anon", None),
    ] {
        let with = |property: &str| format!("{machine} {NODE} -device {device}{property}");
        let found =
            |versions: (&str, &str), more: &str| compare((versions.0, &with("")), (versions.1, &with(more)), &[]);
        let findings = found(("10.0.13", "11.1"), "");
        only(&findings, "virtqueue-size", Severity::Blocker, &["1024 entries", "has room for ", remedy]);
        if let Some(property) = property {
            let findings = found(("10.0.13", "11.1"), property);
            only(&findings, "device-setting", Severity::Note, &["virtqueue_size is 256"]);
        }
        if !device.contains("serial") {
            for versions in [("7.2", "11.1"), ("10.0.2", "10.0.13")] {
                assert_eq!(codes(&found(versions, "")), [], "{device}: {versions:?}");
            }
        }
    }
}

/// The guest of the bed has a driver for its disk.
#[test]
fn a_booted_guest_is_refused_before_anything_and_moves_with_the_remedy() {
    let pair = |destination: Vec<Deviation>| {
        start(&Spec { destination_version: Some("11.1".to_owned()), destination, ..spec("10.0.13", idle()) })
    };
    let refused = pair(Vec::new());
    let outcome = migrate(builder(&refused));
    assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Refused, RunsOn::Source), "{outcome:#?}");
    let reason = outcome.reason.as_ref().unwrap();
    let words = ["disk0", "1024 entries", "room for 256", "queue-size=1024 "];
    assert!(words.iter().all(|word| reason.message.contains(word)), "{reason:?}");
    assert_eq!(reason.code, "virtqueue-size");
    drop(refused);
    let mended = pair(vec![Deviation::LargerRings { disk: 0 }]);
    let outcome = migrate(builder(&mended));
    judge_running(&mended, &outcome);
}
