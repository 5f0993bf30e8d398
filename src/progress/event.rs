//! Events: a phase begins or ends, a sample, an action, a warning, the end.

use super::{
    outcome::Outcome,
    phase::{Phase, PhaseState},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An event of a running migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// The version of this shape: 1. Fields and kinds are added without a new version.
    pub v: u32,
    /// Milliseconds since the migration was started.
    pub t_ms: u64,
    /// The kind of event, with its fields.
    #[serde(flatten)]
    pub kind: EventKind,
}

impl Event {
    /// An event of today's shape.
    pub fn new(t_ms: u64, kind: EventKind) -> Self {
        Self { v: 1, t_ms, kind }
    }
}

/// The details of an action, by name.
pub type ActionDetails = BTreeMap<String, ActionDetail>;

/// One detail of an action.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum ActionDetail {
    /// A whole number.
    Integer(u64),
    /// Any other number.
    Number(f64),
    /// A text.
    Text(String),
    /// Some texts.
    Texts(Vec<String>),
    /// Details below this one, such as one for each disk.
    Details(ActionDetails),
}

impl From<u64> for ActionDetail {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl From<&str> for ActionDetail {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<Vec<String>> for ActionDetail {
    fn from(value: Vec<String>) -> Self {
        Self::Texts(value)
    }
}

/// The kinds of events. Later versions add kinds, and fields to each kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// A phase begins or ends.
    #[non_exhaustive]
    Phase {
        /// The phase.
        phase: Phase,
        /// Begin or end.
        state: PhaseState,
    },
    /// A sample of one mirror.
    #[non_exhaustive]
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
        /// Bytes per second that the guest's writes add to the bytes to copy.
        growth: u64,
        /// Bytes per second that the guest writes.
        write_rate: u64,
        /// The recent mean time of a guest's write, microseconds; null where the guest wrote nothing.
        write_latency_us: Option<u64>,
        /// Milliseconds until the mirror is ready at today's rates; null if never.
        eta_ms: Option<u64>,
    },
    /// A step of the preparation of images begins or ends.
    #[non_exhaustive]
    Step {
        /// The kind of step: `create` or `copy`.
        step: String,
        /// The image.
        image: String,
        /// Begin or end.
        state: PhaseState,
    },
    /// A sample of the RAM migration.
    #[non_exhaustive]
    Memory {
        /// QEMU's migration status.
        status: String,
        /// Bytes sent so far.
        transferred: u64,
        /// Bytes still to send, as QEMU last counted.
        remaining: u64,
        /// The guest's RAM, bytes.
        total: u64,
        /// Bytes per second that the guest dirties, as far as it is known.
        dirty_rate: u64,
        /// Bytes per second sent, smoothed.
        bandwidth: u64,
        /// The largest number of bytes found dirty at once: the guest rewrites at least this much again and again.
        working_set: u64,
        /// Per cent by which the vCPUs are throttled.
        throttle_pct: u64,
        /// Milliseconds of blackout if the guest were stopped now; null until RAM was measured.
        predicted_blackout_ms: Option<u64>,
        /// Milliseconds until the remaining RAM fits into the downtime limit; null while that cannot be predicted.
        eta_ms: Option<u64>,
    },
    /// The progress of comparing or copying an image before the migration.
    #[non_exhaustive]
    Image {
        /// The file: the source's where images are compared, else the destination's.
        image: String,
        /// The work: `compare`, `copy`, or `verify` of a copy.
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
    #[non_exhaustive]
    Action {
        /// The action, a stable word for programs.
        action: String,
        /// The reason, with numbers.
        because: String,
        /// What the action is about and the numbers that it sets, by name; later versions add names. Times are in
        /// milliseconds (`_ms`), sizes in bytes, rates in bytes per second.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        details: ActionDetails,
    },
    /// Something that the user should know and that stops nothing.
    #[non_exhaustive]
    Warning {
        /// A stable word for programs.
        code: String,
        /// A sentence for people.
        message: String,
    },
    /// The end; always the last event.
    Outcome(Box<Outcome>),
    /// A kind of a later version of this crate, in an event that such a version wrote. The engine never reports it.
    #[serde(other)]
    Unknown,
}
