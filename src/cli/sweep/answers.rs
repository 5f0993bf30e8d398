//! What a sweep answers: the setting that meets a goal, how two sweeps differ, and whether a condition fails.

use super::picture::{known, number, with_interval};
use crate::{
    cli::render,
    experiment::{
        ComparedFigure, ConfigurationTrials, FigureBound, FigureCondition, FigureStatistic, GoalCertainty,
        IntervalEstimate, MetGoal, SweepAnalysis, SweepPlan, SweepResults, compared, definition, meeting,
    },
};
use serde_json::{Value, json};
use std::{fmt::Write as _, path::Path};

/// The figures by which two sweeps are compared.
const COMPARED: [(&str, f64); 7] = [
    ("blackout", 0.5),
    ("blackout", 0.99),
    ("outside.beats", 0.5),
    ("total", 0.5),
    ("guest.pages.during", 0.5),
    ("cpu.engine", 0.5),
    ("ram.bytes", 0.5),
];

/// A folder with its plan.
pub(super) struct ReadSweep {
    pub(super) plan: SweepPlan,
    pub(super) results: SweepResults,
}

impl ReadSweep {
    /// Reads the folder of a sweep.
    pub(super) fn of(folder: &Path) -> Result<Self, String> {
        let (results, text) = SweepResults::read(folder).map_err(|error| error.to_string())?;
        let plan = SweepPlan::read(&text).map_err(|error| format!("{}: {error}", folder.display()))?;
        if results.records.is_empty() {
            return Err(format!("{}: no trial is kept there", folder.display()));
        }
        Ok(Self { plan, results })
    }

    pub(super) fn analysis(&self) -> SweepAnalysis<'_> {
        SweepAnalysis::new(&self.plan, &self.results.records)
    }
}

fn interval_json(estimate: IntervalEstimate) -> Value {
    // an end that the trials do not tell is null
    json!({ "value": estimate.value, "at_least": estimate.is_at_least,
        "interval": estimate.interval.map(|(low, high)| [low, high]) })
}

/// Names the setting with the least total time that meets the goal; `false` where none does.
pub(super) fn goal(plan: &SweepPlan, analysis: &SweepAnalysis<'_>, goal: &FigureCondition, as_json: bool) -> bool {
    let met = meeting(analysis, goal, plan.spec.seed);
    let text = goal_words(plan, goal, &met);
    if as_json {
        let settings: Vec<Value> = met
            .iter()
            .map(|met| {
                json!({ "configuration": met.configuration, "levels": plan.configurations[met.configuration].levels,
                    "figure": interval_json(met.figure), "total": interval_json(met.total),
                    "sure": met.certainty == GoalCertainty::Sure, "met": met.met, "tried": met.tried })
            })
            .collect();
        let object = json!({ "v": 1, "type": "goal", "t_ms": 0, "goal": goal.to_string(), "settings": settings });
        // the exit code says what the reader of stdout misses
        render::object(&object).ok();
        render::say(text.trim_end());
    } else {
        render::print(&text);
    }
    !met.is_empty()
}

fn goal_words(plan: &SweepPlan, goal: &FigureCondition, met: &[MetGoal]) -> String {
    let Some(best) = met.first() else {
        return format!("{goal}: no setting of which every trial moved its guest meets it\n");
    };
    let unit = definition(&goal.figure).map_or("", |metric| metric.unit);
    let sure = match (best.certainty, best.figure.interval) {
        (GoalCertainty::Sure, _) => "the whole 95 % interval meets it",
        (GoalCertainty::Likely, Some(_)) => "a part of the 95 % interval does not meet it: more repeats would tell",
        (GoalCertainty::Likely, None) => "fewer than 5 trials: too few to tell how sure that is",
    };
    let mut text = format!(
        "{goal}: {}\n  {}  {} {unit}, {} of {} trials met it; {sure}\n  total     {} ms\n",
        plan.configurations[best.configuration],
        goal.figure,
        with_interval(best.figure),
        best.met,
        best.tried,
        with_interval(best.total),
    );
    for other in &met[1..] {
        // a String takes everything
        writeln!(
            text,
            "  also met by {}: {} {unit}, total {} ms",
            plan.configurations[other.configuration],
            number(other.figure.value),
            number(other.total.value)
        )
        .ok();
    }
    text
}

/// Sets two sweeps side by side, and gives the conditions that hold.
pub(super) fn compare(
    before: &ReadSweep,
    after: &ReadSweep,
    fails: &[FigureCondition],
    as_json: bool,
) -> Result<Vec<String>, String> {
    let mut figures: Vec<(String, FigureStatistic)> =
        COMPARED.iter().map(|(figure, share)| ((*figure).to_owned(), FigureStatistic::Quantile(*share))).collect();
    let own = figures.len();
    figures.extend(fails.iter().map(|condition| (condition.figure.clone(), condition.statistic)));
    let seed = after.plan.spec.seed;
    let (before, after) = (before.analysis(), after.analysis());
    let rows = compared(&before, &after, &figures[..own], seed);
    if rows.is_empty() {
        return Err("the two have no setting in common of which trials count".into());
    }
    let mut failed = Vec::new();
    for (condition, figure) in fails.iter().zip(&figures[own..]) {
        for trials in &after.configurations {
            let twin = before.configurations.iter().find(|twin| twin.levels == trials.levels);
            match twin.map(|twin| (twin.estimate(condition, seed), trials.estimate(condition, seed))) {
                Some((Some(_), None)) => failed.push(nothing_known(condition, trials)),
                Some((None, _)) => unknown(condition, &trials.label, "the first sweep has no such figure of it"),
                _ => {}
            }
        }
        for row in compared(&before, &after, std::slice::from_ref(figure), seed) {
            let (after, before) = (known(row.after.known()), known(row.before.known()));
            match condition.holds_of(row.after, Some(row.before)) {
                Some(true) => {
                    failed.push(format!("{condition} holds with {}: {after} after {before}", row.configuration))
                }
                Some(false) => {}
                None => unknown(condition, &row.configuration, &format!("{after} after {before}")),
            }
        }
    }
    if as_json {
        for row in &rows {
            render::object(&compared_json(row)).ok();
        }
    } else {
        render::print(&compared_words(&rows));
    }
    Ok(failed)
}

/// Why a condition on a figure fails that nothing is known of: a check that has nothing to look at must not pass.
fn nothing_known(condition: &FigureCondition, trials: &ConfigurationTrials) -> String {
    format!(
        "whether {condition} holds with {} cannot be told: {} of {} trials count, and none of them has {}",
        trials.label, trials.counted, trials.tried, condition.figure
    )
}

/// Says that trials which were ended or failed leave a condition open, which is no reason to fail.
fn unknown(condition: &FigureCondition, setting: &str, value: &str) {
    render::say(&format!("qferry: whether {condition} holds with {setting} is not known: {value}"));
}

fn compared_json(row: &ComparedFigure) -> Value {
    json!({ "v": 1, "type": "comparison", "t_ms": 0, "configuration": row.configuration, "figure": row.figure, "statistic": row.statistic.to_string(),
        "before": interval_json(row.before), "after": interval_json(row.after), "differs": row.differs })
}

fn compared_words(rows: &[ComparedFigure]) -> String {
    let mut text = String::new();
    let mut setting = "";
    for row in rows {
        if row.configuration != setting {
            setting = &row.configuration;
            writeln!(text, "{setting}").ok();
        }
        let unit = definition(&row.figure).map_or("", |metric| metric.unit);
        let is_known = !row.after.is_at_least && !row.before.is_at_least;
        let ratio = if is_known { row.after.value / row.before.value } else { f64::NAN };
        let ratio = if ratio.is_finite() { format!("{ratio:.2}x") } else { "–".into() };
        let differs = match row.differs {
            Some(true) => "the intervals have nothing in common",
            Some(false) => "the intervals overlap",
            None if is_known => "too few trials for intervals",
            None => "trials that were ended or failed leave it open",
        };
        writeln!(
            text,
            "  {:<24} {:>26} -> {:<26} {ratio:>7}  {differs}",
            format!("{}.{}, {unit}", row.figure, row.statistic),
            with_interval(row.before),
            with_interval(row.after)
        )
        .ok();
    }
    text
}

/// The conditions on one sweep that hold.
pub(super) fn failing(
    plan: &SweepPlan,
    analysis: &SweepAnalysis<'_>,
    fails: &[FigureCondition],
) -> Result<Vec<String>, String> {
    let mut failed = Vec::new();
    for condition in fails {
        if matches!(condition.bound, FigureBound::Times(_)) {
            return Err(format!("{condition}: a multiple needs two sweeps, with --compare"));
        }
        for trials in analysis.configurations.iter().filter(|trials| trials.tried > 0) {
            let Some(estimate) = trials.estimate(condition, plan.spec.seed) else {
                // a figure may be one that a setting does not have, but trials that all failed have none at all
                match trials.counted {
                    0 => failed.push(nothing_known(condition, trials)),
                    _ => unknown(condition, &trials.label, "no trial has such a figure"),
                }
                continue;
            };
            let value = known(estimate.known());
            match condition.holds_of(estimate, None) {
                Some(true) => failed.push(format!("{condition} holds with {}: {value}", trials.label)),
                Some(false) => {}
                None => unknown(condition, &trials.label, &value),
            }
        }
    }
    Ok(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Two settings: of the first every trial moved its guest, of the second those with a blackout.
    fn sweep(second: Option<f64>) -> ReadSweep {
        let text = "repeats = 5\n[[factor]]\nfield = \"migrate.downtime\"\nvalues = [\"20ms\", \"300ms\"]\n";
        let plan = SweepPlan::read(text).expect("the spec is right");
        let mut trials = String::new();
        for trial in &plan.trials {
            let blackout = if trial.configuration == 0 { Some(10.0) } else { second };
            let (outcome, figures) = match blackout {
                Some(blackout) => ("moved", json!({ "blackout": blackout, "total": 900.0 })),
                None => ("not-run", json!({})),
            };
            let record = json!({ "trial": trial.number, "block": trial.block, "configuration": trial.configuration,
                "levels": plan.configurations[trial.configuration].levels, "ended_ms": 1, "outcome": outcome,
                "reason": null, "censored": false, "leg": 1, "stop_ms": null, "invalid": [], "notes": [],
                "figures": figures });
            trials += &format!("{record}\n");
        }
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [("spec.toml", text), ("trials.jsonl", &trials)] {
            fs::write(folder.path().join(name), text).expect(name);
        }
        ReadSweep::of(folder.path()).expect("a sweep")
    }

    fn conditions(text: &str) -> Vec<FigureCondition> {
        vec![text.parse().expect(text)]
    }

    #[test]
    fn a_check_that_has_nothing_to_look_at_does_not_pass() {
        for (second, condition, expected) in [
            (Some(20.0), "blackout>50ms", None),
            (Some(60.0), "blackout>50ms", Some("holds with")),
            (None, "blackout>50ms", Some("0 of 5 trials count")),
            (None, "blackout.p99>50ms", Some("cannot be told")),
            // a figure that settings need not have
            (Some(20.0), "postcopy.fault>1ms", None),
        ] {
            let read = sweep(second);
            let failed = failing(&read.plan, &read.analysis(), &conditions(condition)).expect(condition);
            assert_eq!(failed.len(), usize::from(expected.is_some()), "{condition}: {failed:?}");
            assert!(failed.iter().all(|why| why.contains(expected.unwrap_or_default())), "{condition}: {failed:?}");
        }
        for (before, after, condition, fails) in [
            (Some(20.0), Some(21.0), "blackout>1.1x", false),
            (Some(20.0), Some(30.0), "blackout>1.1x", true),
            (Some(20.0), None, "blackout>1.1x", true),
            (None, Some(30.0), "blackout>1.1x", false),
            (Some(20.0), Some(20.0), "postcopy.fault>1.1x", false),
        ] {
            let failed = compare(&sweep(before), &sweep(after), &conditions(condition), true).expect(condition);
            assert_eq!(failed.len(), usize::from(fails), "{before:?} {after:?} {condition}: {failed:?}");
        }
    }
}
