//! The search for the settings of a policy: candidates, their order by the controller's own model of a migration, and
//! the rounds of real trials of which each keeps half (successive halving: Jamieson and Talwalkar, 2016).
//!
//! Pure. A round is a sweep like any other, and its text is made here.

use super::{
    analysis::SweepAnalysis,
    condition::{FigureCondition, meeting},
    grid::{SweepPlan, label},
    limits,
    spec::SweepSpec,
    spec_error::{SpecError, wrong},
    statistics::{quantile, sorted},
    trial_record::TrialRecord,
};
use crate::{
    convergence::{
        BuildAbilities, ConvergenceJob, Policy,
        predict::{DiskInput, PredictionInput, predict},
    },
    progress::Estimate,
    quantity::Rate,
};
use std::time::Duration;

/// The label of the policy that the spec itself has, which is a candidate like the others, and in every round.
pub(crate) const AS_IT_STANDS: &str = "as it stands";
/// The candidates that are drawn.
const DRAWN: usize = 300;
/// The repeats of the first sweep, which tells what the link carries.
const REFERENCE: u32 = 3;
/// The real trials of a search that is given no number of them, and of the shortest one.
pub(crate) const TRIALS: u32 = 51;
pub(crate) const TRIALS_LEAST: u32 = REFERENCE + 2;
/// The budget of a migration that is given none.
const BUDGET: Duration = Duration::from_millis(300);
/// Two estimates that differ by less than this share are one: the model is no better.
const ALIKE: f64 = 0.02;

/// Fields of a policy to try, in place of those that the spec's own has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PolicyCandidate {
    pub(crate) label: String,
    pub(crate) fields: toml::Table,
    /// What the model says of it.
    pub(crate) foreseen: Option<Estimate>,
}

impl PolicyCandidate {
    /// The value of a field, as people read it; empty where the candidate does not set it.
    pub(crate) fn value(&self, field: &str) -> String {
        self.fields.get(field).map_or(String::new(), label)
    }
}

/// The spec of a search.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PolicySearch {
    /// The spec's text as a table, without what a round has of its own.
    table: toml::Table,
    spec: SweepSpec,
    /// The policy as it stands.
    base: toml::Table,
    budget: Duration,
    pub(crate) goal: FigureCondition,
    pub(crate) rounds: Vec<SearchRound>,
}

/// A round of real trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SearchRound {
    /// The candidates in it beside the policy as it stands.
    pub(crate) candidates: usize,
    /// The trials of each.
    pub(crate) repeats: u32,
}

/// The rounds of a search of at most so many real trials: as many as there can be when each has about half the
/// candidates of the one before, twice the repeats, and so as many trials.
fn rounds(trials: u32) -> Vec<SearchRound> {
    let left = trials.saturating_sub(REFERENCE).max(2);
    let count = (1..16).rev().find(|count| *count << count <= left).unwrap_or(1);
    let first = left / (count << count);
    let round = |number| SearchRound { candidates: (1_usize << (count - number)) - 1, repeats: first << number };
    (0..count).map(round).collect()
}

impl PolicySearch {
    /// Reads a spec for a search of at most so many real trials. Without a goal, the blackout is to be within the
    /// budget.
    ///
    /// # Errors
    /// It cannot be searched.
    pub(crate) fn read(text: &str, goal: Option<&FigureCondition>, trials: u32) -> Result<Self, SpecError> {
        let plan = SweepPlan::read(text)?;
        if let Some(factor) = plan.factors.first() {
            return Err(wrong("factor", factor, "a search varies the policy alone: leave the factors out"));
        }
        let mut table: toml::Table = text.parse().unwrap_or_default();
        let spec = plan.spec;
        let base = match limits::policy(&spec)? {
            Some(table) => table,
            None => {
                let name = spec.migrate.get("policy").and_then(toml::Value::as_str).unwrap_or("converge");
                let text = Policy::built_in(name).ok_or_else(|| {
                    wrong("migrate.policy", name, "a search begins with a policy that is built in: write its name")
                })?;
                text.parse().unwrap_or_default()
            }
        };
        if base.contains_key("schedule") || base.get("observe").and_then(toml::Value::as_bool) == Some(true) {
            let expected = "it has nothing to search: write converge, postcopy or patient, or leave it out";
            return Err(wrong(
                "migrate.policy",
                base.get("name").map_or("this", |name| name.as_str().unwrap_or_default()),
                expected,
            ));
        }
        let budget = match spec.migrate.get("downtime").and_then(toml::Value::as_str) {
            Some(text) => {
                humantime::parse_duration(text).map_err(|error| wrong("migrate.downtime", text, &error.to_string()))?
            }
            None => BUDGET,
        };
        let goal = match goal {
            Some(goal) => goal.clone(),
            None => format!("blackout<={}ms", budget.as_millis())
                .parse()
                .map_err(|error: String| wrong("migrate.downtime", budget.as_millis(), &error))?,
        };
        for own in ["factor", "policy", "repeats", "name"] {
            table.remove(own);
        }
        Ok(Self { table, spec, base, budget, goal, rounds: rounds(trials) })
    }

    /// The text of the sweep that runs the policy as it stands, before anything is searched.
    pub(crate) fn reference(&self) -> String {
        self.text("as it stands", &[], REFERENCE)
    }

    /// The text of a round.
    pub(crate) fn round(&self, number: usize, candidates: &[PolicyCandidate], repeats: u32) -> String {
        self.text(&format!("round {number} of {}", self.rounds.len()), candidates, repeats)
    }

    fn text(&self, name: &str, candidates: &[PolicyCandidate], repeats: u32) -> String {
        let mut table = self.table.clone();
        table.insert("name".into(), format!("{}: {name}", self.spec.name).into());
        table.insert("repeats".into(), i64::from(repeats).into());
        let own = PolicyCandidate { label: AS_IT_STANDS.into(), fields: self.spec.policy.clone(), foreseen: None };
        let values: Vec<toml::Value> = std::iter::once(&own)
            .chain(candidates)
            .map(|candidate| {
                let mut value = toml::Table::from_iter([("label".to_owned(), candidate.label.clone().into())]);
                let fields = self.spec.policy.iter().chain(&candidate.fields);
                value.extend(fields.map(|(field, value)| (format!("policy.{field}"), value.clone())));
                value.into()
            })
            .collect();
        let factor =
            toml::Table::from_iter([("name".to_owned(), "policy".into()), ("values".to_owned(), values.into())]);
        table.insert("factor".into(), vec![toml::Value::from(factor)].into());
        // a table of strings, numbers and tables can always be written
        toml::to_string(&table).unwrap_or_default()
    }

    /// The candidates, the best by the model first. `bandwidth` is what the link was seen to carry, bytes per second.
    pub(crate) fn candidates(&self, bandwidth: f64) -> Vec<PolicyCandidate> {
        let mut random = fastrand::Rng::with_seed(self.spec.seed);
        let mut drawn: Vec<PolicyCandidate> =
            (1..=DRAWN).filter_map(|number| self.candidate(number, &mut random, bandwidth)).collect();
        drawn.sort_by_key(|candidate| self.rank(candidate.foreseen.as_ref()));
        drawn.dedup_by_key(|candidate| self.rank(candidate.foreseen.as_ref()));
        drawn
    }

    fn candidate(&self, number: usize, random: &mut fastrand::Rng, bandwidth: f64) -> Option<PolicyCandidate> {
        let mut fields = drawn_fields(random, self.budget);
        // Fields that the spec sets are its user's wish.
        fields.retain(|name, _| !self.spec.policy.contains_key(name));
        let mut table = self.base.clone();
        table.extend(fields.clone());
        let policy = Policy::from_toml(&toml::to_string(&table).ok()?).ok()?;
        let foreseen = Some(self.foresee(&policy, bandwidth));
        Some(PolicyCandidate { label: format!("candidate {number}"), fields, foreseen })
    }

    /// What the model says of a policy: the spec's guest, as it is told to work, over a link of this bandwidth.
    fn foresee(&self, policy: &Policy, bandwidth: f64) -> Estimate {
        let SweepSpec { machine, disks, workload, migrate, .. } = &self.spec;
        let dirty_rate = match workload.dirty.as_str() {
            // as fast as a processor writes to memory
            "max" => 4e9,
            rate => rate.parse::<Rate>().map_or(0.0, |rate| rate.0 as f64),
        };
        let written = (u64::from(workload.writes) * workload.block.0).min(workload.span.0);
        let job = ConvergenceJob {
            budget: self.budget,
            ceiling: migrate.get("bandwidth").and_then(toml::Value::as_str).and_then(|rate| rate.parse().ok()),
            memory: machine.memory.0,
            disks: vec![disks.size.0; disks.count as usize],
            dirty_rate: Some(dirty_rate),
            abilities: BuildAbilities {
                write_blocking: true,
                throttle: true,
                overlap: true,
                switchover_bandwidth: true,
            }
            .under(policy),
            ..ConvergenceJob::default()
        };
        // a sealed disk has all that was filled on the other side already
        let bytes = if disks.sealed { 0 } else { disks.filled.0 };
        let input = PredictionInput {
            memory: machine.memory.0,
            used: Some(workload.memory.0),
            working_set: Some(workload.memory.0 as f64),
            dirty_rate,
            disks: (0..disks.count)
                .map(|disk| DiskInput { name: disk.to_string(), bytes, write_rate: written })
                .collect(),
            link: Some(bandwidth),
            switchover_bandwidth: true,
            ..PredictionInput::default()
        };
        predict(policy, &job, &input)
    }

    /// The order of candidates: those that do not move last, before them those that miss the goal, and each of these by
    /// time and then blackout, in steps as fine as the model is good.
    fn rank(&self, foreseen: Option<&Estimate>) -> (u8, u64, u64) {
        let Some((total, blackout)) = foreseen.and_then(|run| run.total_ms.zip(run.blackout_ms)) else {
            return (2, 0, 0);
        };
        let value = match self.goal.figure.as_str() {
            "blackout" => Some(blackout),
            "total" => Some(total),
            // what the model does not know is left to the trials
            _ => None,
        };
        let misses = value.is_some_and(|value| self.goal.holds(value as f64, None) == Some(false));
        let step = |value: u64| ((value.max(1) as f64).ln() / ALIKE.ln_1p()).round() as u64;
        (u8::from(misses), step(total), step(blackout))
    }

    /// The labels of those that go on from a round, the best first: those that meet the goal, by their time, and then
    /// those that come nearest to it.
    pub(crate) fn survivors(&self, plan: &SweepPlan, records: &[TrialRecord]) -> Vec<String> {
        let analysis = SweepAnalysis::new(plan, records);
        let met: Vec<usize> =
            meeting(&analysis, &self.goal, plan.spec.seed).iter().map(|met| met.configuration).collect();
        let mut others: Vec<(f64, usize)> = (0..)
            .zip(&analysis.configurations)
            .filter(|(at, trials)| !met.contains(at) && trials.counted > 0)
            .map(|(at, trials)| {
                let distance = |value: f64| if self.goal.asks_for_more() { -value } else { value };
                let estimate = trials.estimate(&self.goal, plan.spec.seed);
                (estimate.map_or(f64::INFINITY, |estimate| distance(estimate.value)), at)
            })
            .collect();
        others.sort_by(|one, other| one.0.total_cmp(&other.0));
        let order = met.into_iter().chain(others.into_iter().map(|(_, at)| at));
        order.filter_map(|at| plan.configurations[at].levels.first().cloned()).collect()
    }

    /// The policy with these fields in place of its own, as a file.
    pub(crate) fn policy_file(&self, fields: &toml::Table, about: &str) -> String {
        let mut table = self.base.clone();
        table.insert("name".into(), "tuned".into());
        table.extend(fields.clone());
        let about: String = about.lines().map(|line| format!("# {line}\n")).collect();
        // a table of strings, numbers and lists can always be written
        format!("{about}{}", toml::to_string(&table).unwrap_or_default())
    }
}

/// Fields at random, of those that decide about time and blackout. Times are drawn by their order of magnitude.
fn drawn_fields(random: &mut fastrand::Rng, budget: Duration) -> toml::Table {
    let mut between = |least: f64, most: f64| least * (most / least).powf(random.f64());
    let budget = budget.as_secs_f64() * 1000.0;
    let ms = |ms: f64| toml::Value::from(format!("{}ms", ms.round().max(1.0)));
    let rounded = |value: f64| toml::Value::from((value * 100.0).round() / 100.0);
    let mut fields = toml::Table::from_iter([
        ("first".to_owned(), ms(between(2.0, budget.max(4.0) / 2.0))),
        ("busy".to_owned(), ms(between(5.0, budget.max(6.0)))),
        ("patience".to_owned(), ms(between(300.0, 20_000.0))),
        ("patience-share".to_owned(), rounded(between(0.05, 1.0))),
        ("worth".to_owned(), rounded(between(2.0, 500.0))),
        ("throttle-max".to_owned(), (between(30.0, 99.0).round() as i64).into()),
    ]);
    fields.insert("slack".into(), random.choice([0.0, 0.25, 0.5]).unwrap_or_default().into());
    fields.insert("overlap".into(), random.bool().into());
    fields
}

/// What the link carried in a sweep's trials at least, bytes per second: the median of those that moved.
pub(crate) fn bandwidth_seen(records: &[TrialRecord]) -> Option<f64> {
    let rates = records.iter().filter(|record| record.counts()).filter_map(|record| {
        let figure = |name: &str| record.figures.get(name).copied();
        let bytes = figure("ram.bytes")? + figure("disk.bytes").unwrap_or_default();
        let time = figure("total")? - figure("blackout").unwrap_or_default();
        (time > 0.0).then(|| bytes / time * 1000.0)
    });
    quantile(&sorted(&rates.collect::<Vec<_>>()), 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name = \"mine\"\nrepeats = 9\n[machine]\nmemory = \"512MiB\"\n[workload]\nmemory = \"256MiB\"\n\
        dirty = \"60MiB/s\"\n[migrate]\ndowntime = \"100ms\"\n[policy]\ngive-up = \"9s\"\n";

    fn search(text: &str) -> PolicySearch {
        PolicySearch::read(text, None, TRIALS).expect("it can be searched")
    }

    #[test]
    fn a_round_is_a_sweep_of_its_candidates_and_of_the_policy_as_it_stands() {
        let search = search(TEXT);
        assert_eq!(search.goal.to_string(), "blackout<=100ms");
        let candidates = search.candidates(125e6);
        let plan = SweepPlan::read(&search.round(1, &candidates[..3], 2)).expect("it is a spec");
        assert_eq!(
            (plan.spec.name.as_str(), plan.spec.repeats, plan.configurations.len()),
            ("mine: round 1 of 3", 2, 4)
        );
        assert_eq!(plan.configurations[0].levels, [AS_IT_STANDS]);
        for (candidate, configuration) in candidates.iter().zip(&plan.configurations[1..]) {
            assert_eq!(configuration.levels, std::slice::from_ref(&candidate.label));
            let policy = &configuration.setup.policy;
            assert_eq!(policy.get("worth"), candidate.fields.get("worth"));
            assert_eq!(policy.get("give-up").and_then(toml::Value::as_str), Some("9s"), "the spec's own fields stay");
        }
        let alone = SweepPlan::read(&search.reference()).expect("it is a spec");
        assert_eq!((alone.configurations.len(), alone.trials.len()), (1, 3));
    }

    #[test]
    fn what_the_spec_says_of_the_policy_and_the_link_holds_for_every_candidate() {
        let told = search(&format!("{TEXT}throttle-max = 20\n"));
        assert!(told.candidates(125e6).iter().all(|candidate| !candidate.fields.contains_key("throttle-max")));
        let time = |text: &str| {
            let foreseen = search(text).foresee(&Policy::from_toml("").expect("the default"), 125e6);
            foreseen.total_ms.expect("it moves")
        };
        let idle = TEXT.replace("60MiB/s", "0");
        let usual = time(&idle);
        assert!(time(&idle.replace("downtime =", "bandwidth = \"30MiB/s\"\ndowntime =")) > usual * 2);
        assert!(time(&format!("{idle}[disks]\nfilled = \"256MiB\"\n")) > usual);
        assert!(time(&format!("{idle}[disks]\nfilled = \"256MiB\"\nsealed = true\n")) < usual);
    }

    #[test]
    fn candidates_are_drawn_from_the_seed_and_the_best_by_the_model_come_first() {
        let search = search(TEXT);
        let candidates = search.candidates(125e6);
        assert_eq!(candidates, search.candidates(125e6));
        assert!(candidates.len() >= search.rounds[0].candidates, "{}", candidates.len());
        let ranks: Vec<_> = candidates.iter().map(|candidate| search.rank(candidate.foreseen.as_ref())).collect();
        assert!(ranks.is_sorted());
        let best = candidates[0].foreseen.as_ref().expect("it was foreseen");
        assert!(best.blackout_ms.is_some_and(|blackout| blackout <= 100), "{best:?}");
        let own = search.foresee(&Policy::from_toml("").expect("the default"), 125e6);
        assert!(best.total_ms <= own.total_ms, "{best:?} against {own:?}");
        for candidate in &candidates {
            let text = search.policy_file(&candidate.fields, "found\nso");
            assert!(text.starts_with("# found\n# so\n"));
            assert_eq!(Policy::from_toml(&text).map(|policy| policy.name), Ok("tuned".into()), "{text}");
        }
    }

    #[test]
    fn the_rounds_are_as_many_as_the_trials_allow() {
        let cases: [(u32, &[(usize, u32)]); 6] = [
            (TRIALS_LEAST, &[(1, 1)]),
            (10, &[(1, 3)]),
            (11, &[(3, 1), (1, 2)]),
            (TRIALS, &[(7, 2), (3, 4), (1, 8)]),
            (67, &[(15, 1), (7, 2), (3, 4), (1, 8)]),
            (131, &[(15, 2), (7, 4), (3, 8), (1, 16)]),
        ];
        for (trials, expected) in cases {
            let rounds = rounds(trials);
            let found: Vec<_> = rounds.iter().map(|round| (round.candidates, round.repeats)).collect();
            assert_eq!(found, expected, "{trials}");
        }
        for trials in TRIALS_LEAST..5000 {
            let rounds = rounds(trials);
            let all: u32 = rounds.iter().map(|round| (round.candidates as u32 + 1) * round.repeats).sum();
            assert!(REFERENCE + all <= trials && rounds.last().is_some_and(|round| round.candidates == 1), "{trials}");
        }
    }

    #[test]
    fn what_cannot_be_searched_is_said() {
        for (text, words) in [
            ("[[factor]]\nfield = \"repeats\"\nvalues = [1, 2]\n", "leave the factors out"),
            ("[migrate]\npolicy = \"nova\"\n", "nothing to search"),
            ("[migrate]\npolicy = \"observe\"\n", "nothing to search"),
            ("[migrate]\npolicy = \"./mine.toml\"\n", "built in"),
        ] {
            let error = PolicySearch::read(text, None, TRIALS).expect_err(text);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn those_that_meet_the_goal_go_on_and_then_those_that_nearly_do() {
        let search = search(TEXT);
        let labels = ["a", "b", "c"].map(|label| PolicyCandidate {
            label: label.into(),
            fields: toml::Table::new(),
            foreseen: None,
        });
        let plan = SweepPlan::read(&search.round(1, &labels, 1)).expect("it is a spec");
        let record = |configuration: usize, outcome: &str, blackout: f64, total: f64| TrialRecord {
            trial: configuration,
            block: 0,
            configuration,
            levels: plan.configurations[configuration].levels.clone(),
            ended_ms: 0,
            outcome: outcome.into(),
            reason: None,
            censored: false,
            leg: 1,
            stop_ms: None,
            invalid: Vec::new(),
            notes: Vec::new(),
            figures: [("blackout", blackout), ("total", total), ("ram.bytes", 1e9)]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
        };
        let records = [
            record(0, "moved", 250.0, 5000.0),
            record(1, "moved", 80.0, 9000.0),
            record(2, "rolled-back", 50.0, 1000.0),
            record(3, "moved", 90.0, 7000.0),
        ];
        assert_eq!(search.survivors(&plan, &records), ["c", "a", AS_IT_STANDS]);
        let more = PolicySearch { goal: "ram.bytes>2GiB".parse().expect("a goal"), ..search.clone() };
        let mut sent = records.clone();
        sent[3].figures.insert("ram.bytes".into(), 2e9);
        assert_eq!(more.survivors(&plan, &sent), ["c", AS_IT_STANDS, "a"], "more is nearer to it");
        let seen = bandwidth_seen(&records).expect("it was carried");
        assert!((seen - 1e9 / 6.91).abs() < 1e6, "{seen}");
        assert_eq!(bandwidth_seen(&[]), None);
    }
}
