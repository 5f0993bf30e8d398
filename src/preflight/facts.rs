//! What both sides say before anything is changed.

use crate::{
    qemu::{
        Features, Process, ProcessError,
        reply::{BlockDevice, BlockNode, Migration, RunState},
    },
    storage::leftover::{self, Leftover},
};
use machine::Machine;
use qapi::qmp;
use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt};
use tokio::try_join;

pub mod cpu;
pub mod devices;
pub mod machine;
pub mod ram_blocks;

/// What one side says.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Which side, and its address.
    pub name: String,
    /// Its run state.
    pub run: RunState,
    /// Its migration, if it ever had one.
    pub migration: Migration,
    /// Its devices with what is in them.
    pub devices: Vec<BlockDevice>,
    /// The ids of its jobs.
    pub jobs: Vec<String>,
    /// The ids of its exports.
    pub exports: Vec<String>,
    /// What an earlier try of ours left.
    pub leftovers: Vec<Leftover>,
    /// What its build can do.
    pub features: Features,
    /// Its process, where the socket told.
    pub pid: Option<u32>,
    /// Device and inode of the images by node name, where they are files of this host.
    pub files: BTreeMap<String, (u64, u64)>,
    /// The size of its RAM, bytes.
    pub ram: u64,
    /// The machine it emulates.
    pub machine: Machine,
}

/// Asks both sides.
///
/// # Errors
/// What QEMU says, or no answer.
pub async fn gather_both(source: &Process, destination: &Process) -> Result<(Facts, Facts), ProcessError> {
    // boxed, or a migration would carry the room for all these questions to its end
    let (here, mut there) = try_join!(Box::pin(gather(source)), Box::pin(gather(destination)))?;
    Box::pin(machine::name_lacking(source, destination, &here.machine, &mut there.machine)).await?;
    Ok((here, there))
}

/// Asks one side.
///
/// # Errors
/// What QEMU says, or no answer.
async fn gather(process: &Process) -> Result<Facts, ProcessError> {
    let (status, migration, devices, nodes, jobs, exports, memory, machine) = try_join!(
        process.ask(&qmp::query_status {}),
        process.ask(&qmp::query_migrate {}),
        process.ask(&qmp::query_block {}),
        process.ask(&qmp::query_named_block_nodes { flat: Some(true) }),
        process.ask(&qmp::query_jobs {}),
        process.ask(&qmp::query_block_exports {}),
        process.ask(&qmp::query_memory_size_summary {}),
        Box::pin(machine::gather(process)),
    )?;
    let (devices, nodes, jobs, exports) = (devices.0, nodes.0, jobs.0, exports.0);
    let leftovers = leftover::list(&jobs, &nodes, &exports);
    let inserted = devices.iter().filter_map(|device| device.inserted.as_ref());
    // only a process of this host opens the files that we see under the same names
    let files = process.peer().map(|_| inserted.filter_map(identity).collect()).unwrap_or_default();
    Ok(Facts {
        name: process.name().to_string(),
        run: status.status,
        migration,
        leftovers,
        files,
        devices,
        jobs: jobs.into_iter().map(|job| job.id).collect(),
        exports: exports.into_iter().map(|export| export.id).collect(),
        features: process.features().clone(),
        pid: process.peer().map(|peer| peer.pid()),
        ram: memory.base_memory + memory.plugged_memory.unwrap_or(0),
        machine,
    })
}

fn identity(node: &BlockNode) -> Option<(String, (u64, u64))> {
    let metadata = fs::metadata(&node.file).ok()?;
    Some((node.node_name.clone(), (metadata.dev(), metadata.ino())))
}
