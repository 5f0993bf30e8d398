//! Estimates from the samples of one run: bandwidth, the guest's dirtying, and each mirror's gain on its guest.
//!
//! Pure. No estimate rests on one sample: QEMU's counters differ in meaning between versions, and a mirror's come in
//! bursts.

use crate::quantity::Bytes;
use std::time::Duration;

mod disk;
mod measured;
mod ram;

pub use disk::DiskEstimate;
pub use ram::MemoryEstimate;
pub(super) use {
    disk::{DiskTrack, wait_at},
    ram::MemoryTrack,
};

/// The least time that a rate is taken over: in less, QEMU's own windows of 100 ms show through.
const WINDOW: Duration = Duration::from_millis(200);
/// The weight of the newest value in a smoothed one (KubeVirt's VEP 248 uses the same).
const NEWEST: f64 = 0.4;
/// The factor below which a count is better than another (the same source).
const BETTER: f64 = 0.96;

/// A value smoothed over its windows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct SmoothedValue(Option<f64>);

impl SmoothedValue {
    /// Adds a value, and returns the smoothed one.
    pub(super) fn add(&mut self, value: f64) -> f64 {
        *self.0.insert(self.0.map_or(value, |old| old + NEWEST * (value - old)))
    }

    pub(super) fn get(self) -> Option<f64> {
        self.0
    }
}

/// A counter of bytes at one moment, from which a rate is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct CounterMark {
    at: Duration,
    count: Bytes,
}

impl CounterMark {
    fn age(&self, at: Duration) -> Duration {
        at.saturating_sub(self.at)
    }

    /// Moves the mark to a later moment, and returns the rate in between, bytes per second.
    fn advance(&mut self, at: Duration, count: Bytes) -> f64 {
        let before = std::mem::replace(self, Self { at, count });
        count.0.saturating_sub(before.count.0) as f64 / before.age(at).as_secs_f64()
    }
}
