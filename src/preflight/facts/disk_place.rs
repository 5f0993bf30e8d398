//! The place in which the guest finds a disk: the address of the disk's device on its bus, then that of the bus's
//! controller, and so on up to the machine.
//!
//! Pure. Names that a user or QEMU chose are no part of a place: the guest does not see ids, and every version of QEMU
//! numbers the paths in QOM anew.

use crate::qemu::reply::QomProperty;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

/// The type of the bus that the machine itself is, where every chain of buses ends.
pub(super) const SYSTEM_BUS: &str = "System";

/// Every property that says where a device is on its bus.
pub const ADDRESSES: [&str; 11] =
    ["addr", "channel", "scsi-id", "lun", "unit", "port", "nsid", "iobase", "dev_id", "reg", "vdev"];

/// An object in QOM that is a device on a bus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QomDevice {
    /// The QOM type, such as `scsi-hd`.
    pub kind: String,
    /// The path of the bus that the device is on, in QOM.
    pub bus: String,
    /// The type of that bus, such as `SCSI`.
    pub bus_kind: String,
    /// The names of the buses of each type that the device itself has.
    pub own_buses: BTreeMap<String, Vec<String>>,
    /// The properties that say where the device is on its bus, in words.
    pub addresses: BTreeMap<&'static str, String>,
    /// The number of the root bus that an expander bridge (`pxb`) makes.
    pub root_bus_number: Option<u64>,
}

/// The place of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlace {
    /// The disk's device and its bus, the controller and its bus, and so on up to the machine.
    steps: Vec<PlaceStep>,
}

/// The place of each disk drive, by QEMU's name for its device, or the reason why the place is not known.
pub type DiskPlaces = BTreeMap<String, Result<DiskPlace, String>>;

/// A device on a bus.
#[derive(Debug, Clone)]
struct PlaceStep {
    /// The type of the device, for people.
    kind: String,
    /// The bus: its position among the buses of its controller, or the name that the machine gives a root bus.
    bus: String,
    /// Whether the controller has other buses of this kind, or the bus is one of the machine's.
    bus_counts: bool,
    addresses: BTreeMap<&'static str, String>,
}

/// The type of a device is compared with the devices, and not once more as a part of the place.
impl PartialEq for PlaceStep {
    fn eq(&self, other: &Self) -> bool {
        (&self.bus, &self.addresses) == (&other.bus, &other.addresses)
    }
}

impl Eq for PlaceStep {}

/// The properties that say where a device is on a bus of this type; `None` for a bus that this version does not know.
fn addresses_on(bus_kind: &str) -> Option<&'static [&'static str]> {
    Some(match bus_kind {
        "PCI" | "PCIE" | "CXL" | "pxb-bus" | "pxb-pcie-bus" | "pxb-cxl-bus" => &["addr"],
        "SCSI" => &["channel", "scsi-id", "lun"],
        "IDE" | "floppy-bus" => &["unit"],
        "usb-bus" => &["port"],
        "ISA" => &["iobase"],
        // each of these buses holds one device
        "virtio-pci-bus" | "virtio-mmio-bus" | "virtio-ccw-bus" | SYSTEM_BUS => &[],
        _ => return None,
    })
}

/// The names among a device's properties that say where a device is on its bus.
pub(super) fn address_names(properties: &[QomProperty]) -> Vec<&'static str> {
    let has = |name: &&str| properties.iter().any(|property| property.name == *name);
    ADDRESSES.into_iter().filter(has).collect()
}

/// The value of such a property in words; `None` where the property is not set.
pub(super) fn address_text(name: &str, value: &Value) -> Option<String> {
    match value {
        Value::Number(devfn) if name == "addr" => {
            devfn.as_u64().map(|devfn| format!("{:02x}.{:x}", devfn >> 3, devfn & 7))
        }
        Value::Number(number) if name == "iobase" => number.as_u64().map(|port| format!("{port:#x}")),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        _ => None,
    }
}

/// The children of a device that are buses or other objects, by their types.
pub(super) fn children(properties: &[QomProperty]) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for property in properties {
        if let Some(kind) = property.child() {
            found.entry(kind.to_owned()).or_default().push(property.name.clone());
        }
    }
    found
}

/// The path of a block device's own device in QOM: QEMU names the device by that path, or by its id.
pub(super) fn device_path(qdev: &str) -> String {
    if qdev.starts_with('/') { qdev.to_owned() } else { format!("/machine/peripheral/{qdev}") }
}

/// The path and the name of a bus, from the bus's path.
pub(super) fn controller(bus: &str) -> Option<(&str, &str)> {
    bus.rsplit_once('/')
}

/// The ports of USB devices with an id, from `x-query-usb`: the property of a port that QEMU chose stays empty.
pub(super) fn usb_ports(text: &str) -> BTreeMap<String, String> {
    let port = |line: &str| {
        let (rest, id) = line.rsplit_once(", ID: ")?;
        let port = rest.split(", ").find_map(|part| part.trim().strip_prefix("Port "))?;
        Some((id.trim().to_owned(), port.to_owned()))
    };
    text.lines().filter_map(port).collect()
}

/// Combines the devices of one QEMU to the place of a disk.
///
/// # Errors
/// The reason why the place is not known.
pub fn place(qdev: &str, devices: &BTreeMap<String, QomDevice>) -> Result<DiskPlace, String> {
    let mut steps = Vec::new();
    let mut path = device_path(qdev);
    let mut bus_below = "";
    // each device is met once on the way up
    for _ in devices {
        let device = devices.get(&path).ok_or_else(|| format!("QEMU does not tell the bus of {path}"))?;
        let Some((parent, name)) = controller(&device.bus) else {
            return Err(format!("QEMU does not tell the bus of {path}"));
        };
        let mut step = PlaceStep {
            kind: device.kind.clone(),
            bus: String::new(),
            bus_counts: true,
            addresses: addresses(device, &path)?,
        };
        if device.bus_kind == SYSTEM_BUS {
            // Only a disk that is no device on a bus needs a name: the board gives the name.
            if steps.is_empty() {
                step.bus = path.rsplit('/').next().unwrap_or_default().to_owned();
                steps.push(step);
            }
            return Ok(DiskPlace { steps });
        }
        let controller = devices.get(parent).ok_or_else(|| format!("QEMU does not tell the bus of {parent}"))?;
        if controller.bus_kind == SYSTEM_BUS {
            // An expander bridge gives its id to its root bus, or to the bus below.
            let number = [name, bus_below].iter().find_map(|id| devices.get(&device_path(id))?.root_bus_number);
            step.bus = number.map_or_else(|| name.to_owned(), |number| format!("root bus {number}"));
        } else {
            let all = controller.own_buses.get(&device.bus_kind).map(Vec::as_slice).unwrap_or_default();
            step.bus_counts = all.len() > 1;
            step.bus = position(name, all).to_string();
        }
        steps.push(step);
        (bus_below, path) = (name, parent.to_owned());
    }
    Err(format!("QEMU does not tell the bus of {path}"))
}

fn addresses(device: &QomDevice, path: &str) -> Result<BTreeMap<&'static str, String>, String> {
    let Some(wanted) = addresses_on(&device.bus_kind) else {
        return match device.addresses.is_empty() {
            true => Err(format!("qferry does not know how {} is addressed on a {} bus", device.kind, device.bus_kind)),
            false => Ok(device.addresses.clone()),
        };
    };
    let value = |name: &'static str| match device.addresses.get(name) {
        Some(value) => Ok((name, value.clone())),
        None => Err(format!("QEMU does not tell the {name} of {path}")),
    };
    // A device of the board has no port of its own to tell.
    let wanted = wanted.iter().copied().filter(|name| *name != "iobase" || device.addresses.contains_key(name));
    wanted.map(value).collect()
}

/// The position of a bus among the buses of its type that its controller has. The number at the end of a name that QEMU
/// chose counts on over all controllers, and a name with an id has another beginning.
fn position(name: &str, all: &[String]) -> usize {
    let number = |name: &str| name.rsplit_once('.').and_then(|(_, number)| number.parse::<u64>().ok());
    let before = |other: &&String| (number(other), other.as_str()) < (number(name), name);
    all.iter().filter(before).count()
}

impl fmt::Display for DiskPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = String::new();
        for (number, step) in self.steps.iter().enumerate() {
            let addresses: Vec<String> = step.addresses.iter().map(|(name, value)| format!("{name}={value}")).collect();
            // a step without an address says nothing to people
            if addresses.is_empty() && !step.bus_counts {
                continue;
            }
            let separator = if told.is_empty() { "" } else { ", " };
            let device = if number == 0 { String::new() } else { format!("{} ", step.kind) };
            let bus = match (step.bus_counts, step.bus.parse::<usize>()) {
                (true, Ok(position)) => format!(" on bus {position}"),
                (true, Err(_)) => format!(" on {}", step.bus),
                (false, _) => String::new(),
            };
            write!(told, "{separator}{device}{}{bus}", addresses.join(","))?;
        }
        f.pad(told.trim())
    }
}

#[cfg(test)]
impl DiskPlace {
    /// A disk of this LUN on the only controller.
    pub(crate) fn at_lun(lun: usize) -> Self {
        let addresses = [("lun", lun.to_string())].into();
        Self {
            steps: vec![PlaceStep { kind: "scsi-hd".to_owned(), bus: "0".to_owned(), bus_counts: false, addresses }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A device: its path, type, bus, the type of that bus, its addresses and the buses of its own.
    type Described<'a> = (&'a str, &'a str, &'a str, &'a str, &'a [(&'static str, &'a str)], &'a [(&'a str, &'a str)]);

    fn devices(all: &[Described<'_>]) -> BTreeMap<String, QomDevice> {
        let device = |(path, kind, bus, bus_kind, addresses, own): &Described<'_>| {
            let mut own_buses: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (name, kind) in *own {
                own_buses.entry((*kind).to_owned()).or_default().push((*name).to_owned());
            }
            let device = QomDevice {
                kind: (*kind).to_owned(),
                bus: (*bus).to_owned(),
                bus_kind: (*bus_kind).to_owned(),
                own_buses,
                addresses: addresses.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
                root_bus_number: None,
            };
            ((*path).to_owned(), device)
        };
        all.iter().map(device).collect()
    }

    const PCI_HOST: Described<'_> =
        ("/machine/i440fx", "i440FX-pcihost", "/machine/unattached/sysbus", SYSTEM_BUS, &[], &[("pci.0", "PCI")]);

    /// A SCSI disk of an id on a controller of an id.
    fn scsi(disk: &str, lun: &str, controller: &str, addr: &str) -> Result<DiskPlace, String> {
        let (path, parent) = (device_path(disk), device_path(controller));
        let (backend, bus) = (format!("{parent}/virtio-backend"), format!("{parent}/virtio-bus"));
        let (name, on) = (format!("{controller}.0"), format!("{backend}/{controller}.0"));
        let all = devices(&[
            (&path, "scsi-hd", &on, "SCSI", &[("channel", "0"), ("scsi-id", "0"), ("lun", lun)], &[]),
            (&backend, "virtio-scsi-device", &bus, "virtio-pci-bus", &[], &[(&name, "SCSI")]),
            (
                &parent,
                "virtio-scsi-pci",
                "/machine/i440fx/pci.0",
                "PCI",
                &[("addr", addr)],
                &[("virtio-bus", "virtio-pci-bus")],
            ),
            PCI_HOST,
        ]);
        place(disk, &all)
    }

    #[test]
    fn a_place_has_every_address_and_no_id() {
        let one = scsi("sd0", "0", "scsi0", "05.0").unwrap();
        assert_eq!(one.to_string(), "channel=0,lun=0,scsi-id=0, virtio-scsi-pci addr=05.0 on pci.0");
        assert_eq!(one, scsi("other", "0", "controller", "05.0").unwrap());
        assert_ne!(one, scsi("sd0", "1", "scsi0", "05.0").unwrap());
        assert_ne!(one, scsi("sd0", "0", "scsi0", "06.0").unwrap());
    }

    /// An IDE disk on a bus of this name, whose controller has all these buses.
    fn ide(bus: &str, all: &[(&str, &str)], unit: &[(&'static str, &str)]) -> Result<DiskPlace, String> {
        let (path, bus) = ("/machine/peripheral-anon/device[4]", format!("/machine/peripheral/ide/{bus}"));
        let all = devices(&[
            (path, "ide-hd", &bus, "IDE", unit, &[]),
            ("/machine/peripheral/ide", "ahci", "/machine/i440fx/pci.0", "PCI", &[("addr", "05.0")], all),
            PCI_HOST,
        ]);
        place(path, &all)
    }

    #[test]
    fn a_bus_is_known_by_its_position_in_its_controller() {
        let unit = &[("unit", "1")];
        let auto = |first: usize| [0, 1, 2].map(|number| (format!("ide.{}", first + number), "IDE"));
        let as_names = |all: &[(String, &'static str); 3]| -> Vec<(String, &'static str)> { all.to_vec() };
        let with = |bus: &str, all: &[(String, &'static str)]| {
            let all: Vec<(&str, &str)> = all.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
            ide(bus, &all, unit).unwrap()
        };
        let (first, later) = (as_names(&auto(0)), as_names(&auto(9)));
        let second = with("ide.1", &first);
        assert_eq!(second.to_string(), "unit=1 on bus 1, ahci addr=05.0 on pci.0");
        // The numbers of another controller went before, as text `ide.10` sorts before `ide.9`.
        assert_eq!(second, with("ide.10", &later));
        assert_ne!(second, with("ide.11", &later));
        let named = [("a.0".to_owned(), "IDE"), ("a.1".to_owned(), "IDE"), ("b.0".to_owned(), "SCSI")];
        assert_eq!(second, with("a.1", &named));
    }

    #[test]
    fn what_qemu_does_not_tell_is_no_place() {
        let why = ide("ide.0", &[("ide.0", "IDE")], &[]).unwrap_err();
        assert!(why.contains("the unit of /machine/peripheral-anon/device[4]"), "{why}");
        let why = place("sd0", &BTreeMap::new()).unwrap_err();
        assert!(why.contains("the bus of /machine/peripheral/sd0"), "{why}");
        let circle = ("/machine/peripheral/d", "x", "/machine/peripheral/d/x.0", "PCI", &[("addr", "1")][..], &[][..]);
        assert!(place("d", &devices(&[circle])).is_err());
        let new = ("/machine/peripheral/d", "new-disk", "/machine/peripheral/c/c.0", "new-bus", &[][..], &[][..]);
        let why = place("d", &devices(&[new])).unwrap_err();
        assert!(why.contains("new-disk") && why.contains("new-bus"), "{why}");
    }

    #[test]
    fn devices_of_the_board_are_known_by_the_boards_names() {
        let flash = |name: &str| {
            let path = format!("/machine/{name}");
            let bus = "/machine/unattached/sysbus";
            place(&path, &devices(&[(&path, "cfi.pflash01", bus, SYSTEM_BUS, &[], &[])])).unwrap()
        };
        assert_eq!(flash("system.flash0"), flash("system.flash0"));
        assert_ne!(flash("system.flash0"), flash("system.flash1"));
        let mmio = |number: usize| {
            let bus = format!("/machine/unattached/device[9]/virtio-mmio-bus.{number}");
            let all = devices(&[
                ("/machine/peripheral/d", "virtio-blk-device", &bus, "virtio-mmio-bus", &[], &[]),
                ("/machine/unattached/device[9]", "virtio-mmio", "/machine/unattached/sysbus", SYSTEM_BUS, &[], &[]),
            ]);
            place("d", &all).unwrap()
        };
        assert_eq!(mmio(3).to_string(), "on virtio-mmio-bus.3");
        assert_ne!(mmio(3), mmio(4));
    }

    #[test]
    fn an_expander_bridge_is_known_by_the_number_of_its_root_bus() {
        let at = |id: &str, number: u64| {
            let (root, bus) = ("/machine/unattached/device[7]", format!("/machine/unattached/device[7]/{id}"));
            let (path, expander) = ("/machine/peripheral/d", device_path(id));
            let mut all = devices(&[
                (path, "nvme", &bus, "pxb-pcie-bus", &[("addr", "01.0")], &[]),
                (root, "pxb-host", "/machine/unattached/sysbus", SYSTEM_BUS, &[], &[(id, "pxb-pcie-bus")]),
                (&expander, "pxb-pcie", "/machine/q35/pcie.0", "PCIE", &[("addr", "04.0")], &[]),
            ]);
            all.get_mut(&expander).unwrap().root_bus_number = Some(number);
            place("d", &all).unwrap()
        };
        assert_eq!(at("px", 64), at("other", 64));
        assert_ne!(at("px", 64), at("px", 32));
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (name, value, text) in [
            ("addr", json!(24), Some("03.0")),
            ("addr", json!(25), Some("03.1")),
            ("lun", json!(2), Some("2")),
            ("iobase", json!(0x1f0), Some("0x1f0")),
            ("port", json!("1.2"), Some("1.2")),
            ("port", json!(""), None),
            ("port", Value::Null, None),
        ] {
            assert_eq!(address_text(name, &value).as_deref(), text, "{name} {value}");
        }
        let text =
            "  Device 0.0, Port 1, Speed 5000 Mb/s, Product QEMU, Inc, ID: stick\n  Device 0.0, Port 3.2, Product x\n";
        assert_eq!(usb_ports(text), [("stick".to_owned(), "1".to_owned())].into());
    }
}
