//! Samples: the counters of RAM and of every mirror at one moment.
//!
//! Pure.

use serde::{Deserialize, Serialize};

/// The counters of a migration at one moment. Sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MigrationSample {
    /// Milliseconds from the begin of the migration to QEMU's answers, in whole microseconds.
    pub at_ms: f64,
    /// Milliseconds, in whole microseconds, that `query-migrate` took, or `query-block-jobs` before RAM is sent.
    pub round_trip_ms: f64,
    /// The guest stands still by its owner's wish. RAM of such a guest is sent in one pass, whatever is held against it
    /// by a downtime limit: no page is found dirty again.
    #[serde(default)]
    pub stands: bool,
    /// RAM, once it is being sent.
    pub ram: Option<RamSample>,
    /// Every mirror.
    pub mirrors: Vec<MirrorSample>,
}

/// RAM, from `query-migrate`. Sizes are bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RamSample {
    /// Bytes sent over the wire so far.
    pub transferred: u64,
    /// Memory that was processed so far: zero pages count in full, and a page that was sent twice counts twice.
    pub processed: u64,
    /// Memory yet to send, as QEMU last counted it.
    pub remaining: u64,
    /// The guest's memory.
    pub total: u64,
    /// The guest's dirty rate, bytes per second, as `calc-dirty-rate` has measured it last beside the first pass.
    pub measured_dirty_rate: Option<u64>,
    /// The number of those measurements so far.
    #[serde(default)]
    pub measurements: u64,
    /// Per cent by which the vCPUs are throttled.
    pub throttle_pct: u64,
    /// `dirty-sync-count`: a sync at the end of each pass, and more where the rest seems to fit into QEMU's limit.
    pub syncs: u64,
    /// Postcopy runs: the destination fetches pages on demand, and the switchover is over.
    pub postcopy: bool,
}

/// One mirror, from `query-block-jobs` and `query-blockstats`. Sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MirrorSample {
    /// The disk's name on the source.
    pub disk: String,
    /// Bytes to copy in all; the guest's writes add to it.
    pub len: u64,
    /// Bytes copied so far.
    pub offset: u64,
    /// The mirror has caught up once.
    pub ready: bool,
    /// Whether every write reaches the destination before the guest sees it complete, in write-blocking mode. `None`
    /// where QEMU does not report that, or the mirror copies in the background.
    pub actively_synced: Option<bool>,
    /// Whether the job is paused: QEMU does that for moments, and a client of QEMU for as long as it likes.
    #[serde(default)]
    pub paused: bool,
    /// Bytes that the guest has written to the disk so far.
    pub written: u64,
    /// The number of those writes.
    pub writes: u64,
    /// The time of those writes together, nanoseconds.
    pub write_ns: u64,
    /// The number of the guest's flushes of the disk so far.
    #[serde(default)]
    pub flushes: u64,
    /// The time of those flushes together, nanoseconds.
    #[serde(default)]
    pub flush_ns: u64,
}
