//! The statistics of a sweep: one trial is one observation.
//!
//! Pure. Quantiles are those of type 7 of Hyndman and Fan, the default of R and NumPy. Intervals are bias-corrected and
//! accelerated bootstrap intervals (Efron 1987), from a seed, so that a report reads the same each time it is made; and
//! plain percentiles of the resamples where one of these does not tell the statistic.

/// The resamples of an interval.
const RESAMPLES: usize = 2000;
/// The confidence of every interval.
const CONFIDENCE: f64 = 0.95;
/// An observation is far from the others when its modified Z-score is above this (as hyperfine has it; the usual 3.5
/// names too many of the skewed times that a migration has).
const FAR: f64 = 14.826;

/// What is said of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SampleSummary {
    pub(crate) count: usize,
    pub(crate) mean: f64,
    /// The sample standard deviation, over n - 1; none for one observation.
    pub(crate) deviation: Option<f64>,
    pub(crate) least: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) median: f64,
    pub(crate) upper_quartile: f64,
    pub(crate) greatest: f64,
}

/// The values in order, without those that are no numbers.
pub(crate) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The quantile of values in order, from 0.0 to 1.0; none of no value.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    quantile_among(sorted.len(), share, |at| sorted[at])
}

/// The same of so many values, each of which is told by its place in the order.
pub(super) fn quantile_among(count: usize, share: f64, value: impl Fn(usize) -> f64) -> Option<f64> {
    let last = count.checked_sub(1)?;
    let place = share.clamp(0.0, 1.0) * last as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let (low, high) = (value(below), value((below + 1).min(last)));
    // ends of intervals may be infinite
    Some(if part == 0.0 || low == high { low } else { low + (high - low) * part })
}

/// The median of values in any order.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    quantile(&sorted(values), 0.5)
}

/// The summary of values in any order; none of no value.
pub(crate) fn summary(values: &[f64]) -> Option<SampleSummary> {
    let sorted = sorted(values);
    let (least, greatest) = (*sorted.first()?, *sorted.last()?);
    let count = sorted.len();
    let mean = sorted.iter().sum::<f64>() / count as f64;
    let squares: f64 = sorted.iter().map(|value| (value - mean).powi(2)).sum();
    Some(SampleSummary {
        count,
        mean,
        deviation: (count > 1).then(|| (squares / (count - 1) as f64).sqrt()),
        least,
        lower_quartile: quantile(&sorted, 0.25)?,
        median: quantile(&sorted, 0.5)?,
        upper_quartile: quantile(&sorted, 0.75)?,
        greatest,
    })
}

/// The bootstrap interval of [`CONFIDENCE`] of a statistic of a sample in order, which is `value`. None of fewer than 5
/// observations, of which a bootstrap knows too little. The statistic is given samples in order, and what to take, at
/// least, for a value that is not known.
pub(super) fn bootstrapped<T: Copy>(
    sample: &[T],
    seed: u64,
    value: f64,
    statistic: impl Fn(&[T], f64) -> f64,
) -> Option<(f64, f64)> {
    if sample.len() < 5 {
        return None;
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut drawn, mut times) = (Vec::with_capacity(sample.len()), vec![0_u32; sample.len()]);
    let mut resampled: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            // how often each is drawn gives the order without a sort
            sample.iter().for_each(|_| times[random.usize(..sample.len())] += 1);
            drawn.clear();
            for (one, times) in sample.iter().zip(&mut times) {
                drawn.extend((0..std::mem::take(times)).map(|_| *one));
            }
            statistic(&drawn, f64::INFINITY)
        })
        .collect();
    resampled.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    if resampled.last().is_some_and(|greatest| greatest.is_infinite()) {
        // a bias and an acceleration of values that are not known mean nothing (Efron 1981)
        return quantile(&resampled, tail).zip(quantile(&resampled, 1.0 - tail));
    }
    accelerated(sample, &resampled, value, |sample| statistic(sample, f64::NEG_INFINITY))
}

/// The interval by bias correction and acceleration.
fn accelerated<T: Copy>(
    sample: &[T],
    resampled: &[f64],
    value: f64,
    statistic: impl Fn(&[T]) -> f64,
) -> Option<(f64, f64)> {
    let below = resampled.iter().filter(|one| **one < value).count() as f64;
    let equal = resampled.iter().filter(|one| **one == value).count() as f64;
    // Half of those that equal it count as below, or a median, which repeats, would always seem biased.
    let share = (below + equal / 2.0) / resampled.len() as f64;
    let bias = normal_quantile(share.clamp(1e-6, 1.0 - 1e-6));
    let without: Vec<f64> = (0..sample.len())
        .map(|left_out| {
            let rest: Vec<T> =
                sample.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, value)| *value).collect();
            statistic(&rest)
        })
        .collect();
    let mean = without.iter().sum::<f64>() / without.len() as f64;
    let squares: f64 = without.iter().map(|one| (mean - one).powi(2)).sum();
    let cubes: f64 = without.iter().map(|one| (mean - one).powi(3)).sum();
    let acceleration = if squares > 0.0 { cubes / (6.0 * squares.powf(1.5)) } else { 0.0 };
    let end = |tail: f64| {
        let score = bias + normal_quantile(tail);
        normal_share(bias + score / (1.0 - acceleration * score))
    };
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Some((quantile(resampled, end(tail))?, quantile(resampled, end(1.0 - tail))?))
}

/// The share of a normal distribution below a score: Abramowitz and Stegun 7.1.26, right to 1.5e-7.
fn normal_share(score: f64) -> f64 {
    let x = score.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    let polynomial = series.iter().fold(0.0, |sum, factor| sum * t + factor) * t;
    let error = 1.0 - polynomial * (-x * x).exp();
    if score < 0.0 { (1.0 - error) / 2.0 } else { (1.0 + error) / 2.0 }
}

/// The score below which a share of a normal distribution is, found by halving.
fn normal_quantile(share: f64) -> f64 {
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if normal_share(middle) < share { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// The places of the observations that are far from the others, by the modified Z-score of Iglewicz and Hoaglin.
pub(crate) fn outliers(values: &[f64]) -> Vec<usize> {
    let Some(middle) = median(values) else { return Vec::new() };
    let apart: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    let Some(spread) = median(&apart).filter(|spread| *spread > 0.0) else { return Vec::new() };
    (0..values.len()).filter(|at| 0.6745 * apart[*at] / spread > FAR).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Blackouts in milliseconds as a sweep may have them.
    const TIMES: [f64; 12] = [13.6, 12.8, 14.1, 13.2, 55.0, 12.9, 13.0, 14.4, 13.7, 12.7, 13.3, 21.5];

    /// Mean, standard deviation, lower quartile, median, upper quartile.
    const EXPECTED: (f64, f64, f64, f64, f64) = (17.516666667, 12.044375023, 12.975, 13.45, 14.175);

    fn near(value: f64, expected: f64, within: f64) {
        assert!((value - expected).abs() <= within, "{value} instead of {expected}");
    }

    /// The figures are those of Python's `statistics` module: `quantiles(method="inclusive")`, `mean`, `stdev`.
    #[test]
    fn a_summary_is_that_of_another_implementation() {
        let summary = summary(&TIMES).expect("there are values");
        near(summary.mean, EXPECTED.0, 1e-9);
        near(summary.deviation.expect("there are several"), EXPECTED.1, 1e-9);
        near(summary.lower_quartile, EXPECTED.2, 1e-9);
        near(summary.median, EXPECTED.3, 1e-9);
        near(summary.upper_quartile, EXPECTED.4, 1e-9);
        assert_eq!((summary.count, summary.least, summary.greatest), (12, 12.7, 55.0));
    }

    #[test]
    fn a_normal_share_is_that_of_the_tables() {
        for (score, share) in
            [(0.0, 0.5), (1.0, 0.841_344_7), (1.959_964, 0.975), (-1.644_854, 0.05), (3.0, 0.998_650_1)]
        {
            near(normal_share(score), share, 2e-7);
            near(normal_quantile(share), score, 5e-5);
        }
    }

    #[test]
    fn a_far_value_is_named_and_a_common_one_is_not() {
        assert_eq!(outliers(&TIMES), [4]);
        assert_eq!(outliers(&[5.0; 8]), [] as [usize; 0]);
        assert_eq!(outliers(&[]), [] as [usize; 0]);
    }

    proptest! {
        #[test]
        fn quantiles_are_ordered_and_within_the_sample(values in proptest::collection::vec(-1e9..1e9_f64, 1..60)) {
            let summary = summary(&values).expect("there are values");
            let all = [summary.least, summary.lower_quartile, summary.median, summary.upper_quartile, summary.greatest];
            prop_assert!(all.windows(2).all(|pair| pair[0] <= pair[1]));
        }
    }
}
