//! The devices that were plugged in while the source ran: the destination needs them, and they are on no command line.
//!
//! Pure. A device with an id is plugged in where its id is not on the command line. Those without an id can only be
//! counted, and only the kinds of which the command line asks for fewer than there are count as plugged in.

use super::command_line;
use crate::{
    codes::FindingCode,
    preflight::{
        checks::Finding,
        facts::{
            devices::{DeviceFacts, DeviceTable},
            possible_cpus::{CpuPlace, PossibleCpus, is_cpu},
        },
    },
};
use std::borrow::Cow;

/// The short names of `-device` that are no beginning of the type's own name.
const ALIASES: [(&str, &str); 3] = [("ahci", "ich9-ahci"), ("lsi", "lsi53c895a"), ("kvm-pci-assign", "pci-assign")];
/// The options that make devices without an id as `-device` does: the option, a part of its value, and the begin of the
/// type that it makes.
const MAKERS: [(&str, &str, &str); 5] = [
    ("drive", "if=virtio", "virtio-blk-"),
    ("virtfs", "", "virtio-9p-"),
    ("debugcon", "", "isa-debugcon"),
    ("watchdog", "", ""),
    ("usbdevice", "", "usb-"),
];

/// What is to be added to the destination's command line. Nothing is said where options come from a file, which is not
/// read.
pub(super) fn findings(words: Option<&[String]>, devices: &DeviceTable, cpus: Option<&PossibleCpus>) -> Vec<Finding> {
    let Some(words) = words.filter(|words| !words.iter().any(|word| word.ends_with("-readconfig"))) else {
        return Vec::new();
    };
    let named = devices.named.iter().filter(|(id, _)| !command_line::names(words, id));
    let unnamed = devices.unnamed.iter().filter_map(|(kind, count)| {
        let added = count.saturating_sub(asked_for(words, kind));
        (added > 0).then(|| of_unnamed(words, cpus, kind, added))
    });
    named.map(|(id, device)| of_named(id, device)).chain(unnamed).collect()
}

fn of_named(id: &str, device: &DeviceFacts) -> Finding {
    let DeviceFacts { kind, place } = device;
    let place = place.as_ref().map_or_else(String::new, |place| format!(" at {place}"));
    let message = format!("this {kind}{place} is not on the source's command line: it was plugged in");
    let remedy = format!(
        "add -device {kind},id={id} with the source's properties and address to the destination's command line, and the \
         -object, -netdev or -blockdev that it is on"
    );
    Finding::new(FindingCode::NotOnCommandLine, id, message).with_remedy(remedy)
}

fn of_unnamed(words: &[String], cpus: Option<&PossibleCpus>, kind: &str, added: usize) -> Finding {
    let message =
        format!("{added} more without an id than the source's command line asks for: plugged in while it ran");
    let cpus = cpus.into_iter().flatten().filter(|(place, cpu)| is_added(words, place, cpu));
    let arguments: Vec<String> = match is_cpu(kind) {
        true => cpus.map(|(place, _)| format!("-device {kind},{}", place.replace(", ", ","))).collect(),
        false => Vec::new(),
    };
    let remedy = match arguments.is_empty() {
        true => format!(
            "add -device {kind} with the source's properties and address to the destination's command line for each, and \
             the -object, -netdev or -blockdev that it is on"
        ),
        false => format!("add {} to the destination's command line", arguments.join(" ")),
    };
    Finding::new(FindingCode::NotOnCommandLine, kind, message).with_remedy(remedy)
}

/// Whether the virtual CPU in this place is a device without an id for which the command line does not ask.
fn is_added(words: &[String], place: &str, cpu: &CpuPlace) -> bool {
    let asks = |value: &str| {
        let parts = command_line::split(value);
        place.split(", ").all(|part| parts.iter().any(|given| given == part))
    };
    cpu.is_unnamed_device && !values(words, "device").any(|value| asks(&value))
}

/// How many devices of this type without an id the command line asks for.
fn asked_for(words: &[String], kind: &str) -> usize {
    let devices = values(words, "device").filter(|value| {
        let parts = command_line::split(value);
        let driver = parts.first().map_or("", |driver| driver.trim_start_matches("driver="));
        is_driver(driver, kind) && !parts.iter().any(|part| part.starts_with("id="))
    });
    let makers = MAKERS.iter().filter(|(.., made)| kind.starts_with(made));
    let made = makers.map(|(option, part, _)| values(words, option).filter(|value| value.contains(part)).count());
    devices.count() + made.sum::<usize>()
}

/// Whether this name of a driver is that of the type, or short for it: `virtio-blk` is a `virtio-blk-pci` on a PC.
fn is_driver(driver: &str, kind: &str) -> bool {
    let bus = kind.strip_prefix(driver).is_some_and(|bus| matches!(bus, "" | "-pci" | "-device" | "-ccw"));
    !driver.is_empty() && bus || ALIASES.contains(&(driver, kind))
}

/// The values of an option, those in JSON as `key=value,key=value`.
fn values<'a>(words: &'a [String], option: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    let pairs = words.windows(2).filter(move |pair| command_line::option(&pair[0]) == Some(option));
    pairs.map(|pair| command_line::flattened(&pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str, unnamed: &[(&str, usize)], cpus: &[(&str, bool)]) -> Vec<(String, String)> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let unnamed = unnamed.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
        let place = |&(place, is_unnamed_device): &(&str, bool)| {
            (place.to_owned(), CpuPlace { count: 1, is_present: true, is_unnamed_device })
        };
        let devices = DeviceTable { unnamed, ..DeviceTable::default() };
        let findings = findings(Some(&words), &devices, Some(&cpus.iter().map(place).collect()));
        findings.into_iter().map(|found| (found.subject, found.remedy)).collect()
    }

    #[test]
    fn devices_without_an_id_are_counted_against_the_command_line() {
        for (line, unnamed, expected) in [
            ("qemu -device virtio-rng-pci", &[("virtio-rng-pci", 1)][..], &[][..]),
            ("qemu -device virtio-rng", &[("virtio-rng-pci", 1)], &[]),
            ("qemu -device virtio-rng", &[("virtio-rng-pci", 2)], &["virtio-rng-pci"]),
            ("qemu -device virtio-rng,id=a", &[("virtio-rng-pci", 1)], &["virtio-rng-pci"]),
            (r#"qemu -device {"driver":"virtio-rng-pci"}"#, &[("virtio-rng-pci", 1)], &[]),
            (r#"qemu -device {"driver":"virtio-rng-pci","id":"a"}"#, &[("virtio-rng-pci", 1)], &["virtio-rng-pci"]),
            ("qemu -device ahci", &[("ich9-ahci", 1)], &[]),
            ("qemu -drive file=a,if=virtio -drive if=none,id=b", &[("virtio-blk-pci", 1)], &[]),
            ("qemu -drive file=a,if=virtio", &[("virtio-blk-pci", 2)], &["virtio-blk-pci"]),
            ("qemu -debugcon stdio -virtfs local,path=/", &[("isa-debugcon", 1), ("virtio-9p-pci", 1)], &[]),
            ("qemu -device virtio-net-pci", &[("virtio-net-pci", 1), ("e1000", 1)], &["e1000"]),
            ("qemu -readconfig file", &[("e1000", 1)], &[]),
        ] {
            let subjects: Vec<String> = told(line, unnamed, &[]).into_iter().map(|(subject, _)| subject).collect();
            assert_eq!(subjects, expected, "{line}");
        }
    }

    #[test]
    fn a_cpu_without_an_id_is_named_by_its_place() {
        let cpus =
            [("core-id=0, socket-id=0", false), ("core-id=1, socket-id=0", true), ("core-id=2, socket-id=0", true)];
        let kind = "qemu64-x86_64-cpu";
        let line = format!("qemu -smp 1,maxcpus=4 -device {kind},socket-id=0,core-id=1");
        let found = told(&line, &[(kind, 2)], &cpus);
        let remedy = format!("add -device {kind},core-id=2,socket-id=0 to the destination's command line");
        assert_eq!(found, [(kind.to_owned(), remedy)]);
        assert_eq!(told(&line, &[(kind, 1)], &cpus[..2]), []);
    }
}
