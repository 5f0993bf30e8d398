//! How long QEMU takes to answer.
//!
//! Pure. One slow answer says little: a main loop that stalled once for a second does not stall again because of that.

use std::collections::VecDeque;

/// The number of answers that are looked at.
const WINDOW: usize = 9;

/// The newest answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct RoundTrips {
    /// Milliseconds, the oldest first.
    recent: VecDeque<f64>,
    /// Milliseconds of an answer that came after the guest was stopped.
    at_stop: Option<f64>,
}

impl RoundTrips {
    pub(super) fn add(&mut self, ms: f64) {
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(ms);
    }

    /// Takes in an answer from after the guest's stop, which tells more of the next answers than all before. QEMU may
    /// have had work to do for the answer, so only a fast one counts.
    pub(super) fn add_at_stop(&mut self, ms: f64) {
        self.at_stop = Some(ms);
    }

    /// The median of the newest answers, or the answer from after the guest's stop where that was faster.
    pub(super) fn get(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.recent.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied();
        median.map(|median| self.at_stop.map_or(median, |at_stop| median.min(at_stop)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(answers: &[f64]) -> RoundTrips {
        let mut trips = RoundTrips::default();
        answers.iter().for_each(|ms| trips.add(*ms));
        trips
    }

    #[test]
    fn one_slow_answer_decides_nothing() {
        assert_eq!(after(&[]).get(), None);
        assert_eq!(after(&[3.0]).get(), Some(3.0));
        assert_eq!(after(&[1.0, 1.2, 1400.0]).get(), Some(1.2));
        assert_eq!(after(&[1.0, 1.2, 1.1, 1400.0, 900.0]).get(), Some(1.2));
        // A QEMU that has become slow is seen to be slow.
        assert_eq!(after(&[1.0, 1.0, 1.0, 1.0, 50.0, 51.0, 52.0, 53.0, 54.0, 55.0, 56.0]).get(), Some(52.0));
        let mut stopped = after(&[]);
        stopped.add_at_stop(900.0);
        assert_eq!(stopped.get(), None);
        let mut stopped = after(&[40.0, 40.0, 40.0]);
        stopped.add_at_stop(900.0);
        assert_eq!(stopped.get(), Some(40.0));
        stopped.add_at_stop(2.0);
        assert_eq!(stopped.get(), Some(2.0));
    }
}
