//! The folder of a sweep's results. It is whole after every trial: a sweep that is killed loses at most the one under
//! way.
//!
//! Owns its files. `trials.jsonl` is what counts: the tables are made anew from it.

use super::{
    grid::SweepPlan,
    host,
    measures::Figures,
    metrics::{GROWING, METRICS, definition},
    trial::TrialResult,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use thiserror::Error;

const SPEC: &str = "spec.toml";
const TRIALS: &str = "trials.jsonl";
const SAMPLES: &str = "samples.jsonl";

/// A trial as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrialRecord {
    pub(crate) trial: usize,
    pub(crate) block: u32,
    pub(crate) configuration: usize,
    /// The value of each factor.
    pub(crate) levels: Vec<String>,
    /// When it ended, in milliseconds since 1970.
    pub(crate) ended_ms: u64,
    pub(crate) outcome: String,
    pub(crate) reason: Option<String>,
    /// Whether it was ended by the limit: its times are at least what they are.
    pub(crate) censored: bool,
    /// Which migration of its guest it was, counted from 1.
    pub(crate) leg: u32,
    /// When the guest stopped, in milliseconds since the begin.
    pub(crate) stop_ms: Option<f64>,
    /// Why it does not count.
    pub(crate) invalid: Vec<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) figures: Figures,
}

impl TrialRecord {
    /// Whether the guest moved and the figures count.
    pub(crate) fn counts(&self) -> bool {
        self.outcome == "moved" && self.invalid.is_empty()
    }

    /// What a figure would have been at least, had the migration gone on until the guest had moved. None of one that
    /// moved its guest or never began, and of figures that do not grow with time.
    pub(crate) fn at_least(&self, figure: &str, limit: Duration) -> Option<f64> {
        let is_left = ["rolled-back", "cancelled", "stuck", "failed"].contains(&self.outcome.as_str());
        if !is_left || !self.invalid.is_empty() || !GROWING.contains(&figure) {
            return None;
        }
        let value = self.figures.get(figure).copied()?;
        // the way back began at the limit, and is no part of it
        Some(if self.censored { value.min(limit.as_secs_f64() * 1000.0) } else { value })
    }
}

/// A sample of a trial over time, as far as a report draws it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct TrialSample {
    pub(crate) trial: usize,
    /// Milliseconds since the begin of the migration.
    pub(crate) t_ms: f64,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) pages: Option<f64>,
    pub(crate) writes: Option<f64>,
    pub(crate) bandwidth: Option<f64>,
    pub(crate) dirty_rate: Option<f64>,
}

/// Why results cannot be kept or read.
#[derive(Debug, Error)]
pub(crate) enum ResultsError {
    /// A file.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder is not what it must be.
    #[error("{}: {why}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why, with the remedy.
        why: &'static str,
    },
}

fn of(path: &Path) -> impl FnOnce(io::Error) -> ResultsError + use<> {
    let path = path.to_owned();
    move |source| ResultsError::File { path, source }
}

/// The folder of a sweep that runs.
#[derive(Debug)]
pub(crate) struct SweepResults {
    folder: PathBuf,
    pub(crate) records: Vec<TrialRecord>,
}

impl SweepResults {
    /// Takes a folder for the results of a spec: a new or empty one, or, to go on, one with results of the same spec.
    ///
    /// # Errors
    /// The folder has something else, or cannot be written.
    pub(crate) fn open(folder: &Path, text: &str, resumes: bool) -> Result<Self, ResultsError> {
        let wrong = |why| ResultsError::Folder { folder: folder.to_owned(), why };
        fs::create_dir_all(folder).map_err(of(folder))?;
        let spec = folder.join(SPEC);
        let mut records = Vec::new();
        if resumes {
            match fs::read_to_string(&spec) {
                Ok(before) if before == text => {}
                Ok(_) => return Err(wrong("its results are of another spec: give that one, or another folder")),
                Err(_) => return Err(wrong("there is no sweep to go on with: begin a new one")),
            }
            records = whole_records(folder)?;
            keep_samples_of(folder, &records)?;
        } else if fs::read_dir(folder).map_err(of(folder))?.next().is_some() {
            return Err(wrong("it is not empty: go on with the sweep in it, or give another folder"));
        } else {
            write_whole(&spec, text.as_bytes())?;
        }
        let environment = folder.join("environment.json");
        let text =
            serde_json::to_vec_pretty(&host::environment()).map_err(io::Error::from).map_err(of(&environment))?;
        write_whole(&environment, &text)?;
        Ok(Self { folder: folder.to_owned(), records })
    }

    /// Reads the folder of a sweep, with its spec's text.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn read(folder: &Path) -> Result<(Self, String), ResultsError> {
        let spec = folder.join(SPEC);
        let text = fs::read_to_string(&spec).map_err(of(&spec))?;
        Ok((Self { folder: folder.to_owned(), records: records(folder)?.0 }, text))
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps what came of a trial, and makes the tables anew.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn add(&mut self, plan: &SweepPlan, number: usize, result: TrialResult) -> Result<(), ResultsError> {
        let trial = plan.trials[number];
        let samples = self.folder.join(SAMPLES);
        let mut file = File::options().create(true).append(true).open(&samples).map_err(of(&samples))?;
        let mut lines = Vec::new();
        for mut sample in result.samples {
            sample["trial"] = json!(number);
            line(&mut lines, &sample).map_err(of(&samples))?;
        }
        file.write_all(&lines).map_err(of(&samples))?;
        let record = TrialRecord {
            trial: number,
            block: trial.block,
            configuration: trial.configuration,
            levels: plan.configurations[trial.configuration].levels.clone(),
            ended_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            outcome: result.outcome,
            reason: result.reason,
            censored: result.is_censored,
            leg: result.leg,
            stop_ms: result.stop_ms,
            invalid: result.invalid,
            notes: result.notes,
            figures: result.figures,
        };
        let trials = self.folder.join(TRIALS);
        let mut lines = Vec::new();
        line(&mut lines, &record).map_err(of(&trials))?;
        let mut file = File::options().create(true).append(true).open(&trials).map_err(of(&trials))?;
        file.write_all(&lines).and_then(|()| file.sync_data()).map_err(of(&trials))?;
        self.records.push(record);
        self.write_tables(plan)
    }

    /// Makes the tables.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn write_tables(&self, plan: &SweepPlan) -> Result<(), ResultsError> {
        self.table("results.csv", |table| self.long(plan, table))?;
        self.table("trials.csv", |table| self.wide(plan, table))?;
        self.table("data_quality.csv", |table| self.quality(table))?;
        self.table("metrics.csv", |table| {
            table.write_record(["metric", "unit", "definition"])?;
            METRICS.iter().try_for_each(|metric| table.write_record([metric.name, metric.unit, metric.definition]))
        })
    }

    fn table(
        &self,
        name: &str,
        rows: impl FnOnce(&mut csv::Writer<Vec<u8>>) -> Result<(), csv::Error>,
    ) -> Result<(), ResultsError> {
        let path = self.folder.join(name);
        let mut table = csv::Writer::from_writer(Vec::new());
        rows(&mut table).map_err(|error| of(&path)(error.into()))?;
        let bytes = table.into_inner().map_err(|error| of(&path)(error.into_error()))?;
        write_whole(&path, &bytes)
    }

    /// A row for each figure of each trial.
    fn long(&self, plan: &SweepPlan, table: &mut csv::Writer<Vec<u8>>) -> Result<(), csv::Error> {
        let factors = plan.factors.iter().map(String::as_str);
        let head = ["trial", "block", "configuration"].into_iter().chain(factors);
        table.write_record(head.chain(["outcome", "counts", "censored", "metric", "unit", "value"]))?;
        for record in &self.records {
            for (name, value) in &record.figures {
                let unit = definition(name).map_or("", |metric| metric.unit);
                let mut row = [record.trial, record.block as usize, record.configuration]
                    .map(|number| number.to_string())
                    .to_vec();
                row.extend(record.levels.iter().cloned());
                row.extend([record.outcome.clone(), yes(record.counts()).into(), yes(record.censored).into()]);
                row.extend([name.clone(), unit.into(), value.to_string()]);
                table.write_record(row)?;
            }
        }
        Ok(())
    }

    /// A row for each trial.
    fn wide(&self, plan: &SweepPlan, table: &mut csv::Writer<Vec<u8>>) -> Result<(), csv::Error> {
        let names = self.figure_names();
        let mut head: Vec<&str> = vec!["trial", "block", "configuration"];
        head.extend(plan.factors.iter().map(String::as_str));
        head.extend(["ended_ms", "leg", "outcome", "reason", "counts", "censored"]);
        head.extend(names.iter().map(String::as_str));
        table.write_record(head)?;
        for record in &self.records {
            let mut row =
                [record.trial, record.block as usize, record.configuration].map(|number| number.to_string()).to_vec();
            row.extend(record.levels.iter().cloned());
            row.extend([record.ended_ms.to_string(), record.leg.to_string(), record.outcome.clone()]);
            row.push(record.reason.clone().unwrap_or_default());
            row.extend([yes(record.counts()).to_owned(), yes(record.censored).to_owned()]);
            row.extend(names.iter().map(|name| record.figures.get(name).map(f64::to_string).unwrap_or_default()));
            table.write_record(row)?;
        }
        Ok(())
    }

    /// The samples of some trials.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn samples_of(&self, trials: &[usize]) -> Result<Vec<TrialSample>, ResultsError> {
        let path = self.folder.join(SAMPLES);
        let mut samples = Vec::new();
        for line in BufReader::new(File::open(&path).map_err(of(&path))?).lines() {
            // A line that was torn by a kill is of a trial that was not kept.
            let Ok(sample) = serde_json::from_str::<TrialSample>(&line.map_err(of(&path))?) else { continue };
            if trials.contains(&sample.trial) {
                samples.push(sample);
            }
        }
        Ok(samples)
    }

    /// The names of all figures that a trial has, in the order of their definitions.
    pub(crate) fn figure_names(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.records.iter().flat_map(|record| record.figures.keys()).collect();
        let place = |name: &str| METRICS.iter().position(|metric| Some(metric) == definition(name));
        let mut names: Vec<String> = names.into_iter().cloned().collect();
        names.sort_by_key(|name| place(name));
        names
    }

    fn quality(&self, table: &mut csv::Writer<Vec<u8>>) -> Result<(), csv::Error> {
        table.write_record(["trial", "counts", "censored", "why"])?;
        for record in &self.records {
            let mut whys: Vec<String> = record.invalid.iter().chain(&record.notes).cloned().collect();
            if record.outcome != "moved" {
                let reason = record.reason.as_deref().unwrap_or("no reason is known");
                whys.push(format!("the guest did not move ({}): {reason}", record.outcome));
            }
            for why in whys {
                table.write_record([&record.trial.to_string(), yes(record.counts()), yes(record.censored), &why])?;
            }
        }
        Ok(())
    }
}

fn yes(holds: bool) -> &'static str {
    if holds { "yes" } else { "no" }
}

fn line(to: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *to, value)?;
    to.push(b'\n');
    Ok(())
}

/// Writes a file that is there whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ResultsError> {
    let new = path.with_extension("new");
    fs::write(&new, bytes).map_err(of(&new))?;
    fs::rename(&new, path).map_err(of(path))
}

/// The whole records of a folder, and the length of the file up to the end of the last of them.
fn records(folder: &Path) -> Result<(Vec<TrialRecord>, u64), ResultsError> {
    let path = folder.join(TRIALS);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(of(&path)(error)),
    };
    let mut reader = BufReader::new(file);
    let (mut records, mut whole, mut text) = (Vec::new(), 0, String::new());
    while reader.read_line(&mut text).map_err(of(&path))? > 0 {
        // A line that was torn by a kill ends what can be read.
        let Some(record) = text.strip_suffix('\n').and_then(|line| serde_json::from_str(line).ok()) else { break };
        records.push(record);
        whole += text.len() as u64;
        text.clear();
    }
    Ok((records, whole))
}

fn whole_records(folder: &Path) -> Result<Vec<TrialRecord>, ResultsError> {
    let (records, whole) = records(folder)?;
    let path = folder.join(TRIALS);
    if let Ok(file) = File::options().write(true).open(&path) {
        file.set_len(whole).map_err(of(&path))?;
    }
    Ok(records)
}

/// Leaves out the samples of a trial that was not kept.
fn keep_samples_of(folder: &Path, records: &[TrialRecord]) -> Result<(), ResultsError> {
    let path = folder.join(SAMPLES);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let kept: BTreeSet<u64> = records.iter().map(|record| record.trial as u64).collect();
    let is_kept = |line: &&str| {
        serde_json::from_str::<serde_json::Value>(line)
            .is_ok_and(|sample| sample["trial"].as_u64().is_some_and(|trial| kept.contains(&trial)))
    };
    let lines: String = text.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect();
    write_whole(&path, lines.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> (SweepPlan, &'static str) {
        let text = "repeats = 2\n[[factor]]\nfield = \"migrate.downtime\"\nvalues = [\"20ms\", \"a,b\"]\n";
        (SweepPlan::read(text).expect("the spec is right"), text)
    }

    fn result(blackout: f64) -> TrialResult {
        TrialResult {
            outcome: "moved".into(),
            figures: [("blackout".into(), blackout), ("ledger.drain".into(), 1.5)].into(),
            samples: vec![json!({ "type": "guest", "t_ms": 1.0 })],
            notes: vec!["busy".into()],
            ..TrialResult::default()
        }
    }

    fn read(folder: &Path, name: &str) -> String {
        fs::read_to_string(folder.join(name)).expect(name)
    }

    #[test]
    fn tables_are_whole_after_every_trial() {
        let folder = tempfile::tempdir().expect("a folder");
        let (plan, text) = plan();
        let mut results = SweepResults::open(folder.path(), text, false).expect("the folder is empty");
        results.add(&plan, 0, result(12.5)).expect("it is kept");
        let stuck = TrialResult {
            outcome: "rolled-back".into(),
            is_censored: true,
            reason: Some("over".into()),
            ..TrialResult::default()
        };
        results.add(&plan, 1, stuck).expect("it is kept");
        assert_eq!(
            read(folder.path(), "results.csv"),
            "trial,block,configuration,migrate.downtime,outcome,counts,censored,metric,unit,value\n\
             0,0,0,20ms,moved,yes,no,blackout,ms,12.5\n0,0,0,20ms,moved,yes,no,ledger.drain,ms,1.5\n"
        );
        let trials = read(folder.path(), "trials.csv");
        assert!(
            trials
                .lines()
                .nth(2)
                .is_some_and(|row| row.starts_with("1,0,1,\"a,b\",") && row.ends_with(",rolled-back,over,no,yes,,")),
            "{trials}"
        );
        assert_eq!(
            read(folder.path(), "data_quality.csv"),
            "trial,counts,censored,why\n0,yes,no,busy\n1,no,yes,the guest did not move (rolled-back): over\n"
        );
        assert!(read(folder.path(), "metrics.csv").contains("blackout,ms,"));
        assert!(read(folder.path(), "environment.json").contains("kernel"));
    }

    #[test]
    fn a_sweep_goes_on_after_a_kill_in_the_middle_of_a_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let (plan, text) = plan();
        let mut results = SweepResults::open(folder.path(), text, false).expect("the folder is empty");
        results.add(&plan, 0, result(12.5)).expect("it is kept");
        let append = |name: &str, text: &str| {
            let mut file = File::options().append(true).open(folder.path().join(name)).expect("it is there");
            file.write_all(text.as_bytes()).expect("it can be written");
        };
        append(TRIALS, "{\"trial\":1,\"blo");
        append(SAMPLES, "{\"trial\":1,\"t_ms\":4}\n{\"tri");
        let mut results = SweepResults::open(folder.path(), text, true).expect("it goes on");
        assert_eq!(results.records.len(), 1);
        results.add(&plan, 1, result(13.5)).expect("it is kept");
        let (again, spec) = SweepResults::read(folder.path()).expect("it is whole");
        assert_eq!((again.records.len(), spec.as_str()), (2, text));
        assert_eq!(again.records, results.records);
        assert_eq!(read(folder.path(), SAMPLES).lines().count(), 2);
    }

    #[test]
    fn a_folder_with_something_else_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let open =
            |text: &str, resumes| SweepResults::open(folder.path(), text, resumes).map_err(|error| error.to_string());
        assert!(open("a", true).expect_err("nothing to resume").contains("begin a new one"));
        open("a", false).expect("it is empty");
        assert!(open("a", false).expect_err("not empty").contains("go on with the sweep"));
        assert!(open("b", true).expect_err("another spec").contains("another spec"));
        open("a", true).expect("the same spec");
    }
}
