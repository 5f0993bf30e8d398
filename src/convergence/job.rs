//! The job of the controller: limits that the user set, sizes, and what QEMU can do.
//!
//! Pure.

use super::{DiskRung, Policy};
use crate::quantity::Rate;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The migration that the controller has to bring to an end, and the limits that it must keep.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConvergenceJob {
    /// The blackout budget.
    pub budget: Duration,
    /// The budget is held as it stands, without the policy's slack.
    pub strict: bool,
    /// The ceiling of RAM and all mirrors together on the wire.
    pub ceiling: Option<Rate>,
    /// The ceiling of all mirrors together.
    pub disk_ceiling: Option<Rate>,
    /// The time that the migration may take until the guest is stopped.
    pub timeout: Option<Duration>,
    /// The guest's memory, bytes.
    pub memory: u64,
    /// The virtual size of each of the guest's disks, bytes: only published schedules count them.
    pub disks: Vec<u64>,
    /// The bytes that the sender's buffers hold while RAM is sent as fast as the link carries it: the last of RAM
    /// comes after them.
    pub buffered: u64,
    /// The rate at which the guest was seen to dirty memory before, bytes per second, where that was measured.
    pub dirty_rate: Option<f64>,
    /// The commands that the controller may count on.
    pub abilities: Abilities,
}

/// The commands that QEMU takes in this run and that the policy allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// A mirror can be switched to write-blocking (QEMU 8.2).
    pub write_blocking: bool,
    /// The guest can be throttled: the capability is on.
    pub throttle: bool,
    /// Postcopy can be started: the capability is on.
    pub postcopy: bool,
    /// RAM can be sent while mirrors copy. Multifd rules that out, since its channels cannot be held back.
    pub overlap: bool,
    /// QEMU can be told the bandwidth of the switchover (8.2): it gets the ceiling, if there is one.
    pub switchover_bandwidth: bool,
}

/// The commands that QEMU and the user's settings allow, whatever the policy is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildAbilities {
    /// See [`Abilities::write_blocking`].
    pub write_blocking: bool,
    /// QEMU has a way to throttle the guest at the controller's word.
    pub throttle: bool,
    /// See [`Abilities::overlap`].
    pub overlap: bool,
    /// See [`Abilities::switchover_bandwidth`].
    pub switchover_bandwidth: bool,
}

impl BuildAbilities {
    /// The commands that the controller may count on under a policy. A policy that only observes reports what it would
    /// do, throttling included.
    pub fn under(self, policy: &Policy) -> Abilities {
        let throttles_itself = policy.schedule.as_ref().is_some_and(|schedule| schedule.auto_converge);
        Abilities {
            write_blocking: self.write_blocking && policy.disks.contains(&DiskRung::WriteBlocking) && !policy.observe,
            throttle: policy.observe || throttles_itself || (policy.may_throttle() && self.throttle),
            postcopy: policy.may_postcopy(),
            overlap: self.overlap && !policy.observe,
            switchover_bandwidth: self.switchover_bandwidth,
        }
    }
}
