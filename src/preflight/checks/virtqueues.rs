//! The rings of virtio devices: the destination's device must have room for each ring of the source's.
//!
//! Pure. QEMU sends the size of every ring with the state of its device, also of a ring that no driver uses. 11.1
//! refuses a ring that is larger than its room; what an earlier version does with one is not told by any answer.

use super::{counterparts::pair_up, finding::Finding};
use crate::{
    codes::FindingCode,
    preflight::facts::{
        SideFacts,
        devices::DeviceTable,
        virtqueues::{RingSize, VirtioDevice},
    },
};

pub(super) fn run(source: &SideFacts, destination: &SideFacts) -> Vec<Finding> {
    let (source, destination) = (&source.machine, &destination.machine);
    let mut findings = Vec::new();
    for (device, other) in pairs(&source.virtio, &destination.virtio, &source.devices, &destination.devices) {
        findings.extend(judge(device, other));
    }
    findings
}

/// The id of a device; `None` for one without.
fn id(device: &VirtioDevice) -> Option<&str> {
    device.path.strip_prefix("/machine/peripheral/")?.split('/').next()
}

/// Each device with its counterpart, which has the same path, or an id that is at the same place, or its turn among
/// those of its kind that are left.
fn pairs<'a>(
    source: &'a [VirtioDevice],
    destination: &'a [VirtioDevice],
    source_devices: &DeviceTable,
    destination_devices: &DeviceTable,
) -> Vec<(&'a VirtioDevice, &'a VirtioDevice)> {
    let place = |devices: &DeviceTable, device: &VirtioDevice| {
        id(device).and_then(|id| devices.named.get(id)).and_then(|found| found.place.clone())
    };
    let same_kind = |device: &VirtioDevice, other: &VirtioDevice| device.kind == other.kind;
    let same_path = |device: &VirtioDevice, other: &VirtioDevice| same_kind(device, other) && device.path == other.path;
    let same_place = |device: &VirtioDevice, other: &VirtioDevice| {
        let place_of = place(source_devices, device);
        same_kind(device, other) && place_of.is_some() && place_of == place(destination_devices, other)
    };
    pair_up(source, destination, [&same_path, &same_place, &same_kind]).pairs
}

/// The finding about one device.
fn judge(device: &VirtioDevice, other: &VirtioDevice) -> Option<Finding> {
    let rings = || device.rings.iter().zip(&other.rings).enumerate();
    let size = |ring: &RingSize, is_now: bool| if is_now { ring.now } else { ring.room };
    let larger = |is_now: bool| -> Vec<(usize, u64, u64)> {
        let larger = rings().filter(|(_, (ring, other))| size(ring, is_now) > other.room);
        larger.map(|(queue, (ring, other))| (queue, size(ring, is_now), other.room)).collect()
    };
    let (now, after_reset) = (larger(true), larger(false));
    let is_now = !now.is_empty();
    let found = if is_now { now } else { after_reset };
    let (queue, entries, room) = *found.first()?;
    let subject = id(device).unwrap_or(&device.path);
    let more = match found.len() - 1 {
        0 => String::new(),
        1 => " (and one more queue)".to_owned(),
        more => format!(" (and {more} more queues)"),
    };
    let when = match is_now {
        true => "",
        false => " once the guest resets the device, as a reboot does",
    };
    let message = format!(
        "queue {queue}{more} of the source's {} has {entries} entries{when}, and the destination's has room for {room}: \
         QEMU 11.1 refuses such a state, after everything was copied",
        device.kind
    );
    let most = device.rings.iter().map(|ring| size(ring, is_now)).max().unwrap_or(entries);
    let finding = Finding::new(FindingCode::VirtqueueSize, subject, message).with_remedy(remedy(device, most));
    Some(if is_now { finding } else { finding.into_warning() })
}

fn remedy(device: &VirtioDevice, entries: u64) -> String {
    let property = match device.kind.as_str() {
        "virtio-blk" => "queue-size",
        "virtio-scsi" => "virtqueue_size",
        kind => {
            return format!(
                "use a destination QEMU whose {kind} has as much room, as the source's build has: no property of the \
                 device changes the room"
            );
        }
    };
    format!("start the destination with {property}={entries} for this device")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{codes::Severity, preflight::facts::devices::DeviceFacts};

    fn device(path: &str, kind: &str, rings: &[(u64, u64)]) -> VirtioDevice {
        let rings = rings.iter().map(|(now, room)| RingSize { now: *now, room: *room }).collect();
        VirtioDevice { path: format!("/machine/{path}/virtio-backend"), kind: kind.to_owned(), rings }
    }

    #[test]
    fn a_ring_must_have_room() {
        for (source, destination, wanted) in [
            ((1024, 1024), (256, 256), Some(Severity::Blocker)),
            ((256, 1024), (256, 256), Some(Severity::Warning)),
            ((256, 256), (256, 256), None),
            ((256, 256), (1024, 1024), None),
            ((1024, 1024), (1024, 1024), None),
            // The destination's ring has not its room's size either.
            ((256, 256), (64, 256), None),
        ] {
            let (one, other) = (device("peripheral/d", "virtio-blk", &[(64, 64), source]), destination);
            let other = device("peripheral/d", "virtio-blk", &[(64, 64), other]);
            let found = judge(&one, &other);
            assert_eq!(found.as_ref().map(|finding| finding.severity), wanted, "{source:?} {destination:?}");
            let Some(finding) = found else { continue };
            assert_eq!(finding.subject, "d");
            let text = finding.to_string();
            assert!(text.contains("queue 1 of ") && text.contains("has room for 256"), "{text}");
            assert!(text.contains("1024 entries") && text.contains("queue-size=1024 "), "{text}");
        }
    }

    #[test]
    fn the_remedy_is_one_that_the_device_has() {
        for (kind, word) in [
            ("virtio-scsi", "virtqueue_size=1024 "),
            ("virtio-net", "no property"),
            ("virtio-balloon", "no property"),
            ("virtio-serial", "no property"),
        ] {
            let found = judge(&device("a", kind, &[(1024, 1024); 3]), &device("a", kind, &[(64, 64); 3]));
            let text = found.expect("a finding").to_string();
            assert!(text.contains(word) && text.contains("queue 0 (and 2 more queues)"), "{text}");
        }
    }

    #[test]
    fn a_device_is_found_by_its_path_its_place_or_its_turn() {
        let at = |devices: &[(&str, &str)]| DeviceTable {
            named: devices
                .iter()
                .map(|(id, place)| {
                    let kind = "virtio-net-pci".to_owned();
                    ((*id).to_owned(), DeviceFacts { kind, place: Some((*place).to_owned()) })
                })
                .collect(),
            ..DeviceTable::default()
        };
        let large = |path: &str| device(path, "virtio-net", &[(1024, 1024)]);
        let small = |path: &str, room: u64| device(path, "virtio-net", &[(room, room)]);
        let source = [large("peripheral/a"), large("peripheral/b"), large("peripheral-anon/device[0]")];
        let destination = [small("peripheral-anon/device[3]", 3), small("peripheral/c", 2), small("peripheral/a", 1)];
        let tables = (at(&[("a", "00:02.0"), ("b", "00:03.0")]), at(&[("a", "00:09.0"), ("c", "00:03.0")]));
        let found = pairs(&source, &destination, &tables.0, &tables.1);
        let rooms: Vec<_> = found.iter().map(|(one, other)| (id(one), other.rings[0].room)).collect();
        assert_eq!(rooms, [(Some("a"), 1), (Some("b"), 2), (None, 3)]);
        let scsi = [device("peripheral/a", "virtio-scsi", &[(1024, 1024)])];
        assert_eq!(pairs(&scsi, &destination, &tables.0, &tables.1), [], "another kind of device is no counterpart");
    }
}
