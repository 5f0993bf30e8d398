//! The two machines: QEMU's versions, machine types and properties, their CPUs, what RAM is made of.
//!
//! Pure.

use super::finding::Finding;
use crate::{
    codes::FindingCode,
    preflight::facts::{
        SideFacts,
        machine::MachineFacts,
        possible_cpus::{CpuPlace, PossibleCpus},
        ram_blocks::RamBlock,
    },
    qmp::QemuVersion,
    quantity::Bytes,
};

pub(super) fn run(source: &SideFacts, destination: &SideFacts) -> Vec<Finding> {
    let (machine, other, name) = (&source.machine, &destination.machine, destination.name.as_str());
    let checks = [version, machine_type, properties, cpu_places, cpu_count, ram_blocks];
    checks.into_iter().filter_map(|check| check(machine, other, name)).collect()
}

/// The release that a version belongs to: from micro 50 on, versions are development versions of the next release.
fn release(version: QemuVersion) -> (u64, u64, bool) {
    (version.major, version.minor, version.micro >= 50)
}

fn version(source: &MachineFacts, destination: &MachineFacts, name: &str) -> Option<Finding> {
    let (source, destination) = (source.version, destination.version);
    let message = format!("QEMU {destination} is older than the source's {source}");
    if release(destination) < release(source) {
        return Some(Finding::new(FindingCode::QemuOlder, name, message));
    }
    // stable releases of one series are made to migrate both ways
    let older = release(destination) == release(source) && destination < source;
    older.then(|| Finding::new(FindingCode::QemuOlderMicro, name, format!("{message}, of the same series")))
}

fn machine_type(source: &MachineFacts, destination: &MachineFacts, name: &str) -> Option<Finding> {
    let (Some(source), Some(destination)) = (&source.kind, &destination.kind) else {
        let message = "the machine type is not known on both sides";
        return Some(Finding::new(FindingCode::NotCompared, name, message));
    };
    let plain = |kind: &str| kind.strip_suffix("-machine").unwrap_or(kind).to_owned();
    let message = format!("its machine type is {}, the source's is {}", plain(destination), plain(source));
    (source != destination).then(|| {
        let remedy = format!("start the destination with the source's: -machine {}", plain(source));
        Finding::new(FindingCode::MachineType, name, message).with_remedy(remedy)
    })
}

/// Compares the properties that both machines have: a version of QEMU adds and drops some.
fn properties(source: &MachineFacts, destination: &MachineFacts, name: &str) -> Option<Finding> {
    let both =
        source.properties.iter().filter_map(|(name, value)| Some((name, value, destination.properties.get(name)?)));
    let different: Vec<_> = both.filter(|(_, value, other)| value != other).collect();
    let told: Vec<String> =
        different.iter().map(|(property, value, other)| format!("{property} is {other}, not {value}")).collect();
    let wanted: Vec<String> = different.iter().map(|(property, value, _)| format!("{property}={value}")).collect();
    let message = format!("its machine is not the source's: {}", told.join(", "));
    let remedy = format!("start the destination with the source's -machine: {}", wanted.join(","));
    (!different.is_empty()).then(|| Finding::new(FindingCode::MachineProperty, name, message).with_remedy(remedy))
}

/// Compares the places that virtual CPUs can have: the state of a controller that plugs in CPUs depends on them.
/// Machines with other numbers of CPUs have other places anyway.
fn cpu_places(source: &MachineFacts, destination: &MachineFacts, name: &str) -> Option<Finding> {
    if source.cpus != destination.cpus {
        return None;
    }
    let (source, destination) = (source.possible_cpus.as_ref()?, destination.possible_cpus.as_ref()?);
    let count = |cpus: &PossibleCpus| cpus.values().map(|place| place.count).sum::<u64>();
    let only = |one: &PossibleCpus, other: &PossibleCpus| {
        let found = one.iter().find(|(place, cpu)| other.get(*place).is_none_or(|other| other.count != cpu.count));
        found.map(|(place, _)| place.clone())
    };
    let (side, place) = match (only(source, destination), only(destination, source)) {
        (Some(place), _) => ("source", place),
        (None, Some(place)) => ("destination", place),
        (None, None) => return None,
    };
    let message = format!(
        "the source's machine can have {} virtual CPUs, the destination's {}: only the {side}'s can have one at {place}",
        count(source),
        count(destination)
    );
    Some(Finding::new(FindingCode::CpuTopology, name, message))
}

fn cpu_count(source: &MachineFacts, destination: &MachineFacts, name: &str) -> Option<Finding> {
    let message = if source.cpus == destination.cpus {
        let (cpus, other) = (source.possible_cpus.as_ref()?, destination.possible_cpus.as_ref()?);
        let told = [lone_cpus(cpus, other, "source"), lone_cpus(other, cpus, "destination")].concat();
        told.join("; ")
    } else {
        let cpus = if source.cpus == 1 { "virtual CPU" } else { "virtual CPUs" };
        format!("the source has {} {cpus}, the destination {}", source.cpus, destination.cpus)
    };
    (!message.is_empty()).then(|| Finding::new(FindingCode::CpuCount, name, message))
}

/// The virtual CPUs of one side in whose places the other side has none.
fn lone_cpus(cpus: &PossibleCpus, other: &PossibleCpus, side: &str) -> Vec<String> {
    let is_lone =
        |place: &String, cpu: &CpuPlace| cpu.is_present && other.get(place).is_some_and(|other| !other.is_present);
    let lone = cpus.iter().filter(|(place, cpu)| is_lone(place, cpu));
    lone.map(|(place, _)| format!("only the {side} has a virtual CPU at {place}")).collect()
}

fn ram_blocks(source: &MachineFacts, destination: &MachineFacts, name: &str) -> Option<Finding> {
    let (Some(source), Some(destination)) = (&source.ram_blocks, &destination.ram_blocks) else {
        return Some(Finding::new(FindingCode::NotCompared, name, "the RAM blocks are not known on both sides"));
    };
    let differences: Vec<String> = source
        .iter()
        .filter_map(|(name, block)| match destination.get(name) {
            None => Some(format!("it has no {name}")),
            Some(other) if fits(name, block, other) => None,
            Some(other) => {
                let (source, destination) = (Bytes(block.total).exactly(), Bytes(other.total).exactly());
                Some(format!("{name} has {destination} on the destination, {source} on the source"))
            }
        })
        .collect();
    let message = format!("its RAM blocks are not the source's: {}", differences.join(", "));
    (!differences.is_empty()).then(|| Finding::new(FindingCode::RamBlocks, name, message))
}

/// Whether a block of RAM can take the source's block. QEMU resizes blocks of firmware tables to the source's size,
/// up to their largest size; all others must be the same.
fn fits(name: &str, source: &RamBlock, destination: &RamBlock) -> bool {
    match name.starts_with("/rom@") {
        true => source.used <= destination.total,
        false => source.total == destination.total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::{checks::Severity, facts::devices::DeviceTable};
    use std::collections::BTreeMap;

    type Blocks = BTreeMap<String, RamBlock>;
    type Change = fn(&mut Blocks);

    fn sample() -> MachineFacts {
        let block = |used, total| RamBlock { used, total, page: 4096 };
        let blocks = [("pc.ram", block(512, 512)), ("/rom@etc/acpi/tables", block(20, 200))];
        MachineFacts {
            version: QemuVersion { major: 10, minor: 0, micro: 13 },
            kind: Some("pc-i440fx-10.0-machine".to_owned()),
            cpus: 2,
            cpu: None,
            ram_blocks: Some(blocks.map(|(name, block)| (name.to_owned(), block)).into()),
            devices: DeviceTable::default(),
            device_tree: None,
            properties: [("hpet".to_owned(), "true".to_owned())].into(),
            possible_cpus: None,
            package: String::new(),
            virtio: Vec::new(),
        }
    }

    /// What one check finds, with one side changed.
    fn found(
        check: fn(&MachineFacts, &MachineFacts, &str) -> Option<Finding>,
        change: impl Fn(&mut MachineFacts),
    ) -> Option<(String, Severity, String)> {
        let (source, mut destination) = (sample(), sample());
        assert_eq!(check(&source, &destination, "b"), None, "equal machines");
        change(&mut destination);
        check(&source, &destination, "b")
            .map(|finding| (finding.code.to_string(), finding.severity, finding.message + &finding.remedy))
    }

    #[test]
    fn an_older_release_is_refused_and_a_newer_is_not() {
        for (major, minor, micro, wanted) in [
            (7, 2, 22, Some(("qemu-older", Severity::Blocker))),
            (9, 2, 90, Some(("qemu-older", Severity::Blocker))),
            (10, 0, 2, Some(("qemu-older-micro", Severity::Note))),
            (10, 0, 14, None),
            (10, 0, 90, None),
            (11, 1, 3, None),
        ] {
            let version_of = QemuVersion { major, minor, micro };
            let found = found(version, |machine| machine.version = version_of);
            assert_eq!(found.as_ref().map(|(code, severity, _)| (code.as_str(), *severity)), wanted, "{version_of}");
            if let Some((.., text)) = found {
                assert!(text.contains("10.0.13") && text.contains(&version_of.to_string()), "{text}");
            }
        }
        let development = MachineFacts { version: QemuVersion { major: 10, minor: 0, micro: 91 }, ..sample() };
        assert_eq!(version(&development, &sample(), "b").map(|finding| finding.code), Some(FindingCode::QemuOlder));
    }

    #[test]
    fn another_machine_type_is_refused() {
        let (code, severity, text) =
            found(machine_type, |machine| machine.kind = Some("pc-q35-10.0-machine".to_owned())).expect("a finding");
        assert_eq!((code.as_str(), severity), ("machine-type", Severity::Blocker));
        assert!(text.contains("is pc-q35-10.0,") && text.contains("-machine pc-i440fx-10.0"), "{text}");
        let (code, severity, _) = found(machine_type, |machine| machine.kind = None).expect("a finding");
        assert_eq!((code.as_str(), severity), ("not-compared", Severity::Note));
    }

    #[test]
    fn another_number_of_cpus_is_refused() {
        let (code, severity, text) = found(cpu_count, |machine| machine.cpus = 3).expect("a finding");
        assert_eq!((code.as_str(), severity), ("cpu-count", Severity::Blocker));
        assert!(text.contains("has 2 ") && text.contains("destination 3"), "{text}");
    }

    #[test]
    fn another_property_of_the_machine_is_refused() {
        let (code, severity, text) =
            found(properties, |machine| drop(machine.properties.insert("hpet".to_owned(), "false".to_owned())))
                .expect("a finding");
        assert_eq!((code.as_str(), severity), ("machine-property", Severity::Blocker));
        assert!(text.contains("hpet is false, not true") && text.contains("-machine: hpet=true"), "{text}");
        assert_eq!(found(properties, |machine| machine.properties.clear()), None, "only what both have counts");
    }

    /// Places for virtual CPUs on cores from 0 on, with CPUs on the first of them.
    fn cores(present: u64, possible: u64) -> Option<PossibleCpus> {
        let place = |core| {
            (format!("core-id={core}"), CpuPlace { count: 1, is_present: core < present, is_unnamed_device: false })
        };
        Some((0..possible).map(place).collect())
    }

    #[test]
    fn virtual_cpus_are_compared_by_their_places() {
        type Check = fn(&MachineFacts, &MachineFacts, &str) -> Option<Finding>;
        let judged = |check: Check, source: Option<PossibleCpus>, destination: Option<PossibleCpus>| {
            let source = MachineFacts { possible_cpus: source, ..sample() };
            let destination = MachineFacts { possible_cpus: destination, ..sample() };
            check(&source, &destination, "b").map(|finding| (finding.code.to_string(), finding.message))
        };
        assert_eq!(judged(cpu_places, cores(2, 2), cores(1, 2)), None);
        assert_eq!(judged(cpu_count, cores(2, 2), cores(2, 4)), None);
        assert_eq!(judged(cpu_places, cores(2, 2), None), None);
        for (source, destination, side) in [(2, 4, "destination"), (4, 2, "source")] {
            let (code, text) = judged(cpu_places, cores(2, source), cores(2, destination)).expect("a finding");
            assert_eq!(code, "cpu-topology");
            assert!(text.contains(&format!("only the {side}'s can have one at core-id=2")), "{text}");
        }
        for (source, destination, side) in [(2, 1, "source"), (1, 2, "destination")] {
            let (code, text) = judged(cpu_count, cores(source, 2), cores(destination, 2)).expect("a finding");
            assert_eq!(code, "cpu-count");
            assert_eq!(text, format!("only the {side} has a virtual CPU at core-id=1"));
        }
    }

    #[test]
    fn ram_blocks_must_be_there_and_hold_what_comes() {
        let with =
            |change: Change| found(ram_blocks, move |machine| change(machine.ram_blocks.as_mut().expect("blocks")));
        let silent: [Change; 3] = [
            |blocks| blocks.get_mut("/rom@etc/acpi/tables").expect("a block").used = 40,
            |blocks| blocks.get_mut("/rom@etc/acpi/tables").expect("a block").total = 400,
            |blocks| {
                blocks.insert("vga.vram".to_owned(), RamBlock { used: 1, total: 1, page: 4096 });
            },
        ];
        for change in silent {
            assert_eq!(with(change), None);
        }
        let loud: [(Change, &str); 3] = [
            (
                |blocks| {
                    blocks.remove("pc.ram");
                },
                "no pc.ram",
            ),
            (
                |blocks| blocks.get_mut("pc.ram").expect("a block").total = 256,
                "256 B on the destination, 512 B on the source",
            ),
            (|blocks| blocks.get_mut("/rom@etc/acpi/tables").expect("a block").total = 19, "/rom@etc/acpi/tables"),
        ];
        for (change, word) in loud {
            let (code, severity, text) = with(change).expect(word);
            assert_eq!((code.as_str(), severity), ("ram-blocks", Severity::Blocker));
            assert!(text.contains(word), "{text}");
        }
        let (code, severity, _) = found(ram_blocks, |machine| machine.ram_blocks = None).expect("a finding");
        assert_eq!((code.as_str(), severity), ("not-compared", Severity::Note));
    }
}
