//! What an embedder asks for: a migration, or a check of whether one could be.

use super::{
    Failure, JournalPlace, Plan, Settings, check,
    clean::{self, RecoveredFirst},
    context::{Context, Monitors},
    ending::{lost, panicked},
    engine,
    intents::Records,
    recovery::{self, Recovery},
    running::{AfterPanic, Cancelled, EngineJob, Running, Work},
    validate::Invalid,
};
use crate::{
    convergence::Policy,
    endpoint::{Address, Endpoint},
    memory::tuning::Compression,
    progress::{Event, EventKind, Outcome, Reason, Reporter},
    qmp::Recorder,
    quantity::Rate,
    run_id::RunId,
    storage::{model::layout::StorageMode, verify::identity::ProofLevel},
};
use std::{path::PathBuf, time::Duration};
use tokio::time::Instant;

/// The migration of a guest from one QEMU to another, and the recovery of one whose engine died.
#[derive(Debug)]
#[non_exhaustive]
pub struct Migration {}

impl Migration {
    /// Begins to describe the migration of a guest from one QEMU to another, which waits with `-incoming defer -S`.
    pub fn builder(source: impl Into<Endpoint>, destination: impl Into<Endpoint>) -> Builder {
        Builder {
            source: source.into(),
            destination: destination.into(),
            settings: Settings::default(),
            recorder: None,
            run: None,
            panic_at: None,
        }
    }

    /// Begins to describe how a migration is taken up whose engine died: the engine that wrote this journal.
    pub fn recover(journal: impl Into<PathBuf>) -> Recovery {
        Recovery::new(journal.into())
    }
}

/// What a migration is to do. [`Self::start`] begins it; every other method but those that start only notes a wish.
#[derive(Debug, Clone)]
pub struct Builder {
    source: Endpoint,
    destination: Endpoint,
    settings: Settings,
    recorder: Option<Recorder>,
    run: Option<RunId>,
    panic_at: Option<String>,
}

impl Builder {
    /// Every setting at once, in place of what was set so far.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// The blackout budget, 300 ms by default; see [`Settings::downtime`].
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

    /// A ceiling for all the mirrors together; none by default.
    #[must_use]
    pub fn disk_bandwidth(mut self, ceiling: Rate) -> Self {
        self.settings.disk_bandwidth = Some(ceiling);
        self
    }

    /// Sends RAM over this many channels at once, 1 to 255; over one connection by default.
    #[must_use]
    pub fn multifd(mut self, channels: u8) -> Self {
        self.settings.multifd = Some(channels);
        self
    }

    /// Compresses what the channels of [`Self::multifd`] send.
    #[must_use]
    pub fn compress(mut self, how: Compression) -> Self {
        self.settings.compress = Some(how);
        self
    }

    /// What may be done so that disks and RAM converge. Whatever the policy says, [`Self::downtime`] is the budget;
    /// that of a policy with a schedule is [`Policy::budget`].
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

    /// Fences a side that does not answer; see [`Settings::fence_command`].
    #[must_use]
    pub fn fence_command(mut self, command: impl Into<PathBuf>) -> Self {
        self.settings.fence_command = Some(command.into());
        self
    }

    /// How long the fence command may take; see [`Settings::fence_timeout`].
    #[must_use]
    pub fn fence_timeout(mut self, limit: Duration) -> Self {
        self.settings.fence_timeout = limit;
        self
    }

    /// Where the journal is kept; in the state directory by default.
    #[must_use]
    pub fn journal(mut self, place: JournalPlace) -> Self {
        self.settings.journal = place;
        self
    }

    /// Moves this disk, onto the destination's disk of that name; may be said more than once. Without it, every
    /// writable disk moves that the two sides do not share.
    #[must_use]
    pub fn disk(mut self, source: impl Into<String>, destination: Option<String>) -> Self {
        self.settings.selection.disks.push((source.into(), destination));
        self
    }

    /// Leaves this disk of the source out; may be said more than once.
    #[must_use]
    pub fn skip_disk(mut self, source: impl Into<String>) -> Self {
        self.settings.selection.skip.push(source.into());
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

    /// How many ranges of 64 KiB a sample has, 1 to 65536; 64 by default.
    #[must_use]
    pub fn samples(mut self, ranges: usize) -> Self {
        self.settings.samples = ranges;
        self
    }

    /// Chooses the ranges of a sample from this seed, which an earlier run reported.
    #[must_use]
    pub fn sample_seed(mut self, seed: u64) -> Self {
        self.settings.sample_seed = Some(seed);
        self
    }

    /// Keeps the digest of a backing file that was read in full beside it, and trusts it while the file does not
    /// change.
    #[must_use]
    pub fn keep_digests(mut self) -> Self {
        self.settings.keep_digests = true;
        self
    }

    /// Holds the blackout budget as it stands, without the policy's slack; see [`Settings::strict_budget`].
    #[must_use]
    pub fn strict_budget(mut self) -> Self {
        self.settings.strict_budget = true;
        self
    }

    /// Asks the destination's file systems only for the room of what is copied now, not of the whole disks.
    #[must_use]
    pub fn overcommit(mut self) -> Self {
        self.settings.overcommit = true;
        self
    }

    /// Removes first what an earlier try left in the two QEMUs; see [`Settings::clean`].
    #[must_use]
    pub fn clean(mut self) -> Self {
        self.settings.clean = true;
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

    /// Allows a listening address other than loopback without TLS.
    #[must_use]
    pub fn allow_plaintext(mut self) -> Self {
        self.settings.allow_plaintext = true;
        self
    }

    /// The directory for the sockets of this run.
    #[must_use]
    pub fn runtime_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.settings.runtime_dir = directory.into();
        self
    }

    /// Goes on although the preflight has a blocker of this code; may be said more than once. Only a blocker that puts
    /// nothing but the guest at risk can be forced: see [`Settings::force`].
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

    /// Leaves QEMU's trace events alone, so that the blackout is not told device by device; see
    /// [`Settings::device_times`].
    #[must_use]
    pub fn without_device_times(mut self) -> Self {
        self.settings.device_times = false;
        self
    }

    /// Records every line of both connections, and every event.
    #[must_use]
    pub fn transcript(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// Whether every setting can be used.
    ///
    /// # Errors
    /// Every setting that cannot, with what would be right.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.settings.validate()
    }

    /// Looks at both sides and ends with what would be done, or with the reason why a side could not be looked at.
    /// Nothing is changed but for the time that backing files are compared: read-only exports are opened for that,
    /// and closed again. [`Self::predict`] opens one more.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub fn check(self) -> Result<Running<Result<Plan, Reason>>, Invalid> {
        self.validate()?;
        Ok(Running::on_a_thread(CheckJob(self)))
    }

    /// The same on the current tokio runtime; see [`Self::start_here`].
    ///
    /// # Errors
    /// Settings that cannot be used, or no runtime that can.
    pub fn check_here(self) -> Result<Running<Result<Plan, Reason>>, Invalid> {
        self.validate()?;
        Running::on_the_current_runtime(CheckJob(self))
    }

    /// Starts the migration, on a thread and a runtime of its own.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub fn start(self) -> Result<Running<Outcome>, Invalid> {
        self.validate()?;
        Ok(Running::on_a_thread(MigrationJob::new(self)))
    }

    /// Starts the migration on the current tokio runtime. While another task blocks that runtime the engine cannot
    /// see the guest stop, so that the guest may stand still for longer than its budget: prefer [`Self::start`].
    ///
    /// # Errors
    /// Settings that cannot be used; no tokio runtime, or one without its drivers for time and I/O (which tokio
    /// reports by a panic that is caught here).
    pub fn start_here(self) -> Result<Running<Outcome>, Invalid> {
        self.validate()?;
        Running::on_the_current_runtime(MigrationJob::new(self))
    }

    /// Starts the migration, calls `each` with every event, and blocks the thread to the end.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub fn run_blocking(self, each: impl FnMut(&Event)) -> Result<Outcome, Invalid> {
        Ok(self.start()?.follow_blocking(each))
    }

    fn context(
        self,
        run: RunId,
        records: Records,
        report: Reporter,
        cancel: Cancelled,
    ) -> (Context, Endpoint, Endpoint) {
        let Self { source, destination, settings, recorder, .. } = self;
        let monitors = Monitors { source: Some(source.clone()), destination: Some(destination.clone()), recorder };
        let context = Context { run, settings, report, cancel, began: Instant::now(), monitors, records };
        (context, source, destination)
    }
}

/// Gives the run of a migration this id, which the caller has written elsewhere already.
pub fn run_as(mut builder: Builder, run: RunId) -> Builder {
    builder.run = Some(run);
    builder
}

/// Makes the engine panic when it reports this: `storage begin`, `handover end`, or an action's or a warning's word.
/// For the tests of this repository.
pub fn panic_at(mut builder: Builder, moment: &str) -> Builder {
    builder.panic_at = Some(moment.to_owned());
    builder
}

struct MigrationJob {
    wanted: Builder,
    run: RunId,
    records: Records,
}

impl MigrationJob {
    fn new(mut wanted: Builder) -> Self {
        // The default of an id is that of an earlier version's runs, so the default is not what is wanted.
        let run = match wanted.run.take() {
            Some(run) => run,
            None => RunId::new(),
        };
        Self { wanted, run, records: Records::default() }
    }
}

impl EngineJob for MigrationJob {
    type Ended = Outcome;

    fn recorder(&self) -> Option<Recorder> {
        self.wanted.recorder.clone()
    }

    fn panic_at(&self) -> Option<&str> {
        self.wanted.panic_at.as_deref()
    }

    fn work(self, report: Reporter, cancel: Cancelled) -> Work<Outcome> {
        Box::pin(async move {
            let (context, source, destination) = self.wanted.context(self.run, self.records, report, cancel);
            let outcome = match clean::recover_first(&context, &source, &destination).await {
                RecoveredFirst::GoOn { recovered, reached } => {
                    let outcome = engine::migrate(&context, &source, &destination, reached.map(|pair| *pair)).await;
                    clean::after_recovery(outcome, &recovered)
                }
                RecoveredFirst::End(outcome) => *outcome,
            };
            context.report.emit(EventKind::Outcome(Box::new(outcome.clone())));
            outcome
        })
    }

    fn after_panic(&self) -> AfterPanic<Outcome> {
        let (wanted, run, records) = (self.wanted.clone(), self.run.clone(), self.records.clone());
        Box::new(move |words, report, cancel| {
            Box::pin(async move {
                let (context, ..) = wanted.context(run, records, report, cancel);
                let outcome = recovery::judge_after_panic(&context, &words).await;
                context.report.emit(EventKind::Outcome(Box::new(outcome.clone())));
                outcome
            })
        })
    }

    fn lost(begun: bool, report: &Reporter) -> Outcome {
        lost(begun, report)
    }
}

struct CheckJob(Builder);

impl EngineJob for CheckJob {
    type Ended = Result<Plan, Reason>;

    fn recorder(&self) -> Option<Recorder> {
        self.0.recorder.clone()
    }

    fn panic_at(&self) -> Option<&str> {
        self.0.panic_at.as_deref()
    }

    fn work(self, report: Reporter, cancel: Cancelled) -> Work<Self::Ended> {
        Box::pin(async move {
            let (context, source, destination) = self.0.context(RunId::new(), Records::default(), report, cancel);
            check::survey(&context, &source, &destination).await.map_err(|failure| failure.reason())
        })
    }

    fn after_panic(&self) -> AfterPanic<Self::Ended> {
        Box::new(|words, _, _| {
            Box::pin(async move {
                Err(Failure::Internal(format!("{}; exports that were being read may be left open", panicked(&words)))
                    .reason())
            })
        })
    }

    fn lost(begun: bool, report: &Reporter) -> Self::Ended {
        Err(lost(begun, report).reason.unwrap_or_else(|| Failure::Internal(String::new()).reason()))
    }
}
