//! The price of looking: `diagnose` and `watch` beside a migration, the transcript that every run keeps, and the
//! reading of a long one.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qferry_bed::{DiskSpec, Error, Link, Pair, Result, Spec, Workload};
use serde_json::json;

use crate::moves::{self, MEMORY, Moved};
use crate::table::{Required, Table, middle};
use crate::{MIB, Started, measured, millis, run, runs};

const BUDGET: &str = "100ms";
/// The greatest quotient of a migration's time with an observer and without.
const SLOWER: f64 = 1.01;
/// What an observer may add to the blackout, milliseconds.
const LONGER: f64 = 1.0;
/// What the transcript may cost in processor time, milliseconds.
const RECORDER: f64 = 10.0;
/// The length of the transcript that is read, and the time and memory for it.
const TRANSCRIPT: u64 = 100 * 1000 * 1000;
const READ_WITHIN: f64 = 2000.0;
const READ_IN_MIB: f64 = 64.0;

/// Who looks at the migration.
#[derive(Clone, Copy)]
enum Observer {
    Nobody,
    Diagnose,
    Watch,
}

const OBSERVERS: [(Observer, &str); 3] =
    [(Observer::Nobody, "nobody looks"), (Observer::Diagnose, "diagnose"), (Observer::Watch, "watch")];

/// Measures, and says whether the requirements were met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let runs = runs(20);
    println!("observers: {runs} migrations each, in turns\n");
    let mut taken: [Vec<Moved>; 3] = Default::default();
    let mut recorders: [Vec<f64>; 2] = Default::default();
    for run in 0..runs {
        for turn in 0..OBSERVERS.len() {
            let at = (run + turn) % OBSERVERS.len();
            let (observer, name) = OBSERVERS[at];
            let moved = observed(qferry, observer)?;
            println!("{:>3} {name:<14} total {:>7.0} ms, blackout {:>5.1} ms", run + 1, moved.total, moved.blackout);
            taken[at].push(moved);
        }
        for turn in [run % 2, (run + 1) % 2] {
            let cpu = recorded(qferry, turn == 1)?;
            println!("{:>3} {:<14} CPU {cpu:>5.1} ms", run + 1, if turn == 1 { "recorded" } else { "not recorded" });
            recorders[turn].push(cpu);
        }
    }
    let (took, peak) = read(qferry)?;

    let total = |at: usize| middle(taken[at].iter().map(|moved| moved.total).collect());
    let blackout = |at: usize| middle(taken[at].iter().map(|moved| moved.blackout).collect());
    let mut table = Table::begin("with");
    let mut row = |name: &str, unit: &str, with: f64, without: f64, most: f64| {
        table.row(name, unit, with, Some(without), Some(Required::AtMost(most)));
    };
    for (at, (_, name)) in OBSERVERS.iter().enumerate().skip(1) {
        row(&format!("{name}, time of the migration"), "ms", total(at), total(0), SLOWER);
        let longer = blackout(at) - blackout(0);
        row(&format!("{name}, longer blackout"), "ms", longer, LONGER, 1.0);
    }
    // what else the host does makes every process slower and none faster, so the least is the nearest to the price
    let [without, with] = recorders.map(|all| all.into_iter().fold(f64::INFINITY, f64::min));
    row("the transcript, CPU time", "ms", with - without, RECORDER, 1.0);
    row("reading a transcript of 100 MB", "ms", took, READ_WITHIN, 1.0);
    row("  peak RSS", "MiB", peak, READ_IN_MIB, 1.0);
    println!("\nmedians, and of CPU time the least of all runs; where the yardstick is a bound, the ratio is to that");
    Ok(table.met)
}

/// A pair whose QEMUs have a second monitor for the observer.
fn pair(link: Option<Link>) -> Result<Pair> {
    let workload = Workload { beat: Duration::from_millis(2), ram: 64 * MIB, dirty: 10_000_000, ..Workload::default() };
    let disks = vec![DiskSpec { overlay_data: 64 * MIB, ..DiskSpec::default() }];
    Pair::start(&Spec { memory: MEMORY, workload, disks, link, second_monitor: true, ..Spec::default() })
}

fn observed(qferry: &Path, observer: Observer) -> Result<Moved> {
    let pair = pair(Some(Link::gigabit()))?;
    let sides = [pair.source.second_qmp_path(), pair.destination.second_qmp_path()];
    let begin = |verb: &str, more: &[&str]| {
        let mut command = Command::new(qferry);
        command.arg(verb).args(&sides).args(more).arg("--json");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Started)
    };
    let started = match observer {
        Observer::Nobody => None,
        // longer than the migration takes
        Observer::Diagnose => Some(begin("diagnose", &["--for", "60s"])),
        Observer::Watch => Some(begin("watch", &[])),
    };
    let _observing = started.transpose().map_err(|error| Error::new(format!("starting the observer: {error}")))?;
    moves::migrate(qferry, &pair, &moves::options(&["--downtime", BUDGET]))
}

/// The processor time of a migration, with the transcript that every run keeps or without, milliseconds.
fn recorded(qferry: &Path, is_recorded: bool) -> Result<f64> {
    let pair = pair(None)?;
    let mut command = measured(qferry)?;
    command.args(["migrate", "--json", "--downtime", BUDGET, "--source"]).arg(pair.source.qmp_path());
    command.arg("--destination").arg(pair.destination.qmp_path());
    if !is_recorded {
        command.arg("--no-transcript");
    }
    let ran = run(command.env("XDG_RUNTIME_DIR", pair.run_dir()).env("XDG_STATE_HOME", pair.run_dir()))?;
    Ok(ran.line("used")?["cpu_us"].as_f64().unwrap_or(f64::NAN) / 1000.0)
}

/// Reads a transcript of 100 MB: the time in milliseconds, and the peak of memory in MiB.
fn read(qferry: &Path) -> Result<(f64, f64)> {
    let failed = |error: std::io::Error| Error::new(format!("a transcript: {error}"));
    let folder = tempfile::tempdir().map_err(failed)?;
    let path = folder.path().join("long.jsonl");
    let mut file = BufWriter::new(File::create(&path).map_err(failed)?);
    let header = json!({ "v": 1, "type": "transcript", "began_ms": 1, "qferry": "0", "source": "unix:/s" });
    writeln!(file, "{header}").map_err(failed)?;
    let (mut written, mut look) = (0, 0u64);
    while written < TRANSCRIPT {
        // a look, as the engine records one: two questions and their answers
        let ram = json!({ "status": "active", "ram": { "transferred": look * 4096, "remaining": 1 << 30, "total": 1 << 30,
            "duplicate": look, "normal": look, "normal-bytes": look * 4096, "dirty-pages-rate": 1000, "mbps": 912.5,
            "dirty-sync-count": look / 100, "page-size": 4096, "multifd-bytes": 0, "pages-per-second": 28_000 } });
        let jobs = json!([{ "device": "qferry-disk0", "type": "mirror", "len": 1 << 30, "offset": look * 65536, "speed": 0,
            "ready": true, "paused": false, "busy": false, "status": "ready", "io-status": "ok" }]);
        for (name, value) in [("query-migrate", ram), ("query-block-jobs", jobs)] {
            let id = format!("{name}#{look}");
            let sent = json!({ "execute": name, "id": id });
            let came = json!({ "return": value, "id": id });
            for (dir, line) in [("send", sent), ("receive", came)] {
                let entry = json!({ "v": 1, "t_us": look * 100_000, "side": "source", "dir": dir, "line": line });
                let text = format!("{entry}\n");
                written += text.len() as u64;
                file.write_all(text.as_bytes()).map_err(failed)?;
            }
        }
        look += 1;
    }
    drop(file.into_inner().map_err(|error| Error::new(format!("a transcript: {error}")))?);
    let began = Instant::now();
    let ran = run(measured(qferry)?.arg("transcript").arg(&path))?;
    let took = millis(began.elapsed());
    // the last line is of the measurement, behind the text
    Ok((took, ran.line("used")?["peak_kib"].as_f64().unwrap_or(f64::NAN) / 1024.0))
}
