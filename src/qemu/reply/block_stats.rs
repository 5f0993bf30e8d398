//! What QEMU counts of the guest's requests to its disks.

use serde::Deserialize;

/// An element of `query-blockstats`: a device of the guest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockStats {
    /// The name given by `-drive id=`, or empty.
    #[serde(default)]
    pub device: String,
    /// The device's id or its path in QOM.
    pub qdev: Option<String>,
    /// The name of the node in it.
    pub node_name: Option<String>,
    /// What the guest did since it was started.
    pub stats: WriteStats,
}

/// The guest's writes to a device, as far as they went well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct WriteStats {
    /// Bytes written.
    pub wr_bytes: u64,
    /// Writes.
    pub wr_operations: u64,
    /// How long they took, all together.
    pub wr_total_time_ns: u64,
}
