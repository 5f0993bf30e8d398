//! The sizes of the rings that the virtio devices of a machine have, and have room for.
//!
//! A device sends the size of each ring with its state. 11.1 refuses one that is larger than the room the device has
//! for it, and builds of QEMU differ in that room: in 10.0.13 it is 1024 for each ring, whatever the device's
//! properties say. `x-query-virtio-status` must never be sent, as 11.1.3 aborts at it; what is asked here answers on
//! all versions, also while a migration is waited for.

use super::qom::known;
use crate::qemu::{Process, ProcessError};
use qapi::qmp;

/// A virtio device with its rings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtioDevice {
    /// The path in QOM of the virtio part of the device.
    pub path: String,
    /// The kind, such as `virtio-blk`.
    pub kind: String,
    /// The ring of each queue.
    pub rings: Vec<RingSize>,
}

/// The size of a ring, in entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSize {
    /// The present size: the one that the guest's driver chose, or else the room.
    pub now: u64,
    /// The room, which is the size after a reset.
    pub room: u64,
}

/// No device has more queues.
const MOST_QUEUES: u16 = 1024;

/// Asks one side. The list is empty where a build does not tell.
///
/// # Errors
/// QEMU does not answer.
pub async fn gather(process: &Process) -> Result<Vec<VirtioDevice>, ProcessError> {
    let listed = known(process.ask(&qmp::x_query_virtio {})).await?.unwrap_or_default();
    let mut devices: Vec<VirtioDevice> = Vec::new();
    for device in listed.0 {
        let rings = rings(process, &device.path).await?;
        devices.push(VirtioDevice { path: device.path, kind: device.name, rings });
    }
    Ok(devices)
}

/// The rings of a device: queues are asked for in growing rounds, until QEMU says that there is no such queue. Most
/// devices have one to three.
async fn rings(process: &Process, path: &str) -> Result<Vec<RingSize>, ProcessError> {
    let ask = |queue| known(process.ask(&qmp::x_query_virtio_queue_status { path: path.to_owned(), queue }));
    let (mut rings, mut next, mut count) = (Vec::new(), 0, 4);
    while next < MOST_QUEUES {
        // every query of a round is sent before the first answer is awaited
        let asked: Vec<_> = (next..next + count).map(ask).collect();
        let mut is_last = false;
        for answer in asked {
            match answer.await? {
                Some(queue) => rings.push(RingSize { now: queue.vring_num, room: queue.vring_num_default }),
                None => is_last = true,
            }
        }
        if is_last {
            break;
        }
        (next, count) = (next + count, count * 2);
    }
    Ok(rings)
}
