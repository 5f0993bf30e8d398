//! Convergence: one controller over disks and RAM that knows when to switch, when to push, and when to give up.
//!
//! Plain data in, plain data out: [`decide`] takes a [`Policy`], what was sampled so far ([`History`]) and the newest
//! [`Sample`], and gives a [`Decision`] with its reason. Every file of this room is pure: it must never read a clock, ask
//! QEMU or do anything, so that a recorded sequence of samples replays through it offline and always gives the same.

use std::time::Duration;

mod decide;
mod decision;
mod disks;
mod estimate;
mod history;
mod memory;
mod policy;
pub mod predict;
mod sample;
mod schedule;
mod share;
pub mod simulate;
mod written;

pub use decide::{decide, may_hand_over, predicted_blackout};
pub use decision::{Action, Decision};
pub use estimate::{Disk, Memory};
pub use history::{Can, Estimates, History, Share, Task};
pub use policy::{DiskRung, Policy, RamRung, Schedule, Step, Then};
pub use sample::{MirrorSample, RamSample, Sample};
pub use share::HELD;
pub use written::{BUILT_IN, PolicyError};

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
