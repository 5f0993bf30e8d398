//! QEMU's counters of the guest's requests to its disks.

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
    /// The name of the node of its medium.
    pub node_name: Option<String>,
    /// The guest's requests since QEMU was started.
    pub stats: WriteStats,
}

/// How many requests took how long. A bin counts the times below its boundary that are in no bin before it; the last
/// bin, which has no boundary, counts the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct LatencyHistogram {
    /// The boundaries in nanoseconds.
    pub boundaries: Vec<u64>,
    /// The counts, one more than there are boundaries.
    pub bins: Vec<u64>,
}

/// The guest's successful requests to a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct WriteStats {
    /// Read requests.
    #[serde(default)]
    pub rd_operations: u64,
    /// Bytes written.
    pub wr_bytes: u64,
    /// Write requests.
    pub wr_operations: u64,
    /// Nanoseconds that all these requests took together.
    pub wr_total_time_ns: u64,
    /// Flush requests.
    #[serde(default)]
    pub flush_operations: u64,
    /// Nanoseconds that all these requests took together.
    #[serde(default)]
    pub flush_total_time_ns: u64,
    /// The histograms of reads, writes, appends to zones and flushes, where somebody has set them.
    pub rd_latency_histogram: Option<LatencyHistogram>,
    /// See there.
    pub wr_latency_histogram: Option<LatencyHistogram>,
    /// See there.
    pub zap_latency_histogram: Option<LatencyHistogram>,
    /// See there.
    pub flush_latency_histogram: Option<LatencyHistogram>,
}

impl WriteStats {
    /// Whether the guest has made any request.
    pub fn has_requests(&self) -> bool {
        self.rd_operations > 0 || self.wr_operations > 0 || self.flush_operations > 0
    }
}
