//! The guest, its disks and the link of a simulated migration.
//!
//! Pure.

/// The part of a guest that its migration depends on. Sizes are bytes, rates bytes per second.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GuestModel {
    /// The guest's memory.
    pub memory: f64,
    /// The part of the memory that is not zero.
    pub used: f64,
    /// The memory that the guest rewrites again and again.
    pub working_set: f64,
    /// The rate at which the guest rewrites its working set.
    pub dirty_rate: f64,
    /// The pauses of a guest that does not always dirty memory.
    pub bursts: Option<DirtyBursts>,
    /// The guest's disks.
    pub disks: Vec<DiskModel>,
}

/// Dirtying in turns with pauses, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DirtyBursts {
    /// The time in which the guest dirties memory.
    pub busy: f64,
    /// The pause that follows.
    pub idle: f64,
}

/// A disk of a guest. Sizes are bytes, rates bytes per second.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskModel {
    /// The disk's name.
    pub name: String,
    /// The bytes to copy.
    pub bytes: f64,
    /// The rate of the guest's writes.
    pub write_rate: f64,
}

/// The link between the two QEMUs, and the limits of the QEMUs themselves.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkModel {
    /// Bytes per second that the link carries.
    pub bandwidth: f64,
    /// Bytes per second that RAM can be sent at, whatever the link carries.
    pub memory_rate: f64,
    /// Bytes per second that the mirrors together can copy at.
    pub mirror_rate: f64,
    /// Milliseconds of a QMP command.
    pub round_trip: f64,
    /// Milliseconds that device state, its loading and the mirrors' end take.
    pub device_state: f64,
    /// QEMU can be told the bandwidth of the switchover (8.2).
    pub switchover_bandwidth: bool,
}
