//! The place of each disk in the guest, on every kind of bus. The machines have no guest, and their disks no images.
//!
//! Promise: same-place.

use super::{found, start};
use qferry::internals::preflight::checks::{Finding, Severity};
use qferry_bed::Bare;

/// Four block nodes without an image: `n0` to `n3`.
fn nodes() -> String {
    let node = |number| format!("-blockdev null-co,node-name=n{number},size=1048576,read-zeroes=on ");
    (0..4).map(node).collect()
}

/// The findings about places for a migration between two machines.
fn places(version: &str, source: &str, destination: &str) -> Vec<Finding> {
    places_after(&start(version, &format!("{} {source}", nodes())), version, destination)
}

/// The findings about places for a migration from a machine.
fn places_after(source: &Bare, version: &str, destination: &str) -> Vec<Finding> {
    let destination = start(version, &format!("{} {destination} -incoming defer -S", nodes()));
    let findings = found(source, &destination, &[]);
    findings.into_iter().filter(|finding| finding.code.as_str().starts_with("disk-place")).collect()
}

/// The two arguments that the machines of a case differ in.
struct Exchange {
    /// The kind of bus.
    bus: &'static str,
    /// The arguments of both, in which `A` and `B` stand for the two addresses.
    machine: &'static str,
    /// The two addresses, which the destination has the other way round.
    addresses: [&'static str; 2],
    /// The disks that are in another place then.
    moved: &'static [&'static str],
    /// A word that the message must have.
    told: &'static str,
}

/// Disks with ids, without, and with drive names alone. The ids of the controllers never matter.
const EXCHANGES: [Exchange; 17] = [
    Exchange {
        bus: "virtio-scsi, lun",
        machine: "-device virtio-scsi-pci,id=s -device scsi-hd,drive=n0,id=d0,lun=A -device scsi-hd,drive=n1,id=d1,lun=B",
        addresses: ["0", "1"],
        moved: &["d0", "d1"],
        told: "lun=1",
    },
    Exchange {
        bus: "virtio-scsi without ids, scsi-id",
        machine: "-device virtio-scsi-pci -device scsi-hd,drive=n0,scsi-id=A -device scsi-hd,drive=n1,scsi-id=B",
        addresses: ["0", "3"],
        moved: &["n0", "n1"],
        told: "scsi-id=3",
    },
    Exchange {
        bus: "lsi, scsi-id",
        machine: "-device lsi,id=s -device scsi-hd,drive=n0,scsi-id=A -device scsi-cd,drive=n1,scsi-id=B",
        addresses: ["1", "2"],
        moved: &["n0", "n1"],
        told: "scsi-id=2",
    },
    Exchange {
        bus: "two controllers of SCSI",
        machine: "-device virtio-scsi-pci,id=a,addr=A -device virtio-scsi-pci,id=b,addr=B \
            -device scsi-hd,drive=n0,id=d0,bus=a.0 -device scsi-hd,drive=n1,id=d1,bus=b.0",
        addresses: ["5", "6"],
        moved: &["d0", "d1"],
        told: "virtio-scsi-pci addr=06.0",
    },
    Exchange {
        bus: "virtio-blk without ids",
        machine: "-device virtio-blk-pci,drive=n0,addr=A -device virtio-blk-pci,drive=n1,addr=B",
        addresses: ["5", "6"],
        moved: &["n0", "n1"],
        told: "addr=06.0",
    },
    Exchange {
        bus: "functions of one slot",
        machine: "-device virtio-blk-pci,drive=n0,addr=A,multifunction=on -device virtio-blk-pci,drive=n1,addr=B,multifunction=on",
        addresses: ["5.0", "5.1"],
        moved: &["n0", "n1"],
        told: "addr=05.1",
    },
    Exchange {
        bus: "IDE, units",
        machine: "-device ide-hd,drive=n0,bus=ide.0,unit=A -device ide-hd,drive=n1,bus=ide.0,unit=B",
        addresses: ["0", "1"],
        moved: &["n0", "n1"],
        told: "unit=1 on bus 0, piix3-ide addr=01.1",
    },
    Exchange {
        bus: "IDE, channels",
        machine: "-device ide-hd,drive=n0,id=d0,bus=ide.A -device ide-hd,drive=n1,id=d1,bus=ide.B",
        addresses: ["0", "1"],
        moved: &["d0", "d1"],
        told: "unit=0 on bus 1",
    },
    Exchange {
        bus: "IDE, CD drives without media",
        machine: "-device ide-cd,id=c0,bus=ide.A -device ide-cd,drive=n1,id=c1,bus=ide.B",
        addresses: ["0", "1"],
        moved: &["c0", "c1"],
        told: "where the destination has",
    },
    Exchange {
        bus: "IDE, drives of -drive",
        machine: "-drive if=none,id=x,driver=null-co,size=1M -drive if=none,id=y,driver=null-co,size=1M \
            -device ide-hd,drive=x,bus=ide.A -device ide-hd,drive=y,bus=ide.B",
        addresses: ["0", "1"],
        moved: &["x", "y"],
        told: "unit=0 on bus 0",
    },
    Exchange {
        bus: "AHCI, ports",
        machine: "-machine q35 -device ahci,id=h -device ide-hd,drive=n0,bus=h.A -device ide-hd,drive=n1,bus=h.B",
        addresses: ["1", "4"],
        moved: &["n0", "n1"],
        told: "unit=0 on bus 4, ich9-ahci",
    },
    Exchange {
        bus: "PCIe root ports",
        machine: "-machine q35 -device pcie-root-port,id=p,chassis=1,addr=A -device pcie-root-port,id=q,chassis=2,addr=B \
            -device virtio-blk-pci,drive=n0,bus=p -device virtio-blk-pci,drive=n1,bus=q",
        addresses: ["5", "6"],
        moved: &["n0", "n1"],
        told: "pcie-root-port addr=06.0 on pcie.0",
    },
    Exchange {
        bus: "bridges below bridges",
        machine: "-device pci-bridge,id=p,chassis_nr=1,addr=9 -device pci-bridge,id=q,chassis_nr=2,bus=p,addr=A \
            -device pci-bridge,id=r,chassis_nr=3,bus=p,addr=B -device virtio-scsi-pci,id=s,bus=q,addr=1 \
            -device scsi-hd,drive=n0,bus=s.0 -device virtio-blk-pci,drive=n1,bus=r,addr=1",
        addresses: ["3", "4"],
        moved: &["n0", "n1"],
        told: "pci-bridge addr=04.0",
    },
    Exchange {
        bus: "expander bridges",
        machine: "-machine q35 -device pxb-pcie,id=x,bus=pcie.0,bus_nr=A -device pxb-pcie,id=y,bus=pcie.0,bus_nr=B \
            -device pcie-root-port,id=p,bus=x,chassis=1 -device pcie-root-port,id=q,bus=y,chassis=2 \
            -device virtio-blk-pci,drive=n0,bus=p -device virtio-blk-pci,drive=n1,bus=q",
        addresses: ["64", "96"],
        moved: &["n0", "n1"],
        told: "root bus 96",
    },
    Exchange {
        bus: "USB, ports",
        machine: "-device qemu-xhci,id=u -device usb-storage,drive=n0,port=A -device usb-storage,drive=n1,port=B",
        addresses: ["1", "2"],
        moved: &["n0", "n1"],
        told: "usb-storage port=2",
    },
    Exchange {
        bus: "floppies",
        machine: "-device isa-fdc,id=f -device floppy,drive=n0,unit=A -device floppy,drive=n1,unit=B",
        addresses: ["0", "1"],
        moved: &["n0", "n1"],
        told: "isa-fdc iobase=0x3f0",
    },
    Exchange {
        bus: "virtio-mmio",
        machine: "-machine microvm -device virtio-blk-device,drive=n0,bus=virtio-mmio-bus.A \
            -device virtio-blk-device,drive=n1,bus=virtio-mmio-bus.B",
        addresses: ["3", "4"],
        moved: &["n0", "n1"],
        told: "on virtio-mmio-bus.4",
    },
];

fn arguments(machine: &str, [a, b]: [&str; 2]) -> String {
    let word = |word: &str| match word.split_once(['A', 'B']).filter(|(before, _)| before.ends_with(['=', '.'])) {
        Some((before, after)) => {
            format!("{before}{}{after}", if word.contains("=A") || word.contains(".A") { a } else { b })
        }
        None => word.to_owned(),
    };
    let words =
        machine.split_whitespace().map(|arguments| arguments.split(',').map(word).collect::<Vec<_>>().join(","));
    words.collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn exchanged(version: &str, case: &Exchange) {
    let Exchange { bus, machine, addresses: [a, b], moved, told } = *case;
    let same = arguments(machine, [a, b]);
    let source = start(version, &format!("{} {same}", nodes()));
    assert_eq!(places_after(&source, version, &same), [], "{version} {bus}: {same}");
    let findings = places_after(&source, version, &arguments(machine, [b, a]));
    let subjects: Vec<&str> = findings.iter().map(|finding| finding.subject.as_str()).collect();
    assert_eq!(subjects, moved, "{version} {bus}: {same}: {findings:#?}");
    let refused = |finding: &Finding| {
        (finding.code.as_str(), finding.severity) == ("disk-place-differs", Severity::Blocker)
            && !finding.code.is_forcible()
    };
    assert!(findings.iter().all(refused), "{version} {bus}: {findings:#?}");
    assert!(findings.iter().any(|finding| finding.message.contains(told)), "{version} {bus}: {findings:#?}");
}

#[test]
fn disks_that_changed_places_are_refused_on_every_bus() {
    for case in &EXCHANGES {
        exchanged("10.0.13", case);
    }
    for version in ["7.2", "11.1"] {
        for case in EXCHANGES.iter().step_by(8) {
            exchanged(version, case);
        }
    }
}

/// The guest sees no ids, and no names that QEMU chose.
#[test]
fn a_place_does_not_depend_on_names() {
    let same = |source: &str, destination: &str| {
        assert_eq!(places("10.0.13", source, destination), [], "{source} and {destination}");
    };
    let scsi = |id: &str| format!("-device virtio-scsi-pci,id={id},addr=5 -device scsi-hd,drive=n0,bus={id}.0");
    same(&scsi("a"), &scsi("b"));
    // QEMU numbers the buses of all controllers in the order of the command line.
    let (first, second) = ("-device ahci,addr=5", "-device ahci,addr=6");
    let at = |number: usize| format!("-device ide-hd,drive=n0,bus=ide.{number}");
    same(&format!("{first} {second} {}", at(4)), &format!("{second} {first} {}", at(10)));
    let expander = |id: &str| {
        format!(
            "-machine q35 -device pxb-pcie,id={id},bus_nr=64 -device pcie-root-port,id=p,bus={id},chassis=1 -device virtio-blk-pci,drive=n0,bus=p"
        )
    };
    same(&expander("x"), &expander("y"));
}

/// A USB device without a port gets the next free one. Only QEMU's text for people tells which, and only of a device
/// that has an id.
#[test]
fn a_port_that_qemu_chose_is_compared_where_qemu_tells() {
    let disk = |number, id: &str| format!("-device usb-storage,drive=n{number}{id}");
    let machine = |disks: [String; 2]| format!("-device qemu-xhci {}", disks.join(" "));
    let with_ids = [disk(0, ",id=d0"), disk(1, ",id=d1")];
    let [first, second] = with_ids.clone();
    assert_eq!(places("10.0.13", &machine(with_ids.clone()), &machine(with_ids.clone())), []);
    let findings = places("10.0.13", &machine(with_ids), &machine([second, first]));
    assert_eq!(findings.len(), 2, "{findings:#?}");
    assert!(findings.iter().all(|finding| finding.code.as_str() == "disk-place-differs"), "{findings:#?}");
    let without = machine([disk(0, ""), disk(1, "")]);
    let findings = places("10.0.13", &without, &without);
    let unknown = |finding: &Finding| {
        (finding.code.as_str(), finding.severity) == ("disk-place-unknown", Severity::Warning)
            && finding.message.contains("the port of /machine/peripheral-anon/device[1]")
    };
    assert!(findings.len() == 2 && unknown(&findings[0]), "{findings:#?}");
}
