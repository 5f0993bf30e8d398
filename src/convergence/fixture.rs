//! A run of the controller, driven sample by sample, for the tests of this room.

#![cfg(test)] // tells clippy that this is all test, helpers too

use super::{
    budget::{OverBudget, PendingRest, keep_budget},
    decide::decide,
    decision::{Action, Decision},
    history::History,
    job::{Abilities, ConvergenceJob},
    policy::Policy,
    sample::{MigrationSample, MirrorSample, RamSample},
    shares::BandwidthShares,
};
use crate::quantity::{Bytes, Rate};
use std::time::Duration;

pub(super) const MIB: u64 = 1 << 20;

pub(super) fn in_mib(bytes: f64) -> f64 {
    bytes / MIB as f64
}

/// Whether a value is off by no more than this part of the expected one.
pub(super) fn near(is: f64, should: f64, tolerance: f64) -> bool {
    (is - should).abs() <= should * tolerance
}

pub(super) fn policy(name: &str) -> Policy {
    Policy::built_in(name).expect(name).parse().expect(name)
}

/// A budget of 300 ms, and every ability of QEMU.
pub(super) fn job() -> ConvergenceJob {
    let abilities =
        Abilities { write_blocking: true, throttle: true, postcopy: true, overlap: true, switchover_bandwidth: true };
    ConvergenceJob { budget: Duration::from_millis(300), memory: 512 * MIB, abilities, ..ConvergenceJob::default() }
}

pub(super) fn mirror(disk: &str, len: u64, offset: u64) -> MirrorSample {
    MirrorSample { disk: disk.to_owned(), len: len * MIB, offset: offset * MIB, ..MirrorSample::default() }
}

pub(super) fn ready(disk: &str, synced: bool) -> MirrorSample {
    MirrorSample { ready: true, actively_synced: Some(synced), ..mirror(disk, 100, 100) }
}

/// Samples and decisions, one after the other.
pub(super) struct ControllerRun {
    pub(super) policy: Policy,
    pub(super) history: History,
    /// The guest stands still by its owner's wish.
    pub(super) stands: bool,
    at: f64,
}

impl ControllerRun {
    pub(super) fn new(policy: &Policy, job: ConvergenceJob, disks: &[&str]) -> Self {
        let history = History::new(job, disks.iter().map(|&disk| disk.to_owned()));
        Self { policy: policy.clone(), history, stands: false, at: 0.0 }
    }

    /// A look `later` milliseconds after the last one.
    pub(super) fn look(&mut self, later: u64, ram: Option<RamSample>, mirrors: &[MirrorSample]) -> Decision {
        self.look_slowly(later, 0.5, ram, mirrors)
    }

    /// A look whose answer took so many milliseconds.
    pub(super) fn look_slowly(
        &mut self,
        later: u64,
        round_trip_ms: f64,
        ram: Option<RamSample>,
        mirrors: &[MirrorSample],
    ) -> Decision {
        self.at += later as f64;
        let stands = self.stands;
        let sample = MigrationSample { at_ms: self.at, round_trip_ms, stands, ram, mirrors: mirrors.to_vec() };
        let decision = decide(&self.policy, &self.history, &sample);
        self.history.record(&sample, &decision);
        decision
    }

    /// Whether a guest that has stood still for `stood` milliseconds may be handed over.
    pub(super) fn keep_budget(&self, stood: f64, remaining: u64) -> Result<f64, OverBudget> {
        let stood = Duration::from_secs_f64(stood / 1000.0);
        keep_budget(&self.policy, &self.history, stood, PendingRest::Memory(Bytes(remaining)))
    }

    pub(super) fn at(&self) -> f64 {
        self.at
    }

    pub(super) fn shares(&self) -> &BandwidthShares {
        self.history.shares()
    }
}

/// RAM of 512 MiB that is sent at 100 MiB/s, as QEMU counts it.
pub(super) struct GuestRam {
    pub(super) sent: f64,
    pub(super) dirtied: f64,
    pub(super) working_set: f64,
    /// QEMU syncs ten times a second, and not only at the end of a pass, as where the rest seems to fit into its limit.
    pub(super) continuous: bool,
    pub(super) throttle: u64,
    /// QEMU measures the dirty rate in windows of 500 ms.
    pub(super) measures: bool,
    /// The memory to send at the last sync, MiB.
    pub(super) count: f64,
    /// The time since the begin, ms.
    at: u64,
    /// The memory dirtied in the present window, MiB.
    window: f64,
    sample: RamSample,
    /// The part that was never sent, MiB.
    unsent: f64,
    pending: f64,
    /// The memory dirtied since the last sync, MiB.
    found: f64,
    processed: f64,
    counted: u64,
}

impl GuestRam {
    pub(super) fn new(dirtied: f64, working_set: f64, continuous: bool) -> Self {
        Self {
            sent: 100.0,
            dirtied,
            working_set,
            continuous,
            throttle: 0,
            measures: false,
            count: 512.0,
            at: 0,
            window: 0.0,
            sample: RamSample::default(),
            unsent: 512.0,
            pending: 512.0,
            found: 0.0,
            processed: 0.0,
            counted: 0,
        }
    }

    /// The sample after `ms` more. RAM never completes, since nothing stops the guest.
    pub(super) fn after(&mut self, ms: u64) -> RamSample {
        for _ in 0..ms {
            let sent = (self.sent / 1000.0).min(self.pending);
            self.pending -= sent;
            self.unsent = (self.unsent - sent).max(0.0);
            self.processed += sent;
            let runs = 1.0 - self.throttle as f64 / 100.0;
            self.found = (self.found + self.dirtied * runs / 1000.0).min(self.working_set);
            self.measure(self.dirtied * runs / 1000.0);
            self.counted += 1;
            if self.pending <= 0.0 || (self.continuous && self.counted >= 100) {
                let again = (self.pending - self.unsent).max(0.0) / self.working_set.max(1.0);
                self.pending += self.found * (1.0 - self.unsent / 512.0) * (1.0 - again).max(0.0);
                (self.found, self.counted, self.count) = (0.0, 0, self.pending);
                self.sample.syncs += 1;
            }
        }
        let bytes = |mib: f64| (mib * MIB as f64) as u64;
        self.sample = RamSample {
            transferred: bytes(self.processed),
            processed: bytes(self.processed),
            remaining: bytes(self.pending),
            total: 512 * MIB,
            throttle_pct: self.throttle,
            ..self.sample
        };
        self.sample
    }

    /// Dirties so many MiB in a millisecond.
    fn measure(&mut self, dirtied: f64) {
        self.at += 1;
        self.window = (self.window + dirtied).min(self.working_set);
        if self.measures && self.at % 500 == 0 {
            self.sample.measured_dirty_rate = Some((self.window * 2.0) as u64 * MIB);
            self.sample.measurements += 1;
            self.window = 0.0;
        }
    }
}

/// The first throttle of a decision, if there is one.
pub(super) fn throttle(decision: &Decision) -> Option<u8> {
    decision.actions.iter().find_map(|action| match action {
        Action::Throttle(percent) => Some(*percent),
        _ => None,
    })
}

pub(super) fn limit(decision: &Decision) -> Option<Duration> {
    decision.actions.iter().find_map(|action| match action {
        Action::DowntimeLimit(limit) => Some(*limit),
        _ => None,
    })
}

pub(super) fn give_up(decision: &Decision) -> Option<(&str, &str)> {
    decision.actions.iter().find_map(|action| match action {
        Action::GiveUp { code, needed } => Some((*code, needed.as_str())),
        _ => None,
    })
}

pub(super) fn mib(rate: u64) -> Rate {
    Rate(rate * MIB)
}
