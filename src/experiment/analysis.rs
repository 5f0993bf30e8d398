//! What the trials of a sweep say together.
//!
//! Pure. The trial is the unit: every statistic is one over trials. Differences are taken within a block, between
//! trials that differ in one factor alone, so that what changed with time between the blocks is not in them. A trial
//! that was ended or failed says of its times that they are at least so long.

use super::{
    censored::{CensoredSample, IntervalEstimate, KnownValue},
    grid::SweepPlan,
    metrics::GROWING,
    statistics::{median, outliers, summary},
    trial_record::TrialRecord,
};
use std::{collections::BTreeMap, time::Duration};

/// The trials of one configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ConfigurationTrials {
    pub(crate) label: String,
    pub(crate) levels: Vec<String>,
    /// Trials in all, and those whose figures count.
    pub(crate) tried: usize,
    pub(crate) counted: usize,
    /// Trials that the limit ended.
    pub(crate) censored: usize,
    /// The values of each figure, with the number of their trial.
    values: BTreeMap<String, Vec<(usize, f64)>>,
    /// What figures are at least, of trials that did not move their guest.
    at_least: BTreeMap<&'static str, Vec<f64>>,
}

impl ConfigurationTrials {
    /// The values of a figure, in the order of the trials.
    pub(crate) fn values(&self, figure: &str) -> Vec<f64> {
        self.with_trials(figure).iter().map(|(_, value)| *value).collect()
    }

    /// The same with the number of the trial of each.
    pub(crate) fn with_trials(&self, figure: &str) -> &[(usize, f64)] {
        self.values.get(figure).map_or(&[], Vec::as_slice)
    }

    /// What the figure is at least, of each trial that did not move its guest.
    fn at_least(&self, figure: &str) -> &[f64] {
        self.at_least.get(figure).map_or(&[], Vec::as_slice)
    }

    /// What all trials say of a figure.
    pub(crate) fn sample(&self, figure: &str) -> CensoredSample {
        CensoredSample::new(&self.values(figure), self.at_least(figure))
    }

    pub(crate) fn median(&self, figure: &str) -> Option<KnownValue> {
        self.sample(figure).quantile(0.5)
    }
}

/// What a level of a factor does to a figure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LevelEffect {
    pub(crate) level: String,
    pub(crate) values: Vec<f64>,
    /// What the others are at least.
    pub(crate) at_least: Vec<f64>,
    pub(crate) median: IntervalEstimate,
    pub(crate) quartiles: [KnownValue; 2],
    pub(crate) mean: KnownValue,
    /// The sample standard deviation, where every value is known.
    pub(crate) deviation: Option<f64>,
    /// The median of the differences from the factor's first level, within blocks; none of that level itself.
    pub(crate) difference: Option<IntervalEstimate>,
    /// Differences that are not known, as one of the two trials did not move its guest.
    pub(crate) unknown_differences: usize,
}

/// A trial that is far from the others of its configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FarTrial {
    pub(crate) trial: usize,
    pub(crate) configuration: String,
    pub(crate) figure: &'static str,
    pub(crate) value: f64,
    pub(crate) median: f64,
}

/// All of it.
#[derive(Debug, Clone)]
pub(crate) struct SweepAnalysis<'a> {
    plan: &'a SweepPlan,
    records: &'a [TrialRecord],
    pub(crate) configurations: Vec<ConfigurationTrials>,
}

impl<'a> SweepAnalysis<'a> {
    /// Sorts the trials by their configurations.
    pub(crate) fn new(plan: &'a SweepPlan, records: &'a [TrialRecord]) -> Self {
        let mut configurations: Vec<ConfigurationTrials> = plan
            .configurations
            .iter()
            .map(|configuration| ConfigurationTrials {
                label: configuration.to_string(),
                levels: configuration.levels.clone(),
                ..ConfigurationTrials::default()
            })
            .collect();
        for record in records {
            let Some(trials) = configurations.get_mut(record.configuration) else { continue };
            trials.tried += 1;
            trials.censored += usize::from(record.censored);
            if record.counts() {
                trials.counted += 1;
                for (name, value) in &record.figures {
                    trials.values.entry(name.clone()).or_default().push((record.trial, *value));
                }
            }
            let limit = plan.configurations[record.configuration].setup.limit;
            for figure in GROWING {
                if let Some(bound) = record.at_least(figure, limit) {
                    trials.at_least.entry(figure).or_default().push(bound);
                }
            }
        }
        Self { plan, records, configurations }
    }

    /// The figures of the blackout and of the time in all by which the combinations are compared.
    pub(crate) fn compared(&self) -> (&'static str, &'static str) {
        self.plan.compared()
    }

    /// The seed of all intervals.
    fn seed(&self) -> u64 {
        self.plan.spec.seed
    }

    /// The median of a figure of a configuration, with its interval.
    pub(crate) fn median_of(&self, configuration: usize, figure: &str) -> Option<IntervalEstimate> {
        self.configurations.get(configuration)?.sample(figure).median(self.seed())
    }

    /// A quantile of a figure of a configuration.
    pub(crate) fn quantile_of(&self, configuration: usize, figure: &str, share: f64) -> Option<KnownValue> {
        self.configurations.get(configuration)?.sample(figure).quantile(share)
    }

    /// The levels of a factor in the order of the spec, each with its effect on a figure. Levels without any value are
    /// left out.
    pub(crate) fn effect(&self, factor: usize, figure: &str) -> Vec<LevelEffect> {
        let mut levels: Vec<&str> = Vec::new();
        for configuration in &self.configurations {
            let level = configuration.levels[factor].as_str();
            if !levels.contains(&level) {
                levels.push(level);
            }
        }
        let first = levels.first().copied().unwrap_or_default();
        let effects = levels.iter().filter_map(|level| {
            let of_level =
                || self.configurations.iter().filter(|configuration| configuration.levels[factor] == **level);
            let values: Vec<f64> = of_level().flat_map(|configuration| configuration.values(figure)).collect();
            let at_least: Vec<f64> =
                of_level().flat_map(|configuration| configuration.at_least(figure)).copied().collect();
            let sample = CensoredSample::new(&values, &at_least);
            let pairs = if *level == first { Vec::new() } else { self.differences(factor, first, level, figure) };
            let differences: Vec<f64> = pairs.iter().copied().flatten().collect();
            Some(LevelEffect {
                level: (*level).to_owned(),
                median: sample.median(self.seed())?,
                quartiles: [sample.quantile(0.25)?, sample.quantile(0.75)?],
                mean: sample.mean()?,
                deviation: summary(&values).filter(|_| at_least.is_empty()).and_then(|summary| summary.deviation),
                difference: CensoredSample::new(&differences, &[]).median(self.seed()),
                unknown_differences: pairs.len() - differences.len(),
                values,
                at_least,
            })
        });
        effects.collect()
    }

    /// The differences of a figure between two levels of a factor: within blocks, all other levels alike. None where
    /// one of the two is only known to be at least something.
    fn differences(&self, factor: usize, from: &str, to: &str, figure: &str) -> Vec<Option<f64>> {
        let is_bound = |record: &TrialRecord| record.at_least(figure, Duration::MAX).is_some();
        let counted: Vec<&'a TrialRecord> =
            self.records.iter().filter(|record| record.counts() || is_bound(record)).collect();
        // twins have the block and all other levels in common
        let others = |record: &'a TrialRecord| -> (u32, Vec<&'a String>) {
            let levels = record.levels.iter().enumerate().filter(|(at, _)| *at != factor).map(|(_, level)| level);
            (record.block, levels.collect())
        };
        let with = |level: &str| {
            let level = level.to_owned();
            counted.iter().copied().filter(move |record| record.levels[factor] == level)
        };
        let twins: BTreeMap<_, &TrialRecord> = with(from).map(|record| (others(record), record)).collect();
        let pairs = with(to).filter_map(|record| {
            let twin = twins.get(&others(record))?;
            let difference = record.figures.get(figure)? - twin.figures.get(figure)?;
            Some((record.counts() && twin.counts()).then_some(difference))
        });
        pairs.collect()
    }

    /// The configurations than which no other has both a shorter median of one figure and one of the other, nor is as
    /// short in one and shorter in the other; only those of which every trial counted.
    pub(crate) fn efficient(&self, one: &str, other: &str) -> Vec<usize> {
        let points: Vec<Option<(f64, f64)>> = self
            .configurations
            .iter()
            .map(|trials| {
                let whole = trials.tried > 0 && trials.counted == trials.tried;
                // Every value is known where all trials moved their guest.
                Some((trials.median(one)?.value, trials.median(other)?.value)).filter(|_| whole)
            })
            .collect();
        let is_beaten =
            |(x, y): (f64, f64)| points.iter().flatten().any(|(a, b)| *a <= x && *b <= y && (*a < x || *b < y));
        (0..points.len()).filter(|at| points[*at].is_some_and(|point| !is_beaten(point))).collect()
    }

    /// Trials that are far from the others of their configuration.
    pub(crate) fn far(&self, figures: &[&'static str]) -> Vec<FarTrial> {
        let mut far = Vec::new();
        for trials in &self.configurations {
            for figure in figures {
                let values = trials.with_trials(figure);
                let plain = trials.values(figure);
                let Some(median) = median(&plain) else { continue };
                far.extend(outliers(&plain).into_iter().map(|at| FarTrial {
                    trial: values[at].0,
                    configuration: trials.label.clone(),
                    figure,
                    value: values[at].1,
                    median,
                }));
            }
        }
        far
    }

    /// What was predicted, and what it was: of every trial that has both.
    pub(crate) fn predictions(&self, figure: &str) -> Vec<(f64, f64)> {
        let predicted = format!("predicted.{figure}");
        let counted = self.records.iter().filter(|record| record.counts());
        counted.filter_map(|record| Some((*record.figures.get(&predicted)?, *record.figures.get(figure)?))).collect()
    }

    /// The trials of a configuration that count, by a figure: the one at its median, and the one with the most.
    pub(crate) fn typical_and_worst(&self, configuration: usize, figure: &str) -> Option<(usize, usize)> {
        let mut values = self.configurations.get(configuration)?.with_trials(figure).to_vec();
        values.sort_by(|one, other| one.1.total_cmp(&other.1));
        Some((values.get(values.len().checked_sub(1)? / 2)?.0, values.last()?.0))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn plan() -> SweepPlan {
        SweepPlan::read(
            "repeats = 6\n[[factor]]\nname = \"load\"\nfield = \"workload.dirty\"\nvalues = [\"0\", \"8MiB/s\"]\n\
             [[factor]]\nfield = \"migrate.downtime\"\nvalues = [\"20ms\", \"300ms\"]\n",
        )
        .expect("the spec is right")
    }

    /// Trials whose blackout grows by 1 ms with each block, by 5 under load, and by 10 with the longer budget; their
    /// total falls by 100 with that.
    pub(crate) fn records(plan: &SweepPlan) -> Vec<TrialRecord> {
        plan.trials
            .iter()
            .map(|trial| {
                let levels = plan.configurations[trial.configuration].levels.clone();
                let (busy, long) = (f64::from(u8::from(levels[0] != "0")), f64::from(u8::from(levels[1] == "300ms")));
                let blackout = 10.0 + f64::from(trial.block) + 5.0 * busy + 10.0 * long;
                TrialRecord {
                    trial: trial.number,
                    block: trial.block,
                    configuration: trial.configuration,
                    levels,
                    ended_ms: 0,
                    outcome: "moved".into(),
                    reason: None,
                    censored: false,
                    leg: 1,
                    stop_ms: Some(900.0),
                    invalid: Vec::new(),
                    notes: Vec::new(),
                    figures: [
                        ("blackout".to_owned(), blackout),
                        ("total".to_owned(), 1000.0 + 50.0 * busy - 100.0 * long),
                        ("predicted.blackout".to_owned(), 20.0),
                    ]
                    .into(),
                }
            })
            .collect()
    }

    #[test]
    fn a_difference_is_taken_within_a_block_and_one_factor() {
        let plan = plan();
        let records = records(&plan);
        let effect = SweepAnalysis::new(&plan, &records).effect(1, "blackout");
        let levels: Vec<_> = effect.iter().map(|level| (level.level.as_str(), level.values.len())).collect();
        assert_eq!(levels, [("20ms", 12), ("300ms", 12)]);
        assert_eq!(effect[0].difference, None);
        let difference = effect[1].difference.expect("there is one");
        assert_eq!((difference.value, difference.interval), (10.0, Some((10.0, 10.0))), "exact within blocks");
        assert!(effect[1].deviation.is_some_and(|deviation| deviation > 2.0), "and not between them");
    }

    #[test]
    fn only_settings_that_none_beats_are_efficient() {
        let plan = plan();
        let mut records = records(&plan);
        let efficient = |records: &[TrialRecord]| SweepAnalysis::new(&plan, records).efficient("blackout", "total");
        assert_eq!(efficient(&records), [0, 1], "the idle guest, with each budget");
        records[0].outcome = "rolled-back".into();
        assert_eq!(efficient(&records), [1, 2], "one that failed once is none");
    }

    #[test]
    fn trials_that_do_not_count_are_counted() {
        let plan = plan();
        let mut records = records(&plan);
        records[0].censored = true;
        records[0].outcome = "cancelled".into();
        records[4].invalid.push("wrong data".into());
        let analysis = SweepAnalysis::new(&plan, &records);
        let counts: Vec<_> =
            analysis.configurations.iter().map(|trials| (trials.tried, trials.counted, trials.censored)).collect();
        assert_eq!(counts, [(6, 5, 1), (6, 5, 0), (6, 6, 0), (6, 6, 0)]);
        assert_eq!(analysis.predictions("blackout").len(), 22);
        assert_eq!(analysis.configurations[1].median("total").map(|total| total.is_at_least), Some(false));
        assert_eq!(analysis.effect(0, "nothing"), []);
    }

    #[test]
    fn a_trial_that_did_not_move_its_guest_would_have_taken_longer() {
        let plan = plan();
        let mut records = records(&plan);
        // Two trials of the second setting failed while they were the fastest, and one was ended. Nothing is known of
        // the third setting.
        let end = |record: &mut TrialRecord, outcome: &str, total: f64| {
            record.outcome = outcome.into();
            record.censored = outcome == "cancelled";
            record.figures.insert("total".into(), total);
            record.figures.remove("blackout");
        };
        let mut of_setting = records.iter_mut().filter(|record| record.configuration == 1);
        for (outcome, total) in [("rolled-back", 10.0), ("stuck", 20.0), ("cancelled", 130_000.0)] {
            end(of_setting.next().expect("there are six"), outcome, total);
        }
        records.iter_mut().filter(|record| record.configuration == 2).for_each(|record| end(record, "refused", 5.0));
        let analysis = SweepAnalysis::new(&plan, &records);
        let [second, third] = [1, 2].map(|at| &analysis.configurations[at]);
        assert_eq!(second.at_least("total"), [10.0, 20.0, 120_000.0], "the limit, and not the way back");
        assert_eq!((second.sample("blackout").censored(), second.values("blackout").len()), (0, 3));
        let quantiles =
            [0.5, 0.75, 0.95].map(|share| analysis.quantile_of(1, "total", share).map(|one| one.to_string()));
        assert_eq!(quantiles.map(Option::unwrap), ["900", "at least 60450", "at least 120000"]);
        assert_eq!(third.median("total"), None, "one that was refused has not begun");
        let effect = analysis.effect(1, "total");
        let told: Vec<_> = effect
            .iter()
            .map(|level| (level.values.len(), level.at_least.len(), level.unknown_differences, level.mean.is_at_least))
            .collect();
        assert_eq!(told, [(6, 0, 0, false), (9, 3, 3, true)]);
        assert_eq!(effect[1].deviation, None);
    }

    #[test]
    fn a_far_trial_is_named() {
        let plan = plan();
        let mut records = records(&plan);
        records[2].figures.insert("blackout".into(), 500.0);
        let analysis = SweepAnalysis::new(&plan, &records);
        let far = analysis.far(&["blackout", "total"]);
        assert_eq!(far.iter().map(|far| (far.trial, far.figure)).collect::<Vec<_>>(), [(2, "blackout")]);
        assert_eq!(analysis.typical_and_worst(2, "blackout").map(|(_, worst)| worst), Some(2));
    }
}
