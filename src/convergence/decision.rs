//! What the controller wants done, and why.
//!
//! Pure.

use super::BandwidthShares;
use crate::quantity::Rate;
use serde::Serialize;
use std::time::Duration;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Start to send RAM, while the mirrors still copy or after.
    StartMemory,
    /// Set QEMU's `downtime-limit`.
    DowntimeLimit(Duration),
    /// Tell QEMU with what bandwidth to reckon when it asks itself whether to stop the guest, in place of what it measures
    /// (`avail-switchover-bandwidth`); `None` is what it measures.
    SwitchoverBandwidth(Option<Rate>),
    /// BandwidthShares out the ceiling: RAM's `max-bandwidth`, and each mirror's speed.
    ShareBandwidth(BandwidthShares),
    /// Give this disk's mirror more of the ceiling than the others.
    Favour(String),
    /// Throttle the guest's vCPUs by this many per cent.
    Throttle(u8),
    /// Switch these disks' mirrors to write-blocking.
    WriteBlocking(Vec<String>),
    /// Let the guest go on at the destination and fetch its pages from there.
    Postcopy,
    /// Give up and roll back.
    GiveUp {
        /// A stable word: `ram-not-converging`, `disk-not-converging`, `over-budget`, `timeout`.
        code: &'static str,
        /// What would have been needed.
        needed: String,
    },
}

/// What is to be done after one sample.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Decision {
    /// What to do; nothing is to wait.
    pub actions: Vec<Action>,
    /// One sentence with the numbers it rests on.
    pub because: String,
}
