//! Keeping a rate by the guest's own clock.

use std::time::{Duration, Instant};

/// When the next of a steady series of steps is due.
pub(crate) struct Pace {
    interval: Duration,
    next: Option<Instant>,
}

/// How much lateness is made up for; what is older is dropped, so that a long pause is not followed by a burst.
const CATCH_UP: Duration = Duration::from_millis(50);

impl Pace {
    /// So many steps a second from now on; 0 is never.
    pub(crate) fn per_second(rate: u64) -> Self {
        match rate {
            0 => Self { interval: Duration::MAX, next: None },
            _ => Self::every(Duration::from_secs(1).div_f64(rate as f64)),
        }
    }

    pub(crate) fn every(interval: Duration) -> Self {
        Self { interval, next: Some(Instant::now() + interval) }
    }

    /// When the next step is due, if ever.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Takes one step if it is due.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        match self.next {
            Some(next) if next <= now => {
                self.next = Some(if now - next > CATCH_UP { now } else { next + self.interval });
                true
            }
            _ => false,
        }
    }
}

/// A processor that is never idle between the steps of a series, and takes longer for it the less of it there is.
pub(crate) struct Busy {
    interval: Duration,
    spent: Duration,
    last: Instant,
}

/// A longer time between two looks at the clock is one in which the processor stood still: it was throttled, or the
/// host gave it to somebody else.
const STANDS_STILL: Duration = Duration::from_micros(500);

impl Busy {
    /// So many steps a second of an unthrottled processor.
    pub(crate) fn per_second(rate: f64) -> Self {
        Self { interval: Duration::from_secs(1).div_f64(rate), spent: Duration::ZERO, last: Instant::now() }
    }

    /// Keeps the processor busy until the next step, by the time in which it ran.
    pub(crate) fn compute(&mut self) {
        loop {
            let now = Instant::now();
            self.spent += (now - self.last).min(STANDS_STILL);
            self.last = now;
            if self.spent >= self.interval {
                self.spent -= self.interval;
                return;
            }
            std::hint::spin_loop();
        }
    }
}

/// Sleeps until a moment; not at all if it has passed.
pub(crate) fn sleep_until(moment: Instant) {
    std::thread::sleep(moment.saturating_duration_since(Instant::now()));
}
