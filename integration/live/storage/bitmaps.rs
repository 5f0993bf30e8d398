//! Persistent dirty bitmaps move with the guest, or a finding says that they do not.

use super::{
    super::support::{MIB, judge_moved, migrate, start},
    KIB, engine, found, look, quick, warning,
};
use qferry_bed::{
    Bitmap, DiskFiles, DiskSpec, Format, Given, Half, Layer, Machine, Pair, Side, Spec, Style, dirty_ranges,
    stored_bitmaps,
};
use serde_json::json;

fn disk() -> DiskSpec {
    DiskSpec { bitmaps: vec!["daily".to_owned(), "weekly".to_owned()], ..DiskSpec::small() }
}

/// The bitmaps by name, because the order differs between builds.
fn sorted(machine: &Machine) -> Vec<Bitmap> {
    let mut found = machine.bitmaps(0).unwrap();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

#[test]
fn they_arrive_with_what_is_dirty_in_them() {
    let styles =
        [("7.2", Style::Drive), ("10.0.13", Style::Drive), ("10.0.13", Style::Blockdev), ("11.1", Style::Blockdev)];
    for (version, style) in styles {
        let pair = start(&Spec { version: version.to_owned(), style, ..quick([disk(), DiskSpec::small()]) });
        let before = sorted(&pair.source);
        assert_eq!(before.iter().map(|bitmap| bitmap.dirty).collect::<Vec<_>>(), [MIB, MIB]);
        found(&look(&pair, |_| ()), []);
        let outcome = migrate(engine(&pair, |_| ()));
        assert_eq!(outcome.outcome, qferry::internals::progress::Ending::Moved, "{outcome:#?}");
        // The bitmaps record, are persistent, and have the same bits.
        let after = sorted(&pair.destination);
        assert_eq!(after, before, "{version} {style:?}");
        assert!(
            after.iter().all(|bitmap| bitmap.recording && bitmap.persistent && bitmap.sha256.is_some()),
            "{after:?}"
        );
        // The closed image holds them, too.
        pair.destination.finish().unwrap();
        let (build, files) = (pair.build(Side::Destination), &pair.destination.disks()[0]);
        let stored = stored_bitmaps(build, files).unwrap();
        let mut told: Vec<_> =
            stored.iter().map(|one| (one.name.as_str(), one.granularity, one.flags.join(","))).collect();
        told.sort();
        assert_eq!(told, [("daily", 64 * KIB, "auto".to_owned()), ("weekly", 64 * KIB, "auto".to_owned())]);
        let ranges = dirty_ranges(build, files, "weekly").unwrap();
        let wanted: Vec<_> = (0..16).map(|at| at * MIB..at * MIB + 64 * KIB).collect();
        assert_eq!(ranges, wanted);
        for disk in 0..2 {
            pair.guest_visible_equal(disk).unwrap();
        }
    }
}

/// A destination whose node has another name, behind a device of the same id.
fn called_something_else() -> Pair {
    let half = Half::start(&quick([disk()])).unwrap();
    let overlay = half.destination_dir().join("theirs.qcow2");
    let backing = half.destination_dir().join("base.raw");
    std::fs::copy(&half.source.disks()[0].layers[0], &backing).unwrap();
    let (image, below) = (overlay.display().to_string(), backing.display().to_string());
    half.build(Side::Destination).img(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &below, &image]).unwrap();
    let file = json!({"driver": "qcow2", "node-name": "theirs", "file": {"driver": "file", "filename": overlay}});
    let arguments = ["-blockdev", &file.to_string(), "-device", "virtio-blk-pci,drive=theirs,id=disk0,serial=disk0"];
    let disks = vec![DiskFiles { layers: vec![backing], overlay, format: Format::Qcow2 }];
    half.join_with(Given { arguments: arguments.map(str::to_owned).to_vec(), disks, whole: false }).unwrap()
}

#[test]
fn they_are_lost_where_names_differ_and_that_is_said() {
    let pair = called_something_else();
    let lost = |name: &'static str| warning("bitmap-lost", "disk0", [&name, &"not have the same name"]);
    let plan = look(&pair, |_| ());
    found(&plan, [lost("daily"), lost("weekly")]);
    assert!(plan.findings.iter().all(|finding| finding.remedy.contains("full")), "{plan:#?}");
    let outcome = migrate(engine(&pair, |_| ()));
    judge_moved(&pair, &outcome);
    assert_eq!(pair.destination.bitmaps(0).unwrap(), []);
    pair.destination.finish().unwrap();
    pair.guest_visible_equal(0).unwrap();
}

/// A bitmap that a job uses cannot move, and all others stay behind with it.
#[test]
fn one_that_is_in_use_keeps_all_behind() {
    let pair = start(&quick([disk()]));
    pair.source.qmp("blockdev-add", &json!({"driver": "null-co", "node-name": "void", "size": 16 * MIB})).unwrap();
    let backup = json!({
        "job-id": "theirs", "device": "disk0", "target": "void", "sync": "incremental", "bitmap": "weekly", "speed": 1,
        "filter-node-name": "their-filter",
    });
    pair.source.qmp("blockdev-backup", &backup).unwrap();
    let plan = look(&pair, |_| ());
    let lost: Vec<_> = plan.findings.iter().filter(|finding| finding.code == "bitmap-lost").collect();
    assert_eq!(lost.len(), 2, "{plan:#?}");
    assert!(lost.iter().all(|finding| finding.message.contains("weekly")), "{lost:#?}");
    assert!(plan.blockers().any(|finding| finding.code == "disk-has-job"), "{plan:#?}");
}

/// A bitmap below the top image, on a node that QEMU has named, keeps all bitmaps behind: that is told before anything
/// is copied, and the guest moves.
#[test]
fn one_in_a_backing_file_keeps_all_behind_and_that_is_said() {
    for version in ["7.2", "10.0.13"] {
        let spec = DiskSpec { bitmaps: vec!["daily".to_owned()], ..DiskSpec::chain([Layer::qcow2(16 * MIB, MIB)]) };
        let pair = start(&Spec { version: version.to_owned(), ..quick([spec]) });
        let nodes = pair.source.qmp("query-named-block-nodes", &json!({"flat": true})).unwrap();
        let below = pair.source.disks()[0].layers[0].display().to_string();
        let is_base = |node: &&serde_json::Value| node["drv"] == "qcow2" && node["file"] == below.as_str();
        let base = nodes.as_array().unwrap().iter().find(is_base).unwrap()["node-name"].as_str().unwrap().to_owned();
        pair.source.qmp("block-dirty-bitmap-add", &json!({"node": base, "name": "bk0"})).unwrap();
        let told = |name: &'static str, word: &str| warning("bitmap-lost", "disk0", [&name, &word, &below]);
        let plan = look(&pair, |_| ());
        found(&plan, [told("daily", "bitmap bk0 is on node"), told("bk0", "which is not copied")]);
        let outcome = migrate(engine(&pair, |_| ()));
        judge_moved(&pair, &outcome);
        assert_eq!(pair.destination.bitmaps(0).unwrap(), [], "{version}");
        pair.destination.finish().unwrap();
        pair.guest_visible_equal(0).unwrap();
    }
}
