//! Read-only disks and CD-ROMs, which must be on the destination and are not copied.

use super::{
    super::support::{MIB, start},
    anew, blocker, found, look, moves, overlay, quick,
};
use qferry_bed::{Deviation, Device, DiskSpec, Layer, Side};
use serde_json::json;
use std::{fs::File, os::unix::fs::FileExt};

#[test]
fn media_that_are_the_same_are_not_copied() {
    let read_only = DiskSpec { device: Device::ReadOnly, ..DiskSpec::chain([Layer::qcow2(16 * MIB, MIB)]) };
    let mut pair = start(&quick([DiskSpec::small(), read_only, DiskSpec::cdrom(4 * MIB)]));
    let plan = look(&pair, |_| ());
    found(&plan, []);
    let mut verified: Vec<_> = plan.verified.iter().map(|one| one.disks.join(",")).collect();
    verified.sort();
    assert_eq!(verified, ["disk0", "disk1", "disk2"]);
    let modes: Vec<_> = plan.chains.iter().map(|one| (one.disk.as_str(), one.mode)).collect();
    assert_eq!(modes, [("disk0", "incremental"), ("disk1", "none"), ("disk2", "none")]);

    // Other content on top or below. (The image of the CD is raw.)
    anew(&mut pair, |pair| {
        let cd = File::options().read(true).write(true).open(&pair.destination.disks()[2].overlay).unwrap();
        let mut byte = [0];
        cd.read_exact_at(&mut byte, 77).unwrap();
        cd.write_all_at(&[!byte[0]], 77).unwrap();
    });
    let (at_source, at_destination) = (overlay(&pair, Side::Source, 2), overlay(&pair, Side::Destination, 2));
    found(&look(&pair, |_| ()), [blocker("backing-differs", "disk2", [&at_source, &at_destination, &"byte 77:"])]);
    found(&look(&pair, |settings| settings.selection.skip = vec!["disk2".into()]), []);
    pair.deviate([Deviation::FlipByte { disk: 1, layer: 0, offset: 900 * 1024 }]).unwrap();
    found(&look(&pair, |_| ()), [blocker("backing-differs", "disk1", [&(900 * 1024)])]);

    // another size
    pair.deviate([]).unwrap();
    anew(&mut pair, |pair| {
        let cd = File::options().write(true).open(&pair.destination.disks()[2].overlay).unwrap();
        cd.set_len(3 * MIB).unwrap();
    });
    found(&look(&pair, |_| ()), [blocker("medium-size", "disk2", [&"4 MiB", &"3 MiB"])]);

    // an empty drive
    pair.deviate([]).unwrap();
    pair.destination.qmp("eject", &json!({"id": "disk2", "force": true})).unwrap();
    let file = overlay(&pair, Side::Source, 2);
    found(&look(&pair, |_| ()), [blocker("medium-missing", "disk2", [&file])]);
    // The source's drive is empty, too.
    pair.source.qmp("eject", &json!({"id": "disk2", "force": true})).unwrap();
    found(&look(&pair, |_| ()), []);

    let outcome = moves(&pair, |_| ());
    assert_eq!(outcome.disks.len(), 1);
}
