//! A point in time, on every clock that saw it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time;

/// The longest way of an event from QEMU to the engine that is believed. An engine that was frozen reads late.
const LATEST: Duration = Duration::from_secs(60);

/// The time of an event, on every clock that saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Moment {
    /// The engine's monotonic clock at receipt.
    pub local: Instant,
    /// The engine's monotonic clock when QEMU stamped the event, where QEMU has the engine's wall clock; else the same
    /// as `local`. The clock may be set at any time, so stamps of two events are never compared with each other.
    pub stamped: Instant,
    /// The wall clock, since the Unix epoch: QEMU's for an event that QEMU stamped, else the engine's.
    pub wall: Duration,
}

impl Moment {
    /// Now, by the engine's clocks.
    pub fn now() -> Self {
        Self::at(time::Instant::now().into_std(), since_epoch(SystemTime::now()))
    }

    /// A moment that only the engine's clocks saw.
    pub fn at(local: Instant, wall: Duration) -> Self {
        Self { local, stamped: local, wall }
    }

    /// The moment of an event, from QEMU's stamp and both clocks of the engine at its receipt.
    ///
    /// The way of the event is the one thing that is taken from wall clocks: a clock that was set between two events
    /// falsifies the time of neither, unless it was set while one of them was on its way.
    pub fn received(local: Instant, wall: SystemTime, emitted: Option<Duration>) -> Self {
        let received = since_epoch(wall);
        let Some(emitted) = emitted else { return Self::at(local, received) };
        let way = received.checked_sub(emitted).filter(|way| *way <= LATEST).unwrap_or_default();
        Self { local, stamped: local.checked_sub(way).unwrap_or(local), wall: emitted }
    }

    /// The time since then, by the engine's monotonic clock.
    pub fn elapsed(&self) -> Duration {
        time::Instant::now().into_std().saturating_duration_since(self.local)
    }
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_way_of_an_event_is_taken_from_wall_clocks() {
        let (local, ms) = (Instant::now(), Duration::from_millis);
        let wall = |millis: u64| UNIX_EPOCH + ms(millis);
        for (received, emitted, way) in [
            (1_000_002, Some(ms(1_000_000)), ms(2)),
            // The clock was set back, or forward by hours, while the event was on its way.
            (1_000_000, Some(ms(6_000_000)), Duration::ZERO),
            (9_000_000, Some(ms(1_000_000)), Duration::ZERO),
            // The engine was frozen for ten seconds.
            (1_010_000, Some(ms(1_000_000)), ms(10_000)),
            (1_000_000, None, Duration::ZERO),
        ] {
            let moment = Moment::received(local, wall(received), emitted);
            assert_eq!((moment.local, local - moment.stamped), (local, way), "{received}, {emitted:?}");
            assert_eq!(moment.wall, emitted.unwrap_or(ms(received)));
        }
    }
}
