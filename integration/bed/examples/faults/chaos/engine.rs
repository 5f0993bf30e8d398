//! The engine as the command `qferry`, which can be stopped, killed and run again.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use qferry_bed::{Error, OwnClock, Result, run_within};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Between two looks at a child.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What the engine says, or a proxy has reached.
pub(crate) enum Told {
    /// A phase begins.
    Begins(String),
    /// The command before which strike number `usize` belongs is held until the end of this channel is dropped.
    Holds(usize, #[allow(dead_code, reason = "it is there to be dropped")] Sender<()>),
    /// The engine has ended.
    Ended(Report),
}

/// The end of an engine, as it told it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// The exit code; none for an engine that was killed.
    pub(crate) code: Option<i32>,
    /// The last line of output, or null.
    pub(crate) outcome: Value,
    /// The codes of all warnings.
    pub(crate) warnings: Vec<String>,
    /// The text for people.
    pub(crate) said: String,
    /// The time from the start of a migrating engine to its end.
    pub(crate) took: Duration,
}

/// The command, and its files.
pub(crate) struct Engine {
    pub(crate) qferry: PathBuf,
    pub(crate) folder: PathBuf,
    /// Whether a migrating engine has a wall clock of its own.
    pub(crate) own_clock: bool,
}

/// A running `qferry migrate`.
pub(crate) struct Migrating {
    clock: Option<OwnClock>,
    child: Arc<Mutex<Child>>,
    pid: Pid,
}

impl Engine {
    pub(crate) fn journal(&self) -> PathBuf {
        self.folder.join("journal")
    }

    /// Starts `qferry migrate` with these arguments.
    pub(crate) fn migrate(&self, arguments: &[String], talk: Sender<Told>) -> Result<Migrating> {
        let mut command = self.command("migrate");
        command.args(arguments).arg("--journal").arg(self.journal()).arg("--json");
        command.stdout(Stdio::piped()).stderr(self.log("migrate.err")?);
        let clock = self.own_clock.then(|| OwnClock::give(&mut command, &self.folder)).transpose()?;
        let began = Instant::now();
        let mut child = command.spawn().map_err(|error| Error::new(format!("starting qferry: {error}")))?;
        let (stdout, pid, errors) = (child.stdout.take(), Pid::from_child(&child), self.folder.join("migrate.err"));
        let child = Arc::new(Mutex::new(child));
        let waits = Arc::clone(&child);
        thread::spawn(move || {
            let mut report = Report::default();
            for line in stdout.map(BufReader::new).into_iter().flat_map(BufRead::lines).map_while(std::io::Result::ok) {
                report.take(&line);
                let line: Value = serde_json::from_str(&line).unwrap_or_default();
                if line["type"] == "phase" && line["state"] == "begin" {
                    drop(talk.send(Told::Begins(line["phase"].as_str().unwrap_or_default().to_owned())));
                }
            }
            report.code = loop {
                match lock(&waits).try_wait() {
                    Ok(None) => {}
                    Ok(Some(status)) => break status.code(),
                    Err(_) => break None,
                }
                thread::sleep(LOOK_AGAIN);
            };
            report.took = began.elapsed();
            report.said = fs::read_to_string(errors).unwrap_or_default();
            drop(talk.send(Told::Ended(report)));
        });
        Ok(Migrating { clock, child, pid })
    }

    /// Runs `qferry recover` to its end.
    pub(crate) fn recover(&self, patience: Duration) -> Result<Report> {
        let mut command = self.command("recover");
        command.arg(self.journal()).arg("--json").stdout(self.log("recover.out")?).stderr(self.log("recover.err")?);
        let status = run_within(&mut command, "qferry recover", patience)?;
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        let mut report = Report { code: status.code(), said: read("recover.err"), ..Report::default() };
        read("recover.out").lines().for_each(|line| report.take(line));
        Ok(report)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.qferry);
        command.arg(verb).stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", &self.folder).env("XDG_STATE_HOME", &self.folder);
        command
    }

    fn log(&self, name: &str) -> Result<File> {
        let path = self.folder.join(name);
        File::create(&path).map_err(|error| Error::new(format!("{}: {error}", path.display())))
    }
}

impl Report {
    /// Takes in a line of output.
    fn take(&mut self, line: &str) {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        match line["type"].as_str() {
            Some("warning") => self.warnings.extend(line["code"].as_str().map(str::to_owned)),
            Some("outcome") => self.outcome = line,
            _ => {}
        }
    }

    /// A figure of the outcome.
    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        self.outcome[name].as_f64()
    }

    /// What is true of an engine that never began.
    pub(crate) fn untouched() -> Self {
        let outcome = json!({"outcome": "refused", "runs_on": "unknown", "reason": {"code": "never-begun"}});
        Self { code: Some(3), outcome, ..Self::default() }
    }

    /// The outcome's word, or an empty text.
    pub(crate) fn ending(&self) -> &str {
        self.outcome["outcome"].as_str().unwrap_or_default()
    }

    /// The side that has the guest, as the engine says.
    pub(crate) fn runs_on(&self) -> &str {
        self.outcome["runs_on"].as_str().unwrap_or_default()
    }

    /// Everything of the engine's that it says it left.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let all = self.outcome["leftovers"].as_array().into_iter().flatten();
        all.filter_map(|left| left.as_str().map(str::to_owned)).collect()
    }

    /// One line on the end.
    pub(crate) fn told(&self) -> String {
        let reason = &self.outcome["reason"];
        let (code, message) = (reason["code"].as_str().unwrap_or("-"), reason["message"].as_str().unwrap_or(""));
        let code_of_exit = self.code.map_or_else(|| "killed".to_owned(), |code| code.to_string());
        format!("{code_of_exit} {} on {} ({code}: {message})", self.ending(), self.runs_on())
    }
}

impl Migrating {
    /// Sets the engine's wall clock so many seconds ahead.
    pub(crate) fn set_clock(&self, ahead: i64) -> Result<()> {
        self.clock.as_ref().ok_or_else(|| Error::new("no clock"))?.set_ahead(ahead * 1000)
    }

    /// Sends a signal to the engine, if it lives.
    pub(crate) fn signal(&self, signal: Signal) -> Result<bool> {
        // Under the lock and only while it is alive, so that the id is still this process's.
        let mut child = lock(&self.child);
        if child.try_wait().map_err(|error| Error::new(error.to_string()))?.is_some() {
            return Ok(false);
        }
        kill_process(self.pid, signal).map_err(|error| Error::new(format!("signalling qferry: {error}")))?;
        Ok(true)
    }
}

impl Drop for Migrating {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        // An engine that has ended already is fine.
        drop((child.kill(), child.wait()));
    }
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}
