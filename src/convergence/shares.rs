//! The parts of the ceiling that RAM and the mirrors have.
//!
//! Pure.

use crate::{progress::ActionDetail, quantity::Rate};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The parts of the ceiling.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BandwidthShares {
    /// RAM's part.
    pub memory: MemoryShare,
    /// Each mirror's part, by its disk; `None` is no limit.
    pub mirrors: BTreeMap<String, Option<Rate>>,
}

/// RAM's part of the ceiling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryShare {
    /// No limit.
    #[default]
    Unlimited,
    /// Up to this rate.
    Limited(Rate),
    /// The lowest rate that QEMU can be told: RAM must not end before the mirrors are in step.
    Trickle,
}

impl MemoryShare {
    /// The limit that comes from the ceiling, if there is one.
    pub(super) fn rate(self) -> Option<Rate> {
        match self {
            Self::Limited(rate) => Some(rate),
            Self::Unlimited | Self::Trickle => None,
        }
    }
}

impl BandwidthShares {
    /// The rate up to which a disk's mirror may copy in the background; `None` is no limit.
    pub fn mirror(&self, disk: &str) -> Option<Rate> {
        self.mirrors.get(disk).copied().flatten()
    }

    /// Whether RAM gets a trickle only.
    pub fn trickles(&self) -> bool {
        self.memory == MemoryShare::Trickle
    }

    /// The limits by name, bytes per second; a channel without a limit is left out.
    pub(super) fn details(&self) -> Vec<(&'static str, ActionDetail)> {
        let memory = match self.memory {
            MemoryShare::Unlimited => None,
            MemoryShare::Limited(rate) => Some(("memory_bandwidth", rate.0.into())),
            MemoryShare::Trickle => Some(("memory", "held".into())),
        };
        let limited = self.mirrors.iter().filter_map(|(disk, rate)| Some((disk.clone(), (*rate)?.0.into())));
        let mirrors = ActionDetail::Details(limited.collect());
        memory.into_iter().chain([("mirror_bandwidth", mirrors)]).collect()
    }

    /// The shares in words.
    pub(super) fn describe(&self) -> String {
        let limit = |rate: Option<Rate>| rate.map_or("no limit".to_owned(), |rate| rate.to_string());
        let memory = match self.memory {
            MemoryShare::Unlimited => "has no limit".to_owned(),
            MemoryShare::Limited(rate) => format!("gets {rate}"),
            MemoryShare::Trickle => "is held back until the mirrors are in step".to_owned(),
        };
        let mirrors: Vec<String> =
            self.mirrors.iter().map(|(disk, rate)| format!("{disk}: {}", limit(*rate))).collect();
        match mirrors.is_empty() {
            true => format!("RAM {memory}"),
            false => format!("RAM {memory}, mirrors get {}", mirrors.join(", ")),
        }
    }
}
