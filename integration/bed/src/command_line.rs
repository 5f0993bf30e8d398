//! The command line of one QEMU of a pair.

use std::path::Path;

use qferry_guest::PORT;
use serde_json::json;

use crate::disk::DiskFiles;
use crate::guest::Guest;
use crate::record::Side;
use crate::spec::{Spec, Style};

/// The kernel's own words, chosen for a quick boot under TCG. `nohz=off` keeps 7.2 from hanging in idle after a migration.
const KERNEL_WORDS: &str = "quiet panic=-1 nohz=off console=hvc9 mitigations=off nokaslr no_timer_check tsc=reliable cryptomgr.notests audit=0 random.trust_cpu=on lpj=4000000";

/// All of a QEMU's arguments.
pub(crate) fn arguments(
    side: Side,
    spec: &Spec,
    machine: &str,
    folder: &Path,
    disks: &[DiskFiles],
    guest: &Guest,
) -> Vec<String> {
    let socket = |name: &str| format!("unix:{},server=on,wait=off", folder.join(name).display());
    let mut all: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-smp", "1"].map(str::to_owned).into();
    let mut add = |flag: &str, value: String| all.extend([flag.to_owned(), value]);
    add("-machine", format!("{machine},accel=tcg"));
    add("-cpu", "max".to_owned());
    add("-m", format!("{}M", spec.memory));
    add("-action", "reboot=shutdown".to_owned());
    add("-kernel", guest.kernel.display().to_string());
    add("-initrd", guest.initrd.display().to_string());
    add("-append", format!("{KERNEL_WORDS} {}", spec.workload));
    add("-chardev", format!("socket,id=port,path={}", folder.join("port").display()));
    add("-device", format!("isa-debugcon,iobase={PORT:#x},chardev=port"));
    if side == Side::Destination {
        add("-incoming", "defer".to_owned());
        all.push("-S".to_owned());
    }
    for (number, (disk, files)) in spec.disks.iter().zip(disks).enumerate() {
        let throttled = side == Side::Source && disk.throttled_reads.is_some();
        all.extend(disk_arguments(spec.style, number, files, throttled));
    }
    let mut add = |flag: &str, value: String| all.extend([flag.to_owned(), value]);
    if spec.tcp {
        add("-chardev", "socket,id=tcp,host=127.0.0.1,port=0,server=on,wait=off".to_owned());
        add("-mon", "chardev=tcp,mode=control".to_owned());
    }
    add("-qmp", socket("qmp"));
    add("-qmp", socket("watch"));
    all.extend(spec.extra.iter().cloned());
    all
}

fn disk_arguments(style: Style, number: usize, files: &DiskFiles, throttled: bool) -> Vec<String> {
    let overlay = files.overlay.display().to_string();
    let device = |drive: &str| format!("virtio-blk-pci,drive={drive},id=disk{number},serial=disk{number}");
    let mut all = Vec::new();
    let mut add = |flag: &str, value: String| all.extend([flag.to_owned(), value]);
    match style {
        Style::Drive => {
            add("-drive", format!("if=none,id=drive{number},format=qcow2,file={overlay}"));
            add("-device", device(&format!("drive{number}")));
        }
        Style::Blockdev => {
            let file = format!("disk{number}-file");
            let node = format!("disk{number}");
            add("-blockdev", json!({"driver": "file", "node-name": file, "filename": overlay}).to_string());
            let mut below = file;
            if throttled {
                let group = format!("reads{number}");
                below = format!("disk{number}-throttled");
                add("-object", format!("throttle-group,id={group}"));
                let throttle = json!({"driver": "throttle", "node-name": below, "throttle-group": group, "file": format!("disk{number}-file")});
                add("-blockdev", throttle.to_string());
            }
            add("-blockdev", json!({"driver": "qcow2", "node-name": node, "file": below}).to_string());
            add("-device", device(&node));
        }
    }
    all
}
