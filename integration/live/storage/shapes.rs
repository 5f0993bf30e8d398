//! Disks of every shape arrive unchanged.

use super::{
    super::support::{
        MIB, WAIT, begins, builder, judge_back, judge_moved, judge_running, migrate, migrate_when, spec, start,
    },
    KIB, anew, engine, found, img, look, moves, note, overlay, quick,
};
use qferry::internals::{progress::Phase, storage::model::layout::StorageMode};
use qferry_bed::{Below, DetectZeroes, Device, DiskSpec, Filter, Format, Guest, Layer, Side, Spec, Style, Workload};

/// Four images below the overlay, of different sizes and cluster sizes, in parts over one another.
fn four() -> DiskSpec {
    DiskSpec::chain([
        Layer::raw(16 * MIB, 4 * MIB),
        Layer { cluster: 4 * KIB, ..Layer::qcow2(12 * MIB, 3 * MIB) },
        Layer::qcow2(8 * MIB, 2 * MIB),
        Layer { cluster: 2 * MIB, ..Layer::qcow2(14 * MIB, MIB) },
    ])
}

/// A disk of every shape, the guest's own disks first.
fn every_shape() -> Vec<DiskSpec> {
    let unmap = DiskSpec { discard: true, detect_zeroes: DetectZeroes::Unmap, ..DiskSpec::small() };
    vec![
        four(),
        DiskSpec::beside(0),
        DiskSpec { discard: true, ..DiskSpec::alone(Format::Raw, 8 * MIB) },
        DiskSpec::alone(Format::Qcow2, 8 * MIB),
        unmap,
        // larger than its backing file
        DiskSpec { backing: 8 * MIB, cluster: MIB, ..DiskSpec::small() },
        // smaller than its backing file
        DiskSpec { size: 9 * MIB + 512, ..DiskSpec::small() },
        DiskSpec { device: Device::ReadOnly, ..four() },
        DiskSpec::cdrom(4 * MIB),
        DiskSpec::pflash(528 * KIB),
    ]
}

#[test]
fn every_shape_at_once() {
    for (version, style) in [("7.2", Style::Drive), ("10.0.13", Style::Blockdev), ("11.1", Style::Blockdev)] {
        let spec = Spec { version: version.to_owned(), style, ..quick(every_shape()) };
        let pair = start(&spec);
        let plan = look(&pair, |_| ());
        let sparse = (version != "11.1").then(|| note("disk-not-sparse", "disk2", [&"discard=unmap"]));
        // Both sides read the same firmware image.
        let firmware = note("disk-shared", if style == Style::Drive { "pflash0" } else { "firmware" }, []);
        found(&plan, sparse.into_iter().chain([firmware]));
        // The two disks over one base are verified together.
        assert_eq!(plan.verified.len(), 6, "{:#?}", plan.verified);
        let mut chains: Vec<_> =
            plan.chains.iter().filter(|one| !["pflash0", "firmware"].contains(&one.disk.as_str())).collect();
        // The names are disk0 to disk9, or pflash1 for the last.
        chains.sort_by(|a, b| a.disk.cmp(&b.disk));
        let modes: Vec<_> = chains.iter().map(|one| one.mode).collect();
        let top = "incremental";
        assert_eq!(modes, [top, top, "full", "full", top, top, top, "none", "none", "full"], "{version}");
        let layers: Vec<_> = chains.iter().map(|one| one.source.layers.len()).collect();
        assert_eq!(layers, [5, 5, 1, 1, 2, 2, 2, 5, 1, 1]);
        moves(&pair, |_| ());
    }
}

/// The note is right: on some builds zeros that are written to a raw image take space, on others they do not.
#[test]
fn a_raw_image_without_discard() {
    for (version, is_sparse) in [("7.2", false), ("10.0.13", false), ("11.1", true)] {
        let pair = start(&Spec { version: version.to_owned(), ..quick([DiskSpec::alone(Format::Raw, 8 * MIB)]) });
        let noted = look(&pair, |_| ());
        found(&noted, (version != "11.1").then(|| note("disk-not-sparse", "disk0", [])));
        let outcome = migrate(builder(&pair));
        judge_moved(&pair, &outcome);
        pair.destination.finish().unwrap();
        pair.guest_visible_equal(0).unwrap();
        let taken = pair.chain(Side::Destination, 0).unwrap()[0].taken;
        assert_eq!(taken < 2 * MIB, is_sparse, "{version}: {taken} bytes");
    }
}

#[test]
fn ten_disks() {
    let pair =
        start(&quick(vec![DiskSpec { backing_data: 64 * KIB, overlay_data: 64 * KIB, ..DiskSpec::small() }; 10]));
    let plan = look(&pair, |_| ());
    found(&plan, []);
    assert_eq!((plan.disks.len(), plan.verified.len()), (10, 10));
    let outcome = moves(&pair, |_| ());
    assert!(outcome.disks.iter().all(|disk| disk.bytes_copied == 64 * KIB), "{outcome:#?}");
}

#[test]
fn filters_above_and_below() {
    for filter in [Filter::Throttle, Filter::CopyOnRead] {
        let above = DiskSpec { filter_above: Some(filter), ..DiskSpec::small() };
        let below = DiskSpec { filter_below: Some(filter), ..DiskSpec::small() };
        let pair = start(&quick([above, below]));
        let plan = look(&pair, |_| ());
        found(&plan, []);
        let chain = &plan.chains[0].source;
        assert_eq!((chain.filters.len(), chain.layers.len()), (1, 2), "{chain:#?}");
        assert_eq!(plan.chains[1].source.layers.len(), 2);
        moves(&pair, |_| ());
    }
}

#[test]
fn all_of_it_onto_images_without_backing() {
    let disks = [four(), DiskSpec { backing: 8 * MIB, ..DiskSpec::small() }];
    let mut pair = start(&quick(disks));
    anew(&mut pair, |pair| {
        for disk in 0..2 {
            let top = overlay(pair, Side::Destination, disk);
            img(pair, &[&"create", &"-q", &"-f", &"qcow2", &top, &(16 * MIB)]);
        }
    });
    let storage =
        |settings: &mut qferry::internals::migration::Settings| settings.selection.storage = StorageMode::Full;
    let plan = look(&pair, storage);
    found(&plan, []);
    assert!(plan.verified.is_empty() && plan.disks.iter().all(|disk| disk.mode == "full"), "{plan:#?}");
    // Without that setting an image without backing file is refused.
    assert!(look(&pair, |_| ()).blockers().all(|finding| finding.code == "backing-missing"));
    let taken: Vec<u64> =
        (0..2).map(|disk| pair.chain(Side::Source, disk).unwrap().iter().map(|link| link.taken).sum()).collect();
    let outcome = migrate(engine(&pair, storage));
    judge_moved(&pair, &outcome);
    pair.destination.finish().unwrap();
    for (disk, taken) in taken.into_iter().enumerate() {
        pair.guest_visible_equal(disk).unwrap();
        let chain = pair.chain(Side::Destination, disk).unwrap();
        assert_eq!(chain.len(), 1);
        assert!(chain[0].taken <= taken, "disk {disk} takes {} bytes, the source's {taken}", chain[0].taken);
    }
}

#[test]
fn the_disks_of_a_paused_guest_arrive_whole() {
    let pair = start(&Spec { guest: Guest::Paused, ..quick([DiskSpec::small(), four(), DiskSpec::pflash(528 * KIB)]) });
    found(&look(&pair, |_| ()), [note("disk-shared", "firmware", [])]);
    let outcome = migrate(builder(&pair));
    judge_moved(&pair, &outcome);
    assert_eq!((outcome.blackout_ms, pair.destination.status().unwrap().as_str()), (None, "paused"));
    pair.check_disks(Side::Destination).unwrap();
    for disk in 0..3 {
        pair.guest_visible_equal(disk).unwrap();
    }
}

#[test]
fn a_paused_guest_stays_where_it_was_if_refused_late() {
    let pair = start(&Spec { guest: Guest::Paused, ..quick([DiskSpec::small()]) });
    // The folder of the socket is gone once QEMU is to listen there.
    let folder = pair.run_dir().join("gone");
    std::fs::create_dir(&folder).unwrap();
    let nowhere = qferry::internals::endpoint::Address::unix(folder.join("x")).unwrap();
    let (outcome, _) = migrate_when(
        engine(&pair, |settings| settings.migrate_address = Some(nowhere)),
        |kind| begins(kind, Phase::Storage),
        |_| std::fs::remove_dir(&folder).unwrap(),
    );
    judge_back(&pair, &outcome, qferry::internals::progress::Ending::RolledBack, "paused");
    pair.check_disks(Side::Source).unwrap();
}

/// An upper bound of the metadata of an image of 8 MiB: a header, and two tables on two levels each.
const METADATA: u64 = 512 * KIB;

/// A guest that discards most of its writes. A slot is a cluster, and the whole disk has data before.
fn given_back(version: &str) {
    let base = DiskSpec { overlay_data: 8 * MIB, size: 8 * MIB, backing: 8 * MIB, discard: true, ..DiskSpec::small() };
    let zeroes = DiskSpec { detect_zeroes: DetectZeroes::Unmap, ..base.clone() };
    let raw = DiskSpec { top: Format::Raw, below: Below::Nothing, ..base.clone() };
    let workload =
        Workload { write: 20, discard: 200, read: 100, block: 64 * KIB, start: 0, slots: 128, ..Workload::default() };
    let pair = start(&Spec { disks: vec![base, zeroes, raw], ..spec(version, workload) });
    pair.wait_for_writes(Side::Source, 450, WAIT).unwrap();
    let outcome = migrate(builder(&pair));
    judge_running(&pair, &outcome);
    let checks = pair.check_disks(Side::Destination).unwrap();
    for (disk, check) in checks.iter().enumerate() {
        let said = pair.zeroed(disk).unwrap();
        assert!(said > 32, "disk {disk}: the guest gave back {said} of its slots, {check:?}");
        assert!((said - check.in_flight..=said).contains(&check.zeroed), "disk {disk}: {said} slots, {check:?}");
        let taken = pair.chain(Side::Destination, disk).unwrap()[0].taken;
        // A block that the guest discards just while it is copied may be written as zeros. On 7.2 a third of a raw
        // image was.
        let most = u64::from(128 - check.zeroed / 2) * 64 * KIB + METADATA;
        println!("{version}, disk {disk}: {taken} of {most} bytes for {check:?}");
        assert!(taken <= most, "disk {disk}: {taken} of at most {most} bytes for {check:?}");
    }
}

#[test]
fn what_a_guest_gave_back_stays_given_back_on_7_2() {
    given_back("7.2");
}

#[test]
fn what_a_guest_gave_back_stays_given_back_on_10_0() {
    given_back("10.0.13");
}

#[test]
fn what_a_guest_gave_back_stays_given_back_on_11_1() {
    given_back("11.1");
}
