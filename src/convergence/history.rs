//! What a run has to do, what was seen of it so far, and what was decided.
//!
//! Pure.

use super::{
    Action, Decision, MigrationSample, bandwidth,
    estimate::{DiskEstimate, DiskTrack, MemoryEstimate, MemoryTrack, SmoothedValue},
};
use crate::quantity::Rate;
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// The code of a migration that took longer than the user allows.
pub(super) const TIMEOUT: &str = "timeout";

/// What a migration has to do, and within which limits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConvergenceJob {
    /// The blackout budget.
    pub budget: Duration,
    /// The whole job's ceiling on the wire.
    pub ceiling: Option<Rate>,
    /// A ceiling for the mirrors together.
    pub disk_ceiling: Option<Rate>,
    /// How long it may take until the guest is stopped.
    pub timeout: Option<Duration>,
    /// The guest's memory, bytes.
    pub memory: u64,
    /// The guest's disks, bytes of virtual size each: only published schedules reckon with them.
    pub disks: Vec<u64>,
    /// What the sender's buffers hold, bytes, as long as RAM is sent as fast as the link carries it: the last of RAM comes
    /// after it.
    pub buffered: u64,
    /// What the guest was seen to dirty before, bytes per second, where that was measured.
    pub dirty_rate: Option<f64>,
    /// What QEMU can be told in this run.
    pub abilities: Abilities,
}

/// What QEMU can be told in this run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Switch a mirror to write-blocking (8.2), which the policy allows.
    pub write_blocking: bool,
    /// Throttle the guest: the capability is on.
    pub throttle: bool,
    /// Start postcopy: the capability is on.
    pub postcopy: bool,
    /// Send RAM while mirrors copy: it can be held back, which multifd cannot.
    pub overlap: bool,
    /// QEMU reckons with the bandwidth that it is told for the switchover (8.2): the ceiling, if there is one.
    pub switchover_bandwidth: bool,
}

/// What was seen and decided so far.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    pub(super) job: ConvergenceJob,
    pub(super) at: f64,
    pub(super) memory: MemoryTrack,
    pub(super) disks: BTreeMap<String, DiskTrack>,
    pub(super) round_trip: SmoothedValue,
    pub(super) applied: Applied,
}

/// What was decided so far, as it stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Applied {
    /// When RAM was started.
    pub(super) memory_since: Option<f64>,
    pub(super) downtime: Option<Duration>,
    /// RAM must not stop the guest yet, whatever remains of it.
    pub(super) held: bool,
    pub(super) throttle: u8,
    /// When something was last changed that must show before the next step.
    pub(super) changed: f64,
    /// The disks in write-blocking mode.
    pub(super) write_blocking: Vec<String>,
    pub(super) share: BandwidthShares,
    pub(super) postcopy: bool,
    pub(super) gave_up: bool,
    /// The user's timeout is over: who only observes gives up by it, too.
    pub(super) timed_out: bool,
    /// How many steps of a schedule were taken, when the last was, and how often QEMU had counted by then.
    pub(super) steps: usize,
    pub(super) stepped: (f64, u64),
    /// The disks that get more of the bandwidth than the others.
    pub(super) favoured: Vec<String>,
}

/// How the ceiling is shared out; `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BandwidthShares {
    /// For RAM.
    pub memory: Option<Rate>,
    /// For each mirror, by its disk.
    pub mirrors: BTreeMap<String, Option<Rate>>,
}

impl BandwidthShares {
    /// What a disk's mirror may copy in the background; None is no limit.
    pub fn mirror(&self, disk: &str) -> Option<Rate> {
        self.mirrors.get(disk).copied().flatten()
    }
}

/// What is known after the last sample.
#[derive(Debug, Clone, PartialEq)]
pub struct RunEstimates {
    /// RAM, once it is being sent.
    pub memory: Option<MemoryEstimate>,
    /// Every mirror, by its disk.
    pub disks: BTreeMap<String, DiskEstimate>,
}

impl History {
    /// Nothing seen yet. `disks` are the names of those that are going to be mirrored.
    pub fn new(job: ConvergenceJob, disks: impl IntoIterator<Item = String>) -> Self {
        let mut new = Self {
            job,
            at: 0.0,
            memory: MemoryTrack::default(),
            disks: BTreeMap::new(),
            round_trip: SmoothedValue::default(),
            applied: Applied::default(),
        };
        new.disks = disks.into_iter().map(|disk| (disk, DiskTrack::default())).collect();
        new.applied.share = bandwidth::share(&new);
        new
    }

    /// How the ceiling is shared out as things stand: RAM's part, and each mirror's.
    pub fn share(&self) -> &BandwidthShares {
        &self.applied.share
    }

    /// Whether the next look should come sooner than usual.
    pub fn is_pressing(&self) -> bool {
        bandwidth::is_pressing(self)
    }

    /// The downtime limit as it was last decided; None while QEMU has what it was set up with.
    pub fn downtime_limit(&self) -> Option<Duration> {
        self.applied.downtime
    }

    /// What is known.
    pub fn estimates(&self) -> RunEstimates {
        RunEstimates {
            memory: self.memory.estimate(),
            disks: self.disks.iter().map(|(disk, track)| (disk.clone(), track.estimate())).collect(),
        }
    }

    /// Takes in a sample, and what was decided on it.
    pub fn record(&mut self, sample: &MigrationSample, decision: &Decision) {
        *self = self.after(sample);
        for action in &decision.actions {
            self.note(action);
        }
    }

    /// Takes back what was decided and came to nothing, so that nothing waits for its effect: it is not asked for again.
    pub fn take_back(&mut self, action: &Action) {
        let abilities = &mut self.job.abilities;
        match action {
            Action::WriteBlocking(_) => abilities.write_blocking = false,
            Action::Throttle(_) => (abilities.throttle, self.applied.throttle) = (false, 0),
            Action::Postcopy => (abilities.postcopy, self.applied.postcopy) = (false, false),
            _ => {}
        }
    }

    /// As it is with one more sample.
    pub(super) fn after(&self, sample: &MigrationSample) -> Self {
        let mut next = self.clone();
        next.at = sample.at_ms.max(self.at);
        if sample.round_trip_ms > 0.0 {
            next.round_trip.add(sample.round_trip_ms);
        }
        if let Some(ram) = sample.ram {
            next.memory.add(next.at, ram);
        }
        for mirror in &sample.mirrors {
            next.disks.entry(mirror.disk.clone()).or_default().add(next.at, mirror);
        }
        let keeps_up = |track: &DiskTrack| track.estimate().ready && bandwidth::is_close(self, &track.estimate());
        for track in next.disks.values_mut().filter(|track| keeps_up(track)) {
            track.keeps_up(next.at);
        }
        next
    }

    pub(super) fn note(&mut self, action: &Action) {
        let at = self.at;
        let done = &mut self.applied;
        match action {
            Action::StartMemory => done.memory_since = Some(at),
            Action::DowntimeLimit(limit) => {
                done.downtime = Some(*limit);
                done.changed = at;
                if done.memory_since.is_some() && !done.held {
                    done.steps += 1;
                    done.stepped = (at, self.memory.last().map_or(0, |last| last.syncs));
                }
            }
            Action::ShareBandwidth(share) => {
                for (disk, track) in &mut self.disks {
                    if done.share.mirrors.get(disk) != share.mirrors.get(disk) {
                        track.share_anew(at);
                    }
                }
                if done.share.memory != share.memory {
                    self.memory.share_anew(at);
                }
                done.share = share.clone();
            }
            Action::Favour(disk) => {
                done.favoured.push(disk.clone());
                if let Some(track) = self.disks.get_mut(disk) {
                    track.start_over(at);
                }
            }
            Action::SwitchoverBandwidth(rate) => done.held = *rate == Some(bandwidth::NOTHING),
            Action::Throttle(percent) => {
                done.throttle = *percent;
                done.changed = at;
                self.memory.forget_rates(at);
            }
            Action::WriteBlocking(disks) => {
                for disk in disks {
                    if let Some(track) = self.disks.get_mut(disk) {
                        track.block(at);
                    }
                }
                done.write_blocking.extend(disks.iter().cloned());
                // what it sent beside them says little of what it sends alone
                self.memory.share_anew(at);
            }
            Action::Postcopy => done.postcopy = true,
            Action::GiveUp { code, .. } => {
                done.gave_up = true;
                done.timed_out |= *code == TIMEOUT;
            }
        }
    }
}
