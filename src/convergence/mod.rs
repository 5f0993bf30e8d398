//! Convergence: one controller over disks and RAM that decides when QEMU may stop the guest, when to push, and when to
//! give up.
//!
//! Plain data in, plain data out: [`decide`] takes a [`Policy`], everything that was sampled so far ([`History`]) and
//! the newest [`MigrationSample`], and returns a [`Decision`] with its reason. Every file of this room is pure: none
//! may read a clock, ask QEMU or do anything, so that recorded samples replay offline and always lead to the same
//! decisions.

use std::time::Duration;

mod bandwidth;
mod budget;
mod decide;
mod decision;
mod disks;
mod estimate;
mod guest_model;
mod history;
mod job;
mod memory;
mod next_look;
mod policy;
mod policy_file;
pub mod predict;
mod replay;
mod round_trips;
mod sample;
mod schedule;
mod schedule_step;
mod shares;
pub mod simulate;
mod stage;

pub use budget::{OverBudget, PendingRest, keep_budget, predicted_blackout};
pub use decide::decide;
pub use decision::{Action, Decision};
pub use estimate::{DiskEstimate, MemoryEstimate};
pub use history::{History, RunEstimates};
pub use job::{Abilities, BuildAbilities, ConvergenceJob};
pub use policy::{DiskRung, Policy, PublishedSchedule, RamRung};
pub use policy_file::{BUILT_IN, PolicyError};
pub use replay::{BudgetQuestion, ControllerBegin, ControllerLook, ControllerNote, ControllerReplay};
pub use sample::{MigrationSample, MirrorSample, RamSample};
pub use schedule_step::{ScheduleStep, StepAction};
pub use shares::{BandwidthShares, MemoryShare};

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod scenarios;

/// Milliseconds, the unit of time of the room's formulas.
fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A multiple of a duration; the longest there is where the multiple is none.
fn times(duration: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(duration.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}
