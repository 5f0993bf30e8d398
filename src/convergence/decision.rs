//! The decision of the controller: actions, and the reason for them.
//!
//! Pure.

use super::BandwidthShares;
use crate::progress::{ActionDetail, ActionDetails};
use serde::{Deserialize, Deserializer, Serialize};
use std::{fmt, time::Duration};

/// The codes with which the controller gives up, so that one that is read back is one of them.
const CODES: [&str; 5] = ["ram-stalled", "ram-not-converging", "disk-not-converging", "over-budget", "timeout"];

/// A stable word for a reason to give up.
pub(super) type GiveUpCode = &'static str;

/// One action that the controller asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
        #[serde(deserialize_with = "known_code")]
        code: GiveUpCode,
        /// The change that would have let the migration converge.
        needed: String,
    },
}

fn known_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GiveUpCode, D::Error> {
    let code = String::deserialize(deserializer)?;
    Ok(CODES.into_iter().find(|known| **known == *code).unwrap_or("unknown"))
}

/// The action with what it sets, in a few words.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HoldMemory => f.write_str("hold-memory"),
            Self::ReleaseMemory => f.write_str("release-memory"),
            Self::DowntimeLimit(limit) => write!(f, "downtime-limit {} ms", limit.as_millis()),
            Self::ShareBandwidth(shares) => write!(f, "share-bandwidth ({})", shares.describe()),
            Self::Favour(disk) => write!(f, "favour {disk}"),
            Self::Throttle(percent) => write!(f, "throttle {percent} %"),
            Self::WriteBlocking(disks) => write!(f, "write-blocking {}", disks.join(", ")),
            Self::GiveUp { code, .. } => write!(f, "give-up {code}"),
            Self::StartMemory | Self::Postcopy => f.write_str(self.name()),
        }
    }
}

impl Action {
    /// The stable word with which the action is reported.
    pub fn name(&self) -> &'static str {
        match self {
            Self::StartMemory => "start-memory",
            Self::DowntimeLimit(_) => "downtime-limit",
            Self::HoldMemory | Self::ReleaseMemory | Self::ShareBandwidth(_) | Self::Favour(_) => "share-bandwidth",
            Self::Throttle(_) => "throttle",
            Self::WriteBlocking(_) => "write-blocking",
            Self::Postcopy => "postcopy",
            Self::GiveUp { .. } => "give-up",
        }
    }

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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
    use crate::{
        convergence::{MemoryShare, OverBudget, history::TIMEOUT},
        quantity::Rate,
    };
    use serde_json::{json, to_value};

    #[test]
    fn a_decision_reads_back_as_the_same() {
        let shares = [MemoryShare::Unlimited, MemoryShare::Limited(Rate(7)), MemoryShare::Trickle];
        let shares = shares.map(|memory| BandwidthShares { memory, mirrors: [("a".to_owned(), Some(Rate(5)))].into() });
        let mut actions = vec![
            Action::StartMemory,
            Action::HoldMemory,
            Action::ReleaseMemory,
            Action::DowntimeLimit(Duration::from_micros(40_001)),
            Action::Favour("a".to_owned()),
            Action::Throttle(20),
            Action::WriteBlocking(vec!["a".to_owned()]),
            Action::Postcopy,
        ];
        actions.extend(shares.map(Action::ShareBandwidth));
        actions.extend(CODES.map(|code| Action::GiveUp { code, needed: "more".to_owned() }));
        assert!(CODES.contains(&OverBudget::CODE) && CODES.contains(&TIMEOUT));
        let decision = Decision { actions, because: "so".to_owned() };
        let written = serde_json::to_string(&decision).expect("JSON");
        assert_eq!(serde_json::from_str::<Decision>(&written).expect("the same"), decision);
        let foreign = r#"{"give-up":{"code":"of-tomorrow","needed":""}}"#;
        let read: Action = serde_json::from_str(foreign).expect("a code of a later version");
        assert_eq!(read, Action::GiveUp { code: "unknown", needed: String::new() });
    }

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
