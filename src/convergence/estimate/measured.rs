//! The guest's dirty rate as QEMU measures it with `calc-dirty-rate` beside RAM's first pass.
//!
//! Pure. The first pass itself does not tell the rate: a page that is rewritten a hundred times is found dirty once, at
//! the sync that ends the pass. The next pass tells the rate only at its own end, and QEMU throttles at that very sync:
//! a throttle that is decided by that pass comes too late for it.

use super::super::sample::RamSample;
use std::{collections::VecDeque, time::Duration};

/// The number of measurements that are kept.
const KEPT: usize = 3;
/// The number of measurements without which no rate is believed: one alone may be a burst.
const BELIEVED: usize = 2;
/// The least time between two measurements once enough are kept. QEMU reads all sampled pages twice for each, which
/// takes a core some 20 ms.
const PAUSE: Duration = Duration::from_secs(5);

/// The newest measurements of the guest's dirty rate.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct MeasuredRates {
    /// Bytes per second, the oldest first.
    newest: VecDeque<u64>,
    /// The number of measurements so far.
    count: u64,
    /// The moment of the newest.
    taken: Duration,
}

impl MeasuredRates {
    /// Takes in what a sample tells; whether that is a new measurement.
    pub(super) fn add(&mut self, at: Duration, ram: &RamSample) -> bool {
        // samples of an earlier version do not count measurements, and have one at most
        let count = ram.measurements.max(1);
        let Some(rate) = ram.measured_dirty_rate.filter(|_| count > self.count) else { return false };
        if self.newest.len() == KEPT {
            self.newest.pop_front();
        }
        self.newest.push_back(rate);
        (self.count, self.taken) = (count, at);
        true
    }

    /// The rate of the newest measurement, bytes per second.
    pub(super) fn last(&self) -> Option<f64> {
        self.newest.back().map(|rate| *rate as f64)
    }

    /// The rate that the guest keeps up: the least of the newest measurements. `None` while there are too few.
    pub(super) fn sustained(&self) -> Option<f64> {
        let least = self.newest.iter().min().filter(|_| self.newest.len() >= BELIEVED);
        least.map(|rate| *rate as f64)
    }

    /// The middle one of the newest measurements, or the higher of two, bytes per second. `None` while there are too
    /// few.
    pub(super) fn usual(&self) -> Option<f64> {
        let mut sorted: Vec<u64> = self.newest.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).filter(|_| sorted.len() >= BELIEVED).map(|rate| *rate as f64)
    }

    /// The highest of the newest measurements, bytes per second. A host that is busy hides what a guest dirties when it
    /// has the time to, and nothing makes a measurement too high. `None` while there are too few.
    pub(super) fn highest(&self) -> Option<f64> {
        let most = self.newest.iter().max().filter(|_| self.newest.len() >= BELIEVED);
        most.map(|rate| *rate as f64)
    }

    /// Whether another measurement would tell something.
    pub(super) fn is_wanting(&self, at: Duration) -> bool {
        self.newest.len() < KEPT || at.saturating_sub(self.taken) >= PAUSE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(rates: &[u64]) -> MeasuredRates {
        let mut measured = MeasuredRates::default();
        for (rate, count) in rates.iter().zip(1..) {
            let sample = RamSample { measured_dirty_rate: Some(*rate), measurements: count, ..RamSample::default() };
            assert!(measured.add(Duration::from_secs(count), &sample));
            // a measurement is told again and again until there is another
            assert!(!measured.add(Duration::from_secs(count), &sample));
        }
        measured
    }

    #[test]
    fn no_rate_rests_on_one_measurement() {
        for (rates, sustained, usual, highest) in [
            (&[][..], None, None, None),
            (&[100], None, None, None),
            (&[100, 100], Some(100.0), Some(100.0), Some(100.0)),
            (&[100, 10], Some(10.0), Some(100.0), Some(100.0)),
            (&[10, 90, 100], Some(10.0), Some(90.0), Some(100.0)),
            (&[10, 100, 90, 110], Some(90.0), Some(100.0), Some(110.0)),
            (&[100, 90, 0], Some(0.0), Some(90.0), Some(100.0)),
        ] {
            let measured = after(rates);
            let told = (measured.sustained(), measured.usual(), measured.highest());
            assert_eq!(told, (sustained, usual, highest), "{rates:?}");
            assert_eq!(measured.last(), rates.last().map(|rate| *rate as f64));
            let (now, later) = (Duration::from_secs(rates.len() as u64), Duration::from_secs(rates.len() as u64 + 5));
            assert!(measured.is_wanting(later));
            assert_eq!(measured.is_wanting(now), rates.len() < KEPT, "{rates:?}");
        }
    }

    #[test]
    fn samples_of_an_earlier_version_have_one_measurement() {
        let mut measured = MeasuredRates::default();
        let sample = RamSample { measured_dirty_rate: Some(7), ..RamSample::default() };
        let added = [1, 2, 3].map(|second| measured.add(Duration::from_secs(second), &sample));
        assert_eq!((added, measured.last(), measured.sustained()), ([true, false, false], Some(7.0), None));
        assert!(!measured.add(Duration::from_secs(4), &RamSample::default()));
    }
}
