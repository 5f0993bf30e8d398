//! A ceiling on how fast something is read.
//!
//! Pure. It says how long to wait; the caller has the clock.

use crate::quantity::Rate;
use std::time::Duration;

/// What may be caught up on after a pause.
const CREDIT: Duration = Duration::from_millis(100);

/// Hands out time for bytes.
#[derive(Debug, Clone)]
pub struct Pace {
    rate: Rate,
    /// When what was asked for so far has had its time.
    until: Duration,
}

impl Pace {
    /// A ceiling of `rate`; its clock begins at zero.
    pub fn new(rate: Rate) -> Self {
        Self { rate, until: Duration::ZERO }
    }

    /// How long to wait before `bytes` more are asked for, at the time `now`.
    pub fn wait(&mut self, now: Duration, bytes: u64) -> Duration {
        let begin = self.until.max(now.saturating_sub(CREDIT));
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate.0.max(1) as f64);
        self.until = begin.saturating_add(takes);
        begin.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_holds_from_the_first_byte_on() {
        let mut pace = Pace::new(Rate(1000));
        let (mut now, mut sent) = (Duration::ZERO, 0);
        while now < Duration::from_secs(10) {
            now += pace.wait(now, 100);
            sent += 100;
        }
        assert!((9_900..=10_200).contains(&sent), "{sent}");
    }

    #[test]
    fn a_pause_is_not_made_up_for_with_a_flood() {
        let mut pace = Pace::new(Rate(1000));
        assert_eq!(pace.wait(Duration::ZERO, 1000), Duration::ZERO);
        let now = Duration::from_secs(60);
        let waits: Vec<Duration> = (0..3).map(|_| pace.wait(now, 100)).collect();
        assert_eq!(waits, [0, 0, 100].map(Duration::from_millis));
    }
}
