//! Policies: the actions that are allowed so that a migration converges, and their order.
//!
//! Pure.

use super::{
    schedule_step::{ScheduleStep, StepAction},
    times,
};
use crate::quantity::{Bytes, duration};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The least time by which a blackout may exceed its budget, where it may exceed it at all: less than the going back
/// itself costs.
const LEAST_SLACK: Duration = Duration::from_millis(50);

/// A rung of the ladder for RAM that does not converge; the mildest comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RamRung {
    /// Raise the downtime limit, as far as the predicted blackout stays within the budget.
    Downtime,
    /// Throttle the guest's vCPUs.
    Throttle,
    /// Let the guest resume on the destination before all its pages are there.
    Postcopy,
    /// Stop the guest for as long as the rest of RAM takes, if the policy allows that.
    StopAndCopy,
}

/// A rung of the ladder for a mirror that does not catch up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DiskRung {
    /// Give the mirror more of the bandwidth.
    Bandwidth,
    /// Make the guest's writes wait for the mirror.
    WriteBlocking,
}

/// The actions that are allowed so that a migration converges. `docs/policies.md` shows how each field is written in a
/// file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Policy {
    /// The policy's name.
    #[serde(default = "unnamed")]
    pub name: String,
    /// Decide and report only: nothing changes beyond the user's own settings.
    pub observe: bool,
    /// The part of the blackout that RAM's tail may take while RAM converges by itself.
    #[serde(with = "duration")]
    pub first: Duration,
    /// The same for a busy guest, which dirties a notable part of the bytes that are sent, where the budget leaves so
    /// much.
    #[serde(with = "duration")]
    pub busy: Duration,
    /// The share of the budget by which the estimate of a blackout may exceed it, and the guest still be handed over:
    /// to go back costs a pause, too, and all that was copied. At least 50 ms may be exceeded, unless this is 0.
    pub slack: f64,
    /// The time that device state is expected to take: nothing measures it before it is sent.
    #[serde(with = "duration")]
    pub device_state: Duration,
    /// The time that RAM may need yet by its estimate before a rung is climbed.
    #[serde(with = "duration")]
    pub patience: Duration,
    /// The same as a share of the time since RAM was started; the longer of the two counts.
    pub patience_share: f64,
    /// The seconds of migration that each further second of blackout must save for the downtime limit to be raised.
    pub worth: f64,
    /// The time without any improvement after the last rung before the controller gives up.
    #[serde(with = "duration")]
    pub give_up: Duration,
    /// The rungs for RAM, in the order in which they are tried.
    pub ram: Vec<RamRung>,
    /// The rungs for disks, in the order in which they are tried.
    pub disks: Vec<DiskRung>,
    /// The strongest throttle of the vCPUs, per cent.
    pub throttle_max: u8,
    /// The longest blackout of the rung [`RamRung::StopAndCopy`].
    #[serde(with = "duration")]
    pub stop_and_copy: Duration,
    /// Whether RAM's first pass may run beside the mirrors.
    pub overlap: bool,
    /// The cache of `xbzrle`, where that is to be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xbzrle: Option<Bytes>,
    /// A published schedule, in place of the rungs for RAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<PublishedSchedule>,
}

/// A schedule by time or passes, as nova, vdsm and KubeVirt have published them: a list of steps, of which each look
/// takes at most the next one. Times count from the begin of the migration, disks included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct PublishedSchedule {
    /// The time between two looks.
    #[serde(with = "duration")]
    pub poll: Duration,
    /// QEMU's auto-converge throttles by QEMU's own steps, up to the policy's `throttle_max`.
    #[serde(default)]
    pub auto_converge: bool,
    /// The first downtime limit.
    #[serde(with = "duration")]
    pub downtime: Duration,
    /// A step is taken only at a look that finds a new pass begun.
    #[serde(default)]
    pub at_new_pass: bool,
    /// The least time between two steps.
    #[serde(default, with = "duration")]
    pub cooldown: Duration,
    /// The least size that RAM and each disk count for, in times per GiB.
    #[serde(default)]
    pub least_gib: u64,
    /// The controller gives up after this time for each GiB of RAM and disks; zero is never.
    #[serde(default, with = "duration")]
    pub give_up_per_gib: Duration,
    /// The steps, in order.
    #[serde(default)]
    pub steps: Vec<ScheduleStep>,
}

impl PublishedSchedule {
    /// The longest blackout that the steps allow.
    pub fn longest(&self) -> Duration {
        let limits = self.steps.iter().filter_map(|step| match step.then {
            StepAction::Downtime(limit) => Some(limit),
            StepAction::Postcopy | StepAction::GiveUp => None,
        });
        limits.fold(self.downtime, Duration::max)
    }
}

impl Policy {
    /// The budget of a published schedule, which its steps imply; `None` for any other policy.
    pub fn budget(&self) -> Option<Duration> {
        self.schedule.as_ref().map(PublishedSchedule::longest)
    }

    /// The downtime limit to begin with, within the budget: an idle guest must not pay for a generous budget.
    pub fn first_limit(&self, budget: Duration) -> Duration {
        match &self.schedule {
            Some(schedule) => schedule.downtime.min(budget),
            None if self.observe => budget,
            None => self.first.min(budget),
        }
    }

    /// The longest blackout that a guest which stands still already is handed over with: the budget and the slack.
    /// `strict` leaves the slack out.
    pub fn longest_blackout(&self, budget: Duration, strict: bool) -> Duration {
        match strict || self.slack == 0.0 {
            true => budget,
            false => budget.saturating_add(times(budget, self.slack).max(LEAST_SLACK)),
        }
    }

    /// Whether the policy may start postcopy.
    pub fn may_postcopy(&self) -> bool {
        let stepped =
            |schedule: &PublishedSchedule| schedule.steps.iter().any(|step| step.then == StepAction::Postcopy);
        !self.observe && self.schedule.as_ref().map_or_else(|| self.ram.contains(&RamRung::Postcopy), stepped)
    }

    /// Whether the policy may have the controller throttle the guest. A schedule leaves that to QEMU's auto-converge.
    pub fn may_throttle(&self) -> bool {
        !self.observe && self.schedule.is_none() && self.ram.contains(&RamRung::Throttle)
    }
}

/// The name of a policy whose file gives none.
fn unnamed() -> String {
    "unnamed".to_owned()
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            name: "converge".to_owned(),
            observe: false,
            first: Duration::from_millis(10),
            busy: Duration::from_millis(40),
            slack: 0.5,
            device_state: Duration::from_millis(5),
            patience: Duration::from_secs(2),
            patience_share: 0.25,
            worth: 40.0,
            give_up: Duration::from_secs(30),
            ram: vec![RamRung::Downtime, RamRung::Throttle],
            disks: vec![DiskRung::Bandwidth, DiskRung::WriteBlocking],
            throttle_max: 99,
            stop_and_copy: Duration::ZERO,
            overlap: true,
            xbzrle: None,
            schedule: None,
        }
    }
}
