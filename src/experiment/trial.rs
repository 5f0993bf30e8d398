//! One trial: a guest that works, its migration, and what was seen of both.
//!
//! Owns the QEMUs, images and sockets of the sweep. A guest that has arrived goes on to the next trial, with a new
//! destination, as long as machine, disks and workload stay the same.

use super::{
    brief_command::{hook, run_briefly},
    command::{QemuFiles, moving_words},
    debug_lines::GuestReady,
    engine_run::{EngineCall, EngineRun},
    host,
    joined_hosts::JoinedHosts,
    limits,
    link::LinkEnd,
    listening::{NetworkProbe, SweepClock},
    measures::{Figures, TrialObservation, all_counts, figures, gap},
    migrator::{MigrationEnds, MigratorEnd},
    sealed_disks::SealedDisks,
    spec::{SweepDisks, SweepLink, SweepMachine, SweepSpec, SweepWorkload},
    spec_error::SpecError,
    started_qemu::{StartedQemu, TrialError, of_file},
};
use crate::{progress::RunsOn, run_id::RunId, trust};
use serde_json::{Value, json};
use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

/// The guest that ships with qferry.
const GUEST: &[u8] = include_bytes!("guest/sweep-guest.elf");
/// The time in which the guest must have read all its data.
const VERIFY: Duration = Duration::from_secs(120);
/// A host whose CPUs are taken away for more than this share, per cent, tells too little of a guest.
const STEAL: f64 = 5.0;
/// And so does one that hears the beats, one each millisecond, this many milliseconds late.
const LATE: f64 = 10.0;

/// What came of a trial.
#[derive(Debug, Default)]
pub(crate) struct TrialResult {
    /// The outcome's word, or `not-run`.
    pub(crate) outcome: String,
    /// Why it did not move, in one sentence.
    pub(crate) reason: Option<String>,
    /// Whether it was ended by the limit: its times are at least what they are.
    pub(crate) is_censored: bool,
    /// Which migration of this guest it was, counted from 1.
    pub(crate) leg: u32,
    /// When the guest stopped, in milliseconds since the begin.
    pub(crate) stop_ms: Option<f64>,
    pub(crate) figures: Figures,
    /// Why it does not count.
    pub(crate) invalid: Vec<String>,
    /// What else is to be known of its worth.
    pub(crate) notes: Vec<String>,
    /// Samples over time, in milliseconds since the begin.
    pub(crate) samples: Vec<Value>,
}

/// What a guest must have in common with a trial to go on to it.
type GuestKind = (SweepMachine, SweepDisks, SweepWorkload);

#[derive(Debug)]
struct LiveGuest {
    qemu: StartedQemu,
    kind: GuestKind,
    ready: GuestReady,
    sealed: SealedDisks,
    legs: u32,
    /// The end of the link at which it is.
    end: LinkEnd,
}

/// Where trials run.
#[derive(Debug)]
pub(crate) struct TrialBed {
    engine: PathBuf,
    clock: SweepClock,
    /// The folder of images, and that of sockets, whose paths must be short.
    images: PathBuf,
    sockets: PathBuf,
    guest_file: PathBuf,
    probe: NetworkProbe,
    guest: Option<LiveGuest>,
    /// Where the QEMUs are, if any trial is to have a link.
    hosts: Option<JoinedHosts>,
    /// The number of the next QEMU.
    next: u32,
}

impl TrialBed {
    /// Makes the folders.
    ///
    /// # Errors
    /// One cannot be made.
    pub(crate) fn make(engine: PathBuf, images: &Path) -> Result<Self, TrialError> {
        let clock = SweepClock::start();
        let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let sockets = base.join(format!("qferry-sweep-{}", RunId::new()));
        DirBuilder::new().mode(0o700).create(&sockets).map_err(of_file(&sockets))?;
        fs::create_dir_all(images).map_err(of_file(images))?;
        // An image names the one below it by a path that must hold from anywhere.
        let images = images.canonicalize().map_err(of_file(images))?;
        let guest_file = sockets.join("guest");
        fs::write(&guest_file, GUEST).map_err(of_file(&guest_file))?;
        let switch = sockets.join("switch");
        let probe = NetworkProbe::start(&switch, clock).map_err(of_file(&switch))?;
        Ok(Self { engine, clock, images, sockets, guest_file, probe, guest: None, hosts: None, next: 0 })
    }

    /// Makes the two ends of the links that trials will have, if any, and tries each of these links.
    ///
    /// # Errors
    /// What is missing here, with the remedy.
    pub(crate) async fn join(&mut self, links: &[&SweepLink]) -> Result<(), TrialError> {
        if links.iter().any(|link| link.is_asked_for()) {
            let mut hosts = JoinedHosts::start().await?;
            if hosts.are_of_a_user() {
                // The engine cannot see there who owns the folders on the way to these.
                trust::folder(&self.sockets).map_err(|error| TrialError::Other(error.to_string()))?;
            }
            for link in links {
                hosts.shape(link).await?;
            }
            self.hosts = Some(hosts);
        }
        Ok(())
    }

    /// The words before a program that is to run at an end of the link.
    fn enter(&self, end: LinkEnd) -> Vec<String> {
        self.hosts.as_ref().map_or(Vec::new(), |hosts| hosts.enter(end))
    }

    /// Runs a trial.
    ///
    /// # Errors
    /// It could not be run; what it had started has ended.
    pub(crate) async fn run(&mut self, setup: &SweepSpec) -> Result<TrialResult, TrialError> {
        let accelerator = accelerator(&setup.machine.accelerator);
        let kind = (setup.machine.clone(), setup.disks.clone(), setup.workload.clone());
        let goes_on = |guest: &LiveGuest| {
            let stays = setup.machine.destination_qemu.as_ref().is_none_or(|other| *other == setup.machine.qemu);
            !setup.fresh_guest && stays && guest.kind == kind
        };
        let mut guest = match self.guest.take() {
            Some(guest) if goes_on(&guest) => guest,
            other => {
                if let Some(other) = other {
                    self.end(other.qemu).await;
                }
                self.boot(setup, kind, accelerator).await?
            }
        };
        guest.legs += 1;
        if let Some(hosts) = &mut self.hosts {
            hosts.shape(&setup.link).await?;
        }
        let files = self.files(setup, &guest.sealed).await?;
        let place = self.enter(guest.end.other());
        let destination_qemu = setup.machine.destination_qemu.as_ref().unwrap_or(&setup.machine.qemu);
        let destination =
            StartedQemu::start(setup, files, destination_qemu, accelerator, true, &place, self.clock).await?;
        self.probe.watch(&guest.qemu.files.net, Some(&destination.files.net));
        let (result, guest, other) = self.migrate(setup, guest, destination).await?;
        if let Some(other) = other {
            self.end(other).await;
        }
        self.guest = guest;
        Ok(result)
    }

    async fn boot(&mut self, setup: &SweepSpec, kind: GuestKind, accelerator: &str) -> Result<LiveGuest, TrialError> {
        let files = self.files(setup, &SealedDisks::default()).await?;
        let (end, qemu) = (LinkEnd::First, &setup.machine.qemu);
        let mut qemu = StartedQemu::start(setup, files, qemu, accelerator, false, &self.enter(end), self.clock).await?;
        let ready = qemu.ready(setup, accelerator).await?;
        // The warm-up is behind it: the first writes to a new overlay take longer.
        let sealed = if setup.disks.sealed { SealedDisks::seal(&mut qemu).await? } else { SealedDisks::default() };
        sleep(setup.warm_up).await;
        Ok(LiveGuest { qemu, kind, ready, sealed, legs: 0, end })
    }

    /// Makes the images of a QEMU, each over its sealed layer if there is one, and names the sockets.
    async fn files(&mut self, setup: &SweepSpec, sealed: &SealedDisks) -> Result<QemuFiles, TrialError> {
        let number = self.next;
        self.next += 1;
        let base = self.images.join(format!("base-{}", setup.disks.size.0));
        if !base.exists() {
            let file = File::create(&base).map_err(of_file(&base))?;
            file.set_len(setup.disks.size.0).map_err(of_file(&base))?;
        }
        let socket = |name: &str| self.sockets.join(format!("{number}.{name}"));
        let mut files = QemuFiles {
            qmp: socket("qmp"),
            events: socket("events"),
            debug: socket("debug"),
            net: socket("net"),
            net_peer: self.sockets.join("switch"),
            disks: Vec::new(),
            guest: self.guest_file.clone(),
        };
        for disk in 0..setup.disks.count as usize {
            let image = self.images.join(format!("{number}-disk{disk}.qcow2"));
            let (format, below) = sealed.layer(disk).map_or(("raw", &*base), |layer| ("qcow2", layer));
            let mut create = Command::new(&setup.machine.qemu_img);
            create.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(below).arg(&image);
            run_briefly(create, &setup.machine.qemu_img).await?;
            files.disks.push(image);
        }
        Ok(files)
    }

    /// Ends a QEMU and removes its files.
    async fn end(&self, qemu: StartedQemu) {
        let files = qemu.files.clone();
        qemu.end().await;
        remove(&files);
    }

    async fn migrate(
        &self,
        setup: &SweepSpec,
        guest: LiveGuest,
        mut destination: StartedQemu,
    ) -> Result<(TrialResult, Option<LiveGuest>, Option<StartedQemu>), TrialError> {
        let LiveGuest { mut qemu, kind, ready, sealed, legs, end } = guest;
        let state = self.sockets.join("state");
        fs::create_dir_all(&state).map_err(of_file(&state))?;
        let unusable = |error: SpecError| TrialError::Other(error.to_string());
        let policy = match limits::policy(setup).map_err(unusable)? {
            Some(table) => {
                let file = state.join("policy.toml");
                fs::write(&file, table.to_string()).map_err(of_file(&file))?;
                Some(file)
            }
            None => None,
        };
        let ends = MigrationEnds {
            source_qmp: qemu.files.qmp.clone(),
            destination_qmp: destination.files.qmp.clone(),
            destination: setup.link.is_asked_for().then_some(end.other()),
        };
        let words = moving_words(setup, &self.engine, policy.as_ref(), &ends).map_err(unusable)?;
        let mut seen = TrialObservation { load: host::load(), ..TrialObservation::default() };
        let places = [("QFERRY_SOURCE", &qemu.files.qmp), ("QFERRY_DESTINATION", &destination.files.qmp)];
        hook(setup.prepare.as_ref(), "prepare", &places).await?;
        seen.watched_from = self.clock.now();
        sleep(setup.before).await;
        let starts_destination = setup.migrator.as_ref().is_some_and(|migrator| migrator.starts_destination);
        // A QEMU that is not there yet has used nothing.
        let cpu = [qemu.cpu(), destination.cpu().or(starts_destination.then_some(0.0))];
        let ticks = host::steal_ticks();
        let call = EngineCall {
            entrance: self.enter(end),
            is_without_names: self.hosts.as_ref().is_some_and(JoinedHosts::are_of_a_user),
            words,
            is_engine: setup.migrator.is_none(),
            state,
            limit: setup.limit,
        };
        let hosts = self.hosts.as_ref().filter(|_| setup.link.is_asked_for());
        let carried = || hosts.and_then(JoinedHosts::carried);
        let carried_before = carried();
        let run = match call.run(self.clock).await {
            Ok(run) => run,
            Err(error) => {
                // The cleanup is due whatever happened, and the error is why nothing ran.
                hook(setup.cleanup.as_ref(), "cleanup", &places).await.ok();
                return Err(error);
            }
        };
        seen.carried = carried().zip(carried_before).map(|(after, before)| after.saturating_sub(before));
        (seen.begin, seen.end) = (run.begin, run.end);
        let start = if starts_destination { Duration::ZERO } else { destination.took };
        seen.start = Some(start.as_secs_f64() * 1e3);
        let used = |before: Option<f64>, after: Option<f64>| Some(after? - before?);
        seen.cpu = [used(cpu[0], qemu.cpu()), used(cpu[1], destination.cpu()), run.cpu];
        seen.steal = stolen(ticks, host::steal_ticks());
        sleep(setup.after).await;
        seen.watched_until = self.clock.now();
        let is_by_migrator = setup.migrator.is_some();
        let (mut result, runs_on) = if is_by_migrator {
            ended_by_migrator(&run, legs, [qemu.runs().await, destination.runs().await])
        } else {
            (ended(&run, legs), run.outcome.as_ref().map(|outcome| outcome.runs_on))
        };
        // the migration was measured, whatever comes after it
        let cleaned = hook(setup.cleanup.as_ref(), "cleanup", &places).await;
        result.invalid.extend(cleaned.err().map(|error| error.to_string()));
        let is_there = runs_on == Some(RunsOn::Destination);
        if is_there && setup.verify {
            result.invalid.extend(verify(&mut destination, ready).await.err());
        }
        seen.source = qemu.heard();
        seen.destination = destination.heard();
        seen.changes = [qemu.changes(), destination.changes()];
        let probed = self.probe.probed();
        (seen.echoes, seen.announced) = (probed.answers, probed.announced);
        seen.outcome = run.outcome;
        result.figures = figures(setup, &seen);
        result.stop_ms = gap(&seen).map(|gap| gap.start.saturating_sub(seen.begin) as f64 / 1e6);
        result.samples = samples(&seen, run.lines);
        result.judge(&seen);
        let keep = |qemu, end| Some(LiveGuest { qemu, kind, ready, sealed, legs, end });
        let source_files = qemu.files.clone();
        Ok(match runs_on {
            Some(RunsOn::Destination) if result.invalid.is_empty() => {
                match is_by_migrator {
                    // Not every program ends the source's QEMU, and what belongs to it stays in any case.
                    true => qemu.end().await,
                    false => qemu.ended().await,
                }
                remove(&source_files);
                (result, keep(destination, end.other()), None)
            }
            // What another program has left in the source, nobody knows.
            Some(RunsOn::Source) if result.invalid.is_empty() && !qemu.has_ended() && !is_by_migrator => {
                (result, keep(qemu, end), Some(destination))
            }
            // A guest that is not known to be whole goes nowhere else.
            _ => {
                self.end(qemu).await;
                (result, None, Some(destination))
            }
        })
    }
}

impl Drop for TrialBed {
    fn drop(&mut self) {
        self.guest = None;
        fs::remove_dir_all(&self.sockets).ok();
        fs::remove_dir_all(&self.images).ok();
    }
}

impl TrialResult {
    /// Names what makes the trial worth less.
    fn judge(&mut self, seen: &TrialObservation) {
        for (side, heard) in [("source", &seen.source), ("destination", &seen.destination)] {
            self.invalid.extend(heard.complaints.iter().map(|text| format!("the guest on the {side} says: {text}")));
        }
        if let Some(steal) = seen.steal.filter(|steal| *steal > STEAL) {
            self.notes.push(format!("{steal:.0} % of the host's CPU time was taken away by its own hypervisor"));
        }
        if let Some(late) = self.figures.get("outside.error").filter(|late| **late > LATE) {
            self.notes.push(format!("beats were heard up to {late:.0} ms late: the host is busy, or the guest is"));
        }
    }
}

fn ended(run: &EngineRun, leg: u32) -> TrialResult {
    let outcome = run.outcome.as_ref();
    let reason = outcome.and_then(|outcome| outcome.reason.as_ref()).map(|reason| reason.message.clone());
    TrialResult {
        outcome: outcome.map_or_else(|| "no-outcome".into(), |outcome| outcome.outcome.to_string()),
        reason: if run.is_over_limit {
            Some("the limit of the sweep was reached".into())
        } else if outcome.is_none() {
            Some(run.last_words.clone())
        } else {
            reason
        },
        is_censored: run.is_over_limit,
        leg,
        ..TrialResult::default()
    }
}

/// The same of another program, with where the guest runs.
fn ended_by_migrator(run: &EngineRun, leg: u32, runs: [Option<bool>; 2]) -> (TrialResult, Option<RunsOn>) {
    let end = MigratorEnd {
        succeeded: run.succeeded,
        is_over_limit: run.is_over_limit,
        last_words: if run.last_words.is_empty() {
            "the command has failed, and said nothing"
        } else {
            &run.last_words
        },
        runs,
    };
    let (outcome, reason) = end.outcome();
    let is_censored = run.is_over_limit;
    let result = TrialResult { outcome: outcome.into(), reason, is_censored, leg, ..TrialResult::default() };
    (result, Some(end.runs_on()))
}

/// The accelerator to use: KVM where it is asked for or can be opened.
fn accelerator(wanted: &str) -> &str {
    let opens = || File::options().read(true).write(true).open("/dev/kvm").is_ok();
    match wanted {
        "auto" if opens() => "kvm",
        "auto" => "tcg",
        given => given,
    }
}

fn remove(files: &QemuFiles) {
    let of_qmp = ["stderr", "ram", "nbd"].map(|extension| files.qmp.with_extension(extension));
    let sockets = [&files.qmp, &files.events, &files.debug, &files.net];
    for file in files.disks.iter().chain(sockets).chain(&of_qmp) {
        // one that was never made needs no removal
        fs::remove_file(file).ok();
    }
}

/// Has the guest read all its data, and waits until it has.
async fn verify(guest: &mut StartedQemu, ready: GuestReady) -> Result<(), String> {
    let checked = |guest: &StartedQemu| {
        guest.hear(|heard| heard.counts.last().map(|counts| (counts.pages_checked, counts.blocks_checked)))
    };
    let deadline = Instant::now() + VERIFY;
    // The counts go on from those of other sides: without a line from this one, nothing would tell what is new.
    while checked(guest).is_none() && Instant::now() < deadline && !guest.has_ended() {
        sleep(Duration::from_millis(10)).await;
    }
    let begin = checked(guest).unwrap_or_default();
    guest.press("v").await.map_err(|error| error.to_string())?;
    loop {
        let now = checked(guest).unwrap_or_default();
        let is_done = now.0 >= begin.0 + ready.pages && now.1 >= begin.1 + ready.blocks;
        if is_done || guest.hear(|heard| !heard.complaints.is_empty()) {
            break;
        }
        if Instant::now() > deadline || guest.has_ended() {
            let (pages, blocks) = (now.0 - begin.0, now.1 - begin.1);
            return Err(format!(
                "not all data was read after the migration: {pages} of {} pages, {blocks} of {} blocks in {} s",
                ready.pages,
                ready.blocks,
                VERIFY.as_secs(),
            ));
        }
        sleep(Duration::from_millis(10)).await;
    }
    guest.press("q").await.map_err(|error| error.to_string())
}

fn stolen(before: Option<(u64, u64)>, after: Option<(u64, u64)>) -> Option<f64> {
    let (before, after) = (before?, after?);
    let all = after.1.checked_sub(before.1).filter(|all| *all > 0)?;
    Some(after.0.saturating_sub(before.0) as f64 * 100.0 / all as f64)
}

/// The samples of a trial: the engine's lines, and the guest's throughput.
fn samples(seen: &TrialObservation, lines: Vec<(u64, Value)>) -> Vec<Value> {
    let at = |heard: u64| (heard as f64 - seen.begin as f64) / 1e6;
    let engine = lines.into_iter().filter(|(_, line)| line["type"] != "outcome" && line["type"] != "plan").map(
        |(heard, mut line)| {
            if let Some(line) = line.as_object_mut() {
                line.remove("v");
                line.insert("t_ms".into(), json!(at(heard)));
            }
            line
        },
    );
    let counts = all_counts(seen);
    let guest =
        counts.windows(2).filter(|pair| pair[1].heard >= seen.watched_from && pair[1].heard <= seen.watched_until);
    let guest = guest.map(|pair| {
        let seconds = (pair[1].heard - pair[0].heard) as f64 / 1e9;
        let rate = |new: u64, old: u64| if seconds > 0.0 { new.saturating_sub(old) as f64 / seconds } else { 0.0 };
        json!({
            "type": "guest",
            "t_ms": at(pair[1].heard),
            "pages": rate(pair[1].pages_written, pair[0].pages_written),
            "writes": rate(pair[1].disk_writes, pair[0].disk_writes),
        })
    });
    engine.chain(guest).collect()
}

/// The path of the program that runs, which is the engine of every trial.
///
/// # Errors
/// The system does not tell.
pub(crate) fn own_program() -> Result<PathBuf, TrialError> {
    std::env::current_exe().map_err(of_file(Path::new("/proc/self/exe")))
}
