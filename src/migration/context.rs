//! What does not change while one migration runs: what was asked for, who is told, and how to reach the monitors again.

use super::{Settings, intents::Records, runtime_dir};
use crate::{
    endpoint::{Address, Endpoint},
    progress::{Reporter, Side},
    qmp::Recorder,
    run_id::RunId,
};
use tokio::{sync::watch, time::Instant};

/// What every phase and the way back work with.
pub(crate) struct Context {
    /// The run, whose id is in the name of all that the engine makes. A recovery goes on with the run of its journal.
    pub(crate) run: RunId,
    pub(crate) settings: Settings,
    pub(crate) report: Reporter,
    /// Turns true, or closes, when the user cancels.
    pub(crate) cancel: watch::Receiver<bool>,
    /// When the migration was started; the timeout counts from here.
    pub(crate) began: Instant,
    /// Where the monitors are.
    pub(crate) monitors: Monitors,
    /// What is journalled, also where no file is kept.
    pub(crate) records: Records,
}

/// Where a monitor that closed can be dialled again; `None` where that is not known.
#[derive(Debug, Default)]
pub(crate) struct Monitors {
    pub(crate) source: Option<Endpoint>,
    pub(crate) destination: Option<Endpoint>,
    pub(crate) recorder: Option<Recorder>,
}

impl Monitors {
    /// Where one side's monitor is.
    pub(crate) fn endpoint(&self, side: Side) -> Option<&Endpoint> {
        match side {
            Side::Source => self.source.as_ref(),
            Side::Destination => self.destination.as_ref(),
        }
    }
}

impl Context {
    /// Takes a socket that QEMU has just made in the runtime directory from everyone but its owner.
    pub(crate) fn keep_private(&self, address: &Address) {
        runtime_dir::keep_private(&self.settings.runtime_dir, address);
    }
}
