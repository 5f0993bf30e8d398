//! One run of `qferry migrate` as a process of its own, with its lines stamped as they come.

use super::{host, listening::SweepClock, started_qemu::TrialError};
use crate::{endpoint::PeerPid, progress::Outcome, trust};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Command,
    time::{Instant, sleep_until, timeout},
};

/// The time that a migration that was cancelled has to go back.
const WAY_BACK: Duration = Duration::from_secs(60);
/// The time that a process has to end once its output is closed.
const CLOSED: Duration = Duration::from_secs(1);
/// Longer lines are cut, and are no objects then.
const LINE: u64 = 4 << 20;
/// Most of the last words that are kept.
const WORDS: u64 = 64 << 10;

/// What a run of the engine came to.
#[derive(Debug, Default)]
pub(crate) struct EngineRun {
    /// Begin and end of the process.
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// Its lines and when they came.
    pub(crate) lines: Vec<(u64, Value)>,
    pub(crate) outcome: Option<Outcome>,
    /// The CPU time in milliseconds.
    pub(crate) cpu: Option<f64>,
    /// Whether the limit was reached and the migration cancelled for it.
    pub(crate) is_over_limit: bool,
    /// What it said to people last.
    pub(crate) last_words: String,
}

/// What is to be run.
#[derive(Debug)]
pub(crate) struct EngineCall<'a> {
    /// The words that enter the network namespace of the source, where a user would start the engine.
    pub(crate) entrance: Vec<String>,
    /// Whether that is in a user namespace, in which root's folders show as nobody's.
    pub(crate) is_without_names: bool,
    pub(crate) engine: &'a Path,
    pub(crate) source: &'a Path,
    pub(crate) destination: &'a Path,
    pub(crate) options: Vec<String>,
    /// The folder for the engine's state and sockets.
    pub(crate) state: PathBuf,
    pub(crate) limit: Duration,
}

impl EngineCall<'_> {
    /// Runs it to its end.
    ///
    /// # Errors
    /// The program does not start.
    pub(crate) async fn run(self, clock: SweepClock) -> Result<EngineRun, TrialError> {
        let start = |source| TrialError::Start { program: self.engine.display().to_string(), source };
        let mut run = EngineRun { begin: clock.now(), ..EngineRun::default() };
        let engine = self.engine.as_os_str();
        let mut words = self.entrance.iter().map(OsStr::new).chain([engine]);
        let mut child = Command::new(words.next().unwrap_or(engine))
            .args(words)
            .envs(self.is_without_names.then_some((trust::UNMAPPED_OWNERS, "root")))
            .args(["migrate", "--json", "--no-transcript", "--source"])
            .arg(self.source)
            .arg("--destination")
            .arg(self.destination)
            .args(&self.options)
            .env("XDG_STATE_HOME", &self.state)
            .env("XDG_RUNTIME_DIR", &self.state)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // Ctrl-C is the sweep's to answer.
            .process_group(0)
            .spawn()
            .map_err(start)?;
        let pid = child.id().unwrap_or_default();
        let stderr = child.stderr.take();
        let words = async {
            let mut words = Vec::new();
            if let Some(mut stderr) = stderr {
                // the rest is read and dropped, so that the engine never waits for room
                (&mut stderr).take(WORDS).read_to_end(&mut words).await.ok();
                tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await.ok();
            }
            words
        };
        let stdout = child.stdout.take();
        let cancelled = sleep_until(Instant::now() + self.limit);
        let reading = async {
            let Some(stdout) = stdout else { return };
            if !read(stdout, &mut run, clock, pid, cancelled).await {
                // its words end with it, and are waited for; one that has just ended needs no kill
                child.start_kill().ok();
            }
        };
        let ((), words) = tokio::join!(reading, words);
        // A process that has ended and was not collected yet still tells its CPU time.
        run.cpu = match i32::try_from(pid).ok().and_then(|pid| PeerPid::open(pid).ok()) {
            Some(process) => timeout(CLOSED, process.died()).await.ok().and_then(|()| host::cpu_time(pid)),
            None => None,
        };
        run.end = clock.now();
        if timeout(WAY_BACK, child.wait()).await.is_err() {
            child.start_kill().map_err(start)?;
        }
        let words = String::from_utf8_lossy(&words);
        run.last_words = words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().to_owned();
        Ok(run)
    }
}

/// Reads the lines until the output ends; `false` where the process had to be left, as it did not go back in time.
async fn read(
    stdout: tokio::process::ChildStdout,
    run: &mut EngineRun,
    clock: SweepClock,
    pid: u32,
    limit: tokio::time::Sleep,
) -> bool {
    tokio::pin!(limit);
    let mut stdout = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        let mut bounded = (&mut stdout).take(LINE);
        let next = bounded.read_until(b'\n', &mut line);
        tokio::select! {
            next = next => match next {
                Ok(length) if length > 0 => {}
                _ => return true,
            },
            () = limit.as_mut() => {
                if run.is_over_limit {
                    return false;
                }
                run.is_over_limit = true;
                if let Ok(pid) = i32::try_from(pid) {
                    // one that has just ended needs no signal
                    kill(Pid::from_raw(pid), Signal::SIGINT).ok();
                }
                limit.as_mut().reset(Instant::now() + WAY_BACK);
                continue;
            }
        }
        let heard = clock.now();
        if let Ok(object) = serde_json::from_slice::<Value>(&line) {
            if object["type"] == "outcome" {
                run.outcome = serde_json::from_value(object.clone()).ok();
            }
            run.lines.push((heard, object));
        }
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_does_not_end_is_killed() {
        let folder = tempfile::tempdir().expect("a folder");
        let engine = folder.path().join("engine");
        fs::write(&engine, "#!/bin/sh\ntrap '' INT\nexec sleep 1000\n").expect("it is written");
        fs::set_permissions(&engine, fs::Permissions::from_mode(0o700)).expect("it is made a program");
        let call = EngineCall {
            entrance: Vec::new(),
            is_without_names: false,
            engine: &engine,
            source: Path::new("/s"),
            destination: Path::new("/d"),
            options: Vec::new(),
            state: folder.path().to_owned(),
            limit: Duration::from_secs(1),
        };
        let run = call.run(SweepClock::start()).await.expect("it starts");
        assert!(run.is_over_limit && run.outcome.is_none(), "{run:?}");
    }
}
