//! A point in time, on every clock that saw it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time;

/// The time of an event, on every clock that saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Moment {
    /// The engine's monotonic clock at receipt.
    pub local: Instant,
    /// The wall clock, since the Unix epoch: QEMU's for an event that QEMU stamped, else the engine's.
    pub wall: Duration,
}

impl Moment {
    /// Now, by the engine's clocks.
    pub fn now() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { local: time::Instant::now().into_std(), wall }
    }

    /// The time since then, by the engine's monotonic clock.
    pub fn elapsed(&self) -> Duration {
        time::Instant::now().into_std().saturating_duration_since(self.local)
    }
}
