//! One QEMU of a pair: its command line, its process, its monitors.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::PATIENCE;
use crate::booted::Booted;
use crate::disk::DiskFiles;
use crate::error::{Context, Error, Result};
use crate::leftovers::Snapshot;
use crate::network;
use crate::preload::{self, OWN_CLOCK, SLOW_FLUSH};
use crate::qemu_build::Build;
use crate::qmp::{Answer, Event, Qmp};
use crate::record::{Record, Side};
use crate::wire::Wire;

/// The time between two looks at something that has no event.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// The time between two reads of events from the monitor.
const DRAIN: Duration = Duration::from_millis(50);

/// A running QEMU.
pub struct Machine {
    side: Side,
    folder: PathBuf,
    devices: Vec<String>,
    disks: Vec<DiskFiles>,
    child: Mutex<Child>,
    pid: Pid,
    watch: Arc<Mutex<Watch>>,
    reader: Mutex<Option<JoinHandle<()>>>,
    snapshot: Snapshot,
    wire: Option<Arc<Wire>>,
}

/// The bed's own monitor, and the events taken from it.
struct Watch {
    qmp: Qmp,
    events: Vec<Event>,
}

impl Watch {
    fn read(&mut self) -> Result<()> {
        self.events.extend(self.qmp.events()?);
        Ok(())
    }
}

/// Takes events from the monitor as long as the machine is there. A socket holds a few hundred of them; what a QEMU
/// that quits could not send is lost.
fn keep_reading(watch: Weak<Mutex<Watch>>) {
    thread::spawn(move || {
        while let Some(watch) = watch.upgrade() {
            if let Err(error) = lock(&watch).read() {
                eprintln!("{error}");
                return;
            }
            drop(watch);
            thread::sleep(DRAIN);
        }
    });
}

/// The arguments of a start.
pub(crate) struct Launch<'a> {
    pub(crate) side: Side,
    pub(crate) build: &'a Build,
    /// The folder of QEMU's sockets and stderr.
    pub(crate) folder: &'a Path,
    /// All arguments. They open `watch` as the last socket.
    pub(crate) arguments: Vec<String>,
    /// The name of each disk's device in `query-block`.
    pub(crate) devices: Vec<String>,
    pub(crate) disks: Vec<DiskFiles>,
    /// Whether QEMU gets a process group of its own.
    pub(crate) apart: bool,
    /// The link of which QEMU is at one end, if it is on a host of its own.
    pub(crate) wire: Option<Arc<Wire>>,
    /// Whether flushes can be made slow.
    pub(crate) slow_flush: bool,
    /// Whether QEMU has a wall clock of its own.
    pub(crate) own_clock: bool,
    /// The record of the guest's lines, if there is a guest.
    pub(crate) record: Option<&'a Arc<Record>>,
    /// The state to load instead of booting. The arguments have `-S` then.
    pub(crate) booted: Option<&'a Booted>,
}

impl Machine {
    /// Starts a QEMU in its folder and waits for its monitors.
    pub(crate) fn start(launch: Launch<'_>) -> Result<Self> {
        let Launch { side, build, folder, arguments, devices, disks, apart, wire, record, booted, .. } = launch;
        let libraries = [(launch.slow_flush, &SLOW_FLUSH), (launch.own_clock, &OWN_CLOCK)];
        let libraries: Vec<_> =
            libraries.into_iter().filter_map(|(wanted, library)| wanted.then_some(library)).collect();
        for name in ["qmp", "second", "watch", "port"] {
            let path = folder.join(name);
            if path.as_os_str().len() > 107 {
                return Err(Error::new(format!("{} is too long for a socket: set a shorter TMPDIR", path.display())));
            }
            // A socket is left of a QEMU that was killed.
            if path.exists() {
                fs::remove_file(&path).context(|| format!("removing {}", path.display()))?;
            }
        }
        let port = UnixListener::bind(folder.join("port")).context(|| "listening for the debug port")?;
        let stderr = File::create(folder.join("stderr")).context(|| "creating the file for QEMU's stderr")?;
        let mut command = Command::new(build.program("qemu-system-x86_64"));
        if apart {
            command.process_group(0);
        }
        preload::preload(&mut command, folder, &libraries)?;
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let child = match &wire {
            Some(wire) => wire.on(side, || command.spawn())?,
            None => command.spawn(),
        };
        let mut child = child.context(|| format!("starting QEMU {}", build.version()))?;
        let started = settle(&mut child, folder, &port, side, record, booted);
        let (qmp, reader, snapshot) = match started {
            Ok(started) => started,
            Err(error) => {
                let ended = child.kill().and_then(|()| child.wait());
                let said = fs::read_to_string(folder.join("stderr")).unwrap_or_default();
                return Err(Error::new(format!(
                    "the {side} did not start: {error}; {ended:?}; it said: {}",
                    said.trim()
                )));
            }
        };
        let pid = Pid::from_child(&child);
        let watch = Arc::new(Mutex::new(Watch { qmp, events: Vec::new() }));
        keep_reading(Arc::downgrade(&watch));
        Ok(Self {
            side,
            folder: folder.to_path_buf(),
            devices,
            disks,
            child: Mutex::new(child),
            pid,
            watch,
            reader: Mutex::new(reader),
            snapshot,
            wire,
        })
    }

    /// The side of this QEMU.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Makes this QEMU the source, because the guest is here from now on.
    pub(crate) fn become_source(&mut self) {
        self.side = Side::Source;
    }

    /// The unix socket of the monitor that is the engine's alone.
    pub fn qmp_path(&self) -> PathBuf {
        self.folder.join("qmp")
    }

    /// The unix socket of the second monitor, if the spec asked for one.
    pub fn second_qmp_path(&self) -> PathBuf {
        self.folder.join("second")
    }

    /// The TCP port of the other monitor, on 127.0.0.1, if the spec asked for one.
    ///
    /// # Errors
    /// QEMU has no such monitor.
    pub fn qmp_port(&self) -> Result<u16> {
        let devices = self.qmp("query-chardev", &json!({}))?;
        let named = |device: &&Value| device["label"] == "tcp";
        let device =
            devices.as_array().into_iter().flatten().find(named).and_then(|device| device["filename"].as_str());
        let digits = device.and_then(|name| name.split(',').next()).and_then(|address| address.rsplit(':').next());
        digits
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| Error::new("no monitor on TCP: ask for one in the Spec"))
    }

    /// The folder of images, sockets and stderr.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files of the disks.
    pub fn disks(&self) -> &[DiskFiles] {
        &self.disks
    }

    /// The link of which this QEMU is at one end.
    pub(crate) fn wire(&self) -> Option<&Arc<Wire>> {
        self.wire.as_ref()
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits until the guest answers at its network card.
    ///
    /// # Errors
    /// The guest does not answer in that time, or the spec asked for no card.
    pub fn answers_at_its_card(&self, patience: Duration) -> Result<()> {
        network::ask(&self.folder, patience).context(|| self.side)
    }

    /// Runs a command on the bed's own monitor.
    ///
    /// # Errors
    /// QEMU refused it, is gone, or did not answer in 30 seconds.
    pub fn qmp(&self, command: &str, arguments: &Value) -> Result<Value> {
        self.ask(command, arguments)?.context(|| format!("{}: {command}", self.side))
    }

    /// Runs a command whose refusal is an answer, too.
    ///
    /// # Errors
    /// QEMU is gone, or did not answer in 30 seconds.
    pub fn ask(&self, command: &str, arguments: &Value) -> Result<Answer> {
        lock(&self.watch).qmp.ask(command, arguments).context(|| self.side)
    }

    /// The run state by `query-status`, such as `running` or `inmigrate`.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub fn status(&self) -> Result<String> {
        let status = self.qmp("query-status", &json!({}))?;
        Ok(status["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Presses a key, for which a boot sector may wait.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub fn press_key(&self) -> Result<()> {
        self.qmp("send-key", &json!({"keys": [{"type": "qcode", "data": "a"}]})).map(drop)
    }

    /// Waits for a run state.
    ///
    /// # Errors
    /// The run state did not come in that time, or QEMU does not answer.
    pub fn wait_for_status(&self, wanted: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status()?;
            if status == wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                let side = self.side;
                return Err(Error::new(format!("the {side} is {status} and not {wanted} after {patience:?}")));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits for an event that `wanted` accepts, among all since the start.
    ///
    /// # Errors
    /// No such event came in that time; the error has the names of all that came.
    pub fn wait_for_event(&self, patience: Duration, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + patience;
        loop {
            let events = self.events()?;
            if let Some(event) = events.iter().find(|event| wanted(event)) {
                return Ok(event.clone());
            }
            if Instant::now() > deadline {
                let names: Vec<_> = events.iter().map(|event| &event.name).collect();
                return Err(Error::new(format!("the {} had only these events: {names:?}", self.side)));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// All events so far, as the bed's own monitor got them.
    ///
    /// # Errors
    /// The bytes received are not QMP.
    pub fn events(&self) -> Result<Vec<Event>> {
        let mut watch = lock(&self.watch);
        watch.read()?;
        Ok(watch.events.clone())
    }

    /// Whether the process has not ended.
    ///
    /// # Errors
    /// The operating system does not say.
    pub fn alive(&self) -> Result<bool> {
        Ok(lock(&self.child).try_wait().context(|| self.side)?.is_none())
    }

    /// Kills the process with SIGKILL and waits for its end. A process that has ended already is no error.
    ///
    /// # Errors
    /// The process cannot be killed.
    pub fn kill(&self) -> Result<()> {
        let mut child = lock(&self.child);
        child.kill().context(|| format!("killing the {}", self.side))?;
        child.wait().context(|| format!("waiting for the {}", self.side))?;
        drop(child);
        self.hear_out();
        Ok(())
    }

    /// Freezes the process with SIGSTOP until `continue_process`.
    ///
    /// # Errors
    /// The process has ended.
    pub fn stop_process(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Ends a freeze with SIGCONT.
    ///
    /// # Errors
    /// The process has ended.
    pub fn continue_process(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        // Under the lock and only while it is alive, so that the id is still this process's.
        let mut child = lock(&self.child);
        if child.try_wait().context(|| self.side)?.is_some() {
            return Err(Error::new(format!("the {} has ended", self.side)));
        }
        kill_process(self.pid, signal).context(|| format!("signalling the {}", self.side))
    }

    /// Makes each flush of a file take so much longer from now on. The spec must have asked for that.
    ///
    /// # Errors
    /// The time cannot be written down.
    pub fn flush_slowly(&self, longer: Duration) -> Result<()> {
        SLOW_FLUSH.tell(&self.folder, i64::try_from(longer.as_millis()).unwrap_or(i64::MAX))
    }

    /// Sets this QEMU's wall clock to so many milliseconds ahead of the host's. The spec must have asked for that.
    ///
    /// # Errors
    /// The time cannot be written down.
    pub fn set_clock_ahead(&self, ms: i64) -> Result<()> {
        OWN_CLOCK.tell(&self.folder, ms)
    }

    /// Pauses the guest and quits QEMU, so that its images are complete and free. One that has ended already is no
    /// error.
    ///
    /// # Errors
    /// The process does not end.
    pub fn finish(&self) -> Result<()> {
        if self.alive()? {
            let told = self.qmp("stop", &json!({})).and_then(|_| self.qmp("quit", &json!({})));
            // A QEMU that ends by itself meanwhile does not answer.
            self.wait_for_end(PATIENCE).map_err(|late| told.err().unwrap_or(late))?;
        }
        self.hear_out();
        Ok(())
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// The process did not end in that time.
    pub fn wait_for_end(&self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = lock(&self.child).try_wait().context(|| self.side)? {
                return Ok(status);
            }
            thread::sleep(LOOK_AGAIN);
        }
        Err(Error::new(format!("the {} did not end in {patience:?}", self.side)))
    }

    /// The text on stderr so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.folder.join("stderr")).unwrap_or_default()
    }

    /// The node below a disk's device, whatever the style.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn node(&self, disk: usize) -> Result<String> {
        let device = self.devices.get(disk).ok_or_else(|| Error::new(format!("there is no disk {disk}")))?;
        node(device, &self.qmp("query-block", &json!({}))?)
    }

    /// Everything in this QEMU that was not there at its start: block jobs, jobs, exports, dirty bitmaps, nodes,
    /// listening sockets (of an NBD server or an incoming migration), yank instances, migration capabilities and
    /// parameters; and files in the folder. An empty list is good.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let now = Snapshot::take(&mut lock(&self.watch).qmp, self.pid(), &self.folder)?;
        Ok(self.snapshot.differences(&now))
    }

    /// Waits for the rest of the guest's lines.
    fn hear_out(&self) {
        let reader = lock(&self.reader).take();
        if let Some(reader) = reader {
            drop(reader.join()); // a panic in it has been printed
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error}");
        }
    }
}

/// Finds the node under a device, by id or path, in the answer to `query-block`.
fn node(device: &str, blocks: &Value) -> Result<String> {
    let path = format!("/machine/peripheral/{device}");
    let names = [device, &path, &format!("{path}/virtio-backend")];
    let is_it = |block: &&Value| block["qdev"].as_str().is_some_and(|name| names.contains(&name));
    let found = blocks.as_array().into_iter().flatten().find(is_it);
    let name = found.and_then(|block| block["inserted"]["node-name"].as_str());
    name.map(str::to_owned).ok_or_else(|| Error::new(format!("no node under {device}")))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a new process's sockets, and takes a snapshot before anybody uses QEMU.
fn settle(
    child: &mut Child,
    folder: &Path,
    port: &UnixListener,
    side: Side,
    record: Option<&Arc<Record>>,
    booted: Option<&Booted>,
) -> Result<(Qmp, Option<JoinHandle<()>>, Snapshot)> {
    let deadline = Instant::now() + PATIENCE;
    let path = folder.join("watch");
    // QEMU opens its character devices in the order of its command line; the watch monitor is the last of them.
    while std::os::unix::net::UnixStream::connect(&path).is_err() {
        if let Some(status) = child.try_wait().context(|| "watching it start")? {
            return Err(Error::new(format!("it ended: {status}")));
        }
        if Instant::now() > deadline {
            return Err(Error::new(format!("no monitor in {PATIENCE:?}")));
        }
        thread::sleep(LOOK_AGAIN);
    }
    let mut qmp = Qmp::connect(&path)?;
    if let Some(booted) = booted {
        booted.load(&mut qmp, &folder.with_extension("booted"))?;
    }
    let reader = record.map(|record| listen(port, side, record)).transpose()?;
    let snapshot = Snapshot::take(&mut qmp, child.id(), folder)?;
    if booted.is_some() {
        qmp.execute("cont", &json!({}))?;
        qmp.events()?; // of what the bed did, and none of the test's business
    }
    Ok((qmp, reader.flatten(), snapshot))
}

/// Reads the debug port, if QEMU has one. QEMU has connected by now, or never will.
fn listen(port: &UnixListener, side: Side, record: &Arc<Record>) -> Result<Option<JoinHandle<()>>> {
    port.set_nonblocking(true).context(|| "looking at the debug port")?;
    let stream = match port.accept() {
        Ok((stream, _)) => stream,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error).context(|| "accepting the debug port"),
    };
    let log = record.begin(side);
    let record = Arc::clone(record);
    let reader = thread::Builder::new().name(format!("{side} port")).spawn(move || record.read_to_end(stream, log));
    reader.map(Some).context(|| "starting a reader")
}
