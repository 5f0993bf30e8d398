//! The commands that only ask, each with the shape of its reply.

use super::{
    block::{BlockDevice, BlockExport, BlockGraph, BlockNode},
    block_stats::BlockStats,
    job::{BlockJobInfo, JobInfo},
    list::TolerantList,
    machine::{
        CpuInfo, HotpluggableCpu, HumanReadable, MemorySize, PciBus, QomProperty, StatusInfo, TraceEventInfo,
        VersionInfo, VirtioDeviceInfo, VirtqueueStatus,
    },
    migration::{DirtyRate, MigrationCapabilityStatus, MigrationInfo},
};
use qapi::qmp;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A command that asks and changes nothing.
pub trait Query: qapi::Command {
    /// The shape of its reply, in which only the fields that the engine uses must be there.
    type Returned: DeserializeOwned;
}

macro_rules! queries {
    ($($command:path => $returned:ty,)*) => {
        $(impl Query for $command { type Returned = $returned; })*

        /// The names of all commands that are a [`Query`].
        pub const QUERIES: &[&str] = &[$(<$command as qapi::Command>::NAME,)*];
    };
}

queries! {
    qmp::query_status => StatusInfo,
    qmp::query_migrate => MigrationInfo,
    qmp::query_migrate_capabilities => TolerantList<MigrationCapabilityStatus>,
    qmp::query_migrate_parameters => Map<String, Value>,
    qmp::query_block => TolerantList<BlockDevice>,
    qmp::query_named_block_nodes => TolerantList<BlockNode>,
    qmp::query_block_jobs => TolerantList<BlockJobInfo>,
    qmp::query_jobs => TolerantList<JobInfo>,
    qmp::query_blockstats => TolerantList<BlockStats>,
    qmp::query_block_exports => TolerantList<BlockExport>,
    qmp::query_memory_size_summary => MemorySize,
    qmp::query_dirty_rate => DirtyRate,
    qmp::x_debug_query_block_graph => BlockGraph,
    qmp::query_version => VersionInfo,
    qmp::query_cpus_fast => TolerantList<CpuInfo>,
    qmp::query_pci => TolerantList<PciBus>,
    qmp::x_query_ramblock => HumanReadable,
    qmp::qom_list => TolerantList<QomProperty>,
    qmp::qom_get => Value,
}

/// Asked only where a machine has places for virtual CPUs.
impl Query for qmp::query_hotpluggable_cpus {
    type Returned = TolerantList<HotpluggableCpu>;
}

/// Only its `info` commands ask and change nothing. QEMU has no other command that tells the properties of all devices
/// at once.
impl Query for qmp::human_monitor_command {
    type Returned = String;
}

/// Asked only where a USB device has a port that QEMU chose, which the machines of the recordings have not.
impl Query for qmp::x_query_usb {
    type Returned = HumanReadable;
}

/// Asked only where the log of a QEMU can be read, as those of the recordings cannot.
impl Query for qmp::trace_event_get_state {
    type Returned = TolerantList<TraceEventInfo>;
}

/// Asked only of two different builds, which those of a recording are not.
impl Query for qmp::x_query_virtio {
    type Returned = TolerantList<VirtioDeviceInfo>;
}

/// As the one before.
impl Query for qmp::x_query_virtio_queue_status {
    type Returned = VirtqueueStatus;
}

/// Asked only of a QEMU whose last migration was given up, which no recording begins with. Later versions of QEMU may
/// add kinds of instances, so the reply has no shape.
impl Query for qmp::query_yank {
    type Returned = Vec<Value>;
}
