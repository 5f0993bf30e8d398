//! The end of a migration: the last line of the contract's JSON.

use super::{
    device_time::DeviceTime,
    ledger::{LedgerClock, LedgerSpan},
};
use crate::codes::{FailureCode, Finding};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use std::fmt;

/// The kind of end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Ending {
    /// The guest runs on the destination (or is paused there, if it was paused before).
    Moved,
    /// Nothing was changed on either side.
    Refused,
    /// The guest runs on the source, as before.
    RolledBack,
    /// The guest runs on the source, as before, because the user asked to cancel.
    Cancelled,
    /// The guest runs on the source, but something of the engine's could not be removed.
    Stuck,
    /// The guest is not proved to run on one side; nothing more was done.
    Undetermined,
    /// The guest runs nowhere: it ended by itself, or its QEMU did, on the source before it was passed on. The source's
    /// disks are whole, and the destination is out of the way.
    Ended,
    /// An end of a later version of this crate, in an outcome that such a version wrote. No migration ends with it.
    #[serde(other)]
    Unknown,
}

impl Ending {
    /// The command's exit code, fixed by the contract; that of an internal error for an end that this version does not
    /// know.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Moved => 0,
            Self::Unknown => 1,
            Self::Refused => 3,
            Self::RolledBack => 4,
            Self::Cancelled => 5,
            Self::Stuck => 6,
            Self::Undetermined => 7,
            Self::Ended => 8,
        }
    }

    /// The word of the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Refused => "refused",
            Self::RolledBack => "rolled-back",
            Self::Cancelled => "cancelled",
            Self::Stuck => "stuck",
            Self::Undetermined => "undetermined",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The side that has the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RunsOn {
    /// The source.
    Source,
    /// The destination.
    Destination,
    /// Neither: the guest has ended.
    None,
    /// Not proved; also the word of a later version that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The reason why the guest was not moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Reason {
    /// A stable word for programs.
    pub code: FailureCode,
    /// The cause, in QEMU's own words where QEMU gave any, and the remedy. Settings are named by their marks: see
    /// [`crate::codes::worded`].
    pub message: String,
}

/// The end of one disk's copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DiskOutcome {
    /// The disk's name on the source.
    pub source: String,
    /// The disk's name on the destination.
    pub destination: String,
    /// Bytes that the mirror copied.
    pub bytes_copied: u64,
    /// The disk's virtual size in bytes.
    pub virtual_size: u64,
    /// The mode of the copy: `incremental` or `full`.
    pub mode: String,
    /// The mean time of a guest's write while the mirror copied in the background, microseconds; `None` where the guest
    /// wrote nothing.
    pub write_latency_us: Option<u64>,
    /// The mean time of a guest's write in write-blocking mode: the difference is the price of that mode.
    pub write_blocking_latency_us: Option<u64>,
    /// How long the guest's writes took; `None` where QEMU counted none, or another client had set histograms of its
    /// own for the device.
    #[serde(default)]
    pub guest_writes: Option<GuestWrites>,
}

/// How long the guest's writes to a disk took while its mirror was there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GuestWrites {
    /// While the mirror copied in the background; `None` where the guest wrote nothing.
    pub copying: Option<WriteTimes>,
    /// While the writes waited for the destination: the difference is the price of write-blocking.
    pub write_blocking: Option<WriteTimes>,
}

/// The times of writes, as QEMU counted them in bins. A percentile is known to be below the boundary of its bin, which
/// is a third or a half above the boundary before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WriteTimes {
    /// The writes.
    pub writes: u64,
    /// Half of the writes took at most this many microseconds; `None` above 22 s.
    pub p50_at_most_us: Option<u64>,
    /// Of 100 writes 99 took at most this many microseconds; `None` above 22 s.
    pub p99_at_most_us: Option<u64>,
}

impl fmt::Display for WriteTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = |us: Option<u64>| us.map_or_else(|| "more than 22 s".to_owned(), |us| format!("at most {us} us"));
        write!(f, "half {}, 99 % {}", most(self.p50_at_most_us), most(self.p99_at_most_us))
    }
}

/// The totals of the RAM migration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RamOutcome {
    /// Bytes sent.
    pub bytes: u64,
    /// QEMU's `dirty-sync-count`. On QEMU 11.1 it grows with time, not with passes.
    pub iterations: u64,
    /// The highest vCPU throttle seen, per cent.
    pub throttle_max_pct: u64,
    /// Whether postcopy was used.
    pub postcopy: bool,
    /// For how long the guest waited for its pages in postcopy, by the destination's count; `None` without postcopy,
    /// and where the destination's QEMU or kernel does not count.
    #[serde(default)]
    pub postcopy_blocktime: Option<PostcopyBlocktime>,
}

/// For how long the guest waited for its pages in postcopy. The ledger's blackout ends before that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PostcopyBlocktime {
    /// Milliseconds for which all vCPUs waited at once.
    pub all_vcpus_ms: u64,
    /// Milliseconds for which each vCPU waited.
    pub vcpu_ms: Vec<u64>,
    /// The mean time from a page fault to its page, microseconds; `None` before QEMU 10.1.
    pub mean_fault_us: Option<u64>,
    /// Of 100 faults 99 took at most this many microseconds; `None` before QEMU 10.1, where there was no fault, and
    /// where the time is beyond QEMU's scale.
    pub p99_fault_at_most_us: Option<u64>,
}

/// Why the engine or its migration stopped the guest for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PauseCause {
    /// A mirror was started with the guest stopped, because the guest wrote during each other start.
    MirrorStart,
    /// The guest moved: its blackout.
    Switchover,
    /// The guest was stopped for the switchover, and resumed on the source.
    WentBack,
    /// A word of a later version that this version does not know.
    #[serde(other)]
    Unknown,
}

impl PauseCause {
    /// The word of the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MirrorStart => "mirror-start",
            Self::Switchover => "switchover",
            Self::WentBack => "went-back",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for PauseCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One time for which the guest stood still because of the migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GuestPause {
    /// The cause.
    pub why: PauseCause,
    /// The length in milliseconds.
    pub ms: f64,
}

impl GuestPause {
    pub(crate) fn new(why: PauseCause, ms: f64) -> Self {
        Self { why, ms }
    }
}

/// The predicted cost of a migration; null where something cannot be predicted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Estimate {
    /// Milliseconds in all.
    pub total_ms: Option<u64>,
    /// Milliseconds for which the guest would be stopped; null, too, where it would not move.
    pub blackout_ms: Option<u64>,
    /// Bytes of disks to copy.
    pub disk_bytes: Option<u64>,
    /// Bytes of RAM to send; where nothing was measured, the guest's memory.
    pub ram_bytes: Option<u64>,
    /// Whether the guest would move.
    pub converges: Option<bool>,
    /// The furthest rung of the policy that the migration would reach.
    #[serde(default, deserialize_with = "known")]
    pub rung: Option<EstimatedRung>,
}

/// A rung of a policy, from the gentlest to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EstimatedRung {
    /// The policy would change nothing.
    None,
    /// The downtime limit would be raised.
    Downtime,
    /// The guest would be throttled.
    Throttle,
    /// Postcopy would be started.
    Postcopy,
    /// The guest would be stopped and the rest of its RAM copied then.
    StopAndCopy,
    /// The migration would be given up: the guest would not move.
    GiveUp,
}

impl EstimatedRung {
    /// The word of the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Downtime => "downtime",
            Self::Throttle => "throttle",
            Self::Postcopy => "postcopy",
            Self::StopAndCopy => "stop-and-copy",
            Self::GiveUp => "give-up",
        }
    }
}

impl fmt::Display for EstimatedRung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What another try needs after a migration was called off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AnotherTry {
    /// The paths of the destination's images that hold a part of a disk, as its QEMU has them. A preparation with
    /// `again` makes them anew, once that QEMU has ended.
    pub images: Vec<String>,
    /// Whether the destination's QEMU is to be started anew. Otherwise another try can use the same one, and copies
    /// over what its images hold.
    pub start_destination: bool,
}

/// The end of a migration, with its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Outcome {
    /// The kind of end.
    pub outcome: Ending,
    /// The side that has the guest.
    pub runs_on: RunsOn,
    /// The reason why the guest was not moved; `None` where it was.
    pub reason: Option<Reason>,
    /// The findings that refused the migration, each by itself; `reason` has them all in one sentence. Empty where
    /// something else ended it.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Milliseconds from start to end.
    pub total_ms: u64,
    /// Milliseconds from the stop of the guest's vCPUs to RESUME, at the switchover; `None` if the guest never stopped.
    pub blackout_ms: Option<f64>,
    /// Every time for which the guest stood still because of the migration, in order; the blackout is the last of them.
    /// The stops of the guest's owner are none of them.
    #[serde(default)]
    pub pauses: Vec<GuestPause>,
    /// The sum of those times in milliseconds.
    #[serde(default)]
    pub paused_ms: f64,
    /// QEMU's own figure for its part of the downtime.
    pub qemu_downtime_ms: Option<u64>,
    /// The spans that sum to `blackout_ms`.
    pub ledger: Vec<LedgerSpan>,
    /// The clock by which the ledger was read.
    #[serde(default, deserialize_with = "known")]
    pub ledger_clock: Option<LedgerClock>,
    /// How long QEMU took for each device while the guest stood still, in QEMU's order, the source's first. The times
    /// of both sides overlap, and lie in the ledger's span [`DeviceTime::SPAN`]. Empty where QEMU does not tell; of
    /// more than 256 of a side those that took least are one, `(N others)`.
    #[serde(default)]
    pub devices: Vec<DeviceTime>,
    /// Why the times of a side's devices are not known, in one sentence; `None` where they are, and where the migration
    /// came to no RAM.
    #[serde(default)]
    pub devices_unknown: Option<String>,
    /// Every disk that was to be moved.
    pub disks: Vec<DiskOutcome>,
    /// The RAM migration.
    pub ram: RamOutcome,
    /// The estimate from before the start, where one was asked for.
    pub predicted: Option<Estimate>,
    /// The engine's own jobs, nodes, exports and settings that could not be removed, each with its side. Empty unless
    /// the end is `stuck` or `undetermined`, or one side is gone.
    pub leftovers: Vec<String>,
    /// What another try needs; `None` where the guest has moved, has ended or is not proved to be on the source, and
    /// where nothing is needed.
    #[serde(default)]
    pub another_try: Option<AnotherTry>,
}

/// Reads a word to which later versions may add others: `None` for a word that this version does not know.
fn known<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    let word = Option::<serde_json::Value>::deserialize(deserializer)?;
    Ok(word.and_then(|word| T::deserialize(word).ok()))
}
