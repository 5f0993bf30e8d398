//! A healthy machine.

use crate::{
    preflight::facts::{
        cpu::{CpuFacts, CpuidRegister, IDENTITY},
        device_tree::{BusDevice, DeviceBus},
        devices::{DeviceFacts, DeviceTable},
        machine::MachineFacts,
        possible_cpus::CpuPlace,
        ram_blocks::RamBlock,
        virtqueues::{RingSize, VirtioDevice},
    },
    qmp::QemuVersion,
};
use std::sync::Arc;

pub(super) fn machine() -> MachineFacts {
    let word = |leaf, register: &str| CpuidRegister { leaf, subleaf: None, register: register.to_owned() };
    let cpu = CpuFacts {
        path: "/machine/unattached/device[0]".to_owned(),
        kind: None,
        identity: IDENTITY.map(|property| (property, "1".to_owned())).into(),
        features: Some([(word(1, "EDX"), 0xf)].into()),
        lacks: Vec::new(),
    };
    let device = |kind: &str, place: &str| DeviceFacts { kind: kind.to_owned(), place: Some(place.to_owned()) };
    MachineFacts {
        version: QemuVersion { major: 10, minor: 0, micro: 13 },
        kind: Some("pc-i440fx-10.0-machine".to_owned()),
        cpus: 1,
        cpu: Some(cpu),
        ram_blocks: Some([("pc.ram".to_owned(), RamBlock { used: 512, total: 512, page: 4096 })].into()),
        devices: DeviceTable {
            named: [("net0".to_owned(), device("virtio-net-pci", "00:02.0"))].into(),
            ..DeviceTable::default()
        },
        device_tree: Some(device_tree("128")),
        properties: [("hpet".to_owned(), "true".to_owned())].into(),
        possible_cpus: Some(
            [("core-id=0".to_owned(), CpuPlace { count: 1, is_present: true, is_unnamed_device: false })].into(),
        ),
        package: String::new(),
        virtio: vec![VirtioDevice {
            path: "/machine/peripheral/net0/virtio-backend".to_owned(),
            kind: "virtio-net".to_owned(),
            rings: vec![RingSize { now: 256, room: 256 }],
        }],
    }
}

/// A bus with one device, whose properties have all the same value.
pub(super) fn device_tree(value: &str) -> Arc<DeviceBus> {
    let properties = ["num-queues", "queue-size", "werror"].map(|name| (name.to_owned(), value.to_owned()));
    let device =
        BusDevice { kind: "virtio-blk-device".to_owned(), properties: properties.into(), ..BusDevice::default() };
    Arc::new(DeviceBus { name: "virtio-bus".to_owned(), kind: "virtio-pci-bus".to_owned(), devices: vec![device] })
}
