//! What QEMU answers about the machine it emulates.

use super::List;
use crate::qmp::QemuVersion;
use serde::Deserialize;

/// `query-version`.
#[derive(Debug, Clone, Deserialize)]
pub struct VersionInfo {
    /// The version that QEMU itself claims; what a distribution patched does not show.
    pub qemu: QemuVersion,
}

/// An element of `query-cpus-fast`: a virtual CPU.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuInfo {
    /// Its path in QOM.
    pub qom_path: String,
}

/// An element of `qom-list`: a property, or a child.
#[derive(Debug, Clone, Deserialize)]
pub struct QomProperty {
    /// Its name.
    pub name: String,
    /// Its type; `child<TYPE>` for a child.
    #[serde(rename = "type")]
    pub kind: String,
}

impl QomProperty {
    /// The type of a child; none of another property.
    pub fn child(&self) -> Option<&str> {
        self.kind.strip_prefix("child<")?.strip_suffix('>')
    }
}

/// An element of a CPU's property `feature-words` (x86): what one register of CPUID tells the guest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FeatureWord {
    /// EAX, the leaf.
    pub cpuid_input_eax: u64,
    /// ECX, where the leaf has others below it.
    pub cpuid_input_ecx: Option<u64>,
    /// The register that has the bits.
    pub cpuid_register: String,
    /// The bits.
    pub features: u64,
}

/// `x-query-ramblock` and others that answer with text for people.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HumanReadable {
    /// The text.
    pub human_readable_text: String,
}

/// An element of `query-pci`: a bus at the root. What is behind a bridge is told only once the guest's firmware has
/// numbered the buses, which on a QEMU that waits for a guest it has not.
#[derive(Debug, Clone, Deserialize)]
pub struct PciBus {
    /// The functions on it.
    pub devices: List<PciFunction>,
}

/// A function of a PCI device.
#[derive(Debug, Clone, Deserialize)]
pub struct PciFunction {
    /// The bus it is on.
    pub bus: u64,
    /// Its slot.
    pub slot: u64,
    /// Its number in the slot.
    pub function: u64,
    /// What it is.
    pub id: PciId,
    /// The id of the device, empty where it was given none.
    #[serde(default)]
    pub qdev_id: String,
}

/// What a PCI function says it is.
#[derive(Debug, Clone, Deserialize)]
pub struct PciId {
    /// The vendor.
    pub vendor: u64,
    /// The device.
    pub device: u64,
}
