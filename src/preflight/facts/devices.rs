//! The devices of a machine, as its guest finds them.
//!
//! Pure.

use super::disk_place::QomDevice;
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
    /// device behind a bridge, and one that is no PCI device, has no place yet.
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

    /// The ids of the devices whose place is not known yet.
    pub fn unplaced(&self) -> Vec<String> {
        self.named.iter().filter(|(_, device)| device.place.is_none()).map(|(id, _)| id.clone()).collect()
    }
}

/// The address of a function as `lspci` writes it.
fn root_place(function: &PciFunction) -> String {
    let PciFunction { bus, slot, function, .. } = function;
    format!("{bus:02x}:{slot:02x}.{function:x}")
}

/// The place of a device that is on no root bus of PCI. Only the last part of the bus's path in QOM is used: every
/// version of QEMU numbers the parts before it anew.
pub fn place(device: &QomDevice) -> Option<String> {
    let (_, bus) = device.bus.rsplit_once('/')?;
    let words = device.addresses.iter().map(|(name, value)| match *name {
        "addr" => format!("/{value}"),
        name => format!(" {name}={value}"),
    });
    Some(format!("{bus}{}", words.collect::<String>()))
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
        assert_eq!(devices.unplaced(), ["deep"]);
        assert_eq!(devices.unnamed, [("virtio-rng-pci".to_owned(), 2), ("isa-debugcon".to_owned(), 1)].into());
        let functions = ["00:03.2", "00:1f.2"].map(|place| (place.to_owned(), "8086:0029".to_owned()));
        assert_eq!(devices.functions, functions.into());
    }

    #[test]
    fn what_is_behind_a_bridge_or_on_another_bus_has_a_place_too() {
        let at = |bus: &str, addresses: &[(&'static str, &str)]| {
            let addresses = addresses.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            place(&QomDevice { bus: bus.to_owned(), addresses, ..QomDevice::default() })
        };
        assert_eq!(at("/machine/peripheral/rp0/rp0", &[("addr", "03.0")]).as_deref(), Some("rp0/03.0"));
        assert_eq!(at("/machine/unattached/device[2]/isa.0", &[]).as_deref(), Some("isa.0"));
        let disk = at("/machine/peripheral/s/s.0", &[("lun", "1"), ("scsi-id", "0")]);
        assert_eq!(disk.as_deref(), Some("s.0 lun=1 scsi-id=0"));
        assert_eq!(at("", &[]), None);
    }
}
