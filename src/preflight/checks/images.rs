//! The images of the disks: chains, files that both sides use, media that are only read, room, and the right to write.
//!
//! Pure.

use super::{finding::Finding, media, subject::CheckSubject};
use crate::{
    codes::FindingCode,
    preflight::facts::{SideFacts, reopening::ReopenHindrance},
    quantity::Bytes,
    storage::{
        files::filesystem::FileSystem,
        model::{
            chain::{InnerSnapshot, Layer},
            layout::{CopyMode, Disk, DiskPair, StorageMode},
        },
    },
};
use std::collections::BTreeMap;

/// Runs the checks of this file.
pub(super) fn run(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for pair in subject.pairs {
        findings.extend(chain_unknown(pair));
        findings.extend(backing_missing(pair));
        findings.extend(backing_unused(pair));
        findings.extend(overlay_version(pair));
        findings.extend(unencrypted(pair));
        findings.extend(snapshots(pair));
        findings.extend(quirks(pair));
        findings.extend(header(pair));
        findings.extend(crossed(pair, subject));
        findings.extend(not_writable(pair, subject.destination));
        findings.extend(not_sparse(pair, subject.destination));
    }
    findings.extend(subject.standing.iter().filter_map(|(disk, other)| medium(disk, *other)));
    let spare = subject.spare.iter().filter(|disk| !media::is_in_empty_drive(disk, subject));
    findings.extend(spare.map(|disk| extra(disk)));
    findings.extend(room(subject));
    findings.extend(subject.unshared.iter().filter_map(|(disk, other)| not_shared(disk, *other, subject)));
    findings
}

fn chain_unknown(pair: &DiskPair) -> Option<Finding> {
    let side = [("source", &pair.source), ("destination", &pair.destination)];
    let (side, _) = side.into_iter().find(|(_, disk)| disk.chain.layers.is_empty())?;
    let message = format!("the {side}'s QEMU does not tell the images that it consists of");
    Some(Finding::new(FindingCode::ChainUnknown, pair.source.name(), message))
}

fn backing_missing(pair: &DiskPair) -> Option<Finding> {
    let below = pair.source.chain.backing()?;
    let top = pair.destination.chain.top()?;
    if pair.mode == CopyMode::Full || pair.destination.chain.backing().is_some() {
        return None;
    }
    let message = format!(
        "the destination's {} has no backing file, and the source's image is over {} ({} of it in use)",
        top.file,
        below.file,
        Bytes(below.actual_size.unwrap_or(below.virtual_size))
    );
    Some(Finding::new(FindingCode::BackingMissing, pair.source.name(), message))
}

fn backing_unused(pair: &DiskPair) -> Option<Finding> {
    let below = pair.destination.chain.backing().filter(|_| pair.mode == CopyMode::Full)?;
    let message = format!("the whole disk is copied: the destination's image does not need {} below it", below.file);
    Some(Finding::new(FindingCode::BackingUnused, pair.source.name(), message))
}

fn overlay_version(pair: &DiskPair) -> Option<Finding> {
    let top = pair.destination.chain.top()?;
    let old = top.qcow2.as_ref().is_some_and(|qcow2| qcow2.compat == "0.10");
    let message = format!("{} is of qcow2 version 2, which stores every zero over a backing file in full", top.file);
    (old && pair.destination.chain.backing().is_some())
        .then(|| Finding::new(FindingCode::OverlayVersion, pair.source.name(), message))
}

fn unencrypted(pair: &DiskPair) -> Option<Finding> {
    let (source, destination) = (pair.source.chain.top()?, pair.destination.chain.top()?);
    let message =
        format!("{} is encrypted, and {} is not: the copy is stored in plain text", source.file, destination.file);
    (source.encrypted && !destination.encrypted)
        .then(|| Finding::new(FindingCode::DiskUnencrypted, pair.source.name(), message))
}

/// Names the snapshots inside the images that are copied: a mirror copies what the guest sees now, and no more.
fn snapshots(pair: &DiskPair) -> Vec<Finding> {
    let copied = match pair.mode {
        CopyMode::Incremental => pair.source.chain.layers.get(..1).unwrap_or_default(),
        CopyMode::Full => &pair.source.chain.layers[..],
    };
    let lost = copied.iter().filter(|layer| !layer.snapshots.is_empty());
    let told = lost.map(|layer| {
        let name = |snapshot: &InnerSnapshot| match snapshot.has_machine_state {
            true => format!("{} (with the state of the machine)", snapshot.name),
            false => snapshot.name.clone(),
        };
        let names: Vec<String> = layer.snapshots.iter().map(name).collect();
        let message = format!("snapshots inside {} do not arrive: {}", layer.file, names.join(", "));
        Finding::new(FindingCode::SnapshotsLost, pair.source.name(), message)
    });
    told.collect()
}

/// Notes the properties of the source's image that the destination's lacks. The guest sees no difference.
fn quirks(pair: &DiskPair) -> Option<Finding> {
    let (source, destination) = (pair.source.chain.top()?, pair.destination.chain.top()?);
    let (one, other) = (source.qcow2.as_ref()?, destination.qcow2.as_ref()?);
    let mut lacks = Vec::new();
    if one.extended_l2 && !other.extended_l2 {
        lacks.push("subclusters (extended_l2)".to_owned());
    }
    if source.data_file.is_some() && destination.data_file.is_none() {
        lacks.push("a data file of its own".to_owned());
    }
    if let (Some(size), Some(larger)) = (source.cluster_size, destination.cluster_size) {
        if larger > size {
            lacks.push(format!("clusters as small as {} ({} instead)", Bytes(size), Bytes(larger)));
        }
    }
    let message = format!("{} lacks what {} has: {}", destination.file, source.file, lacks.join(", "));
    (!lacks.is_empty()).then(|| Finding::new(FindingCode::ImagePlainer, pair.source.name(), message))
}

/// Compares headers with the files that QEMU opened: a QEMU that is started later follows the header, and not the
/// command line of today.
fn header(pair: &DiskPair) -> Option<Finding> {
    let layers = &pair.destination.chain.layers;
    let wrong = layers.windows(2).find_map(|two| {
        let named = two[0].backing.as_ref()?;
        (named.full.starts_with('/') && two[1].file.starts_with('/') && named.full != two[1].file)
            .then(|| format!("{} says that it is over {}, and QEMU opened {}", two[0].file, named.full, two[1].file))
    });
    let nothing = || {
        let top = layers.first()?;
        let named = top.backing.as_ref().filter(|_| layers.len() == 1)?;
        Some(format!("{} says that it is over {}, and QEMU opened nothing", top.file, named.full))
    };
    Some(Finding::new(FindingCode::BackingHeader, pair.source.name(), wrong.or_else(nothing)?))
}

/// Finds a file that one side would write and the other writes or reads.
fn crossed(pair: &DiskPair, subject: &CheckSubject<'_>) -> Option<Finding> {
    let id = |facts: &SideFacts, layer: &Layer| facts.file(layer).map(|file| file.id);
    let found = |code, message| Some(Finding::new(code, pair.source.name(), message));
    // a read-only disk has a check of its own, and would be found here among the disks that are read
    let written = pair.destination.chain.top().filter(|_| !pair.destination.read_only)?;
    let target = id(subject.destination, written);
    let read = |facts: &SideFacts| {
        let disks = facts.disks();
        let below = disks.iter().flat_map(|disk| disk.chain.layers.get(1..).unwrap_or_default());
        let standing = disks.iter().filter(|disk| disk.read_only).filter_map(|disk| disk.chain.top());
        below
            .chain(standing)
            .find(|layer| target.is_some() && id(facts, layer) == target)
            .map(|layer| layer.file.clone())
    };
    if let Some(file) = read(subject.source).or_else(|| read(subject.destination)) {
        let message = format!("the destination would write to {file}, which other images are over");
        return found(FindingCode::OverlayIsBacking, message);
    }
    // a file in the place of the same disk is shared, and makes no pair; QEMU's lock would find others, but not on
    // every file system
    let is_target =
        |facts: &SideFacts, disk: &Disk| target.is_some() && disk.chain.top().and_then(|top| id(facts, top)) == target;
    if let Some(disk) = subject.source.disks().iter().find(|disk| is_target(subject.source, disk)) {
        let message =
            format!("the destination would write to {}, on which the source has {}", written.file, disk.name());
        return found(FindingCode::OverlayIsLive, message);
    }
    let others = subject.pairs.iter().filter(|other| other.source != pair.source);
    if let Some(other) = others.into_iter().find(|other| is_target(subject.destination, &other.destination)) {
        return found(
            FindingCode::OverlayTaken,
            format!("{} would be copied to {}, too", other.source.name(), written.file),
        );
    }
    let live = id(subject.source, pair.source.chain.top()?);
    let below = pair.destination.chain.layers.get(1..).unwrap_or_default();
    let backing = below.iter().find(|layer| live.is_some() && id(subject.destination, layer) == live)?;
    let message = format!("the destination's image is over {}, which the guest writes to", backing.file);
    found(FindingCode::BackingIsLive, message)
}

fn not_writable(pair: &DiskPair, destination: &SideFacts) -> Option<Finding> {
    let top = pair.destination.chain.top()?;
    let file = destination.file(top)?;
    let message = match file.file_system.read_only {
        true => format!("{} is on a file system that is mounted read-only", top.file),
        _ => match destination.reopening.hindered.get(&top.protocol.file) {
            Some(denied @ ReopenHindrance::Denied { .. }) => {
                format!("the destination's QEMU may not write to {}: {denied}", top.file)
            }
            _ if file.writable => return None,
            _ => format!("the destination's QEMU may not write to {}", top.file),
        },
    };
    Some(Finding::new(FindingCode::DiskNotWritable, pair.source.name(), message))
}

/// Notes that a raw image may not stay sparse. Measured: with QEMU 7.2 and 10.0, zeros that are written to a raw image
/// without `discard=unmap` take their space; with 11.1 they do not. No answer of QEMU shows the option.
fn not_sparse(pair: &DiskPair, destination: &SideFacts) -> Option<Finding> {
    let top = pair.destination.chain.top()?;
    let device = destination.file(top).is_some_and(|file| file.is_device);
    let spared = destination.features.mirror_target_is_zero || pair.destination.is_flash() || device;
    let message = "a raw image stays sparse on QEMU before 10.1 only where it is opened with discard=unmap";
    (top.format == "raw" && !spared).then(|| Finding::new(FindingCode::DiskNotSparse, pair.source.name(), message))
}

fn medium(disk: &Disk, other: Option<&Disk>) -> Option<Finding> {
    let Some(other) = other else {
        let message = format!("the source reads {}, and the destination has nothing in its place", disk.file);
        return Some(Finding::new(FindingCode::MediumMissing, disk.name(), message));
    };
    let (source, destination) = (Bytes(disk.virtual_size), Bytes(other.virtual_size));
    let message = format!(
        "{} has {}, the destination's {} has {}",
        disk.file,
        source.exactly(),
        other.file,
        destination.exactly()
    );
    (source != destination).then(|| Finding::new(FindingCode::MediumSize, disk.name(), message))
}

fn extra(disk: &Disk) -> Finding {
    let message = format!("no disk of the source goes to the destination's {}", disk.file);
    Finding::new(FindingCode::DiskExtra, disk.name(), message)
}

/// Compares the room of each file system of the destination with all images on it that are copied to: with their
/// virtual sizes, or with `overcommit` with the data of today.
fn room(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let mut wanted: BTreeMap<u64, (&FileSystem, u64, Vec<&str>)> = BTreeMap::new();
    for pair in subject.pairs {
        let Some(top) = pair.destination.chain.top() else { continue };
        let Some(file) = subject.destination.file(top).filter(|file| !file.is_device) else { continue };
        let needs = needed(pair, subject.overcommit).saturating_sub(file.allocated);
        let system = &file.file_system;
        let entry = wanted.entry(system.device).or_insert((system, 0, Vec::new()));
        entry.1 += needs;
        entry.2.push(&top.file);
    }
    let short = wanted.into_values().filter(|(system, needs, _)| *needs > system.free);
    short
        .map(|(system, needs, files)| {
            let message = format!(
                "{} may need {} more on {}, which has {} left",
                files.join(" and "),
                Bytes(needs),
                system.name,
                Bytes(system.free)
            );
            let finding = Finding::new(FindingCode::NoSpace, &subject.destination.name, message);
            if subject.overcommit { finding.with_remedy("make room") } else { finding }
        })
        .collect()
}

fn needed(pair: &DiskPair, overcommit: bool) -> u64 {
    let layers = match pair.mode {
        CopyMode::Incremental => pair.source.chain.layers.get(..1).unwrap_or_default(),
        CopyMode::Full => &pair.source.chain.layers[..],
    };
    let actual = layers.iter().map(|layer| layer.actual_size.unwrap_or(layer.virtual_size));
    let actual = actual.fold(0, u64::saturating_add);
    if overcommit { actual } else { pair.source.virtual_size.max(pair.destination.virtual_size) }
}

/// Judges a disk that is said to be shared.
fn not_shared(disk: &Disk, other: Option<&Disk>, subject: &CheckSubject<'_>) -> Option<Finding> {
    debug_assert_eq!(subject.storage, StorageMode::None);
    let Some(other) = other else {
        let finding = Finding::new(FindingCode::DiskMissing, disk.name(), "the destination has no disk that matches");
        return Some(finding.with_remedy("give the destination a device of the same id"));
    };
    let (source, destination) = (disk.chain.top()?, other.chain.top()?);
    let (file, other_file) = (&source.file, &destination.file);
    if let Some((known, other_known)) = subject.source.file(source).zip(subject.destination.file(destination)) {
        let message = format!("{file} and {other_file} are two files, and nothing is to be copied");
        return (known.id != other_known.id).then(|| Finding::new(FindingCode::DiskNotShared, disk.name(), message));
    }
    let message = format!("whether {file} is the destination's {other_file} cannot be seen from this host");
    let finding = Finding::new(FindingCode::DiskSharedUnproved, disk.name(), message);
    Some(if source.direct || disk.read_only {
        finding.with_remedy("make sure that both sides have the same file")
    } else {
        finding
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        preflight::checks::Severity,
        preflight::facts::{devices::DeviceTable, files::FileFacts, machine::MachineFacts},
        qemu::{
            Features, Schema,
            reply::{MigrationInfo, RunState},
        },
        qmp::QemuVersion,
        storage::model::{
            bitmaps::BitmapPlan,
            chain::{BackingChain, BackingLink, NodeGraph, ProtocolNode, Qcow2},
            layout::PairNames,
        },
    };

    /// A file by its file system, the room there, and its inode.
    fn file(device: u64, available: u64, inode: u64) -> FileFacts {
        FileFacts {
            path: "/x".into(),
            id: (device, inode),
            allocated: 0,
            modified: (0, 0),
            is_device: false,
            writable: true,
            file_system: FileSystem { device, free: available, read_only: false, name: "/d (xfs)".to_owned() },
        }
    }

    fn facts(name: &str, files: &[(&str, FileFacts)]) -> SideFacts {
        SideFacts {
            name: name.to_owned(),
            run: RunState::Running,
            migration: MigrationInfo::default(),
            connects_on: false,
            devices: Vec::new(),
            nodes: Vec::new(),
            graph: NodeGraph::default(),
            places: Default::default(),
            throttle_groups: Default::default(),
            jobs: Vec::new(),
            exports: Vec::new(),
            leftovers: Vec::new(),
            features: Features::read(&Schema::default()),
            pid: None,
            process: Default::default(),
            reopening: Default::default(),
            files: files.iter().map(|(name, file)| ((*name).to_owned(), file.clone())).collect(),
            ram: 0,
            base_ram: 0,
            out_of_band: true,
            machine: MachineFacts {
                version: QemuVersion { major: 10, minor: 0, micro: 0 },
                kind: None,
                cpus: 1,
                cpu: None,
                ram_blocks: None,
                devices: DeviceTable::default(),
                device_tree: None,
                properties: BTreeMap::new(),
                possible_cpus: None,
                package: String::new(),
                virtio: Vec::new(),
            },
        }
    }

    /// A qcow2 image of 100 bytes, 10 of which are taken.
    fn layer(file: &str) -> Layer {
        Layer {
            node: format!("node of {file}"),
            format: "qcow2".to_owned(),
            file: file.to_owned(),
            protocol: ProtocolNode { file: file.to_owned(), ..ProtocolNode::default() },
            virtual_size: 100,
            actual_size: Some(10),
            ..Layer::default()
        }
    }

    fn over(file: &str, named: &str) -> Layer {
        let backing = Some(BackingLink { file: named.to_owned(), full: named.to_owned(), format: None });
        Layer { backing, ..layer(file) }
    }

    fn disk(layers: impl Into<Vec<Layer>>) -> Disk {
        let chain = BackingChain { layers: layers.into(), filters: Vec::new() };
        Disk {
            qdev: Some("disk0".to_owned()),
            device: None,
            node: "n".to_owned(),
            path: None,
            file: chain.top().map_or_else(String::new, |top| top.file.clone()),
            read_only: false,
            virtual_size: 100,
            chain,
        }
    }

    fn pair(source: impl Into<Vec<Layer>>, destination: impl Into<Vec<Layer>>) -> DiskPair {
        let (source, destination) = (disk(source), disk(destination));
        DiskPair {
            source,
            destination,
            mode: CopyMode::Incremental,
            names: PairNames::new(&crate::run_id::RunId::default(), 0),
        }
    }

    fn with(pairs: &[DiskPair], files: &[(&str, FileFacts)], overcommit: bool, check: impl FnOnce(&CheckSubject<'_>)) {
        let (source, destination) = (facts("source", files), facts("destination", files));
        check(&CheckSubject {
            source: &source,
            destination: &destination,
            pairs,
            problems: &[],
            shared: &[],
            left_out: &[],
            standing: &[],
            unshared: &[],
            spare: &[],
            tuning: &crate::memory::tuning::MigrationTuning::default(),
            bitmaps: &BitmapPlan::default(),
            storage: StorageMode::None,
            overcommit,
            known_runs: &[],
            clean: false,
            addresses: &[],
            ports: &[],
            allow_plaintext: false,
        });
    }

    #[test]
    fn room_is_counted_for_each_file_system() {
        let two = |mode| {
            let pair = |source: &str, destination: &str| DiskPair {
                mode,
                ..pair([layer(source), layer("below")], [layer(destination)])
            };
            [pair("a", "x"), pair("b", "y")]
        };
        let taken = |bytes, file: FileFacts| FileFacts { allocated: bytes, ..file };
        let device = |file: FileFacts| FileFacts { is_device: true, ..file };
        use CopyMode::{Full, Incremental};
        for (what, mode, x, y, overcommit, found) in [
            ("two of 100 bytes each", Incremental, file(1, 200, 1), file(1, 200, 2), false, 0),
            ("on one file system", Incremental, file(1, 199, 1), file(1, 199, 2), false, 1),
            ("on one each", Incremental, file(1, 199, 1), file(2, 100, 2), false, 0),
            ("one of them too small", Incremental, file(1, 199, 1), file(2, 99, 2), false, 1),
            ("both too small", Incremental, file(1, 9, 1), file(2, 9, 2), false, 2),
            ("what it takes already", Incremental, taken(60, file(1, 140, 1)), file(1, 140, 2), false, 0),
            ("more than it can need", Incremental, taken(600, file(1, 100, 1)), file(1, 100, 2), false, 0),
            ("a device has its room", Incremental, device(file(1, 0, 1)), file(1, 100, 2), false, 0),
            ("what is there now", Incremental, file(1, 20, 1), file(1, 20, 2), true, 0),
            ("not even that", Incremental, file(1, 19, 1), file(1, 19, 2), true, 1),
            ("all layers", Full, file(1, 40, 1), file(1, 40, 2), true, 0),
            ("not all layers", Full, file(1, 39, 1), file(1, 39, 2), true, 1),
        ] {
            with(&two(mode), &[("x", x), ("y", y)], overcommit, |subject| {
                let short = room(subject);
                assert_eq!(short.len(), found, "{what}: {short:?}");
                for one in short {
                    assert_eq!((one.code.as_str(), one.subject.as_str()), ("no-space", "destination"), "{what}");
                    assert_eq!(one.remedy.contains("`overcommit`"), !overcommit, "{what}");
                    assert!(one.message.contains('x') || one.message.contains('y'), "{what}: {one}");
                }
            });
        }
        with(&two(Incremental), &[], false, |subject| assert_eq!(room(subject), [], "nothing is known of the files"));
        // the space that a layer takes may not be known
        let unknown = Layer { actual_size: None, ..layer("a") };
        assert_eq!(needed(&pair([unknown], [layer("x")]), true), 100);
        let mut larger = pair([layer("a")], [layer("x")]);
        larger.destination.virtual_size = 300;
        assert_eq!((needed(&larger, false), needed(&larger, true)), (300, 10));
    }

    #[test]
    fn headers_that_are_not_what_was_opened() {
        let relative = |file: &str| {
            let full = format!("/{file}");
            Layer { backing: Some(BackingLink { file: file.to_owned(), full, format: None }), ..layer("/a") }
        };
        for (layers, told) in [
            (vec![over("/a", "/b"), layer("/b")], None),
            (vec![relative("b"), layer("/b")], None),
            (vec![layer("/a")], None),
            (vec![over("/a", "/c"), layer("/b")], Some("/a says that it is over /c, and QEMU opened /b")),
            (vec![over("/a", "/b"), over("/b", "/d"), layer("/c")], Some("/b says that it is over /d")),
            (vec![over("/a", "/b")], Some("opened nothing")),
            // a layer that is reached by a protocol cannot be recognised by its name
            (vec![over("/a", "nbd://host/b"), layer("/b")], None),
            (vec![over("/a", "/b"), layer("nbd://host/b")], None),
        ] {
            let found = header(&pair([layer("/s")], layers.clone()));
            assert_eq!(found.is_some(), told.is_some(), "{layers:?}: {found:?}");
            if let (Some(found), Some(told)) = (found, told) {
                assert_eq!((found.code.as_str(), found.severity), ("backing-header", Severity::Warning));
                assert!(found.message.contains(told) && !found.remedy.is_empty(), "{found}");
            }
        }
    }

    #[test]
    fn versions_encryption_jobs_and_chains_that_are_not_told() {
        let qcow2 = |compat: &str| Some(Qcow2 { compat: compat.to_owned(), ..Qcow2::default() });
        let of = |compat| Layer { qcow2: qcow2(compat), ..layer("x") };
        let codes = |found: Option<Finding>| found.map(|found| (found.code.to_string(), found.severity));
        let version = |destination: Vec<Layer>| codes(overlay_version(&pair([layer("a")], destination)));
        assert_eq!(version(vec![of("0.10"), layer("below")]), Some(("overlay-version".to_owned(), Severity::Warning)));
        assert_eq!(version(vec![of("1.1"), layer("below")]), None);
        assert_eq!(version(vec![of("0.10")]), None, "it hides nothing");
        assert_eq!(version(vec![layer("x"), layer("below")]), None, "of another format");

        for (source, destination, found) in
            [(true, false, true), (true, true, false), (false, false, false), (false, true, false)]
        {
            let image = |file, encrypted| Layer { encrypted, ..layer(file) };
            let told = unencrypted(&pair([image("a", source)], [image("x", destination)]));
            assert_eq!(told.is_some(), found, "{source} {destination}");
            if let Some(told) = told {
                assert_eq!((told.code.as_str(), told.severity), ("disk-unencrypted", Severity::Warning));
                assert!(told.message.contains("a is encrypted, and x is not"), "{told}");
            }
        }

        let unknown = Some(("chain-unknown".to_owned(), Severity::Blocker));
        assert_eq!(codes(chain_unknown(&pair([], [layer("x")]))), unknown);
        assert_eq!(codes(chain_unknown(&pair([layer("a")], []))), unknown);
        assert_eq!(chain_unknown(&pair([layer("a")], [layer("x")])), None);
    }

    #[test]
    fn snapshots_are_named_where_they_are_copied_over() {
        let with = |file: &str, names: &[(&str, bool)]| {
            let snapshot =
                |(name, state): &(&str, bool)| InnerSnapshot { name: (*name).to_owned(), has_machine_state: *state };
            Layer { snapshots: names.iter().map(snapshot).collect(), ..layer(file) }
        };
        let two = || with("a", &[("keepme", false), ("zwei ä", true)]);
        use CopyMode::{Full, Incremental};
        for (mode, layers, told) in [
            (Incremental, vec![layer("a"), layer("b")], vec![]),
            (Incremental, vec![two(), layer("b")], vec!["a do not arrive: keepme, zwei ä (with the state"]),
            (Incremental, vec![layer("a"), with("b", &[("old", false)])], vec![]),
            (Full, vec![two(), with("b", &[("old", false)])], vec!["a do not", "b do not arrive: old"]),
        ] {
            let found = snapshots(&DiskPair { mode, ..pair(layers.clone(), [layer("x")]) });
            assert_eq!(found.len(), told.len(), "{layers:?}");
            for (found, told) in found.iter().zip(told) {
                assert_eq!((found.code.as_str(), found.severity), ("snapshots-lost", Severity::Warning));
                assert!(found.message.contains(told), "{found}");
            }
        }
    }

    #[test]
    fn what_the_destinations_image_lacks() {
        let image = |extended_l2, cluster, data_file: Option<&str>| Layer {
            qcow2: Some(Qcow2 { extended_l2, ..Qcow2::default() }),
            cluster_size: Some(cluster),
            data_file: data_file.map(str::to_owned),
            ..layer("x")
        };
        let plain = || image(false, 65536, None);
        for (source, destination, told) in [
            (plain(), plain(), None),
            (plain(), image(true, 4096, Some("/d")), None),
            (image(true, 65536, None), plain(), Some("subclusters")),
            (image(false, 4096, None), plain(), Some("clusters as small as 4.0 KiB (64.0 KiB instead)")),
            (image(false, 65536, Some("/d")), plain(), Some("a data file")),
            (image(true, 4096, None), layer("raw"), None),
        ] {
            let found = quirks(&pair([source.clone()], [destination]));
            assert_eq!(found.is_some(), told.is_some(), "{source:?}");
            if let (Some(found), Some(told)) = (found, told) {
                assert_eq!((found.code.as_str(), found.severity), ("image-plainer", Severity::Note));
                assert!(found.message.contains(told), "{found}");
            }
        }
    }

    #[test]
    fn who_may_write() {
        let pairs = [pair([layer("a")], [layer("x")])];
        let read_only = FileSystem { device: 1, free: 0, read_only: true, name: "/d (xfs)".to_owned() };
        for (known, told) in [
            (None, None),
            (Some(file(1, 0, 1)), None),
            (Some(FileFacts { writable: false, ..file(1, 0, 1) }), Some("may not write to x")),
            (Some(FileFacts { file_system: read_only, ..file(1, 0, 1) }), Some("mounted read-only")),
        ] {
            let files: Vec<_> = known.map(|file| ("x", file)).into_iter().collect();
            let found = not_writable(&pairs[0], &facts("destination", &files));
            assert_eq!(found.is_some(), told.is_some(), "{files:?}");
            if let (Some(found), Some(told)) = (found, told) {
                assert_eq!(found.code.as_str(), "disk-not-writable");
                assert!(found.message.contains(told), "{found}");
            }
        }
    }

    #[test]
    fn files_that_are_said_to_be_shared() {
        let known = [("a", file(1, 0, 1)), ("x", file(1, 0, 1)), ("y", file(1, 0, 2))];
        let direct = Disk { chain: disk([Layer { direct: true, ..layer("a") }]).chain, ..disk([]) };
        for (source, destination, files, code, remedy) in [
            (disk([layer("a")]), Some("x"), &known[..], None, ""),
            (disk([layer("a")]), Some("y"), &known[..], Some("disk-not-shared"), "`storage: none`"),
            (disk([layer("a")]), Some("z"), &known[..], Some("disk-shared-unproved"), "cache=none"),
            (direct, Some("x"), &[], Some("disk-shared-unproved"), "make sure that both sides have the same file"),
            (disk([layer("a")]), None, &known[..], Some("disk-missing"), "device of the same id"),
        ] {
            let other = destination.map(|file| disk([layer(file)]));
            with(&[], files, false, |subject| {
                let found = not_shared(&source, other.as_ref(), subject);
                assert_eq!(found.as_ref().map(|found| found.code.as_str()), code, "{destination:?}");
                assert!(found.is_none_or(|found| found.remedy.contains(remedy)), "{destination:?}");
            });
        }
    }

    #[test]
    fn files_that_one_writes_and_another_reads() {
        let known = [("a", file(1, 0, 1)), ("b", file(1, 0, 2)), ("x", file(1, 0, 3)), ("alias", file(1, 0, 1))];
        let code = |pair: DiskPair, files: &[(&str, FileFacts)]| {
            let mut code = None;
            with(&[], files, false, |subject| code = crossed(&pair, subject).map(|found| found.code.to_string()));
            code
        };
        let source = || [layer("a"), layer("b")];
        assert_eq!(code(pair(source(), [layer("x"), layer("b")]), &known), None, "one base for both");
        assert_eq!(code(pair(source(), [layer("x"), layer("alias")]), &known), Some("backing-is-live".to_owned()));
        assert_eq!(code(pair(source(), [layer("x"), layer("alias")]), &[]), None, "nothing is known of the files");
    }

    #[test]
    fn what_stays_sparse() {
        let raw = || Layer { format: "raw".to_owned(), ..layer("x") };
        let mut there = facts("destination", &[("x", file(1, 0, 1))]);
        let code = |there: &SideFacts, top: Layer| {
            not_sparse(&pair([layer("a")], [top]), there).map(|found| found.code.to_string())
        };
        assert_eq!(code(&there, raw()), Some("disk-not-sparse".to_owned()));
        assert_eq!(code(&there, layer("x")), None);
        let mut flash = pair([layer("a")], [raw()]);
        flash.destination.path = Some("/machine/system.flash1".to_owned());
        assert_eq!(not_sparse(&flash, &there), None);
        there.files.insert("x".to_owned(), FileFacts { is_device: true, ..file(1, 0, 1) });
        assert_eq!(code(&there, raw()), None, "a device has its space already");
        there.files.clear();
        there.features.mirror_target_is_zero = true;
        assert_eq!(code(&there, raw()), None);
    }
}
