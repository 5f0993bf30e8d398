//! A guest that was booted once and kept, so that a source need not boot it again.
//!
//! Most of what a test takes is a kernel's boot under TCG, and it is the same boot each time. So the first source of a
//! shape (QEMU build, memory, number and kind of disks) finds nothing here, boots a guest that parks before it looks at
//! its disks or its work, and has its QEMU write the machine's state into an image; later ones load it and go on from
//! there with disks and work of their own. What is under test cannot tell: it is a snapshot and no migration, the image
//! is gone from the QEMU before anybody else talks to it, and the guest has said nothing yet.
//!
//! Only plain shapes are kept; whatever is unusual boots.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use qferry_guest::{PARK, PORT};
use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use crate::PATIENCE;
use crate::command_line::KERNEL_WORDS;
use crate::disk::Device;
use crate::error::{Context, Error, Result};
use crate::guest::{BOOTED, Guest};
use crate::qemu_build::{Build, target_dir};
use crate::qmp::Qmp;
use crate::spec::Spec;

/// The time between two looks at something that has no event.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// The name of the image's node, of the snapshot in the image and of the jobs.
const NAME: &str = "booted";

/// A machine's state, in an image.
pub(crate) struct Booted {
    image: PathBuf,
}

impl Booted {
    /// Finds the state for a source like this, or boots one and keeps it. `None` if such a source boots by itself.
    ///
    /// # Errors
    /// A part of the bed is missing, or the guest does not boot.
    pub(crate) fn find(spec: &Spec, build: &Build) -> Result<Option<Self>> {
        let plain = |device| matches!(device, Device::Virtio | Device::ReadOnly);
        if spec.quick
            || spec.more_drivers
            || spec.network
            || !spec.extra.chunks(2).all(is_unseen)
            || !spec.disks.iter().all(|disk| plain(disk.device))
        {
            return Ok(None);
        }
        let arguments = machine(spec, build)?;
        let folder = target_dir().join("guest-build").join(BOOTED);
        fs::create_dir_all(&folder).context(|| format!("creating {}", folder.display()))?;
        let mut hasher = DefaultHasher::new();
        (&arguments, build.version(), guest_key()?).hash(&mut hasher);
        let image = folder.join(format!("{}-{:016x}.qcow2", build.version(), hasher.finish()));
        let lock = File::create(image.with_extension("lock")).context(|| "creating a state's lock file")?;
        flock(&lock, FlockOperation::LockExclusive).context(|| "locking a state")?;
        if !image.exists() {
            let home = tempfile::Builder::new().prefix("qferry-").tempdir().context(|| "creating a folder")?;
            let new = image.with_extension("new");
            keep(build, &arguments, home.path(), &new)?;
            fs::rename(&new, &image).context(|| format!("replacing {}", image.display()))?;
        }
        Ok(Some(Self { image }))
    }

    /// Puts a QEMU that was started with `-S` into this state, from a copy because QEMU writes to a loaded image.
    ///
    /// # Errors
    /// The state cannot be loaded; the error has QEMU's words.
    pub(crate) fn load(&self, qmp: &mut Qmp, copy: &Path) -> Result<()> {
        fs::copy(&self.image, copy).context(|| format!("copying {}", self.image.display()))?;
        snapshot(qmp, copy, "snapshot-load")?;
        fs::remove_file(copy).context(|| format!("removing {}", copy.display()))
    }
}

/// Whether an argument adds only what a guest that has booted does not look at: a device behind its disks, of which no
/// state is in the image, or something that no device stands on.
fn is_unseen(argument: &[String]) -> bool {
    let [flag, value] = argument else { return false };
    let device = value.split(',').next().unwrap_or_default();
    match flag.as_str() {
        "-device" => ["pvpanic", "virtio-scsi-pci", "virtio-balloon-pci", "qemu-xhci", "scsi-cd"].contains(&device),
        "-blockdev" | "-object" => true,
        _ => false,
    }
}

/// A key that tells this guest and its kernel from others.
fn guest_key() -> Result<String> {
    let read = |folder: &str, name: &str| {
        let path = target_dir().join(folder).join(name);
        fs::read_to_string(&path).context(|| format!("reading {}", path.display()))
    };
    Ok(read("guest-build", "initrd.key")? + &read("guest", "version")?)
}

/// The arguments of a machine with empty disks, which a guest cannot tell from others before it looks at a disk.
fn machine(spec: &Spec, build: &Build) -> Result<Vec<String>> {
    let guest = Guest::prepare()?;
    let mut all: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-smp", "1"].map(str::to_owned).into();
    let mut add = |flag: &str, value: String| all.extend([flag.to_owned(), value]);
    add("-machine", format!("{},accel=tcg", build.machine()));
    add("-cpu", "max".to_owned());
    add("-m", format!("{}M", spec.memory));
    add("-kernel", guest.kernel.display().to_string());
    add("-initrd", guest.initrd.display().to_string());
    add("-append", format!("{KERNEL_WORDS} {PARK}"));
    for (number, disk) in spec.disks.iter().enumerate() {
        let read_only = disk.device == Device::ReadOnly;
        let node =
            json!({"driver": "null-co", "size": 1 << 20, "node-name": format!("disk{number}"), "read-only": read_only});
        add("-blockdev", node.to_string());
        add("-device", format!("virtio-blk-pci,drive=disk{number}"));
    }
    Ok(all)
}

/// Boots a machine, waits until its guest is parked, and writes its state to a new image.
fn keep(build: &Build, arguments: &[String], home: &Path, image: &Path) -> Result<()> {
    let size = "1M"; // of the disk in the image, which nobody sees: the state is beside it
    build.img(
        ["create", "-q", "-f", "qcow2"].map(AsRef::as_ref).into_iter().chain([image.as_os_str(), size.as_ref()]),
    )?;
    let socket = |name: &str| home.join(name).display().to_string();
    let port = UnixListener::bind(socket("port")).context(|| "listening for the debug port")?;
    let mut command = Command::new(build.program("qemu-system-x86_64"));
    command.args(arguments).arg("-chardev").arg(format!("socket,id=port,path={}", socket("port")));
    command.arg("-device").arg(format!("isa-debugcon,iobase={PORT:#x},chardev=port"));
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket("qmp")));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut machine = Ended(command.spawn().context(|| format!("starting QEMU {}", build.version()))?);
    let deadline = Instant::now() + PATIENCE;
    let mut qmp = loop {
        match Qmp::connect(&home.join("qmp")) {
            Ok(qmp) => break qmp,
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(LOOK_AGAIN),
        }
        if let Some(status) = machine.0.try_wait().context(|| "watching it start")? {
            return Err(Error::new(format!("a QEMU to boot a guest in ended: {status}")));
        }
    };
    let (mut said, _) = port.accept().context(|| "accepting the debug port")?;
    said.set_read_timeout(Some(PATIENCE)).context(|| "listening to the debug port")?;
    let mut line = [0; 2];
    said.read_exact(&mut line).context(|| "waiting for a guest to boot")?;
    if line != *b"p\n" {
        return Err(Error::new(format!("a guest that was to park said {line:?}")));
    }
    qmp.execute("stop", &json!({}))?;
    snapshot(&mut qmp, image, "snapshot-save")
}

/// Saves to an image or loads from it, and then removes the image from QEMU.
fn snapshot(qmp: &mut Qmp, image: &Path, job: &str) -> Result<()> {
    let cache = json!({"no-flush": true}); // nobody needs it after a power cut
    let file = json!({"driver": "file", "filename": image.display().to_string(), "cache": cache});
    qmp.execute("blockdev-add", &json!({"driver": "qcow2", "node-name": NAME, "file": file, "cache": cache}))?;
    qmp.execute(job, &json!({"job-id": NAME, "tag": NAME, "vmstate": NAME, "devices": [NAME]}))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let jobs = qmp.execute("query-jobs", &json!({}))?;
        let ended = jobs.as_array().into_iter().flatten().find(|job| job["id"] == NAME && job["status"] == "concluded");
        match ended.map(|job| job["error"].as_str()) {
            Some(None) => break,
            Some(Some(error)) => return Err(Error::new(format!("{job}: {error}"))),
            None if Instant::now() > deadline => return Err(Error::new(format!("{job} took more than {PATIENCE:?}"))),
            None => thread::sleep(LOOK_AGAIN),
        }
    }
    qmp.execute("job-dismiss", &json!({"id": NAME}))?;
    qmp.execute("blockdev-del", &json!({"node-name": NAME})).map(drop)
}

/// A process that is killed on drop.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("ending a QEMU: {error}");
        }
    }
}
