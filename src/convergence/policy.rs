//! What may be done so that a migration converges, and in which order.
//!
//! Pure.

use crate::quantity::Bytes;
use std::time::Duration;

/// What may be done for RAM that does not converge, from the mildest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskRung {
    /// Give it more of the bandwidth.
    Bandwidth,
    /// Make the guest's writes wait for the destination.
    WriteBlocking,
}

/// What may be done so that a migration converges.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Decide and report, and change nothing beyond what the user set.
    pub observe: bool,
    /// The blackout that RAM's tail is let take while it converges by itself.
    pub first: Duration,
    /// The share of the budget by which a blackout may be foreseen to exceed it and the guest still be handed over.
    pub slack: f64,
    /// What device state is taken to need, before it is sent: nothing measures it earlier.
    pub device_state: Duration,
    /// How long RAM may be foreseen to need yet, before more is done than to wait.
    pub patience: Duration,
    /// The same as a share of the time since RAM was started: the longer of the two counts.
    pub patience_share: f64,
    /// How many seconds a second of blackout must save before the downtime limit is raised for it.
    pub worth: f64,
    /// How long nothing may improve after the last rung, before it is given up.
    pub give_up: Duration,
    /// The rungs for RAM.
    pub ram: Vec<RamRung>,
    /// The rungs for disks.
    pub disks: Vec<DiskRung>,
    /// The most that vCPUs are throttled by, per cent.
    pub throttle_max: u8,
    /// The longest blackout of a true stop-and-copy.
    pub stop_and_copy: Duration,
    /// Whether RAM's first pass may overlap the mirrors.
    pub overlap: bool,
    /// The cache of `xbzrle`, where it is wanted.
    pub xbzrle: Option<Bytes>,
    /// A published schedule, in place of the rungs for RAM.
    pub schedule: Option<Schedule>,
}

/// A schedule by time or passes, as others have published them.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// How often it is looked at.
    pub poll: Duration,
    /// QEMU's auto-converge with its own steps.
    pub auto_converge: bool,
    /// The steps, in order; at most one is taken at each look.
    pub steps: Vec<Step>,
}

/// A step of a schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Not before so many passes.
    pub passes: u64,
    /// Not before this time from RAM's start.
    pub after: Duration,
    /// Not before this time for each GiB of RAM and disks, from RAM's start.
    pub after_per_gib: Duration,
    /// The downtime limit, as a share of the budget; `None` gives up.
    pub downtime: Option<f64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            name: "converge".to_owned(),
            observe: false,
            first: Duration::from_millis(10),
            slack: 0.2,
            device_state: Duration::from_millis(5),
            patience: Duration::from_secs(3),
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
