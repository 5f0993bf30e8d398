//! The handle to a running migration.

use super::{
    Failure, JournalPlace, Plan, Settings,
    background_task::{BackgroundTask, Canceller, Events},
    check,
    context::{Context, Monitors},
    engine,
    intents::Records,
};
use crate::{
    convergence::Policy,
    endpoint::{Address, Socket},
    memory::tuning::Compression,
    progress::{Kind, Outcome, Reporter},
    qmp::Recorder,
    quantity::Rate,
    storage::{model::layout::StorageMode, verify::identity::ProofLevel},
};
use std::{path::PathBuf, time::Duration};
use tokio::{sync::watch, time::Instant};

/// One of the two QEMUs: where its QMP monitor is, or a connection to it.
pub enum Endpoint {
    /// An address to dial.
    Address(Address),
    /// A connection that the caller made. QEMU's greeting must not have been read yet.
    Stream {
        /// Its name in messages.
        name: String,
        /// The connection.
        stream: Box<dyn Socket>,
        /// The QEMU process itself, if the caller knows it: its death is then taken for proof that the guest does not run
        /// there, and the two QEMUs are taken to be on this host; it is killed where it must not run the guest and does not
        /// answer. Never a proxy's or a forwarder's.
        pid: Option<i32>,
    },
}

impl From<Address> for Endpoint {
    fn from(address: Address) -> Self {
        Self::Address(address)
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Stream { name, pid, .. } => write!(f, "{name} (pid {pid:?})"),
        }
    }
}

/// What a migration is to do.
#[derive(Debug)]
pub struct Builder {
    source: Endpoint,
    destination: Endpoint,
    settings: Settings,
    recorder: Option<Recorder>,
}

impl Builder {
    /// Everything at once, in place of what was set so far.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// The blackout budget, 300 ms by default.
    #[must_use]
    pub fn downtime(mut self, budget: Duration) -> Self {
        self.settings.downtime = budget;
        self
    }

    /// A ceiling for the whole job; none by default.
    #[must_use]
    pub fn bandwidth(mut self, ceiling: Rate) -> Self {
        self.settings.bandwidth = Some(ceiling);
        self
    }

    /// Sends RAM over this many channels at once, 1 to 255; over one connection by default.
    #[must_use]
    pub fn multifd(mut self, channels: u8) -> Self {
        self.settings.multifd = Some(channels);
        self
    }

    /// Compresses what these channels send; the preflight refuses it without [`Self::multifd`].
    #[must_use]
    pub fn compress(mut self, how: Compression) -> Self {
        self.settings.compress = Some(how);
        self
    }

    /// What may be done so that disks and RAM converge. Whatever it says, [`Self::downtime`] is the budget; that of a
    /// policy with a schedule is [`Policy::budget`].
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.settings.policy = policy;
        self
    }

    /// Gives up after this long before the switchover; never by default.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = Some(timeout);
        self
    }

    /// The longest from STOP to a guest that runs; see [`Settings::switchover_timeout`].
    #[must_use]
    pub fn switchover_timeout(mut self, limit: Duration) -> Self {
        self.settings.switchover_timeout = Some(limit);
        self
    }

    /// What makes sure that a side that does not answer cannot run the guest; see [`Settings::fence_command`].
    #[must_use]
    pub fn fence_command(mut self, command: impl Into<PathBuf>) -> Self {
        self.settings.fence_command = Some(command.into());
        self
    }

    /// Where the journal is kept; in the state directory by default.
    #[must_use]
    pub fn journal(mut self, place: JournalPlace) -> Self {
        self.settings.journal = place;
        self
    }

    /// Moves this disk; may be said more than once. Without it, every writable disk moves.
    #[must_use]
    pub fn disk(mut self, source: impl Into<String>, destination: Option<String>) -> Self {
        self.settings.selection.disks.push((source.into(), destination));
        self
    }

    /// How the disks get there; by default what the overlays hold is copied.
    #[must_use]
    pub fn storage(mut self, storage: StorageMode) -> Self {
        self.settings.selection.storage = storage;
        self
    }

    /// How well the destination's backing files are proved to be the source's; by a sample by default.
    #[must_use]
    pub fn verify_backing(mut self, proof: ProofLevel) -> Self {
        self.settings.verify_backing = proof;
        self
    }

    /// Where the destination listens for NBD and for RAM. Needed unless both monitors are local unix sockets.
    #[must_use]
    pub fn addresses(mut self, nbd: Address, migrate: Address) -> Self {
        self.settings.nbd_address = Some(nbd);
        self.settings.migrate_address = Some(migrate);
        self
    }

    /// Where the source listens for NBD while backing files are compared. Needed unless its monitor is a local unix
    /// socket.
    #[must_use]
    pub fn source_nbd_address(mut self, address: Address) -> Self {
        self.settings.source_nbd_address = Some(address);
        self
    }

    /// The directory for the sockets of this run.
    #[must_use]
    pub fn runtime_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.settings.runtime_dir = directory.into();
        self
    }

    /// Goes on although the preflight has a blocker of this code; may be said more than once. It has no effect unless the
    /// code is one of [`crate::preflight::checks::FORCIBLE`].
    #[must_use]
    pub fn force(mut self, code: impl Into<String>) -> Self {
        self.settings.force.insert(code.into());
        self
    }

    /// Measures what a prediction needs, after the checks; see [`Settings::predict`].
    #[must_use]
    pub fn predict(mut self) -> Self {
        self.settings.predict = true;
        self
    }

    /// Leaves the source process there, stopped, instead of quitting it.
    #[must_use]
    pub fn keep_source(mut self) -> Self {
        self.settings.keep_source = true;
        self
    }

    /// Records every line of both connections.
    #[must_use]
    pub fn transcript(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// Looks at both sides and tells what would be done. Nothing is changed but for the time that backing files are
    /// compared: read-only exports are opened for that, and closed again. [`Self::predict`] opens one more.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn check(self) -> Check {
        Check(BackgroundTask::start(|report, cancel| self.survey(report, cancel)))
    }

    /// The same, waited for.
    ///
    /// # Errors
    /// A side cannot be reached or does not answer.
    pub async fn plan(self) -> Result<Plan, Failure> {
        self.check().wait().await
    }

    /// Starts the migration on the current tokio runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> Migration {
        Migration(BackgroundTask::start(|report, cancel| self.run(report, cancel)))
    }

    async fn survey(self, report: Reporter, cancel: watch::Receiver<bool>) -> Result<Plan, Failure> {
        let Self { source, destination, settings, recorder } = self;
        let context = context(settings, &source, &destination, recorder, report, cancel);
        check::survey(&context, source, destination).await
    }

    async fn run(self, report: Reporter, cancel: watch::Receiver<bool>) -> Outcome {
        let Self { source, destination, settings, recorder } = self;
        let context = context(settings, &source, &destination, recorder, report.clone(), cancel);
        let outcome = engine::migrate(&context, source, destination).await;
        report.emit(Kind::Outcome(Box::new(outcome.clone())));
        outcome
    }
}

fn context(
    settings: Settings,
    source: &Endpoint,
    destination: &Endpoint,
    recorder: Option<Recorder>,
    report: Reporter,
    cancel: watch::Receiver<bool>,
) -> Context {
    let address = |endpoint: &Endpoint| match endpoint {
        Endpoint::Address(address) => Some(address.clone()),
        Endpoint::Stream { .. } => None,
    };
    let monitors = Monitors { source: address(source), destination: address(destination), recorder };
    Context { settings, report, cancel, began: Instant::now(), monitors, records: Records::default() }
}

/// A running migration.
///
/// Dropping it cancels: the way back is then gone in the background, as long as the runtime lives. Await [`Self::wait`]
/// after [`Self::cancel`] to know how it ended.
#[derive(Debug)]
pub struct Migration(pub(crate) BackgroundTask<Outcome>);

impl Migration {
    /// Begins to describe the migration of a guest from one QEMU to another, which waits with `-incoming defer -S`.
    pub fn builder(source: impl Into<Endpoint>, destination: impl Into<Endpoint>) -> Builder {
        Builder {
            source: source.into(),
            destination: destination.into(),
            settings: Settings::default(),
            recorder: None,
        }
    }

    /// The events: from the first one on the first call, from now on in later ones.
    pub fn events(&mut self) -> Events {
        self.0.events()
    }

    /// Asks to give up and go back. From the handover on it is too late, and the migration ends as it does.
    pub fn cancel(&self) {
        self.0.cancel.cancel();
    }

    /// Something to cancel it with from elsewhere, while it is waited for.
    pub fn canceller(&self) -> Canceller {
        self.0.cancel.clone()
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// If the engine itself panicked, or its runtime was shut down.
    pub async fn wait(self) -> Outcome {
        self.0.wait().await
    }
}

/// A running look at both sides. Dropping it cancels; what it has open is closed in the background.
#[derive(Debug)]
pub struct Check(BackgroundTask<Result<Plan, Failure>>);

impl Check {
    /// The events, as [`Migration::events`]; there is no outcome among them.
    pub fn events(&mut self) -> Events {
        self.0.events()
    }

    /// Something to cancel it with from elsewhere, while it is waited for.
    pub fn canceller(&self) -> Canceller {
        self.0.cancel.clone()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// A side cannot be reached or does not answer, or it was cancelled.
    ///
    /// # Panics
    /// If the engine itself panicked, or its runtime was shut down.
    pub async fn wait(self) -> Result<Plan, Failure> {
        self.0.wait().await
    }
}
