//! The walk through QOM from devices to the machine: the bus and the address of each device on the way.
//!
//! All devices of one height are asked at once, so the walk takes two rounds for each bus in between. The walk must
//! send queries only, and none that could delay the guest.

use super::{
    disk_place::{self, DiskPlaces, QomDevice, SYSTEM_BUS},
    qom::{known, property},
};
use crate::qemu::{Process, ProcessError, reply::BlockDevice};
use qapi::qmp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// More buses than this lie between no disk and its machine.
const HEIGHT: usize = 32;

/// Asks for the places of all disk drives.
///
/// # Errors
/// QEMU does not answer.
pub(super) async fn places(process: &Process, drives: &[BlockDevice]) -> Result<DiskPlaces, ProcessError> {
    let qdevs: BTreeSet<&str> = drives.iter().filter_map(|drive| drive.qdev.as_deref()).collect();
    let devices = walk(process, qdevs.iter().map(|qdev| disk_place::device_path(qdev)).collect()).await?;
    Ok(qdevs.into_iter().map(|qdev| (qdev.to_owned(), disk_place::place(qdev, &devices))).collect())
}

/// The devices at these paths and those above them, by their paths. A device that QEMU does not describe is left out.
async fn walk(process: &Process, mut ahead: BTreeSet<String>) -> Result<BTreeMap<String, QomDevice>, ProcessError> {
    let mut devices = BTreeMap::new();
    for _ in 0..HEIGHT {
        ahead.retain(|path| !devices.contains_key(path));
        if ahead.is_empty() {
            break;
        }
        let found = describe(process, &ahead).await?;
        ahead.clear();
        for device in found.values().filter(|device| device.bus_kind != SYSTEM_BUS) {
            ahead.extend(disk_place::controller(&device.bus).map(|(path, _)| path.to_owned()));
        }
        // The root bus of an expander bridge leads to no device of QOM, but has the bridge's id.
        let roots = found.values().filter(|device| device.bus_kind.starts_with("pxb")).map(|device| &device.bus);
        let names = roots.chain(found.values().filter(|device| device.kind == "pci-bridge").map(|device| &device.bus));
        let ids = names.filter_map(|bus| disk_place::controller(bus)).map(|(_, name)| disk_place::device_path(name));
        ahead.extend(ids.filter(|path| !found.contains_key(path)));
        devices.extend(found);
    }
    name_usb_ports(process, &mut devices).await?;
    Ok(devices)
}

/// Describes the devices at these paths.
async fn describe(process: &Process, paths: &BTreeSet<String>) -> Result<BTreeMap<String, QomDevice>, ProcessError> {
    let ask = |path: &String| {
        let list = known(process.ask(&qmp::qom_list { path: path.clone() }));
        (path.clone(), list, property(process, path, "type"), property(process, path, "parent_bus"))
    };
    // every query of a round is sent before the first answer is awaited
    let asked: Vec<_> = paths.iter().map(ask).collect();
    let mut listed = Vec::new();
    for (path, list, kind, bus) in asked {
        let (list, kind, bus) = (list.await?, kind.await?, bus.await?);
        let text = |value: Option<Value>| value.as_ref().and_then(Value::as_str).map(str::to_owned);
        if let (Some(list), Some(kind), Some(bus)) = (list, text(kind), text(bus)) {
            listed.push((path, list.0, kind, bus));
        }
    }
    let ask = |(path, list, kind, bus): (String, Vec<_>, String, String)| {
        let addresses = disk_place::address_names(&list);
        let addresses: Vec<_> = addresses.into_iter().map(|name| (name, property(process, &path, name))).collect();
        let number = list.iter().any(|one| one.name == "bus_nr").then(|| property(process, &path, "bus_nr"));
        let device = QomDevice { kind, bus, own_buses: disk_place::children(&list), ..QomDevice::default() };
        (path, device, addresses, number)
    };
    // many devices are on one bus
    let buses: BTreeSet<String> = listed.iter().map(|(.., bus)| bus.clone()).collect();
    let asked_buses: Vec<_> = buses.into_iter().map(|bus| (property(process, &bus, "type"), bus)).collect();
    let asked: Vec<_> = listed.into_iter().map(ask).collect();
    let mut bus_kinds = BTreeMap::new();
    for (kind, bus) in asked_buses {
        bus_kinds.extend(kind.await?.as_ref().and_then(Value::as_str).map(|kind| (bus, kind.to_owned())));
    }
    let mut found = BTreeMap::new();
    for (path, mut device, addresses, number) in asked {
        device.bus_kind = bus_kinds.get(&device.bus).cloned().unwrap_or_default();
        for (name, value) in addresses {
            let value = value.await?.and_then(|value| disk_place::address_text(name, &value));
            device.addresses.extend(value.map(|value| (name, value)));
        }
        if let Some(number) = number {
            device.root_bus_number = number.await?.and_then(|number| number.as_u64());
        }
        found.insert(path, device);
    }
    Ok(found)
}

/// Asks for the ports of USB devices that QEMU chose itself, if there are such devices.
async fn name_usb_ports(process: &Process, devices: &mut BTreeMap<String, QomDevice>) -> Result<(), ProcessError> {
    let portless = |device: &QomDevice| device.bus_kind == "usb-bus" && !device.addresses.contains_key("port");
    if !devices.values().any(portless) {
        return Ok(());
    }
    let Some(told) = known(process.ask(&qmp::x_query_usb {})).await? else { return Ok(()) };
    let ports = disk_place::usb_ports(&told.human_readable_text);
    for (path, device) in devices.iter_mut().filter(|(_, device)| portless(device)) {
        let id = path.strip_prefix("/machine/peripheral/");
        device.addresses.extend(id.and_then(|id| ports.get(id)).map(|port| ("port", port.clone())));
    }
    Ok(())
}
