//! Samples of which some observations are only known to be at least a value: a migration that was ended, or that
//! failed, would have taken longer than it did.
//!
//! Pure. Without such observations quantiles are those of type 7, as everywhere. With them they are read from the curve
//! of Kaplan and Meier (1958), as R's `survfit` reads them: where the curve lies flat at the share, the middle counts.

use super::statistics::{bootstrapped, quantile_among};
use std::fmt;

/// What is known of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct KnownValue {
    pub(crate) value: f64,
    /// Whether that is only the least that it can be.
    pub(crate) is_at_least: bool,
}

/// An estimate with its interval; without one where there are too few observations, or where the value is not known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct IntervalEstimate {
    pub(crate) value: f64,
    /// Whether the value is only the least that it can be.
    pub(crate) is_at_least: bool,
    /// The upper end is infinite where the sample does not tell it.
    pub(crate) interval: Option<(f64, f64)>,
}

impl IntervalEstimate {
    /// The value without its interval.
    pub(crate) fn known(self) -> KnownValue {
        KnownValue { value: self.value, is_at_least: self.is_at_least }
    }
}

/// Observations in order. Those that are known come before those that are at least as much.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct CensoredSample(Vec<KnownValue>);

/// The share of a curve is reached here, for all that sums of floating numbers tell.
const NEARLY: f64 = 1e-9;

impl fmt::Display for KnownValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_at_least { "at least " } else { "" }, self.value)
    }
}

impl CensoredSample {
    /// A sample of values that are known, and of values that are at least so much.
    pub(crate) fn new(known: &[f64], at_least: &[f64]) -> Self {
        let of = |values: &[f64], is_at_least| -> Vec<KnownValue> {
            let finite = values.iter().filter(|value| value.is_finite());
            finite.map(|value| KnownValue { value: *value, is_at_least }).collect()
        };
        let mut sample = [of(known, false), of(at_least, true)].concat();
        sample.sort_by(|one, other| one.value.total_cmp(&other.value).then(one.is_at_least.cmp(&other.is_at_least)));
        Self(sample)
    }

    /// How many are only known to be at least something.
    pub(crate) fn censored(&self) -> usize {
        self.0.iter().filter(|one| one.is_at_least).count()
    }

    /// The quantile, from 0.0 to 1.0; none of no value.
    pub(crate) fn quantile(&self, share: f64) -> Option<KnownValue> {
        let greatest = self.0.last()?.value;
        if self.censored() == 0 {
            let value = quantile_among(self.0.len(), share, |at| self.0[at].value);
            return value.map(|value| KnownValue { value, is_at_least: false });
        }
        let wanted = 1.0 - share.clamp(0.0, 1.0);
        let mut curve = self.curve().into_iter().skip_while(|(_, left)| *left > wanted + NEARLY);
        let Some((value, left)) = curve.next() else {
            return Some(KnownValue { value: greatest, is_at_least: true });
        };
        if left < wanted - NEARLY || share >= 1.0 {
            return Some(KnownValue { value, is_at_least: false });
        }
        // The curve lies flat at the share, up to its next step.
        let (end, is_at_least) = curve.next().map_or((greatest, true), |(next, _)| (next, false));
        Some(KnownValue { value: (value + end) / 2.0, is_at_least })
    }

    /// The curve's steps: each known value, and the share that is greater.
    fn curve(&self) -> Vec<(f64, f64)> {
        let (mut steps, mut left): (Vec<(f64, f64)>, f64) = (Vec::new(), 1.0);
        for (at, one) in self.0.iter().enumerate().filter(|(_, one)| !one.is_at_least) {
            // one after the other, values that are alike give the product of Kaplan and Meier as well
            let at_risk = (self.0.len() - at) as f64;
            left *= 1.0 - 1.0 / at_risk;
            match steps.last_mut() {
                Some(step) if step.0 == one.value => step.1 = left,
                _ => steps.push((one.value, left)),
            }
        }
        steps
    }

    /// The mean, of which values that are at least so much make a least mean; none of no value.
    pub(crate) fn mean(&self) -> Option<KnownValue> {
        let sum: f64 = self.0.iter().map(|one| one.value).sum();
        let mean = KnownValue { value: sum / self.0.len() as f64, is_at_least: self.censored() > 0 };
        (!self.0.is_empty()).then_some(mean)
    }

    /// A statistic with its bootstrap interval; none of no value.
    pub(crate) fn estimate(
        &self,
        seed: u64,
        statistic: impl Fn(&Self) -> Option<KnownValue>,
    ) -> Option<IntervalEstimate> {
        let KnownValue { value, is_at_least } = statistic(self)?;
        // of a resample, a value that is only the least one is beyond all that are known
        let of = |drawn: &[KnownValue], beyond: f64| -> f64 {
            match statistic(&Self(drawn.to_vec())) {
                Some(known) if known.is_at_least => known.value.max(beyond),
                known => known.map_or(f64::NAN, |known| known.value),
            }
        };
        let interval = if is_at_least { None } else { bootstrapped(&self.0, seed, value, of) };
        Some(IntervalEstimate { value, is_at_least, interval })
    }

    /// The median with its interval.
    pub(crate) fn median(&self, seed: u64) -> Option<IntervalEstimate> {
        self.estimate(seed, |sample| sample.quantile(0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Weeks in remission under 6-MP (Freireich and others, 1963).
    const TREATED: (&[f64], &[f64]) = (
        &[6.0, 6.0, 6.0, 7.0, 10.0, 13.0, 16.0, 22.0, 23.0],
        &[6.0, 9.0, 10.0, 11.0, 17.0, 19.0, 20.0, 25.0, 32.0, 32.0, 34.0, 35.0],
    );
    /// Weeks of survival with acute myelogenous leukaemia (Miller, 1997; R's `survival::aml`), maintained and not.
    const MAINTAINED: (&[f64], &[f64]) = (&[9.0, 13.0, 18.0, 23.0, 31.0, 34.0, 48.0], &[13.0, 28.0, 45.0, 161.0]);
    const NOT_MAINTAINED: (&[f64], &[f64]) = (&[5.0, 5.0, 8.0, 8.0, 12.0, 23.0, 27.0, 30.0, 33.0, 43.0, 45.0], &[16.0]);

    fn sample((known, at_least): (&[f64], &[f64])) -> CensoredSample {
        CensoredSample::new(known, at_least)
    }

    /// The curves are published with the first sample, and the medians with all three; the other quantiles are of an
    /// implementation of its own, over fractions.
    #[test]
    fn quantiles_are_those_of_kaplan_and_meier() {
        let curve = sample(TREATED).curve();
        let published =
            [(6.0, 0.857), (7.0, 0.807), (10.0, 0.753), (13.0, 0.690), (16.0, 0.627), (22.0, 0.538), (23.0, 0.448)];
        assert_eq!(curve.len(), published.len());
        for (found, (value, left)) in curve.iter().zip(published) {
            assert!(found.0 == value && (found.1 - left).abs() < 6e-4, "{found:?} instead of {left}");
        }
        let limited = (&[1.0, 2.0][..], &[10.0, 10.0][..]);
        let cases = [
            (TREATED, [(0.25, "13"), (0.5, "23"), (0.75, "at least 35"), (1.0, "at least 35")]),
            (MAINTAINED, [(0.25, "18"), (0.5, "31"), (0.75, "48"), (0.9, "at least 161")]),
            (NOT_MAINTAINED, [(0.25, "8"), (0.5, "23"), (0.75, "33"), (1.0, "45")]),
            // flat at a half, and nobody knows up to where
            (limited, [(0.0, "1"), (0.25, "1.5"), (0.5, "at least 6"), (0.75, "at least 10")]),
            ((&[], &[3.0, 4.0]), [(0.0, "at least 4"), (0.5, "at least 4"), (0.9, "at least 4"), (1.0, "at least 4")]),
            ((&[1.0, 2.0, 4.0], &[]), [(0.25, "1.5"), (0.5, "2"), (0.75, "3"), (1.0, "4")]),
        ];
        for (values, quantiles) in cases {
            for (share, expected) in quantiles {
                let found = sample(values).quantile(share).map(|known| known.to_string());
                assert_eq!(found.as_deref(), Some(expected), "{share} of {values:?}");
            }
        }
        assert_eq!(CensoredSample::default().quantile(0.5), None);
    }

    #[test]
    fn an_interval_ends_where_the_sample_tells_it() {
        let median = sample(MAINTAINED).median(1).expect("there are values");
        let (low, high) = median.interval.expect("there are enough");
        assert_eq!((median.value, median.is_at_least), (31.0, false));
        // R has the same by another method: 18, and no upper end
        assert_eq!((low, high), (18.0, f64::INFINITY));
        let one_of_ten = sample((&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], &[20.0])).median(1);
        let interval = one_of_ten.and_then(|median| median.interval).expect("there are enough");
        assert!(interval.0 >= 1.0 && interval.1 <= 9.0, "a single one does not reach the median: {interval:?}");
        let unknown = sample((&[1.0, 2.0], &[9.0, 9.0, 9.0, 9.0])).median(1).expect("there are values");
        assert_eq!(unknown, IntervalEstimate { value: 9.0, is_at_least: true, interval: None });
        let mean = sample((&[1.0, 2.0], &[9.0])).mean();
        assert_eq!(mean, Some(KnownValue { value: 4.0, is_at_least: true }));
    }

    #[test]
    fn an_interval_of_a_mean_is_near_that_of_the_normal_distribution() {
        // 200 values of an even spread: mean 99.5, standard error 57.88 / sqrt(200) = 4.093.
        let values: Vec<f64> = (0..200).map(f64::from).collect();
        let mean = CensoredSample::new(&values, &[]).estimate(3, CensoredSample::mean).expect("values");
        let (low, high) = mean.interval.expect("there are enough");
        assert!((low - (99.5 - 1.96 * 4.093)).abs() <= 1.0 && (high - (99.5 + 1.96 * 4.093)).abs() <= 1.0);
    }

    #[test]
    fn an_interval_of_a_median_leaves_out_a_single_far_value() {
        let times = [13.6, 12.8, 14.1, 13.2, 55.0, 12.9, 13.0, 14.4, 13.7, 12.7, 13.3, 21.5];
        let median = |values: &[f64]| CensoredSample::new(values, &[]).median(1);
        let estimate = median(&times).expect("there are values");
        let (low, high) = estimate.interval.expect("there are enough");
        assert!((estimate.value - 13.45).abs() < 1e-9);
        assert!((12.7..=13.45).contains(&low) && (13.45..=21.5).contains(&high), "{low} to {high}");
        assert_eq!(median(&times), median(&times), "the seed decides");
        assert_eq!(median(&times[..4]).expect("values").interval, None);
        assert_eq!(median(&[]), None);
    }

    proptest! {
        #[test]
        fn an_interval_is_within_the_sample(
            values in proptest::collection::vec(-1e3..1e3_f64, 5..25),
            bounds in proptest::collection::vec(-1e3..1e3_f64, 0..5),
            seed: u64,
        ) {
            let sample = CensoredSample::new(&values, &bounds);
            let (least, greatest) = (sample.0[0].value, sample.0[sample.0.len() - 1].value);
            let median = sample.median(seed).expect("there are values");
            prop_assert!(least <= median.value && median.value <= greatest);
            if let Some((low, high)) = median.interval {
                prop_assert!(least <= low && low <= high && (high <= greatest || high == f64::INFINITY));
            }
        }

        /// A value that becomes only the least one makes no quantile smaller.
        #[test]
        fn quantiles_grow_with_what_is_not_known(
            values in proptest::collection::vec(0..50_u8, 1..12),
            at in 0..12_usize,
            share in 0.0..1.0_f64,
        ) {
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let at = at % values.len();
            let (known, bound) = ([&values[..at], &values[at + 1..]].concat(), [values[at]]);
            let more = CensoredSample::new(&known, &bound).quantile(share).expect("there are values");
            let curve = CensoredSample::new(&values, &[]).curve();
            let least = curve.iter().find(|(_, left)| *left <= 1.0 - share + NEARLY).expect("it ends at nought").0;
            prop_assert!(more.value >= least, "{more} for {least}");
        }
    }
}
