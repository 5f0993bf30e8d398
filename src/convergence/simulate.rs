//! A model of a guest, its QEMU and a link, driven by the very decisions of a run: what a migration would come to.
//!
//! Pure. A guest rewrites a working set round and round; QEMU sends page after page and counts anew what was dirtied, at the
//! end of a pass or ten times a second; it stops the guest where what remains would fit into the downtime limit. The model
//! is the one of 4.1 in QEMU's `migration_iteration_run`: `pending < bandwidth x downtime-limit`, asked exactly before.

use super::{
    decide::{decide, may_hand_over},
    decision::Action,
    history::{ConvergenceJob, History},
    millis,
    policy::Policy,
    sample::{MigrationSample, MirrorSample, RamSample},
};
use serde::Serialize;

/// The length of a step of the model, milliseconds.
const TICK: f64 = 10.0;
/// The least that a pass takes, seconds: QEMU has to count.
const PASS: f64 = 0.0005;
/// How often it is looked at and decided.
const LOOK: f64 = 100.0;
/// The same where it presses.
const PRESSING: f64 = 20.0;
/// How often QEMU 11 counts anew.
const CONTINUOUS: f64 = 100.0;
/// The least time between two looks of QEMU at whether the guest is to be throttled.
const THROTTLE_PERIOD: f64 = 1000.0;
/// Bytes per second that zero pages are passed over with.
const SCAN: f64 = 3e9;
/// After this much, milliseconds, nothing is to be expected any more.
const END: f64 = 24.0 * 3600.0 * 1000.0;

/// A guest as far as its migration is concerned. Bytes and bytes per second.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GuestModel {
    /// Its memory.
    pub memory: f64,
    /// What of it is not zero.
    pub used: f64,
    /// What it rewrites again and again.
    pub working_set: f64,
    /// How fast.
    pub dirty_rate: f64,
    /// Milliseconds of dirtying, and of a pause after it, where it does not always dirty.
    pub bursts: Option<(f64, f64)>,
    /// Its disks.
    pub disks: Vec<DiskModel>,
}

/// A disk of a guest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskModel {
    /// Its name.
    pub name: String,
    /// To copy.
    pub bytes: f64,
    /// What the guest writes.
    pub write_rate: f64,
}

/// What lies between the two QEMUs, and what they take for themselves.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkModel {
    /// Bytes per second.
    pub bandwidth: f64,
    /// Bytes per second that RAM can be sent at whatever the link carries.
    pub memory_rate: f64,
    /// Bytes per second that the mirrors together can copy at.
    pub mirror_rate: f64,
    /// Milliseconds of a question.
    pub round_trip: f64,
    /// Milliseconds that device state, its loading and the mirrors' end take.
    pub device_state: f64,
    /// QEMU counts what is dirty ten times a second (11.1), not at the end of a pass (10.0).
    pub continuous: bool,
    /// QEMU can be told with which bandwidth to reckon for the switchover (8.2).
    pub switchover_bandwidth: bool,
}

/// What it came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SimulatedRun {
    /// Milliseconds until the guest ran at the destination with all its memory, or until it was given up.
    pub total_ms: f64,
    /// Milliseconds it stood still; None where it was given up before.
    pub blackout_ms: Option<f64>,
    /// Bytes of RAM over the wire.
    pub ram_bytes: f64,
    /// Bytes of disks.
    pub disk_bytes: f64,
    /// Everything that was decided, when and why.
    pub actions: Vec<(f64, Action, String)>,
    /// The guest was stopped before every mirror was ready.
    pub too_early: bool,
}

impl SimulatedRun {
    /// Whether the guest moved.
    pub fn moved(&self) -> bool {
        self.blackout_ms.is_some()
    }

    /// Why it was given up.
    pub fn given_up(&self) -> Option<&Action> {
        self.actions.iter().map(|(_, action, _)| action).find(|action| matches!(action, Action::GiveUp { .. }))
    }
}

struct Simulation<'a> {
    guest: &'a GuestModel,
    link: &'a LinkModel,
    at: f64,
    /// RAM was started, and when.
    ram: Option<f64>,
    /// Milliseconds since it was last counted anew.
    since_count: f64,
    /// QEMU stopped the guest.
    stopped: bool,
    /// The bandwidth that QEMU was told to reckon with.
    told: Option<f64>,
    pending: f64,
    /// Dirtied since it was last counted.
    dirtied: f64,
    /// What was not sent even once.
    unsent: f64,
    transferred: f64,
    processed: f64,
    syncs: u64,
    limit: f64,
    /// What `cpu-throttle-*` says.
    throttle: AutoConvergeModel,
    /// Per cent by which the guest is throttled.
    shown: u8,
    /// When QEMU last looked whether to throttle, what it has found dirty and sent since, and how many of its last looks
    /// found too much.
    period: ThrottlePeriod,
    /// What RAM was sent at in the last step.
    rate: f64,
    mirrors: Vec<MirrorModel>,
}

/// Auto-converge as it is set up.
#[derive(Clone, Copy)]
struct AutoConvergeModel {
    /// The part of what was sent above which what was found dirty is too much.
    trigger: f64,
    initial: u8,
    increment: u8,
    most: u8,
}

impl AutoConvergeModel {
    /// As `memory::tuning` sets it up, and again at each step.
    fn to(percent: u8, trigger: f64) -> Self {
        Self { trigger, initial: percent, increment: percent, most: percent }
    }

    fn at_first(policy: &Policy, job: &ConvergenceJob) -> Self {
        match &policy.schedule {
            Some(schedule) if schedule.auto_converge => {
                Self { trigger: 0.5, initial: 20, increment: 10, most: policy.throttle_max }
            }
            None if job.abilities.throttle => Self::to(1, 0.25),
            _ => Self::to(0, f64::MAX),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct ThrottlePeriod {
    began: f64,
    found: f64,
    sent: f64,
    high: u32,
}

#[derive(Clone, Default)]
struct MirrorModel {
    len: f64,
    offset: f64,
    ready: bool,
    blocking: bool,
    written: f64,
}

/// Lets a migration run in the model.
pub fn simulate(policy: &Policy, job: &ConvergenceJob, guest: &GuestModel, link: &LinkModel) -> SimulatedRun {
    let mut history = History::new(job.clone(), guest.disks.iter().map(|disk| disk.name.clone()));
    let mut simulation = Simulation {
        guest,
        link,
        at: 0.0,
        ram: None,
        since_count: 0.0,
        stopped: false,
        told: job.ceiling.filter(|_| link.switchover_bandwidth).map(|rate| rate.0 as f64),
        pending: guest.memory,
        dirtied: 0.0,
        unsent: guest.memory,
        transferred: 0.0,
        processed: 0.0,
        syncs: 0,
        limit: millis(policy.first_limit(job.budget)),
        throttle: AutoConvergeModel::at_first(policy, job),
        shown: 0,
        period: ThrottlePeriod::default(),
        rate: 0.0,
        mirrors: guest.disks.iter().map(|disk| MirrorModel { len: disk.bytes, ..MirrorModel::default() }).collect(),
    };
    let mut course = SimulatedRun {
        total_ms: 0.0,
        blackout_ms: None,
        ram_bytes: 0.0,
        disk_bytes: 0.0,
        actions: Vec::new(),
        too_early: false,
    };
    let mut looked = -LOOK;
    while simulation.at < END {
        if simulation.at - looked >= if history.is_pressing() { PRESSING } else { LOOK } {
            looked = simulation.at;
            let sample = simulation.sample();
            let decision = decide(policy, &history, &sample);
            history.record(&sample, &decision);
            for action in decision.actions {
                let ends = matches!(action, Action::GiveUp { code, .. } if !policy.observe || code == "timeout");
                let postcopy = action == Action::Postcopy;
                if !policy.observe || matches!(action, Action::StartMemory) {
                    simulation.apply(&action);
                }
                course.actions.push((simulation.at, action, decision.because.clone()));
                if ends {
                    return simulation.finish(course, None);
                }
                if postcopy {
                    let rest = simulation.rest() + simulation.dirtied;
                    simulation.transferred += rest;
                    let blackout = simulation.overhead();
                    simulation.at += rest / simulation.wire(true).max(1.0) * 1000.0;
                    return simulation.finish(course, Some(blackout));
                }
            }
        }
        simulation.step(&history);
        if simulation.stopped {
            course.too_early = simulation.mirrors.iter().any(|mirror| !mirror.ready);
            let rest = simulation.rest() / simulation.wire(true).max(1.0) * 1000.0;
            let blackout = rest + simulation.overhead();
            let verdict = may_hand_over(policy, &history, simulation.link.round_trip * 2.0, simulation.pending as u64);
            if verdict.is_err() {
                let action = Action::GiveUp { code: "over-budget", needed: format!("{blackout:.0} ms") };
                course.actions.push((simulation.at, action, format!("{blackout:.0} ms of blackout are foreseen")));
                return simulation.finish(course, None);
            }
            simulation.transferred += simulation.rest();
            return simulation.finish(course, Some(blackout));
        }
    }
    simulation.finish(course, None)
}

impl Simulation<'_> {
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
            throttle_pct: u64::from(self.shown),
            syncs: self.syncs,
            ..RamSample::default()
        };
        MigrationSample {
            at_ms: self.at,
            round_trip_ms: self.link.round_trip,
            ram: self.ram.map(|_| ram),
            mirrors: self.mirrors.iter().zip(&self.guest.disks).map(mirror).collect(),
        }
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::StartMemory => self.ram = Some(self.at),
            Action::DowntimeLimit(limit) => self.limit = millis(*limit),
            Action::SwitchoverBandwidth(rate) if self.link.switchover_bandwidth => {
                self.told = rate.map(|rate| rate.0 as f64);
            }
            Action::Throttle(percent) => self.throttle = AutoConvergeModel::to(*percent, 0.01),
            Action::WriteBlocking(disks) => {
                for (mirror, disk) in self.mirrors.iter_mut().zip(&self.guest.disks) {
                    mirror.blocking |= disks.contains(&disk.name);
                }
            }
            _ => {}
        }
    }

    /// Bytes per second that the wire carries for RAM, with the guest stopped or beside nothing else.
    fn wire(&self, stopped: bool) -> f64 {
        if stopped { self.link.bandwidth.min(self.link.memory_rate) } else { self.rate }
    }

    /// What is still to be sent over the wire: zero pages hardly count.
    fn rest(&self) -> f64 {
        self.pending - self.unsent * (1.0 - self.guest.used / self.guest.memory.max(1.0))
    }

    fn overhead(&self) -> f64 {
        self.link.device_state + self.link.round_trip * 4.0
    }

    fn step(&mut self, history: &History) {
        let share = history.share();
        let seconds = TICK / 1000.0;
        let dirties = self.guest.bursts.is_none_or(|(on, off)| self.at % (on + off) < on);
        self.at += TICK;

        // what each would take, and what the link leaves of it
        let copying = self.mirrors.iter().filter(|mirror| !mirror.ready).count().max(1) as f64;
        let mut wants: Vec<f64> = Vec::new();
        for (mirror, disk) in self.mirrors.iter().zip(&self.guest.disks) {
            let limit = share.mirror(&disk.name).map_or(f64::MAX, |rate| rate.0 as f64);
            let copies = if mirror.ready { 0.0 } else { (self.link.mirror_rate / copying).min(limit) };
            wants.push(copies + if mirror.blocking || mirror.ready { disk.write_rate } else { 0.0 });
        }
        let ceiling = share.memory.map_or(f64::MAX, |rate| rate.0 as f64);
        let for_memory = if self.ram.is_some() { self.link.memory_rate.min(ceiling) } else { 0.0 };
        let asked: f64 = wants.iter().sum::<f64>() + for_memory;
        let part = if asked > self.link.bandwidth { self.link.bandwidth / asked } else { 1.0 };

        for ((mirror, disk), want) in self.mirrors.iter_mut().zip(&self.guest.disks).zip(wants) {
            mirror.written += disk.write_rate * seconds;
            if !mirror.ready {
                let copied = (want * part * seconds).min(mirror.len - mirror.offset);
                mirror.offset += copied;
                mirror.ready = mirror.len - mirror.offset < 1.0;
                // a write to what is copied already is to be copied again
                let again = if mirror.blocking || mirror.len == 0.0 { 0.0 } else { mirror.offset / mirror.len };
                mirror.len += disk.write_rate * seconds * again;
            }
        }
        if self.ram.is_none() {
            return;
        }
        self.rate = for_memory * part;
        let dirties = if dirties { self.guest.dirty_rate } else { 0.0 };
        let mut left = seconds;
        while left > 0.0 && !self.stopped {
            let first = self.unsent > 0.0;
            let filled = if first { (self.guest.used / self.guest.memory.max(1.0)).max(1e-6) } else { 1.0 };
            let here = if first { self.unsent.min(self.pending) } else { self.pending };
            let pace = (self.rate / filled).clamp(1.0, SCAN);
            // not less than QEMU needs for a sync
            let time = (here / pace).clamp(PASS, left.max(PASS));
            let taken = (pace * time).min(here);
            let runs = 1.0 - f64::from(self.shown) / 100.0;
            self.dirtied = (self.dirtied + dirties * runs * time).min(self.guest.working_set);
            self.pending -= taken;
            self.unsent = if first && here - taken > 1.0 { self.unsent - taken } else { 0.0 };
            self.processed += taken;
            self.transferred += taken * filled;
            left -= time;
            self.since_count += time * 1000.0;
            if self.pending <= 0.0 || (self.link.continuous && self.since_count >= CONTINUOUS) {
                self.count();
            }
            self.stopped = self.fits();
        }
    }

    /// Counts anew what is to be sent.
    fn count(&mut self) {
        // what is still to be sent is not found again
        let again = (self.pending - self.unsent) / self.guest.working_set.max(1.0);
        let sent = 1.0 - self.unsent / self.guest.memory.max(1.0);
        let found = self.dirtied * sent * (1.0 - again).clamp(0.0, 1.0);
        self.pending += found;
        self.dirtied = 0.0;
        self.syncs += 1;
        self.since_count = 0.0;
        self.period.found += found;
        self.throttle();
    }

    /// Whether to throttle: QEMU looks at it at a sync, if a second has passed, and does something every second time that too
    /// much was found dirty.
    fn throttle(&mut self) {
        let period = &mut self.period;
        if self.at - period.began < THROTTLE_PERIOD {
            return;
        }
        // nothing is looked at in the period that ends with the first sync
        if period.began > 0.0 && period.found > (self.transferred - period.sent) * self.throttle.trigger {
            period.high += 1;
        }
        if period.high >= 2 {
            period.high = 0;
            let AutoConvergeModel { initial, increment, most, .. } = self.throttle;
            self.shown = if self.shown == 0 { initial } else { self.shown.saturating_add(increment).min(most) };
        }
        *period = ThrottlePeriod { began: self.at, sent: self.transferred, found: 0.0, high: period.high };
    }

    /// Whether QEMU would stop the guest now.
    fn fits(&mut self) -> bool {
        let threshold = (self.told.unwrap_or(self.rate) * self.limit / 1000.0).max(1.0);
        if self.pending >= threshold {
            return false;
        }
        self.count();
        self.pending < threshold
    }

    fn finish(&self, course: SimulatedRun, blackout: Option<f64>) -> SimulatedRun {
        SimulatedRun {
            total_ms: self.at + blackout.unwrap_or_default(),
            blackout_ms: blackout,
            ram_bytes: self.transferred,
            disk_bytes: self.mirrors.iter().map(|mirror| mirror.offset).sum(),
            ..course
        }
    }
}
