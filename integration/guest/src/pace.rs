//! Keeping a rate by the guest's own clock.

use std::time::{Duration, Instant};

/// A steady series of steps, and the time of the next one.
pub(crate) struct Pace {
    interval: Duration,
    next: Option<Instant>,
}

/// The lateness that is made up for. Older steps are dropped, so that no burst follows a long pause.
const CATCH_UP: Duration = Duration::from_millis(50);

impl Pace {
    /// A series of this many steps a second from now on, or of none.
    pub(crate) fn per_second(rate: u64) -> Self {
        match rate {
            0 => Self { interval: Duration::MAX, next: None },
            _ => Self::every(Duration::from_secs(1).div_f64(rate as f64)),
        }
    }

    pub(crate) fn every(interval: Duration) -> Self {
        Self { interval, next: Some(Instant::now() + interval) }
    }

    /// The time of the next step, if there is one.
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

/// A processor that computes between the steps of a series. The less processor time there is, the longer a step takes.
pub(crate) struct Busy {
    interval: Duration,
    spent: Duration,
    last: Instant,
}

/// A longer time between two looks at the clock is a pause of the processor: QEMU throttled it, or the host gave it to
/// another process.
const STANDS_STILL: Duration = Duration::from_micros(500);

impl Busy {
    /// A series of this many steps a second of an unthrottled processor.
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
