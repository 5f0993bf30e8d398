//! What the trials of a sweep say together.
//!
//! Pure. The trial is the unit: every statistic is one over trials. Differences are taken within a block, between
//! trials that differ in one factor alone, so that what changed with time between the blocks is not in them.

use super::{
    grid::SweepPlan,
    results::TrialRecord,
    statistics::{IntervalEstimate, SampleSummary, median, median_estimate, outliers, quantile, sorted, summary},
};
use std::collections::BTreeMap;

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

    pub(crate) fn median(&self, figure: &str) -> Option<f64> {
        median(&self.values(figure))
    }
}

/// What a level of a factor does to a figure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LevelEffect {
    pub(crate) level: String,
    pub(crate) values: Vec<f64>,
    pub(crate) median: IntervalEstimate,
    pub(crate) summary: SampleSummary,
    /// The median of the differences from the factor's first level, within blocks; none of that level itself.
    pub(crate) difference: Option<IntervalEstimate>,
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
        median_estimate(&self.configurations.get(configuration)?.values(figure), self.seed())
    }

    /// A quantile of a figure of a configuration.
    pub(crate) fn quantile_of(&self, configuration: usize, figure: &str, share: f64) -> Option<f64> {
        quantile(&sorted(&self.configurations.get(configuration)?.values(figure)), share)
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
            let values: Vec<f64> = self
                .configurations
                .iter()
                .filter(|configuration| configuration.levels[factor] == **level)
                .flat_map(|configuration| configuration.values(figure))
                .collect();
            let differences = self.differences(factor, first, level, figure);
            Some(LevelEffect {
                level: (*level).to_owned(),
                median: median_estimate(&values, self.seed())?,
                summary: summary(&values)?,
                difference: if *level == first { None } else { median_estimate(&differences, self.seed()) },
                values,
            })
        });
        effects.collect()
    }

    /// The differences of a figure between two levels of a factor: within blocks, all other levels alike.
    fn differences(&self, factor: usize, from: &str, to: &str, figure: &str) -> Vec<f64> {
        let counted: Vec<&TrialRecord> = self.records.iter().filter(|record| record.counts()).collect();
        let is_twin = |one: &TrialRecord, other: &TrialRecord| {
            let alike = |(at, (one, other)): (usize, (&String, &String))| at == factor || one == other;
            one.block == other.block && one.levels.iter().zip(&other.levels).enumerate().all(alike)
        };
        let with = |level: &str| {
            let level = level.to_owned();
            counted.iter().filter(move |record| record.levels[factor] == level)
        };
        let pairs = with(to).filter_map(|record| {
            let twin = with(from).find(|other| is_twin(record, other))?;
            Some(record.figures.get(figure)? - twin.figures.get(figure)?)
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
                Some((trials.median(one)?, trials.median(other)?)).filter(|_| whole)
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
        assert!(effect[1].summary.deviation.is_some_and(|deviation| deviation > 2.0), "and not between them");
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
        assert_eq!(analysis.effect(0, "nothing"), []);
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
