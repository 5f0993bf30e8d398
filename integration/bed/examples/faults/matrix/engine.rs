//! The engine in this process, on a thread and a runtime of its own.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use qferry::internals::endpoint::{Address, Endpoint, ProcessHandle};
use qferry::internals::migration::{Migration, Settings};
use qferry::internals::progress::{Ending, EventKind, Outcome, Phase, PhaseState, RunsOn};
use qferry_bed::Side;
use tokio::sync::oneshot;

/// The messages of an engine under test.
pub(crate) enum Told {
    /// The point is reached. The engine waits until this end is dropped.
    Reached(#[allow(dead_code, reason = "it is there to be dropped")] Sender<()>),
    /// The engine has ended.
    Ended(Ended),
    /// The engine has ended as it must not.
    Broke(String),
}

/// The outcome of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) ending: Ending,
    pub(crate) runs_on: RunsOn,
    /// The code of the reason, or an empty text.
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) leftovers: Vec<String>,
}

impl Ended {
    /// Whether the outcome names this leftover on a side.
    pub(crate) fn says_left(&self, side: Side, what: &str) -> bool {
        self.leftovers.iter().any(|left| left.starts_with(&side.to_string()) && left.contains(what))
    }
}

impl From<Outcome> for Ended {
    fn from(outcome: Outcome) -> Self {
        let (code, message) =
            outcome.reason.map(|reason| (reason.code.to_string(), reason.message)).unwrap_or_default();
        Self { ending: outcome.outcome, runs_on: outcome.runs_on, code, message, leftovers: outcome.leftovers }
    }
}

/// A way to a monitor.
#[derive(Clone, Debug)]
pub(crate) enum Reach {
    /// At an address. The engine then does not know that QEMU is behind a proxy.
    At(Address),
    /// Through a proxy, with the QEMU behind it named to the engine.
    Through(PathBuf, u32),
}

impl Reach {
    fn endpoint(&self) -> Result<Endpoint, String> {
        Ok(match self {
            Self::At(address) => Endpoint::from(address.clone()),
            Self::Through(path, pid) => {
                // a single connection: the engine must do without another
                let (name, path) = (path.display().to_string(), Mutex::new(Some(path.clone())));
                let connect = move || {
                    let path = path.lock().ok().and_then(|mut path| path.take());
                    async { tokio::net::UnixStream::connect(path.ok_or(io::ErrorKind::ConnectionRefused)?).await }
                };
                let handle = ProcessHandle::from_pid(*pid).map_err(|error| error.to_string())?;
                Endpoint::connector(name, connect).with_process(handle)
            }
        })
    }
}

/// A running engine. Dropping the value removes its runtime, as if the engine had died without a word.
pub(crate) struct Running {
    _stop: oneshot::Sender<()>,
}

/// Starts an engine, which sends [`Told::Reached`] at the begin of `phase` and waits there, and sends its outcome at
/// the end.
pub(crate) fn start(sides: [Reach; 2], settings: Settings, phase: Option<Phase>, talk: Sender<Told>) -> Running {
    let (stop, stopped) = oneshot::channel::<()>();
    thread::spawn(move || {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            runtime.block_on(async {
                tokio::select! {
                    ended = migrate(sides, settings, phase, &talk) => ended,
                    _ = stopped => Err("it was stopped".to_owned()),
                }
            })
        }));
        let told = match ended {
            Ok(Ok(outcome)) => Told::Ended(Ended::from(outcome)),
            Ok(Err(error)) => Told::Broke(error),
            Err(_) => Told::Broke("the engine panicked".to_owned()),
        };
        // Nobody may be waiting any more.
        drop(talk.send(told));
    });
    Running { _stop: stop }
}

async fn migrate(
    sides: [Reach; 2],
    settings: Settings,
    phase: Option<Phase>,
    talk: &Sender<Told>,
) -> Result<Outcome, String> {
    let [source, destination] = &sides;
    let builder = Migration::builder(source.endpoint()?, destination.endpoint()?);
    let mut migration = builder.settings(settings).start_here().map_err(|invalid| invalid.to_string())?;
    let mut events = migration.events();
    while let Some(event) = events.next().await {
        match event.kind {
            EventKind::Phase { phase: begun, state: PhaseState::Begin, .. } if Some(begun) == phase => {
                wait_for_go(talk)
            }
            EventKind::Outcome(_) => break,
            _ => {}
        }
    }
    Ok(migration.wait().await)
}

/// Recovers in this process from the journal of another engine.
pub(crate) fn recover(journal: &Path, sides: &[Option<Reach>; 2], patience: Duration) -> Result<Ended, String> {
    let recover = async {
        let mut recovery = Migration::recover(journal);
        let [source, destination] = sides;
        if let Some(source) = source {
            recovery = recovery.source(source.endpoint()?);
        }
        if let Some(destination) = destination {
            recovery = recovery.destination(destination.endpoint()?);
        }
        Ok(Ended::from(recovery.start_here().map_err(|invalid| invalid.to_string())?.wait().await))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let ended = runtime.block_on(async { tokio::time::timeout(patience, recover).await });
    ended.unwrap_or_else(|_| Err(format!("the recovery has not ended after {patience:?}")))
}

/// Tells that the point is reached, and waits to be let go.
pub(crate) fn wait_for_go(talk: &Sender<Told>) {
    let (go, wait) = channel();
    if talk.send(Told::Reached(go)).is_ok() {
        // The end of the channel lets the engine go.
        while wait.recv().is_ok() {}
    }
}
