//! Measures the engine against its requirements: `bench QFERRY [PART]`, with the path of the command; see
//! `scripts/bench`.
//!
//! On a machine that others use too, times mean little by themselves, so engine and yardstick take turns in one run and
//! wherever there is a yardstick only ratios are judged. What was not measured is told as such and counts as missed.

// The scripted QEMUs of the tests, which say all they have to say by panicking.
#[allow(clippy::unwrap_used, reason = "modules of tests")]
#[path = "../../../fake/mod.rs"]
mod fake;
#[allow(clippy::unwrap_used, reason = "modules of tests")]
#[path = "../../../fake/model/mod.rs"]
mod model;

mod bars;
mod blackout;
mod budget;
mod converge;
mod copies;
mod devices;
mod ideal;
mod link;
mod moves;
mod observers;
mod overlap;
mod peer;
mod peers;
mod predict;
mod preflight;
mod scale;
mod storage;
mod sweeps;
mod table;

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use nix::sys::resource::{UsageWho, getrusage};
use qferry_bed::{Error, Result, Spec};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

type Bench = fn(&Path) -> Result<bool>;

/// The parts of the bench, in this order.
const PARTS: [(&str, Bench); 12] = [
    ("blackout", blackout::bench),
    ("budget", budget::bench),
    ("preflight", preflight::bench),
    ("storage", storage::bench),
    ("link", link::bench),
    ("overlap", overlap::bench),
    ("converge", converge::bench),
    ("predict", predict::bench),
    ("observers", observers::bench),
    ("devices", devices::bench),
    ("scale", scale::bench),
    ("peers", peers::bench),
];

/// Parts of other parts, which can be run alone.
const ALONE: [(&str, Bench); 1] = [("ideal", ideal::bench)];

fn main() -> ExitCode {
    let words: Vec<OsString> = env::args_os().skip(1).collect();
    let met = match words.as_slice() {
        [word, program, arguments @ ..] if word == "--measure" => return measure(program.as_ref(), arguments),
        [word, count, folder] if word == "--scripted" || word == "--at-once" => {
            let part = if word == "--scripted" { scale::scripted } else { scale::at_once };
            let count = count.to_str().and_then(|count| count.parse().ok()).unwrap_or(1);
            part(count, folder.as_ref())
                .map(|()| true)
                .map_err(|error| Error::new(format!("{}: {error}", word.to_string_lossy())))
        }
        [word, words @ ..] if word == "peer" => peer::run(words).map(|()| true),
        [qferry] => bench(qferry.as_ref(), None),
        [qferry, part] => bench(qferry.as_ref(), part.to_str()),
        [qferry, part, flag] if part == "peers" && flag == "--write" => peers::write(qferry.as_ref()),
        _ => Err(Error::new("usage: bench QFERRY [PART | peers --write]")),
    };
    match met {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn bench(qferry: &Path, part: Option<&str>) -> Result<bool> {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    println!("{cores} cores, QEMU {}, load average {}", Spec::default().version, load());
    let met = match part {
        None => {
            let mut met = true;
            for (_, bench) in PARTS {
                met &= bench(qferry)?;
                println!("\nload average {}\n", load());
            }
            met
        }
        Some(part) => match PARTS.iter().chain(&ALONE).find(|(name, _)| *name == part) {
            Some((_, bench)) => bench(qferry)?,
            None => {
                let names = PARTS.iter().chain(&ALONE).map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
                return Err(Error::new(format!("no part {part}: there are {names}")));
            }
        },
    };
    println!("load average {}", load());
    Ok(met)
}

/// The load of the machine, by which the figures are to be read.
fn load() -> String {
    let told = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    told.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// The number of runs of each side of a comparison.
fn runs(otherwise: usize) -> usize {
    env::var("QFERRY_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(otherwise).max(1)
}

/// A command that ended well.
struct Ran {
    took: Duration,
    stdout: String,
    stderr: String,
}

fn run(command: &mut Command) -> Result<Ran> {
    let name = Path::new(command.get_program()).display().to_string();
    let began = Instant::now();
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| Error::new(format!("starting {name}: {error}")))?;
    let took = began.elapsed();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    match output.status.success() {
        true => Ok(Ran { took, stdout, stderr }),
        false => Err(Error::new(format!("{name}: {}\n{stdout}{stderr}", output.status))),
    }
}

impl Ran {
    fn lines(&self) -> impl Iterator<Item = Value> {
        self.stdout.lines().filter_map(|line| serde_json::from_str(line).ok())
    }

    fn line(&self, kind: &str) -> Result<Value> {
        let found = self.lines().find(|line| line["type"] == kind);
        found.ok_or_else(|| Error::new(format!("no line on {kind} in {}", self.stdout)))
    }
}

/// A command to which [`measure`] adds a line.
fn measured(program: &Path) -> Result<Command> {
    let ourselves = env::current_exe().map_err(|error| Error::new(format!("the bench's own path: {error}")))?;
    let mut command = Command::new(ourselves);
    command.arg("--measure").arg(program);
    Ok(command)
}

/// Runs a command and adds a line on what it used. A process of its own, because the kernel tells this only of all
/// children together, and the bench has QEMUs among them.
fn measure(program: &Path, arguments: &[OsString]) -> ExitCode {
    let ended = Command::new(program).args(arguments).stdin(Stdio::null()).status();
    match (ended, getrusage(UsageWho::RUSAGE_CHILDREN)) {
        (Ok(status), Ok(used)) => {
            let times = [used.user_time(), used.system_time()];
            let cpu: i64 = times.iter().map(|time| time.tv_sec() * 1_000_000 + time.tv_usec()).sum();
            println!("{}", json!({"type": "used", "cpu_us": cpu, "peak_kib": used.max_rss()}));
            ExitCode::from(if status.success() { 0 } else { 1 })
        }
        (ended, used) => {
            eprintln!("{ended:?} {used:?}");
            ExitCode::FAILURE
        }
    }
}

/// A process that is ended where this is dropped.
struct Started(Child);

impl Started {
    /// The first line that the process says.
    fn line(&mut self) -> String {
        let mut line = String::new();
        if let Some(stdout) = self.0.stdout.take() {
            // an error leaves the line empty, which no caller expects
            BufReader::new(stdout).read_line(&mut line).ok();
        }
        line.trim_end().to_owned()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}
