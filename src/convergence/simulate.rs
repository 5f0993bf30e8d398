//! A model of a guest, its QEMU and a link, driven by the controller itself: the course that a migration would take.
//!
//! Pure. The guest rewrites a working set round and round. QEMU sends page after page, counts anew at the end of a pass
//! which pages were dirtied, and stops the guest where the rest would fit into the downtime limit:
//! `pending < bandwidth x downtime-limit` in QEMU's `migration_iteration_run`, asked with an exact count.

use super::{
    budget::{OverBudget, PendingRest, keep_budget},
    decide::decide,
    decision::Action,
    history::{History, TIMEOUT},
    job::ConvergenceJob,
    millis,
    policy::Policy,
    sample::{MigrationSample, MirrorSample, RamSample},
    shares::MemoryShare,
};
use crate::quantity::Bytes;
use dirty_rate::DirtyRateModel;
use serde::Serialize;
use std::time::Duration;

mod dirty_rate;
mod ideal;

pub use super::guest_model::{DirtyBursts, DiskModel, GuestModel, LinkModel};
pub use ideal::ideal;

/// The length of a step of the model, milliseconds.
const TICK: f64 = 10.0;
/// The least that a pass takes, seconds: QEMU has to count.
const PASS: f64 = 0.0005;
/// The longest time for which QEMU sends pages before it asks again whether the rest fits, seconds: `MAX_WAIT` in its
/// `migration/ram.c`. A pass that ends earlier has it ask at once, so that often less remains than would fit.
const ITERATION: f64 = 0.05;
/// The least time between two decisions of QEMU whether to throttle the guest, milliseconds.
const THROTTLE_PERIOD: f64 = 1000.0;
/// Bytes per second at which QEMU passes over zero pages.
const SCAN: f64 = 3e9;
/// The bandwidth of the switchover that a held QEMU is told, and the rate of a trickle, bytes per second: as
/// `memory::tuning` sets them.
const HELD: f64 = 1000.0;
const TRICKLE: f64 = 4096.0;
/// The bytes that a mirror copies at once before its limit makes it wait.
const MIRROR_BURST: f64 = 16.0 * 1048576.0;
/// The longest migration of the model, milliseconds.
const END: f64 = 24.0 * 3600.0 * 1000.0;

/// The course that a migration took in the model.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SimulatedRun {
    /// Milliseconds until the guest ran on the destination with all its memory, or until the controller gave up.
    pub total_ms: f64,
    /// Milliseconds that the guest stood still; `None` where it did not move.
    pub blackout_ms: Option<f64>,
    /// Bytes of RAM over the wire.
    pub ram_bytes: f64,
    /// Bytes of disks over the wire.
    pub disk_bytes: f64,
    /// Every action of the controller.
    pub actions: Vec<SimulatedAction>,
    /// The guest was stopped before every mirror was ready.
    pub too_early: bool,
}

/// An action of the controller in the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SimulatedAction {
    /// Milliseconds since the migration began.
    pub at_ms: f64,
    /// The action.
    pub action: Action,
    /// The reason.
    pub because: String,
}

impl SimulatedRun {
    /// Whether the guest moved.
    pub fn moved(&self) -> bool {
        self.blackout_ms.is_some()
    }

    /// The action by which the controller gave up, if it did.
    pub fn given_up(&self) -> Option<&Action> {
        self.actions.iter().map(|step| &step.action).find(|action| matches!(action, Action::GiveUp { .. }))
    }
}

/// The end of a migration in the model.
#[derive(Clone, Copy)]
enum SimulatedEnd {
    /// The guest moved, and stood still for so many milliseconds.
    Moved {
        blackout: f64,
    },
    GaveUp,
}

struct Simulation<'a> {
    guest: &'a GuestModel,
    link: &'a LinkModel,
    run: SimulatedRun,
    at: f64,
    memory_started: bool,
    /// QEMU is kept from stopping the guest.
    held: bool,
    /// The bandwidth that QEMU counts on for the switchover, if it was told one.
    told: Option<f64>,
    /// QEMU stopped the guest.
    stopped: bool,
    /// The bytes to send by the last count.
    pending: f64,
    /// The bytes dirtied since.
    dirtied: f64,
    /// The bytes that were not sent even once.
    unsent: f64,
    /// Seconds since QEMU last asked whether the rest fits.
    iteration: f64,
    transferred: f64,
    processed: f64,
    syncs: u64,
    /// The downtime limit, milliseconds.
    limit: f64,
    auto_converge: AutoConvergeModel,
    /// Per cent by which the guest is throttled.
    throttled: u8,
    period: ThrottlePeriod,
    /// The rate of RAM in the last step.
    rate: f64,
    measurement: DirtyRateModel,
    mirrors: Vec<MirrorModel>,
}

/// The parameters of auto-converge.
#[derive(Clone, Copy)]
struct AutoConvergeModel {
    /// The part of the bytes sent above which the bytes found dirty are too many.
    trigger: f64,
    initial: u8,
    increment: u8,
    most: u8,
}

impl AutoConvergeModel {
    /// A throttle of exactly so many per cent, as `memory::tuning` sets it up.
    fn exactly(percent: u8, trigger: f64) -> Self {
        Self { trigger, initial: percent, increment: percent, most: percent }
    }

    fn at_first(policy: &Policy, job: &ConvergenceJob) -> Self {
        match &policy.schedule {
            Some(schedule) if schedule.auto_converge => {
                Self { trigger: 0.5, initial: 20, increment: 10, most: policy.throttle_max }
            }
            None if job.abilities.throttle => Self::exactly(1, 0.25),
            _ => Self::exactly(0, f64::MAX),
        }
    }
}

/// The time since QEMU last decided whether to throttle.
#[derive(Clone, Copy, Default)]
struct ThrottlePeriod {
    began: f64,
    /// The bytes found dirty in it.
    found: f64,
    /// The bytes sent before it.
    sent: f64,
    /// The number of periods with too many dirty bytes since QEMU last throttled.
    high: u32,
}

#[derive(Clone, Default)]
struct MirrorModel {
    len: f64,
    offset: f64,
    ready: bool,
    blocking: bool,
    written: f64,
    /// The bytes that were copied ahead of the limit.
    ahead: f64,
    /// The mirror waits until nothing is ahead of its limit.
    waits: bool,
}

/// Runs a migration in the model.
pub fn simulate(policy: &Policy, job: &ConvergenceJob, guest: &GuestModel, link: &LinkModel) -> SimulatedRun {
    let mut history = History::new(job.clone(), guest.disks.iter().map(|disk| disk.name.clone()));
    let mut model = Simulation::new(policy, job, guest, link);
    let (mut next, mut passes) = (0.0, 0);
    while model.at < END {
        if model.at >= next || (model.syncs != passes && history.looks_after_pass()) {
            let looked = model.look(policy, &mut history);
            (next, passes) = (model.at + millis(history.next_look()), model.syncs);
            if let Some(end) = looked {
                return model.finish(end);
            }
        }
        model.step(&history);
        if model.stopped {
            let end = model.switch_over(policy, &history);
            return model.finish(end);
        }
    }
    model.finish(SimulatedEnd::GaveUp)
}

impl<'a> Simulation<'a> {
    fn new(policy: &Policy, job: &ConvergenceJob, guest: &'a GuestModel, link: &'a LinkModel) -> Self {
        Self {
            guest,
            link,
            run: SimulatedRun::default(),
            at: 0.0,
            memory_started: false,
            held: false,
            told: job.ceiling.filter(|_| link.switchover_bandwidth).map(|rate| rate.0 as f64),
            stopped: false,
            pending: guest.memory,
            dirtied: 0.0,
            unsent: guest.memory,
            iteration: 0.0,
            transferred: 0.0,
            processed: 0.0,
            syncs: 0,
            limit: millis(policy.first_limit(job.budget)),
            auto_converge: AutoConvergeModel::at_first(policy, job),
            throttled: 0,
            period: ThrottlePeriod::default(),
            rate: 0.0,
            measurement: DirtyRateModel::default(),
            mirrors: guest.disks.iter().map(|disk| MirrorModel { len: disk.bytes, ..MirrorModel::default() }).collect(),
        }
    }

    /// A look of the controller; its end, where that ends the migration.
    fn look(&mut self, policy: &Policy, history: &mut History) -> Option<SimulatedEnd> {
        let sample = self.sample();
        let decision = decide(policy, history, &sample);
        history.record(&sample, &decision);
        if history.wants_measurement() {
            self.measurement.begin(self.at);
        }
        for action in decision.actions {
            if !policy.observe || matches!(action, Action::StartMemory) {
                self.apply(&action);
            }
            let end = match action {
                Action::GiveUp { code, .. } if !policy.observe || code == TIMEOUT => Some(SimulatedEnd::GaveUp),
                Action::Postcopy => Some(SimulatedEnd::Moved { blackout: self.overhead() }),
                _ => None,
            };
            let is_postcopy = action == Action::Postcopy;
            self.note(action, decision.because.clone());
            if is_postcopy {
                let rest = self.rest() + self.dirtied;
                self.transferred += rest;
                self.at += rest / self.tail_rate() * 1000.0;
            }
            if end.is_some() {
                return end;
            }
        }
        None
    }

    /// QEMU stopped the guest: the controller decides whether the guest may move.
    fn switch_over(&mut self, policy: &Policy, history: &History) -> SimulatedEnd {
        self.run.too_early = self.mirrors.iter().any(|mirror| !mirror.ready);
        let rest = self.rest();
        let blackout = rest / self.tail_rate() * 1000.0 + self.overhead();
        let stood = Duration::from_secs_f64(self.link.round_trip * 2.0 / 1000.0);
        let pending = PendingRest::Memory(Bytes(self.pending as u64));
        if let Err(over) = keep_budget(policy, history, stood, pending) {
            self.note(Action::GiveUp { code: OverBudget::CODE, needed: over.needed }, over.because);
            return SimulatedEnd::GaveUp;
        }
        self.transferred += rest;
        SimulatedEnd::Moved { blackout }
    }

    fn note(&mut self, action: Action, because: String) {
        self.run.actions.push(SimulatedAction { at_ms: self.at, action, because });
    }

    fn sample(&self) -> MigrationSample {
        let mirror = |(mirror, disk): (&MirrorModel, &DiskModel)| MirrorSample {
            disk: disk.name.clone(),
            len: mirror.len as u64,
            offset: mirror.offset as u64,
            ready: mirror.ready,
            actively_synced: Some(mirror.blocking && mirror.ready),
            written: mirror.written as u64,
            ..MirrorSample::default()
        };
        let ram = RamSample {
            transferred: self.transferred as u64,
            processed: self.processed as u64,
            remaining: self.pending as u64,
            total: self.guest.memory as u64,
            measured_dirty_rate: self.measurement.rate,
            measurements: self.measurement.count,
            throttle_pct: u64::from(self.throttled),
            syncs: self.syncs,
            ..RamSample::default()
        };
        MigrationSample {
            at_ms: self.at,
            round_trip_ms: self.link.round_trip,
            stands: false,
            ram: self.memory_started.then_some(ram),
            mirrors: self.mirrors.iter().zip(&self.guest.disks).map(mirror).collect(),
        }
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::StartMemory => {
                self.memory_started = true;
                // the sync that begins the first pass begins the first period, too
                self.period.began = self.at;
                self.measurement.begin(self.at);
            }
            Action::HoldMemory => self.held = self.link.switchover_bandwidth,
            Action::ReleaseMemory => self.held = false,
            Action::DowntimeLimit(limit) => self.limit = millis(*limit),
            Action::Throttle(percent) => self.auto_converge = AutoConvergeModel::exactly(*percent, 0.01),
            Action::WriteBlocking(disks) => {
                for (mirror, disk) in self.mirrors.iter_mut().zip(&self.guest.disks) {
                    mirror.blocking |= disks.contains(&disk.name);
                }
            }
            _ => {}
        }
    }

    /// Bytes per second that the link carries for RAM with the guest stopped.
    fn tail_rate(&self) -> f64 {
        self.link.bandwidth.min(self.link.memory_rate).max(1.0)
    }

    /// Bytes that are still to be sent over the wire: zero pages hardly count.
    fn rest(&self) -> f64 {
        self.pending - self.unsent * (1.0 - self.guest.used / self.guest.memory.max(1.0))
    }

    /// Milliseconds of the blackout that are not RAM.
    fn overhead(&self) -> f64 {
        self.link.device_state + self.link.round_trip * 4.0
    }

    fn step(&mut self, history: &History) {
        let shares = history.shares();
        let seconds = TICK / 1000.0;
        let dirties = self.guest.bursts.is_none_or(|bursts| self.at % (bursts.busy + bursts.idle) < bursts.busy);
        self.at += TICK;

        // the rates that mirrors and RAM would take, and the part of them that the link carries
        let copying = self.mirrors.iter().filter(|mirror| !mirror.ready).count().max(1) as f64;
        let mut wants: Vec<f64> = Vec::new();
        for (mirror, disk) in self.mirrors.iter_mut().zip(&self.guest.disks) {
            let limit = shares.mirror(&disk.name).map_or(f64::MAX, |rate| rate.0 as f64);
            mirror.ahead = (mirror.ahead - limit * seconds).max(0.0);
            mirror.waits &= mirror.ahead > 0.0;
            let copies = if mirror.ready || mirror.waits { 0.0 } else { self.link.mirror_rate / copying };
            wants.push(copies + if mirror.blocking || mirror.ready { disk.write_rate } else { 0.0 });
        }
        let ceiling = match shares.memory {
            MemoryShare::Unlimited => f64::MAX,
            MemoryShare::Limited(rate) => rate.0 as f64,
            MemoryShare::Trickle => TRICKLE,
        };
        let for_memory = if self.memory_started { self.link.memory_rate.min(ceiling) } else { 0.0 };
        let asked: f64 = wants.iter().sum::<f64>() + for_memory;
        let part = if asked > self.link.bandwidth { self.link.bandwidth / asked } else { 1.0 };

        for ((mirror, disk), want) in self.mirrors.iter_mut().zip(&self.guest.disks).zip(wants) {
            mirror.written += disk.write_rate * seconds;
            if !mirror.ready {
                let copied = (want * part * seconds).min(mirror.len - mirror.offset);
                mirror.offset += copied;
                mirror.ahead += copied;
                mirror.waits |= mirror.ahead >= MIRROR_BURST;
                mirror.ready = mirror.len - mirror.offset < 1.0;
                // a write to a block that is copied already has to be copied again
                let again = if mirror.blocking || mirror.len == 0.0 { 0.0 } else { mirror.offset / mirror.len };
                mirror.len += disk.write_rate * seconds * again;
            }
        }
        if !self.memory_started {
            return;
        }
        self.rate = for_memory * part;
        let dirties = if dirties { self.guest.dirty_rate } else { 0.0 };
        let mut left = seconds;
        while left > 0.0 && !self.stopped {
            let first = self.unsent > 0.0;
            let filled = if first { (self.guest.used / self.guest.memory.max(1.0)).max(1e-6) } else { 1.0 };
            let at_hand = if first { self.unsent.min(self.pending) } else { self.pending };
            let pace = (self.rate / filled).clamp(1.0, SCAN);
            let time = (at_hand / pace).clamp(PASS, left.max(PASS));
            let taken = (pace * time).min(at_hand);
            let runs = 1.0 - f64::from(self.throttled) / 100.0;
            self.dirtied = (self.dirtied + dirties * runs * time).min(self.guest.working_set);
            self.measurement.step(self.at - left * 1000.0, dirties * runs * time, self.guest.working_set);
            self.pending -= taken;
            self.unsent = if first && at_hand - taken > 1.0 { self.unsent - taken } else { 0.0 };
            self.processed += taken;
            self.transferred += taken * filled;
            left -= time;
            self.iteration += time;
            if self.pending <= 0.0 || self.iteration >= ITERATION {
                self.iteration = 0.0;
                self.stopped = self.fits();
            }
        }
    }

    /// QEMU counts anew which pages are to be sent.
    fn count(&mut self) {
        // pages that are still to be sent are not found again
        let again = (self.pending - self.unsent) / self.guest.working_set.max(1.0);
        let sent = 1.0 - self.unsent / self.guest.memory.max(1.0);
        let found = self.dirtied * sent * (1.0 - again).clamp(0.0, 1.0);
        self.pending += found;
        self.dirtied = 0.0;
        self.syncs += 1;
        self.period.found += found;
        self.throttle();
    }

    /// QEMU decides at a count whether to throttle, if a second has passed, and acts on every second period that had
    /// too many dirty bytes.
    fn throttle(&mut self) {
        let period = &mut self.period;
        if self.at - period.began < THROTTLE_PERIOD {
            return;
        }
        if period.found > (self.transferred - period.sent) * self.auto_converge.trigger {
            period.high += 1;
        }
        if period.high >= 2 {
            period.high = 0;
            let AutoConvergeModel { initial, increment, most, .. } = self.auto_converge;
            self.throttled =
                if self.throttled == 0 { initial } else { self.throttled.saturating_add(increment).min(most) };
        }
        *period = ThrottlePeriod { began: self.at, sent: self.transferred, found: 0.0, high: period.high };
    }

    /// Whether QEMU would stop the guest now.
    fn fits(&mut self) -> bool {
        let bandwidth = if self.held { HELD } else { self.told.unwrap_or(self.rate) };
        let threshold = (bandwidth * self.limit / 1000.0).max(1.0);
        if self.pending >= threshold {
            return false;
        }
        self.count();
        self.pending < threshold
    }

    fn finish(self, end: SimulatedEnd) -> SimulatedRun {
        let blackout_ms = match end {
            SimulatedEnd::Moved { blackout } => Some(blackout),
            SimulatedEnd::GaveUp => None,
        };
        SimulatedRun {
            total_ms: self.at + blackout_ms.unwrap_or_default(),
            blackout_ms,
            ram_bytes: self.transferred,
            disk_bytes: self.mirrors.iter().map(|mirror| mirror.offset).sum(),
            ..self.run
        }
    }
}
