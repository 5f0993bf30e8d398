//! Two scripted QEMUs that go through a migration together, as recorded from 10.0.13.
//!
//! They share a [`World`]: what the one is told shows in what the other says. Everything happens in virtual time, and
//! none of it passes between STOP and RESUME unless a test makes a fake wait. What a real QEMU cannot be made to do at
//! will is a field of [`State`]; anything else is an override of one answer, by [`Model::on`].

#![allow(unreachable_pub, reason = "a module of a test program")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use qferry::migration::{Builder, Canceller, Endpoint, JournalPlace, Migration};
use qferry::progress::{Event, Kind, Outcome, Side};
use qferry::storage::identity::Proof;
use serde_json::{Map, Value, json};
use tokio::io::DuplexStream;
use tokio::time::{Instant, sleep};

use crate::fake::{Action, Emitter, Fake, Log, Script, Seen};

pub const MIB: u64 = 1 << 20;
const NEEDED: [&str; 13] = [
    "block-dirty-bitmap-add",
    "block-dirty-bitmap-remove",
    "block-export-add",
    "block-export-del",
    "block-job-cancel",
    "drive-mirror",
    "job-dismiss",
    "migrate-continue",
    "migrate-incoming",
    "nbd-server-start",
    "nbd-server-stop",
    "query-block-exports",
    "query-named-block-nodes",
];
/// Everything a fake answers; what else it is told is `CommandNotFound`.
const ANSWERED: [&str; 39] = [
    "block-dirty-bitmap-add",
    "block-dirty-bitmap-remove",
    "block-export-add",
    "block-job-cancel",
    "block-job-change",
    "block-job-set-speed",
    "cancel-vcpu-dirty-limit",
    "cont",
    "drive-mirror",
    "job-dismiss",
    "migrate",
    "migrate-continue",
    "migrate-incoming",
    "migrate-set-capabilities",
    "migrate-set-parameters",
    "migrate_cancel",
    "nbd-server-start",
    "nbd-server-stop",
    "qom-get",
    "qom-list",
    "query-block",
    "query-block-exports",
    "query-block-jobs",
    "query-blockstats",
    "query-cpus-fast",
    "query-jobs",
    "query-memory-size-summary",
    "query-migrate",
    "query-migrate-capabilities",
    "query-migrate-parameters",
    "query-named-block-nodes",
    "query-pci",
    "query-qmp-schema",
    "query-status",
    "query-version",
    "quit",
    "stop",
    "x-debug-query-block-graph",
    "x-query-ramblock",
];

/// How often RAM goes on: not at the moments at which the engine looks.
const TICK: Duration = Duration::from_millis(30);

/// The path of the only CPU.
const CPU: &str = "/machine/unattached/device[0]";

/// How a mirror ends when it is told to settle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Settle {
    /// Everything is on the other side.
    Well,
    /// `BLOCK_JOB_COMPLETED` with an error.
    Error,
    /// It was not ready: `BLOCK_JOB_CANCELLED`.
    NotReady,
    /// The events tell nothing of the error that `query-jobs` has.
    ErrorInQueryOnly,
    /// It is no longer there once the events are out.
    Vanished,
    /// It never concludes.
    Never,
}

/// What follows `migrate-continue`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Continue {
    /// Both sides complete.
    Completes,
    /// The destination cannot load the state; the source resumes by itself.
    DestinationFails,
    /// The destination's monitor closes; the source fails and resumes by itself.
    DestinationCloses,
    /// The destination's monitor closes, and the source has completed all the same.
    DestinationClosesLate,
    /// The source completes, the destination says nothing any more.
    DestinationFreezes,
    /// The source's process ends, the destination has everything.
    SourceDies,
    /// The source fails and resumes, and then its process ends; the destination has everything.
    SourceResumesAndDies,
}

pub struct Disk {
    pub name: String,
    pub file: String,
    pub size: u64,
    pub read_only: bool,
}

pub struct Job {
    pub id: String,
    pub status: &'static str,
    pub len: u64,
    pub error: Option<String>,
    /// It copies what the guest writes at once.
    pub write_blocking: bool,
    began: Instant,
    /// What it had copied when it was switched, and what the guest had added by then.
    before: (u64, u64),
}

impl Job {
    pub fn new(id: &str, status: &'static str, len: u64) -> Self {
        Self {
            id: id.to_owned(),
            status,
            len,
            error: None,
            write_blocking: false,
            began: Instant::now(),
            before: (0, 0),
        }
    }
}

impl Job {
    /// What it has copied, and what the guest has added to it.
    fn copied(&self, takes: Duration, writes_on: f64) -> (u64, u64) {
        let (before, added) = self.before;
        let copied = self.len as f64 * self.began.elapsed().as_secs_f64() / takes.as_secs_f64();
        match self.write_blocking {
            true => (((before as f64 + copied) as u64).min(self.len + added), added),
            false if writes_on < 1.0 => ((copied as u64).min(self.len), 0),
            false => (copied as u64, (copied * writes_on) as u64),
        }
    }
}

/// One of the two QEMUs.
pub struct Qemu {
    pub run: String,
    pub migration: Option<String>,
    pub error: Option<&'static str>,
    pub blocked: Vec<&'static str>,
    pub capabilities: BTreeMap<String, bool>,
    pub parameters: Map<String, Value>,
    pub disks: Vec<Disk>,
    pub jobs: Vec<Job>,
    /// By node.
    pub bitmaps: BTreeMap<String, (String, u64)>,
    pub server: bool,
    pub exports: Vec<String>,
    pub ram: u64,
    /// Its `-machine`.
    pub machine: &'static str,
    /// The bits that its CPU tells in EBX of leaf 7.
    pub features: u64,
    pub schema: Value,
    emit: Option<Emitter>,
    process: Option<Child>,
}

/// What happens to one command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    Refused,
    /// Neither carried out nor answered.
    Lost,
    /// Carried out and not answered.
    Unanswered,
    /// Carried out, and then the process ends.
    Dies,
    /// Its process ends first.
    DiesBefore,
    /// The monitor closes, and QEMU lives on.
    Closes,
    /// It and every later one is carried out, but no answer and no event comes any more.
    Mute,
    /// The user cancels.
    Cancel,
}

/// What a hook does once a command has arrived.
type Hook = Box<dyn FnOnce() + Send>;
/// What the guard bitmap counts after a start: of which job, at which of its starts, with the guest stopped or not.
type Writes = Box<dyn FnMut(&str, usize, bool) -> Option<u64> + Send>;

/// How far RAM is, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    pub processed: u64,
    pub remaining: u64,
    /// Dirtied in this pass.
    pub dirtied: u64,
    pub passes: u64,
}

/// Both of them, and what is to go wrong.
pub struct State {
    pub source: Qemu,
    pub destination: Qemu,
    /// The guest runs before the migration.
    pub ran: bool,
    pub settle: Vec<Settle>,
    pub writes: Writes,
    /// What a mirror has to copy, bytes.
    pub len: u64,
    pub then: Continue,
    /// How long a mirror takes. By default too short for RAM to be sent beside it.
    pub copies: Duration,
    /// What the guest adds to what a mirror has to copy, as a part of what it copies, until its writes wait for it.
    pub writes_on: f64,
    /// How long RAM takes to be sent once, with nothing to hold it back.
    pub sends: Duration,
    /// `max-bandwidth` is heeded.
    pub heeds: bool,
    /// What the guest dirties of its RAM, as a part of what is sent.
    pub dirties: f64,
    sent: Sent,
    /// How long the last RAM takes.
    pub slow: Duration,
    /// RAM ever converges.
    pub converges: bool,
    /// A status that RAM passes through on its way.
    pub strange: Option<&'static str>,
    /// The source resumes by itself when its migration fails or is cancelled.
    pub resumes: bool,
    /// Exports stay when the NBD server stops.
    pub exports_linger: bool,
    /// Events that are never sent.
    pub muted: fn(Side, &str, &Value) -> bool,
    /// What happens to the commands of these numbers, which count from 0 on each side.
    pub faults: Vec<(Side, usize, Fault)>,
    pub canceller: Option<Canceller>,
    /// What should never have been done.
    pub wrongs: Vec<&'static str>,
    counts: BTreeMap<Side, usize>,
    deaf: BTreeSet<Side>,
    hooks: Vec<(Side, &'static str, Hook)>,
    starts: BTreeMap<String, usize>,
    log: Log,
}

/// The two, shared by their fakes and the test.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

/// What is there before anything goes wrong.
#[derive(Clone, Debug)]
pub struct Shape {
    pub disks: usize,
    pub block_job_change: bool,
    pub exit_on_error: bool,
    pub guest: &'static str,
    /// Each is a process of this host, whose death can be proved.
    pub processes: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { disks: 1, block_job_change: true, exit_on_error: true, guest: "running", processes: false }
    }
}

pub struct Model {
    pub world: World,
    pub source: Fake,
    pub destination: Fake,
    pub log: Log,
    streams: Option<(DuplexStream, DuplexStream)>,
    pub directory: tempfile::TempDir,
}

/// How a migration went.
pub struct Run {
    pub outcome: Outcome,
    pub events: Vec<Event>,
    /// Commands as they arrived, and events (in capitals) as they were sent.
    pub log: Vec<(String, Seen)>,
}

impl Model {
    pub fn new(shape: &Shape) -> Self {
        let log = Log::default();
        let qemu = |side: Side| Qemu {
            run: if side == Side::Source { shape.guest } else { "inmigrate" }.to_owned(),
            migration: None,
            error: None,
            blocked: Vec::new(),
            capabilities: [
                "auto-converge",
                "dirty-limit",
                "events",
                "late-block-activate",
                "pause-before-switchover",
                "return-path",
                "xbzrle",
            ]
            .map(|name| (name.to_owned(), name == "late-block-activate" && side == Side::Destination))
            .into(),
            parameters: Map::from_iter([
                ("cpu-throttle-increment".to_owned(), json!(10)),
                ("cpu-throttle-initial".to_owned(), json!(20)),
                ("cpu-throttle-tailslow".to_owned(), json!(true)),
                ("downtime-limit".to_owned(), json!(777)),
                ("max-bandwidth".to_owned(), json!(12345)),
                ("max-cpu-throttle".to_owned(), json!(99)),
                ("max-postcopy-bandwidth".to_owned(), json!(0)),
                ("throttle-trigger-threshold".to_owned(), json!(50)),
                ("vcpu-dirty-limit".to_owned(), json!(1)),
                ("avail-switchover-bandwidth".to_owned(), json!(0)),
                ("x-new".to_owned(), json!({"a": 1})),
            ]),
            disks: (0..shape.disks)
                .map(|n| Disk {
                    name: format!("disk{n}"),
                    file: format!("/nowhere/{n}"),
                    size: 64 * MIB,
                    read_only: false,
                })
                .collect(),
            jobs: Vec::new(),
            bitmaps: BTreeMap::new(),
            server: false,
            exports: Vec::new(),
            ram: 512 * MIB,
            machine: "pc-i440fx-10.0",
            features: 0x20,
            schema: schema(shape.block_job_change, shape.exit_on_error),
            emit: None,
            process: shape.processes.then(process),
        };
        let world = World(Arc::new(Mutex::new(State {
            source: qemu(Side::Source),
            destination: qemu(Side::Destination),
            ran: shape.guest == "running",
            settle: vec![Settle::Well; shape.disks],
            writes: Box::new(|_, _, _| Some(0)),
            len: 3 * MIB,
            copies: Duration::from_millis(150),
            writes_on: 0.0,
            // more than one sample long
            sends: Duration::from_millis(1300),
            heeds: true,
            dirties: 0.0,
            sent: Sent::default(),
            then: Continue::Completes,
            slow: Duration::ZERO,
            converges: true,
            strange: None,
            resumes: true,
            exports_linger: false,
            muted: |_, _, _| false,
            faults: Vec::new(),
            canceller: None,
            wrongs: Vec::new(),
            counts: BTreeMap::new(),
            deaf: BTreeSet::new(),
            hooks: Vec::new(),
            starts: BTreeMap::new(),
            log: log.clone(),
        })));
        let ((source, here), (destination, there)) = (serve(&world, Side::Source), serve(&world, Side::Destination));
        world.state().source.emit = Some(source.emitter());
        world.state().destination.emit = Some(destination.emitter());
        let directory = tempfile::tempdir().unwrap();
        Self { world, source, destination, log, streams: Some((here, there)), directory }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.world.state()
    }

    pub fn fake(&self, side: Side) -> &Fake {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    /// Another answer to a command.
    pub fn on(&self, side: Side, command: &str, answer: impl FnMut(&Seen) -> Vec<Action> + Send + 'static) {
        self.fake(side).on(command, answer);
    }

    /// No answer to a command, which is not carried out either.
    pub fn silent(&self, side: Side, command: &str) {
        self.on(side, command, |_| Vec::new());
    }

    pub fn refused(&self, side: Side, command: &str) {
        self.on(side, command, |_| vec![Action::error("no")]);
    }

    /// Gives a side a process that has a file open.
    pub fn open(&self, side: Side, file: File) {
        let mut state = self.state();
        let process = &mut state.qemu(side).process;
        let opened = Command::new("sleep").arg("3600").stdin(file).spawn().unwrap();
        if let Some(mut before) = process.replace(opened) {
            before.kill().unwrap();
            before.wait().unwrap();
        }
    }

    /// Does something once, when a command has arrived and before it is answered.
    pub fn when(&self, side: Side, command: &'static str, hook: impl FnOnce() + Send + 'static) {
        self.state().hooks.push((side, command, Box::new(hook)));
    }

    /// A migration of these two; once only.
    pub fn builder(&mut self) -> Builder {
        let pid = |qemu: &Qemu| qemu.process.as_ref().map(|child| i32::try_from(child.id()).unwrap());
        let state = self.state();
        let pids = [pid(&state.source), pid(&state.destination)];
        drop(state);
        self.builder_with(pids)
    }

    /// The same, with these processes behind them.
    pub fn builder_with(&mut self, [here_pid, there_pid]: [Option<i32>; 2]) -> Builder {
        let (here, there) = self.streams.take().unwrap();
        let end = |name: &str, stream, pid| Endpoint::Stream { name: name.to_owned(), stream: Box::new(stream), pid };
        let (here, there) = (end("a", here, here_pid), end("b", there, there_pid));
        let address = |name: &str| format!("unix:{}", self.directory.path().join(name).display()).parse().unwrap();
        let builder =
            Migration::builder(here, there).addresses(address("nbd"), address("ram")).journal(JournalPlace::Nowhere);
        // a fake exports nothing that could be read
        builder.runtime_dir(self.directory.path()).verify_backing(Proof::Off)
    }

    pub async fn migrate(&mut self) -> Run {
        let migration = self.builder().start();
        self.state().canceller = Some(migration.canceller());
        self.follow(migration).await
    }

    /// Takes a started migration to its end.
    pub async fn follow(&self, mut migration: Migration) -> Run {
        let mut stream = migration.events();
        // in virtual time: what never ends fails at once
        let ended = tokio::time::timeout(Duration::from_secs(7200), migration.wait()).await;
        let outcome = ended.unwrap_or_else(|_| panic!("it never ends: {:#?}", self.log));
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            events.push(event);
        }
        self.told(outcome, events)
    }

    pub fn told(&self, outcome: Outcome, events: Vec<Event>) -> Run {
        Run { outcome, events, log: self.log.lock().unwrap().clone() }
    }
}

impl Run {
    /// What was told to both sides, without questions: `source: stop`.
    pub fn told(&self) -> Vec<String> {
        let told = self.log.iter().filter(|(_, seen)| !asks(seen) && is_command(seen));
        told.map(|(side, seen)| format!("{side}: {}", seen.name)).collect()
    }

    pub fn count(&self, told: &str) -> usize {
        self.told().iter().filter(|line| *line == told).count()
    }

    pub fn position(&self, told: &str) -> usize {
        let position = self.told().iter().position(|line| line == told);
        position.unwrap_or_else(|| panic!("{told} was not sent: {:#?}", self.told()))
    }

    /// Everything, questions and events too, from the last STOP to the last RESUME.
    pub fn blackout(&self) -> Vec<(String, Instant)> {
        let at = |event: &str| self.log.iter().rposition(|(_, seen)| seen.name == event).unwrap();
        let window = &self.log[at("STOP")..=at("RESUME")];
        window.iter().map(|(side, seen)| (format!("{side}: {}", seen.name), seen.at)).collect()
    }

    pub fn code(&self) -> &str {
        self.outcome.reason.as_ref().map_or("", |reason| &reason.code)
    }

    pub fn message(&self) -> &str {
        self.outcome.reason.as_ref().map_or("", |reason| &reason.message)
    }

    pub fn warned(&self, wanted: &str) -> bool {
        self.events.iter().any(|event| matches!(&event.kind, Kind::Warning { code, .. } if code == wanted))
    }

    pub fn actions(&self, wanted: &str) -> usize {
        let acted = |event: &&Event| matches!(&event.kind, Kind::Action { action, .. } if action == wanted);
        self.events.iter().filter(acted).count()
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines: Vec<String> = self.log.iter().map(|(side, seen)| format!("{side}: {}", seen.name)).collect();
        write!(f, "{:#?}\n{lines:#?}", self.outcome)?;
        self.events.iter().try_for_each(|event| match &event.kind {
            Kind::Warning { .. } | Kind::Action { .. } => write!(f, "\n{:?}", event.kind),
            _ => Ok(()),
        })
    }
}

/// Whether it changes nothing.
pub fn asks(seen: &Seen) -> bool {
    let asks = ["query-", "x-query-", "x-debug-query-", "qom-list", "qom-get"]
        .iter()
        .any(|begin| seen.name.starts_with(begin));
    asks || seen.name == "qmp_capabilities"
}

fn is_command(seen: &Seen) -> bool {
    seen.name.chars().any(|c| c.is_ascii_lowercase())
}

fn process() -> Child {
    Command::new("sleep").arg("3600").stdin(Stdio::null()).spawn().unwrap()
}

fn serve(world: &World, side: Side) -> (Fake, DuplexStream) {
    let log = world.state().log.clone();
    let mut script = Script::new().log(side.as_str(), &log);
    for command in ANSWERED {
        let world = world.clone();
        script = script.on(command, move |seen| world.answer(side, seen));
    }
    script.duplex()
}

impl World {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// What a QEMU answers to a command, whatever overrides there are.
    pub fn answer(&self, side: Side, seen: &Seen) -> Vec<Action> {
        let hooks: Vec<Hook> = {
            let mut state = self.state();
            let (due, rest) = std::mem::take(&mut state.hooks)
                .into_iter()
                .partition::<Vec<_>, _>(|(at, command, _)| *at == side && *command == seen.name);
            state.hooks = rest;
            due.into_iter().map(|(_, _, hook)| hook).collect()
        };
        hooks.into_iter().for_each(|hook| hook());
        let fault = self.state().fault(side);
        match fault {
            Some(Fault::Refused) => return vec![Action::error("no")],
            Some(Fault::Lost) => return Vec::new(),
            Some(Fault::DiesBefore) => {
                self.state().die(side);
                return Vec::new();
            }
            Some(Fault::Closes) => {
                self.state().close(side);
                return Vec::new();
            }
            Some(Fault::Mute) => drop(self.state().deaf.insert(side)),
            Some(Fault::Cancel) => self.state().canceller.as_ref().unwrap().cancel(),
            Some(Fault::Unanswered | Fault::Dies) | None => {}
        }
        let answer = match self.carry_out(side, seen) {
            Ok(value) if seen.name == "quit" => vec![Action::Return(value), Action::Close],
            Ok(value) => vec![Action::Return(value)],
            Err(desc) => vec![Action::error(desc)],
        };
        if fault == Some(Fault::Dies) {
            self.state().die(side);
        }
        let answered = !matches!(fault, Some(Fault::Unanswered | Fault::Dies)) && !self.state().deaf.contains(&side);
        if answered { answer } else { Vec::new() }
    }

    fn carry_out(&self, side: Side, seen: &Seen) -> Result<Value, &'static str> {
        let mut state = self.state();
        let text = |key: &str| seen.arguments[key].as_str().unwrap_or_default().to_owned();
        if let Some(answer) = state.question(side, &seen.name) {
            return Ok(answer);
        }
        if seen.name == "qom-get" {
            return state.qemu(side).property(&text("path"), &text("property")).ok_or("no such property");
        }
        match seen.name.as_str() {
            "migrate-set-capabilities" if state.qemu(side).is_migrating() => {
                return Err("There's a migration process in progress");
            }
            "migrate-set-capabilities" => {
                for capability in seen.arguments["capabilities"].as_array().unwrap() {
                    let (name, on) = (capability["capability"].as_str().unwrap(), capability["state"] == true);
                    *state.qemu(side).capabilities.get_mut(name).ok_or("no such capability")? = on;
                }
            }
            "migrate-set-parameters" => {
                let given = seen.arguments.as_object().unwrap().clone();
                state.qemu(side).parameters.extend(given);
            }
            "cancel-vcpu-dirty-limit" => {}
            "nbd-server-start" => state.qemu(side).server = true,
            "block-export-add" => state.qemu(side).exports.push(text("id")),
            "nbd-server-stop" if !state.qemu(side).server => return Err("NBD server not running"),
            "nbd-server-stop" => {
                state.qemu(side).server = false;
                if !state.exports_linger {
                    for id in std::mem::take(&mut state.qemu(side).exports) {
                        state.emit(side, "BLOCK_EXPORT_DELETED", json!({ "id": id }));
                    }
                }
            }
            "block-dirty-bitmap-add" => {
                state.qemu(side).bitmaps.insert(text("node"), (text("name"), 0));
            }
            "block-dirty-bitmap-remove" => {
                state.qemu(side).bitmaps.remove(&text("node")).ok_or("Dirty bitmap not found")?;
            }
            "drive-mirror" => {
                let world = self.clone();
                state.start_mirror(text("job-id"), &text("device"), world);
            }
            "block-job-change" => {
                let id = text("id");
                let (copies, writes_on) = (state.copies, state.writes_on);
                let job = state.source.jobs.iter_mut().find(|job| job.id == id).ok_or("Job not found")?;
                job.before = job.copied(copies, writes_on);
                job.write_blocking = true;
                // the writes wait from now on: it is through with the rest in as long as it takes without them
                job.began = Instant::now();
                let world = self.clone();
                let start = state.starts[&id];
                tokio::spawn(async move { world.copy(id, start).await });
            }
            "block-job-set-speed" => {
                let id = text("device");
                state.source.jobs.iter().find(|job| job.id == id).ok_or("Job not found")?;
            }
            "block-job-cancel" => state.end_mirror(&text("device"), seen.arguments["force"] == true)?,
            "job-dismiss" => {
                let id = text("id");
                let at = state.source.jobs.iter().position(|job| job.id == id).ok_or("Job not found")?;
                state.source.jobs.remove(at);
                state.emit(side, "JOB_STATUS_CHANGE", json!({"id": id, "status": "null"}));
            }
            "migrate-incoming" => {
                if !seen.arguments["exit-on-error"].is_null() && !has_exit_on_error(&state.qemu(side).schema) {
                    return Err("Parameter 'exit-on-error' is unexpected");
                }
                state.enter(side, "setup");
            }
            "migrate" => {
                state.enter(Side::Source, "setup");
                state.enter(Side::Destination, "active");
                let world = self.clone();
                tokio::spawn(async move { world.precopy().await });
            }
            "migrate_cancel" => {
                if state.source.is_migrating() {
                    state.enter(Side::Source, "cancelling");
                    state.fail_destination();
                    state.leave_finish_migrate();
                    state.enter(Side::Source, "cancelled");
                }
            }
            "migrate-continue" if state.source.migration.as_deref() != Some("pre-switchover") => {
                return Err("Migration not in expected state");
            }
            "migrate-continue" => {
                if state.source.jobs.iter().any(|job| job.status != "concluded" || job.error.is_some()) {
                    state.wrongs.push("continued without every write");
                }
                if !state.destination.exports.is_empty() {
                    state.wrongs.push("continued with an export open");
                }
                state.enter(Side::Source, "device");
                let world = self.clone();
                let slow = state.slow;
                tokio::spawn(async move {
                    if !slow.is_zero() {
                        sleep(slow).await;
                    }
                    world.state().hand_over();
                });
            }
            "stop" => state.stop(side),
            "cont" if side == Side::Source && state.source.is_migrating() => {
                return Err("Migration is not finalized yet");
            }
            "cont" => state.resume(side),
            "quit" => {
                if state.qemu(side).run == "running" {
                    state.wrongs.push("a running guest was ended");
                }
                state.emit(side, "SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"}));
                state.qemu(side).end();
                if side == Side::Destination {
                    state.lose_destination();
                }
            }
            other => panic!("the model does not know {other}"),
        }
        Ok(json!({}))
    }

    /// Copies a disk until its mirror is ready.
    async fn copy(&self, id: String, start: usize) {
        let takes = self.state().copies;
        sleep(takes).await;
        let mut state = self.state();
        // not the next one of this name
        let same = state.starts[&id] == start;
        if same && state.source.jobs.iter().any(|job| job.id == id && job.status == "running") {
            state.job(&id, "ready");
            state.emit(Side::Source, "BLOCK_JOB_READY", json!({"device": id}));
        }
    }

    async fn precopy(&self) {
        self.state().enter(Side::Source, "active");
        let strange = self.state().strange;
        if let Some(strange) = strange {
            sleep(Duration::from_millis(600)).await;
            self.state().enter(Side::Source, strange);
        }
        {
            let mut state = self.state();
            state.sent = Sent { remaining: state.source.ram, ..Sent::default() };
        }
        loop {
            sleep(TICK).await;
            let mut state = self.state();
            if !state.source.is_migrating() || !state.source.is_alive() {
                return;
            }
            if state.send_ram() && state.converges {
                break;
            }
        }
        let mut state = self.state();
        if state.source.run == "running" {
            state.emit(Side::Source, "STOP", Value::Null);
        }
        state.source.run = "finish-migrate".to_owned();
        state.enter(Side::Source, "pre-switchover");
    }
}

impl Qemu {
    fn is_migrating(&self) -> bool {
        self.migration.as_deref().is_some_and(|status| !["none", "completed", "failed", "cancelled"].contains(&status))
    }

    fn is_alive(&self) -> bool {
        self.run != "gone"
    }

    /// The process is gone, where there is one.
    fn end(&mut self) {
        self.run = "gone".to_owned();
        if let Some(child) = &mut self.process {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}

impl State {
    pub fn qemu(&mut self, side: Side) -> &mut Qemu {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "a caller writes the data on the spot")]
    pub fn emit(&mut self, side: Side, name: &str, data: Value) {
        if self.deaf.contains(&side) || (self.muted)(side, name, &data) {
            return;
        }
        let seen = Seen { name: name.to_owned(), arguments: data.clone(), id: None, oob: false, at: Instant::now() };
        self.log.lock().unwrap().push((side.as_str().to_owned(), seen));
        self.qemu(side).emit.as_ref().unwrap().event(name, &data);
    }

    fn fault(&mut self, side: Side) -> Option<Fault> {
        let count = self.counts.entry(side).or_default();
        let number = *count;
        *count += 1;
        self.faults.iter().find(|(at, n, _)| *at == side && *n == number).map(|(_, _, fault)| *fault)
    }

    /// Ends a process and its monitor.
    pub fn die(&mut self, side: Side) {
        self.qemu(side).end();
        self.close(side);
        if side == Side::Destination {
            self.lose_destination();
        }
    }

    pub fn close(&mut self, side: Side) {
        self.qemu(side).emit.as_ref().unwrap().close();
    }

    /// The migration of one side enters a status.
    pub fn enter(&mut self, side: Side, status: &str) {
        self.qemu(side).migration = Some(status.to_owned());
        self.emit(side, "MIGRATION", json!({ "status": status, "x-new": 1 }));
    }

    fn stop(&mut self, side: Side) {
        if self.qemu(side).run == "running" {
            self.qemu(side).run = "paused".to_owned();
            self.emit(side, "STOP", Value::Null);
        }
    }

    fn resume(&mut self, side: Side) {
        let other = if side == Side::Source { Side::Destination } else { Side::Source };
        if self.qemu(other).run == "running" {
            self.wrongs.push("two runners");
        }
        if !self.ran {
            self.wrongs.push("a paused guest was resumed");
        }
        if self.qemu(side).run != "running" {
            self.qemu(side).run = "running".to_owned();
            self.emit(side, "RESUME", Value::Null);
        }
    }

    fn leave_finish_migrate(&mut self) {
        if self.source.run == "finish-migrate" {
            self.source.run = "paused".to_owned();
            if self.ran && self.resumes {
                self.resume(Side::Source);
            }
        }
    }

    /// The source's migration fails; it resumes.
    pub fn fail_source(&mut self) {
        if !self.source.is_alive() {
            return;
        }
        self.source.error = Some("Sibling indicated error 1");
        self.enter(Side::Source, "failed");
        self.leave_finish_migrate();
    }

    fn fail_destination(&mut self) {
        if self.destination.is_migrating() && self.destination.is_alive() {
            self.destination.error = Some("load of migration failed");
            self.enter(Side::Destination, "failed");
            if !has_exit_on_error(&self.destination.schema) {
                self.die(Side::Destination);
            }
        }
    }

    /// A source that still needs its destination notices the loss, but not while it waits to be continued.
    fn lose_destination(&mut self) {
        if matches!(self.source.migration.as_deref(), Some("setup" | "active" | "device")) {
            self.fail_source();
        }
    }

    fn arrive(&mut self) {
        self.destination.run = "paused".to_owned();
        self.enter(Side::Destination, "completed");
    }

    /// The end of the migration, whoever asked for it.
    pub fn hand_over(&mut self) {
        if !self.source.is_migrating() {
            return;
        }
        match (self.source.is_alive(), self.destination.is_alive()) {
            (true, true) => {}
            (true, false) => return self.fail_source(),
            (false, _) => return self.fail_destination(),
        }
        let complete_source = |state: &mut Self| {
            state.source.run = "postmigrate".to_owned();
            state.enter(Side::Source, "completed");
        };
        match self.then {
            Continue::Completes => {
                self.arrive();
                complete_source(self);
            }
            Continue::DestinationFails => {
                self.fail_destination();
                self.fail_source();
            }
            Continue::DestinationCloses => self.die(Side::Destination),
            Continue::DestinationClosesLate => {
                complete_source(self);
                self.die(Side::Destination);
            }
            Continue::DestinationFreezes => complete_source(self),
            Continue::SourceDies => {
                self.arrive();
                self.die(Side::Source);
            }
            Continue::SourceResumesAndDies => {
                self.arrive();
                self.fail_source();
                self.die(Side::Source);
            }
        }
    }

    /// Sends for a tick. True once what remains may be sent with the guest stopped.
    fn send_ram(&mut self) -> bool {
        let rate = self.source.ram as f64 / self.sends.as_secs_f64();
        let number = |name: &str| self.source.parameters[name].as_f64().unwrap();
        let sent = match self.heeds {
            true => rate.min(number("max-bandwidth")) * TICK.as_secs_f64(),
            false => rate * TICK.as_secs_f64(),
        };
        let tail = rate * number("downtime-limit") / 1000.0;
        let now = &mut self.sent;
        let sent = (sent as u64).min(now.remaining);
        now.processed += sent;
        now.remaining -= sent;
        now.dirtied = (now.dirtied + (sent as f64 * self.dirties) as u64).min(self.source.ram);
        if now.remaining as f64 > tail {
            return false;
        }
        // counted anew before it is believed
        (now.remaining, now.dirtied, now.passes) =
            ((now.remaining + now.dirtied).min(self.source.ram), 0, now.passes + 1);
        now.remaining as f64 <= tail
    }

    fn start_mirror(&mut self, id: String, node: &str, world: World) {
        let start = self.starts.entry(id.clone()).or_default();
        *start += 1;
        let (start, stopped) = (*start, self.source.run != "running");
        let count = (self.writes)(&id, start, stopped);
        match (count, self.source.bitmaps.get_mut(node)) {
            (Some(count), Some(bitmap)) => bitmap.1 = count,
            (None, _) => drop(self.source.bitmaps.remove(node)),
            (Some(_), None) => {}
        }
        self.source.jobs.push(Job::new(&id, "created", self.len));
        for status in ["created", "running"] {
            self.job(&id, status);
        }
        if self.writes_on < 1.0 {
            tokio::spawn(async move { world.copy(id, start).await });
        }
        if self.len == 0 {
            self.job(&self.source.jobs.last().unwrap().id.clone(), "ready");
        }
    }

    /// A job enters a status.
    pub fn job(&mut self, id: &str, status: &'static str) {
        if let Some(job) = self.source.jobs.iter_mut().find(|job| job.id == id) {
            job.status = status;
        }
        self.emit(Side::Source, "JOB_STATUS_CHANGE", json!({"id": id, "status": status}));
    }

    fn end_mirror(&mut self, id: &str, force: bool) -> Result<(), &'static str> {
        let job = self.source.jobs.iter().find(|job| job.id == id).ok_or("Job not found")?;
        if job.status == "concluded" {
            return Err("Job in state 'concluded' cannot accept command verb 'cancel'");
        }
        let number: usize = id.rsplit('-').next().unwrap().parse().unwrap();
        let ready = job.status == "ready";
        let how = if force || !ready { Settle::NotReady } else { self.settle[number] };
        self.conclude(id, how);
        Ok(())
    }

    /// A job ends.
    pub fn conclude(&mut self, id: &str, how: Settle) {
        if how == Settle::Never {
            return;
        }
        let (event, error) = match how {
            Settle::NotReady => ("BLOCK_JOB_CANCELLED", Some("Operation canceled")),
            Settle::Error | Settle::ErrorInQueryOnly => ("BLOCK_JOB_COMPLETED", Some("Input/output error")),
            _ => ("BLOCK_JOB_COMPLETED", None),
        };
        if let Some(job) = self.source.jobs.iter_mut().find(|job| job.id == id) {
            job.error = error.map(str::to_owned);
        }
        let mut data = json!({"device": id, "len": 1, "offset": 1, "speed": 0, "type": "mirror"});
        if how == Settle::Error {
            data["error"] = json!(error);
        }
        self.emit(Side::Source, event, data);
        self.job(id, "concluded");
        if how == Settle::Vanished {
            self.source.jobs.retain(|job| job.id != id);
        }
    }

    fn question(&mut self, side: Side, name: &str) -> Option<Value> {
        let qemu = self.qemu(side);
        Some(match name {
            "query-qmp-schema" => qemu.schema.clone(),
            "query-status" => json!({"running": qemu.run == "running", "status": qemu.run, "x-new": []}),
            "query-migrate" => {
                let sent = self.sent;
                self.qemu(side).query_migrate(sent)
            }
            "query-migrate-capabilities" => {
                let list = qemu.capabilities.iter().map(|(name, on)| json!({"capability": name, "state": on}));
                list.collect()
            }
            "query-migrate-parameters" => Value::Object(qemu.parameters.clone()),
            "query-block" => {
                let list = qemu.disks.iter().map(|disk| {
                    let qdev = format!("/machine/peripheral/{}/virtio-backend", disk.name);
                    json!({"device": "", "qdev": qdev, "inserted": node(disk, None), "x-new": 1})
                });
                list.collect()
            }
            "query-blockstats" => {
                let list = qemu.disks.iter().map(|disk| {
                    let qdev = format!("/machine/peripheral/{}/virtio-backend", disk.name);
                    let stats = json!({"wr_bytes": 0, "wr_operations": 0, "wr_total_time_ns": 0, "x-new": 1});
                    json!({"device": "", "qdev": qdev, "node-name": format!("node-{}", disk.name), "stats": stats})
                });
                list.collect()
            }
            "query-named-block-nodes" => {
                let list = qemu
                    .disks
                    .iter()
                    .flat_map(|disk| [node(disk, qemu.bitmaps.get(&format!("node-{}", disk.name))), base(disk)]);
                list.collect()
            }
            "query-jobs" => {
                let list = qemu.jobs.iter().map(|job| {
                    let mut told =
                        json!({"id": job.id, "status": job.status, "type": "mirror", "current-progress": job.len});
                    if let Some(error) = &job.error {
                        told["error"] = json!(error);
                    }
                    told
                });
                list.collect()
            }
            "query-block-jobs" => {
                let synced = has_block_job_change(&qemu.schema);
                let (copies, writes_on) = (self.copies, self.writes_on);
                let list = self.qemu(side).jobs.iter().map(|job| {
                    let ready = job.status == "ready";
                    let (copied, added) = job.copied(copies, writes_on);
                    let len = job.len + added;
                    let mut told = json!({"device": job.id, "status": job.status, "type": "mirror", "len": len,
                        "offset": if ready { len } else { copied }, "ready": ready});
                    if synced {
                        told["actively-synced"] = json!(ready && job.write_blocking);
                    }
                    if let Some(error) = &job.error {
                        told["error"] = json!(error);
                    }
                    told
                });
                list.collect()
            }
            "query-block-exports" => {
                let list = qemu.exports.iter().map(|id| json!({"id": id, "type": "nbd", "shutting-down": false}));
                list.collect()
            }
            "query-memory-size-summary" => json!({"base-memory": qemu.ram, "plugged-memory": 0}),
            "query-version" => json!({"qemu": {"major": 10, "minor": 0, "micro": 13}, "package": "fake"}),
            "query-cpus-fast" => json!([{"cpu-index": 0, "qom-path": CPU, "thread-id": 7, "x-new": 1}]),
            "x-query-ramblock" => {
                let (head, size) = ("Block Name    PSize  Offset  Used  Total\n", qemu.ram);
                json!({"human-readable-text": format!("{head}pc.ram    4 KiB  0x0 {size:#x} {size:#x}\n")})
            }
            "qom-list" => {
                json!([{"name": "type", "type": "string"}, {"name": "x-new", "type": "bool"},
                    {"name": "avx2", "type": "bool"}, {"name": "usb0", "type": "child<nec-usb-xhci>"}])
            }
            "query-pci" => json!([]),
            "x-debug-query-block-graph" => json!({"nodes": [], "edges": [], "x-new": 1}),
            _ => return None,
        })
    }
}

impl Qemu {
    fn property(&self, path: &str, name: &str) -> Option<Value> {
        Some(match (path, name) {
            ("/machine", "type") => json!(format!("{}-machine", self.machine)),
            (CPU, "type") => json!("max-x86_64-cpu"),
            (CPU, "vendor") => json!("AuthenticAMD"),
            (CPU, "family" | "model" | "stepping") => json!(6),
            (CPU, "avx2") => json!(self.features & 0x20 != 0),
            (CPU, "feature-words") => json!([{"cpuid-input-eax": 7, "cpuid-input-ecx": 0, "cpuid-register": "EBX",
                "features": self.features, "x-new": 1}]),
            (_, "parent_bus") => json!("/machine/unattached/device[2]/isa.0"),
            _ => return None,
        })
    }

    fn query_migrate(&self, sent: Sent) -> Value {
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

fn node(disk: &Disk, bitmap: Option<&(String, u64)>) -> Value {
    let bitmaps: Vec<Value> = bitmap.iter().map(|(name, count)| json!({"name": name, "count": count})).collect();
    json!({"node-name": format!("node-{}", disk.name), "drv": "qcow2", "file": disk.file,
        "ro": disk.read_only, "image": {"virtual-size": disk.size}, "dirty-bitmaps": bitmaps, "x-new": null,
        "children": [{"child": "backing", "node-name": format!("base-{}", disk.name)},
            {"child": "file", "node-name": format!("file-{}", disk.name)}]})
}

/// What a disk is over.
fn base(disk: &Disk) -> Value {
    json!({"node-name": format!("base-{}", disk.name), "drv": "file", "file": format!("{}.base", disk.file), "ro": true,
        "image": {"virtual-size": disk.size}})
}

/// Adds migration capabilities to what a schema has.
pub fn add_capabilities(schema: &mut Value, names: &[&str]) {
    let entities = schema.as_array_mut().unwrap();
    let members = &mut entities.iter_mut().find(|entity| entity["name"] == "3").unwrap()["members"];
    members.as_array_mut().unwrap().extend(names.iter().map(|name| json!({ "name": name, "type": "" })));
}

/// Adds the parameter that tells QEMU with what to reckon for the switchover.
pub fn add_switchover_bandwidth(schema: &mut Value) {
    let entities = schema.as_array_mut().unwrap();
    entities.push(json!({"name": "migrate-set-parameters", "meta-type": "command", "arg-type": "6"}));
    let member = json!([{"name": "avail-switchover-bandwidth", "type": "int"}]);
    entities.push(json!({"name": "6", "meta-type": "object", "members": member}));
}

/// Just what the engine reads of a schema.
pub fn schema(block_job_change: bool, exit_on_error: bool) -> Value {
    let mut commands: BTreeSet<&str> = NEEDED.into();
    if block_job_change {
        commands.insert("block-job-change");
    }
    let list = |names: &[&str], kind: &str| -> Value {
        names.iter().map(|name| json!({"name": name, "type": kind})).collect()
    };
    let capabilities = ["events", "late-block-activate", "pause-before-switchover", "return-path"];
    let incoming: &[&str] = if exit_on_error { &["uri", "exit-on-error"] } else { &["uri"] };
    let mut entities = vec![
        json!({"name": "migrate-set-capabilities", "meta-type": "command", "arg-type": "1"}),
        json!({"name": "1", "meta-type": "object", "members": [{"name": "capabilities", "type": "[2]"}]}),
        json!({"name": "[2]", "meta-type": "array", "element-type": "2"}),
        json!({"name": "2", "meta-type": "object", "members": [{"name": "capability", "type": "3"}]}),
        json!({"name": "3", "meta-type": "enum", "members": list(&capabilities, "")}),
        json!({"name": "4", "meta-type": "object", "members": list(&["auto-dismiss"], "bool")}),
        json!({"name": "5", "meta-type": "object", "members": list(incoming, "str")}),
    ];
    entities.extend(commands.iter().map(|name| {
        let argument = match *name {
            "drive-mirror" => "4",
            "migrate-incoming" => "5",
            _ => "0",
        };
        json!({"name": name, "meta-type": "command", "arg-type": argument})
    }));
    json!(entities)
}

fn has_block_job_change(schema: &Value) -> bool {
    schema.to_string().contains("block-job-change")
}

fn has_exit_on_error(schema: &Value) -> bool {
    schema.to_string().contains("exit-on-error")
}
