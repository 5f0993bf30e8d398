//! The virtual CPUs that a machine can have, by their places in its topology.
//!
//! Pure.

use crate::qemu::reply::HotpluggableCpu;
use std::collections::BTreeMap;

/// A place for a virtual CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuPlace {
    /// The number of virtual CPUs that a device in this place is.
    pub count: u64,
    /// Whether there is one.
    pub is_present: bool,
    /// Whether it is a device without an id, made by `-device` or plugged in.
    pub is_unnamed_device: bool,
}

/// Every place by its socket, core and thread: `core-id=1, socket-id=0, thread-id=0`.
pub type PossibleCpus = BTreeMap<String, CpuPlace>;

/// Reads `query-hotpluggable-cpus`.
pub fn read(list: &[HotpluggableCpu]) -> PossibleCpus {
    let place = |cpu: &HotpluggableCpu| {
        let place: Vec<String> = cpu.props.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let path = cpu.qom_path.as_deref();
        let is_unnamed_device = path.is_some_and(|path| path.starts_with("/machine/peripheral-anon/"));
        (place.join(", "), CpuPlace { count: cpu.vcpus_count, is_present: path.is_some(), is_unnamed_device })
    };
    list.iter().map(place).collect()
}

/// Whether a QOM type is one of virtual CPUs, such as `qemu64-x86_64-cpu`.
pub fn is_cpu(kind: &str) -> bool {
    kind.ends_with("-cpu") || kind.ends_with("-cpu-core")
}
