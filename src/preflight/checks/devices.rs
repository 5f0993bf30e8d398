//! The devices: the guest must find each of them at its old address. QEMU refuses the state of a device that it does
//! not have, and does not notice a device that only the destination has.
//!
//! Pure.

use super::finding::Finding;
use crate::{
    codes::FindingCode,
    preflight::facts::{
        SideFacts,
        devices::{DeviceFacts, DeviceTable},
        possible_cpus::is_cpu,
    },
};
use std::collections::BTreeMap;

pub(super) fn run(source: &SideFacts, destination: &SideFacts) -> Vec<Finding> {
    let (source, destination) = (&source.machine.devices, &destination.machine.devices);
    let mut findings = named(source, destination);
    findings.extend(unnamed(source, destination));
    findings.extend(functions(source, destination));
    findings
}

fn named(source: &DeviceTable, destination: &DeviceTable) -> Vec<Finding> {
    let only = |one: &DeviceTable, other: &DeviceTable| -> BTreeMap<String, DeviceFacts> {
        // Virtual CPUs are compared by their places, however they got there.
        let only = one.named.iter().filter(|(id, device)| !other.named.contains_key(*id) && !is_cpu(&device.kind));
        only.map(|(id, device)| (id.clone(), device.clone())).collect()
    };
    let (missing, mut extra) = (only(source, destination), only(destination, source));
    let mut findings = Vec::new();
    for (id, device) in &missing {
        // the guest does not see ids: a device of another id at the same place is the same to it
        let twin = extra.iter().find(|(_, other)| device.place.is_some() && *other == device).map(|(id, _)| id.clone());
        findings.push(match twin {
            Some(twin) => {
                extra.remove(&twin);
                let message = format!("the destination's {} is called {twin}", describe(device));
                Finding::new(FindingCode::DeviceRenamed, id, message)
            }
            None => {
                let message = format!("the destination has no such device: {}", describe(device));
                Finding::new(FindingCode::DeviceMissing, id, message)
            }
        });
    }
    for (id, device) in &extra {
        let message = format!("the source has no such device: {}", describe(device));
        findings.push(Finding::new(FindingCode::DeviceExtra, id, message));
    }
    let both = source.named.iter().filter_map(|(id, device)| Some((id, device, destination.named.get(id)?)));
    for (id, device, other) in both.filter(|(_, device, other)| device != other) {
        let message = format!("the source's is {}, the destination's is {}", describe(device), describe(other));
        findings.push(Finding::new(FindingCode::DeviceDiffers, id, message));
    }
    findings
}

fn describe(device: &DeviceFacts) -> String {
    match &device.place {
        Some(place) => format!("{} at {place}", device.kind),
        None => device.kind.clone(),
    }
}

fn unnamed(source: &DeviceTable, destination: &DeviceTable) -> Vec<Finding> {
    let count = |devices: &DeviceTable, kind: &str| devices.unnamed.get(kind).copied().unwrap_or(0);
    let more = |code: FindingCode, one: &DeviceTable, other: &DeviceTable| -> Vec<Finding> {
        let kinds = one.unnamed.keys().filter(|kind| count(one, kind) > count(other, kind) && !is_cpu(kind));
        let told = |kind: &String| {
            let counts = (count(source, kind), count(destination, kind));
            format!("the source has {} of these without an id, the destination {}", counts.0, counts.1)
        };
        kinds.map(|kind| Finding::new(code.clone(), kind, told(kind))).collect()
    };
    let mut findings = more(FindingCode::DeviceMissing, source, destination);
    findings.extend(more(FindingCode::DeviceExtra, destination, source));
    findings
}

/// Compares the functions of PCI devices that have no id, by their place.
fn functions(source: &DeviceTable, destination: &DeviceTable) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (place, id) in &source.functions {
        let (code, message) = match destination.functions.get(place) {
            Some(other) if other == id => continue,
            Some(other) => (FindingCode::DeviceDiffers, format!("the source has {id} there, the destination {other}")),
            None => (FindingCode::DeviceMissing, format!("only the source has a {id} without an id there")),
        };
        findings.push(Finding::new(code, &format!("PCI {place}"), message));
    }
    for (place, id) in destination.functions.iter().filter(|(place, _)| !source.functions.contains_key(*place)) {
        let message = format!("only the destination has a {id} without an id there");
        findings.push(Finding::new(FindingCode::DeviceExtra, &format!("PCI {place}"), message));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::checks::Severity;

    fn device(kind: &str, place: &str) -> DeviceFacts {
        DeviceFacts { kind: kind.to_owned(), place: Some(place.to_owned()) }
    }

    fn sample() -> DeviceTable {
        let named = [("net0", device("virtio-net-pci", "00:02.0")), ("rng0", device("virtio-rng-pci", "rp0/00.0"))];
        DeviceTable {
            named: named.map(|(id, device)| (id.to_owned(), device)).into(),
            unnamed: [("isa-debugcon".to_owned(), 1), ("VGA".to_owned(), 2)].into(),
            functions: [("00:1f.2".to_owned(), "8086:2922".to_owned())].into(),
        }
    }

    /// Code, severity and subject of each finding, and the text of all.
    fn with(change: impl Fn(&mut DeviceTable)) -> (Vec<(String, Severity, String)>, String) {
        let (source, mut destination) = (sample(), sample());
        change(&mut destination);
        let all = [named, unnamed, functions].into_iter().flat_map(|check| check(&source, &destination));
        let all: Vec<Finding> = all.collect();
        let text = all.iter().map(ToString::to_string).collect();
        (all.into_iter().map(|finding| (finding.code.to_string(), finding.severity, finding.subject)).collect(), text)
    }

    fn one(code: &str, subject: &str) -> Vec<(String, Severity, String)> {
        vec![(code.to_owned(), Severity::Blocker, subject.to_owned())]
    }

    #[test]
    fn equal_devices_are_passed_over() {
        assert_eq!(with(|_| ()), (Vec::new(), String::new()));
    }

    #[test]
    fn devices_with_an_id_are_compared_by_it() {
        let (found, text) = with(|destination| drop(destination.named.remove("rng0")));
        assert_eq!(found, one("device-missing", "rng0"));
        assert!(text.contains("virtio-rng-pci at rp0/00.0"), "{text}");
        let new = || device("virtio-rng-pci", "00:09.0");
        let (found, text) = with(|destination| drop(destination.named.insert("rng1".to_owned(), new())));
        assert_eq!(found, one("device-extra", "rng1"));
        assert!(text.contains("virtio-rng-pci at 00:09.0"), "{text}");
        for other in [device("virtio-net-pci", "00:03.0"), device("e1000", "00:02.0")] {
            let (found, text) = with(|destination| drop(destination.named.insert("net0".to_owned(), other.clone())));
            assert_eq!(found, one("device-differs", "net0"));
            assert!(text.contains("virtio-net-pci at 00:02.0") && text.contains(&describe(&other)), "{text}");
        }
    }

    #[test]
    fn another_id_is_no_other_device() {
        let (found, text) = with(|destination| {
            let device = destination.named.remove("rng0").expect("a device");
            destination.named.insert("entropy".to_owned(), device);
        });
        assert_eq!(found, [("device-renamed".to_owned(), Severity::Note, "rng0".to_owned())]);
        assert!(text.contains("is called entropy"), "{text}");
    }

    #[test]
    fn devices_without_an_id_are_counted() {
        let (found, text) = with(|destination| {
            destination.unnamed.insert("VGA".to_owned(), 1);
        });
        assert_eq!(found, one("device-missing", "VGA"));
        assert!(text.contains("the source has 2 of these without an id, the destination 1"), "{text}");
        let (found, _) = with(|destination| {
            destination.unnamed.insert("e1000".to_owned(), 1);
        });
        assert_eq!(found, one("device-extra", "e1000"));
    }

    #[test]
    fn the_machines_own_functions_are_compared_by_their_place() {
        let (found, _) = with(|destination| destination.functions.clear());
        assert_eq!(found, one("device-missing", "PCI 00:1f.2"));
        let (found, _) =
            with(|destination| drop(destination.functions.insert("00:1f.3".to_owned(), "8086:2930".to_owned())));
        assert_eq!(found, one("device-extra", "PCI 00:1f.3"));
        let (found, text) =
            with(|destination| drop(destination.functions.insert("00:1f.2".to_owned(), "8086:7010".to_owned())));
        assert_eq!(found, one("device-differs", "PCI 00:1f.2"));
        assert!(text.contains("8086:2922") && text.contains("8086:7010"), "{text}");
    }
}
