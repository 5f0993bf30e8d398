//! The estimate of a migration against the migration itself, as a sweep with `predict = true` records both.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use qferry_bed::Result;
use serde_json::Value;

use crate::runs;
use crate::sweeps::{self, Trial, of};
use crate::table::{Required, Table};

const SPEC: &str = include_str!("predict.toml");
/// The number of settings in the spec.
const SETTINGS: usize = 16;
/// The part of the estimates that must be as good as the bounds say, per cent.
const MOST: usize = 90;
/// The bounds: per cent of the time; per cent of the blackout, or milliseconds where those are more.
const TIME: f64 = 20.0;
const BLACKOUT: f64 = 30.0;
const BLACKOUT_MS: f64 = 20.0;

/// The percentiles of the errors that are printed.
const PERCENTILES: [usize; 7] = [0, 10, 25, 50, 75, 90, 100];

/// Measures, and says whether every requirement was met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let rounds = runs(3);
    println!("predict: {} migrations, each estimated right before\n", rounds * SETTINGS);
    let folder = sweeps::run(qferry, "predict", &sweeps::filled_in(SPEC, rounds)?, rounds * SETTINGS)?;
    let met = judge(sweeps::trials(&folder)?, &estimated_at(&folder)?, rounds * SETTINGS);
    println!("\nthe report is {}", folder.join("report.html").display());
    Ok(met)
}

/// When each trial had been measured and estimated, milliseconds into the migration.
fn estimated_at(folder: &Path) -> Result<BTreeMap<u64, f64>> {
    let file = folder.join("samples.jsonl");
    let text = fs::read_to_string(&file).map_err(of(&file))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let measured = lines.filter(|line| line["action"] == "measured");
    Ok(measured.filter_map(|line| Some((line["trial"].as_u64()?, line["t_ms"].as_f64()?))).collect())
}

/// What was predicted, and what it was, of the trials that have both.
fn pairs(trials: &[Trial], figure: &str) -> Vec<(f64, f64)> {
    let pair = |trial: &Trial| {
        let value = |figure: &str| trial.figures.get(figure).copied();
        Some((value(&format!("predicted.{figure}"))?, value(figure)?))
    };
    trials.iter().filter(|trial| trial.moved && trial.valid).filter_map(pair).collect()
}

fn judge(mut trials: Vec<Trial>, estimated_at: &BTreeMap<u64, f64>, wanted: usize) -> bool {
    // the measurements take a second and more of a known length, which would flatter the estimates of the rest
    for trial in &mut trials {
        let at = estimated_at.get(&trial.number).copied().unwrap_or_default();
        for figure in ["total", "predicted.total"] {
            trial.figures.entry(figure.to_owned()).and_modify(|time| *time -= at);
        }
    }
    let trials = trials.as_slice();
    let per_cent = |figure: &str| {
        let errors = pairs(trials, figure).into_iter().map(|(predicted, real)| (predicted / real - 1.0) * 100.0);
        sorted(errors.collect())
    };
    let ms = sorted(pairs(trials, "blackout").into_iter().map(|(predicted, real)| predicted - real).collect());
    println!("\nerror of the estimates; below 0 is too low");
    println!("{:<24} {}", "", PERCENTILES.map(|at| format!("{:>8}", format!("{at} %"))).concat());
    let told = |name: &str, errors: &[f64]| {
        println!("{name:<24} {}", PERCENTILES.map(|at| format!("{:>8.1}", percentile(errors, at))).concat());
    };
    for figure in ["total", "blackout", "ram.bytes", "disk.bytes"] {
        told(&format!("{figure}, per cent"), &per_cent(figure));
    }
    told("blackout, ms", &ms);

    let mut table = Table::begin("estimate");
    let time = sorted(per_cent("total").into_iter().map(f64::abs).collect());
    let most = Some(Required::AtMost(1.0));
    table.row(&format!("time from there on, error of {MOST} of 100"), "%", percentile(&time, MOST), Some(TIME), most);
    // an error of 1 is as much as is allowed
    let blackout = pairs(trials, "blackout").into_iter().map(|(predicted, real)| {
        let error = (predicted - real).abs();
        error / BLACKOUT_MS.max(real * BLACKOUT / 100.0)
    });
    let blackout = percentile(&sorted(blackout.collect()), MOST);
    let name = format!("blackout, the same of {BLACKOUT_MS} ms or {BLACKOUT} %");
    table.row(&name, "x", blackout, Some(1.0), most);
    let estimated = trials.iter().filter(|trial| trial.figures.contains_key("predicted.total"));
    let right = estimated.filter(|trial| trial.moved == trial.figures.contains_key("predicted.blackout"));
    let exactly = Some(Required::AtLeast(1.0));
    table.row("convergence estimated right, of all", "runs", right.count() as f64, Some(wanted as f64), exactly);
    table.met
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The value of a sorted list below which so many per cent of it are; NaN for an empty list.
fn percentile(sorted: &[f64], at: usize) -> f64 {
    // the first value that so many are no greater than
    sorted.get((sorted.len() * at).div_ceil(100).saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
