//! The bed's disks: every shape starts, every deviation takes effect, and the judgement tells right from wrong.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use qferry_bed::{
    Below, DetectZeroes, Deviation, Device, DiskFiles, DiskSpec, Filter, Format, Given, Guest, Half, Layer, Pair,
    Result, Sharing, Side, Spec, Style, Workload, chain, dirty_ranges, stored_bitmaps, straight_line,
};
use serde_json::json;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const WAIT: Duration = Duration::from_secs(90);

/// Four images below the overlay, of different sizes and cluster sizes, in parts over one another.
fn four() -> DiskSpec {
    DiskSpec::chain([
        Layer::raw(16 * MIB, 4 * MIB),
        Layer { cluster: 4 * KIB, ..Layer::qcow2(12 * MIB, 3 * MIB) },
        Layer::qcow2(8 * MIB, 2 * MIB),
        Layer { cluster: 2 * MIB, ..Layer::qcow2(14 * MIB, MIB) },
    ])
}

fn quick(disks: impl Into<Vec<DiskSpec>>) -> Spec {
    Spec { disks: disks.into(), ..Spec::quick() }
}

/// Every shape at once: the guest's disks first.
fn every_shape() -> Vec<DiskSpec> {
    let unmap = DiskSpec { discard: true, detect_zeroes: DetectZeroes::Unmap, ..DiskSpec::small() };
    vec![
        four(),
        DiskSpec::beside(0),
        DiskSpec::alone(Format::Raw, 8 * MIB),
        DiskSpec::alone(Format::Qcow2, 8 * MIB),
        unmap,
        DiskSpec { device: Device::ReadOnly, ..DiskSpec::small() },
        DiskSpec::cdrom(4 * MIB),
        DiskSpec::pflash(528 * KIB),
    ]
}

#[test]
fn every_shape_starts_and_moves() -> Result<()> {
    for (version, style) in [("7.2", Style::Drive), ("10.0.13", Style::Blockdev), ("11.1", Style::Blockdev)] {
        let spec = Spec { version: version.to_owned(), style, ..quick(every_shape()) };
        let pair = Pair::start(&spec)?;
        assert!(pair.guest_visible_equal(0).is_err(), "the destination has no data yet");
        straight_line::migrate(&pair)?;
        pair.destination.finish()?;
        for disk in 0..spec.disks.len() {
            pair.guest_visible_equal(disk)?;
        }
        let checks = pair.check_disks(Side::Destination)?;
        assert!(checks.iter().all(|check| check.background > 0), "{checks:?}");
    }
    Ok(())
}

#[test]
fn a_guest_on_a_chain_a_raw_image_and_a_flash_moves() -> Result<()> {
    let workload = Workload { write: 100, slots: 100, ..Workload::default() };
    let disks = vec![four(), DiskSpec::alone(Format::Raw, 16 * MIB), DiskSpec::cdrom(MIB), DiskSpec::pflash(528 * KIB)];
    let pair = Pair::start(&Spec { disks, workload, ..Spec::default() })?;
    straight_line::migrate(&pair)?;
    pair.wait_for_writes(Side::Destination, 50, WAIT)?;
    pair.wait_until_verified(WAIT)?;
    assert_eq!(pair.errors(), Vec::<String>::new());
    let checks = pair.check_disks(Side::Destination)?;
    assert!(checks[0].acknowledged > 20 && checks[1].acknowledged > 20, "{checks:?}");

    // The chain shows the layers as they are, and the overlay with its own data alone.
    let (at_source, at_destination) = (pair.chain(Side::Source, 0)?, pair.chain(Side::Destination, 0)?);
    let shape = |links: &[qferry_bed::ChainLink]| -> Vec<_> {
        links.iter().map(|link| (link.format.clone(), link.virtual_size / MIB, link.cluster)).collect()
    };
    assert_eq!(shape(&at_source), shape(&at_destination));
    let sizes: Vec<u64> = at_source.iter().map(|link| link.virtual_size / MIB).collect();
    assert_eq!(sizes, [16, 14, 8, 12, 16]);
    assert!(at_destination.iter().all(|link| link.file.starts_with(pair.destination.folder())), "{at_destination:?}");
    assert!(at_destination[0].taken < 10 * MIB && at_destination[0].taken > MIB, "{at_destination:?}");

    // The judgement finds a wrong byte below, and one on top.
    let files = pair.destination.disks()[0].clone();
    let build = pair.build(Side::Destination);
    let at = 16 * MIB - 512;
    build.io(&files.overlay, [format!("write -q -P 0xaa {at} 1").as_str()])?;
    let said = pair.check_disks(Side::Destination).expect_err("a wrong byte").to_string();
    assert!(said.contains("0xaa instead of"), "{said}");
    Ok(())
}

#[test]
fn what_a_guest_gives_back_stays_sparse_and_reads_as_zeroes() -> Result<()> {
    // A slot is a cluster, and the whole disk has data before.
    let base = DiskSpec { overlay_data: 8 * MIB, size: 8 * MIB, backing: 8 * MIB, discard: true, ..DiskSpec::small() };
    let raw = DiskSpec { top: Format::Raw, below: Below::Nothing, ..base.clone() };
    let workload =
        Workload { write: 20, discard: 200, read: 200, block: 64 * KIB, start: 0, slots: 128, ..Workload::default() };
    let pair = Pair::start(&Spec { disks: vec![base, raw], workload, ..Spec::default() })?;
    pair.wait_for_writes(Side::Source, 300, WAIT)?;
    straight_line::migrate(&pair)?;
    pair.wait_for_writes(Side::Destination, 20, WAIT)?;
    pair.wait_until_verified(WAIT)?;
    assert_eq!(pair.errors(), Vec::<String>::new());
    let checks = pair.check_disks(Side::Destination)?;
    for (disk, check) in checks.iter().enumerate() {
        let said = pair.zeroed(disk)?;
        assert!(said > 32, "disk {disk}: the guest gave back {said} of its slots, {check:?}");
        assert!((said - check.in_flight..=said).contains(&check.zeroed), "disk {disk}: {said} slots, {check:?}");
        let taken = pair.chain(Side::Destination, disk)?[0].taken;
        // Header and tables come on top of the data, and blocks that were given back just while they were copied.
        let most = u64::from(128 - check.zeroed / 2) * 64 * KIB + 512 * KIB;
        println!("disk {disk}: {taken} of {most} bytes for {check:?}");
        assert!(taken <= most, "disk {disk}: {taken} of at most {most} bytes for {check:?}");
    }
    Ok(())
}

/// QEMU keeps a flash's content in memory too, moves it with the rest, and writes all of it out on the first `cont`.
#[test]
fn a_flash_comes_over_without_a_mirror() -> Result<()> {
    let pair = Pair::start(&quick([DiskSpec::pflash(528 * KIB)]))?;
    assert_eq!(pair.chain(Side::Destination, 0)?[0].virtual_size, 528 * KIB);
    let uri = json!({"uri": format!("unix:{}", pair.run_dir().join("ram").display())});
    pair.destination.qmp("migrate-incoming", &uri)?;
    pair.source.qmp("migrate", &uri)?;
    pair.source.wait_for_status("postmigrate", WAIT)?;
    pair.destination.wait_for_status("paused", WAIT)?;
    assert!(pair.guest_visible_equal(0).is_err(), "it was written before the guest runs");
    pair.destination.qmp("cont", &json!({}))?;
    pair.check_disks(Side::Destination)?;
    Ok(())
}

#[test]
fn filters_stand_where_they_were_put() -> Result<()> {
    for filter in [Filter::Throttle, Filter::CopyOnRead] {
        let above = DiskSpec { filter_above: Some(filter), ..DiskSpec::small() };
        let below = DiskSpec { filter_below: Some(filter), ..DiskSpec::small() };
        let pair = Pair::start(&quick([above, below]))?;
        assert_eq!([pair.source.node(0)?, pair.source.node(1)?], ["disk0-above", "disk1"]);
        assert_eq!([pair.destination.node(0)?, pair.destination.node(1)?], ["disk0", "disk1"]);
        straight_line::migrate(&pair)?;
        pair.check_disks(Side::Destination)?;
    }
    Ok(())
}

#[test]
fn content_below_may_differ() -> Result<()> {
    let flip = |layer| Deviation::FlipByte { disk: 0, layer, offset: 15 * MIB / 2 + 5 };
    for (disk, layer) in [(four(), 3), (DiskSpec::small(), 0)] {
        let spec = Spec { destination: vec![flip(layer)], ..quick([disk]) };
        let pair = Pair::start(&spec)?;
        straight_line::migrate(&pair)?;
        let said = pair.guest_visible_equal(0).expect_err("one byte differs").to_string();
        assert!(said.contains("Content mismatch at offset"), "{said}");
        let said = pair.check_disks(Side::Destination).expect_err("one byte differs").to_string();
        assert!(said.contains("disk 0: 1 faults: at 7864325: "), "{said}");
    }
    Ok(())
}

#[test]
fn a_destination_that_is_not_as_it_should_be() -> Result<()> {
    let mut pair = Pair::start(&quick([DiskSpec { discard: true, ..DiskSpec::small() }, DiskSpec::small()]))?;
    let sizes = |pair: &Pair| -> Result<Vec<u64>> {
        (0..2).map(|disk| Ok(pair.chain(Side::Destination, disk)?[0].virtual_size)).collect()
    };
    let named = |pair: &Pair, name: &str| -> Result<serde_json::Value> {
        let nodes = pair.destination.qmp("query-named-block-nodes", &json!({}))?;
        let found = nodes.as_array().into_iter().flatten().find(|node| node["node-name"] == name);
        Ok(found.cloned().unwrap_or_default())
    };

    pair.deviate([Deviation::NoBacking { disk: 0 }])?;
    assert_eq!(named(&pair, "disk0")?["backing_file_depth"], 0);
    assert!(pair.chain(Side::Destination, 0).is_err(), "its backing file is gone");

    pair.deviate([Deviation::Size { disk: 0, size: 24 * MIB }, Deviation::Size { disk: 1, size: 8 * MIB + 512 }])?;
    assert_eq!(sizes(&pair)?, [24 * MIB, 8 * MIB + 512]);

    pair.deviate([Deviation::Data { disk: 1, offset: 4096, length: 512 }])?;
    assert!(pair.chain(Side::Destination, 1)?[0].taken > pair.chain(Side::Destination, 0)?[0].taken);

    pair.deviate([Deviation::Swapped { one: 0, other: 1 }])?;
    assert!(pair.destination.disks()[0].overlay.ends_with("disk1.qcow2"));

    pair.deviate([Deviation::SourcesImage { disk: 0 }])?;
    assert_eq!(pair.source.disks()[0], pair.destination.disks()[0]);

    let inode = |files: &DiskFiles| fs::metadata(&files.layers[0]).map(|facts| facts.ino()).ok();
    for sharing in [Sharing::SamePath, Sharing::HardLink, Sharing::Symlink] {
        pair.deviate([Deviation::SourcesBacking { disk: 1, sharing }])?;
        let (at_source, at_destination) = (&pair.source.disks()[1], &pair.destination.disks()[1]);
        assert_eq!(inode(at_source), inode(at_destination));
        assert_eq!(at_source.layers == at_destination.layers, sharing == Sharing::SamePath);
        assert!(pair.chain(Side::Destination, 1)?[1].file == at_destination.layers[0]);
    }

    pair.deviate([Deviation::OtherId { disk: 0 }, Deviation::NoDiscard { disk: 0 }])?;
    assert_eq!(pair.destination.node(0)?, "disk0");
    let blocks = pair.destination.qmp("query-block", &json!({}))?.to_string();
    assert!(blocks.contains("peripheral/other0/") && !blocks.contains("peripheral/disk0/"), "{blocks}");

    // Without a deviation all is well again.
    pair.deviate([])?;
    straight_line::migrate(&pair)?;
    pair.check_disks(Side::Destination)?;
    Ok(())
}

#[test]
fn the_sources_content_is_never_touched_by_a_deviation() -> Result<()> {
    let source = |destination: Vec<Deviation>| -> Result<()> {
        let mut pair = Pair::start(&Spec { destination, ..quick([DiskSpec::small()]) })?;
        let changed = |pair: &Pair| fs::metadata(&pair.source.disks()[0].layers[0]).and_then(|facts| facts.modified());
        let before = changed(&pair).expect("a time");
        pair.restart_destination(true)?;
        pair.deviate([])?;
        assert_eq!(changed(&pair).expect("a time"), before);
        pair.check_disks(Side::Source).map(drop)
    };
    source(vec![Deviation::SourcesImage { disk: 0 }])?;
    source(vec![Deviation::SourcesBacking { disk: 0, sharing: Sharing::HardLink }])?;
    source(vec![Deviation::SourcesBacking { disk: 0, sharing: Sharing::Symlink }])
}

#[test]
fn a_file_system_that_fills_up() -> Result<()> {
    let disk = DiskSpec { overlay_data: 8 * MIB, ..DiskSpec::small() };
    let destination = vec![Deviation::SmallFileSystem { bytes: 2 * MIB }];
    let mut pair = Pair::start(&Spec { destination, ..quick([disk]) })?;
    let said = straight_line::migrate(&pair).expect_err("8 MiB do not fit").to_string();
    assert!(said.contains("a mirror failed"), "{said}");
    pair.restart_destination(true)?;
    let small = pair.destination.folder().join("small");
    let mounts = || fs::read_to_string("/proc/self/mounts").expect("a list of mounts");
    assert!(mounts().contains(&small.display().to_string()));
    let root = pair.run_dir();
    drop(pair);
    assert!(!mounts().contains(&small.display().to_string()), "it is mounted still");
    assert!(!root.exists(), "the folder is left");
    Ok(())
}

#[test]
fn a_user_who_may_not_write() -> Result<()> {
    for version in ["7.2", "10.0.13", "11.1"] {
        let spec =
            Spec { version: version.to_owned(), destination: vec![Deviation::OtherUser], ..quick([DiskSpec::small()]) };
        let pair = Pair::start(&spec)?;
        let said = straight_line::migrate(&pair).expect_err("it may not write").to_string();
        let expected = if version == "7.2" { "Block node is read-only" } else { "Permission denied" };
        assert!(said.contains(expected), "{version}: {said}");
    }
    Ok(())
}

#[test]
fn a_destination_on_what_somebody_else_made() -> Result<()> {
    let half = Half::start(&Spec { memory: 64, ..quick([DiskSpec::small()]) })?;
    let overlay = half.destination_dir().join("theirs.qcow2");
    let backing = half.destination_dir().join("base.raw");
    fs::copy(&half.source.disks()[0].layers[0], &backing).expect("a copy");
    let (image, below) = (overlay.display().to_string(), backing.display().to_string());
    half.build(Side::Destination).img(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &below, &image, "16M"])?;
    let file = json!({"driver": "qcow2", "node-name": "theirs", "file": {"driver": "file", "filename": overlay}});
    let arguments = ["-blockdev", &file.to_string(), "-device", "virtio-blk-pci,drive=theirs,id=disk0,serial=disk0"];
    let given = Given {
        arguments: arguments.map(str::to_owned).to_vec(),
        disks: vec![DiskFiles { layers: vec![backing], overlay, format: Format::Qcow2 }],
        whole: false,
    };
    let mut pair = half.join_with(given)?;
    assert!(pair.deviate([]).is_err(), "not the bed's to make anew");
    pair.restart_destination(false)?;
    straight_line::migrate(&pair)?;
    pair.check_disks(Side::Destination)?;
    Ok(())
}

#[test]
fn a_destination_by_a_whole_command_line() -> Result<()> {
    let half = Half::start(&Spec { disks: vec![DiskSpec::alone(Format::Raw, 16 * MIB)], ..Spec::default() })?;
    // The source's own command line, changed for the destination.
    let words = fs::read(format!("/proc/{}/cmdline", half.source.pid())).expect("a command line");
    let words = String::from_utf8(words).expect("text").replace("/source/", "/destination/");
    let words = words.split_terminator('\0').skip_while(|word| *word != "-nodefaults");
    let arguments = words.chain(["-incoming", "defer", "-S"]).map(str::to_owned).collect();
    let overlay = half.destination_dir().join("disk0.raw");
    fs::File::create(&overlay).and_then(|file| file.set_len(16 * MIB)).expect("a file");
    let disks = vec![DiskFiles { overlay, format: Format::Raw, ..DiskFiles::default() }];
    let pair = half.join_with(Given { arguments, disks, whole: true })?;
    straight_line::migrate(&pair)?;
    pair.wait_for_beats(Side::Destination, 20, WAIT)?;
    pair.check_disks(Side::Destination)?;
    Ok(())
}

#[test]
fn bitmaps_are_told_live_and_from_the_image() -> Result<()> {
    let disk = DiskSpec { bitmaps: vec!["daily".to_owned()], ..DiskSpec::small() };
    let pair = Pair::start(&quick([disk]))?;
    let live = pair.source.bitmaps(0)?;
    assert_eq!(live.len(), 1, "{live:?}");
    assert_eq!((live[0].name.as_str(), live[0].dirty, live[0].granularity), ("daily", MIB, 64 * KIB));
    assert!(live[0].recording && live[0].persistent && live[0].sha256.is_some(), "{live:?}");
    assert_eq!(pair.destination.bitmaps(0)?, []);

    pair.source.finish()?;
    let (build, files) = (pair.build(Side::Source), &pair.source.disks()[0]);
    let stored = stored_bitmaps(build, files)?;
    assert_eq!((stored[0].name.as_str(), stored[0].flags.as_slice()), ("daily", ["auto".to_owned()].as_slice()));
    let ranges = dirty_ranges(build, files, "daily")?;
    assert_eq!(ranges.len(), 16, "{ranges:?}");
    assert_eq!(ranges[..2], [0..64 * KIB, MIB..MIB + 64 * KIB]);
    assert!(dirty_ranges(build, files, "none").is_err());
    assert_eq!(chain(build, files)?.len(), 2);
    Ok(())
}

#[test]
fn a_pair_without_a_guest_starts_running_or_paused() -> Result<()> {
    let since = Instant::now();
    let pair = Pair::start(&Spec::quick())?;
    let took = since.elapsed();
    assert_eq!([pair.source.status()?, pair.destination.status()?], ["running", "inmigrate"]);
    drop(pair);
    let pair = Pair::start(&Spec { guest: Guest::Paused, ..Spec::quick() })?;
    assert_eq!(pair.source.status()?, "paused");
    println!("{took:?}, and to the end {:?}", since.elapsed());
    Ok(())
}

#[test]
fn contradictions_are_refused() {
    let raw_on_something = DiskSpec { top: Format::Raw, ..DiskSpec::small() };
    for disks in [
        vec![raw_on_something],
        vec![DiskSpec::cdrom(MIB), DiskSpec::small()],
        vec![DiskSpec::beside(0)],
        vec![DiskSpec::chain([Layer::qcow2(MIB, 0), Layer::raw(MIB, 0)])],
        vec![DiskSpec { detect_zeroes: DetectZeroes::Unmap, ..DiskSpec::small() }],
    ] {
        assert!(Pair::start(&quick(disks.clone())).is_err(), "{disks:?}");
    }
}
