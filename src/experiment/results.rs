//! The folder of a sweep's results. It is whole after every trial: a sweep that is killed loses at most the one under
//! way.
//!
//! Owns its files. `trials.jsonl` is what counts: the tables are made from it.

use super::{grid::SweepPlan, host, tables, trial::TrialResult, trial_record::TrialRecord};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};
use thiserror::Error;

const SPEC: &str = "spec.toml";
const TRIALS: &str = "trials.jsonl";
const ENVIRONMENT: &str = "environment.json";
const SAMPLES: &str = "samples.jsonl";

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
    /// Where each trial's samples are in their file, of a sweep that runs.
    samples: BTreeMap<usize, Range<u64>>,
    /// The figures that the tables have a column for; none before these are first made.
    columns: Option<Vec<String>>,
    /// The spec's file, locked for as long as the sweep runs.
    _lock: Option<File>,
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
        let (mut records, mut samples) = (Vec::new(), BTreeMap::new());
        let running = || wrong("another sweep is running in it: wait for its end, or give another folder");
        let lock = locked(&spec).map_err(|_taken| running())?;
        if resumes {
            match fs::read_to_string(&spec) {
                Ok(before) if before == text => {}
                Ok(_) => return Err(wrong("its results are of another spec: give that one, or another folder")),
                Err(_) => return Err(wrong("there is no sweep to go on with: begin a new one")),
            }
            records = whole_records(folder)?;
            samples = keep_samples_of(folder, &records)?;
        } else if !is_unused(folder)? {
            return Err(wrong("it is not empty: go on with the sweep in it, or give another folder"));
        } else {
            write_whole(&spec, text.as_bytes())?;
        }
        // a spec that was written anew is another file
        let lock = if resumes { lock } else { locked(&spec).map_err(|_taken| running())? };
        let environment = folder.join(ENVIRONMENT);
        let text =
            serde_json::to_vec_pretty(&host::environment()).map_err(io::Error::from).map_err(of(&environment))?;
        write_whole(&environment, &text)?;
        Ok(Self { folder: folder.to_owned(), records, samples, columns: None, _lock: lock })
    }

    /// Reads the folder of a sweep, without samples, and its spec's text.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn read(folder: &Path) -> Result<(Self, String), ResultsError> {
        let spec = folder.join(SPEC);
        let text = fs::read_to_string(&spec).map_err(of(&spec))?;
        let (records, _) = records(folder)?;
        let samples = BTreeMap::new();
        Ok((Self { folder: folder.to_owned(), records, samples, columns: None, _lock: None }, text))
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps what came of a trial, and adds it to the tables: the cost does not grow with the trials that are kept.
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
        let begin = file.metadata().map_err(of(&samples))?.len();
        file.write_all(&lines).map_err(of(&samples))?;
        self.samples.insert(number, begin..begin + lines.len() as u64);
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
        self.keep_tables(plan)
    }

    /// Adds the last record to the tables. They are made anew for one with figures that have no column yet.
    fn keep_tables(&mut self, plan: &SweepPlan) -> Result<(), ResultsError> {
        let Some((last, _)) = self.records.split_last() else { return Ok(()) };
        let has_columns = |columns: &Vec<String>| last.figures.keys().all(|name| columns.contains(name));
        if let Some(columns) = self.columns.as_ref().filter(|columns| has_columns(columns)) {
            for (name, rows) in
                tables::tables(plan, columns, std::slice::from_ref(last), false).map_err(of(&self.folder))?
            {
                let path = self.folder.join(name);
                let mut file = File::options().append(true).open(&path).map_err(of(&path))?;
                file.write_all(&rows).map_err(of(&path))?;
            }
            return Ok(());
        }
        self.make_tables(plan)
    }

    /// Makes the tables of all records that are kept.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn make_tables(&mut self, plan: &SweepPlan) -> Result<(), ResultsError> {
        if self.records.is_empty() {
            return Ok(());
        }
        let wrong = of(&self.folder);
        let columns = self.figure_names();
        for (name, table) in tables::tables(plan, &columns, &self.records, true).map_err(wrong)? {
            write_whole(&self.folder.join(name), &table)?;
        }
        let metrics = self.folder.join("metrics.csv");
        write_whole(&metrics, &tables::metrics().map_err(of(&metrics))?)?;
        self.columns = Some(columns);
        Ok(())
    }

    /// The samples of some trials of a sweep that runs.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn samples_of(&self, trials: &[usize]) -> Result<Vec<TrialSample>, ResultsError> {
        let path = self.folder.join(SAMPLES);
        let mut samples = Vec::new();
        let mut file = File::open(&path).map_err(of(&path))?;
        for place in trials.iter().filter_map(|trial| self.samples.get(trial)) {
            file.seek(SeekFrom::Start(place.start)).map_err(of(&path))?;
            for line in BufReader::new((&mut file).take(place.end - place.start)).lines() {
                // what a report does not draw is no sample to it
                samples.extend(serde_json::from_str::<TrialSample>(&line.map_err(of(&path))?).ok());
            }
        }
        Ok(samples)
    }

    /// The names of all figures that a trial has, in the order of their definitions.
    pub(crate) fn figure_names(&self) -> Vec<String> {
        tables::figure_names(&self.records)
    }
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

/// A file, locked; none where it is not there, or its filesystem has no locks.
///
/// # Errors
/// Somebody else has locked it.
fn locked(path: &Path) -> Result<Option<File>, Errno> {
    let Ok(file) = File::open(path) else { return Ok(None) };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(Errno::WOULDBLOCK),
        locked => Ok(locked.is_ok().then_some(file)),
    }
}

/// Whether a folder is empty, but for what a sweep leaves that could not run its first trial.
fn is_unused(folder: &Path) -> Result<bool, ResultsError> {
    for entry in fs::read_dir(folder).map_err(of(folder))? {
        let name = entry.map_err(of(folder))?.file_name();
        if name != SPEC && name != ENVIRONMENT {
            return Ok(false);
        }
    }
    Ok(true)
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
    let (mut records, mut whole, mut line) = (Vec::new(), 0, Vec::new());
    while reader.read_until(b'\n', &mut line).map_err(of(&path))? > 0 {
        // A line that was torn by a kill, even within a character, ends what can be read.
        let Some(record) = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice(line).ok()) else { break };
        records.push(record);
        whole += line.len() as u64;
        line.clear();
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

/// The trial of a line of samples.
#[derive(Deserialize)]
struct OfTrial {
    trial: usize,
}

/// Leaves out the samples of a trial that was not kept; where those of the others are.
fn keep_samples_of(folder: &Path, records: &[TrialRecord]) -> Result<BTreeMap<usize, Range<u64>>, ResultsError> {
    let mut places: BTreeMap<usize, Range<u64>> = BTreeMap::new();
    let path = folder.join(SAMPLES);
    let Ok(file) = File::open(&path) else { return Ok(places) };
    let kept: BTreeSet<usize> = records.iter().map(|record| record.trial).collect();
    let new = path.with_extension("new");
    let mut to = BufWriter::new(File::create(&new).map_err(of(&new))?);
    let (mut reader, mut line, mut at) = (BufReader::new(file), Vec::new(), 0);
    while reader.read_until(b'\n', &mut line).map_err(of(&path))? > 0 {
        let trial = serde_json::from_slice(&line).ok().map(|OfTrial { trial }| trial);
        // A line that was torn by a kill is of a trial that was not kept.
        if let Some(trial) = trial.filter(|trial| line.ends_with(b"\n") && kept.contains(trial)) {
            to.write_all(&line).map_err(of(&new))?;
            let end = at + line.len() as u64;
            places.entry(trial).or_insert(at..end).end = end;
            at = end;
        }
        line.clear();
    }
    to.flush().map_err(of(&new))?;
    fs::rename(&new, &path).map_err(of(&path))?;
    Ok(places)
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

    /// A file that is written anew is another file.
    #[test]
    fn a_further_trial_adds_rows_and_reads_nothing_again() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().expect("a folder");
        let text = "repeats = 9\n";
        let plan = SweepPlan::read(text).expect("the spec is right");
        let files = || {
            let tables = ["results.csv", "trials.csv", "data_quality.csv", "metrics.csv"];
            tables.map(|name| fs::metadata(folder.path().join(name)).expect(name).ino())
        };
        let mut results = SweepResults::open(folder.path(), text, false).expect("the folder is empty");
        results.add(&plan, 0, result(0.0)).expect("it is kept");
        let first = files();
        for number in 1..4 {
            results.add(&plan, number, result(number as f64)).expect("it is kept");
        }
        assert_eq!(files(), first, "rows were added");
        let mut wider = result(4.0);
        wider.figures.insert("ram.bytes".into(), 7.0);
        results.add(&plan, 4, wider).expect("it is kept");
        assert_ne!(files(), first, "the table of trials has a column more");
        results.add(&plan, 5, result(5.0)).expect("it is kept");

        // the tables are those that a folder gets which is opened again, and so are the samples
        let names = ["results.csv", "trials.csv", "data_quality.csv"];
        let added = names.map(|name| read(folder.path(), name));
        let samples = results.samples.clone();
        let beside = SweepResults::open(folder.path(), text, true).expect_err("it is running");
        assert!(beside.to_string().contains("another sweep is running"), "{beside}");
        drop(results);
        let mut again = SweepResults::open(folder.path(), text, true).expect("it goes on");
        assert_eq!(again.samples, samples);
        again.keep_tables(&plan).expect("they are made");
        assert_eq!(names.map(|name| read(folder.path(), name)), added);
        let samples = again.samples_of(&[4, 2]).expect("they are there");
        assert_eq!(samples.iter().map(|sample| sample.trial).collect::<Vec<_>>(), [4, 2]);
        assert_eq!(added[1].lines().count(), 7);
    }

    #[test]
    fn a_sweep_goes_on_after_a_kill_in_the_middle_of_a_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let (plan, text) = plan();
        let mut results = SweepResults::open(folder.path(), text, false).expect("the folder is empty");
        results.add(&plan, 0, result(12.5)).expect("it is kept");
        let whole = read(folder.path(), "trials.csv");
        let append = |name: &str, bytes: &[u8]| {
            let mut file = File::options().append(true).open(folder.path().join(name)).expect("it is there");
            file.write_all(bytes).expect("it can be written");
        };
        append(TRIALS, b"{\"trial\":1,\"outcome\":\"caf\xc3");
        append(SAMPLES, b"{\"trial\":1,\"t_ms\":4}\n{\"tri");
        append("trials.csv", b"1,0,");
        fs::remove_file(folder.path().join("metrics.csv")).expect("it is there");
        drop(results);
        let mut results = SweepResults::open(folder.path(), text, true).expect("it goes on");
        assert_eq!(results.records.len(), 1);
        results.make_tables(&plan).expect("they can be written");
        assert_eq!(read(folder.path(), "trials.csv"), whole);
        assert!(read(folder.path(), "metrics.csv").contains("blackout,ms,"));
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
        open("of a QEMU that is not there", false).expect("it is empty");
        open("a", false).expect("no trial was run in it");
        fs::write(folder.path().join(TRIALS), "").expect("a trial begins");
        assert!(open("a", false).expect_err("not empty").contains("go on with the sweep"));
        assert!(open("b", true).expect_err("another spec").contains("another spec"));
        open("a", true).expect("the same spec");
    }
}
