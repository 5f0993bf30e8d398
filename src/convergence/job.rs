//! The job of the controller: limits that the user set, sizes, and what QEMU can do.
//!
//! Pure.

use crate::quantity::Rate;
use std::time::Duration;

/// The migration that the controller has to bring to an end, and the limits that it must keep.
#[derive(Debug, Clone, Default, PartialEq)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
