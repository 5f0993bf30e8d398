//! One of the two QEMUs: its disks, its jobs, and the answers that tell of them.

use std::collections::BTreeMap;
use std::process::Child;
use std::time::Duration;

use qferry::internals::run_id::RunId;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::RamProgress;
use crate::fake::EventSender;

/// The path of the only CPU.
pub(super) const CPU: &str = "/machine/unattached/device[0]";

pub struct ModelDisk {
    pub name: String,
    pub file: String,
    pub size: u64,
    pub read_only: bool,
}

pub struct MirrorJob {
    pub id: String,
    pub status: &'static str,
    pub len: u64,
    pub error: Option<String>,
    /// Whether the copy mode is `write-blocking`.
    pub write_blocking: bool,
    pub(super) began: Instant,
    /// At the switch to `write-blocking`: the bytes copied, and the bytes that the guest had added.
    pub(super) when_switched: (u64, u64),
}

impl MirrorJob {
    pub fn new(id: &str, status: &'static str, len: u64) -> Self {
        Self {
            id: id.to_owned(),
            status,
            len,
            error: None,
            write_blocking: false,
            began: Instant::now(),
            when_switched: (0, 0),
        }
    }
}

impl MirrorJob {
    /// Whether this is the job's id, whole or without the prefix and the id of its run.
    pub(super) fn is_called(&self, id: &str) -> bool {
        let made = RunId::of_name(&self.id);
        self.id == id || made.is_some_and(|(_, what)| what == id)
    }

    /// The bytes copied, and the bytes that the guest has added.
    pub(super) fn copied(&self, takes: Duration, writes_on: f64) -> (u64, u64) {
        let (before, added) = self.when_switched;
        let copied = self.len as f64 * self.began.elapsed().as_secs_f64() / takes.as_secs_f64();
        match self.write_blocking {
            true => (((before as f64 + copied) as u64).min(self.len + added), added),
            false if writes_on < 1.0 => ((copied as u64).min(self.len), 0),
            false => (copied as u64, (copied * writes_on) as u64),
        }
    }
}

/// One of the two QEMUs.
pub struct ModelQemu {
    pub run: String,
    pub migration: Option<String>,
    pub error: Option<&'static str>,
    pub blocked: Vec<&'static str>,
    pub capabilities: BTreeMap<String, bool>,
    pub parameters: Map<String, Value>,
    pub disks: Vec<ModelDisk>,
    pub jobs: Vec<MirrorJob>,
    /// The targets of mirrors that another client has completed, which the guest's devices have by now.
    pub pivoted: Vec<String>,
    /// Name and count of the dirty bitmap of each node.
    pub bitmaps: BTreeMap<String, (String, u64)>,
    pub server: bool,
    pub exports: Vec<String>,
    pub ram: u64,
    /// The machine type, as after `-machine`.
    pub machine: &'static str,
    /// EBX of leaf 7 of the CPU's `feature-words`.
    pub features: u64,
    pub schema: Value,
    pub(super) emit: Option<EventSender>,
    pub(super) process: Option<Child>,
}

impl ModelQemu {
    /// The process of this host that stands for it, where there is one.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    pub(super) fn is_migrating(&self) -> bool {
        self.migration.as_deref().is_some_and(|status| !["none", "completed", "failed", "cancelled"].contains(&status))
    }

    pub(super) fn is_alive(&self) -> bool {
        self.run != "gone"
    }

    /// Ends the QEMU, and its process where there is one.
    pub(super) fn end(&mut self) {
        self.run = "gone".to_owned();
        if let Some(child) = &mut self.process {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for ModelQemu {
    fn drop(&mut self) {
        self.end();
    }
}

impl ModelQemu {
    pub(super) fn property(&self, path: &str, name: &str) -> Option<Value> {
        Some(match (path, name) {
            ("/machine", "type") => json!(format!("{}-machine", self.machine)),
            (CPU, "type") => json!("max-x86_64-cpu"),
            (CPU, "vendor") => json!("AuthenticAMD"),
            (CPU, "family" | "model" | "stepping") => json!(6),
            (CPU, "avx2") => json!(self.features & 0x20 != 0),
            (CPU, "feature-words") => json!([{"cpuid-input-eax": 7, "cpuid-input-ecx": 0, "cpuid-register": "EBX",
                "features": self.features, "x-new": 1}]),
            _ => return self.place(path, name),
        })
    }

    /// The properties of an object; those of a disk's device among them.
    pub(super) fn properties(&self, path: &str) -> Value {
        match self.disk_at(path) {
            Some(_) => json!([{"name": "type", "type": "string"}, {"name": "addr", "type": "int32"}]),
            None => json!([{"name": "type", "type": "string"}, {"name": "x-new", "type": "bool"},
                {"name": "avx2", "type": "bool"}, {"name": "usb0", "type": "child<nec-usb-xhci>"}]),
        }
    }

    /// The number of the disk whose device is at this path in QOM.
    fn disk_at(&self, path: &str) -> Option<usize> {
        let name = path.strip_prefix("/machine/peripheral/")?;
        self.disks.iter().position(|disk| disk.name == name)
    }

    /// The properties that say where a device is: each disk is a `virtio-blk-pci`, in the order of the disks.
    fn place(&self, path: &str, name: &str) -> Option<Value> {
        const HOST: &str = "/machine/i440fx";
        let backend = path.strip_suffix("/virtio-backend");
        Some(match (name, path, backend) {
            ("parent_bus", _, Some(device)) => json!(format!("{device}/virtio-bus")),
            ("parent_bus", HOST, _) => json!("/machine/unattached/sysbus"),
            ("parent_bus", ..) if self.disk_at(path).is_some() => json!(format!("{HOST}/pci.0")),
            ("parent_bus", ..) => json!("/machine/unattached/device[2]/isa.0"),
            ("addr", ..) => json!(8 * (self.disk_at(path)? + 2)),
            ("type", ..) if path.ends_with("/virtio-bus") => json!("virtio-pci-bus"),
            ("type", ..) if path.ends_with("/pci.0") => json!("PCI"),
            ("type", ..) if path.ends_with("/sysbus") => json!("System"),
            ("type", ..) => json!("x-device"),
            _ => return None,
        })
    }

    pub(super) fn query_migrate(&self, sent: RamProgress) -> Value {
        let mut told = json!({"x-new": {"a": 1}});
        if let Some(status) = &self.migration {
            told["status"] = json!(status);
            told["expected-downtime"] = json!(300);
            told["ram"] = json!({"transferred": sent.processed, "remaining": sent.remaining, "total": self.ram,
                "normal": sent.processed / 4096, "duplicate": 0, "mbps": 8.5, "dirty-pages-rate": 3,
                "dirty-sync-count": sent.passes + 1, "page-size": 4096});
        }
        if let Some(error) = self.error {
            told["error-desc"] = json!(error);
        }
        if !self.blocked.is_empty() {
            told["blocked-reasons"] = json!(self.blocked);
        }
        told
    }
}

pub(super) fn node(disk: &ModelDisk, bitmap: Option<&(String, u64)>) -> Value {
    let bitmaps: Vec<Value> = bitmap.iter().map(|(name, count)| json!({"name": name, "count": count})).collect();
    json!({"node-name": format!("node-{}", disk.name), "drv": "qcow2", "file": disk.file,
        "ro": disk.read_only, "image": {"virtual-size": disk.size}, "dirty-bitmaps": bitmaps, "x-new": null,
        "children": [{"child": "backing", "node-name": format!("base-{}", disk.name)},
            {"child": "file", "node-name": format!("file-{}", disk.name)}]})
}

/// The node of a disk's backing file.
pub(super) fn base(disk: &ModelDisk) -> Value {
    json!({"node-name": format!("base-{}", disk.name), "drv": "file", "file": format!("{}.base", disk.file), "ro": true,
        "image": {"virtual-size": disk.size}})
}
