//! Convergence: one controller over disks and RAM that knows when to switch, when to push, and when to give up.
//!
//! Plain data in, plain data out: [`decide`] takes a [`Policy`], what was sampled so far ([`History`]) and the newest
//! [`Sample`], and gives a [`Decision`] with its reason. Every file of this room is pure: it must never read a clock, ask
//! QEMU or do anything, so that a recorded sequence of samples replays through it offline and always gives the same.

mod decision;
mod policy;
mod sample;
mod written;

pub use decision::{Action, Decision};
pub use policy::{DiskRung, Policy, RamRung, Schedule, Step, Then};
pub use sample::{MirrorSample, RamSample, Sample};
pub use written::{BUILT_IN, PolicyError};
