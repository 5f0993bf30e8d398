//! Two scripted QEMUs that go through a migration together, as recorded from 10.0.13.
//!
//! Both share a [`SharedPair`], so that a command to one of them shows in the answers of the other. Everything happens
//! in virtual time, and none of that passes between STOP and RESUME unless a test makes a monitor wait. What no real
//! QEMU can be made to do at will is a field of [`PairState`]; anything else is an override of one answer, by
//! [`ModelPair::on`].

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each program uses its own part of it")]

mod answers;
mod course;
mod qemu;
mod run;
mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use qferry::internals::endpoint::{Endpoint, ProcessHandle};
use qferry::internals::migration::{Builder, Control, JournalPlace, Migration, Running};
use qferry::internals::progress::{Event, Outcome, Side};
use qferry::internals::storage::verify::identity::ProofLevel;
use serde_json::{Map, Value, json};
use tokio::io::DuplexStream;

use crate::fake::{AnswerStep, CommandLog, FakeMonitor, MonitorScript, ReceivedCommand};

pub use qemu::{MirrorJob, ModelDisk, ModelQemu};
pub use run::{MigrationRun, asks};
pub use schema::{
    add_capabilities, add_command, add_histograms, add_keep_alive_times, add_switchover_bandwidth,
    add_zero_page_detection, schema,
};

pub const MIB: u64 = 1 << 20;
/// The commands that a monitor of the model answers; any other is `CommandNotFound`.
const ANSWERED: [&str; 42] = [
    "block-dirty-bitmap-add",
    "block-dirty-bitmap-remove",
    "block-export-add",
    "block-export-del",
    "block-job-cancel",
    "block-job-change",
    "block-job-set-speed",
    "cancel-vcpu-dirty-limit",
    "cont",
    "drive-mirror",
    "human-monitor-command",
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
    "query-hotpluggable-cpus",
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

/// The end of a mirror once `block-job-cancel` asks for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MirrorEnd {
    /// `BLOCK_JOB_COMPLETED` without an error: every write is on the destination.
    Well,
    /// `BLOCK_JOB_COMPLETED` with an error.
    Error,
    /// `BLOCK_JOB_CANCELLED`, as of a mirror that was not ready.
    NotReady,
    /// The error stands in `query-jobs` alone, and in no event.
    ErrorInQueryOnly,
    /// `query-jobs` no longer lists the job once the events are sent.
    Vanished,
    /// The mirror never concludes.
    Never,
}

/// The course of events after `migrate-continue`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AfterContinue {
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

/// A fault of one command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CommandFault {
    Refused,
    /// Neither carried out nor answered.
    Lost,
    /// Carried out and not answered.
    Unanswered,
    /// Carried out, and then the process ends.
    Dies,
    /// The process ends before the command is carried out.
    DiesBefore,
    /// The monitor closes, and QEMU lives on.
    Closes,
    /// This command and every later one is carried out, but no answer and no event comes any more.
    Mute,
    /// The user cancels.
    Cancel,
}

/// The deed of a test at the arrival of a command.
type CommandHook = Box<dyn FnOnce() + Send>;
/// The count of the guard bitmap after a start of a mirror, by job, number of the start, and whether the guest is
/// stopped.
type GuardCounts = Box<dyn FnMut(&str, usize, bool) -> Option<u64> + Send>;

/// The progress of RAM, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct RamProgress {
    pub processed: u64,
    pub remaining: u64,
    /// Dirtied in this pass.
    pub dirtied: u64,
    pub passes: u64,
}

/// The state of both QEMUs, and what is to go wrong.
pub struct PairState {
    pub source: ModelQemu,
    pub destination: ModelQemu,
    /// Whether the guest runs before the migration.
    pub guest_ran: bool,
    /// Whether the guest ran when QEMU stopped it for the switchover.
    pub(super) ran_at_the_stop: bool,
    pub mirror_ends: Vec<MirrorEnd>,
    pub guard_counts: GuardCounts,
    /// The bytes that a mirror has to copy.
    pub len: u64,
    pub after_continue: AfterContinue,
    /// The duration of a mirror. The default is too short for RAM to be sent beside it.
    pub mirror_takes: Duration,
    /// The bytes that the guest's writes add to a mirror for each byte that the mirror copies; none once they wait for
    /// it.
    pub added_share: f64,
    /// The duration of one pass over all RAM without a limit.
    pub ram_takes: Duration,
    /// Whether the source heeds `max-bandwidth`.
    pub heeds_max_bandwidth: bool,
    /// Whether RAM is zeros, which pass below any `max-bandwidth` unless they are sent whole.
    pub zero_pages: bool,
    /// The bytes of RAM that the guest dirties for each byte that is sent.
    pub dirtied_share: f64,
    pub(super) sent: RamProgress,
    /// The duration of the last RAM, which is sent after `migrate-continue`.
    pub last_ram_takes: Duration,
    /// Whether the source's migration leads to a third QEMU.
    pub leads_elsewhere: bool,
    /// Whether RAM ever converges.
    pub converges: bool,
    /// A status of `query-migrate` that RAM passes through before `pre-switchover`.
    pub odd_status: Option<&'static str>,
    /// Whether the source resumes by itself when its migration fails or is cancelled.
    pub source_resumes: bool,
    /// Whether exports stay when the NBD server stops.
    pub exports_linger: bool,
    /// Events that are never sent.
    pub muted: fn(Side, &str, &Value) -> bool,
    /// The faults, each with its side and the number of the command there, from 0.
    pub faults: Vec<(Side, usize, CommandFault)>,
    pub control: Option<Control>,
    /// The deeds of the engine that would harm a guest.
    pub violations: Vec<&'static str>,
    pub(super) counts: BTreeMap<Side, usize>,
    pub(super) mute_sides: BTreeSet<Side>,
    pub(super) hooks: Vec<(Side, &'static str, CommandHook)>,
    pub(super) starts: BTreeMap<String, usize>,
    pub(super) log: CommandLog,
}

/// The state, shared by both monitors and the test.
#[derive(Clone)]
pub struct SharedPair(Arc<Mutex<PairState>>);

/// The two QEMUs and their guest before the migration.
#[derive(Clone, Debug)]
pub struct PairShape {
    pub disks: usize,
    pub block_job_change: bool,
    pub exit_on_error: bool,
    pub guest: &'static str,
    /// Whether each QEMU is a process of this host, whose death can be proved.
    pub processes: bool,
}

impl Default for PairShape {
    fn default() -> Self {
        Self { disks: 1, block_job_change: true, exit_on_error: true, guest: "running", processes: false }
    }
}

pub struct ModelPair {
    pub shared: SharedPair,
    pub source: FakeMonitor,
    pub destination: FakeMonitor,
    pub log: CommandLog,
    streams: Option<[DuplexStream; 2]>,
    pub directory: tempfile::TempDir,
}

impl ModelPair {
    pub fn new(shape: &PairShape) -> Self {
        let log = CommandLog::default();
        let qemu = |side: Side| ModelQemu {
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
                ("zero-page-detection".to_owned(), json!("multifd")),
                ("x-new".to_owned(), json!({"a": 1})),
            ]),
            disks: (0..shape.disks)
                .map(|n| ModelDisk {
                    name: format!("disk{n}"),
                    file: format!("/nowhere/{n}"),
                    size: 64 * MIB,
                    read_only: false,
                })
                .collect(),
            jobs: Vec::new(),
            pivoted: Vec::new(),
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
        let shared = SharedPair(Arc::new(Mutex::new(PairState {
            source: qemu(Side::Source),
            destination: qemu(Side::Destination),
            guest_ran: shape.guest == "running",
            ran_at_the_stop: true,
            mirror_ends: vec![MirrorEnd::Well; shape.disks],
            guard_counts: Box::new(|_, _, _| Some(0)),
            len: 3 * MIB,
            mirror_takes: Duration::from_millis(150),
            added_share: 0.0,
            // longer than one period of the engine's samples
            ram_takes: Duration::from_millis(1300),
            heeds_max_bandwidth: true,
            zero_pages: false,
            dirtied_share: 0.0,
            sent: RamProgress::default(),
            after_continue: AfterContinue::Completes,
            last_ram_takes: Duration::ZERO,
            leads_elsewhere: false,
            converges: true,
            odd_status: None,
            source_resumes: true,
            exports_linger: false,
            muted: |_, _, _| false,
            faults: Vec::new(),
            control: None,
            violations: Vec::new(),
            counts: BTreeMap::new(),
            mute_sides: BTreeSet::new(),
            hooks: Vec::new(),
            starts: BTreeMap::new(),
            log: log.clone(),
        })));
        let ((source, at_source), (destination, at_destination)) =
            (serve(&shared, Side::Source), serve(&shared, Side::Destination));
        shared.state().source.emit = Some(source.emitter());
        shared.state().destination.emit = Some(destination.emitter());
        let directory = tempfile::tempdir().unwrap();
        Self { shared, source, destination, log, streams: Some([at_source, at_destination]), directory }
    }

    pub fn state(&self) -> MutexGuard<'_, PairState> {
        self.shared.state()
    }

    pub fn fake(&self, side: Side) -> &FakeMonitor {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    /// Overrides the answer to a command.
    pub fn on(
        &self,
        side: Side,
        command: &str,
        answer: impl FnMut(&ReceivedCommand) -> Vec<AnswerStep> + Send + 'static,
    ) {
        self.fake(side).on(command, answer);
    }

    /// Leaves a command without an answer, and does not carry it out.
    pub fn silent(&self, side: Side, command: &str) {
        self.on(side, command, |_| Vec::new());
    }

    pub fn refused(&self, side: Side, command: &str) {
        self.on(side, command, |_| vec![AnswerStep::error("no")]);
    }

    /// Replaces the process of a side by one that has a file open.
    pub fn open(&self, side: Side, file: File) {
        self.replace_process(side, Command::new("sleep").arg("3600").stdin(file));
    }

    pub fn replace_process(&self, side: Side, command: &mut Command) {
        let mut state = self.state();
        let process = &mut state.qemu(side).process;
        let opened = command.spawn().unwrap();
        if let Some(mut before) = process.replace(opened) {
            before.kill().unwrap();
            before.wait().unwrap();
        }
    }

    /// Runs a hook once, at the arrival of a command.
    pub fn when(&self, side: Side, command: &'static str, hook: impl FnOnce() + Send + 'static) {
        self.state().hooks.push((side, command, Box::new(hook)));
    }

    /// A migration of this pair. Only one can be made.
    pub fn builder(&mut self) -> Builder {
        let pid = |qemu: &ModelQemu| qemu.process.as_ref().map(|child| i32::try_from(child.id()).unwrap());
        let source = pid(&self.state().source);
        let destination = pid(&self.state().destination);
        self.builder_with([source, destination])
    }

    /// A migration of this pair whose QEMUs are these processes.
    pub fn builder_with(&mut self, [source_pid, destination_pid]: [Option<i32>; 2]) -> Builder {
        let [at_source, at_destination] = self.endpoints_with([source_pid, destination_pid]);
        self.described(at_source, at_destination)
    }

    /// Where the two QEMUs can be reached, once.
    pub fn endpoints(&mut self) -> [Endpoint; 2] {
        self.endpoints_with([None; 2])
    }

    /// The engine's ends of the two connections, once.
    pub fn take_streams(&mut self) -> [DuplexStream; 2] {
        self.streams.take().unwrap()
    }

    fn endpoints_with(&mut self, [source_pid, destination_pid]: [Option<i32>; 2]) -> [Endpoint; 2] {
        let [at_source, at_destination] = self.take_streams();
        let process = |pid: i32| ProcessHandle::from_pid(pid.unsigned_abs()).unwrap();
        let end = |name: &str, stream, pid: Option<i32>| match pid {
            Some(pid) => once(name, stream).with_process(process(pid)),
            None => once(name, stream),
        };
        [end("a", at_source, source_pid), end("b", at_destination, destination_pid)]
    }

    fn described(&self, source: Endpoint, destination: Endpoint) -> Builder {
        let address = |name: &str| format!("unix:{}", self.directory.path().join(name).display()).parse().unwrap();
        let builder = Migration::builder(source, destination)
            .addresses(address("nbd"), address("ram"))
            .journal(JournalPlace::Nowhere);
        // The model's NBD exports cannot be read.
        builder.runtime_dir(self.directory.path()).verify_backing(ProofLevel::Off)
    }

    /// A migration of this pair whose monitors answer another connection after the first has closed.
    pub fn builder_reached_again(&mut self) -> Builder {
        let [at_source, at_destination] = self.take_streams();
        let source = again("a", Side::Source, at_source, &self.shared);
        let destination = again("b", Side::Destination, at_destination, &self.shared);
        self.described(source, destination)
    }

    pub async fn migrate(&mut self) -> MigrationRun {
        let migration = self.builder().start_here().unwrap();
        self.state().control = Some(migration.control());
        self.follow(migration).await
    }

    /// Takes a started migration to its end.
    pub async fn follow(&self, mut migration: Running<Outcome>) -> MigrationRun {
        let (mut stream, mut events) = (migration.events(), Vec::new()); // a late reader would miss some
        // The timeout passes in virtual time, so a migration that never ends fails at once.
        let ended = tokio::time::timeout(Duration::from_secs(7200), async {
            while let Some(event) = stream.next().await {
                events.push(event);
            }
            self.told(migration.wait().await, events)
        });
        ended.await.unwrap_or_else(|_| panic!("it never ends: {:#?}", self.log))
    }

    pub fn told(&self, outcome: Outcome, events: Vec<Event>) -> MigrationRun {
        MigrationRun { outcome, events, log: self.log.lock().unwrap().clone() }
    }
}

impl SharedPair {
    pub fn state(&self) -> MutexGuard<'_, PairState> {
        self.0.lock().unwrap()
    }
}

/// An endpoint that can be reached a single time.
pub fn once(name: &str, stream: DuplexStream) -> Endpoint {
    let stream = Mutex::new(Some(stream));
    Endpoint::connector(name, move || {
        let stream = stream.lock().unwrap().take();
        async { stream.ok_or_else(|| io::Error::other("it answers one connection alone")) }
    })
}

/// An endpoint that can be reached again and again: a new connection finds the QEMU as the last one left it.
fn again(name: &str, side: Side, first: DuplexStream, shared: &SharedPair) -> Endpoint {
    let (first, monitors, shared) = (Mutex::new(Some(first)), Mutex::new(Vec::new()), shared.clone());
    Endpoint::connector(name, move || {
        let stream = first.lock().unwrap().take().unwrap_or_else(|| {
            let (monitor, stream) = serve(&shared, side);
            shared.state().qemu(side).emit = Some(monitor.emitter());
            monitors.lock().unwrap().push(monitor);
            stream
        });
        async { Ok::<_, io::Error>(stream) }
    })
}

fn process() -> Child {
    Command::new("sleep").arg("3600").stdin(Stdio::null()).spawn().unwrap()
}

fn serve(shared: &SharedPair, side: Side) -> (FakeMonitor, DuplexStream) {
    let log = shared.state().log.clone();
    let script = ANSWERED.iter().fold(MonitorScript::new().log(side.as_str(), &log), |script, command| {
        let shared = shared.clone();
        script.on(command, move |seen| shared.answer(side, seen))
    });
    script.duplex()
}
