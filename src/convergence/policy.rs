//! What may be done so that a migration converges, and in which order.
//!
//! Pure.

use super::policy_file;
use crate::quantity::Bytes;
use serde::Deserialize;
use std::time::Duration;

/// What may be done for RAM that does not converge, from the mildest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RamRung {
    /// Raise the downtime limit, as far as the predicted blackout stays within the budget.
    Downtime,
    /// Throttle the guest's vCPUs.
    Throttle,
    /// Let the guest go on at the destination before all its pages are there.
    Postcopy,
    /// Stop the guest for as long as the rest takes, if the policy allows that.
    StopAndCopy,
}

/// What may be done for a mirror that does not catch up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskRung {
    /// Give it more of the bandwidth.
    Bandwidth,
    /// Make the guest's writes wait for the destination.
    WriteBlocking,
}

/// What may be done so that a migration converges. `docs/policies.md` has every field as it is written in a file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// Its name.
    #[serde(default = "policy_file::unnamed")]
    pub name: String,
    /// Decide and report, and change nothing beyond what the user set.
    pub observe: bool,
    /// The blackout that RAM's tail is let take while it converges by itself.
    #[serde(deserialize_with = "policy_file::duration")]
    pub first: Duration,
    /// The same for a guest that keeps dirtying a notable part of what is sent, where the budget leaves so much.
    #[serde(deserialize_with = "policy_file::duration")]
    pub busy: Duration,
    /// The share of the budget by which a blackout may be foreseen to exceed it and the guest still be handed over.
    pub slack: f64,
    /// What device state is taken to need, before it is sent: nothing measures it earlier.
    #[serde(deserialize_with = "policy_file::duration")]
    pub device_state: Duration,
    /// How long RAM may be foreseen to need yet, before more is done than to wait.
    #[serde(deserialize_with = "policy_file::duration")]
    pub patience: Duration,
    /// The same as a share of the time since RAM was started: the longer of the two counts.
    pub patience_share: f64,
    /// How many seconds a second of blackout must save before the downtime limit is raised for it.
    pub worth: f64,
    /// How long nothing may improve after the last rung, before it is given up.
    #[serde(deserialize_with = "policy_file::duration")]
    pub give_up: Duration,
    /// The rungs for RAM.
    pub ram: Vec<RamRung>,
    /// The rungs for disks.
    pub disks: Vec<DiskRung>,
    /// The most that vCPUs are throttled by, per cent.
    pub throttle_max: u8,
    /// The longest blackout of a true stop-and-copy.
    #[serde(deserialize_with = "policy_file::duration")]
    pub stop_and_copy: Duration,
    /// Whether RAM's first pass may overlap the mirrors.
    pub overlap: bool,
    /// The cache of `xbzrle`, where it is wanted.
    #[serde(deserialize_with = "policy_file::size")]
    pub xbzrle: Option<Bytes>,
    /// A published schedule, in place of the rungs for RAM.
    pub schedule: Option<PublishedSchedule>,
}

/// A schedule by time or passes, as others have published them: a list of steps, of which at most the next one is taken at
/// each look. Times count from the begin of the migration, disks included.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PublishedSchedule {
    /// How often it is looked at.
    #[serde(deserialize_with = "policy_file::duration")]
    pub poll: Duration,
    /// QEMU's auto-converge with its own steps, up to the policy's `throttle_max`.
    #[serde(default)]
    pub auto_converge: bool,
    /// The first downtime limit.
    #[serde(deserialize_with = "policy_file::duration")]
    pub downtime: Duration,
    /// A step is taken only at a look that finds another pass begun.
    #[serde(default)]
    pub at_new_pass: bool,
    /// Not before this time after the step before.
    #[serde(default, deserialize_with = "policy_file::duration")]
    pub cooldown: Duration,
    /// How many GiB RAM, and each disk, count for at least where a time is for each GiB.
    #[serde(default)]
    pub least_gib: u64,
    /// Give up after this time for each GiB of RAM and disks, whatever step it is at; zero is never.
    #[serde(default, deserialize_with = "policy_file::duration")]
    pub give_up_per_gib: Duration,
    /// The steps, in order.
    #[serde(default)]
    pub steps: Vec<ScheduleStep>,
}

/// A step of a schedule: all its conditions must be met.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "policy_file::WrittenStep")]
pub struct ScheduleStep {
    /// Not before so many passes have ended.
    pub passes: u64,
    /// Not before this time.
    pub after: Duration,
    /// Not before this time for each GiB of RAM and disks.
    pub after_per_gib: Duration,
    /// What is done.
    pub then: StepAction,
}

/// What a step of a schedule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepAction {
    /// Sets the downtime limit; never above the user's budget.
    Downtime(Duration),
    /// Starts postcopy.
    Postcopy,
    /// Gives up and rolls back.
    GiveUp,
}

impl PublishedSchedule {
    /// The longest blackout that its steps allow.
    pub fn longest(&self) -> Duration {
        let limits = self.steps.iter().filter_map(|step| match step.then {
            StepAction::Downtime(limit) => Some(limit),
            StepAction::Postcopy | StepAction::GiveUp => None,
        });
        limits.fold(self.downtime, Duration::max)
    }
}

impl Policy {
    /// The budget that belongs to it where the user gives none: that of a schedule is in its steps.
    pub fn budget(&self) -> Option<Duration> {
        self.schedule.as_ref().map(PublishedSchedule::longest)
    }

    /// The downtime limit to begin with, where the budget leaves so much: an idle guest must not pay for a generous budget.
    pub fn first_limit(&self, budget: Duration) -> Duration {
        match &self.schedule {
            Some(schedule) => schedule.downtime.min(budget),
            None if self.observe => budget,
            None => self.first.min(budget),
        }
    }

    /// Whether it may come to postcopy.
    pub fn may_postcopy(&self) -> bool {
        let stepped =
            |schedule: &PublishedSchedule| schedule.steps.iter().any(|step| step.then == StepAction::Postcopy);
        !self.observe && self.schedule.as_ref().map_or_else(|| self.ram.contains(&RamRung::Postcopy), stepped)
    }

    /// Whether it may come to throttle the guest by our own hand.
    pub fn may_throttle(&self) -> bool {
        !self.observe && self.schedule.is_none() && self.ram.contains(&RamRung::Throttle)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            name: "converge".to_owned(),
            observe: false,
            first: Duration::from_millis(10),
            busy: Duration::from_millis(40),
            slack: 0.2,
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
