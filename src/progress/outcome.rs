//! How a migration ended: the contract's last line.

use super::{Clock, Span};
use crate::codes::FailureCode;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The guest runs on the destination (or is paused there, if it was paused before).
    Moved,
    /// Nothing was changed on either side.
    Refused,
    /// The guest runs on the source, as before.
    RolledBack,
    /// The same, because the user asked.
    Cancelled,
    /// The guest runs on the source, but something of ours could not be cleaned up.
    Stuck,
    /// Not proved to run on one side; nothing more was done.
    Undetermined,
}

impl Ending {
    /// The command's exit code for it, fixed by the contract.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Moved => 0,
            Self::Refused => 3,
            Self::RolledBack => 4,
            Self::Cancelled => 5,
            Self::Stuck => 6,
            Self::Undetermined => 7,
        }
    }

    /// The name the contract uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Refused => "refused",
            Self::RolledBack => "rolled-back",
            Self::Cancelled => "cancelled",
            Self::Stuck => "stuck",
            Self::Undetermined => "undetermined",
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which side has the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunsOn {
    /// The source.
    Source,
    /// The destination.
    Destination,
    /// Not proved.
    Unknown,
}

/// Why it did not end with the guest moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A stable word for programs.
    pub code: FailureCode,
    /// What happened, in QEMU's own words where it spoke, and what to do. Settings are named by their marks: see
    /// [`crate::codes::worded`].
    pub message: String,
}

/// What became of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskOutcome {
    /// Its name on the source.
    pub source: String,
    /// Its name on the destination.
    pub destination: String,
    /// Bytes the mirror copied.
    pub bytes_copied: u64,
    /// The disk's virtual size in bytes.
    pub virtual_size: u64,
    /// How it was copied: `incremental` or `full`.
    pub mode: &'static str,
    /// The mean time of a guest's write while the mirror copied in the background, microseconds; `None` where it wrote nothing.
    pub write_latency_us: Option<u64>,
    /// The same in write-blocking mode: what that cost the guest.
    pub write_blocking_latency_us: Option<u64>,
}

/// What the RAM migration took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RamOutcome {
    /// Bytes sent.
    pub bytes: u64,
    /// QEMU's `dirty-sync-count`. On QEMU 11.1 it grows with time, not with passes.
    pub iterations: u64,
    /// The highest vCPU throttle seen, per cent.
    pub throttle_max_pct: u64,
    /// Whether postcopy was used.
    pub postcopy: bool,
}

/// What a migration would cost; what cannot be foreseen is null.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Milliseconds in all.
    pub total_ms: Option<u64>,
    /// Milliseconds the guest would be stopped; null too where it would not move.
    pub blackout_ms: Option<u64>,
    /// Bytes of disks to copy.
    pub disk_bytes: Option<u64>,
    /// Bytes of RAM to send; where nothing was measured, the guest's memory.
    pub ram_bytes: Option<u64>,
    /// Whether the guest would move.
    pub converges: Option<bool>,
    /// The furthest rung that the policy would come to: `none`, `downtime`, `throttle`, `postcopy`, `stop-and-copy`, or
    /// `give-up` where the guest would not move.
    pub rung: Option<&'static str>,
}

/// How a migration ended, whole.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// How it ended.
    pub outcome: Ending,
    /// Which side has the guest.
    pub runs_on: RunsOn,
    /// Why it did not move; `None` where it did.
    pub reason: Option<Reason>,
    /// Milliseconds from start to end.
    pub total_ms: u64,
    /// Milliseconds from STOP to RESUME; `None` if the guest never stopped.
    pub blackout_ms: Option<f64>,
    /// QEMU's own figure for its part of the downtime.
    pub qemu_downtime_ms: Option<u64>,
    /// The spans that sum to `blackout_ms`.
    pub ledger: Vec<Span>,
    /// Which clock the ledger was read from.
    pub ledger_clock: Option<Clock>,
    /// Every disk that was to be moved.
    pub disks: Vec<DiskOutcome>,
    /// The RAM migration.
    pub ram: RamOutcome,
    /// What was foretold of it, where that was asked for.
    pub predicted: Option<Estimate>,
    /// What of ours could not be removed, and where: empty but for `stuck`, `undetermined` or a side that is gone.
    pub leftovers: Vec<String>,
}

/// An error with its causes, `: ` between them.
pub fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        // a transparent error repeats its cause
        if !text.ends_with(&told) {
            text = format!("{text}: {told}");
        }
        next = cause.source();
    }
    text
}
