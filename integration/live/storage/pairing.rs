//! The pairing of disks: missing, extra, ambiguous, unknown, of another size, read-only or left behind.

use super::{
    super::support::{MIB, start},
    blocker, found, look, note, overlay, quick, warning,
};
use qferry_bed::{Deviation, DiskFiles, DiskSpec, Format, Given, Half, Pair, Side};
use serde_json::{Value, json};

/// A destination whose one disk has this node and this device id.
fn with_disk(disks: &[DiskSpec], node: &Value, id: &str) -> Pair {
    let half = Half::start(&quick(disks)).unwrap();
    let image = half.destination_dir().join("theirs.qcow2");
    let backing = half.destination_dir().join("base.raw");
    std::fs::copy(&half.source.disks()[0].layers[0], &backing).unwrap();
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
    let paths = [backing.display().to_string(), image.display().to_string()];
    half.build(Side::Destination).img(words.iter().map(|word| (*word).to_owned()).chain(paths)).unwrap();
    let mut blockdev = json!({"driver": "qcow2", "file": {"driver": "file", "filename": image}});
    blockdev.as_object_mut().unwrap().extend(node.as_object().unwrap().clone());
    let name = node["node-name"].as_str().unwrap();
    let device = format!("virtio-blk-pci,drive={name},id={id},serial=disk0");
    let arguments = ["-blockdev".to_owned(), blockdev.to_string(), "-device".to_owned(), device];
    let disks = vec![DiskFiles { layers: vec![backing], overlay: image, format: Format::Qcow2 }];
    half.join_with(Given { arguments: arguments.to_vec(), disks, whole: false }).unwrap()
}

#[test]
fn a_disk_that_is_called_something_else_is_missing_and_extra() {
    let pair = with_disk(&[DiskSpec::small()], &json!({"node-name": "theirs"}), "other");
    let extra = || warning("disk-extra", "other", [&overlay(&pair, Side::Destination, 0)]);
    let renamed = || note("device-renamed", "disk0", [&"other"]);
    found(&look(&pair, |_| ()), [blocker("disk-missing", "disk0", [&"no disk"]), extra(), renamed()]);
    // The user names the pair, or leaves the disk out.
    let named = look(&pair, |settings| settings.selection.disks = vec![("disk0".into(), Some("other".into()))]);
    found(&named, [renamed()]);
    assert_eq!(named.verified.len(), 1);
    found(&look(&pair, |settings| settings.selection.skip = vec!["disk0".into()]), [extra(), renamed()]);
}

#[test]
fn a_destination_that_is_read_only() {
    let pair = with_disk(&[DiskSpec::small()], &json!({"node-name": "disk0", "read-only": true}), "disk0");
    found(&look(&pair, |_| ()), [blocker("disk-read-only", "disk0", [&"disk0", &"read-only"])]);
}

#[test]
fn names_that_no_disk_has_and_disks_that_are_wanted_twice() {
    let pair = start(&quick([DiskSpec::small(), DiskSpec::small()]));
    let with = |disks: &[(&str, Option<&str>)], skip: &[&str]| {
        look(&pair, |settings| {
            let name =
                |(source, destination): &(&str, Option<&str>)| ((*source).to_owned(), destination.map(str::to_owned));
            settings.selection.disks = disks.iter().map(name).collect();
            settings.selection.skip = skip.iter().map(|name| (*name).to_owned()).collect();
        })
    };
    let disks: &[_] = &[("disk0", None), ("vdz", None), ("disk1", Some("vdy"))];
    let left = || warning("disk-left-out", "disk1", [&"writable", &"not moved"]);
    found(
        &with(disks, &["vdx"]),
        [
            blocker("disk-unknown", "vdz", [&"the source"]),
            blocker("disk-unknown", "vdx", [&"the source"]),
            blocker("disk-unknown", "vdy", [&"the destination"]),
        ],
    );
    found(
        &with(&[("disk0", Some("disk1")), ("disk1", None)], &[]),
        [
            blocker("disk-ambiguous", "disk1", [&"more than one"]),
            // The other disk is elsewhere in the guest, and its backing file differs, too.
            blocker("disk-place-differs", "disk0", [&"addr=", &"where the destination has disk0"]),
            blocker("backing-differs", "disk0", []),
        ],
    );
    found(&with(&[("disk0", None)], &[]), [left()]);
    found(&with(&[("disk0", None)], &["disk1"]), []);
    found(&with(&[], &["disk1"]), []);
}

#[test]
fn sizes_and_places_that_are_not_the_sources() {
    let larger = DiskSpec { size: 24 * MIB, ..DiskSpec::small() };
    let mut pair = start(&quick([DiskSpec::small(), DiskSpec::small(), larger]));
    let (right, wrong) = (16 * MIB, 8 * MIB + 512);
    pair.deviate([Deviation::Size { disk: 0, size: wrong }, Deviation::Size { disk: 1, size: 2 * right }]).unwrap();
    let sizes = [
        blocker("disk-size", "disk0", [&"16 MiB", &"disk0", &format!("({wrong} bytes)")]),
        blocker("disk-size", "disk1", [&"16 MiB", &"disk1", &"32 MiB"]),
    ];
    found(&look(&pair, |_| ()), sizes);

    // Two disks on each other's images: their sizes differ, or their backing files.
    pair.deviate([Deviation::Swapped { one: 1, other: 2 }]).unwrap();
    let sizes =
        [blocker("disk-size", "disk1", [&"16 MiB", &"24 MiB"]), blocker("disk-size", "disk2", [&"24 MiB", &"16 MiB"])];
    let below = [blocker("backing-differs", "disk1", [&"byte"]), blocker("backing-differs", "disk2", [&"byte"])];
    found(&look(&pair, |_| ()), sizes.into_iter().chain(below));
    pair.deviate([Deviation::Swapped { one: 0, other: 1 }]).unwrap();
    let below = [blocker("backing-differs", "disk0", [&"byte"]), blocker("backing-differs", "disk1", [&"byte"])];
    found(&look(&pair, |_| ()), below);
}
