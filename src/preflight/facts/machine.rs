//! The machine that one side emulates: its version, type, CPUs, RAM blocks and devices.
//!
//! Every query goes over one connection, in two rounds; a command takes about half a millisecond. A query that could
//! delay the guest must never be sent from here.

use super::{
    cpu::{self, CpuFacts, IDENTITY},
    device_tree::{self, DeviceBus},
    devices::DeviceTable,
    possible_cpus::{self, PossibleCpus},
    qom::{known, property},
    ram_blocks::{self, RamBlock},
    virtqueues::VirtioDevice,
};
use crate::{
    qemu::{
        Process, ProcessError,
        reply::{FeatureWord, QomProperty, TolerantList},
    },
    qmp::QemuVersion,
};
use qapi::qmp;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};
use tokio::try_join;

/// The machine that one side emulates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineFacts {
    /// QEMU's version.
    pub version: QemuVersion,
    /// QEMU's package: a distribution changes what its builds do without another version.
    pub package: String,
    /// The machine type, such as `pc-i440fx-10.0-machine`.
    pub kind: Option<String>,
    /// The number of virtual CPUs.
    pub cpus: usize,
    /// The first virtual CPU: one `-cpu` makes them all alike.
    pub cpu: Option<CpuFacts>,
    /// The blocks of RAM and ROM by name; `None` where QEMU did not tell.
    pub ram_blocks: Option<BTreeMap<String, RamBlock>>,
    /// The devices that the guest finds on its buses.
    pub devices: DeviceTable,
    /// The tree of buses with the properties of all devices; `None` where QEMU did not tell. The facts of a later look
    /// have the same one: it is the largest of all.
    pub device_tree: Option<Arc<DeviceBus>>,
    /// The properties of the machine itself that count, in words.
    pub properties: BTreeMap<String, String>,
    /// The places for virtual CPUs; `None` for a machine whose CPUs are not told by place.
    pub possible_cpus: Option<PossibleCpus>,
    /// The virtio devices with the sizes of their rings; asked for only where the two builds differ.
    pub virtio: Vec<VirtioDevice>,
}

/// Properties of a machine that do not count: names of files and objects of the host, what the host does with the
/// guest's memory, the clock's time, and what is compared elsewhere.
const UNCOUNTED: [&str; 23] = [
    "append",
    "aux-ram-share",
    "boot",
    "bus-lock-ratelimit",
    "confidential-guest-support",
    "dtb",
    "dump-guest-core",
    "dumpdtb",
    "firmware",
    "initrd",
    "kernel",
    "mem-merge",
    "memory",
    "memory-backend",
    "memory-encryption",
    "nvdimm-persistence",
    "pcspk-audiodev",
    "phandle-start",
    "rtc-time",
    "shim",
    "smp",
    "suppress-vmdesc",
    "type",
];

/// Asks one side.
///
/// # Errors
/// QEMU does not answer. A query that QEMU refuses or answers in another form is no error: that fact stays unknown.
pub async fn gather(process: &Process) -> Result<MachineFacts, ProcessError> {
    let (version, kind, cpus, blocks, mut devices, tree, properties, possible) = try_join!(
        process.ask(&qmp::query_version {}),
        property(process, "/machine", "type"),
        process.ask(&qmp::query_cpus_fast {}),
        known(process.ask(&qmp::x_query_ramblock {})),
        listed_devices(process),
        device_tree(process),
        machine_properties(process),
        known(process.ask(&qmp::query_hotpluggable_cpus {})),
    )?;
    place(process, &mut devices, tree.as_ref()).await?;
    let cpu = first_cpu(process, cpus.0.first().map(|cpu| cpu.qom_path.as_str())).await?;
    Ok(MachineFacts {
        version: version.qemu,
        package: version.package,
        kind: kind.as_ref().map(text),
        cpus: cpus.0.len(),
        cpu,
        ram_blocks: blocks.and_then(|table| ram_blocks::read(&table.human_readable_text)),
        devices,
        device_tree: tree.map(Arc::new),
        properties,
        possible_cpus: possible.map(|list| possible_cpus::read(&list.0)),
        virtio: Vec::new(),
    })
}

/// Asks one side for the properties of its machine.
async fn machine_properties(process: &Process) -> Result<BTreeMap<String, String>, ProcessError> {
    let path = "/machine";
    let Some(list) = known(process.ask(&qmp::qom_list { path: path.to_owned() })).await? else {
        return Ok(BTreeMap::new());
    };
    let is_value = |property: &QomProperty| property.child().is_none() && !property.kind.starts_with("link<");
    let counts = |property: &QomProperty| is_value(property) && !UNCOUNTED.contains(&property.name.as_str());
    let names = list.0.into_iter().filter(counts).map(|property| property.name);
    let asked: Vec<_> = names.map(|name| (property(process, path, &name), name)).collect();
    let mut found = BTreeMap::new();
    for (answer, name) in asked {
        if let Some(value) = answer.await? {
            found.insert(name, text(&value));
        }
    }
    Ok(found)
}

/// Asks one side for its devices.
///
/// # Errors
/// As [`gather`].
pub async fn devices(process: &Process) -> Result<DeviceTable, ProcessError> {
    let mut devices = listed_devices(process).await?;
    // the largest answer of all is asked for only where a device is on no root bus of PCI
    let tree = if devices.is_unplaced() { device_tree(process).await? } else { None };
    place(process, &mut devices, tree.as_ref()).await?;
    Ok(devices)
}

/// Asks one side for its buses and the properties of all devices on them.
async fn device_tree(process: &Process) -> Result<Option<DeviceBus>, ProcessError> {
    let ask = qmp::human_monitor_command { command_line: "info qtree".to_owned(), cpu_index: None };
    Ok(known(process.ask(&ask)).await?.and_then(|text| device_tree::read(&text)))
}

/// Asks one side for its devices, of which those on a root bus of PCI have a place.
async fn listed_devices(process: &Process) -> Result<DeviceTable, ProcessError> {
    let children = |path: &str| process.ask(&qmp::qom_list { path: path.to_owned() });
    let (named, unnamed, buses) = try_join!(
        known(children("/machine/peripheral")),
        known(children("/machine/peripheral-anon")),
        // a machine may have no PCI
        known(process.ask(&qmp::query_pci {})),
    )?;
    let list = |list: Option<TolerantList<_>>| list.map(|list| list.0).unwrap_or_default();
    let buses = buses.map(|buses| buses.0).unwrap_or_default();
    Ok(DeviceTable::new(&list(named), &list(unnamed), &buses))
}

async fn first_cpu(process: &Process, path: Option<&str>) -> Result<Option<CpuFacts>, ProcessError> {
    let Some(path) = path else { return Ok(None) };
    let asked = IDENTITY.map(|name| (name, property(process, path, name)));
    let words = property(process, path, "feature-words").await?;
    // every query takes time, and the type counts only where there are no feature words
    let kind = if words.is_none() { property(process, path, "type").await? } else { None };
    let mut identity = BTreeMap::new();
    for (name, answer) in asked {
        if let Some(value) = answer.await? {
            identity.insert(name, text(&value));
        }
    }
    let words = words.and_then(|words| serde_json::from_value::<Vec<FeatureWord>>(words).ok());
    let features = words.map(|words| cpu::words(&words));
    Ok(Some(CpuFacts { path: path.to_owned(), kind: kind.as_ref().map(text), identity, features, lacks: Vec::new() }))
}

/// Gives the devices that are on no root bus of PCI their places: those of the tree, and the addresses of memory
/// devices, which are on no bus.
async fn place(process: &Process, devices: &mut DeviceTable, tree: Option<&DeviceBus>) -> Result<(), ProcessError> {
    if let Some(tree) = tree {
        devices.place_by(tree);
    }
    let loose = devices.named.iter_mut().filter(|(_, device)| device.place.is_none());
    let ask = |id: &str| property(process, &format!("/machine/peripheral/{id}"), "addr");
    let asked: Vec<_> = loose.map(|(id, device)| (ask(id), device)).collect();
    for (addr, device) in asked {
        device.place = addr.await?.and_then(|addr| addr.as_u64()).map(|addr| format!("{addr:#x}"));
    }
    Ok(())
}

/// Asks for the names of the features that the destination's CPU lacks, if bits are missing at all. The names take some
/// hundred queries; a migration with missing features will hardly start, so that time does not matter.
///
/// # Errors
/// QEMU does not answer.
pub async fn name_lacking(
    source: &Process,
    destination: &Process,
    source_machine: &MachineFacts,
    destination_machine: &mut MachineFacts,
) -> Result<(), ProcessError> {
    let (Some(source_cpu), Some(destination_cpu)) = (&source_machine.cpu, &mut destination_machine.cpu) else {
        return Ok(());
    };
    if cpu::lacking(source_cpu, destination_cpu).is_empty() {
        return Ok(());
    }
    let Some(list) = known(source.ask(&qmp::qom_list { path: source_cpu.path.clone() })).await? else {
        return Ok(());
    };
    let switches = list.0.into_iter().filter(|property| property.kind == "bool" && cpu::is_feature(&property.name));
    let names: Vec<String> = switches.map(|property| property.name).collect();
    let on = flags(source, &source_cpu.path, &names, true).await?;
    destination_cpu.lacks = cpu::distinct(flags(destination, &destination_cpu.path, &on, false).await?);
    Ok(())
}

/// Those of the properties that are on, or those that are not.
async fn flags(process: &Process, path: &str, names: &[String], on: bool) -> Result<Vec<String>, ProcessError> {
    let asked: Vec<_> = names.iter().map(|name| (name, property(process, path, name))).collect();
    let mut found = Vec::new();
    for (name, answer) in asked {
        if (answer.await? == Some(Value::Bool(true))) == on {
            found.push(name.clone());
        }
    }
    Ok(found)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
