//! The phases of a migration.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The phases of a migration, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
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
    /// The guest is stopped; the mirrors settle and the exports are closed.
    Switchover,
    /// The guest passes to the destination.
    Handover,
    /// The guest has resumed on the destination and the rest of its pages is fetched; with postcopy alone.
    Postcopy,
    /// The engine's own jobs, nodes and exports are removed; the source quits.
    Cleanup,
    /// A phase of a later version of this crate, in an event that such a version wrote. The engine never reports it.
    #[serde(other)]
    Unknown,
}

impl Phase {
    /// The word of the JSON.
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
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether a phase begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PhaseState {
    /// The phase begins.
    Begin,
    /// The phase ended, well or not: the events after it tell which.
    End,
}
