//! What is compared with the engine, as programs that `qferry sweep` starts: a straight-line script, and libvirt.
//!
//! libvirt's guest is started by a libvirtd, which is there as nobody on a host of its own; so is the daemon that waits
//! for the guest. Each has a process namespace, which ends with the process that the sweep has started, however that
//! ends.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use qferry_bed::{Error, Libvirtd, LibvirtdSpec, Result, give_to_nobody, straight_line, xml_text};
use serde_json::Value;

/// The name of libvirt's domain.
const DOMAIN: &str = "guest";
/// The ports at which libvirt is to take RAM and disks.
const RAM_PORT: u16 = 49152;
const NBD_PORT: u16 = 10809;

/// Runs one of the programs.
pub(crate) fn run(words: &[OsString]) -> Result<()> {
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    match words.as_slice() {
        ["straight-line", source, destination, ram, nbd, disks @ ..] => {
            let ends = straight_line::Ends {
                source: source.into(),
                destination: destination.into(),
                ram: (*ram).to_owned(),
                nbd: (*nbd).to_owned(),
                disks: disks.iter().map(|disk| [(*disk).to_owned(), (*disk).to_owned()]).collect(),
            };
            ends.migrate().map(drop)
        }
        ["libvirt-guest", rest @ ..] => Err(in_own_processes(rest)),
        ["libvirt-host", rest @ ..] => LibvirtGuest::read(rest)?.host(),
        ["libvirt-migrate", source, host] => Err(migrate(Path::new(source), host)?),
        _ => Err(Error::new("usage: bench peer straight-line|libvirt-guest|libvirt-migrate ...")),
    }
}

/// Becomes `virsh`, so that the sweep's SIGINT is virsh's.
fn migrate(source: &Path, host: &str) -> Result<Error> {
    let mut virsh = Libvirtd::virsh_at(source)?;
    virsh.args(["migrate", "--live", "--p2p", "--copy-storage-inc", DOMAIN]);
    virsh.arg(format!("qemu+tcp://{host}:{}/session", Libvirtd::PORT));
    virsh.args(["--migrateuri", &format!("tcp://{host}:{RAM_PORT}"), "--listen-address", host]);
    virsh.args(["--disks-port", &NBD_PORT.to_string()]);
    Ok(Error::new(format!("starting virsh: {}", virsh.exec())))
}

/// What the first process of a namespace is: it waits for every orphan, as libvirt waits until a QEMU is gone.
const FIRST: &str = "\"$@\" & wait $!";

/// Becomes the parent of the first process of a namespace, all of which is killed with that.
fn in_own_processes(rest: &[&str]) -> Error {
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return Error::new(format!("the bench's own path: {error}")),
    };
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--", "sh", "-c", FIRST, "sh"]).arg(own);
    let error = unshare.args(["peer", "libvirt-host"]).args(rest).exec();
    Error::new(format!("starting unshare: {error}"))
}

/// A guest that libvirt runs or waits for.
struct LibvirtGuest {
    /// What the sweep looks for: the daemon's socket, and the further monitor of QEMU.
    qmp: PathBuf,
    events: PathBuf,
    debug: PathBuf,
    qemu: PathBuf,
    /// The machine type.
    machine: String,
    accelerator: String,
    memory_mib: String,
    kernel: PathBuf,
    append: String,
    disk: PathBuf,
    waits: bool,
}

impl LibvirtGuest {
    fn read(words: &[&str]) -> Result<Self> {
        let [qmp, events, debug, qemu, machine, accelerator, memory_mib, kernel, append, disk, more @ ..] = words
        else {
            return Err(Error::new(format!("libvirt-guest has too few words: {words:?}")));
        };
        let path = |word: &&str| PathBuf::from(*word);
        Ok(Self {
            qmp: path(qmp),
            events: path(events),
            debug: path(debug),
            qemu: path(qemu),
            machine: (*machine).to_owned(),
            accelerator: (*accelerator).to_owned(),
            memory_mib: (*memory_mib).to_owned(),
            kernel: path(kernel),
            append: (*append).to_owned(),
            disk: path(disk),
            waits: more.contains(&"--waits"),
        })
    }

    /// Starts the daemon and, but for one that waits, the guest. Returns when the daemon ends.
    fn host(&self) -> Result<()> {
        give_to_nobody(&self.disk)?;
        // the sweep's port, in a folder of root's alone
        fs::set_permissions(&self.debug, fs::Permissions::from_mode(0o666))
            .map_err(|error| Error::new(format!("{}: {error}", self.debug.display())))?;
        let at = self.qmp.with_extension("libvirt");
        let shown = [
            (self.debug.clone(), "/mnt/debug"),
            (self.kernel.clone(), "/mnt/kernel"),
            (self.disk.clone(), "/mnt/disk"),
        ];
        let base = self.backing()?;
        let shown = shown.into_iter().chain([(base, "/mnt/base")]).map(|(from, to)| (from, to.to_owned())).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let spec = LibvirtdSpec {
            at: &at,
            host: now.subsec_nanos(),
            address: "0.0.0.0",
            qemu: &self.qemu,
            logs_monitors: false,
            shown,
        };
        let mut daemon = Libvirtd::start(&spec)?;
        let link = |to: PathBuf, name: &Path| {
            symlink(&to, name).map_err(|error| Error::new(format!("{}: {error}", name.display())))
        };
        link(at.join("events"), &self.events)?;
        if self.waits {
            // A daemon that has run for a while knows its QEMU, and need not ask it in the midst of a migration.
            let words = ["domcapabilities", "--emulatorbin", Libvirtd::EMULATOR, "--machine", &self.machine];
            daemon.run(&[&words[..], &["--virttype", self.kind()]].concat())?;
        } else {
            let description = at.join("guest.xml");
            fs::write(&description, self.description())
                .map_err(|error| Error::new(format!("{}: {error}", description.display())))?;
            daemon.run(&["create", &description.display().to_string()])?;
        }
        link(daemon.socket(), &self.qmp)?;
        Err(daemon.ended())
    }

    /// The image below the disk.
    fn backing(&self) -> Result<PathBuf> {
        let image = self.qemu.with_file_name("qemu-img");
        let ran = crate::run(Command::new(image).args(["info", "--force-share", "--output=json"]).arg(&self.disk))?;
        let facts: Value =
            serde_json::from_str(&ran.stdout).map_err(|error| Error::new(format!("qemu-img: {error}")))?;
        match facts["full-backing-filename"].as_str() {
            Some(base) => Ok(base.into()),
            None => Err(Error::new(format!("{} has no image below it", self.disk.display()))),
        }
    }

    fn kind(&self) -> &'static str {
        if self.accelerator == "kvm" { "kvm" } else { "qemu" }
    }

    /// The description of the domain, which is the same on both hosts: each shows its own files at these places.
    fn description(&self) -> String {
        let words = [
            "-chardev",
            "socket,id=debug,path=/mnt/debug",
            "-device",
            "isa-debugcon,iobase=0xe9,chardev=debug",
            "-qmp",
            "unix:/mnt/at/events,server=on,wait=off",
        ];
        let words: String = words.iter().map(|word| format!("<qemu:arg value='{}'/>", xml_text(word))).collect();
        format!(
            "<domain type='{}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>{DOMAIN}</name>\
             <uuid>6d6f0a6c-7f2b-4d3b-8f4e-1c2d3e4f5a6b</uuid><memory unit='MiB'>{}</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='{}'>hvm</type><kernel>/mnt/kernel</kernel><cmdline>{}</cmdline></os>\
             <devices><emulator>{}</emulator><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
             <source file='/mnt/disk'/><backingStore type='file'><format type='raw'/><source file='/mnt/base'/>\
             <backingStore/></backingStore><target dev='vda' bus='virtio'/></disk>\
             <controller type='usb' model='none'/><memballoon model='none'/></devices>\
             <qemu:commandline>{words}</qemu:commandline></domain>",
            self.kind(),
            xml_text(&self.memory_mib),
            xml_text(&self.machine),
            xml_text(&self.append),
            Libvirtd::EMULATOR,
        )
    }
}
