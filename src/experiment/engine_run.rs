//! One run of what moves the guest as a process of its own: of `qferry migrate`, with its lines stamped as they come,
//! or of another program.

use super::{host, listening::SweepClock, started_qemu::TrialError};
use crate::{endpoint::PeerPid, progress::Outcome, trust};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    pin::Pin,
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{ChildStderr, ChildStdout, Command},
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};

/// The time that a migration that was cancelled has to go back.
const WAY_BACK: Duration = Duration::from_secs(60);
/// The time that a process has to end once its output is closed.
const CLOSED: Duration = Duration::from_secs(1);
/// Longer lines are cut, and are no objects then.
const LINE: u64 = 4 << 20;
/// Most of the last words that are kept.
const WORDS: usize = 64 << 10;

/// What a run came to.
#[derive(Debug, Default)]
pub(crate) struct EngineRun {
    /// Begin and end of the process.
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// Whether its exit status was 0.
    pub(crate) succeeded: bool,
    /// The engine's lines and when they came.
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
pub(crate) struct EngineCall {
    /// The words that enter the network namespace of the source, where a user would start the engine.
    pub(crate) entrance: Vec<String>,
    /// Whether that is in a user namespace, in which root's folders show as nobody's.
    pub(crate) is_without_names: bool,
    pub(crate) words: Vec<OsString>,
    /// Whether it is the engine, whose lines are kept. What another program says on stdout is not.
    pub(crate) is_engine: bool,
    /// The folder for the engine's state and sockets.
    pub(crate) state: PathBuf,
    pub(crate) limit: Duration,
}

impl EngineCall {
    /// Runs it to its end.
    ///
    /// # Errors
    /// The program does not start.
    pub(crate) async fn run(self, clock: SweepClock) -> Result<EngineRun, TrialError> {
        let program = self.words.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
        let start = |source| TrialError::Start { program: program.clone(), source };
        let mut run = EngineRun { begin: clock.now(), ..EngineRun::default() };
        let mut words = self.entrance.iter().map(OsStr::new).chain(self.words.iter().map(OsString::as_os_str));
        let mut child = Command::new(words.next().unwrap_or_default())
            .args(words)
            .envs(self.is_without_names.then_some((trust::UNMAPPED_OWNERS, "root")))
            .env("XDG_STATE_HOME", &self.state)
            .env("XDG_RUNTIME_DIR", &self.state)
            .stdin(Stdio::null())
            .stdout(if self.is_engine { Stdio::piped() } else { Stdio::null() })
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // Ctrl-C is the sweep's to answer.
            .process_group(0)
            .spawn()
            .map_err(start)?;
        let pid = child.id().unwrap_or_default();
        let stderr = child.stderr.take();
        let mut words = Vec::new();
        let (over, mut is_over) = tokio::sync::oneshot::channel();
        let listening = async {
            let Some(mut stderr) = stderr else { return };
            tokio::select! {
                () = hear(&mut stderr, &mut words) => {}
                // What it has left running may hold its stderr on.
                () = async { drop((&mut is_over).await); sleep(CLOSED).await } => {}
            }
        };
        let stdout = child.stdout.take();
        let cancelled = sleep_until(Instant::now() + self.limit);
        let reading = async {
            let ended = match stdout {
                Some(stdout) => read(stdout, &mut run, clock, pid, cancelled).await,
                None => outlast(&mut run.is_over_limit, pid, cancelled).await,
            };
            if !ended {
                // its words end with it, and are waited for; one that has just ended needs no kill
                child.start_kill().ok();
            }
            // nobody waits for it where all words have been heard
            over.send(()).ok();
        };
        tokio::join!(reading, listening);
        // A process that has ended and was not collected yet still tells its CPU time.
        run.cpu = match i32::try_from(pid).ok().and_then(|pid| PeerPid::open(pid).ok()) {
            Some(process) => timeout(CLOSED, process.died()).await.ok().and_then(|()| host::cpu_time(pid)),
            None => None,
        };
        run.end = clock.now();
        match timeout(WAY_BACK, child.wait()).await {
            Ok(status) => run.succeeded = status.is_ok_and(|status| status.success()),
            Err(_) => child.start_kill().map_err(start)?,
        }
        let words = String::from_utf8_lossy(&words);
        run.last_words = words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().to_owned();
        Ok(run)
    }
}

/// Reads the lines until the output ends; `false` where the process had to be left, as it did not go back in time.
async fn read(stdout: ChildStdout, run: &mut EngineRun, clock: SweepClock, pid: u32, limit: Sleep) -> bool {
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
                if !interrupt(&mut run.is_over_limit, pid, limit.as_mut()) {
                    return false;
                }
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

/// Keeps what a program says. What is too much is read and dropped, so that the program never waits for room.
async fn hear(stderr: &mut ChildStderr, words: &mut Vec<u8>) {
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = stderr.read(&mut chunk).await {
        words.extend(chunk[..length].iter().take(WORDS - words.len()));
    }
}

/// Waits until the process ends; `false` where it has to be left.
async fn outlast(is_over_limit: &mut bool, pid: u32, limit: Sleep) -> bool {
    tokio::pin!(limit);
    // one that cannot be opened is gone
    let Some(process) = i32::try_from(pid).ok().and_then(|pid| PeerPid::open(pid).ok()) else { return true };
    loop {
        tokio::select! {
            () = process.died() => return true,
            () = limit.as_mut() => if !interrupt(is_over_limit, pid, limit.as_mut()) {
                return false;
            }
        }
    }
}

/// Asks the process to go back, once its limit is reached; `false` where it has been asked already.
fn interrupt(is_over_limit: &mut bool, pid: u32, limit: Pin<&mut Sleep>) -> bool {
    if *is_over_limit {
        return false;
    }
    *is_over_limit = true;
    if let Ok(pid) = i32::try_from(pid) {
        // one that has just ended needs no signal
        kill(Pid::from_raw(pid), Signal::SIGINT).ok();
    }
    limit.reset(Instant::now() + WAY_BACK);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    /// A program that is this script, with a limit in which a shell has set its traps also on a busy host.
    async fn run(script: &str, is_engine: bool) -> EngineRun {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("program");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("it is written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("it is made a program");
        let call = EngineCall {
            // a shell cannot trap a signal that who runs the tests ignores, as every background job does
            entrance: ["/usr/bin/env", "--default-signal=INT"].map(str::to_owned).to_vec(),
            is_without_names: false,
            words: [program.as_os_str(), OsStr::new("-x")].map(OsStr::to_owned).to_vec(),
            is_engine,
            state: folder.path().to_owned(),
            limit: Duration::from_secs(8),
        };
        call.run(SweepClock::start()).await.expect("it starts")
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_end_is_killed() {
        for is_engine in [true, false] {
            let run = run("trap '' INT\nexec sleep 1000", is_engine).await;
            assert!(run.is_over_limit && run.outcome.is_none() && !run.succeeded, "{run:?}");
        }
    }

    #[tokio::test]
    async fn another_program_is_known_by_its_exit_status_and_last_words() {
        let moved = run("echo '{\"type\":\"outcome\"}'; exec >&-; echo \"$*\" >&2; echo >&2", false).await;
        assert!(moved.succeeded && !moved.is_over_limit && moved.lines.is_empty(), "{moved:?}");
        assert_eq!(moved.last_words, "-x");
        let outlived = run("sleep 20 & echo left >&2", false).await;
        assert!(outlived.succeeded && outlived.last_words == "left", "{outlived:?}");
        assert!(outlived.end - outlived.begin < 15_000_000_000, "{outlived:?}");
        let failed = run("exit 3", false).await;
        assert!(!failed.succeeded && failed.last_words.is_empty(), "{failed:?}");
        let interrupted = run("trap 'echo back >&2; exit 1' INT; while :; do sleep 0.1; done", false).await;
        assert!(interrupted.is_over_limit && !interrupted.succeeded, "{interrupted:?}");
        assert_eq!(interrupted.last_words, "back");
    }
}
