//! One move by the command, as the comparisons of whole moves need it: how long, how long a pause, or that it was given
//! up.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use qferry_bed::{Error, Pair, Result, Side, Workload};
use serde_json::Value;

use crate::MIB;

/// The limit for anything that a guest does on a busy machine.
const WAIT: Duration = Duration::from_secs(120);
/// The exit codes of the command.
const MOVED: i32 = 0;
const ROLLED_BACK: i32 = 4;
/// The guest's memory in MiB, and the part of it that is rewritten.
pub(crate) const MEMORY: u64 = 320;
pub(crate) const WORKING_SET: u64 = 128 * MIB;

/// The share of the asked rate that is enough, and the number and length of the looks.
const REACHED: f64 = 0.93;
const TRIES: u32 = 60;
const TRY: Duration = Duration::from_secs(2);
/// Pages that the guest may have done and not said yet.
const STEP: u64 = 1024;

/// The times of a migration, in milliseconds; infinite if it was given up.
#[derive(Clone, Debug)]
pub(crate) struct Moved {
    pub(crate) total: f64,
    pub(crate) blackout: f64,
    pub(crate) said: Vec<Said>,
}

/// A line of the command, and the time of its arrival.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) at: Instant,
    /// Bytes that the source's host had sent by then, if there is a link.
    pub(crate) sent: u64,
    pub(crate) line: Value,
}

impl Moved {
    pub(crate) fn converged(&self) -> bool {
        self.total.is_finite()
    }

    /// The first line that the begin of a phase was said by.
    pub(crate) fn begin(&self, phase: &str) -> Result<&Said> {
        let is_it = |said: &&Said| said.line["phase"] == phase && said.line["state"] == "begin";
        self.said.iter().find(is_it).ok_or_else(|| Error::new(format!("{phase} did not begin: {:?}", self.said)))
    }
}

/// A guest that only rewrites its memory at this rate, in bytes a second, as fast as its processor allows.
pub(crate) fn dirtying(rate: u64) -> Workload {
    let workload = Workload { ram: WORKING_SET, dirty: rate, verify: 0, write: 0, read: 0, ..Workload::default() };
    Workload { compute: rate > 0, ..workload }
}

/// The command on this pair, on the source's host and over the link if there is one.
pub(crate) fn command(qferry: &Path, pair: &Pair, options: &[String]) -> Command {
    let mut command = Command::new(qferry);
    command.args(["migrate", "--json", "--source"]).arg(pair.source.qmp_path());
    command.arg("--destination").arg(pair.destination.qmp_path()).args(options);
    command.args(pair.wire().map(qferry_bed::Wire::options).unwrap_or_default());
    command.env("XDG_RUNTIME_DIR", pair.run_dir()).env("XDG_STATE_HOME", pair.run_dir()).stdin(Stdio::null());
    command
}

/// Moves the guest, and checks that the guest is well where it ended up.
pub(crate) fn migrate(qferry: &Path, pair: &Pair, options: &[String]) -> Result<Moved> {
    let (code, said) = run(pair, &mut command(qferry, pair, options))?;
    let outcome = said.last().map(|said| &said.line).filter(|line| line["type"] == "outcome");
    let outcome = outcome.ok_or_else(|| Error::new(format!("no outcome: {said:?}")))?;
    let figure = |key: &str| outcome[key].as_f64().ok_or_else(|| Error::new(format!("no {key} in {outcome}")));
    let (side, total, blackout) = match code {
        Some(MOVED) => (Side::Destination, figure("total_ms")?, figure("blackout_ms")?),
        Some(ROLLED_BACK) => (Side::Source, f64::INFINITY, f64::INFINITY),
        _ => return Err(Error::new(format!("ended with {code:?}: {outcome}"))),
    };
    if !pair.spec().quick {
        pair.wait_for_beats(side, 20, WAIT)?;
        pair.wait_until_verified(WAIT)?;
    }
    match pair.errors().first() {
        Some(error) => Err(Error::new(format!("the guest found: {error}"))),
        None => Ok(Moved { total, blackout, said }),
    }
}

/// Runs a command that prints JSON, and notes the time of each line.
pub(crate) fn run(pair: &Pair, command: &mut Command) -> Result<(Option<i32>, Vec<Said>)> {
    let failed = |error: std::io::Error| Error::new(format!("running the command: {error}"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match pair.wire() {
        Some(wire) => wire.on(Side::Source, || command.spawn())?,
        None => command.spawn(),
    }
    .map_err(failed)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let complaints = thread::spawn(move || {
        let mut text = String::new();
        stderr.map(|mut stderr| stderr.read_to_string(&mut text)).transpose().map(|_| text)
    });
    let mut said = Vec::new();
    for line in stdout.map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let (line, at) = (line.map_err(failed)?, Instant::now());
        let sent = pair.wire().map(|wire| wire.sent(Side::Source)).transpose()?.unwrap_or_default();
        let line = serde_json::from_str(&line).map_err(|error| Error::new(format!("{error}: {line}")))?;
        said.push(Said { at, sent, line });
    }
    let status = child.wait().map_err(failed)?;
    let complaints = complaints.join().ok().and_then(std::io::Result::ok).unwrap_or_default();
    if said.is_empty() {
        return Err(Error::new(format!("{status}: {}", complaints.trim())));
    }
    Ok((status.code(), said))
}

/// Waits until the guest rewrites its memory as fast as it was asked to, and says how fast, in bytes a second by its
/// own count. On a machine that others use, a guest may be too slow for a while, and a move of it would say nothing.
pub(crate) fn reach(pair: &Pair) -> Result<f64> {
    let asked = pair.spec().workload.dirty as f64;
    let mut reached = 0.0;
    for _ in 0..TRIES {
        let (before, began) = (pair.verified().pages, Instant::now());
        thread::sleep(TRY);
        let took = began.elapsed().as_secs_f64();
        reached = (pair.verified().pages - before) as f64 * 4096.0 / took;
        if reached + (STEP * 4096) as f64 / took >= asked * REACHED {
            return Ok(reached);
        }
    }
    let [asked, reached] = [asked, reached].map(|rate| rate / MIB as f64);
    Err(Error::new(format!("the guest rewrites {reached:.0} of {asked:.0} MiB/s: the machine is too busy")))
}

/// Options as words.
pub(crate) fn options(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
