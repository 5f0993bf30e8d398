//! One thing that happened: a phase, a sample, an action, a warning, or the end.

use super::Outcome;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which of the two QEMU processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The QEMU the guest comes from.
    Source,
    /// The QEMU the guest goes to.
    Destination,
}

impl Side {
    /// `source` or `destination`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The phases of a migration, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Both monitors are dialled and negotiated.
    Connect,
    /// Facts are gathered and checked; nothing is changed.
    Preflight,
    /// Capabilities, parameters and exports are set.
    Prepare,
    /// The mirrors copy the disks.
    Storage,
    /// RAM is copied while the guest runs.
    Memory,
    /// The guest is stopped; mirrors settle and exports go.
    Switchover,
    /// The guest passes to the destination.
    Handover,
    /// Only where postcopy was used: the guest has resumed on the destination, and the rest of its pages is fetched.
    Postcopy,
    /// What the engine made is removed; the source quits.
    Cleanup,
}

impl Phase {
    /// The name the contract uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Preflight => "preflight",
            Self::Prepare => "prepare",
            Self::Storage => "storage",
            Self::Memory => "memory",
            Self::Switchover => "switchover",
            Self::Handover => "handover",
            Self::Postcopy => "postcopy",
            Self::Cleanup => "cleanup",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether a phase begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PhaseState {
    /// It begins.
    Begin,
    /// It ended, well or not: what follows tells.
    End,
}

/// An event of a running migration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// The version of this shape: 1.
    pub v: u32,
    /// Milliseconds since the migration was started.
    pub t_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What happened. More kinds may be added.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// A phase begins or ends.
    Phase {
        /// Which one.
        phase: Phase,
        /// Begin or end.
        state: PhaseState,
    },
    /// A sample of one mirror.
    Disk {
        /// The disk's name on the source.
        disk: String,
        /// QEMU's job status.
        status: String,
        /// Bytes copied so far.
        copied: u64,
        /// Bytes to copy in all, as known now; grows while the guest writes.
        total: u64,
        /// Whether the destination has caught up once.
        ready: bool,
        /// Bytes per second, smoothed.
        rate: u64,
        /// Bytes per second that the guest's writes add to what is to be copied.
        growth: u64,
        /// Bytes per second that the guest writes.
        write_rate: u64,
        /// The mean time of a guest's write of late, microseconds; null where it wrote nothing.
        write_latency_us: Option<u64>,
        /// Milliseconds until it is ready, if all goes on as it does; null if never.
        eta_ms: Option<u64>,
    },
    /// A step of the preparation of images begins or ends.
    Step {
        /// What is done: `create` or `copy`.
        step: String,
        /// The image.
        image: String,
        /// Begin or end.
        state: PhaseState,
    },
    /// A sample of the RAM migration.
    Memory {
        /// QEMU's migration status.
        status: String,
        /// Bytes sent so far.
        transferred: u64,
        /// Bytes still to send, as QEMU last counted.
        remaining: u64,
        /// The guest's RAM, bytes.
        total: u64,
        /// Bytes per second the guest dirties, as far as it is found.
        dirty_rate: u64,
        /// Bytes per second sent, smoothed.
        bandwidth: u64,
        /// The most that was found dirty at once, bytes: what is rewritten again and again is at least this much.
        working_set: u64,
        /// Per cent by which the vCPUs are throttled.
        throttle_pct: u64,
        /// Milliseconds of blackout if the guest were stopped now; null until RAM was measured.
        predicted_blackout_ms: Option<u64>,
        /// Milliseconds until what remains fits into the downtime limit; null until it is foreseen.
        eta_ms: Option<u64>,
    },
    /// How far an image is with being compared or copied before the migration.
    Image {
        /// The file: on the source where it is compared, else at the destination.
        image: String,
        /// What is done: `compare`, `copy`, or `verify` of what was copied.
        doing: String,
        /// Bytes so far, of one side.
        done: u64,
        /// Bytes in all, as far as known.
        total: u64,
        /// Bytes per second since the last sample, where it is measured.
        #[serde(skip_serializing_if = "Option::is_none")]
        rate: Option<u64>,
    },
    /// The engine decided to do something that is not part of the plain order.
    Action {
        /// What it does.
        action: String,
        /// Why, with numbers.
        because: String,
    },
    /// Something the user should know that stops nothing.
    Warning {
        /// A stable word for programs.
        code: String,
        /// A sentence for people.
        message: String,
    },
    /// The end; always the last event.
    Outcome(Box<Outcome>),
}
