//! The devices of a machine, as its guest finds them.
//!
//! Pure.

use super::{
    device_tree::{BusDevice, DeviceBus},
    disk_place::ADDRESSES,
};
use crate::qemu::reply::{PciBus, PciFunction, QomProperty};
use std::collections::BTreeMap;

/// The devices of one side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceTable {
    /// The devices with an id, by their ids.
    pub named: BTreeMap<String, DeviceFacts>,
    /// The number of devices without an id, by their type.
    pub unnamed: BTreeMap<String, usize>,
    /// The PCI functions of devices without an id, those of the machine itself among them: place, vendor and device.
    pub functions: BTreeMap<String, String>,
}

/// A device with an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The QOM type, such as `virtio-blk-pci`.
    pub kind: String,
    /// The address at which the guest finds the device, where that is known.
    pub place: Option<String>,
}

impl DeviceTable {
    /// Combines the children of `/machine/peripheral` and `/machine/peripheral-anon` with the root buses of PCI. A
    /// device behind a bridge, and one that is no PCI device, has no place yet: see [`DeviceTable::place_by`].
    pub fn new(named: &[QomProperty], unnamed: &[QomProperty], buses: &[PciBus]) -> Self {
        let mut devices = Self::default();
        for device in named {
            if let Some(kind) = device.child() {
                devices.named.insert(device.name.clone(), DeviceFacts { kind: kind.to_owned(), place: None });
            }
        }
        for kind in unnamed.iter().filter_map(QomProperty::child) {
            *devices.unnamed.entry(kind.to_owned()).or_default() += 1;
        }
        for function in buses.iter().flat_map(|bus| &bus.devices.0) {
            if function.qdev_id.is_empty() {
                let id = format!("{:04x}:{:04x}", function.id.vendor, function.id.device);
                devices.functions.insert(root_place(function), id);
            } else if let Some(device) = devices.named.get_mut(&function.qdev_id) {
                device.place = Some(root_place(function));
            }
        }
        devices
    }

    /// Whether a device has no place yet.
    pub fn is_unplaced(&self) -> bool {
        self.named.values().any(|device| device.place.is_none())
    }

    /// Gives the devices on this bus, and on all buses below, the places that they do not have yet.
    pub fn place_by(&mut self, bus: &DeviceBus) {
        for device in &bus.devices {
            if let Some(named) = self.named.get_mut(&device.id).filter(|named| named.place.is_none()) {
                named.place = Some(place(bus, device));
            }
            for below in &device.buses {
                self.place_by(below);
            }
        }
    }
}

/// The address of a function as `lspci` writes it.
fn root_place(function: &PciFunction) -> String {
    let PciFunction { bus, slot, function, .. } = function;
    format!("{bus:02x}:{slot:02x}.{function:x}")
}

/// The place of a device on a bus. The name of a bus counts and not the way to it, which the device above has.
fn place(bus: &DeviceBus, device: &BusDevice) -> String {
    let told = ADDRESSES.into_iter().filter_map(|name| Some((name, device.properties.get(name)?.trim_matches('"'))));
    let words = told.filter(|(_, value)| !value.is_empty()).map(|(name, value)| match (name, value.parse::<u64>()) {
        ("addr", _) => format!("/{value}"),
        ("iobase", Ok(port)) => format!(" iobase={port:#x}"),
        (name, _) => format!(" {name}={value}"),
    });
    format!("{}{}", bus.name, words.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::reply::TolerantList;
    use serde_json::json;

    #[test]
    fn a_device_is_found_where_the_guest_finds_it() {
        let list = |value| serde_json::from_value::<TolerantList<QomProperty>>(value).expect("a list").0;
        let named = list(json!([
            {"name": "type", "type": "string"},
            {"name": "r1", "type": "child<virtio-rng-pci>"},
            {"name": "deep", "type": "child<virtio-rng-pci>"},
        ]));
        let unnamed = list(json!([
            {"name": "type", "type": "string"},
            {"name": "device[0]", "type": "child<virtio-rng-pci>"},
            {"name": "device[1]", "type": "child<isa-debugcon>"},
            {"name": "device[2]", "type": "child<virtio-rng-pci>"},
        ]));
        let function = |bus: u64, slot: u64, id: &str| json!({"bus": bus, "slot": slot, "function": 2, "id": {"vendor": 0x8086, "device": 0x29}, "qdev_id": id});
        let mut bridge = function(0, 3, "");
        bridge["pci_bridge"] = json!({"devices": [function(1, 0, "deep")]});
        let buses = json!([{"bus": 0, "devices": [function(0, 31, ""), function(0, 2, "r1"), bridge]}]);
        let buses = serde_json::from_value::<TolerantList<PciBus>>(buses).expect("buses").0;
        let devices = DeviceTable::new(&named, &unnamed, &buses);
        let rng =
            |place: Option<&str>| DeviceFacts { kind: "virtio-rng-pci".to_owned(), place: place.map(str::to_owned) };
        assert_eq!(devices.named, [("r1".to_owned(), rng(Some("00:02.2"))), ("deep".to_owned(), rng(None))].into());
        assert!(devices.is_unplaced());
        assert_eq!(devices.unnamed, [("virtio-rng-pci".to_owned(), 2), ("isa-debugcon".to_owned(), 1)].into());
        let functions = ["00:03.2", "00:1f.2"].map(|place| (place.to_owned(), "8086:0029".to_owned()));
        assert_eq!(devices.functions, functions.into());
    }

    #[test]
    fn what_is_behind_a_bridge_or_on_another_bus_has_a_place_too() {
        let text = r#"bus: main-system-bus
  type System
  dev: i440FX-pcihost, id ""
    bus: pci.0
      type PCI
      dev: pcie-root-port, id "rp0"
        addr = 02.0
        bus: rp0
          type PCIE
          dev: virtio-rng-pci, id "deep"
            addr = 03.0
      dev: virtio-scsi-pci, id "s"
        addr = 04.0
        bus: virtio-bus
          type virtio-pci-bus
          dev: virtio-scsi-device, id ""
            bus: s.0
              type SCSI
              dev: scsi-hd, id "disk"
                drive = "n"
                channel = 0 (0x0)
                scsi-id = 0 (0x0)
                lun = 1 (0x1)
      dev: PIIX3, id ""
        addr = 01.0
        bus: isa.0
          type ISA
          dev: isa-debug-exit, id "exit"
            iobase = 1281 (0x501)
      dev: qemu-xhci, id "x"
        addr = 05.0
        bus: x.0
          type usb-bus
          dev: usb-mouse, id "chosen"
            port = ""
            addr 0.0, port 3, speed 480, name QEMU USB Mouse, attached
          dev: usb-kbd, id "given"
            port = "2.1"
            addr 0.0, port 2.1, speed 12, name QEMU USB Keyboard, attached
"#;
        let tree = crate::preflight::facts::device_tree::read(text).expect("a tree");
        let at = |place: Option<&str>| DeviceFacts { kind: String::new(), place: place.map(str::to_owned) };
        let ids = ["deep", "disk", "exit", "chosen", "given", "dimm"];
        let mut devices =
            DeviceTable { named: ids.map(|id| (id.to_owned(), at(None))).into(), ..DeviceTable::default() };
        devices.named.insert("s".to_owned(), at(Some("00:04.0")));
        devices.place_by(&tree);
        assert!(devices.is_unplaced());
        let places = [
            ("chosen", Some("x.0 port=3")),
            ("deep", Some("rp0/03.0")),
            ("dimm", None),
            ("disk", Some("s.0 channel=0 scsi-id=0 lun=1")),
            ("exit", Some("isa.0 iobase=0x501")),
            ("given", Some("x.0 port=2.1")),
            ("s", Some("00:04.0")),
        ];
        assert_eq!(devices.named, places.map(|(id, place)| (id.to_owned(), at(place))).into());
    }
}
