//! The decision of the controller: actions, and the reason for them.
//!
//! Pure.

use super::BandwidthShares;
use crate::progress::{ActionDetail, ActionDetails};
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

impl Action {
    /// The numbers that the action sets.
    fn details(&self) -> Vec<(&'static str, ActionDetail)> {
        match self {
            Self::StartMemory | Self::Postcopy => Vec::new(),
            Self::HoldMemory => vec![("memory", "held".into())],
            Self::ReleaseMemory => vec![("memory", "released".into())],
            Self::DowntimeLimit(limit) => {
                vec![("downtime_limit_ms", u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).into())]
            }
            Self::ShareBandwidth(shares) => shares.details(),
            Self::Favour(disk) => vec![("favoured_disk", disk.as_str().into())],
            Self::Throttle(percent) => vec![("throttle_pct", u64::from(*percent).into())],
            Self::WriteBlocking(disks) => vec![("disks", disks.clone().into())],
            Self::GiveUp { code, needed } => vec![("code", (*code).into()), ("needed", needed.as_str().into())],
        }
    }
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

    /// The numbers that the actions set, by name.
    pub fn details(&self) -> ActionDetails {
        self.actions.iter().flat_map(Action::details).map(|(name, value)| (name.to_owned(), value)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{convergence::MemoryShare, quantity::Rate};
    use serde_json::{json, to_value};

    #[test]
    fn each_decision_has_its_numbers() {
        let shares = |memory| {
            let mirrors = [("a".to_owned(), Some(Rate(5))), ("b".to_owned(), None)].into();
            Action::ShareBandwidth(BandwidthShares { memory, mirrors })
        };
        let give_up = Action::GiveUp { code: "timeout", needed: "more time".to_owned() };
        for (actions, expected) in [
            (vec![Action::StartMemory], json!({})),
            (vec![Action::DowntimeLimit(Duration::from_millis(40))], json!({ "downtime_limit_ms": 40 })),
            (vec![Action::Throttle(20)], json!({ "throttle_pct": 20 })),
            (
                vec![shares(MemoryShare::Limited(Rate(7)))],
                json!({ "memory_bandwidth": 7, "mirror_bandwidth": { "a": 5 } }),
            ),
            (vec![shares(MemoryShare::Unlimited)], json!({ "mirror_bandwidth": { "a": 5 } })),
            (
                vec![shares(MemoryShare::Trickle), Action::Favour("a".to_owned())],
                json!({ "memory": "held", "mirror_bandwidth": { "a": 5 }, "favoured_disk": "a" }),
            ),
            (vec![Action::WriteBlocking(vec!["a".to_owned()])], json!({ "disks": ["a"] })),
            (vec![Action::HoldMemory, Action::ReleaseMemory], json!({ "memory": "released" })),
            (vec![give_up], json!({ "code": "timeout", "needed": "more time" })),
        ] {
            let details = Decision { actions, because: String::new() }.details();
            assert_eq!(to_value(details).expect("JSON"), expected);
        }
    }
}
