//! Copies disks and RAM until both converge: has the controller decide, and does what it decides.
//!
//! Nothing is decided in this file: what it does follows from [`crate::convergence::decide`], and is reported with its
//! reason.

use super::{
    controller_record::{note, note_begin, note_question, whole_micros},
    guest_watch::{GuestWatch, refuse_halted},
    image_flush::ImageFlusher,
    memory_start::{set_parameters, start_memory},
    mirrors::start_mirrors,
    sampling::{Look, Sampler},
    write_times::{ask_counts, count_writes, take_counts},
};
use crate::{
    convergence::{
        Action, BandwidthShares, ControllerLook, ControllerNote, Decision, History, MemoryShare, OverBudget,
        PendingRest, decide, keep_budget,
    },
    memory::{postcopy, precopy, tuning},
    migration::{
        Failure,
        attempt::Attempt,
        context::Context,
        deadlines::{self, SETTLED},
        pair::QemuPair,
        work_order::WorkOrder,
    },
    progress::{EventKind, Moment, Phase, PhaseGuard, Side, describe},
    qemu::{Observed, Process},
    quantity::Rate,
    storage::{mirror::mirror_job, model::layout::DiskPair},
};
use qapi::qmp;
use serde_json::{Map, Value};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The time for an answer out of band, which a QEMU gives at once however busy its main loop is; with the pause between
/// two questions a guest's write waits for less than a second.
const ANSWERS: Duration = Duration::from_millis(700);
/// The time between two such questions, and the time where one was not answered yet.
const ASKS: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(20)];
/// The time between two looks with the guest stopped, where no event has told that the mirrors are ready.
const STOPPED: Duration = Duration::from_millis(20);
/// The time before mirrors are ready from which images are flushed: a flush of many gigabytes takes a while.
const NEAR: Duration = Duration::from_secs(5);
/// How long after a STOP of QEMU's own `pre-switchover` comes, unless the disks are slow: a STOP without it is asked
/// about.
const TELLS: Duration = Duration::from_millis(5);
/// How long after STOP the event `pre-switchover` is overdue: QEMU drains and flushes its disks in between.
const OVERDUE: Duration = Duration::from_secs(1);

/// Drives one convergence.
pub(crate) struct Controller<'a> {
    context: &'a Context,
    order: &'a WorkOrder,
    pub(crate) history: History,
    sampler: Sampler<'a>,
    guest: GuestWatch,
    flusher: ImageFlusher,
    storage: Option<PhaseGuard>,
    memory: Option<PhaseGuard>,
    /// The guest's writes wait for the destination.
    writes_wait: bool,
}

impl<'a> Controller<'a> {
    pub(crate) fn new(context: &'a Context, order: &'a WorkOrder, qemus: &QemuPair) -> Self {
        let settings = &context.settings;
        // a policy that only observes reports what it would do, throttling included
        let wanted = order.tuning(settings).for_side(Side::Source, qemus.source.features());
        let throttle = wanted.throttles() || settings.policy.observe;
        let task = order.task(settings, qemus.source.features(), throttle);
        debug_assert_eq!(
            task.abilities,
            order.build_abilities(settings, qemus.source.features()).under(&settings.policy),
            "a replay with another policy has to find the same"
        );
        note_begin(context, order, qemus.source.features(), &task);
        let disks = order.route.pairs.iter().map(|pair| pair.source.name().to_owned());
        Self {
            context,
            order,
            history: History::new(task, disks),
            sampler: Sampler::new(context, order),
            guest: GuestWatch::begin(&qemus.source),
            flusher: ImageFlusher::new([&order.proved.source, &order.proved.destination]),
            storage: None,
            memory: None,
            writes_wait: false,
        }
    }

    /// The speed limit of a mirror, bytes per second.
    fn speed(&self, pair: &DiskPair) -> Option<u64> {
        self.history.shares().mirror(pair.source.name()).map(|rate| rate.0)
    }

    /// Copies disks until RAM may be started.
    pub(crate) async fn copy_disks(&mut self, qemus: &QemuPair, attempt: &mut Attempt) -> Result<(), Failure> {
        self.storage = (!self.order.route.pairs.is_empty()).then(|| self.context.report.enter(Phase::Storage));
        if !self.order.route.pairs.is_empty() {
            let (context, route) = (self.context, &self.order.route);
            count_writes(context, &qemus.source, route, attempt).await?;
            start_mirrors(context, qemus, route, |pair| self.speed(pair), attempt).await?;
        }
        let (frozen, lost) = (self.frozen(&qemus.destination), self.lost(&qemus.destination));
        tokio::pin!(frozen, lost);
        loop {
            self.guest.look(&qemus.source, attempt).await?;
            let look = self.sampler.look(&qemus.source, attempt).await?;
            if self.decide(qemus, attempt, &look).await? {
                return Ok(());
            }
            tokio::select! {
                failure = &mut frozen, if self.writes_wait => return Err(failure),
                failure = &mut lost, if self.is_copied() => return Err(failure),
                () = mirror_job::turned(&qemus.source, &self.order.route.pairs), if !self.is_ready() => {}
                () = sleep(self.history.next_look()) => {}
            }
        }
    }

    /// Sends RAM until the guest stands still and every mirror is ready.
    pub(crate) async fn send_memory(&mut self, qemus: &QemuPair, attempt: &mut Attempt) -> Result<Moment, Failure> {
        let (source, pairs) = (&qemus.source, &self.order.route.pairs);
        self.memory = Some(self.context.report.enter(Phase::Memory));
        attempt.memory_begun = Some(Moment::now().local);
        let mut confirmation = start_memory(self.context, qemus, self.order, attempt).await?;
        let mut is_confirmed = false;
        self.sampler.begin_measurement(source).await;
        let arrival = precopy::until_pre_switchover(source);
        tokio::pin!(arrival);
        let mut next = Instant::now();
        let mut pass = source.observed().pass;
        let mut stands = source.observed().stands_since();
        let mut turned = false;
        let (frozen, lost) = (self.frozen(&qemus.destination), self.lost(&qemus.destination));
        tokio::pin!(frozen, lost);
        let stopped = loop {
            let is_running = !attempt.guest.is_stopped_by_qemu();
            tokio::select! {
                // Events come first, so that none waits for a look that is under way.
                biased;
                arrived = &mut arrival => break arrived?,
                failure = mirror_job::failure(source, pairs) => return Err(failure.into()),
                confirmed = &mut confirmation, if !is_confirmed => {
                    confirmed?;
                    is_confirmed = true;
                }
                failure = &mut frozen, if self.writes_wait => return Err(failure),
                failure = &mut lost, if self.is_copied() => return Err(failure),
                () = passed(source, pass), if self.history.looks_after_pass() => {}
                // RAM may be waiting for the mirrors.
                () = mirror_job::turned(source, pairs), if is_running && !turned && !self.is_ready() => turned = true,
                // The stop may be the guest's owner's, and RAM of a guest that stands converges at once.
                () = stood(source, stands), if is_running => {}
                () = sleep_until(next) => {}
            }
            let seen = source.observed();
            pass = seen.pass;
            stands = seen.stands_since();
            let must_ask = attempt.guest.follow(&seen);
            attempt.journal_guest().await?;
            refuse_halted(attempt)?;
            if must_ask {
                let asked = tokio::select! {
                    biased;
                    arrived = &mut arrival => break arrived?,
                    asked = source.ask(&qmp::query_status {}) => asked?,
                };
                attempt.guest.answered(&asked.status, &seen);
                attempt.journal_guest().await?;
                refuse_halted(attempt)?;
                if attempt.guest.is_stopped_by_qemu() {
                    // with the guest stopped nothing more is asked, unless the event that is about to come stays away
                    next = Instant::now() + OVERDUE;
                    continue;
                }
            }
            let looked = tokio::select! {
                biased;
                arrived = &mut arrival => break arrived?,
                looked = self.sampler.look(source, attempt) => looked?,
            };
            if let Some(arrived) = looked.migration.as_ref().map(precopy::arrived).transpose()?.flatten() {
                break arrived;
            }
            self.decide(qemus, attempt, &looked).await?;
            next = Instant::now() + self.history.next_look();
        };
        attempt.guest.follow(&source.observed());
        refuse_halted(attempt)?;
        if !is_confirmed {
            // the guest stands still, so a side that does not answer is not waited for as usual
            let left = deadlines::left(self.context, source, &attempt.guest, SETTLED);
            timeout(left, confirmation).await.map_err(|_| Failure::SwitchoverTimeout(left))??;
        }
        self.wait_for_mirrors(qemus, attempt, stopped).await?;
        (self.storage, self.memory) = (None, None);
        Ok(stopped)
    }

    /// Waits for mirrors that were not ready when the guest was stopped. A stopped guest writes no more, so they get
    /// ready; the budget bounds how long that may take. A guest that stood still before has no budget, but QEMU refuses
    /// its owner's `cont` from `pre-switchover` on, and nothing tells that the owner has sent one: the time in which
    /// mirrors must have ended in any switchover bounds this wait, too.
    async fn wait_for_mirrors(
        &mut self,
        qemus: &QemuPair,
        attempt: &mut Attempt,
        stopped: Moment,
    ) -> Result<(), Failure> {
        while !self.is_ready() {
            let looked = self.sampler.look(&qemus.source, attempt).await?;
            self.history.record(&looked.sample, &Decision::default());
            note(self.context, || ControllerNote::Waited(looked.sample.clone()));
            if self.is_ready() {
                break;
            }
            let limit = self.context.settings.switchover_limit().mul_f64(SETTLED);
            if attempt.guest.is_to_run(&qemus.source.observed()) {
                let stood = whole_micros(qemus.stood(stopped));
                let kept = keep_budget(&self.context.settings.policy, &self.history, stood, PendingRest::Mirrors);
                note_question(self.context, stood, PendingRest::Mirrors, kept.is_ok());
                kept?;
            } else if stopped.elapsed() >= limit {
                return Err(Failure::KeptFromOwner(limit));
            }
            tokio::select! {
                () = mirror_job::turned(&qemus.source, &self.order.route.pairs) => {}
                () = sleep(STOPPED) => {}
            }
        }
        Ok(())
    }

    /// Waits until the destination answers nothing, not even out of band: its process is stopped, or its host is. In
    /// write-blocking mode the guest's writes wait for it, so they are given the blackout's budget, and at least
    /// [`ANSWERS`].
    fn frozen<'d>(&self, destination: &'d Process) -> impl Future<Output = Failure> + use<'d> {
        silent(destination, self.context.settings.downtime.max(ANSWERS), "the guest's writes wait")
    }

    /// The same for mirrors that have copied everything and are not ready: nothing that they gain tells that they live,
    /// and the guest runs on meanwhile.
    fn lost<'d>(&self, destination: &'d Process) -> impl Future<Output = Failure> + use<'d> {
        let patience = self.context.settings.policy.give_up.max(ANSWERS);
        silent(destination, patience, "a mirror that has copied everything waits")
    }

    /// A mirror has copied everything, and is not ready.
    fn is_copied(&self) -> bool {
        self.history.estimates().disks.values().any(|disk| !disk.ready && disk.remaining <= 0.0)
    }

    fn is_ready(&self) -> bool {
        self.history.estimates().disks.values().all(|disk| disk.ready)
    }

    /// The switchover may be near: RAM is being sent, or every mirror is about to be ready.
    fn is_nearly_ready(&self) -> bool {
        let is_near = |time: f64| time <= NEAR.as_secs_f64() * 1000.0;
        let disks = &self.history.estimates().disks;
        self.memory.is_some() || disks.values().all(|disk| disk.time_to_ready().is_some_and(is_near))
    }

    /// Has the controller decide, and applies the decision. True once RAM is to be started.
    async fn decide(&mut self, qemus: &QemuPair, attempt: &mut Attempt, look: &Look) -> Result<bool, Failure> {
        let policy = &self.context.settings.policy;
        let decision = decide(policy, &self.history, &look.sample);
        let shared = self.history.shares().clone();
        self.history.record(&look.sample, &decision);
        note(self.context, || ControllerNote::Look(Box::new(ControllerLook::new(&look.sample, &decision))));
        self.sampler.want_measurement(self.history.wants_measurement());
        self.sampler.report(look, &self.history);
        if self.is_nearly_ready() {
            // before RAM is released to the switchover, so that the guest's stop finds flushed images
            self.flusher.look(&self.context.report);
        }
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
        // the last action is the purpose of the others, but for actions that only divide the bandwidth
        let is_purpose = |action: &&Action| {
            !matches!(action, Action::ShareBandwidth(_) | Action::HoldMemory | Action::ReleaseMemory)
        };
        let told = decision.actions.iter().rfind(is_purpose).or(decision.actions.last());
        match told {
            Some(action) if self.context.settings.policy.observe && !is_done_anyway(action) => {
                self.report(&format!("would-{}", action.name()), decision);
            }
            Some(action) => self.report(action.name(), decision),
            None => tracing::debug!(because = decision.because, "waiting"),
        }
    }

    fn report(&self, name: &str, decision: &Decision) {
        let (because, details) = (decision.because.clone(), decision.details());
        self.context.report.emit(EventKind::Action { action: name.to_owned(), because, details });
    }

    /// Applies one action. A command that QEMU refuses is reported, and the migration goes on as before. But RAM that
    /// cannot be held back beside the mirrors could stop the guest, and RAM that cannot be released would never end:
    /// these fail the migration. `shared` are the shares until now.
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
            Action::DowntimeLimit(limit) => set_parameters(source, attempt, tuning::downtime(*limit)).await,
            Action::HoldMemory => set_parameters(source, attempt, tuning::no_switchover(source.features())).await,
            Action::ReleaseMemory => {
                let ceiling = self.context.settings.bandwidth;
                set_parameters(source, attempt, tuning::switchover_bandwidth(ceiling, source.features())).await
            }
            Action::ShareBandwidth(shares) => {
                let mut done = Ok(());
                for pair in &self.order.route.pairs {
                    let speed = shares.mirror(pair.source.name());
                    if speed != shared.mirror(pair.source.name()) {
                        done = done.and(mirror_job::limit(source, pair, speed.map(|rate| rate.0)).await);
                    }
                }
                let mut parameters = match shares.memory {
                    unchanged if unchanged == shared.memory => Map::new(),
                    MemoryShare::Unlimited => tuning::bandwidth(None),
                    MemoryShare::Limited(rate) => tuning::bandwidth(Some(rate)),
                    MemoryShare::Trickle => tuning::trickle(source.features()),
                };
                if shared.trickles() && !shares.trickles() {
                    parameters.extend(tuning::no_trickle(source.features()));
                }
                match parameters.is_empty() {
                    false => done.and(set_parameters(source, attempt, parameters).await),
                    true => done,
                }
            }
            Action::Throttle(percent) => {
                let parameters = self.throttle(attempt, *percent);
                set_parameters(source, attempt, parameters).await
            }
            Action::WriteBlocking(disks) => {
                let named = |pair: &&DiskPair| disks.iter().any(|disk| disk == pair.source.name());
                let pairs: Vec<_> =
                    self.order.route.pairs.iter().filter(named).map(|pair| (pair, self.speed(pair))).collect();
                // QEMU answers in the order of the commands: these counts are the last ones from before the switch.
                let counted = ask_counts(source, &attempt.write_counts);
                let done = mirror_job::write_blocking(source, &pairs).await;
                take_counts(counted, &mut attempt.write_counts).await;
                if done.is_ok() {
                    pairs.iter().for_each(|(pair, _)| attempt.write_counts.switch(pair));
                }
                self.writes_wait |= done.is_ok();
                done
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
            note(self.context, || ControllerNote::TakenBack(action.clone()));
        }
        Ok(())
    }

    fn throttle(&self, attempt: &Attempt, percent: u8) -> Map<String, Value> {
        match attempt.throttling {
            tuning::ThrottleMethod::DirtyLimit => {
                let dirtied = self.history.dirty_rate();
                tuning::dirty_limit(Rate((dirtied * (1.0 - f64::from(percent) / 100.0)) as u64), self.order.cpus)
            }
            _ => tuning::throttle(percent),
        }
    }
}

/// Waits until a destination has answered nothing for as long as `patience` says, not even out of band.
async fn silent(destination: &Process, patience: Duration, waiting: &'static str) -> Failure {
    if !destination.has_out_of_band() {
        std::future::pending::<()>().await;
    }
    let mut since: Option<Instant> = None;
    loop {
        sleep(ASKS[usize::from(since.is_some())]).await;
        let asked = Instant::now();
        if matches!(timeout(ANSWERS, destination.answers_out_of_band()).await, Ok(true)) {
            since = None;
            continue;
        }
        if destination.is_gone() {
            // The interruption notices the destination's death and names it.
            std::future::pending::<()>().await;
        }
        // The engine does not wait for the destination all the time, so an answer may have been awaited long ago.
        let now = Instant::now();
        let waited = now - *since.get_or_insert(asked.max(now - ANSWERS));
        if waited >= patience {
            return Failure::Frozen { at: destination.name().clone(), waited, waiting };
        }
    }
}

/// Waits for a bitmap sync after the given one.
async fn passed(source: &Process, pass: u64) {
    if source.watch().wait_for(|seen| seen.pass != pass).await.is_err() {
        // the connection is gone, which the interruption notices and names
        std::future::pending().await
    }
}

/// Waits until the guest stands by another STOP than the given one, and for the event `pre-switchover` that tells
/// QEMU's own stop from others.
async fn stood(source: &Process, before: Option<Moment>) {
    let is_new = |seen: &Observed| seen.stands_since().is_some_and(|stop| Some(stop) != before);
    if source.watch().wait_for(is_new).await.is_err() {
        // the connection is gone, which the interruption notices and names
        std::future::pending().await
    }
    sleep(TELLS).await;
}

impl From<OverBudget> for Failure {
    fn from(over: OverBudget) -> Self {
        Self::GaveUp { code: OverBudget::CODE, because: over.because, needed: over.needed }
    }
}

/// Whether even a policy that only observes takes this action: the migration needs it, or the user's own timeout asks
/// for it.
fn is_done_anyway(action: &Action) -> bool {
    matches!(action, Action::StartMemory | Action::GiveUp { code: "timeout", .. })
}
