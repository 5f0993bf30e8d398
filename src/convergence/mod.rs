//! Convergence: one controller over disks and RAM that knows when to switch, when to push, and when to give up.
//!
//! Plain data in, plain data out: [`decide`] takes a [`Policy`], what was sampled so far ([`History`]) and the newest
//! [`MigrationSample`], and gives a [`Decision`] with its reason. Every file of this room is pure: it must never read a clock, ask
//! QEMU or do anything, so that a recorded sequence of samples replays through it offline and always gives the same.

use std::time::Duration;

mod bandwidth;
mod decide;
mod decision;
mod disks;
mod estimate;
mod history;
mod memory;
mod policy;
mod policy_file;
pub mod predict;
mod sample;
mod schedule;
pub mod simulate;

pub use bandwidth::HELD;
pub use decide::{decide, may_hand_over, predicted_blackout};
pub use decision::{Action, Decision};
pub use estimate::{DiskEstimate, MemoryEstimate};
pub use history::{Abilities, BandwidthShares, ConvergenceJob, History, RunEstimates};
pub use policy::{DiskRung, Policy, PublishedSchedule, RamRung, ScheduleStep, StepAction};
pub use policy_file::{BUILT_IN, PolicyError};
pub use sample::{MigrationSample, MirrorSample, RamSample};

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod scenarios;

/// The room's own unit of time.
fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
