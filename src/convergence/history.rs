//! The memory of the controller: everything that was sampled and decided so far.
//!
//! Pure.

use super::{
    Action, BandwidthShares, ConvergenceJob, Decision, MigrationSample,
    estimate::{DiskEstimate, DiskTrack, MemoryEstimate, MemoryTrack},
    millis,
    round_trips::RoundTrips,
};
use std::{collections::BTreeMap, time::Duration};

/// The code of a migration that took longer than the user allows.
pub(super) const TIMEOUT: &str = "timeout";

/// The bytes that a mirror may always be behind its guest: a mirror that had little to do has not shown how fast it is.
const LITTLE: f64 = 1048576.0;
/// The part of the budget that a mirror may be behind its guest by, where QEMU cannot keep it in step.
const BEHIND: f64 = 0.25;

/// The samples and decisions so far.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    pub(super) job: ConvergenceJob,
    /// The moment of the last sample, since the migration began.
    pub(super) at: Duration,
    /// The guest stood still at the last sample.
    pub(super) stands: bool,
    pub(super) memory: MemoryTrack,
    pub(super) disks: BTreeMap<String, DiskTrack>,
    pub(super) round_trip: RoundTrips,
    /// The moment since which the mirrors have been in step with the guest.
    pub(super) in_step: Option<Duration>,
    pub(super) applied: Applied,
}

/// The settings and commands that were decided so far, as they stand.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Applied {
    pub(super) memory: MemoryState,
    pub(super) downtime: Option<Duration>,
    /// Per cent by which the guest is to be throttled.
    pub(super) throttle: u8,
    /// QEMU's `dirty-sync-count` when that was decided.
    pub(super) throttle_syncs: u64,
    /// The moment of the last change that must show before the next rung is climbed.
    pub(super) changed: Duration,
    /// The disks whose mirrors are in write-blocking mode.
    pub(super) write_blocking: Vec<String>,
    /// The disks whose mirrors get more of the ceiling than the others.
    pub(super) favoured: Vec<String>,
    pub(super) shares: BandwidthShares,
    pub(super) schedule: ScheduleState,
    pub(super) end: Option<ControllerEnd>,
}

/// Whether RAM was started, and whether QEMU may stop the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum MemoryState {
    #[default]
    NotStarted,
    /// RAM was started, and QEMU is kept from stopping the guest.
    Held,
    /// RAM was started, and QEMU may stop the guest.
    Released,
}

/// The decision after which the controller changes nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ControllerEnd {
    Postcopy,
    GaveUp,
    /// The user's timeout is over. A policy that only observes gives up by it, too.
    TimedOut,
}

/// The progress of a published schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ScheduleState {
    /// The number of steps taken.
    pub(super) steps: usize,
    /// The moment of the last step.
    pub(super) stepped_at: Duration,
    /// QEMU's `dirty-sync-count` at the last step.
    pub(super) syncs: u64,
}

/// The estimates after the last sample.
#[derive(Debug, Clone, PartialEq)]
pub struct RunEstimates {
    /// RAM, once something of it was measured.
    pub memory: Option<MemoryEstimate>,
    /// Every mirror, by its disk.
    pub disks: BTreeMap<String, DiskEstimate>,
}

impl History {
    /// A history that has not begun, with shares that no ceiling has divided yet.
    pub(super) fn without_shares(job: ConvergenceJob, disks: impl IntoIterator<Item = String>) -> Self {
        Self {
            job,
            at: Duration::ZERO,
            stands: false,
            memory: MemoryTrack::default(),
            disks: disks.into_iter().map(|disk| (disk, DiskTrack::default())).collect(),
            round_trip: RoundTrips::default(),
            in_step: None,
            applied: Applied::default(),
        }
    }

    /// The present shares of the ceiling.
    pub fn shares(&self) -> &BandwidthShares {
        &self.applied.shares
    }

    /// The downtime limit that was decided last; `None` while QEMU has the one that it was set up with.
    pub fn downtime_limit(&self) -> Option<Duration> {
        self.applied.downtime
    }

    /// The estimates after the last sample.
    pub fn estimates(&self) -> RunEstimates {
        RunEstimates {
            memory: self.memory.estimate(),
            disks: self.disks.iter().map(|(disk, track)| (disk.clone(), track.estimate())).collect(),
        }
    }

    /// Adds a sample and the decision that was made on it.
    pub fn record(&mut self, sample: &MigrationSample, decision: &Decision) {
        *self = self.after(sample);
        for action in &decision.actions {
            self.note(action);
        }
    }

    /// Takes in how long QEMU took for an answer after the guest was stopped, milliseconds.
    pub fn answered_at_stop(&mut self, ms: f64) {
        self.round_trip.add_at_stop(ms);
    }

    /// Takes back an action that QEMU refused, so that nothing waits for its effect. The controller does not ask for
    /// it again.
    pub fn take_back(&mut self, action: &Action) {
        let (abilities, applied) = (&mut self.job.abilities, &mut self.applied);
        match action {
            Action::WriteBlocking(_) => abilities.write_blocking = false,
            Action::Throttle(_) => (abilities.throttle, applied.throttle) = (false, 0),
            Action::Postcopy => {
                abilities.postcopy = false;
                applied.end = applied.end.filter(|end| *end != ControllerEnd::Postcopy);
            }
            _ => {}
        }
    }

    /// Whether a mirror is so little behind its guest that the rest can be copied with the guest stopped.
    pub(super) fn is_close(&self, disk: &DiskEstimate) -> bool {
        disk.remaining <= LITTLE || disk.behind() <= millis(self.job.budget) * BEHIND
    }

    /// Whether a mirror that is ready would not prolong a blackout: each write is on the destination before the guest
    /// sees it complete, or where QEMU cannot keep the mirror so, almost nothing is left.
    pub(super) fn is_in_step(&self, disk: &DiskEstimate) -> bool {
        if self.job.abilities.write_blocking { disk.synced } else { self.is_close(disk) }
    }

    /// The time since a moment.
    pub(super) fn since(&self, moment: Duration) -> Duration {
        self.at.saturating_sub(moment)
    }

    /// The history with one more sample.
    pub(super) fn after(&self, sample: &MigrationSample) -> Self {
        let mut next = self.clone();
        next.at = self.at.max(Duration::try_from_secs_f64(sample.at_ms / 1000.0).unwrap_or(self.at));
        next.stands = sample.stands;
        if sample.round_trip_ms > 0.0 {
            next.round_trip.add(sample.round_trip_ms);
        }
        if let Some(ram) = sample.ram {
            next.memory.add(next.at, ram);
        }
        for mirror in &sample.mirrors {
            let limit = self.applied.shares.mirror(&mirror.disk);
            next.disks.entry(mirror.disk.clone()).or_default().add(next.at, mirror, limit);
        }
        for track in next.disks.values_mut() {
            let disk = track.estimate();
            if disk.ready && self.is_close(&disk) {
                track.keeps_up(next.at);
            }
        }
        let is_in_step = next.disks.values().map(DiskTrack::estimate).all(|disk| disk.ready && next.is_in_step(&disk));
        next.in_step = is_in_step.then(|| next.in_step.unwrap_or(next.at));
        next
    }

    pub(super) fn note(&mut self, action: &Action) {
        let at = self.at;
        let applied = &mut self.applied;
        match action {
            Action::StartMemory if applied.memory == MemoryState::Held => {}
            Action::StartMemory | Action::ReleaseMemory => applied.memory = MemoryState::Released,
            Action::HoldMemory => applied.memory = MemoryState::Held,
            Action::DowntimeLimit(limit) => {
                applied.downtime = Some(*limit);
                applied.changed = at;
                // a limit that is set while RAM is held is not a step of a schedule
                if applied.memory == MemoryState::Released {
                    let syncs = self.memory.last().map_or(0, |last| last.syncs);
                    applied.schedule = ScheduleState { steps: applied.schedule.steps + 1, stepped_at: at, syncs };
                }
            }
            Action::ShareBandwidth(shares) => {
                for (disk, track) in &mut self.disks {
                    if applied.shares.mirrors.get(disk) != shares.mirrors.get(disk) {
                        track.share_anew(at);
                    }
                }
                if applied.shares.memory != shares.memory {
                    self.memory.share_anew(at);
                }
                applied.shares = shares.clone();
            }
            Action::Favour(disk) => {
                applied.favoured.push(disk.clone());
                if let Some(track) = self.disks.get_mut(disk) {
                    track.start_over(at);
                }
            }
            Action::Throttle(percent) => {
                applied.throttle = *percent;
                applied.throttle_syncs = self.memory.last().map_or(0, |last| last.syncs);
                applied.changed = at;
                self.memory.forget_rates(at);
            }
            Action::WriteBlocking(disks) => {
                for disk in disks {
                    if let Some(track) = self.disks.get_mut(disk) {
                        track.block(at);
                    }
                }
                applied.write_blocking.extend(disks.iter().cloned());
                // RAM's rates beside mirrors that copy say little of its rates beside mirrors that only follow the
                // guest
                self.memory.share_anew(at);
            }
            Action::Postcopy => applied.end = Some(ControllerEnd::Postcopy),
            Action::GiveUp { code: TIMEOUT, .. } => applied.end = Some(ControllerEnd::TimedOut),
            Action::GiveUp { .. } => applied.end = Some(ControllerEnd::GaveUp),
        }
    }
}
