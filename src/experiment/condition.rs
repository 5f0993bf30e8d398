//! Conditions on the figures of a sweep: `blackout<50ms`, `blackout.p99>1.1x`.
//!
//! Pure.

use super::{
    analysis::SweepAnalysis,
    censored::{CensoredSample, IntervalEstimate},
    metrics::{METRICS, definition},
};
use std::{fmt, str::FromStr};

/// What of a figure's values is compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum FigureStatistic {
    /// A quantile, from 0.0 to 1.0.
    Quantile(f64),
    Mean,
}

/// Which side of the bound is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BoundSide {
    Below,
    AtMost,
    Above,
    AtLeast,
}

/// The bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum FigureBound {
    /// In the figure's own unit.
    Value(f64),
    /// So many times what another sweep had.
    Times(f64),
}

/// A condition on a figure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FigureCondition {
    pub(crate) figure: String,
    pub(crate) statistic: FigureStatistic,
    side: BoundSide,
    pub(crate) bound: FigureBound,
    text: String,
}

impl fmt::Display for FigureCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for FigureCondition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = text.find(['<', '>']).ok_or("write FIGURE<VALUE, such as blackout<50ms, or blackout.p99>1.1x")?;
        let (name, rest) = text.split_at(at);
        let (side, bound) = match rest.as_bytes() {
            [b'<', b'=', ..] => (BoundSide::AtMost, &rest[2..]),
            [b'<', ..] => (BoundSide::Below, &rest[1..]),
            [_, b'=', ..] => (BoundSide::AtLeast, &rest[2..]),
            _ => (BoundSide::Above, &rest[1..]),
        };
        let (figure, statistic) = figure(name.trim())?;
        let unit = definition(&figure).map_or("", |metric| metric.unit);
        Ok(Self { bound: bound_of(bound.trim(), unit)?, figure, statistic, side, text: text.trim().to_owned() })
    }
}

/// A figure and its statistic: `blackout`, `blackout.p99`, `guest.pages.during.mean`. Figures have dots as well, so
/// that a whole name counts first.
fn figure(name: &str) -> Result<(String, FigureStatistic), String> {
    let is_whole = METRICS.iter().any(|metric| metric.name == name);
    let split = name.rsplit_once('.').filter(|(figure, _)| !is_whole && definition(figure).is_some());
    match split {
        Some((figure, word)) => Ok((figure.to_owned(), statistic(word)?)),
        None if definition(name).is_some() => Ok((name.to_owned(), FigureStatistic::MEDIAN)),
        None => Err(format!("there is no figure {name}: metrics.csv of any sweep has them all")),
    }
}

fn statistic(word: &str) -> Result<FigureStatistic, String> {
    let percent =
        |word: &str| word.strip_prefix('p')?.parse::<f64>().ok().filter(|share| (0.0..=100.0).contains(share));
    match word {
        "mean" => Ok(FigureStatistic::Mean),
        "median" => Ok(FigureStatistic::MEDIAN),
        "max" => Ok(FigureStatistic::Quantile(1.0)),
        "min" => Ok(FigureStatistic::Quantile(0.0)),
        other => match percent(other) {
            Some(percent) => Ok(FigureStatistic::Quantile(percent / 100.0)),
            None => Err(format!("{other} is no statistic: write median, mean, min, max, or p99 and the like")),
        },
    }
}

fn bound_of(text: &str, unit: &str) -> Result<FigureBound, String> {
    let wrong = || format!("{text} is no bound: write a value in {unit}, such as 50{unit}, or 1.1x for a multiple");
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|value| value.is_finite());
    if let Some(times) = text.strip_suffix('x') {
        return number(times).map(FigureBound::Times).ok_or_else(wrong);
    }
    if let Some(value) = number(text.strip_suffix(unit).unwrap_or(text)) {
        return Ok(FigureBound::Value(value));
    }
    let of = |duration: std::time::Duration| match unit {
        "ms" => Some(duration.as_secs_f64() * 1e3),
        "us" => Some(duration.as_secs_f64() * 1e6),
        _ => None,
    };
    let size = |text: &str| (unit == "B").then(|| text.parse::<crate::quantity::Bytes>().ok()).flatten();
    humantime::parse_duration(text)
        .ok()
        .and_then(of)
        .or_else(|| size(text).map(|size| size.0 as f64))
        .map(FigureBound::Value)
        .ok_or_else(wrong)
}

impl fmt::Display for FigureStatistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quantile(share) if *share == 0.5 => f.write_str("median"),
            Self::Quantile(share) => write!(f, "p{}", share * 100.0),
            Self::Mean => f.write_str("mean"),
        }
    }
}

impl FigureStatistic {
    pub(crate) const MEDIAN: Self = Self::Quantile(0.5);

    /// The statistic of a sample, with its interval.
    pub(crate) fn estimate(self, sample: &CensoredSample, seed: u64) -> Option<IntervalEstimate> {
        sample.estimate(seed, |sample| match self {
            Self::Quantile(share) => sample.quantile(share),
            Self::Mean => sample.mean(),
        })
    }
}

impl super::analysis::ConfigurationTrials {
    /// The value that a condition is about; none where no trial tells it.
    pub(crate) fn estimate(&self, condition: &FigureCondition, seed: u64) -> Option<IntervalEstimate> {
        condition.statistic.estimate(&self.sample(&condition.figure), seed)
    }
}

impl FigureCondition {
    /// Whether greater values fulfil it.
    pub(crate) fn asks_for_more(&self) -> bool {
        matches!(self.side, BoundSide::Above | BoundSide::AtLeast)
    }

    /// Whether a value fulfils it; `reference` is what the other sweep had.
    pub(crate) fn holds(&self, value: f64, reference: Option<f64>) -> Option<bool> {
        let bound = match self.bound {
            FigureBound::Value(bound) => bound,
            FigureBound::Times(times) => times * reference?,
        };
        Some(match self.side {
            BoundSide::Below => value < bound,
            BoundSide::AtMost => value <= bound,
            BoundSide::Above => value > bound,
            BoundSide::AtLeast => value >= bound,
        })
    }

    /// The same of estimates; none where one that is only the least value leaves it open.
    pub(crate) fn holds_of(&self, value: IntervalEstimate, reference: Option<IntervalEstimate>) -> Option<bool> {
        let ends = |estimate: IntervalEstimate| {
            [estimate.value, if estimate.is_at_least { f64::INFINITY } else { estimate.value }]
        };
        let references = match reference {
            Some(reference) => ends(reference).map(Some),
            None => [None; 2],
        };
        let mut all =
            ends(value).into_iter().flat_map(|value| references.map(|reference| self.holds(value, reference)));
        let first = all.next().flatten()?;
        all.all(|other| other == Some(first)).then_some(first)
    }
}

/// How sure it is that a configuration meets a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GoalCertainty {
    /// The estimate meets it, and a part of its interval does not, or there are too few trials for an interval.
    Likely,
    /// The whole interval meets it.
    Sure,
}

/// A configuration that meets a goal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MetGoal {
    pub(crate) configuration: usize,
    pub(crate) figure: IntervalEstimate,
    pub(crate) total: IntervalEstimate,
    pub(crate) certainty: GoalCertainty,
    /// Trials that met it by themselves, of all.
    pub(crate) met: usize,
    pub(crate) tried: usize,
}

/// The configurations that meet a goal, the one with the least total time first. One of which a trial did not move
/// meets none.
pub(crate) fn meeting(analysis: &SweepAnalysis<'_>, goal: &FigureCondition, seed: u64) -> Vec<MetGoal> {
    let mut meeting: Vec<MetGoal> = (0..)
        .zip(&analysis.configurations)
        .filter(|(_, trials)| trials.tried > 0 && trials.counted == trials.tried)
        .filter_map(|(configuration, trials)| {
            let values = trials.values(&goal.figure);
            let figure = goal.statistic.estimate(&trials.sample(&goal.figure), seed)?;
            let holds = |value: f64| goal.holds(value, None) == Some(true);
            if !holds(figure.value) {
                return None;
            }
            let is_sure = figure.interval.is_some_and(|(low, high)| holds(low) && holds(high));
            Some(MetGoal {
                configuration,
                figure,
                total: FigureStatistic::MEDIAN.estimate(&trials.sample(analysis.compared().1), seed)?,
                certainty: if is_sure { GoalCertainty::Sure } else { GoalCertainty::Likely },
                met: values.iter().filter(|value| holds(**value)).count(),
                tried: trials.tried,
            })
        })
        .collect();
    meeting.sort_by(|one, other| one.total.value.total_cmp(&other.total.value));
    meeting
}

/// The same figure in two sweeps, for one configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ComparedFigure {
    pub(crate) configuration: String,
    pub(crate) figure: String,
    pub(crate) statistic: FigureStatistic,
    pub(crate) before: IntervalEstimate,
    pub(crate) after: IntervalEstimate,
    /// Whether the two intervals have nothing in common; none where one is missing.
    pub(crate) differs: Option<bool>,
}

/// Sets two sweeps side by side: every configuration that both have, by a statistic of each of these figures.
pub(crate) fn compared(
    before: &SweepAnalysis<'_>,
    after: &SweepAnalysis<'_>,
    figures: &[(String, FigureStatistic)],
    seed: u64,
) -> Vec<ComparedFigure> {
    let mut compared = Vec::new();
    for trials in &after.configurations {
        let Some(twin) = before.configurations.iter().find(|twin| twin.levels == trials.levels) else { continue };
        for (figure, statistic) in figures {
            let of = |trials: &super::analysis::ConfigurationTrials| statistic.estimate(&trials.sample(figure), seed);
            let (Some(before), Some(after)) = (of(twin), of(trials)) else { continue };
            let differs = before.interval.zip(after.interval).map(|(one, other)| one.1 < other.0 || other.1 < one.0);
            compared.push(ComparedFigure {
                configuration: trials.label.clone(),
                figure: figure.clone(),
                statistic: *statistic,
                before,
                after,
                differs,
            });
        }
    }
    compared
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::{analysis::tests as samples, trial_record::TrialRecord};

    fn condition(text: &str) -> FigureCondition {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn conditions_are_read_with_figure_statistic_and_bound() {
        use FigureBound::{Times, Value};
        use FigureStatistic::{Mean, Quantile};
        let cases = [
            ("blackout<50ms", "blackout", Quantile(0.5), Value(50.0)),
            ("blackout.p99 > 1.1x", "blackout", Quantile(0.99), Times(1.1)),
            ("blackout.max<=2s", "blackout", Quantile(1.0), Value(2000.0)),
            ("guest.pages.during.mean>=900", "guest.pages.during", Mean, Value(900.0)),
            ("guest.page-time.p99.during<300us", "guest.page-time.p99.during", Quantile(0.5), Value(300.0)),
            ("guest.page-time.during.p95<2ms", "guest.page-time.during", Quantile(0.95), Value(2000.0)),
            ("ram.bytes<1GiB", "ram.bytes", Quantile(0.5), Value(1_073_741_824.0)),
            ("ledger.drain<5", "ledger.drain", Quantile(0.5), Value(5.0)),
            ("ledger.drain.p95<5", "ledger.drain", Quantile(0.95), Value(5.0)),
        ];
        for (text, figure, statistic, bound) in cases {
            let read = condition(text);
            assert_eq!((read.figure.as_str(), read.statistic, read.bound), (figure, statistic, bound), "{text}");
        }
        for (text, words) in [
            ("blackout", "blackout<50ms"),
            ("blackoot<5", "no figure blackoot"),
            ("blackout.q9<5", "q9 is no statistic"),
            ("blackout.p101<5", "no statistic"),
            ("blackout<fast", "50ms"),
            ("blackout<", "no bound"),
            ("ram.bytes<5s", "no bound"),
        ] {
            let error = text.parse::<FigureCondition>().expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn the_goal_is_met_by_the_fastest_that_keeps_it() {
        let plan = samples::plan();
        let mut records = samples::records(&plan);
        let meeting = |records: &[TrialRecord], goal: &str| {
            let analysis = SweepAnalysis::new(&plan, records);
            meeting(&analysis, &condition(goal), 1)
                .into_iter()
                .map(|met| (met.configuration, met.certainty, met.met))
                .collect::<Vec<_>>()
        };
        use GoalCertainty::{Likely, Sure};
        assert_eq!(meeting(&records, "blackout<100ms"), [(1, Sure, 6), (3, Sure, 6), (0, Sure, 6), (2, Sure, 6)]);
        assert_eq!(meeting(&records, "blackout<13ms"), [(0, Likely, 3)]);
        assert_eq!(meeting(&records, "blackout.max<15.5ms"), [(0, Sure, 6)]);
        assert_eq!(meeting(&records, "blackout<5ms"), []);
        records[1].outcome = "rolled-back".into();
        assert_eq!(
            meeting(&records, "blackout<100ms").first().map(|met| met.0),
            Some(3),
            "one that failed once is none"
        );
    }

    #[test]
    fn two_sweeps_are_compared_by_what_both_have() {
        let plan = samples::plan();
        let (before, mut after) = (samples::records(&plan), samples::records(&plan));
        for record in &mut after {
            let slower = record.figures["blackout"] * if record.configuration == 0 { 2.0 } else { 1.0 };
            record.figures.insert("blackout".into(), slower);
        }
        let (before, after) = (SweepAnalysis::new(&plan, &before), SweepAnalysis::new(&plan, &after));
        let figures =
            [("blackout".to_owned(), FigureStatistic::Quantile(0.5)), ("nothing".to_owned(), FigureStatistic::Mean)];
        let compared = compared(&before, &after, &figures, 1);
        assert_eq!(compared.len(), 4);
        assert_eq!(compared[0].differs, Some(true));
        assert_eq!(compared[1].differs, Some(false));
        let fails = condition("blackout>1.1x");
        let failed: Vec<_> = compared.iter().map(|one| fails.holds(one.after.value, Some(one.before.value))).collect();
        assert_eq!(failed, [Some(true), Some(false), Some(false), Some(false)]);
        assert_eq!(fails.holds(5.0, None), None, "a multiple of nothing is not known");
    }

    #[test]
    fn a_condition_on_what_is_not_known_holds_fails_or_is_open() {
        let of = |value| IntervalEstimate { value, is_at_least: false, interval: None };
        let at_least = |value| IntervalEstimate { value, is_at_least: true, interval: None };
        let cases = [
            ("total<50s", at_least(60e3), None, Some(false)),
            ("total<50s", at_least(40e3), None, None),
            ("total>50s", at_least(60e3), None, Some(true)),
            ("total>=50s", at_least(40e3), None, None),
            ("total>50s", of(40e3), None, Some(false)),
            ("total>1.1x", at_least(60e3), Some(of(50e3)), Some(true)),
            ("total>1.1x", at_least(40e3), Some(of(50e3)), None),
            ("total>1.1x", of(50e3), Some(at_least(50e3)), Some(false)),
            ("total>1.1x", of(60e3), Some(at_least(50e3)), None),
            ("total>1.1x", at_least(60e3), Some(at_least(50e3)), None),
            ("total>1.1x", of(60e3), None, None),
        ];
        for (text, value, reference, expected) in cases {
            assert_eq!(condition(text).holds_of(value, reference), expected, "{text} of {value:?} and {reference:?}");
        }
    }
}
