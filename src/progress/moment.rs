//! A point in time, on every clock that saw it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time;

/// When something happened, on every clock that saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The engine's monotonic clock at receipt.
    pub local: Instant,
    /// The wall clock of whoever stamped it: QEMU for an event, the engine otherwise; since the Unix epoch.
    pub wall: Duration,
}

impl Moment {
    /// Now, by the engine's clocks.
    pub fn now() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { local: time::Instant::now().into_std(), wall }
    }

    /// How long ago it was, by the engine's clock.
    pub fn elapsed(&self) -> Duration {
        time::Instant::now().into_std().saturating_duration_since(self.local)
    }
}
