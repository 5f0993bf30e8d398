//! Replies about the machine that QEMU emulates.

use super::{list::TolerantList, open_enum::open_enum};
use crate::qmp::QemuVersion;
use serde::Deserialize;
use std::collections::BTreeMap;

open_enum! {
    /// QEMU's run state; the states that the engine tells apart.
    RunState {
        /// The guest runs.
        Running = "running",
        /// The guest was stopped by a command.
        Paused = "paused",
        /// QEMU waits for a migration to come in.
        InMigrate = "inmigrate",
        /// The guest was stopped by a migration that is not over.
        FinishMigrate = "finish-migrate",
        /// The guest was stopped by a migration that completed.
        PostMigrate = "postmigrate",
        /// QEMU was started with `-S` and has never run the guest.
        Prelaunch = "prelaunch",
        /// The guest powered off, in a QEMU started with `-no-shutdown`.
        Shutdown = "shutdown",
        /// The guest reported a panic.
        GuestPanicked = "guest-panicked",
        /// QEMU stopped the guest at a disk error, as `werror=stop` asks for.
        IoError = "io-error",
        /// A watchdog device stopped the guest.
        Watchdog = "watchdog",
        /// The guest suspended itself (ACPI S3).
        Suspended = "suspended",
        /// QEMU stopped the guest at an error inside QEMU or KVM.
        InternalError = "internal-error",
    }
}

impl RunState {
    /// Whether QEMU lets the guest run, so that `stop` stops it. A guest that has suspended itself is `suspended` again
    /// after `cont`.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Running | Self::Suspended)
    }
}

/// `query-status`.
#[derive(Debug, Clone, Deserialize)]
pub struct StatusInfo {
    /// The run state.
    pub status: RunState,
}

/// `query-version`.
#[derive(Debug, Clone, Deserialize)]
pub struct VersionInfo {
    /// The version that QEMU itself claims; a distribution's patches do not show in it.
    pub qemu: QemuVersion,
    /// The package and its version, as the distribution names them; empty where it does not.
    #[serde(default)]
    pub package: String,
}

/// An element of `trace-event-get-state`: a trace event.
#[derive(Debug, Clone, Deserialize)]
pub struct TraceEventInfo {
    /// The name of the event.
    pub name: String,
    /// `enabled`, `disabled`, or `unavailable` where the build left it out.
    pub state: String,
}

/// An element of `x-query-virtio`: a virtio device.
#[derive(Debug, Clone, Deserialize)]
pub struct VirtioDeviceInfo {
    /// The kind, such as `virtio-blk`.
    pub name: String,
    /// The path in QOM of the virtio part of the device.
    pub path: String,
}

/// `x-query-virtio-queue-status`: a virtqueue. (`x-query-virtio-status` must never be sent: 11.1.3 aborts at it.)
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VirtqueueStatus {
    /// The entries that the ring has now.
    pub vring_num: u64,
    /// The entries that the device has made room for, which the ring has after a reset.
    pub vring_num_default: u64,
}

/// `query-memory-size-summary`. Sizes in bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemorySize {
    /// The memory that the guest was started with.
    pub base_memory: u64,
    /// The memory that was plugged in later; absent where the machine has no memory hotplug.
    pub plugged_memory: Option<u64>,
}

/// An element of `query-cpus-fast`: a virtual CPU.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuInfo {
    /// The CPU's path in QOM.
    pub qom_path: String,
    /// The id that the CPU's thread has on QEMU's host.
    pub thread_id: Option<i64>,
}

/// An element of `query-hotpluggable-cpus`: a place for a virtual CPU.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HotpluggableCpu {
    /// The place in the machine's topology.
    pub props: BTreeMap<String, u64>,
    /// The number of virtual CPUs of the device in this place.
    pub vcpus_count: u64,
    /// The CPU's path in QOM, if there is one in this place.
    pub qom_path: Option<String>,
}

/// An element of `qom-list`: a property, or a child.
#[derive(Debug, Clone, Deserialize)]
pub struct QomProperty {
    /// The property's name.
    pub name: String,
    /// The property's type; `child<TYPE>` for a child.
    #[serde(rename = "type")]
    pub kind: String,
}

impl QomProperty {
    /// The type of a child; none of another property.
    pub fn child(&self) -> Option<&str> {
        self.kind.strip_prefix("child<")?.strip_suffix('>')
    }
}

/// An element of a CPU's property `feature-words` (x86): the bits that one register of CPUID shows the guest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FeatureWord {
    /// EAX, the leaf.
    pub cpuid_input_eax: u64,
    /// ECX, where the leaf has subleaves.
    pub cpuid_input_ecx: Option<u64>,
    /// The register that has the bits.
    pub cpuid_register: String,
    /// The bits.
    pub features: u64,
}

/// `x-query-ramblock` and others that answer with text for people.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HumanReadable {
    /// The text.
    pub human_readable_text: String,
}

/// An element of `query-pci`: a bus at the root.
///
/// QEMU lists the devices behind a bridge only once the guest's firmware has numbered the buses, which it has not on a
/// QEMU that waits for a guest.
#[derive(Debug, Clone, Deserialize)]
pub struct PciBus {
    /// The functions on the bus.
    pub devices: TolerantList<PciFunction>,
}

/// A function of a PCI device.
#[derive(Debug, Clone, Deserialize)]
pub struct PciFunction {
    /// The number of the bus.
    pub bus: u64,
    /// The device's slot.
    pub slot: u64,
    /// The function's number in the slot.
    pub function: u64,
    /// Vendor and device.
    pub id: PciId,
    /// The id of the device, empty where it was given none.
    #[serde(default)]
    pub qdev_id: String,
}

/// The ids by which a PCI function names its maker and its kind.
#[derive(Debug, Clone, Deserialize)]
pub struct PciId {
    /// The vendor.
    pub vendor: u64,
    /// The device.
    pub device: u64,
}
