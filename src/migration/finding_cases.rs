//! A case for each code that the preflight can find: two healthy sides and what makes the code appear.
//!
//! The match below has no wildcard, so a new code does not compile without a case. Each case changes what QEMU or the
//! user said; the whole plan is then made of it, as in a run.

mod given_up;
mod images;
mod machine;
mod pages;

use self::{
    images::{file, node},
    machine::{device_tree, machine},
};
use super::{Settings, plan::Draft};
use crate::{
    codes::{FindingCode, Setting},
    endpoint::Address,
    memory::tuning::Compression,
    preflight::{
        checks::{Finding, KnownRun},
        contents::{EmptyImageCheck, EmptyImageState, ImageContents},
        facts::{
            SideFacts,
            cpu::CpuFacts,
            disk_place::{DiskPlace, DiskPlaces},
            files::FileFacts,
            ports::PortState,
            process::ProcessFacts,
        },
        machine_change::{MachineChange, changes},
        measurements::{GuestMeasurements, MissingMeasurement},
    },
    qemu::{
        Features, Schema,
        reply::{BlockDevice, BlockGraph, BlockNode, MigrationInfo, MigrationStatus, RunState},
    },
    run_id::RunId,
    storage::{
        mirror::leftover::Leftover,
        model::{bitmaps, chain::NodeGraph, layout::StorageMode},
        verify::identity::{Comparison, ComparisonResult, ProofLevel, ProofMethod},
    },
};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};

/// Everything that a plan is made of.
pub(crate) struct CheckedWorld {
    source: SideFacts,
    destination: SideFacts,
    ports: Vec<(Setting, Address, PortState)>,
    settings: Settings,
    contents: ImageContents,
    changed: Vec<MachineChange>,
    known_runs: Vec<KnownRun>,
    journal: Option<String>,
    measured: Option<GuestMeasurements>,
}

/// A run of this very pair, of which a journal tells.
fn known_run(engine_lives: bool) -> KnownRun {
    KnownRun {
        run: RunId::new(),
        journal: "/j/1.journal".to_owned(),
        engine_lives,
        engine_pid: Some(7),
        has_source: true,
        has_destination: true,
        is_this_pair: true,
    }
}

/// A change to a healthy world.
pub(crate) type WorldChange = fn(&mut CheckedWorld);

/// One side, whose files begin with this letter: a disk over a backing file, and a CD.
fn side(name: &str, letter: char, inode: u64) -> SideFacts {
    let at = |file: &str| format!("/{letter}/{file}");
    let mut facts = SideFacts {
        name: name.to_owned(),
        run: RunState::Running,
        migration: MigrationInfo::default(),
        connects_on: false,
        devices: Vec::new(),
        nodes: Vec::new(),
        graph: NodeGraph::default(),
        places: DiskPlaces::default(),
        throttle_groups: Default::default(),
        jobs: Vec::new(),
        exports: Vec::new(),
        leftovers: Vec::new(),
        out_of_band: true,
        features: Features {
            incoming_exit_on_error: true,
            block_job_change: true,
            mirror_target_is_zero: true,
            avail_switchover_bandwidth: true,
            zero_page_detection: true,
            multifd_compressions: ["none", "zstd"].map(str::to_owned).into(),
            migration_capabilities: ["multifd", "xbzrle", "postcopy-ram", bitmaps::CAPABILITY]
                .map(str::to_owned)
                .into(),
            missing: Vec::new(),
            ..Features::read(&Schema::default())
        },
        pid: Some(u32::try_from(inode).expect("a pid")),
        process: ProcessFacts::default(),
        reopening: Default::default(),
        files: [("top", 0), ("base", 1), ("cd", 2)].map(|(name, number)| (at(name), file(inode + number))).into(),
        ram: 1 << 30,
        base_ram: 1 << 30,
        machine: machine(),
    };
    facts.nodes = vec![
        node("base", "raw", &at("base"), true, &[("file", "base-file")]),
        node("base-file", "file", &at("base"), true, &[]),
    ];
    facts.plug("disk0", "top", "qcow2", &at("top"), Some("base"));
    facts.plug("cd", "cd", "raw", &at("cd"), None);
    facts.change("cd", |node| node.ro = true);
    facts
}

impl SideFacts {
    /// Plugs in a disk of this id, on an image of this name.
    fn plug(&mut self, id: &str, name: &str, driver: &str, file: &str, backing: Option<&str>) {
        let protocol = format!("{name}-file");
        let children: Vec<(&str, &str)> =
            [("file", protocol.as_str())].into_iter().chain(backing.map(|backing| ("backing", backing))).collect();
        self.nodes.push(node(name, driver, file, false, &children));
        self.nodes.push(node(&protocol, "file", file, false, &[]));
        let mut device: BlockDevice =
            serde_json::from_value(json!({ "device": "", "qdev": format!("/machine/peripheral/{id}/virtio-backend") }))
                .expect("a device");
        device.inserted = self.nodes.iter().find(|node| node.node_name == name).cloned();
        let lun = self.devices.len();
        self.places.extend(device.qdev.clone().map(|qdev| (qdev, Ok(DiskPlace::at_lun(lun)))));
        self.devices.push(device);
        self.wire();
    }

    /// Changes a node, wherever QEMU tells of it.
    fn change(&mut self, name: &str, change: impl Fn(&mut BlockNode)) {
        let inserted = self.devices.iter_mut().filter_map(|device| device.inserted.as_mut());
        self.nodes.iter_mut().chain(inserted).filter(|node| node.node_name == name).for_each(change);
        self.wire();
    }

    fn wire(&mut self) {
        self.graph = NodeGraph::new(&self.nodes, &BlockGraph::default());
    }

    fn unplug(&mut self, node: &str) {
        self.devices.retain(|device| device.inserted.as_ref().is_none_or(|inserted| inserted.node_name != node));
    }

    fn file_mut(&mut self, name: &str) -> &mut FileFacts {
        self.files.get_mut(name).expect("a file")
    }

    fn cpu_mut(&mut self) -> &mut CpuFacts {
        self.machine.cpu.as_mut().expect("a CPU")
    }
}

impl CheckedWorld {
    pub(crate) fn healthy() -> Self {
        let mut destination = side("destination", 'd', 200);
        destination.run = RunState::InMigrate;
        Self {
            source: side("source", 's', 100),
            destination,
            ports: Vec::new(),
            settings: Settings { runtime_dir: "/run/x".into(), ..Settings::default() },
            contents: ImageContents::default(),
            changed: Vec::new(),
            known_runs: Vec::new(),
            journal: None,
            measured: None,
        }
    }

    /// Plugs in a second disk on both sides.
    fn second_disk(&mut self) {
        for (facts, letter, inode) in [(&mut self.source, 's', 110), (&mut self.destination, 'd', 210)] {
            let name = format!("/{letter}/second");
            facts.plug("disk1", "second", "qcow2", &name, None);
            facts.files.insert(name, file(inode));
        }
    }

    fn compare(&mut self, verdict: ComparisonResult) {
        let (source, destination) = ("/s/base".to_owned(), "/d/base".to_owned());
        let (disks, by) = (vec!["disk0".to_owned()], ProofMethod::Metadata { map: Some("1".to_owned()) });
        self.contents.comparisons.push(Comparison { disks, source, destination, by, verdict });
    }

    fn fill(&mut self, overlay: bool, holds: EmptyImageState) {
        self.contents.empty_images.push(EmptyImageCheck {
            disk: "disk0".to_owned(),
            file: "/d/top".to_owned(),
            overlay,
            spent: false,
            holds,
        });
    }

    pub(crate) fn findings(self) -> Vec<Finding> {
        let Self { source, destination, ports, settings, contents, changed, known_runs, journal, measured } = self;
        let mut draft = Draft::new(&source, &destination, &ports, &settings, &RunId::default(), &known_runs);
        draft.add_journal(journal);
        draft.add(contents, &settings.force);
        draft.add_changed("source", &changed);
        if let Some(measured) = measured {
            draft.add_measured(measured, &settings, &source.features, Duration::ZERO);
        }
        draft.plan.findings
    }
}

fn tcp(host: &str) -> Address {
    format!("tcp:{host}:4444").parse().expect("an address")
}

/// What makes this code appear; `None` for a code of a preparation, whose cases are in its room.
#[allow(clippy::too_many_lines, reason = "one line a code")]
pub(crate) fn case(code: &FindingCode) -> Option<WorldChange> {
    use FindingCode as Code;
    Some(match code {
        Code::AddressMissing => |world| world.destination.pid = None,
        Code::BackingDiffers => |world| {
            world.compare(ComparisonResult::Differ {
                offset: 7,
                source_layer: "/s/base".to_owned(),
                destination_layer: "/d/base".to_owned(),
                what: "another byte".to_owned(),
            });
        },
        Code::BackingFormat => |world| world.destination.change("base", |node| node.drv = "qcow2".to_owned()),
        Code::BackingHeader => |world| {
            world.destination.change("top", |node| {
                node.image.backing_filename = Some("/d/elsewhere".to_owned());
            });
        },
        Code::BackingIsLive => |world| world.destination.file_mut("/d/base").id = (1, 100),
        Code::BackingMissing => {
            |world| world.destination.change("top", |node| node.children.retain(|child| child.child != "backing"))
        }
        Code::BackingSize => |world| world.destination.change("base", |node| node.image.virtual_size += 512),
        Code::BackingUnproved => |world| world.compare(ComparisonResult::Unproved { why: "no answer".to_owned() }),
        Code::BackingUnused => |world| world.settings.selection.storage = StorageMode::Full,
        Code::BackingUnverified => |world| world.settings.verify_backing = ProofLevel::Off,
        Code::BitmapLost => |world| {
            world.destination.features.migration_capabilities.clear();
            world.source.change("top", |node| {
                let bitmap = json!({ "name": "backup", "count": 0, "granularity": 65536, "persistent": true });
                node.dirty_bitmaps = vec![serde_json::from_value(bitmap).expect("a bitmap")];
            });
        },
        Code::CapabilityConflict => |world| world.settings.compress = Some(Compression::Zstd),
        Code::CapabilityMissing => |world| {
            world.settings.multifd = Some(2);
            world.source.features.migration_capabilities.clear();
        },
        Code::ChainChanged => |world| {
            let before = world.source.clone();
            world.source.unplug("top");
            world.changed = changes(&before, &world.source);
        },
        Code::ChainUnknown => |world| {
            let inserted = world.source.devices.iter_mut().filter_map(|device| device.inserted.as_mut());
            inserted.for_each(|node| node.node_name = format!("{}-of-no-node", node.node_name));
        },
        Code::CpuCount => |world| {
            world.destination.machine.possible_cpus.iter_mut().flatten().for_each(|(_, cpu)| cpu.is_present = false);
        },
        Code::CpuTopology => |world| world.destination.machine.possible_cpus.iter_mut().for_each(BTreeMap::clear),
        Code::CpuFeatures => {
            |world| world.source.cpu_mut().features.iter_mut().flatten().for_each(|(_, bits)| *bits = 0x1f)
        }
        Code::CpuFeaturesExtra => {
            |world| world.destination.cpu_mut().features.iter_mut().flatten().for_each(|(_, bits)| *bits = 0x1f)
        }
        Code::CpuModel => |world| drop(world.destination.cpu_mut().identity.insert("vendor", "2".to_owned())),
        Code::CpuName => |world| drop(world.destination.cpu_mut().identity.insert("model-id", "2".to_owned())),
        Code::DestinationAutostart => |world| world.destination.process.starts_stopped = Some(false),
        Code::DestinationHoldsData => |world| world.fill(false, EmptyImageState::Data(7)),
        Code::DestinationState => |world| world.destination.run = RunState::Running,
        Code::DestinationUsed => |world| world.destination.migration.status = Some(MigrationStatus::Failed),
        Code::DeviceDiffers => |world| {
            world.destination.machine.devices.named.values_mut().for_each(|device| device.kind = "e1000".to_owned());
        },
        Code::DeviceExtra => |world| world.source.machine.devices.named.clear(),
        Code::DeviceMissing => |world| world.destination.machine.devices.named.clear(),
        Code::DeviceProperty | Code::DeviceSetting | Code::DeviceState => {
            |world| world.destination.machine.device_tree = Some(device_tree("64"))
        }
        Code::MachineProperty => |world| world.destination.machine.properties.values_mut().for_each(String::clear),
        Code::DeviceRenamed => |world| {
            let devices = &mut world.destination.machine.devices.named;
            let device = devices.remove("net0").expect("a device");
            devices.insert("eth0".to_owned(), device);
        },
        Code::DiskAmbiguous => |world| {
            let twin = world.destination.devices[0].clone();
            world.destination.devices.push(twin);
        },
        Code::DiskExtra => |world| {
            world.second_disk();
            world.source.unplug("second");
        },
        Code::DiskHasJob => |world| {
            world.source.nodes.push(node("filter", "mirror_top", "", false, &[("file", "top")]));
            world.source.devices[0].inserted.as_mut().expect("an image").node_name = "filter".to_owned();
            world.source.wire();
        },
        Code::DiskLeftOut => |world| {
            world.second_disk();
            world.settings.selection.disks = vec![("disk0".to_owned(), None)];
        },
        Code::DiskLocked => |world| world.fill(true, EmptyImageState::Locked("Failed to get a lock".to_owned())),
        Code::DiskMissing => |world| world.destination.unplug("top"),
        Code::DiskNotShared => |world| world.settings.selection.storage = StorageMode::None,
        Code::DiskNotSparse => |world| {
            world.destination.features.mirror_target_is_zero = false;
            world.destination.change("top", |node| node.drv = "raw".to_owned());
        },
        Code::DiskNotWritable => |world| world.destination.file_mut("/d/top").writable = false,
        Code::DiskPlaceDiffers => |world| {
            let place = |lun| Ok(DiskPlace::at_lun(lun));
            let qdev = "/machine/peripheral/disk0/virtio-backend";
            for (facts, lun) in [(&mut world.source, 0), (&mut world.destination, 1)] {
                facts.places.insert(qdev.to_owned(), place(lun));
            }
        },
        Code::DiskPlaceUnknown => |world| world.destination.places.clear(),
        Code::DiskReadOnly => |world| world.destination.change("top", |node| node.ro = true),
        Code::DiskSettingsDiffer => |world| world.source.change("top", |node| node.settings.limits.iops = 55),
        Code::DiskShared => |world| world.destination.file_mut("/d/top").id = (1, 100),
        Code::DiskSharedUnproved => |world| {
            world.settings.selection.storage = StorageMode::None;
            world.destination.files.clear();
        },
        Code::DiskSize => |world| world.destination.change("top", |node| node.image.virtual_size += 512),
        Code::DiskUnencrypted => |world| world.source.change("top", |node| node.image.encrypted = true),
        Code::DiskUnknown => |world| world.settings.selection.skip = vec!["none-of-this-name".to_owned()],
        Code::GuestSuspended => |world| {
            world.source.run = RunState::Suspended;
            (world.destination.machine.version.major, world.destination.machine.version.minor) = (8, 2);
        },
        Code::PostcopyUnable => |world| {
            world.settings.policy = "ram = ['postcopy']".parse().expect("a policy");
            world.destination.process.catches_faults = Some(false);
        },
        Code::ExportOpen => |world| world.destination.exports.push("theirs".to_owned()),
        Code::ImagePlainer => |world| {
            let qcow2 = |extended_l2: bool| {
                let specific = json!({ "type": "qcow2", "data": { "compat": "1.1", "extended-l2": extended_l2 } });
                serde_json::from_value(specific).expect("of qcow2")
            };
            world.source.change("top", |node| node.image.format_specific = qcow2(true));
            world.destination.change("top", |node| node.image.format_specific = qcow2(false));
        },
        Code::ImageNameLost => |world| images::lose_name(&mut world.source),
        Code::ImageReplaced => |world| images::replace(&mut world.source),
        Code::ReopenDenied => |world| images::deny(&mut world.source),
        Code::JobRunning => |world| world.source.jobs.push("commit0".to_owned()),
        Code::Leftover => |world| world.source.leftovers.push(Leftover::Job("qferry-mirror-0".to_owned())),
        Code::Journal => |world| world.journal = Some("/j exists already".to_owned()),
        Code::JournalLeft => |world| world.known_runs.push(known_run(false)),
        Code::LeftoverView => |world| world.source.leftovers.push(Leftover::ReadExport("qferry-view-0".to_owned())),
        Code::MachineType => |world| world.destination.machine.kind = Some("pc-q35-10.0-machine".to_owned()),
        Code::MediumExtra => |world| {
            let is_cd = |device: &&mut BlockDevice| device.qdev.as_ref().is_some_and(|qdev| qdev.contains("/cd/"));
            world.source.devices.iter_mut().find(is_cd).expect("a CD drive").inserted = None;
        },
        Code::MediumMissing => |world| world.destination.unplug("cd"),
        Code::MediumSize => |world| world.destination.change("cd", |node| node.image.virtual_size += 512),
        Code::MigrationBlocked => |world| world.source.migration.blocked_reasons.push("a device".to_owned()),
        Code::MigrationUnderWay => |world| world.source.migration.status = Some(MigrationStatus::Active),
        Code::NoOutOfBand => |world| world.source.out_of_band = false,
        Code::NoSpace => |world| world.destination.file_mut("/d/top").file_system.free = 0,
        Code::NotCompared => |world| world.destination.machine.ram_blocks = None,
        Code::NotMeasured => |world| {
            let missing = vec![MissingMeasurement { what: "bandwidth", why: "no answer".to_owned() }];
            world.measured = Some(GuestMeasurements { missing, ..GuestMeasurements::default() });
        },
        Code::OpenPort => |world| world.settings.nbd_address = Some(tcp("127.0.0.1")),
        Code::OverlayIsBacking => |world| world.destination.file_mut("/d/top").id = (1, 201),
        Code::OverlayIsLive => |world| {
            world.second_disk();
            world.destination.file_mut("/d/top").id = (1, 110);
        },
        Code::ImageSpent => |world| world.fill(true, EmptyImageState::Spent(7)),
        Code::OverlayNotEmpty => |world| world.fill(true, EmptyImageState::Data(7)),
        Code::OverlayTaken => |world| {
            world.second_disk();
            world.destination.file_mut("/d/second").id = (1, 200);
        },
        Code::OverlayUnproved => |world| world.fill(true, EmptyImageState::Unknown("no answer".to_owned())),
        Code::OverlayVersion => |world| {
            world.destination.change("top", |node| {
                let specific = json!({ "type": "qcow2", "data": { "compat": "0.10" } });
                node.image.format_specific = serde_json::from_value(specific).expect("of qcow2");
            });
        },
        Code::Plaintext => |world| world.settings.nbd_address = Some(tcp("192.0.2.1")),
        Code::PortTaken => |world| world.ports.push((Setting::NbdAddress, tcp("127.0.0.1"), PortState::Taken)),
        Code::PortUnreachable => |world| {
            world.source.process.shares_network = true;
            world.ports.push((Setting::NbdAddress, tcp("127.0.0.1"), PortState::Unreachable("no route".to_owned())));
        },
        Code::QemuInUse => |world| world.known_runs.push(known_run(true)),
        Code::QemuLacks => |world| world.source.features.missing.push("drive-mirror".to_owned()),
        Code::QemuOlder => |world| world.destination.machine.version.major = 9,
        Code::QemuOlderMicro => |world| world.destination.machine.version.micro = 12,
        Code::RamBlocks => |world| {
            world.destination.machine.ram_blocks.iter_mut().flatten().for_each(|(_, block)| block.total *= 2);
        },
        Code::RamShared => |world| {
            for side in [&mut world.source, &mut world.destination] {
                side.process.shared_memory.insert(("00:1a".to_owned(), 7), "/dev/shm/ram".to_owned());
            }
        },
        Code::RamSize => |world| world.destination.base_ram *= 2,
        Code::SameProcess => |world| world.destination.pid = world.source.pid,
        Code::GuestIoError => |world| world.source.run = RunState::IoError,
        Code::SnapshotsLost => |world| {
            world.source.change("top", |node| {
                let snapshot = json!({ "name": "keepme", "vm-state-size": 0 });
                node.image.snapshots = vec![serde_json::from_value(snapshot).expect("a snapshot")];
            });
        },
        Code::SocketForbidden => |world| world.destination.process.uses_private_files = Some(false),
        Code::SourceState => |world| world.source.run = RunState::PostMigrate,
        Code::VirtqueueSize => |world| {
            let rings = world.destination.machine.virtio.iter_mut().flat_map(|device| &mut device.rings);
            rings.for_each(|ring| ring.room = 64);
        },
        Code::BackingUnreadable
        | Code::CommandLineUnknown
        | Code::DataFile
        | Code::DirectoryMissing
        | Code::FormatUnsupported
        | Code::ImageEncrypted
        | Code::ImageExists
        | Code::ImageSame
        | Code::ImageUpgraded
        | Code::InheritedFiles
        | Code::LayerRemote
        | Code::NotOnCommandLine
        | Code::PathUnknown
        | Code::PlaceTaken
        | Code::PlaceUnknown
        | Code::ProtocolUnsupported
        | Code::SameHost
        | Code::SecretHidden
        | Code::Other(_) => return None,
    })
}

#[test]
fn nothing_is_found_between_healthy_sides() {
    assert_eq!(CheckedWorld::healthy().findings(), []);
}

#[test]
fn each_code_is_found_by_its_case_and_as_grave_as_it_says() {
    for code in FindingCode::ALL {
        let Some(change) = case(code) else { continue };
        let mut world = CheckedWorld::healthy();
        change(&mut world);
        let findings = world.findings();
        let found = findings.iter().find(|finding| finding.code == *code);
        let found = found.unwrap_or_else(|| panic!("{code} is not among {findings:#?}"));
        assert!(code.severities().contains(&found.severity), "{found:?}");
        assert!(!found.message.is_empty() && !found.subject.is_empty(), "{found:?}");
    }
}

#[test]
fn what_may_be_forced_is_a_warning_then() {
    for code in FindingCode::ALL.iter().filter(|code| code.is_forcible()) {
        let mut world = CheckedWorld::healthy();
        world.settings.force = [code.to_string()].into();
        case(code).expect("a case of the preflight")(&mut world);
        let findings = world.findings();
        assert!(
            findings.iter().all(|finding| finding.code != *code || finding.severity > crate::codes::Severity::Blocker)
        );
    }
}
