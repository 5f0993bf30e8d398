//! The engine as a program, which can be killed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use qferry::internals::progress::{Ending, Phase, RunsOn};
use qferry_bed::{Error, Result, run_within};
use serde_json::Value;

use super::attempt::BUDGET;
use super::engine::{Ended, Told, wait_for_go};

/// The program, and its files and addresses.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) qferry: PathBuf,
    /// Both monitors, the source's first.
    pub(crate) monitors: [PathBuf; 2],
    /// The addresses for NBD, for RAM and for the source's NBD.
    pub(crate) channels: [String; 3],
    pub(crate) runtime_dir: PathBuf,
    pub(crate) journal: PathBuf,
}

/// A running `qferry migrate`.
pub(crate) struct Migrating(Child);

impl Program {
    /// Starts `qferry migrate`, which sends the same messages as [`super::engine::start`], but does not wait at the
    /// point.
    pub(crate) fn migrate(&self, phase: Option<Phase>, talk: Sender<Told>) -> Result<Migrating> {
        let [source, destination] = &self.monitors;
        let mut command = self.command("migrate");
        command.arg("--source").arg(source).arg("--destination").arg(destination);
        for (option, address) in
            ["--nbd-address", "--migrate-address", "--source-nbd-address"].iter().zip(&self.channels)
        {
            command.args([option, address.as_str()]);
        }
        command.arg("--journal").arg(&self.journal).args(["--json", "--verify-backing", "off"]);
        command.args(["--downtime", &format!("{}ms", BUDGET.as_millis())]);
        command.stdout(Stdio::piped()).stderr(self.log("migrate.err")?);
        let mut child = command.spawn().map_err(|error| Error::new(format!("starting qferry: {error}")))?;
        let (stdout, folder) = (child.stdout.take(), self.runtime_dir.clone());
        thread::spawn(move || {
            let mut last = Value::Null;
            for line in stdout.map(BufReader::new).into_iter().flat_map(BufRead::lines).map_while(std::io::Result::ok) {
                last = serde_json::from_str(&line).unwrap_or_default();
                let begins = last["type"] == "phase" && last["state"] == "begin";
                if begins && phase.is_some_and(|phase| last["phase"] == phase.as_str()) {
                    wait_for_go(&talk);
                }
            }
            let said = fs::read_to_string(folder.join("migrate.err")).unwrap_or_default();
            let told =
                ended(&last).map_or_else(|| Told::Broke(format!("qferry migrate: {}", said.trim())), Told::Ended);
            drop(talk.send(told));
        });
        Ok(Migrating(child))
    }

    /// Runs `qferry recover` twice. The second run finds nothing more to do.
    pub(crate) fn recover_twice(&self, patience: Duration) -> std::result::Result<Ended, String> {
        let recover = || self.recover(patience).map_err(|error| error.to_string());
        let ended = recover()?;
        match recover() {
            Ok(again) if (again.ending, again.runs_on) == (ended.ending, ended.runs_on) => Ok(ended),
            other => Err(format!("at first {ended:?}, and the second time {other:?}")),
        }
    }

    /// Runs `qferry recover` to its end. Outcome and exit code must agree.
    fn recover(&self, patience: Duration) -> Result<Ended> {
        let mut command = self.command("recover");
        command.arg(&self.journal).arg("--json").stdout(self.log("recover.out")?).stderr(self.log("recover.err")?);
        let status = run_within(&mut command, "qferry recover", patience)?;
        let read = |name: &str| fs::read_to_string(self.runtime_dir.join(name)).unwrap_or_default();
        let out = read("recover.out");
        let last = out.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        let ended = ended(&last);
        match ended {
            Some(ended) if status.code() == Some(i32::from(ended.ending.exit_code())) => Ok(ended),
            other => Err(Error::new(format!("qferry recover: {status}, {other:?}: {}", read("recover.err").trim()))),
        }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.qferry);
        command.arg(verb).stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", &self.runtime_dir).env("XDG_STATE_HOME", &self.runtime_dir);
        command
    }

    fn log(&self, name: &str) -> Result<File> {
        let path: &Path = &self.runtime_dir.join(name);
        File::create(path).map_err(|error| Error::new(format!("{}: {error}", path.display())))
    }
}

impl Migrating {
    /// Kills the program with SIGKILL, and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let killed = self.0.kill().and_then(|()| self.0.wait());
        killed.map(drop).map_err(|error| Error::new(format!("killing qferry: {error}")))
    }
}

impl Drop for Migrating {
    fn drop(&mut self) {
        // A program that has ended already is fine.
        drop(self.kill());
    }
}

/// Reads the last line of `migrate` and `recover`.
fn ended(line: &Value) -> Option<Ended> {
    use Ending::{Cancelled, Ended as GuestEnded, Moved, Refused, RolledBack, Stuck, Undetermined};
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = [Moved, Refused, RolledBack, Cancelled, Stuck, Undetermined, GuestEnded];
    Some(Ended {
        ending: all.into_iter().find(|ending| line["outcome"] == ending.as_str())?,
        runs_on: match line["runs_on"].as_str()? {
            "source" => RunsOn::Source,
            "destination" => RunsOn::Destination,
            "none" => RunsOn::None,
            _ => RunsOn::Unknown,
        },
        code: text(&line["reason"]["code"]),
        message: text(&line["reason"]["message"]),
        leftovers: line["leftovers"].as_array().into_iter().flatten().map(text).collect(),
    })
}
