//! The tree of buses and devices that `info qtree` prints, with the properties of every device.
//!
//! Pure. The text is made for people, and it is the one answer of QEMU with the properties of all devices: a machine
//! with 50 devices has 4000 of them, which `qom-get` would tell one by one in half a second. All versions from 7.2 on
//! print a value in the same words. A line of another form is passed over.

use std::collections::BTreeMap;

/// The devices on a bus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceBus {
    /// The name, such as `pci.0`.
    pub name: String,
    /// The type of the bus, such as `PCI`.
    pub kind: String,
    /// The devices, the oldest first.
    pub devices: Vec<BusDevice>,
}

/// A device on its bus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BusDevice {
    /// The QOM type, such as `virtio-blk-pci`.
    pub kind: String,
    /// The id; empty where the device has none.
    pub id: String,
    /// The properties with their values in QEMU's words.
    pub properties: BTreeMap<String, String>,
    /// The buses of the device itself.
    pub buses: Vec<DeviceBus>,
}

/// A line with the number of spaces before the text.
type Indented<'a> = (usize, &'a str);

/// Reads the text; `None` where the text does not begin with a bus.
pub fn read(text: &str) -> Option<DeviceBus> {
    let lines: Vec<Indented<'_>> =
        text.lines().map(|line| (line.len() - line.trim_start().len(), line.trim())).collect();
    let mut lines = lines.as_slice();
    let (depth, first) = *lines.first()?;
    let name = first.strip_prefix(BUS)?;
    Some(bus(name, depth, &mut lines, 0))
}

/// The begin of a bus's line, before its name.
const BUS: &str = "bus: ";

/// Buses below buses that are read; no machine has as many.
const DEEPEST: usize = 64;

/// Reads the bus whose line is the first, and all lines below it.
fn bus(name: &str, depth: usize, lines: &mut &[Indented<'_>], level: usize) -> DeviceBus {
    let mut read = DeviceBus { name: name.to_owned(), ..DeviceBus::default() };
    for_each_below(depth, lines, |at, line, rest| {
        if let Some(kind) = line.strip_prefix("type ") {
            read.kind = kind.to_owned();
        } else if let Some((kind, id)) = line.strip_prefix("dev: ").and_then(|line| line.split_once(", id ")) {
            let named =
                BusDevice { kind: kind.to_owned(), id: id.trim_matches('"').to_owned(), ..BusDevice::default() };
            read.devices.push(device(named, at, rest, level));
        }
    });
    // QEMU prints the newest device first
    read.devices.reverse();
    read
}

/// Reads the lines below a device.
fn device(mut read: BusDevice, depth: usize, lines: &mut &[Indented<'_>], level: usize) -> BusDevice {
    for_each_below(depth, lines, |at, line, rest| {
        if let Some(name) = line.strip_prefix(BUS) {
            if level < DEEPEST {
                read.buses.push(bus(name, at, rest, level + 1));
            }
        } else if let Some(port) = usb_port(line) {
            read.properties.insert("port".to_owned(), format!("\"{port}\""));
        } else if let Some((name, value)) = line.split_once(" = ").filter(|(name, _)| !name.contains(' ')) {
            read.properties.insert(name.to_owned(), plain(value));
        }
    });
    read
}

/// Takes the first line, and then each line that is deeper; `take` may take the lines below the one that it is given.
fn for_each_below<'a>(
    depth: usize,
    lines: &mut &[Indented<'a>],
    mut take: impl FnMut(usize, &'a str, &mut &[Indented<'a>]),
) {
    pass(lines);
    while let Some((at, line)) = lines.first().copied().filter(|(at, _)| *at > depth) {
        let before = lines.len();
        take(at, line, lines);
        // a line that nobody took is passed over
        if lines.len() == before {
            pass(lines);
        }
    }
}

fn pass(lines: &mut &[Indented<'_>]) {
    *lines = lines.get(1..).unwrap_or_default();
}

/// The port of a USB device, from a line such as `addr 0.0, port 2.1, speed 12, name QEMU USB Hub, attached`: the
/// property of a port that QEMU chose stays empty.
fn usb_port(line: &str) -> Option<&str> {
    line.strip_prefix("addr ")?.split_once(", port ")?.1.split_once(", speed ").map(|(port, _)| port)
}

/// A value without its second form: `512 (512 B)` is `512`.
fn plain(value: &str) -> String {
    let number = value.split_once(" (").map(|(number, _)| number).filter(|number| number.parse::<i128>().is_ok());
    number.unwrap_or(value).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of QEMU 10.0.13.
    const TEXT: &str = r#"bus: main-system-bus
  type System
  dev: ps2-kbd, id ""
    gpio-out "" 1
  dev: i440FX-pcihost, id ""
    pci-hole64-size = 2147483648 (2 GiB)
    bus: pci.0
      type PCI
      dev: virtio-blk-pci, id "disk0"
        addr = 04.0
        class SCSI controller, addr 00:04.0, pci id 1af4:1001 (sub 1af4:0002)
        bar 0: i/o at 0xffffffffffffffff [0x7e]
        bus: virtio-bus
          type virtio-pci-bus
          dev: virtio-blk-device, id ""
            drive = "n0"
            stats-intervals = <null>
            serial = "a = b (c)"
            rombar = -1 (0xffffffffffffffff)
      dev: i440FX, id ""
        addr = 00.0
"#;

    #[test]
    fn devices_are_read_with_their_buses_and_properties() {
        let root = read(TEXT).expect("a tree");
        assert_eq!(root.kind, "System");
        let kinds: Vec<&str> = root.devices.iter().map(|device| device.kind.as_str()).collect();
        assert_eq!(kinds, ["i440FX-pcihost", "ps2-kbd"]);
        let host = &root.devices[0];
        assert_eq!(host.properties, [("pci-hole64-size".to_owned(), "2147483648".to_owned())].into());
        let [pci] = host.buses.as_slice() else { panic!("{host:?}") };
        assert_eq!((pci.kind.as_str(), pci.devices.len()), ("PCI", 2));
        let (board, disk) = (&pci.devices[0], &pci.devices[1]);
        assert_eq!((board.kind.as_str(), board.id.as_str()), ("i440FX", ""));
        assert_eq!((disk.kind.as_str(), disk.id.as_str(), disk.properties.len()), ("virtio-blk-pci", "disk0", 1));
        let backend = &disk.buses[0].devices[0].properties;
        let values: Vec<&str> = backend.values().map(String::as_str).collect();
        assert_eq!(values, ["\"n0\"", "-1", "\"a = b (c)\"", "<null>"]);
    }

    #[test]
    fn other_texts_are_not_read_and_cut_ones_end_early() {
        for text in ["", "nothing", "  dev: a, id \"\"\n"] {
            assert_eq!(read(text), None, "{text:?}");
        }
        for end in 0..TEXT.len() {
            assert_eq!(read(&TEXT[..end]).is_some(), end > "bus: ".len(), "{end}");
        }
        let deep: String =
            (0..2000).map(|depth| format!("{:depth$}bus: b\n{:depth$} dev: d, id \"\"\n", "", "")).collect();
        assert!(read(&deep).is_some());
    }
}
