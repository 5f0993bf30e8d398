//! A migration as a straight line of QMP commands: no engine, no looking ahead, no way back. Every supported QEMU
//! accepts this order, and its pause is the yardstick for the engine's.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::PATIENCE;
use crate::disk::DiskSpec;
use crate::error::{Error, Result};
use crate::pair::Pair;
use crate::qmp::{Event, Qmp};
use crate::record::Side;
use crate::wire::Wire;

/// A bandwidth as good as unlimited that every version accepts.
const UNLIMITED: u64 = 1 << 40;

/// The times of a migration. The spans of the blackout are in order, measured by the events' and the host's clock.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    /// The time until every mirror was ready.
    pub storage: Duration,
    /// The time from `migrate` to `pre-switchover`.
    pub memory: Duration,
    /// The time from the first command to the destination's RESUME.
    pub total: Duration,
    /// The time from STOP on the source to RESUME on the destination, by QEMU's time stamps.
    pub blackout: Duration,
    /// The spans of the blackout, by the host's clock at the end of each step.
    pub ledger: Vec<(&'static str, Duration)>,
}

/// QEMU's own default of `downtime-limit`.
const DOWNTIME_LIMIT: Duration = Duration::from_millis(300);

/// Moves the pair's running guest and quits the source.
///
/// # Errors
/// Any command or job failed, or a phase took two minutes.
pub fn migrate(pair: &Pair) -> Result<Timings> {
    migrate_within(pair, DOWNTIME_LIMIT)
}

/// Moves the guest with another downtime limit. At 300 ms and full bandwidth QEMU stops a small guest while much of its
/// memory is still to be sent, so blackouts scatter widely; a small limit makes them comparable.
///
/// # Errors
/// Any command or job failed, or a phase took two minutes.
pub fn migrate_within(pair: &Pair, downtime_limit: Duration) -> Result<Timings> {
    line(pair, downtime_limit, false)
}

/// Moves the guest with RAM sent beside the mirrors. The guest stands still until both are complete.
///
/// # Errors
/// Any command or job failed, or a phase took two minutes.
pub fn migrate_overlapped(pair: &Pair, downtime_limit: Duration) -> Result<Timings> {
    line(pair, downtime_limit, true)
}

fn line(pair: &Pair, downtime_limit: Duration, overlapped: bool) -> Result<Timings> {
    let written = |disk: &usize| pair.spec().disks.get(*disk).is_some_and(DiskSpec::is_written);
    let disks = (0..pair.spec().disks.len()).filter(written);
    let nodes = disks.map(|disk| Ok([pair.source.node(disk)?, pair.destination.node(disk)?]));
    let unix = |name: &str| format!("unix:{}", pair.run_dir().join(name).display());
    let ends = Ends {
        source: pair.source.qmp_path(),
        destination: pair.destination.qmp_path(),
        ram: pair.wire().map_or_else(|| unix("ram"), Wire::ram),
        nbd: pair.wire().map_or_else(|| unix("nbd"), |wire| wire.nbd(Side::Destination)),
        disks: nodes.collect::<Result<_>>()?,
    };
    let timings = line_between(&ends, downtime_limit, overlapped)?;
    pair.source.wait_for_end(PATIENCE)?;
    Ok(timings)
}

/// Two QEMUs that are not the bed's own, and the way between them.
#[derive(Clone, Debug)]
pub struct Ends {
    /// The monitor of the source.
    pub source: PathBuf,
    /// The monitor of the destination, which waits with `-incoming defer`.
    pub destination: PathBuf,
    /// Where the destination is to listen for RAM: `tcp:HOST:PORT` or `unix:PATH`.
    pub ram: String,
    /// The same for disks.
    pub nbd: String,
    /// The nodes of each disk on the source and on the destination.
    pub disks: Vec<[String; 2]>,
}

impl Ends {
    /// Moves the running guest as [`migrate`] does, and quits the source.
    ///
    /// # Errors
    /// Any command or job failed, or a phase took two minutes.
    pub fn migrate(&self) -> Result<Timings> {
        line_between(self, DOWNTIME_LIMIT, false)
    }

    /// The destination's address for NBD, for QEMU.
    fn nbd_address(&self) -> Value {
        match self.nbd.strip_prefix("tcp:").and_then(|at| at.rsplit_once(':')) {
            Some((host, port)) => json!({"type": "inet", "data": {"host": host, "port": port}}),
            None => json!({"type": "unix", "data": {"path": self.nbd.trim_start_matches("unix:")}}),
        }
    }

    /// The URI of an export at that address, for the source.
    fn nbd_target(&self, name: &str) -> String {
        match self.nbd.strip_prefix("tcp:") {
            Some(at) => format!("nbd://{at}/{name}"),
            None => format!("nbd+unix:///{name}?socket={}", self.nbd.trim_start_matches("unix:")),
        }
    }
}

fn line_between(ends: &Ends, downtime_limit: Duration, overlapped: bool) -> Result<Timings> {
    let began = Instant::now();
    let mut source = Qmp::connect(&ends.source)?;
    let mut destination = Qmp::connect(&ends.destination)?;
    capabilities(&mut source, &["events", "return-path", "pause-before-switchover"])?;
    capabilities(&mut destination, &["events", "return-path", "late-block-activate"])?;
    let parameters = json!({"downtime-limit": downtime_limit.as_millis() as u64, "max-bandwidth": UNLIMITED});
    source.execute("migrate-set-parameters", &parameters)?;
    let mut timings = Timings::default();

    let jobs = begin_mirrors(ends, &mut source, &mut destination)?;
    let mut unready: BTreeSet<&str> = jobs.iter().map(String::as_str).collect();
    if !overlapped {
        for_each_job(&mut source, &jobs, "BLOCK_JOB_READY")?;
        block_writes(&mut source, &jobs)?;
        unready.clear();
    }
    timings.storage = began.elapsed();

    let begin_memory = Instant::now();
    listen(&mut destination, &ends.ram)?;
    source.execute("migrate", &json!({"uri": ends.ram}))?;
    let (mut stop, mut paused) = (None, None);
    let last = source.wait("pre-switchover and every mirror", PATIENCE, |event| {
        match event.name.as_str() {
            "STOP" => stop = Some(event.time),
            "BLOCK_JOB_READY" => drop(unready.remove(event.data["device"].as_str().unwrap_or_default())),
            _ if status_is(event, &["pre-switchover"]) => paused = Some(event.time),
            _ => {}
        }
        (paused.is_some() && unready.is_empty()) || is_failure(event) || status_is(event, &["failed", "completed"])
    })?;
    let (Some(stop), Some(paused), true) = (stop, paused, unready.is_empty()) else {
        return Err(Error::new(format!("it did not get to where both are through: {}", last.data)));
    };
    timings.memory = begin_memory.elapsed();
    let mut ledger =
        Ledger { spans: vec![("stop to pre-switchover", paused.saturating_sub(stop))], last: Instant::now() };

    settle(&mut source, &jobs)?;
    ledger.mark("mirrors ended");
    destination.execute("nbd-server-stop", &json!({}))?;
    let exports = destination.execute("query-block-exports", &json!({}))?;
    if exports != json!([]) {
        return Err(Error::new(format!("exports are left: {exports}")));
    }
    ledger.mark("exports gone");
    source.execute("migrate-continue", &json!({"state": "pre-switchover"}))?;
    completed("source", &mut source)?;
    ledger.mark("last memory and devices sent");
    completed("destination", &mut destination)?;
    ledger.mark("and loaded");
    destination.execute("cont", &json!({}))?;
    let resume = destination.wait("RESUME", PATIENCE, |event| event.name == "RESUME")?;
    ledger.mark("cont to resume");
    timings.total = began.elapsed();
    timings.blackout = resume.time.saturating_sub(stop);
    timings.ledger = ledger.spans;

    for job in &jobs {
        source.execute("job-dismiss", &json!({"id": job}))?;
    }
    source.execute("quit", &json!({}))?;
    Ok(timings)
}

struct Ledger {
    spans: Vec<(&'static str, Duration)>,
    last: Instant,
}

impl Ledger {
    fn mark(&mut self, span: &'static str) {
        let now = Instant::now();
        self.spans.push((span, now - self.last));
        self.last = now;
    }
}

fn capabilities(qmp: &mut Qmp, names: &[&str]) -> Result<()> {
    let all: Vec<_> = names.iter().map(|name| json!({"capability": name, "state": true})).collect();
    qmp.execute("migrate-set-capabilities", &json!({"capabilities": all})).map(drop)
}

/// Mirrors every disk at once.
fn begin_mirrors(ends: &Ends, source: &mut Qmp, destination: &mut Qmp) -> Result<Vec<String>> {
    if ends.disks.is_empty() {
        return Ok(Vec::new());
    }
    destination.execute("nbd-server-start", &json!({"addr": ends.nbd_address()}))?;
    for (disk, [_, node]) in ends.disks.iter().enumerate() {
        let name = format!("disk{disk}");
        let export = json!({"type": "nbd", "id": name, "name": name, "node-name": node, "writable": true});
        destination.execute("block-export-add", &export)?;
    }
    let mut jobs = Vec::new();
    for (disk, [node, _]) in ends.disks.iter().enumerate() {
        let job = format!("mirror{disk}");
        let target = ends.nbd_target(&format!("disk{disk}"));
        source.execute(
            "drive-mirror",
            &json!({"job-id": job, "device": node, "target": target, "format": "raw", "mode": "existing",
                "sync": "top", "auto-dismiss": false, "on-target-error": "report"}),
        )?;
        jobs.push(job);
    }
    Ok(jobs)
}

/// Switches the mirrors to `write-blocking`, if QEMU can.
fn block_writes(source: &mut Qmp, jobs: &[String]) -> Result<()> {
    for job in jobs {
        let change = json!({"type": "mirror", "id": job, "copy-mode": "write-blocking"});
        match source.ask("block-job-change", &change)? {
            Ok(_) => in_step(source, job)?,
            Err(refusal) if refusal.class == "CommandNotFound" => {} // before 8.2
            Err(refusal) => return Err(Error::new(format!("block-job-change: {refusal}"))),
        }
    }
    Ok(())
}

/// Waits until a mirror that blocks writes has caught up. There is no event for that.
fn in_step(source: &mut Qmp, job: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let jobs = source.execute("query-block-jobs", &json!({}))?;
        let found = jobs.as_array().into_iter().flatten().find(|one| one["device"] == job);
        if found.is_some_and(|job| job["actively-synced"] == true) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(Error::new(format!("{job} is not in step after {PATIENCE:?}")))
}

fn listen(destination: &mut Qmp, uri: &str) -> Result<()> {
    match destination.ask("migrate-incoming", &json!({"uri": uri, "exit-on-error": false}))? {
        Ok(_) => Ok(()),
        // The argument exists since 9.1.
        Err(refusal) if refusal.description.contains("exit-on-error") => {
            destination.execute("migrate-incoming", &json!({"uri": uri})).map(drop)
        }
        Err(refusal) => Err(Error::new(format!("migrate-incoming: {refusal}"))),
    }
}

/// Ends all mirrors, each of which must complete without error.
fn settle(source: &mut Qmp, jobs: &[String]) -> Result<()> {
    for job in jobs {
        source.execute("block-job-cancel", &json!({"device": job}))?;
    }
    for_each_job(source, jobs, "BLOCK_JOB_COMPLETED")
}

/// Waits for one event of each job; an error in any of them ends the wait.
fn for_each_job(source: &mut Qmp, jobs: &[String], name: &str) -> Result<()> {
    let mut left: BTreeSet<&str> = jobs.iter().map(String::as_str).collect();
    if left.is_empty() {
        return Ok(());
    }
    let last = source.wait(name, PATIENCE, |event| {
        if event.name == name {
            left.remove(event.data["device"].as_str().unwrap_or_default());
        }
        left.is_empty() || is_failure(event)
    })?;
    if is_failure(&last) { Err(Error::new(format!("a mirror failed: {}", last.data))) } else { Ok(()) }
}

/// Whether an event tells of a job's failure.
fn is_failure(event: &Event) -> bool {
    event.name == "BLOCK_JOB_ERROR" || (event.name.starts_with("BLOCK_JOB_") && event.data.get("error").is_some())
}

fn completed(side: &str, qmp: &mut Qmp) -> Result<()> {
    let end = qmp.wait("completed", PATIENCE, |event| status_is(event, &["completed", "failed"]))?;
    if status_is(&end, &["completed"]) {
        Ok(())
    } else {
        Err(Error::new(format!("the migration failed on the {side}")))
    }
}

fn status_is(event: &Event, wanted: &[&str]) -> bool {
    event.name == "MIGRATION" && event.data.get("status").and_then(Value::as_str).is_some_and(|is| wanted.contains(&is))
}
