//! Many migrations at once in one process, against scripted QEMUs that take their time as real ones do.
//!
//! The scripted QEMUs are a process of their own, and so are the migrations, so that the kernel tells what these alone
//! have used. They begin one after the other, all run at the same time, and hand over at the pace at which they began.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use qferry::internals::endpoint::{Address, Endpoint};
use qferry::internals::migration::{JournalPlace, Migration};
use qferry::internals::progress::Ending;
use qferry::internals::storage::verify::identity::ProofLevel;
use qferry_bed::{Error, Result};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};

use crate::Started;
use crate::model::{ModelPair, PairShape};
use crate::table::{Required, Table, middle};

/// The numbers of migrations that are compared.
const FEW: usize = 10;
const MANY: usize = 1000;
/// The time between two starts. A thousand begin within 20 s, and hand over at 50 a second.
const APART: Duration = Duration::from_millis(20);
/// How long a mirror copies, and how long a pass over RAM takes after that: longer than all starts together.
const MIRROR: Duration = Duration::from_secs(15);
const RAM: Duration = Duration::from_secs(15);
/// What QEMU needs for the last RAM, while the guest stands still.
const LAST_RAM: Duration = Duration::from_millis(10);
/// What all may use at once, MiB.
const MEMORY: f64 = 200.0;
/// By how much a migration among many may cost more than one among few.
const CPU: f64 = 1.5;
/// And by how much its handover may take longer.
const LATENCY: f64 = 2.0;

/// Measures, and says whether the requirements were met.
pub(crate) fn bench(_: &Path) -> Result<bool> {
    println!("scale: {FEW} migrations at once, and {MANY}\n");
    let [few, many] = [run_at_once(FEW)?, run_at_once(MANY)?];
    let mut table = Table::begin(&MANY.to_string());
    let row = |table: &mut Table, name: &str, unit: &str, of: fn(&Scaled) -> f64, most: Option<f64>| {
        table.row(name, unit, of(&many), Some(of(&few)), most.map(Required::AtMost));
    };
    row(&mut table, "CPU time of a migration", "ms", |scaled| scaled.cpu, Some(CPU));
    row(&mut table, "handover, median", "ms", |scaled| scaled.handovers.0, None);
    row(&mut table, "handover, p99", "ms", |scaled| scaled.handovers.1, Some(LATENCY));
    row(&mut table, "handover, longest", "ms", |scaled| scaled.handovers.2, None);
    row(&mut table, "time of a migration", "ms", |scaled| scaled.total, None);
    table.row("peak RSS of all", "MiB", many.memory, Some(MEMORY), Some(Required::AtMost(1.0)));
    println!(
        "\nthe yardstick is {FEW} at once, and for the memory the bound; the journals are in memory where /dev/shm is there"
    );
    Ok(table.met)
}

/// What a number of migrations came to.
struct Scaled {
    /// Milliseconds of a migration.
    cpu: f64,
    /// MiB of all.
    memory: f64,
    /// Median, 99th of a hundred and longest of the blackouts, milliseconds.
    handovers: (f64, f64, f64),
    /// Milliseconds, the median.
    total: f64,
}

fn run_at_once(count: usize) -> Result<Scaled> {
    // Each migration syncs its journal a dozen times. The number of syncs that a disk takes at once is its own.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let folder = folder.map_err(|error| Error::new(format!("a folder: {error}")))?;
    let ourselves = env::current_exe().map_err(|error| Error::new(format!("the bench's own path: {error}")))?;
    let begin = |word: &str| {
        let mut command = Command::new(&ourselves);
        command.arg(word).arg(count.to_string()).arg(folder.path()).env("XDG_STATE_HOME", folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map(Started)
    };
    let failed = |error: io::Error| Error::new(format!("a part of the bench: {error}"));
    let mut monitors = begin("--scripted").map_err(failed)?;
    if monitors.line() != "ready" {
        return Err(Error::new("the scripted QEMUs have ended"));
    }
    let mut migrations = begin("--at-once").map_err(failed)?;
    let told: Value = serde_json::from_str(&migrations.line())
        .map_err(|error| Error::new(format!("what came of {count} migrations: {error}")))?;
    let list = |name: &str| -> Vec<f64> {
        let mut values: Vec<f64> =
            told[name].as_array().into_iter().flatten().map(|value| value.as_f64().unwrap_or(f64::NAN)).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let blackouts = list("blackouts");
    if blackouts.len() != count {
        return Err(Error::new(format!("{} of {count} guests have moved: {}", blackouts.len(), told["failed"])));
    }
    let p99 = blackouts[(count * 99 / 100).min(count - 1)];
    let scaled = Scaled {
        cpu: told["cpu_ms"].as_f64().unwrap_or(f64::NAN) / count as f64,
        memory: told["peak_kib"].as_f64().unwrap_or(f64::NAN) / 1024.0,
        handovers: (middle(blackouts.clone()), p99, blackouts[count - 1]),
        total: middle(list("totals")),
    };
    let (median, p99, longest) = scaled.handovers;
    println!(
        "{count:>5} at once: {:.1} ms CPU each, {:.1} MiB, handovers {median:.1} ms, p99 {p99:.1}, longest {longest:.1}",
        scaled.cpu, scaled.memory
    );
    Ok(scaled)
}

fn socket(folder: &Path, number: usize, side: &str) -> PathBuf {
    folder.join(format!("{number}.{side}"))
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    // a migration needs two connections and a file, and a scripted QEMU a few
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// The scripted QEMUs, until this process is killed.
pub(crate) fn scripted(count: usize, folder: &Path) -> io::Result<()> {
    runtime()?.block_on(async {
        for number in 0..count {
            let mut pair = ModelPair::new(&PairShape::default());
            {
                let mut state = pair.state();
                (state.mirror_takes, state.ram_takes, state.last_ram_takes) = (MIRROR, RAM, LAST_RAM);
            }
            let streams = pair.take_streams();
            for (side, mut stream) in ["source", "destination"].into_iter().zip(streams) {
                let listener = UnixListener::bind(socket(folder, number, side))?;
                tokio::spawn(async move {
                    if let Ok((mut client, _)) = listener.accept().await {
                        // the end of either side is the end of both
                        tokio::io::copy_bidirectional(&mut client, &mut stream).await.ok();
                    }
                });
            }
            tokio::spawn(async move {
                std::future::pending::<()>().await;
                drop(pair);
            });
        }
        println!("ready");
        std::future::pending().await
    })
}

/// So many migrations in this process, which prints what they came to and what it has used.
pub(crate) fn at_once(count: usize, folder: &Path) -> io::Result<()> {
    let (mut blackouts, mut totals, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    runtime()?.block_on(async {
        let begin = Instant::now();
        let mut migrations = Vec::with_capacity(count);
        for number in 0..count {
            tokio::time::sleep_until((begin + APART * number as u32).into()).await;
            let monitor = |side: &str| {
                let path = socket(folder, number, side);
                Endpoint::connector(side, move || UnixStream::connect(path.clone()))
            };
            let address = |name: &str| Address::unix(socket(folder, number, name)).map_err(io::Error::other);
            let migration = Migration::builder(monitor("source"), monitor("destination"))
                .addresses(address("nbd")?, address("ram")?)
                .journal(JournalPlace::StateDirectory)
                .runtime_dir(folder)
                // the exports of a scripted QEMU cannot be read
                .verify_backing(ProofLevel::Off)
                .start_here()
                .map_err(io::Error::other)?;
            migrations.push(migration);
        }
        for mut migration in migrations {
            let outcome = migration.wait().await;
            match (outcome.outcome, outcome.blackout_ms) {
                (Ending::Moved, Some(blackout)) => {
                    blackouts.push(blackout);
                    totals.push(outcome.total_ms);
                }
                _ => failed.push(format!("{:?}", outcome.reason)),
            }
        }
        io::Result::Ok(())
    })?;
    let used = getrusage(UsageWho::RUSAGE_SELF)?;
    let cpu: i64 =
        [used.user_time(), used.system_time()].iter().map(|time| time.tv_sec() * 1000 + time.tv_usec() / 1000).sum();
    failed.truncate(3);
    let told = json!({ "blackouts": blackouts, "totals": totals, "failed": failed, "cpu_ms": cpu, "peak_kib": used.max_rss() });
    fs::remove_dir_all(folder.join("qferry")).ok();
    writeln!(io::stdout(), "{told}")
}
