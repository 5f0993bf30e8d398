//! The decision of the controller: actions, and the reason for them.
//!
//! Pure.

use super::BandwidthShares;
use serde::Serialize;
use std::time::Duration;

/// One action that the controller asks for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Start to send RAM, beside mirrors that still copy or after them.
    StartMemory,
    /// Keep QEMU from stopping the guest, however little of RAM remains: mirrors are not in step with the guest yet.
    HoldMemory,
    /// Let QEMU stop the guest again once the rest of RAM fits into the downtime limit.
    ReleaseMemory,
    /// Set QEMU's `downtime-limit`.
    DowntimeLimit(Duration),
    /// Divide the ceiling: RAM's `max-bandwidth`, and each mirror's speed.
    ShareBandwidth(BandwidthShares),
    /// Give this disk's mirror more of the ceiling than the others.
    Favour(String),
    /// Throttle the guest's vCPUs by this many per cent.
    Throttle(u8),
    /// Switch these disks' mirrors to write-blocking.
    WriteBlocking(Vec<String>),
    /// Let the guest resume on the destination and fetch its pages from the source.
    Postcopy,
    /// Give up and roll back.
    GiveUp {
        /// A stable word: `ram-stalled`, `ram-not-converging`, `disk-not-converging`, `over-budget`, `timeout`.
        code: &'static str,
        /// The change that would have let the migration converge.
        needed: String,
    },
}

/// The actions that follow from one sample.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Decision {
    /// The actions, in the order in which they are to be applied; none means to wait.
    pub actions: Vec<Action>,
    /// The reason, with the numbers that it rests on.
    pub because: String,
}

impl Decision {
    pub(super) fn wait(because: impl Into<String>) -> Self {
        Self { actions: Vec::new(), because: because.into() }
    }

    pub(super) fn act(action: Action, because: impl Into<String>) -> Self {
        Self { actions: vec![action], because: because.into() }
    }

    pub(super) fn give_up(code: &'static str, needed: String, because: impl Into<String>) -> Self {
        Self::act(Action::GiveUp { code, needed }, because)
    }

    pub(super) fn gives_up(&self) -> bool {
        self.actions.iter().any(|action| matches!(action, Action::GiveUp { .. }))
    }

    /// The decisions over shares, disks and RAM as one. The reasons to wait are told only where nothing is to be done.
    pub(super) fn merge(parts: Vec<Self>) -> Self {
        let waits = parts.iter().all(|part| part.actions.is_empty());
        let told: Vec<&str> = parts
            .iter()
            .filter(|part| waits || !part.actions.is_empty())
            .map(|part| part.because.as_str())
            .filter(|because| !because.is_empty())
            .collect();
        let because = told.join("; ");
        Self { actions: parts.into_iter().flat_map(|part| part.actions).collect(), because }
    }
}
