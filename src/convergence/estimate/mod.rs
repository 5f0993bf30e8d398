//! What the samples of one run tell: bandwidth, what the guest dirties, and how fast each mirror gains on its guest.
//!
//! Pure. Nothing is read from one sample: QEMU's own counters mean different things in different versions, and a mirror's come
//! in bursts.

mod disk;
mod ram;

pub use disk::DiskEstimate;
pub use ram::MemoryEstimate;
pub(super) use {disk::DiskTrack, ram::MemoryTrack};

/// The least time that a rate is taken over, milliseconds: shorter, and QEMU's own 100 ms windows show through.
const WINDOW: f64 = 200.0;
/// The weight of the newest value in a smoothed one (KubeVirt's VEP 248 uses the same).
const NEWEST: f64 = 0.4;
/// By how much less must remain to count as better (the same source).
const BETTER: f64 = 0.96;

/// A rate smoothed over its windows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct SmoothedValue(Option<f64>);

impl SmoothedValue {
    pub(super) fn add(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |old| old + NEWEST * (value - old)));
    }

    pub(super) fn get(self) -> Option<f64> {
        self.0
    }
}
