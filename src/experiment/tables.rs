//! The tables of a sweep's results, as bytes: of all trials, or the rows of one that is added.
//!
//! Pure.

use super::{
    grid::SweepPlan,
    metrics::{METRICS, definition},
    trial_record::TrialRecord,
};
use std::{collections::BTreeSet, io};

/// The names of all figures that trials have, in the order of their definitions.
pub(super) fn figure_names(records: &[TrialRecord]) -> Vec<String> {
    let names: BTreeSet<&String> = records.iter().flat_map(|record| record.figures.keys()).collect();
    let place = |name: &str| METRICS.iter().position(|metric| Some(metric) == definition(name));
    let mut names: Vec<String> = names.into_iter().cloned().collect();
    names.sort_by_key(|name| place(name));
    names
}

/// What figures are.
pub(super) fn metrics() -> io::Result<Vec<u8>> {
    let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
    let head = std::iter::once(row(["metric", "unit", "definition"]));
    bytes(head.chain(METRICS.iter().map(|metric| row([metric.name, metric.unit, metric.definition]))))
}

/// The tables by the names of their files, with a head, for a file that is made anew, or without, to be added to it.
/// `names` are the figures that have a column.
pub(super) fn tables(
    plan: &SweepPlan,
    names: &[String],
    records: &[TrialRecord],
    has_head: bool,
) -> io::Result<[(&'static str, Vec<u8>); 3]> {
    let table = |head: Vec<String>, rows: &mut dyn Iterator<Item = Vec<String>>| -> io::Result<Vec<u8>> {
        bytes(has_head.then_some(head).into_iter().chain(rows))
    };
    Ok([
        ("results.csv", table(long_head(plan), &mut records.iter().flat_map(long))?),
        ("trials.csv", table(wide_head(plan, names), &mut records.iter().map(|record| wide(record, names)))?),
        (
            "data_quality.csv",
            table(words(&["trial", "counts", "censored", "why"]), &mut records.iter().flat_map(quality))?,
        ),
    ])
}

fn bytes(rows: impl Iterator<Item = Vec<String>>) -> io::Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    for row in rows {
        table.write_record(row)?;
    }
    table.into_inner().map_err(csv::IntoInnerError::into_error)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Where a trial belongs.
fn place(record: &TrialRecord) -> Vec<String> {
    let numbers = [record.trial, record.block as usize, record.configuration].map(|number| number.to_string());
    numbers.into_iter().chain(record.levels.iter().cloned()).collect()
}

fn place_head(plan: &SweepPlan) -> Vec<String> {
    [words(&["trial", "block", "configuration"]), plan.factors.clone()].concat()
}

fn long_head(plan: &SweepPlan) -> Vec<String> {
    [place_head(plan), words(&["outcome", "counts", "censored", "metric", "unit", "value"])].concat()
}

/// A row for each figure of a trial.
fn long(record: &TrialRecord) -> Vec<Vec<String>> {
    let rows = record.figures.iter().map(|(name, value)| {
        let unit = definition(name).map_or("", |metric| metric.unit);
        let cells = [&*record.outcome, yes(record.counts()), yes(record.censored), name, unit, &value.to_string()];
        [place(record), words(&cells)].concat()
    });
    rows.collect()
}

fn wide_head(plan: &SweepPlan, names: &[String]) -> Vec<String> {
    let own = words(&["ended_ms", "leg", "outcome", "reason", "counts", "censored"]);
    [place_head(plan), own, names.to_vec()].concat()
}

/// The row of a trial.
fn wide(record: &TrialRecord, names: &[String]) -> Vec<String> {
    let (ended, leg) = (record.ended_ms.to_string(), record.leg.to_string());
    let reason = record.reason.as_deref().unwrap_or_default();
    let own = [&*ended, &leg, &record.outcome, reason, yes(record.counts()), yes(record.censored)];
    let figures = names.iter().map(|name| record.figures.get(name).map(f64::to_string).unwrap_or_default());
    place(record).into_iter().chain(words(&own)).chain(figures).collect()
}

/// A row for each reason why a trial does not count, or is worth less.
fn quality(record: &TrialRecord) -> Vec<Vec<String>> {
    let mut whys: Vec<String> = record.invalid.iter().chain(&record.notes).cloned().collect();
    if record.outcome != "moved" {
        let reason = record.reason.as_deref().unwrap_or("no reason is known");
        whys.push(format!("the guest did not move ({}): {reason}", record.outcome));
    }
    let row = |why: String| words(&[&record.trial.to_string(), yes(record.counts()), yes(record.censored), &why]);
    whys.into_iter().map(row).collect()
}

fn yes(holds: bool) -> &'static str {
    if holds { "yes" } else { "no" }
}
