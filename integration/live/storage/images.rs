//! The destination's images: chains, headers and versions, other users of their files, room and rights.

use super::{
    super::support::{MIB, start},
    anew, blocker, found, img, layer, look, moves, note, overlay, quick, warning,
};
use qferry::internals::storage::model::layout::StorageMode;
use qferry_bed::{Deviation, DiskSpec, Layer, Pair, Side};
use serde_json::json;
use std::fs;

#[test]
fn a_backing_file_that_is_not_there() {
    let mut pair = start(&quick([DiskSpec::small()]));
    pair.deviate([Deviation::NoBacking { disk: 0 }]).unwrap();
    let top = overlay(&pair, Side::Destination, 0).to_string();
    let below = layer(&pair, Side::Source, 0, 0).to_string();
    let header = warning("backing-header", "disk0", [&top, &"opened nothing"]);
    found(&look(&pair, |_| ()), [blocker("backing-missing", "disk0", [&top, &below, &"in use"]), header]);
    // An image that receives the whole disk needs no backing file.
    let full = look(&pair, |settings| settings.selection.storage = StorageMode::Full);
    found(&full, [warning("backing-header", "disk0", [&top])]);
}

#[test]
fn a_backing_file_that_will_not_be_needed() {
    let pair = start(&quick([DiskSpec::small()]));
    let plan = look(&pair, |settings| settings.selection.storage = StorageMode::Full);
    found(&plan, [note("backing-unused", "disk0", [&layer(&pair, Side::Destination, 0, 0)])]);
    assert_eq!((plan.disks[0].mode, plan.verified.len()), ("full", 0));
    // The guest arrives, although the backing file that is not needed any more is still there.
    let outcome = moves_whole(&pair);
    assert_eq!(outcome.disks[0].mode, "full");
}

fn moves_whole(pair: &Pair) -> qferry::internals::progress::Outcome {
    use super::{
        super::support::{judge_moved, migrate},
        engine,
    };
    let outcome = migrate(engine(pair, |settings| settings.selection.storage = StorageMode::Full));
    judge_moved(pair, &outcome);
    pair.destination.finish().unwrap();
    pair.guest_visible_equal(0).unwrap();
    outcome
}

#[test]
fn an_old_overlay_and_one_whose_header_is_wrong() {
    let mut pair = start(&quick([DiskSpec::small()]));
    anew(&mut pair, |pair| {
        let (top, below) = (overlay(pair, Side::Destination, 0), layer(pair, Side::Destination, 0, 0));
        img(pair, &[&"create", &"-q", &"-f", &"qcow2", &"-o", &"compat=0.10", &"-F", &"raw", &"-b", &below, &top]);
    });
    let old = warning("overlay-version", "disk0", [&overlay(&pair, Side::Destination, 0), &"qcow2 version 2"]);
    found(&look(&pair, |_| ()), [old]);
    moves(&pair, |_| ());
}

/// A job of somebody else puts a filter above the disk.
#[test]
fn a_disk_that_a_job_holds() {
    let pair = start(&quick([DiskSpec::small()]));
    let null = json!({"driver": "null-co", "node-name": "void", "size": 16 * MIB});
    pair.source.qmp("blockdev-add", &null).unwrap();
    let mut job = json!({"job-id": "theirs", "device": "disk0", "target": "void", "sync": "full"});
    let running = || warning("job-running", "source", [&"theirs"]);
    pair.source.qmp("blockdev-mirror", &job).unwrap();
    let holds = blocker("disk-has-job", "disk0", [&"theirs", &"disk0"]);
    found(&look(&pair, |_| ()), [running(), holds]);
    let cancel = || {
        pair.source.qmp("block-job-cancel", &json!({"device": "theirs", "force": true})).unwrap();
        let ended = |event: &qferry_bed::Event| event.name.starts_with("BLOCK_JOB_C");
        pair.source.wait_for_event(super::super::support::WAIT, ended).unwrap();
    };
    cancel();
    found(&look(&pair, |_| ()), []);
    job["filter-node-name"] = json!("their-filter");
    pair.source.qmp("blockdev-mirror", &job).unwrap();
    found(&look(&pair, |_| ()), [running(), blocker("disk-has-job", "disk0", [&"their-filter", &"mirror_top"])]);
}

#[test]
fn images_that_another_reads_are_not_written() {
    let disk = || DiskSpec::chain([Layer::qcow2(16 * MIB, MIB)]);
    let mut pair = start(&quick([disk(), disk()]));
    // The destination's image is over the image that the guest writes to.
    let live = overlay(&pair, Side::Source, 0).to_string();
    anew(&mut pair, |pair| {
        let top = overlay(pair, Side::Destination, 0);
        img(pair, &[&"create", &"-q", &"-u", &"-f", &"qcow2", &"-F", &"qcow2", &"-b", &live, &top, &(16 * MIB)]);
    });
    let format = note("backing-format", "disk0", [&live]);
    found(&look(&pair, |_| ()), [blocker("backing-is-live", "disk0", [&live, &"which the guest writes to"]), format]);

    // The destination writes to the source's backing file, under another name.
    pair.deviate([]).unwrap();
    link(&mut pair, Side::Source);
    let written = |pair: &Pair, side| {
        let top = overlay(pair, Side::Destination, 1).to_string();
        let names = [layer(pair, side, 0, 0).to_string(), top];
        let plan = look(pair, |_| ());
        let crossed = blocker("overlay-is-backing", "disk1", [&"would write to", &"other images are over"]);
        found(&plan, [crossed, blocker("backing-missing", "disk1", [])]);
        let named = |name: &String| plan.findings.iter().any(|finding| finding.message.contains(name));
        assert!(names.iter().any(named), "{plan:#?}");
    };
    written(&pair, Side::Source);

    // The destination writes to the backing file of another disk of its own.
    pair.deviate([]).unwrap();
    link(&mut pair, Side::Destination);
    written(&pair, Side::Destination);
}

/// Makes the destination's second disk a link to the backing file of that side's first disk.
fn link(pair: &mut Pair, side: Side) {
    anew(pair, |pair| {
        let top = &pair.destination.disks()[1].overlay;
        fs::remove_file(top).unwrap();
        fs::hard_link(&pair.machine(side).disks()[0].layers[0], top).unwrap();
    });
}

#[test]
fn room_on_the_destinations_file_system() {
    let disk = || DiskSpec { overlay_data: 2 * MIB, ..DiskSpec::small() };
    let mut pair = start(&quick([disk(), disk()]));
    // Room for both disks in full, room for their present data, and too little for that.
    for (mib, plain, overcommit) in [(40, true, true), (20, false, true), (3, false, false)] {
        pair.deviate([Deviation::SmallFileSystem { bytes: mib * MIB }]).unwrap();
        let (one, two) = (overlay(&pair, Side::Destination, 0), overlay(&pair, Side::Destination, 1));
        for (fits, counts_now) in [(plain, false), (overcommit, true)] {
            let plan = look(&pair, |settings| settings.overcommit = counts_now);
            let short = (!fits).then(|| blocker("no-space", "destination", [&one, &two, &"left"]));
            found(&plan, short);
            let told = plan.findings.iter().any(|finding| finding.remedy.contains("`overcommit`"));
            assert_eq!(told, !fits && !counts_now, "{plan:#?}");
        }
    }
}

#[test]
fn a_destination_that_may_not_write() {
    let mut pair = start(&quick([DiskSpec::small()]));
    pair.deviate([Deviation::OtherUser]).unwrap();
    let top = overlay(&pair, Side::Destination, 0);
    // The destination may not open for reading either what it would write to.
    let unread = blocker("overlay-unproved", "disk0", [&top, &"Permission denied"]);
    // A folder in which the other user may make a socket is none that the engine uses by itself.
    let at = |name: &str| Some(format!("unix:{}", pair.run_dir().join(name).display()).parse().unwrap());
    let plan = look(&pair, |settings| {
        settings.runtime_dir = pair.run_dir().with_file_name("own");
        (settings.nbd_address, settings.migrate_address) = (at("nbd"), at("ram"));
        settings.source_nbd_address = at("view");
    });
    found(&plan, [blocker("disk-not-writable", "disk0", [&"may not write", &top]), unread]);
}
