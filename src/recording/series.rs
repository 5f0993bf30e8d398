//! A series of samples in bounded memory.
//!
//! Pure. A series that becomes too long has its neighbours merged; what is merged keeps its first, least, greatest and
//! last sample, so that no peak is lost.

use std::time::Duration;

/// Most buckets of a series: as many as a wide plot has pixels for.
const BUCKETS: usize = 512;
/// Most places at which a series is interrupted.
const BREAKS: usize = 16;

/// One value at one time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SeriesPoint {
    /// Seconds since the recorder was made.
    pub at: f64,
    /// The value, in the unit of the series.
    pub value: f64,
}

/// Neighbouring samples.
#[derive(Debug, Clone, Copy)]
struct SeriesBucket {
    first: SeriesPoint,
    least: SeriesPoint,
    greatest: SeriesPoint,
    last: SeriesPoint,
    samples: usize,
    /// Samples are missing before this bucket.
    is_behind_gap: bool,
}

impl SeriesBucket {
    fn of(point: SeriesPoint, is_behind_gap: bool) -> Self {
        Self { first: point, least: point, greatest: point, last: point, samples: 1, is_behind_gap }
    }

    fn absorb(&mut self, next: &Self) {
        if next.least.value < self.least.value {
            self.least = next.least;
        }
        if next.greatest.value > self.greatest.value {
            self.greatest = next.greatest;
        }
        self.last = next.last;
        self.samples += next.samples;
    }

    /// The samples that are kept, in the order of their times and each once.
    fn points(&self) -> impl Iterator<Item = SeriesPoint> {
        let mut points = vec![self.first, self.least, self.greatest, self.last];
        points.sort_by(|one, other| one.at.total_cmp(&other.at));
        points.dedup();
        points.into_iter()
    }
}

/// Samples over time, as many as memory and a picture have room for.
#[derive(Debug, Clone)]
pub struct BoundedSeries {
    buckets: Vec<SeriesBucket>,
    /// Samples of each bucket that is full.
    stride: usize,
    breaks: usize,
    is_interrupted: bool,
}

impl Default for BoundedSeries {
    fn default() -> Self {
        Self { buckets: Vec::new(), stride: 1, breaks: 0, is_interrupted: false }
    }
}

impl BoundedSeries {
    /// Adds a sample. A value that is no number is passed over.
    pub fn push(&mut self, at: Duration, value: f64) {
        let point = SeriesPoint { at: at.as_secs_f64(), value };
        if !value.is_finite() {
            return;
        }
        let is_behind_gap = std::mem::take(&mut self.is_interrupted) && !self.buckets.is_empty();
        let next = SeriesBucket::of(point, is_behind_gap);
        let stride = self.stride;
        match self.buckets.last_mut().filter(|last| last.samples < stride && !is_behind_gap) {
            Some(last) => last.absorb(&next),
            None => self.buckets.push(next),
        }
        if self.buckets.len() > BUCKETS {
            self.halve();
        }
    }

    /// Notes that samples are missing from here to the next one.
    pub fn interrupt(&mut self) {
        if self.breaks < BREAKS && !self.is_interrupted {
            self.breaks += 1;
            self.is_interrupted = true;
        }
    }

    fn halve(&mut self) {
        self.stride *= 2;
        let mut merged: Vec<SeriesBucket> = Vec::with_capacity(BUCKETS);
        for bucket in &self.buckets {
            match merged.last_mut().filter(|last| last.samples < self.stride && !bucket.is_behind_gap) {
                Some(last) => last.absorb(bucket),
                None => merged.push(*bucket),
            }
        }
        self.buckets = merged;
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// The samples that are kept; each part is without a gap.
    pub fn parts(&self) -> Vec<Vec<SeriesPoint>> {
        let mut parts: Vec<Vec<SeriesPoint>> = Vec::new();
        for bucket in &self.buckets {
            match parts.last_mut().filter(|_| !bucket.is_behind_gap) {
                Some(part) => part.extend(bucket.points()),
                None => parts.push(bucket.points().collect()),
            }
        }
        parts
    }

    /// The greatest value; `None` without samples.
    pub fn greatest(&self) -> Option<f64> {
        self.buckets.iter().map(|bucket| bucket.greatest.value).reduce(f64::max)
    }

    /// The newest value.
    pub fn newest(&self) -> Option<f64> {
        self.buckets.last().map(|bucket| bucket.last.value)
    }

    /// The last value that is kept up to a time.
    pub fn value_at(&self, at: f64) -> Option<f64> {
        let behind = self.buckets.partition_point(|bucket| bucket.first.at <= at);
        let bucket = self.buckets.get(behind.checked_sub(1)?)?;
        bucket.points().filter(|point| point.at <= at).last().map(|point| point.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_short_series_is_kept_as_it_is() {
        let mut series = BoundedSeries::default();
        assert!(series.is_empty() && series.greatest().is_none() && series.value_at(1.0).is_none());
        [3.0, 9.0, f64::NAN, 1.0].into_iter().enumerate().for_each(|(n, value)| series.push(millis(n as u64), value));
        series.interrupt();
        series.push(millis(9), 5.0);
        let values: Vec<Vec<f64>> =
            series.parts().iter().map(|part| part.iter().map(|point| point.value).collect()).collect();
        assert_eq!(values, [vec![3.0, 9.0, 1.0], vec![5.0]]);
        assert_eq!((series.greatest(), series.newest()), (Some(9.0), Some(5.0)));
        assert_eq!((series.value_at(0.0015), series.value_at(0.008)), (Some(9.0), Some(1.0)));
    }

    proptest! {
        /// However many samples and interruptions come: the bound holds, and the ends and the peaks are there.
        #[test]
        fn peaks_survive_any_number_of_samples(
            values in prop::collection::vec(-1e18..1e18f64, 1..6000),
            gaps in prop::collection::vec(0usize..6000, 0..40),
        ) {
            let mut series = BoundedSeries::default();
            for (number, value) in values.iter().enumerate() {
                if gaps.contains(&number) {
                    series.interrupt();
                }
                series.push(millis(number as u64), *value);
                prop_assert!(series.buckets.len() <= BUCKETS + 1);
            }
            let kept: Vec<SeriesPoint> = series.parts().into_iter().flatten().collect();
            prop_assert!(kept.len() <= 4 * (BUCKETS + 1));
            prop_assert!(kept.windows(2).all(|pair| pair[0].at <= pair[1].at));
            let greatest = values.iter().copied().fold(f64::MIN, f64::max);
            let least = values.iter().copied().fold(f64::MAX, f64::min);
            prop_assert!(kept.iter().any(|point| point.value == greatest) && series.greatest() == Some(greatest));
            prop_assert!(kept.iter().any(|point| point.value == least));
            prop_assert_eq!((kept[0].value, kept[kept.len() - 1].value), (values[0], values[values.len() - 1]));
        }
    }
}
