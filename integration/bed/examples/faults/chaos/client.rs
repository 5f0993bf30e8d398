//! The attacker's monitors of both QEMUs, and what each attack sends there.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use qferry_bed::{Act, Answer, Error, Format, Machine, Pair, Qmp, Refusal, Result, Side};
use serde_json::{Value, json};

use super::attack::Attack;

/// The id of the `scsi-hd` that is there from the beginning, and of its node.
pub(crate) const DISK: &str = "chaos-disk";
/// The id of the CD-ROM.
pub(crate) const CD: &str = "chaos-cd";
/// The size of the images that the attacker plugs in.
const SIZE: u64 = 4 << 20;
/// The arguments of both QEMUs of a pair that is to be attacked.
pub(crate) const ARGUMENTS: [&str; 10] = [
    "-device",
    "virtio-scsi-pci,id=chaos-scsi",
    "-device",
    "qemu-xhci,id=chaos-usb",
    "-device",
    "virtio-balloon-pci,id=chaos-balloon",
    "-device",
    "pvpanic",
    "-device",
    "scsi-cd,id=chaos-cd,bus=chaos-scsi.0,scsi-id=0,lun=0",
];

/// A client of one QEMU beside the engine.
pub(crate) struct Client {
    qmp: Mutex<Option<Qmp>>,
    path: PathBuf,
    folder: PathBuf,
    side: Side,
}

/// A run state and a migration's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) run: String,
    pub(crate) migration: String,
}

impl Client {
    /// A client of a machine. The folder is for the attacker's images.
    pub(crate) fn of(machine: &Machine, folder: &Path) -> Self {
        Self { qmp: Mutex::default(), path: machine.second_qmp_path(), folder: folder.to_owned(), side: machine.side() }
    }

    /// Sends a command, over a new connection where the last one is of no use.
    pub(crate) fn ask(&self, command: &str, arguments: &Value) -> Result<Answer> {
        let mut qmp: MutexGuard<'_, Option<Qmp>> = self.qmp.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connected = match qmp.take() {
            Some(connected) => connected,
            None => Qmp::connect(&self.path)?,
        };
        let answer = connected.ask(command, arguments)?;
        *qmp = Some(connected);
        Ok(answer)
    }

    pub(crate) fn side(&self) -> Side {
        self.side
    }

    fn must(&self, command: &str, arguments: &Value) -> Result<Value> {
        self.ask(command, arguments)?.map_err(|refusal| Error::new(format!("{}: {command}: {refusal}", self.side)))
    }

    /// How the machine is.
    pub(crate) fn state(&self) -> Result<State> {
        let run = self.must("query-status", &json!({}))?["status"].as_str().unwrap_or_default().to_owned();
        let migration = self.must("query-migrate", &json!({}))?["status"].as_str().unwrap_or("none").to_owned();
        Ok(State { run, migration })
    }

    /// An image of the attacker's on this side.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}-{name}", self.side))
    }

    /// Plugs in what is there before the engine comes: a disk, and a medium.
    pub(crate) fn furnish(&self, pair: &Pair) -> Result<()> {
        let build = pair.build(self.side);
        for name in ["disk", "other", "further"] {
            let image = self.image(&format!("{name}.qcow2"));
            let words = ["create", "-q", "-f", "qcow2"].map(AsRef::as_ref);
            build.img(words.into_iter().chain([image.as_os_str(), SIZE.to_string().as_ref()]))?;
            if self.side == Side::Source {
                let pattern = if name == "disk" { 0x5a } else { 0xa5 };
                build.io_on(&image, Format::Qcow2, [format!("write -q -P {pattern} 64k 1M").as_str()])?;
            }
        }
        self.open_image(DISK, "disk.qcow2")?.map_err(|refusal| Error::new(refusal.to_string()))?;
        self.must("device_add", &disk(DISK, DISK, 1))?;
        for name in ["a", "b"] {
            let medium = self.folder.join(format!("medium-{name}"));
            let written = fs::write(&medium, vec![name.as_bytes()[0]; 1 << 20]);
            written.map_err(|error| Error::new(format!("{}: {error}", medium.display())))?;
            let node = format!("chaos-medium-{name}");
            let file = json!({"driver": "file", "node-name": format!("{node}-file"), "filename": medium,
                              "read-only": true});
            let raw = json!({"driver": "raw", "node-name": node, "file": file, "read-only": true});
            self.must("blockdev-add", &raw)?;
        }
        self.insert("a")?.map_err(|refusal| Error::new(refusal.to_string())).map(drop)
    }

    fn open_image(&self, node: &str, name: &str) -> Result<Answer> {
        let file = json!({"driver": "file", "node-name": format!("{node}-file"), "filename": self.image(name)});
        self.ask("blockdev-add", &json!({"driver": "qcow2", "node-name": node, "file": file}))
    }

    fn remove_medium(&self) -> Result<Answer> {
        let opened = self.ask("blockdev-open-tray", &json!({"id": CD, "force": true}))?;
        // A tray that is open already is fine.
        drop(opened);
        self.ask("blockdev-remove-medium", &json!({"id": CD}))
    }

    fn insert(&self, name: &str) -> Result<Answer> {
        let removed = self.remove_medium()?;
        let node = format!("chaos-medium-{name}");
        let inserted = self.ask("blockdev-insert-medium", &json!({"id": CD, "node-name": node}))?;
        let closed = self.ask("blockdev-close-tray", &json!({"id": CD}))?;
        Ok(removed.and(inserted).and(closed))
    }

    /// Takes the disk out, and waits a moment until QEMU has removed the device.
    fn unplug(&self) -> Result<Answer> {
        let told = self.ask("device_del", &json!({"id": DISK}))?;
        for _ in 0..20 {
            if told.is_err() || !self.devices()?.iter().any(|id| id == DISK) {
                break;
            }
            sleep(Duration::from_millis(5));
        }
        Ok(told)
    }

    /// The ids of all devices that have one.
    pub(crate) fn devices(&self) -> Result<Vec<String>> {
        let listed = self.must("qom-list", &json!({"path": "/machine/peripheral"}))?;
        let names = listed.as_array().into_iter().flatten().filter(|item| item["type"] != "string");
        let mut names: Vec<String> = names.filter_map(|item| item["name"].as_str().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }

    /// One of the engine's jobs.
    fn job(&self) -> Result<std::result::Result<String, Refusal>> {
        let jobs = self.must("query-block-jobs", &json!({}))?;
        let named = jobs.as_array().into_iter().flatten().find_map(|job| job["device"].as_str().map(str::to_owned));
        Ok(named.ok_or_else(|| nothing("no block job")))
    }

    fn on_job(&self, command: &str, more: &[(&str, Value)]) -> Result<Answer> {
        let job = match self.job()? {
            Ok(job) => job,
            Err(none) => return Ok(Err(none)),
        };
        let mut arguments = json!({"device": job});
        for (name, value) in more {
            arguments[*name] = value.clone();
        }
        self.ask(command, &arguments)
    }

    /// Carries out an attack that is a command to this QEMU.
    pub(crate) fn carry_out(&self, attack: &Attack) -> Result<Answer> {
        let nothing_more = json!({});
        match *attack {
            Attack::Stop(_) => self.ask("stop", &nothing_more),
            Attack::Cont(_) => self.ask("cont", &nothing_more),
            Attack::Reset(_) => self.ask("system_reset", &nothing_more),
            Attack::PowerButton => self.ask("system_powerdown", &nothing_more),
            Attack::Quit(_) => self.ask("quit", &nothing_more),
            Attack::Unplug(_) => self.unplug(),
            Attack::Exchange => {
                let unplugged = self.unplug()?;
                let opened = self.open_image("chaos-other", "other.qcow2")?;
                let plugged = self.ask("device_add", &disk(DISK, "chaos-other", 1))?;
                Ok(unplugged.and(opened).and(plugged))
            }
            Attack::PlugDisk(_) => {
                let opened = self.open_image("chaos-further", "further.qcow2")?;
                let plugged = self.ask("device_add", &disk("chaos-further", "chaos-further", 2))?;
                Ok(opened.and(plugged))
            }
            Attack::PlugUsb(_) => {
                self.ask("device_add", &json!({"driver": "usb-tablet", "id": "chaos-tablet", "bus": "chaos-usb.0"}))
            }
            Attack::Eject(_) => self.remove_medium(),
            Attack::ChangeMedium(_) => self.insert("b"),
            Attack::JobPause(by) => {
                let paused = self.on_job("block-job-pause", &[])?;
                if paused.is_ok() {
                    sleep(by);
                    drop(self.on_job("block-job-resume", &[])?);
                }
                Ok(paused)
            }
            Attack::JobCancel { force } => self.on_job("block-job-cancel", &[("force", json!(force))]),
            Attack::JobSpeed(speed) => self.on_job("block-job-set-speed", &[("speed", json!(speed))]),
            Attack::MigrateAway => {
                // `file:` is there from 8.2 on; before that the state is thrown away.
                let path = format!("file:{}", self.image("away").display());
                match self.ask("migrate", &json!({"uri": path}))? {
                    Err(refusal) if refusal.description.contains("unknown migration protocol") => {
                        self.ask("migrate", &json!({"uri": "exec:cat >/dev/null"}))
                    }
                    other => Ok(other),
                }
            }
            Attack::MigrateCancel => self.ask("migrate_cancel", &nothing_more),
            Attack::Capability(_, name, on) => {
                let capabilities = json!([{"capability": name, "state": on}]);
                self.ask("migrate-set-capabilities", &json!({"capabilities": capabilities}))
            }
            Attack::Parameter(_, name, value) => self.ask("migrate-set-parameters", &json!({name: value})),
            Attack::Resize => self.ask("block_resize", &json!({"node-name": DISK, "size": SIZE * 2})),
            Attack::Throttle(reads) => self.ask("block_set_io_throttle", &limits(reads)),
            Attack::Balloon(bytes) => self.ask("balloon", &json!({"value": bytes})),
            Attack::Guest { .. } => self.ask("inject-nmi", &nothing_more),
            Attack::NbdServerStop => self.ask("nbd-server-stop", &nothing_more),
            Attack::ExportDel => {
                let exports = self.must("query-block-exports", &nothing_more)?;
                match exports.as_array().into_iter().flatten().find_map(|export| export["id"].as_str()) {
                    Some(id) => self.ask("block-export-del", &json!({"id": id, "mode": "hard"})),
                    None => Ok(Err(nothing("no export"))),
                }
            }
            _ => Ok(Err(nothing("no command of this QEMU"))),
        }
    }

    /// Lets a machine that is reset go on.
    pub(crate) fn let_reset(&self) -> Result<()> {
        self.must("set-action", &json!({"reboot": "reset"})).map(drop)
    }

    /// Waits until the guest has written to its disk: what a boot sector writes is the same each time.
    pub(crate) fn wait_for_a_write(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let all = self.must("query-blockstats", &json!({}))?;
            let is_it = |disk: &&Value| disk["qdev"].as_str().is_some_and(|name| name.contains("disk0"));
            let disk = all.as_array().into_iter().flatten().find(is_it);
            if disk.is_some_and(|disk| disk["stats"]["wr_operations"].as_u64() > Some(1)) {
                return Ok(());
            }
            sleep(Duration::from_millis(10));
        }
        Err(Error::new(format!("the boot sector has written nothing in {patience:?}")))
    }

    /// Tells QEMU to pause where it would end.
    pub(crate) fn pause_on(&self, act: Act) -> Result<()> {
        let arguments = match act {
            Act::PowerOff => json!({"shutdown": "pause"}),
            Act::Panic => json!({"panic": "pause"}),
            // A guest that resets itself is then paused as if it had powered off.
            Act::Reset => json!({"shutdown": "pause", "reboot": "shutdown"}),
            Act::Suspend => return Ok(()),
        };
        self.must("set-action", &arguments).map(drop)
    }
}

/// The arguments that limit the guest's disk to so many requests a second; 0 is no limit.
pub(crate) fn limits(requests: u64) -> Value {
    let disk = "/machine/peripheral/disk0/virtio-backend";
    json!({"id": disk, "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": requests, "iops_rd": 0, "iops_wr": 0})
}

/// The side to which an attack sends commands, if it does.
pub(crate) fn side_of(attack: &Attack) -> Option<Side> {
    match *attack {
        Attack::Stop(side)
        | Attack::Cont(side)
        | Attack::Reset(side)
        | Attack::Quit(side)
        | Attack::Unplug(side)
        | Attack::PlugDisk(side)
        | Attack::PlugUsb(side)
        | Attack::Eject(side)
        | Attack::ChangeMedium(side)
        | Attack::Capability(side, ..)
        | Attack::Parameter(side, ..) => Some(side),
        Attack::Pause(_)
        | Attack::PowerButton
        | Attack::Exchange
        | Attack::JobPause(_)
        | Attack::JobCancel { .. }
        | Attack::JobSpeed(_)
        | Attack::MigrateAway
        | Attack::MigrateCancel
        | Attack::Resize
        | Attack::Throttle(_)
        | Attack::Balloon(_)
        | Attack::Guest { .. } => Some(Side::Source),
        Attack::NbdServerStop | Attack::ExportDel => Some(Side::Destination),
        Attack::EngineStop(_)
        | Attack::EngineKill
        | Attack::EngineInterrupt
        | Attack::MonitorCut(_)
        | Attack::MonitorLate(..)
        | Attack::RamCut
        | Attack::NbdCut
        | Attack::Kill(_)
        | Attack::Freeze(..)
        | Attack::Fill
        | Attack::SlowFlush(..)
        | Attack::Clock(..)
        | Attack::SecondEngine => None,
    }
}

fn disk(id: &str, node: &str, lun: u64) -> Value {
    json!({"driver": "scsi-hd", "id": id, "drive": node, "bus": "chaos-scsi.0", "scsi-id": 0, "lun": lun})
}

fn nothing(what: &str) -> Refusal {
    Refusal { class: "Chaos".to_owned(), description: what.to_owned() }
}

/// Fills a file system until nothing more fits.
pub(crate) fn fill(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path).map_err(|error| Error::new(format!("{}: {error}", path.display())))?;
    for piece in [64 << 10, 4 << 10] {
        while file.write_all(&vec![1; piece]).is_ok() {}
    }
    Ok(())
}
