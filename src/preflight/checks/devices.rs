//! The devices: the guest must find each one where it was. QEMU refuses the state of a device that it has not, and does
//! not notice one that only the destination has.
//!
//! Pure.

use super::{Finding, blocker, note};
use crate::preflight::facts::{
    Facts,
    devices::{Device, Devices},
};
use std::collections::BTreeMap;

const MISSING: (&str, &str) = ("device-missing", "start it with the source's devices, those plugged in later too");
const EXTRA: (&str, &str) =
    ("device-extra", "the guest would meet a device that it never had: start it with the source's devices");
const DIFFERS: (&str, &str) = ("device-differs", "start it with the source's devices, each with its type and addr");

pub(super) fn run(source: &Facts, destination: &Facts) -> Vec<Finding> {
    let (here, there) = (&source.machine.devices, &destination.machine.devices);
    let mut findings = named(here, there);
    findings.extend(unnamed(here, there));
    findings.extend(functions(here, there));
    findings
}

fn found((code, remedy): (&'static str, &str), subject: &str, message: String) -> Finding {
    blocker(code, subject, message, remedy)
}

fn named(here: &Devices, there: &Devices) -> Vec<Finding> {
    let only = |one: &Devices, other: &Devices| -> BTreeMap<String, Device> {
        let only = one.named.iter().filter(|(id, _)| !other.named.contains_key(*id));
        only.map(|(id, device)| (id.clone(), device.clone())).collect()
    };
    let (missing, mut extra) = (only(here, there), only(there, here));
    let mut findings = Vec::new();
    for (id, device) in &missing {
        // the guest does not see ids
        let twin = extra.iter().find(|(_, other)| device.place.is_some() && *other == device).map(|(id, _)| id.clone());
        findings.push(match twin {
            Some(twin) => {
                extra.remove(&twin);
                note("device-renamed", id, format!("the destination's {} is called {twin}", describe(device)))
            }
            None => found(MISSING, id, format!("the destination has no such device: {}", describe(device))),
        });
    }
    for (id, device) in &extra {
        findings.push(found(EXTRA, id, format!("the source has no such device: {}", describe(device))));
    }
    let both = here.named.iter().filter_map(|(id, device)| Some((id, device, there.named.get(id)?)));
    for (id, here, there) in both.filter(|(_, here, there)| here != there) {
        let message = format!("the source's is {}, the destination's is {}", describe(here), describe(there));
        findings.push(found(DIFFERS, id, message));
    }
    findings
}

fn describe(device: &Device) -> String {
    match &device.place {
        Some(place) => format!("{} at {place}", device.kind),
        None => device.kind.clone(),
    }
}

fn unnamed(here: &Devices, there: &Devices) -> Vec<Finding> {
    let count = |devices: &Devices, kind: &str| devices.unnamed.get(kind).copied().unwrap_or(0);
    let missing =
        here.unnamed.keys().map(|kind| (MISSING, kind)).filter(|(_, kind)| count(here, kind) > count(there, kind));
    let extra =
        there.unnamed.keys().map(|kind| (EXTRA, kind)).filter(|(_, kind)| count(there, kind) > count(here, kind));
    missing
        .chain(extra)
        .map(|(what, kind)| {
            let (here, there) = (count(here, kind), count(there, kind));
            found(what, kind, format!("without an id the source has {here} of it, the destination {there}"))
        })
        .collect()
}

fn functions(here: &Devices, there: &Devices) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (place, id) in &here.functions {
        let subject = format!("PCI {place}");
        match there.functions.get(place) {
            Some(other) if other == id => {}
            Some(other) => {
                let message = format!("the source has {id} there, the destination {other}");
                findings.push(found(DIFFERS, &subject, message));
            }
            None => findings.push(found(MISSING, &subject, format!("only the source has a {id} without an id there"))),
        }
    }
    for (place, id) in there.functions.iter().filter(|(place, _)| !here.functions.contains_key(*place)) {
        let message = format!("only the destination has a {id} without an id there");
        findings.push(found(EXTRA, &format!("PCI {place}"), message));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::checks::Severity;

    fn device(kind: &str, place: &str) -> Device {
        Device { kind: kind.to_owned(), place: Some(place.to_owned()) }
    }

    fn sample() -> Devices {
        let named = [("net0", device("virtio-net-pci", "00:02.0")), ("rng0", device("virtio-rng-pci", "rp0/00.0"))];
        Devices {
            named: named.map(|(id, device)| (id.to_owned(), device)).into(),
            unnamed: [("isa-debugcon".to_owned(), 1), ("VGA".to_owned(), 2)].into(),
            functions: [("00:1f.2".to_owned(), "8086:2922".to_owned())].into(),
        }
    }

    /// Code, severity and subject of what is found, and all that is said.
    fn with(change: impl Fn(&mut Devices)) -> (Vec<(&'static str, Severity, String)>, String) {
        let (here, mut there) = (sample(), sample());
        change(&mut there);
        let all = [named, unnamed, functions].into_iter().flat_map(|check| check(&here, &there));
        let all: Vec<Finding> = all.collect();
        let text = all.iter().map(ToString::to_string).collect();
        (all.into_iter().map(|finding| (finding.code, finding.severity, finding.subject)).collect(), text)
    }

    fn one(code: &'static str, subject: &str) -> Vec<(&'static str, Severity, String)> {
        vec![(code, Severity::Blocker, subject.to_owned())]
    }

    #[test]
    fn equal_devices_are_passed_over() {
        assert_eq!(with(|_| ()), (Vec::new(), String::new()));
    }

    #[test]
    fn devices_with_an_id_are_compared_by_it() {
        let (found, text) = with(|there| drop(there.named.remove("rng0")));
        assert_eq!(found, one("device-missing", "rng0"));
        assert!(text.contains("virtio-rng-pci at rp0/00.0"), "{text}");
        let new = || device("virtio-rng-pci", "00:09.0");
        let (found, text) = with(|there| drop(there.named.insert("rng1".to_owned(), new())));
        assert_eq!(found, one("device-extra", "rng1"));
        assert!(text.contains("virtio-rng-pci at 00:09.0"), "{text}");
        for other in [device("virtio-net-pci", "00:03.0"), device("e1000", "00:02.0")] {
            let (found, text) = with(|there| drop(there.named.insert("net0".to_owned(), other.clone())));
            assert_eq!(found, one("device-differs", "net0"));
            assert!(text.contains("virtio-net-pci at 00:02.0") && text.contains(&describe(&other)), "{text}");
        }
    }

    #[test]
    fn another_id_is_no_other_device() {
        let (found, text) = with(|there| {
            let device = there.named.remove("rng0").expect("a device");
            there.named.insert("entropy".to_owned(), device);
        });
        assert_eq!(found, [("device-renamed", Severity::Note, "rng0".to_owned())]);
        assert!(text.contains("is called entropy"), "{text}");
    }

    #[test]
    fn devices_without_an_id_are_counted() {
        let (found, text) = with(|there| {
            there.unnamed.insert("VGA".to_owned(), 1);
        });
        assert_eq!(found, one("device-missing", "VGA"));
        assert!(text.contains("the source has 2 of it, the destination 1"), "{text}");
        let (found, _) = with(|there| {
            there.unnamed.insert("e1000".to_owned(), 1);
        });
        assert_eq!(found, one("device-extra", "e1000"));
    }

    #[test]
    fn the_machines_own_functions_are_compared_by_their_place() {
        let (found, _) = with(|there| there.functions.clear());
        assert_eq!(found, one("device-missing", "PCI 00:1f.2"));
        let (found, _) = with(|there| drop(there.functions.insert("00:1f.3".to_owned(), "8086:2930".to_owned())));
        assert_eq!(found, one("device-extra", "PCI 00:1f.3"));
        let (found, text) = with(|there| drop(there.functions.insert("00:1f.2".to_owned(), "8086:7010".to_owned())));
        assert_eq!(found, one("device-differs", "PCI 00:1f.2"));
        assert!(text.contains("8086:2922") && text.contains("8086:7010"), "{text}");
    }
}
