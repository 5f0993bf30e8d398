//! A QEMU without a guest system, for tests that need only its monitor and its disks. It starts in a tenth of a second.

use qferry::internals::{
    endpoint::{self, Address},
    progress::Side,
    qemu::{Process, QemuName},
    qmp,
};
use qferry_bed::{Build, Qmp};
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// The time within which a QEMU must answer after its start.
const UP: Duration = Duration::from_secs(30);

/// A QEMU, killed when dropped.
pub(crate) struct Bare {
    child: Child,
    /// The monitor for the code under test.
    pub(crate) qmp: PathBuf,
    /// The monitor for the test itself.
    watch: PathBuf,
}

impl Bare {
    /// Starts a paused QEMU with further arguments.
    pub(crate) fn start(build: &Build, folder: &Path, name: &str, more: &[OsString]) -> Self {
        let mut command = Command::new(build.program("qemu-system-x86_64"));
        command.args(["-nodefaults", "-display", "none", "-machine", "pc,accel=tcg", "-m", "64M"]).args(more);
        command.stdin(Stdio::null());
        for monitor in ["qmp", "watch"] {
            let path = folder.join(format!("{name}.{monitor}"));
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", path.display()));
        }
        Self::spawn(command, folder, name)
    }

    /// Runs a command that starts a QEMU with the monitors `NAME.qmp` and `NAME.watch` in a folder.
    pub(crate) fn spawn(mut command: Command, folder: &Path, name: &str) -> Self {
        let log = std::fs::File::create(folder.join(format!("{name}.stderr"))).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let (qmp, watch) = (folder.join(format!("{name}.qmp")), folder.join(format!("{name}.watch")));
        let mut started = Self { child, qmp, watch };
        let deadline = Instant::now() + UP;
        while Qmp::connect(&started.watch).is_err() {
            let said = || std::fs::read_to_string(folder.join(format!("{name}.stderr"))).unwrap_or_default();
            assert!(started.child.try_wait().unwrap().is_none(), "QEMU ended: {}", said());
            assert!(Instant::now() < deadline, "no QEMU after {UP:?}: {}", said());
            sleep(Duration::from_millis(20));
        }
        started
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Executes a command on the test's own monitor.
    pub(crate) fn ask(&self, command: &str, arguments: &Value) -> Value {
        Qmp::connect(&self.watch).unwrap().execute(command, arguments).unwrap()
    }

    /// The run state.
    pub(crate) fn status(&self) -> String {
        self.ask("query-status", &json!({}))["status"].as_str().unwrap().to_owned()
    }

    /// Whether an NBD server runs in this QEMU. Only the attempt to start another one can tell.
    pub(crate) fn has_server(&self, folder: &Path) -> bool {
        let mut qmp = Qmp::connect(&self.watch).unwrap();
        let path = folder.join("probe").display().to_string();
        let addr = json!({ "addr": { "type": "unix", "data": { "path": path } } });
        match qmp.ask("nbd-server-start", &addr).unwrap() {
            Ok(_) => {
                qmp.execute("nbd-server-stop", &json!({})).unwrap();
                false
            }
            Err(refused) => {
                assert!(refused.description.contains("already running"), "{refused}");
                true
            }
        }
    }

    /// The ids of the block exports.
    pub(crate) fn exports(&self) -> Vec<String> {
        let exports = self.ask("query-block-exports", &json!({}));
        exports.as_array().unwrap().iter().map(|export| export["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Connects as the engine does.
    pub(crate) async fn process(&self, side: Side) -> Process {
        let address = Address::unix(&self.qmp).unwrap();
        let dialed = endpoint::dial(&address, UP).await.unwrap();
        let name = QemuName { side, address: address.to_string() };
        Process::connect(name, dialed.stream, dialed.peer, qmp::QmpOptions::labelled("test")).await.unwrap()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The arguments for a disk on an image, whose format node has the given name.
pub(crate) fn disk(name: &str, format: &str, image: &Path) -> Vec<OsString> {
    let file = json!({ "driver": "file", "filename": image });
    let node = json!({ "driver": format, "node-name": name, "file": file });
    let device = format!("virtio-blk-pci,drive={name},id={name}");
    ["-blockdev".to_owned(), node.to_string(), "-device".to_owned(), device].map(OsString::from).into()
}

/// The arguments of a QEMU that waits for a migration.
pub(crate) fn incoming() -> Vec<OsString> {
    ["-incoming", "defer", "-S"].map(OsString::from).into()
}
