//! The answers of both QEMUs before anything is changed.

use crate::{
    qemu::{
        Features, Process, ProcessError,
        reply::{BlockDevice, BlockGraph, BlockNode, MigrationInfo, MigrationStatus, RunState},
    },
    qmp::QemuVersion,
    storage::{
        mirror::leftover::{self, Leftover},
        model::{
            chain::{BackingChain, Layer, NodeGraph},
            layout::Disk,
        },
    },
};
use disk_place::DiskPlaces;
use files::FileFacts;
use machine::MachineFacts;
use process::ProcessFacts;
use qapi::qmp;
use reopening::ReopenFacts;
use std::{collections::BTreeMap, time::Duration};
use throttle_groups::ThrottleGroups;
use tokio::{time::sleep, try_join};

pub mod cpu;
pub mod device_tree;
pub mod devices;
pub mod disk_place;
pub mod files;
pub mod machine;
pub mod ports;
pub mod possible_cpus;
pub mod process;
mod qom;
pub mod qom_devices;
pub mod ram_blocks;
pub mod reopening;
pub mod shared_memory;
pub mod throttle_groups;
pub mod virtqueues;

/// The time in which QEMU puts away the connection of a migration that has ended, and the looks in it.
const PUT_AWAY: Duration = Duration::from_secs(2);
const YANK_LOOKS: u32 = 20;

/// The answers of one side.
#[derive(Debug, Clone)]
pub struct SideFacts {
    /// The side's name with its address.
    pub name: String,
    /// The run state of its guest.
    pub run: RunState,
    /// The state of its migration, if it ever had one.
    pub migration: MigrationInfo,
    /// Whether a migration that has ended by QEMU's word still connects. QEMU 10.0 says `cancelled` where the
    /// connection was not made yet, and the guest leaves over it once it is, if another `migrate` was refused.
    pub connects_on: bool,
    /// The block devices with their media.
    pub devices: Vec<BlockDevice>,
    /// The block nodes.
    pub nodes: Vec<BlockNode>,
    /// The edges between the block nodes.
    pub graph: NodeGraph,
    /// The place of each device with a medium, or the reason why the place is not known.
    pub places: DiskPlaces,
    /// The limits of the groups of the throttle nodes.
    pub throttle_groups: ThrottleGroups,
    /// The ids of all jobs.
    pub jobs: Vec<String>,
    /// The ids of all exports.
    pub exports: Vec<String>,
    /// Jobs, nodes and exports that an earlier run of qferry left.
    pub leftovers: Vec<Leftover>,
    /// The abilities of this build of QEMU.
    pub features: Features,
    /// Whether commands can be sent to the monitor out of band.
    pub out_of_band: bool,
    /// The process id, where the socket gives it.
    pub pid: Option<u32>,
    /// What this host tells of the process.
    pub process: ProcessFacts,
    /// The files of the block nodes, by QEMU's name for each, where they are files of this host.
    pub files: BTreeMap<String, FileFacts>,
    /// What is in the way of opening images anew.
    pub reopening: ReopenFacts,
    /// The size of the guest's RAM, bytes, with what was plugged in.
    pub ram: u64,
    /// The size of the RAM that the guest was started with, bytes.
    pub base_ram: u64,
    /// The emulated machine.
    pub machine: MachineFacts,
}

/// Asks both sides.
///
/// # Errors
/// QEMU refuses a query, or does not answer.
pub async fn gather_both(source: &Process, destination: &Process) -> Result<(SideFacts, SideFacts), ProcessError> {
    // boxed: the future of a whole migration would otherwise be as large as all these queries
    let (mut source_facts, mut destination_facts) = try_join!(Box::pin(gather(source)), Box::pin(gather(destination)))?;
    Box::pin(machine::name_lacking(source, destination, &source_facts.machine, &mut destination_facts.machine)).await?;
    // two processes of one build have the same room for rings
    if build(&source_facts.machine) != build(&destination_facts.machine) {
        let asked = async { try_join!(virtqueues::gather(source), virtqueues::gather(destination)) };
        (source_facts.machine.virtio, destination_facts.machine.virtio) = Box::pin(asked).await?;
    }
    Ok((source_facts, destination_facts))
}

/// The build of QEMU that a machine runs in.
fn build(machine: &MachineFacts) -> (QemuVersion, &str) {
    (machine.version, &machine.package)
}

/// Asks one side.
///
/// # Errors
/// QEMU refuses a query, or does not answer.
pub async fn gather(process: &Process) -> Result<SideFacts, ProcessError> {
    let (status, migration, blocks, jobs, exports, memory, machine) = try_join!(
        process.ask(&qmp::query_status {}),
        process.ask(&qmp::query_migrate {}),
        Box::pin(blocks(process)),
        process.ask(&qmp::query_jobs {}),
        process.ask(&qmp::query_block_exports {}),
        process.ask(&qmp::query_memory_size_summary {}),
        Box::pin(machine::gather(process)),
    )?;
    let (jobs, exports) = (jobs.0, exports.0);
    let connects_on = connects_on(process, &migration).await?;
    let BlockFacts { devices, nodes, graph, files, reopening, places, throttle_groups } = blocks;
    let leftovers = leftover::list(&jobs, &nodes, &exports);
    Ok(SideFacts {
        name: process.name().to_string(),
        run: status.status,
        migration,
        connects_on,
        leftovers,
        files,
        reopening,
        devices,
        graph,
        nodes,
        places,
        throttle_groups,
        jobs: jobs.into_iter().map(|job| job.id).collect(),
        exports: exports.into_iter().map(|export| export.id).collect(),
        features: process.features().clone(),
        out_of_band: process.has_out_of_band(),
        pid: process.peer().map(|peer| peer.pid()),
        process: process::look(process),
        base_ram: memory.base_memory,
        ram: memory.base_memory.saturating_add(memory.plugged_memory.unwrap_or(0)),
        machine,
    })
}

/// The same facts with the present answers about all that a client of QEMU can change while a guest is there: devices,
/// media and images, the guest's run state, migrations and exports.
///
/// # Errors
/// QEMU refuses a query, or does not answer.
pub async fn look_again(process: &Process, before: &SideFacts) -> Result<SideFacts, ProcessError> {
    let (status, migration, blocks, exports, plugged) = try_join!(
        process.ask(&qmp::query_status {}),
        process.ask(&qmp::query_migrate {}),
        Box::pin(blocks(process)),
        process.ask(&qmp::query_block_exports {}),
        Box::pin(machine::devices(process)),
    )?;
    let BlockFacts { devices, nodes, graph, files, reopening, places, throttle_groups } = blocks;
    let exports = exports.0.into_iter().map(|export| export.id).collect();
    let mut known = before.clone();
    known.machine.devices = plugged;
    let connects_on = connects_on(process, &migration).await?;
    Ok(SideFacts {
        run: status.status,
        migration,
        connects_on,
        devices,
        nodes,
        graph,
        files,
        reopening,
        places,
        throttle_groups,
        exports,
        ..known
    })
}

/// Whether QEMU still has the connection of a migration that was given up. The connection of one that has just ended is
/// put away in a moment.
async fn connects_on(process: &Process, migration: &MigrationInfo) -> Result<bool, ProcessError> {
    if !matches!(migration.status, Some(MigrationStatus::Cancelled | MigrationStatus::Failed)) {
        return Ok(false);
    }
    for _ in 0..YANK_LOOKS {
        let connected = process.ask(&qmp::query_yank {}).await?;
        if !connected.iter().any(|instance| instance["type"] == "migration") {
            return Ok(false);
        }
        sleep(PUT_AWAY / YANK_LOOKS).await;
    }
    Ok(true)
}

/// The answers of one side about its disks.
struct BlockFacts {
    devices: Vec<BlockDevice>,
    nodes: Vec<BlockNode>,
    graph: NodeGraph,
    files: BTreeMap<String, FileFacts>,
    reopening: ReopenFacts,
    places: DiskPlaces,
    throttle_groups: ThrottleGroups,
}

async fn blocks(process: &Process) -> Result<BlockFacts, ProcessError> {
    let graph = async {
        match process.ask(&qmp::x_debug_query_block_graph {}).await {
            // a later QEMU may drop this debugging command: the nodes themselves then tell part of the graph
            Err(error) if error.is_refusal() => Ok(BlockGraph::default()),
            answer => answer,
        }
    };
    let (devices, nodes, graph) = try_join!(
        process.ask(&qmp::query_block {}),
        process.ask(&qmp::query_named_block_nodes { flat: Some(true) }),
        graph,
    )?;
    let (devices, nodes) = (devices.0, nodes.0);
    // only the files of a process of this host can be seen
    let looked = process.peer().map(|peer| {
        let open = files::open_files(peer.pid());
        (files::look_up(peer.pid(), &nodes, &open), reopening::look(peer.pid(), &nodes, &open))
    });
    let (files, reopening) = looked.unwrap_or_default();
    let (places, throttle_groups) =
        try_join!(qom_devices::places(process, &devices), throttle_groups::gather(process, &nodes))?;
    Ok(BlockFacts { devices, graph: NodeGraph::new(&nodes, &graph), nodes, files, reopening, places, throttle_groups })
}

impl SideFacts {
    /// The chain below a device's node.
    pub fn chain(&self, node: &str) -> BackingChain {
        BackingChain::read(node, &self.nodes, &self.graph)
    }

    /// The file of a layer, if it is a file of this host.
    pub fn file(&self, layer: &Layer) -> Option<&FileFacts> {
        self.files.get(&layer.protocol.file)
    }

    /// The files of this host that QEMU flushes when the guest stops. Each comes once.
    pub fn flushed_files(&self) -> Vec<&FileFacts> {
        files::flushed(&self.nodes, &self.files)
    }

    /// Every disk with a medium.
    pub fn disks(&self) -> Vec<Disk> {
        self.devices.iter().filter_map(|device| Disk::new(device, |node| self.chain(node))).collect()
    }
}
