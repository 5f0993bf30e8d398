//! Samples disks and RAM, has the controller decide, and does what it decides.
//!
//! It must never decide anything itself: what is done here follows from [`crate::convergence::decide`], and is reported
//! with its reason.

use crate::{
    convergence::{
        Action, BandwidthShares, Decision, History, MemoryShare, MigrationSample, MirrorSample, OverBudget,
        PendingRest, RamSample, decide, keep_budget, predicted_blackout,
    },
    memory::{apply, postcopy, precopy, sample, tuning},
    migration::{
        Effect, Failure, attempt::Attempt, context::Context, pair::QemuPair, phases::setup::start_mirrors, runtime_dir,
        work_order::WorkOrder,
    },
    preflight::{measure, measured},
    progress::{Entered, Kind, Moment, Phase, describe},
    qemu::{
        Process,
        reply::{BlockJob, BlockStats, DirtyRate, Migration, MigrationStatus},
    },
    quantity::Rate,
    storage::{mirror::mirror_job, model::layout::DiskPair},
};
use qapi::qmp;
use serde_json::{Map, Value};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// How often is looked while only disks are copied: no event tells how far they are.
const DISKS: Duration = Duration::from_millis(250);
/// How long after they began first: RAM may be started beside them as soon as they show what they do.
const FIRST: Duration = Duration::from_millis(60);
/// How often is looked where it presses: until mirrors that are ready are in step with their guest takes some milliseconds.
const STEP: Duration = Duration::from_millis(20);
/// How often is looked while RAM is sent: QEMU makes up its mind every 100 ms.
const MEMORY: Duration = Duration::from_millis(100);
/// How often is looked with the guest stopped, where the events do not tell that the mirrors are ready.
const STOPPED: Duration = Duration::from_millis(20);
/// The window in which what the guest dirties is measured beside RAM's first pass, which does not tell it.
const WINDOW: Duration = Duration::from_millis(500);
/// How long after its window the measurement is asked for.
const MEASURED: Duration = Duration::from_secs(3);
/// How long after STOP the event `pre-switchover` is overdue: QEMU drains and flushes its disks in between.
const OVERDUE: Duration = Duration::from_secs(1);

/// One run of the controller.
pub(crate) struct Controller<'a> {
    context: &'a Context,
    order: &'a WorkOrder,
    pub(crate) history: History,
    /// The guest's writes as they were last counted.
    stats: Vec<BlockStats>,
    dirtied: Dirtied,
    storage: Option<Entered>,
    memory: Option<Entered>,
}

/// What a look showed, besides the sample for the controller.
struct Look {
    sample: MigrationSample,
    jobs: Vec<BlockJob>,
    migration: Option<Migration>,
}

/// The answer to a question, where it was asked.
async fn answer<T>(asked: Option<impl Future<Output = T>>) -> Option<T> {
    match asked {
        Some(asked) => Some(asked.await),
        None => None,
    }
}

/// Waits for a bitmap sync after this one.
async fn passed(source: &Process, pass: u64) {
    if source.watch().wait_for(|seen| seen.pass != pass).await.is_err() {
        // the connection is gone, which others notice and name
        std::future::pending().await
    }
}

/// What the guest dirties, measured once beside RAM's first pass.
#[derive(Default)]
struct Dirtied {
    /// When the measurement was begun.
    begun: Option<Instant>,
    /// Bytes per second.
    rate: Option<u64>,
}

impl Dirtied {
    fn is_due(&self) -> bool {
        let due = |begun: Instant| (WINDOW..WINDOW + MEASURED).contains(&begun.elapsed());
        self.rate.is_none() && self.begun.is_some_and(due)
    }

    fn take(&mut self, answer: &DirtyRate) {
        self.rate = answer.measured().map(|rate| measured::dirtied(rate, Duration::from_secs(1)));
    }
}

impl<'a> Controller<'a> {
    pub(crate) fn new(context: &'a Context, order: &'a WorkOrder, qemus: &QemuPair, attempt: &Attempt) -> Self {
        let settings = &context.settings;
        // who only observes tells what would be done with it
        let throttle = attempt.throttling != tuning::Throttling::None || settings.policy.observe;
        let task = order.task(settings, qemus.source.features(), throttle);
        let disks = order.route.pairs.iter().map(|pair| pair.source.name().to_owned());
        Self {
            context,
            order,
            history: History::new(task, disks),
            stats: Vec::new(),
            dirtied: Dirtied::default(),
            storage: None,
            memory: None,
        }
    }

    /// What a mirror may copy to begin with, bytes per second.
    pub(crate) fn speed(&self, pair: &DiskPair) -> Option<u64> {
        self.history.shares().mirror(pair.source.name()).map(|rate| rate.0)
    }

    /// Copies disks until RAM may be started.
    pub(crate) async fn copy_disks(&mut self, qemus: &QemuPair, attempt: &mut Attempt) -> Result<(), Failure> {
        self.storage = (!self.order.route.pairs.is_empty()).then(|| self.context.report.enter(Phase::Storage));
        if !self.order.route.pairs.is_empty() {
            let (context, route) = (self.context, &self.order.route);
            start_mirrors(context, qemus, route, |pair| self.speed(pair), attempt).await?;
        }
        let mut copying = FIRST;
        loop {
            let look = self.look(&qemus.source, attempt).await?;
            if self.decide(qemus, attempt, &look).await? {
                return Ok(());
            }
            let pause = if self.is_ready() { STEP } else { copying };
            tokio::select! {
                () = mirror_job::turned(&qemus.source, &self.order.route.pairs), if !self.is_ready() => {}
                () = sleep(pause) => {}
            }
            copying = DISKS;
        }
    }

    /// Sends RAM until the guest stands still and every mirror is ready.
    pub(crate) async fn send_memory(&mut self, qemus: &QemuPair, attempt: &mut Attempt) -> Result<Moment, Failure> {
        let source = &qemus.source;
        self.memory = Some(self.context.report.enter(Phase::Memory));
        self.start_memory(qemus, attempt).await?;
        let arrival = precopy::until_pre_switchover(source);
        tokio::pin!(arrival);
        let mut tick = interval(MEMORY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pass = source.observed().pass;
        let mut turned = false;
        let stopped = loop {
            tokio::select! {
                // an event, so that nothing waits for a look that is under way
                biased;
                arrived = &mut arrival => break arrived?,
                failure = mirror_job::failure(source, &self.order.route.pairs) => return Err(failure.into()),
                // the end of a pass beside mirrors that are not ready: RAM must be held back before it ends
                () = passed(source, pass), if self.storage.is_some() => {}
                // RAM may be waiting for them
                () = mirror_job::turned(source, &self.order.route.pairs), if !attempt.guest.is_stopped_by_qemu() && !turned && !self.is_ready() => {
                    turned = true;
                }
                () = sleep(STEP), if !attempt.guest.is_stopped_by_qemu() && self.history.is_pressing() => {}
                _ = tick.tick() => {}
            }
            let seen = source.observed();
            pass = seen.pass;
            let must_ask = attempt.guest.follow(&seen);
            attempt.journal_guest().await?;
            if must_ask {
                let asked = tokio::select! {
                    biased;
                    arrived = &mut arrival => break arrived?,
                    asked = source.ask(&qmp::query_status {}) => asked?,
                };
                attempt.guest.answered(&asked.status, &seen);
                attempt.journal_guest().await?;
                if attempt.guest.is_stopped_by_qemu() {
                    // with the guest stopped nothing more is asked, unless the event that is about to come stays away
                    tick.reset_after(OVERDUE);
                    continue;
                }
            }
            let looked = tokio::select! {
                biased;
                arrived = &mut arrival => break arrived?,
                looked = self.look(source, attempt) => looked?,
            };
            if let Some(arrived) = looked.migration.as_ref().map(precopy::arrived).transpose()?.flatten() {
                break arrived;
            }
            self.decide(qemus, attempt, &looked).await?;
        };
        self.wait_for_mirrors(qemus, attempt, stopped).await?;
        (self.storage, self.memory) = (None, None);
        Ok(stopped)
    }

    /// A guest that was stopped before its mirrors were ready writes no more, so they get there; it is a matter of the budget.
    async fn wait_for_mirrors(
        &mut self,
        qemus: &QemuPair,
        attempt: &mut Attempt,
        stopped: Moment,
    ) -> Result<(), Failure> {
        while !self.is_ready() {
            let looked = self.look(&qemus.source, attempt).await?;
            self.history.record(&looked.sample, &Decision::default());
            if self.is_ready() {
                break;
            }
            let stood = qemus.stood(stopped);
            if attempt.guest.is_to_run(&qemus.source.observed()) {
                keep_budget(&self.context.settings.policy, &self.history, stood, PendingRest::Mirrors)?;
            }
            tokio::select! {
                () = mirror_job::turned(&qemus.source, &self.order.route.pairs) => {}
                () = sleep(STOPPED) => {}
            }
        }
        Ok(())
    }

    fn is_ready(&self) -> bool {
        self.history.estimates().disks.values().all(|disk| disk.ready)
    }

    /// Has the controller decide, and does it. True once RAM is to be started.
    async fn decide(&mut self, qemus: &QemuPair, attempt: &mut Attempt, look: &Look) -> Result<bool, Failure> {
        let policy = &self.context.settings.policy;
        let decision = decide(policy, &self.history, &look.sample);
        let shared = self.history.shares().clone();
        self.history.record(&look.sample, &decision);
        self.report(look);
        let mut start = false;
        self.tell(&decision);
        for action in &decision.actions {
            match action {
                Action::StartMemory => start = true,
                Action::GiveUp { code, needed } if !policy.observe || is_done_anyway(action) => {
                    let (code, because, needed) = (*code, decision.because.clone(), needed.clone());
                    return Err(Failure::GaveUp { code, because, needed });
                }
                _ if policy.observe => {}
                action => self.apply(qemus, attempt, action, &shared).await?,
            }
        }
        if self.is_ready() {
            self.storage = None;
        }
        Ok(start)
    }

    fn tell(&self, decision: &Decision) {
        let name = |action: &Action| match action {
            Action::StartMemory => "start-memory",
            Action::DowntimeLimit(_) => "downtime-limit",
            Action::HoldMemory | Action::ReleaseMemory | Action::ShareBandwidth(_) | Action::Favour(_) => {
                "share-bandwidth"
            }
            Action::Throttle(_) => "throttle",
            Action::WriteBlocking(_) => "write-blocking",
            Action::Postcopy => "postcopy",
            Action::GiveUp { .. } => "give-up",
        };
        // the last action is the purpose of the others, but for actions that only divide the bandwidth
        let is_purpose = |action: &&Action| {
            !matches!(action, Action::ShareBandwidth(_) | Action::HoldMemory | Action::ReleaseMemory)
        };
        let told = decision.actions.iter().rfind(is_purpose).or(decision.actions.last());
        match told {
            Some(action) if self.context.settings.policy.observe && !is_done_anyway(action) => {
                self.context.report.action(&format!("would-{}", name(action)), decision.because.clone());
            }
            Some(action) => self.context.report.action(name(action), decision.because.clone()),
            None => tracing::debug!(because = decision.because, "waiting"),
        }
    }

    /// Applies one action. A command that QEMU refuses is reported, and the migration goes on as before. But RAM that cannot be
    /// held back beside the mirrors could stop the guest, and RAM that cannot be released would never end: these fail the
    /// migration. `shared` are the shares until now.
    async fn apply(
        &mut self,
        qemus: &QemuPair,
        attempt: &mut Attempt,
        action: &Action,
        shared: &BandwidthShares,
    ) -> Result<(), Failure> {
        let source = &qemus.source;
        let holds = match action {
            Action::HoldMemory | Action::ReleaseMemory => true,
            Action::ShareBandwidth(shares) => shares.trickles() || shared.trickles(),
            _ => false,
        };
        let done = match action {
            Action::DowntimeLimit(limit) => apply::set_parameters(source, &tuning::downtime(*limit)).await,
            Action::HoldMemory => apply::set_parameters(source, &tuning::no_switchover(source.features())).await,
            Action::ReleaseMemory => {
                let ceiling = self.context.settings.bandwidth;
                apply::set_parameters(source, &tuning::switchover_bandwidth(ceiling, source.features())).await
            }
            Action::ShareBandwidth(shares) => {
                let mut done = Ok(());
                for pair in &self.order.route.pairs {
                    let speed = shares.mirror(pair.source.name());
                    if speed != shared.mirror(pair.source.name()) {
                        done = done.and(mirror_job::limit(source, pair, speed.map(|rate| rate.0)).await);
                    }
                }
                let parameters = match shares.memory {
                    unchanged if unchanged == shared.memory => None,
                    MemoryShare::Unlimited => Some(tuning::bandwidth(None)),
                    MemoryShare::Limited(rate) => Some(tuning::bandwidth(Some(rate))),
                    MemoryShare::Trickle => Some(tuning::trickle()),
                };
                match parameters {
                    Some(parameters) => done.and(apply::set_parameters(source, &parameters).await),
                    None => done,
                }
            }
            Action::Throttle(percent) => apply::set_parameters(source, &self.throttle(attempt, *percent)).await,
            Action::WriteBlocking(disks) => {
                let named = |pair: &&DiskPair| disks.iter().any(|disk| disk == pair.source.name());
                let pairs: Vec<_> =
                    self.order.route.pairs.iter().filter(named).map(|pair| (pair, self.speed(pair))).collect();
                mirror_job::write_blocking(source, &pairs).await
            }
            Action::Postcopy => {
                attempt.ram.postcopy = true;
                postcopy::start(source).await
            }
            Action::StartMemory | Action::Favour(_) | Action::GiveUp { .. } => Ok(()),
        };
        if let Err(error) = done {
            if holds {
                return Err(error.into());
            }
            self.context.report.warn("not-applied", format!("{action:?}: {}", describe(&error)));
            if *action == Action::Postcopy && error.is_refusal() {
                attempt.ram.postcopy = false;
            }
            self.history.take_back(action);
        }
        Ok(())
    }

    fn throttle(&self, attempt: &Attempt, percent: u8) -> Map<String, Value> {
        match attempt.throttling {
            tuning::Throttling::DirtyLimit => {
                let dirtied = self.history.estimates().memory.map_or(0.0, |memory| memory.dirty_rate);
                tuning::dirty_limit(Rate((dirtied * (1.0 - f64::from(percent) / 100.0)) as u64), self.order.cpus)
            }
            _ => tuning::throttle(percent),
        }
    }

    /// Starts to send RAM.
    async fn start_memory(&mut self, qemus: &QemuPair, attempt: &mut Attempt) -> Result<(), Failure> {
        let ram = self.order.route.ram();
        let socket = runtime_dir::socket_effect(&self.context.settings.runtime_dir, ram);
        attempt.log.note(socket.into_iter().chain([Effect::Incoming])).await?;
        if let Err(error) = precopy::listen(&qemus.destination, ram).await {
            if error.is_refusal() {
                // it never listened: there is nothing to undo
                attempt.log.undone(&Effect::Incoming, &self.context.report).await;
            }
            return Err(error.into());
        }
        self.context.keep_private(ram);
        attempt.log.note([Effect::Migrate]).await?;
        precopy::send(&qemus.source, ram).await?;
        self.dirtied.begun = measure::begin(&qemus.source, WINDOW, self.order.memory).await.then(Instant::now);
        Ok(())
    }

    /// Looks at everything once. All questions are on their way before the first answer is awaited.
    async fn look(&mut self, source: &Process, attempt: &mut Attempt) -> Result<Look, Failure> {
        let sends = attempt.log.effects().contains(&Effect::Migrate);
        let asked = Instant::now();
        let migration = sends.then(|| source.ask(&qmp::query_migrate {}));
        let jobs = (!self.order.route.pairs.is_empty()).then(|| mirror_job::progress(source, &self.order.route.pairs));
        let stats =
            (!self.order.route.pairs.is_empty()).then(|| source.ask(&qmp::query_blockstats { query_nodes: None }));
        let dirtied = self.dirtied.is_due().then(|| source.ask(&qmp::query_dirty_rate { calc_time_unit: None }));
        let migration = answer(migration).await.transpose()?;
        let first = migration.as_ref().map(|_| asked.elapsed());
        let jobs = answer(jobs).await.transpose()?.unwrap_or_default();
        let round_trip = first.unwrap_or_else(|| asked.elapsed());
        if let Some(Ok(stats)) = answer(stats).await {
            self.stats = stats.0;
        }
        if let Some(Ok(dirtied)) = answer(dirtied).await {
            self.dirtied.take(&dirtied);
        }
        if let Some(migration) = &migration {
            sample::fold(&mut attempt.ram, migration);
        }
        let mirror = |(pair, job): (&DiskPair, &BlockJob)| {
            let written = pair.source.stats(&self.stats).copied().unwrap_or_default();
            MirrorSample {
                disk: pair.source.name().to_owned(),
                len: job.len,
                offset: job.offset,
                ready: job.ready,
                actively_synced: job.actively_synced,
                written: written.wr_bytes,
                writes: written.wr_operations,
                write_ns: written.wr_total_time_ns,
            }
        };
        let ram = migration.as_ref().and_then(|migration| migration.ram.as_ref().map(|ram| (migration, ram)));
        let sample = MigrationSample {
            at_ms: self.context.began.elapsed().as_secs_f64() * 1000.0,
            round_trip_ms: round_trip.as_secs_f64() * 1000.0,
            ram: ram.map(|(migration, ram)| RamSample {
                transferred: ram.transferred,
                processed: migration.processed(),
                remaining: ram.remaining,
                total: ram.total,
                measured_dirty_rate: self.dirtied.rate,
                throttle_pct: migration.cpu_throttle_percentage.unwrap_or(0),
                syncs: ram.dirty_sync_count,
                postcopy: migration.status.as_ref().is_some_and(MigrationStatus::is_postcopy),
            }),
            mirrors: self.order.route.pairs.iter().zip(&jobs).map(mirror).collect(),
        };
        tracing::trace!(sample = %serde_json::json!(sample), "sample");
        Ok(Look { sample, jobs, migration })
    }

    /// Reports how far everything is, with what is known of it.
    fn report(&self, look: &Look) {
        let report = &self.context.report;
        let known = self.history.estimates();
        for (pair, job) in self.order.route.pairs.iter().zip(&look.jobs) {
            let disk = known.disks.get(pair.source.name()).copied().unwrap_or_default();
            report.emit(Kind::Disk {
                disk: pair.source.name().to_owned(),
                status: job.status.to_string(),
                copied: job.offset,
                total: job.len,
                ready: job.ready,
                rate: disk.rate as u64,
                growth: disk.growth as u64,
                write_rate: disk.write_rate as u64,
                write_latency_us: disk.latency_since.or(disk.latency_before).map(|ms| (ms * 1000.0) as u64),
                eta_ms: disk.time_to_ready().map(|ms| ms as u64),
            });
        }
        let Some(mut event) = look.migration.as_ref().and_then(sample::event) else { return };
        if let (Kind::Memory { dirty_rate, bandwidth, working_set, predicted_blackout_ms, eta_ms, .. }, Some(memory)) =
            (&mut event, known.memory)
        {
            (*dirty_rate, *bandwidth) = (memory.dirty_rate as u64, memory.bandwidth as u64);
            *working_set = memory.working_set as u64;
            let predicted = predicted_blackout(&self.context.settings.policy, &self.history);
            *predicted_blackout_ms = predicted.map(|ms| ms as u64);
            let limit = self.history.downtime_limit().unwrap_or(self.context.settings.downtime).as_secs_f64();
            let time = memory.load().and_then(|load| memory.time_to(memory.bandwidth * limit, load));
            *eta_ms = time.map(|ms| ms as u64);
        }
        report.emit(event);
    }
}

impl From<OverBudget> for Failure {
    fn from(over: OverBudget) -> Self {
        Self::GaveUp { code: OverBudget::CODE, because: over.because, needed: over.needed }
    }
}

/// Whether even a policy that only observes takes this action: the migration needs it, or the user's own timeout asks for it.
fn is_done_anyway(action: &Action) -> bool {
    matches!(action, Action::StartMemory | Action::GiveUp { code: "timeout", .. })
}
