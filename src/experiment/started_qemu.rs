//! A QEMU that the sweep has started, and which ends with the sweep.

use super::{
    command::{QemuFiles, qemu_words},
    debug_lines::{GuestHeard, GuestReady},
    event_monitor::{COMMAND, EventMonitor, ask},
    host,
    listening::{DebugPort, SweepClock},
    run_changes::RunChanges,
    spec::SweepSpec,
};
use crate::{
    endpoint::{Address, dial},
    qmp::{QmpClient, QmpOptions, QmpRequest},
};
use serde_json::{Value, json};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use thiserror::Error;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

/// The time in which a monitor must appear.
const MONITOR: Duration = Duration::from_secs(30);
/// The time in which the guest must have filled its memory and disks; each GiB has as much again.
const READY: Duration = Duration::from_secs(60);
/// The time in which a QEMU that was told to end must have.
const END: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);

/// Why a trial could not be run.
#[derive(Debug, Error)]
pub(crate) enum TrialError {
    /// A program does not start.
    #[error("{program} cannot be started: {source}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A file or socket of the trial.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Anything else, in one sentence.
    #[error("{0}")]
    Other(String),
}

/// An error of a file, by its path.
pub(super) fn of_file(path: &Path) -> impl FnOnce(io::Error) -> TrialError + use<> {
    let path = path.to_owned();
    move |source| TrialError::File { path, source }
}

/// The last line that a program said.
pub(super) fn last_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}

/// A QEMU of the sweep's own.
#[derive(Debug)]
pub(crate) struct StartedQemu {
    child: Child,
    pub(crate) pid: u32,
    pub(crate) files: QemuFiles,
    port: DebugPort,
    errors: PathBuf,
    /// The further monitor, where its command has one.
    events: Option<EventMonitor>,
    /// The time from the start until the monitor was there.
    pub(crate) took: Duration,
}

/// A command, behind the words that enter its network namespace, whose process ends with this one, also where this one
/// is killed: where the system has `setpriv` for it.
fn ending_with_us(entrance: &[String], words: &[String]) -> Command {
    const SETPRIV: &str = "/usr/bin/setpriv";
    let dying: &[&str] = if Path::new(SETPRIV).exists() { &[SETPRIV, "--pdeathsig", "KILL", "--"] } else { &[] };
    let text = String::as_str;
    let mut words = entrance.iter().map(text).chain(dying.iter().copied()).chain(words.iter().map(text));
    let mut command = Command::new(words.next().unwrap_or_default());
    // Ctrl-C is the sweep's to answer.
    command.args(words).kill_on_drop(true).stdin(Stdio::null()).process_group(0);
    command
}

impl StartedQemu {
    /// Starts a QEMU behind the words that enter its network namespace, and waits until its monitor is there.
    ///
    /// # Errors
    /// The program, with what it said.
    pub(crate) async fn start(
        setup: &SweepSpec,
        files: QemuFiles,
        qemu: &str,
        accelerator: &str,
        waits: bool,
        entrance: &[String],
        clock: SweepClock,
    ) -> Result<Self, TrialError> {
        let words = qemu_words(setup, &files, qemu, accelerator, waits)
            .map_err(|error| TrialError::Other(error.to_string()))?;
        let port = DebugPort::listen(&files.debug, clock).map_err(of_file(&files.debug))?;
        let errors = files.qmp.with_extension("stderr");
        let stderr = File::create(&errors).map_err(of_file(&errors))?;
        let child = ending_with_us(entrance, &words)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|source| TrialError::Start { program: words.first().cloned().unwrap_or_default(), source })?;
        let pid = child.id().unwrap_or_default();
        let begun = Instant::now();
        let is_named = |file: &Path| words.iter().any(|word| word.contains(&*file.to_string_lossy()));
        let events = is_named(&files.events).then(|| EventMonitor::watch(&files.events));
        let mut started = Self { child, pid, files, port, errors, events, took: Duration::ZERO };
        let deadline = begun + MONITOR;
        // Who finds the socket can connect to it: QEMU listens before it is named.
        while !started.files.qmp.exists() {
            if started.has_ended() {
                return Err(TrialError::Other(format!("{qemu} ended at its start: {}", started.last_words())));
            }
            if Instant::now() > deadline {
                return Err(TrialError::Other(format!("{qemu} has opened no monitor within {} s", MONITOR.as_secs())));
            }
            sleep(LOOK).await;
        }
        started.took = begun.elapsed();
        let comes_later = waits && setup.migrator.as_ref().is_some_and(|migrator| migrator.starts_destination);
        if let Some(events) = started.events.as_ref().filter(|_| !comes_later) {
            if !events.connected().await {
                let socket = started.files.events.display();
                return Err(TrialError::Other(format!("nobody answers at the further monitor {socket}")));
            }
        }
        Ok(started)
    }

    /// Waits until the guest has begun its work.
    ///
    /// # Errors
    /// It did not in time, or its QEMU ended.
    pub(crate) async fn ready(&mut self, setup: &SweepSpec, accelerator: &str) -> Result<GuestReady, TrialError> {
        let filled = setup.workload.memory.0 + setup.disks.filled.0 * u64::from(setup.disks.count);
        let patience = READY * u32::try_from(1 + (filled >> 30)).unwrap_or(u32::MAX);
        let deadline = Instant::now() + patience;
        loop {
            if let Some(ready) = self.port.with(|heard| heard.ready) {
                return Ok(ready);
            }
            if self.has_ended() {
                return Err(TrialError::Other(format!("the source's QEMU ended: {}", self.last_words())));
            }
            if Instant::now() > deadline {
                let said = self.port.with(|heard| heard.complaints.join("; "));
                return Err(TrialError::Other(format!(
                    "the guest has not begun its work within {} s under {accelerator} ({}): try accelerator = \"tcg\" \
                     under [machine]",
                    patience.as_secs(),
                    if said.is_empty() { "it has said nothing" } else { &said },
                )));
            }
            sleep(LOOK).await;
        }
    }

    /// Whether the process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of what QEMU said, in one line.
    pub(crate) fn last_words(&self) -> String {
        let said = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        if lines.is_empty() { "it said nothing".into() } else { lines[lines.len().saturating_sub(3)..].join("; ") }
    }

    /// What was heard of the guest so far.
    pub(crate) fn heard(&self) -> GuestHeard {
        self.port.with(Clone::clone)
    }

    /// Reads from what was heard, without a copy of it.
    pub(crate) fn hear<T>(&self, read: impl FnOnce(&GuestHeard) -> T) -> T {
        self.port.with(read)
    }

    /// The CPU time of QEMU so far, in milliseconds.
    pub(crate) fn cpu(&self) -> Option<f64> {
        self.events.as_ref().map_or_else(|| host::cpu_time(self.pid), EventMonitor::cpu)
    }

    /// When the guest stopped and resumed, as far as the further monitor told.
    pub(crate) fn changes(&self) -> RunChanges {
        self.events.as_ref().map(EventMonitor::changes).unwrap_or_default()
    }

    /// Whether the guest runs; none where nobody answers.
    pub(crate) async fn runs(&self) -> Option<bool> {
        self.ask(QmpRequest::named("query-status")).await.ok()?["running"].as_bool()
    }

    /// Asks over the further monitor, which is held all the time, or over the only one.
    ///
    /// # Errors
    /// The monitor does not answer, or refuses.
    pub(super) async fn ask(&self, request: QmpRequest) -> Result<Value, String> {
        if let Some(events) = &self.events {
            return ask(&events.client().ok_or("no monitor is there")?, request).await;
        }
        let address = Address::unix(&self.files.qmp).map_err(|error| error.to_string())?;
        let dialed = dial(&address, COMMAND).await.map_err(|error| error.to_string())?;
        let client = QmpClient::connect(dialed.stream, QmpOptions::labelled("sweep")).await;
        ask(&client.map_err(|error| error.to_string())?, request).await
    }

    /// Presses a key of the guest's keyboard.
    ///
    /// # Errors
    /// The monitor does not answer, or refuses.
    pub(crate) async fn press(&self, key: &str) -> Result<(), TrialError> {
        let keys = json!([{ "type": "qcode", "data": key }]);
        let pressed = self.ask(QmpRequest::named("send-key").with("keys", keys)).await;
        pressed
            .map(|_| ())
            .map_err(|error| TrialError::Other(format!("the guest could not be asked to check its data: {error}")))
    }

    /// Ends the process, and waits until it is gone.
    pub(crate) async fn end(mut self) {
        // a process that has ended needs no kill, and the handle kills one that is left
        self.child.start_kill().ok();
        tokio::time::timeout(END, self.child.wait()).await.ok();
    }

    /// Waits for the end of a process that somebody else has told to end.
    pub(crate) async fn ended(mut self) {
        if tokio::time::timeout(END, self.child.wait()).await.is_err() {
            self.end().await;
        }
    }
}
