//! The command line of one QEMU of a pair.

use std::path::Path;

use qferry_guest::PORT;
use serde_json::{Value, json};

use crate::deviation::{Deviation, id_of};
use crate::disk::{DetectZeroes, Device, DiskFiles, DiskSpec, Filter};
use crate::error::Result;
use crate::guest::Guest;
use crate::network;
use crate::qemu_build::Build;
use crate::record::Side;
use crate::spec::{Spec, Style};

/// The kernel's own words, chosen for a quick boot under TCG. `nohz=off` keeps 7.2 from hanging in idle so often (see
/// `Pair::errors`).
pub(crate) const KERNEL_WORDS: &str = "quiet panic=-1 nohz=off console=hvc9 mitigations=off nokaslr no_timer_check tsc=reliable cryptomgr.notests audit=0 random.trust_cpu=on lpj=4000000";

/// All of a QEMU's arguments. `disks` are those of its disks; the bed's own are made from the files if there are none.
pub(crate) fn arguments(
    side: Side,
    spec: &Spec,
    builds: &[Build; 2],
    folder: &Path,
    files: &[DiskFiles],
    disks: Option<&[String]>,
) -> Result<Vec<String>> {
    let mut all: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-smp", "1"].map(str::to_owned).into();
    let mut add = |flag: &str, value: String| all.extend([flag.to_owned(), value]);
    // The source's machine type on both sides.
    add("-machine", format!("{},accel=tcg", builds[0].machine()));
    add("-cpu", "max".to_owned());
    add("-m", format!("{}M", spec.memory));
    add("-action", "reboot=shutdown".to_owned());
    if !spec.quick {
        let guest = Guest::prepare()?;
        add("-kernel", guest.kernel.display().to_string());
        let initrd = if spec.more_drivers { guest.initrd_with_drivers()? } else { &guest.initrd };
        add("-initrd", initrd.display().to_string());
        add("-append", format!("{KERNEL_WORDS} {}", spec.workload));
        add("-chardev", format!("socket,id=port,path={}", folder.join("port").display()));
        add("-device", format!("isa-debugcon,iobase={PORT:#x},chardev=port"));
    }
    if side == Side::Destination {
        add("-incoming", "defer".to_owned());
        all.push("-S".to_owned());
    }
    match disks {
        Some(disks) => all.extend(disks.iter().cloned()),
        None => all.extend(disk_arguments(side, spec, &builds[side as usize], files)),
    }
    let mut add = |flag: &str, value: String| all.extend([flag.to_owned(), value]);
    if spec.tcp {
        add("-chardev", "socket,id=tcp,host=127.0.0.1,port=0,server=on,wait=off".to_owned());
        add("-mon", "chardev=tcp,mode=control".to_owned());
    }
    if spec.deviates(side, &Deviation::OtherUser) {
        // -run-with has `user` from 9.1, and -runas is gone in 11.
        let before = builds[side as usize].major() < 10;
        let (flag, value) = if before { ("-runas", "nobody") } else { ("-run-with", "user=nobody") };
        add(flag, value.to_owned());
    }
    if spec.network {
        add("-netdev", network::backend(folder));
        add("-device", "virtio-net-pci,id=net0,netdev=net,romfile=".to_owned());
    }
    if spec.second_monitor {
        all.extend(["-qmp".to_owned(), monitor(folder, "second")]);
    }
    all.extend(monitors(folder));
    all.extend(spec.extra.iter().cloned());
    Ok(all)
}

/// The arguments of the monitor for the engine, and then of the bed's own.
pub(crate) fn monitors(folder: &Path) -> [String; 4] {
    ["-qmp".to_owned(), monitor(folder, "qmp"), "-qmp".to_owned(), monitor(folder, "watch")]
}

fn monitor(folder: &Path, name: &str) -> String {
    format!("unix:{},server=on,wait=off", folder.join(name).display())
}

/// The arguments of all disks of a side.
pub(crate) fn disk_arguments(side: Side, spec: &Spec, build: &Build, files: &[DiskFiles]) -> Vec<String> {
    let mut all = Vec::new();
    let mut cdroms = 0;
    for (number, (disk, files)) in spec.disks.iter().zip(files).enumerate() {
        let id = id_of(spec, side, number);
        let drive = match spec.style {
            Style::Drive => format!("drive{number}"),
            Style::Blockdev => {
                let (nodes, root) = nodes(side, spec, number, disk, files);
                all.extend(nodes);
                root
            }
        };
        if spec.style == Style::Drive {
            all.extend(["-drive".to_owned(), drive_option(side, spec, number, disk, files)]);
        }
        let firmware = build.firmware().display().to_string();
        let mut add = |flag: &str, value: String| all.extend([flag.to_owned(), value]);
        match (disk.device, spec.style) {
            (Device::Virtio | Device::ReadOnly, _) => {
                let lesser = spec.deviates(side, &Deviation::LesserDevice { disk: number });
                let less = if lesser { ",event_idx=off,indirect_desc=off" } else { "" };
                let larger = spec.deviates(side, &Deviation::LargerRings { disk: number });
                let rings = if larger { ",queue-size=1024" } else { "" };
                let thread = if disk.iothread { format!(",iothread=io{number}") } else { String::new() };
                if disk.iothread {
                    add("-object", format!("iothread,id=io{number}"));
                }
                add(
                    "-device",
                    format!("virtio-blk-pci,drive={drive},id={id},serial=disk{number}{less}{rings}{thread}"),
                );
            }
            (Device::Cdrom, _) => {
                add("-device", format!("ide-cd,bus=ide.{cdroms},drive={drive},id={id}"));
                cdroms += 1;
            }
            (Device::Pflash, Style::Drive) => {
                add("-drive", format!("if=pflash,unit=0,readonly=on,format=raw,file={firmware}"));
            }
            (Device::Pflash, Style::Blockdev) => {
                let file = json!({"driver": "file", "node-name": "firmware", "filename": firmware, "read-only": true});
                add("-blockdev", file.to_string());
                add("-machine", format!("pflash0=firmware,pflash1={drive}"));
            }
        }
    }
    all
}

fn drive_option(side: Side, spec: &Spec, number: usize, disk: &DiskSpec, files: &DiskFiles) -> String {
    let kind = match disk.device {
        Device::Virtio => "if=none",
        Device::ReadOnly => "if=none,readonly=on",
        Device::Cdrom => "if=none,media=cdrom,readonly=on",
        Device::Pflash => "if=pflash,unit=1",
    };
    let (format, overlay) = (files.format.name(), files.overlay.display());
    let mut option = format!("{kind},id=drive{number},format={format},file={overlay}");
    if disk.discard && !spec.deviates(side, &Deviation::NoDiscard { disk: number }) {
        option += ",discard=unmap";
    }
    if let Some(value) = detect_zeroes(disk) {
        option += &format!(",detect-zeroes={value}");
    }
    if disk.direct {
        option += ",cache.direct=on";
    }
    option
}

/// The `-blockdev`s of a disk and the node that its device stands on.
fn nodes(side: Side, spec: &Spec, number: usize, disk: &DiskSpec, files: &DiskFiles) -> (Vec<String>, String) {
    let mut all = Vec::new();
    let mut add = |flag: &str, value: String| all.extend([flag.to_owned(), value]);
    let deviates = |deviation| spec.deviates(side, &deviation);
    let discard = disk.discard && !deviates(Deviation::NoDiscard { disk: number });
    let common = |mut node: Value| {
        if discard {
            node["discard"] = json!("unmap");
        }
        if !disk.is_written() {
            node["read-only"] = json!(true);
        }
        node.to_string()
    };

    let mut root = format!("disk{number}-file");
    let mut file = json!({"driver": "file", "node-name": root, "filename": files.overlay.display().to_string()});
    if deviates(Deviation::OtherUser) {
        // Opened for reading until somebody writes, as libvirt does it.
        file["auto-read-only"] = json!(true);
    }
    if disk.direct {
        file["cache"] = json!({"direct": true});
    }
    add("-blockdev", common(file));
    if deviates(Deviation::WriteError { disk: number }) {
        let name = format!("disk{number}-failing");
        add("-blockdev", failing(&name, &root, "write", EIO).to_string());
        root = name;
    }
    if side == Side::Source && disk.throttled_reads.is_some() {
        let group = format!("reads{number}");
        add("-object", format!("throttle-group,id={group}"));
        let name = format!("disk{number}-throttled");
        let node = json!({"driver": "throttle", "node-name": name, "throttle-group": group, "file": root});
        add("-blockdev", node.to_string());
        root = name;
    }
    let filter = |filter: Option<Filter>, place: &str, root: String| {
        let name = format!("disk{number}-{place}");
        let node = match filter.filter(|_| side == Side::Source) {
            None => return (Vec::new(), root),
            Some(Filter::ReadError) => failing(&name, &root, "read", EIO),
            Some(Filter::Full) => failing(&name, &root, "write", ENOSPC),
            Some(Filter::CopyOnRead) => json!({"driver": "copy-on-read", "node-name": name, "file": root}),
            Some(Filter::Throttle) => {
                let group = format!("{name}-limits");
                let node = json!({"driver": "throttle", "node-name": name, "throttle-group": group, "file": root});
                let object = ["-object".to_owned(), format!("throttle-group,id={group}")];
                return ([&object[..], &["-blockdev".to_owned(), node.to_string()]].concat(), name);
            }
        };
        (vec!["-blockdev".to_owned(), node.to_string()], name)
    };
    let (below, root) = filter(disk.filter_below, "below", root);
    let format = format!("disk{number}");
    let mut node = json!({"driver": files.format.name(), "node-name": format, "file": root});
    if let Some(value) = detect_zeroes(disk) {
        node["detect-zeroes"] = json!(value);
    }
    if deviates(Deviation::NoBacking { disk: number }) {
        node["backing"] = Value::Null;
    }
    let (above, root) = filter(disk.filter_above, "above", format);
    all.extend(below);
    all.extend(["-blockdev".to_owned(), common(node)]);
    all.extend(above);
    (all, root)
}

const EIO: u32 = 5;
const ENOSPC: u32 = 28;

/// A node that fails what qcow2 does to data: `read` or `write`.
fn failing(name: &str, below: &str, what: &str, errno: u32) -> Value {
    let error = json!({"event": format!("{what}_aio"), "iotype": what, "errno": errno});
    json!({"driver": "blkdebug", "node-name": name, "image": below, "inject-error": [error]})
}

fn detect_zeroes(disk: &DiskSpec) -> Option<&'static str> {
    match disk.detect_zeroes {
        DetectZeroes::Off => None,
        DetectZeroes::On => Some("on"),
        DetectZeroes::Unmap => Some("unmap"),
    }
}
