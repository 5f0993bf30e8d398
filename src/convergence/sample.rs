//! What was seen at one moment, of RAM and of every mirror.
//!
//! Pure.

use serde::{Deserialize, Serialize};

/// What was seen at one moment. Sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MigrationSample {
    /// Milliseconds since the migration began, when the answers were there.
    pub at_ms: f64,
    /// Milliseconds that the question for RAM, or else the one for the jobs, took to be answered.
    pub round_trip_ms: f64,
    /// RAM, once it is being sent.
    pub ram: Option<RamSample>,
    /// Every mirror.
    pub mirrors: Vec<MirrorSample>,
}

/// The RAM migration, by `query-migrate`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RamSample {
    /// Sent so far, over the wire.
    pub transferred: u64,
    /// Memory that was sent so far: zero pages count in full, a page that was sent twice counts twice.
    pub processed: u64,
    /// Still to send, as last counted.
    pub remaining: u64,
    /// The guest's memory.
    pub total: u64,
    /// What the guest was measured to dirty beside the migration, bytes per second (`calc-dirty-rate`), once it is known.
    pub measured_dirty_rate: Option<u64>,
    /// Per cent by which the vCPUs are throttled.
    pub throttle_pct: u64,
    /// `dirty-sync-count`. On 10.0 one a pass, on 11.1 about ten a second.
    pub syncs: u64,
    /// Destination pages are fetched on demand: the switchover is over.
    pub postcopy: bool,
}

/// One mirror, by `query-block-jobs` and `query-blockstats`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MirrorSample {
    /// The disk's name on the source.
    pub disk: String,
    /// To copy in all, as known now.
    pub len: u64,
    /// Copied so far.
    pub offset: u64,
    /// It has caught up once.
    pub ready: bool,
    /// In write-blocking mode: every write is at the destination before the guest is told of it. None where QEMU does not
    /// tell, or it still copies in the background.
    pub actively_synced: Option<bool>,
    /// The guest's writes to the disk so far, bytes.
    pub written: u64,
    /// The same, counted.
    pub writes: u64,
    /// What they took together, nanoseconds.
    pub write_ns: u64,
}
