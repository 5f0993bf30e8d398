//! The properties of devices that have a counterpart: what the guest sees of them, and what their state depends on.
//!
//! Pure. A property counts unless a table here says otherwise: QEMU's versioned machine types keep the properties of
//! a device the same from version to version, so two machines that were started alike do not differ.

use super::{
    counterparts::{Counterparts, pair_up},
    finding::Finding,
};
use crate::{
    codes::FindingCode,
    preflight::facts::{
        SideFacts,
        device_tree::{BusDevice, DeviceBus},
        disk_place::ADDRESSES,
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// Properties that name something of the host or another device by its id: the guest does not see the name.
const NAMES: [&str; 25] = [
    "audiodev",
    "chardev",
    "cryptodev",
    "display",
    "drive",
    "failover_pair_id",
    "fsdev",
    "hostdevice",
    "iommufd",
    "iothread",
    "iothread-vq-mapping",
    "memdev",
    "netdev",
    "path",
    "rng",
    "romfile",
    "sriov-pf",
    "sysfsdev",
    "tag-device",
    "tpmdev",
    "vhostfd",
    "vhostfds",
    "ebpf-rss-fds",
    "host",
    "hostaddr",
];

/// Properties on which the form of the device's state depends: QEMU refuses the state of a device with another value.
const OF_STATE: [&str; 17] = [
    "aer",
    "ats",
    "chassis_nr",
    "disable-legacy",
    "disable-modern",
    "max_ports",
    "msi",
    "msix",
    "multifunction",
    "nr",
    "num-queues",
    "num_queues",
    "p2",
    "p3",
    "queues",
    "romsize",
    "vectors",
];

/// Properties that say how the host serves the device, or that no guest relies on: errors and statistics of the
/// drive, and the events that a build of QEMU can report.
const OF_HOST: [&str; 9] = [
    "account-failed",
    "account-invalid",
    "backend_defaults",
    "events",
    "ioeventfd",
    "rerror",
    "share-rw",
    "stats-intervals",
    "werror",
];

/// The geometry of a disk, which QEMU guesses from the disk's size and partition table when it starts.
const GUESSED: [&str; 7] = ["bios-chs-trans", "cyls", "heads", "lcyls", "lheads", "lsecs", "secs"];

/// Properties with a present value of the guest's own: its firmware has numbered buses and set addresses of registers,
/// which a waiting destination has not.
const OF_GUEST: [&str; 3] = ["MCFG", "busnr", "smb_io_base"];

/// Properties with the size of a virtio device's rings.
const RING_SIZES: [&str; 4] = ["queue-size", "rx_queue_size", "tx_queue_size", "virtqueue_size"];

/// What follows from a property that differs, the gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// QEMU refuses the state of the device.
    State,
    /// The device without an id is at another address.
    Address,
    /// The guest sees the property.
    Guest,
    /// The guest does not see the property.
    Host,
}

pub(super) fn run(source: &SideFacts, destination: &SideFacts) -> Vec<Finding> {
    let (machine, other) = (&source.machine, &destination.machine);
    match (&machine.device_tree, &other.device_tree) {
        (Some(tree), Some(other_tree)) => {
            let counted = machine.devices.unnamed.keys().chain(other.devices.unnamed.keys());
            let mut comparison = TreeComparison { counted: counted.cloned().collect(), findings: Vec::new() };
            comparison.compare(tree, other_tree, "");
            comparison.findings
        }
        _ => {
            let message = "the properties of the devices are not known on both sides";
            vec![Finding::new(FindingCode::NotCompared, &destination.name, message)]
        }
    }
}

struct TreeComparison {
    /// The types of which the comparison of the devices counts those without an id.
    counted: BTreeSet<String>,
    findings: Vec<Finding>,
}

impl TreeComparison {
    /// Compares the devices of two buses and all below them. `above` is the id of the nearest device above that has
    /// one.
    fn compare(&mut self, source: &DeviceBus, destination: &DeviceBus, above: &str) {
        let Counterparts { pairs, missing, extra } = counterparts(&source.devices, &destination.devices);
        for (code, side, devices) in
            [(FindingCode::DeviceMissing, "source", missing), (FindingCode::DeviceExtra, "destination", extra)]
        {
            let of_board = devices.into_iter().filter(|device| self.is_of_board(device)).map(|device| {
                let message = format!("only the {side} has this device of the machine itself");
                Finding::new(code.clone(), &describe(device), message)
            });
            let found: Vec<Finding> = of_board.collect();
            self.findings.extend(found);
        }
        for (device, other) in pairs {
            let named = if device.id.is_empty() { above } else { &device.id };
            let name = if named.is_empty() { describe(device) } else { named.to_owned() };
            self.findings.extend(differences(device, other, &name));
            for (bus, other) in device.buses.iter().zip(&other.buses).filter(|(bus, other)| bus.kind == other.kind) {
                self.compare(bus, other, named);
            }
        }
    }

    /// Whether no other comparison finds a device that one side alone has: those with an id, those that a user added
    /// and functions of PCI are found by themselves.
    fn is_of_board(&self, device: &BusDevice) -> bool {
        device.id.is_empty() && !self.counted.contains(&device.kind) && !device.properties.contains_key("addr")
    }
}

/// Pairs the devices of two buses: a device's counterpart is of its kind, and the one of its id, or else of its
/// address, or else of its turn, where it has no address on a bus of PCI.
fn counterparts<'a>(source: &'a [BusDevice], destination: &'a [BusDevice]) -> Counterparts<'a, BusDevice> {
    let same_kind = |one: &BusDevice, other: &BusDevice| one.kind == other.kind;
    let same_id =
        |one: &BusDevice, other: &BusDevice| same_kind(one, other) && !one.id.is_empty() && one.id == other.id;
    let same_address = |one: &BusDevice, other: &BusDevice| {
        let address = address(one);
        same_kind(one, other) && !address.is_empty() && address == self::address(other)
    };
    let is_loose = |device: &BusDevice| device.id.is_empty() && !device.properties.contains_key("addr");
    let same_turn = |one: &BusDevice, other: &BusDevice| same_kind(one, other) && is_loose(one) && is_loose(other);
    pair_up(source, destination, [&same_id, &same_address, &same_turn])
}

fn address(device: &BusDevice) -> BTreeMap<&str, &str> {
    let properties = device.properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    properties.filter(|(name, _)| ADDRESSES.contains(name)).collect()
}

/// A device without an id, for people.
fn describe(device: &BusDevice) -> String {
    let address: Vec<String> = address(device).iter().map(|(name, value)| format!("{name}={value}")).collect();
    if address.is_empty() { device.kind.clone() } else { format!("{} at {}", device.kind, address.join(",")) }
}

/// The findings about one device: one for each weight.
fn differences(device: &BusDevice, other: &BusDevice, name: &str) -> Vec<Finding> {
    let mut found: BTreeMap<Weight, Vec<(&str, &str, &str)>> = BTreeMap::new();
    for (property, value) in &device.properties {
        let Some(other_value) = other.properties.get(property).filter(|other| !is_same(property, value, other)) else {
            continue;
        };
        if let Some(weight) = weight(device, property) {
            let weight = if is_larger_ring(property, value, other_value) { Weight::Host } else { weight };
            found.entry(weight).or_default().push((property, value, other_value));
        }
    }
    found.into_iter().map(|(weight, differences)| finding(weight, device, name, &differences)).collect()
}

/// Whether two values mean the same. 7.2 prints a switch as 1 that later versions leave open as -1: a ROM that is shown
/// to the guest, which is the default. Paths in QOM are numbered anew in every machine.
fn is_same(property: &str, value: &str, other: &str) -> bool {
    let both = |test: fn(&str) -> bool| test(value) && test(other);
    value == other
        || both(|value| value.starts_with("\"/machine/"))
        || property == "rombar" && both(|value| ["1", "-1"].contains(&value))
}

/// Whether the destination has room for larger rings than the source. The guest keeps its rings, which fit, until it
/// resets the device.
fn is_larger_ring(property: &str, value: &str, other: &str) -> bool {
    let size = |value: &str| value.parse::<u64>().ok();
    RING_SIZES.contains(&property) && size(other) > size(value)
}

/// `None` for a property that does not count.
fn weight(device: &BusDevice, property: &str) -> Option<Weight> {
    match property {
        // The place of a device with an id, or on a bus of PCI, is compared with the devices themselves.
        "addr" => None,
        _ if ADDRESSES.contains(&property) => device.id.is_empty().then_some(Weight::Address),
        _ if [&NAMES[..], &OF_GUEST, &GUESSED].iter().any(|table| table.contains(&property)) => None,
        _ if OF_STATE.contains(&property) => Some(Weight::State),
        _ if OF_HOST.contains(&property) || property.starts_with("x-") => Some(Weight::Host),
        _ => Some(Weight::Guest),
    }
}

fn finding(weight: Weight, device: &BusDevice, name: &str, differences: &[(&str, &str, &str)]) -> Finding {
    let told: Vec<String> = differences
        .iter()
        .map(|(property, value, other)| format!("{property} is {value} on the source and {other} on the destination"))
        .collect();
    let code = match weight {
        Weight::State => FindingCode::DeviceState,
        Weight::Address => FindingCode::DeviceDiffers,
        Weight::Guest => FindingCode::DeviceProperty,
        Weight::Host => FindingCode::DeviceSetting,
    };
    let message = format!("the two {} differ: {}", device.kind, told.join(", "));
    let finding = Finding::new(code, name, message);
    if weight == Weight::Host {
        return finding;
    }
    let wanted: Vec<String> =
        differences.iter().map(|(property, value, _)| format!("{property}={}", value.trim_matches('"'))).collect();
    finding.with_remedy(format!("start the destination with the source's value: {}", wanted.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{codes::Severity, preflight::facts::device_tree};

    /// A virtual disk, a controller of SCSI with two disks without ids, and a device of the board.
    const TREE: &str = r#"bus: main-system-bus
  type System
  dev: hpet, id ""
    timers = 3 (0x3)
  dev: i440FX-pcihost, id ""
    bus: pci.0
      type PCI
      dev: virtio-scsi-pci, id "scsi0"
        addr = 05.0
        bus: virtio-bus
          type virtio-pci-bus
          dev: virtio-scsi-device, id ""
            num_queues = 1 (0x1)
            bus: scsi0.0
              type SCSI
              dev: scsi-hd, id ""
                drive = "n2"
                serial = "two"
                scsi-id = 0 (0x0)
                lun = 1 (0x1)
              dev: scsi-hd, id ""
                drive = "n1"
                serial = "one"
                scsi-id = 0 (0x0)
                lun = 0 (0x0)
      dev: virtio-blk-pci, id "disk0"
        addr = 04.0
        rombar = -1 (0xffffffffffffffff)
        vectors = 2 (0x2)
        bus: virtio-bus
          type virtio-pci-bus
          dev: virtio-blk-device, id ""
            drive = "n0"
            logical_block_size = 512 (512 B)
            queue-size = 256 (0x100)
            serial = ""
            werror = "auto"
            x-new = true
"#;

    fn found(changes: &[(&str, &str)]) -> Vec<Finding> {
        let other = changes.iter().fold(TREE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        });
        let tree = |text: &str| device_tree::read(text).expect("a tree");
        let mut comparison = TreeComparison { counted: BTreeSet::new(), findings: Vec::new() };
        comparison.compare(&tree(TREE), &tree(&other), "");
        comparison.findings
    }

    #[test]
    fn each_property_has_its_weight() {
        use Severity::{Blocker, Note};
        type Case = (&'static [(&'static str, &'static str)], &'static [(&'static str, Severity, &'static str)]);
        let cases: [Case; 14] = [
            (&[], &[]),
            (&[("drive = \"n0\"", "drive = \"other\"")], &[]),
            (&[("drive = \"n0\"", "drive = \"/machine/unattached/device[6]\"")], &[]),
            (&[("rombar = -1 (0xffffffffffffffff)", "rombar = 1 (0x1)")], &[]),
            (&[("512 (512 B)", "4096 (4 KiB)")], &[("device-property", Blocker, "disk0")]),
            (&[("serial = \"\"", "serial = \"x\"")], &[("device-property", Blocker, "disk0")]),
            (&[("vectors = 2", "vectors = 5")], &[("device-state", Blocker, "disk0")]),
            (&[("num_queues = 1 ", "num_queues = 4 ")], &[("device-state", Blocker, "scsi0")]),
            (&[("werror = \"auto\"", "werror = \"stop\"")], &[("device-setting", Note, "disk0")]),
            (&[("x-new = true", "x-new = false")], &[("device-setting", Note, "disk0")]),
            (&[("queue-size = 256", "queue-size = 1024")], &[("device-setting", Note, "disk0")]),
            (&[("            x-new = true\n", "")], &[]),
            (&[("serial = \"two\"", "serial = \"2\"")], &[("device-property", Blocker, "scsi0")]),
            (
                &[("lun = 1 (0x1)", "lun = 3 (0x3)"), ("serial = \"one\"", "serial = \"1\"")],
                &[("device-property", Blocker, "scsi0"), ("device-differs", Blocker, "scsi0")],
            ),
        ];
        for (changes, wanted) in cases {
            let found = found(changes);
            let told: Vec<_> = found
                .iter()
                .map(|finding| (finding.code.as_str(), finding.severity, finding.subject.as_str()))
                .collect();
            assert_eq!(told, wanted, "{changes:?}: {found:?}");
        }
    }

    #[test]
    fn a_finding_names_property_and_both_values() {
        let found = found(&[("512 (512 B)", "4096 (4 KiB)"), ("queue-size = 256", "queue-size = 128")]);
        let [finding] = found.as_slice() else { panic!("{found:?}") };
        let text = finding.to_string();
        assert!(text.contains("logical_block_size is 512 on the source and 4096 on the destination"), "{text}");
        assert!(text.contains("logical_block_size=512,queue-size=256"), "{text}");
    }

    #[test]
    fn devices_of_one_bus_are_paired_whatever_their_order() {
        let (first, second) = ("\n                lun = 1 (0x1)", "\n                lun = 0 (0x0)");
        let exchanged = [(first, "\n                lun = 9"), (second, first), ("\n                lun = 9", second)];
        let serials = [("\"two\"", "\"3\""), ("\"one\"", "\"two\""), ("\"3\"", "\"one\"")];
        assert_eq!(found(&[exchanged, serials].concat()), []);
    }

    #[test]
    fn a_device_of_the_board_that_one_side_lacks_is_found() {
        let found = found(&[("  dev: hpet, id \"\"\n    timers = 3 (0x3)\n", "")]);
        let [finding] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((finding.code.as_str(), finding.subject.as_str()), ("device-missing", "hpet"));
    }
}
