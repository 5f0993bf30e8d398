//! The virtqueues of a guest's disks, which tell whether requests that QEMU has taken complete.
//!
//! QEMU's statistics of disks count what is complete, so the rings are looked at. Only devices that QEMU itself serves
//! are asked about: the status of a ring that a vhost-user program or the kernel serves is had by stopping that ring.
//! `x-query-virtio-status` must never be sent, as 11.1.3 aborts at it.

use super::look::list;
use crate::qmp::{ExecuteError, QmpClient, QmpRequest};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// The types in QOM of the disks and controllers that QEMU serves.
const SERVED: [&str; 2] = ["virtio-blk-device", "virtio-scsi-device"];
/// The most devices that are looked at, and the most queues of each; QEMU reads on while fewer than eight commands
/// wait.
const DEVICES: usize = 16;
const QUEUES: u64 = 16;
const AT_ONCE: u64 = 4;

/// A virtqueue of a disk, or of a controller of disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct QueueLook {
    /// The path in QOM of the device.
    pub(super) device: String,
    pub(super) queue: u64,
    /// Requests that QEMU has taken from the ring and not answered.
    pub(super) in_flight: u64,
    /// Requests that QEMU has answered, from 0 to 65535 and over again.
    pub(super) answered: u64,
}

/// A virtio device.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VirtioDeviceLook {
    name: String,
    path: String,
}

/// The paths of the disks whose queues can be looked at; none where a build does not tell.
pub(super) async fn find(client: &QmpClient, patience: Duration) -> Vec<String> {
    let answer = client.start(QmpRequest::named("x-query-virtio"), patience).await.unwrap_or_default();
    let listed: Vec<VirtioDeviceLook> = list(&answer);
    let mut found = Vec::new();
    for device in listed.into_iter().filter(|device| ["virtio-blk", "virtio-scsi"].contains(&&*device.name)) {
        let request = QmpRequest::named("qom-get").with("path", device.path.clone()).with("property", "type");
        match client.start(request, patience).await {
            Ok(Value::String(kind)) if SERVED.contains(&&*kind) => found.push(device.path),
            Ok(_) | Err(ExecuteError::Refused { .. }) => {}
            Err(_) => return Vec::new(),
        }
        if found.len() == DEVICES {
            break;
        }
    }
    found
}

/// Looks at the queues of these devices. What is not answered is left out.
pub(super) async fn look(client: &QmpClient, devices: &[String], patience: Duration) -> Vec<QueueLook> {
    let mut found = Vec::new();
    for device in devices {
        let ask = |queue: u64| {
            let request = QmpRequest::named("x-query-virtio-queue-status").with("path", device.clone());
            (queue, client.start(request.with("queue", queue), patience))
        };
        let mut next = 0;
        'device: while next < QUEUES {
            let asked: Vec<_> = (next..next + AT_ONCE).map(ask).collect();
            for (queue, answer) in asked {
                match answer.await {
                    Ok(answer) => found.extend(queue_look(device, queue, &answer)),
                    // there is no such queue
                    Err(ExecuteError::Refused { .. }) => break 'device,
                    Err(_) => return found,
                }
            }
            next += AT_ONCE;
        }
    }
    found
}

fn queue_look(device: &str, queue: u64, answer: &Value) -> Option<QueueLook> {
    let number = |name: &str| answer.get(name).and_then(Value::as_u64);
    Some(QueueLook { device: device.to_owned(), queue, in_flight: number("inuse")?, answered: number("used-idx")? })
}
