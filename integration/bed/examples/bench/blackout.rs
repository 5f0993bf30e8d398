//! The pause of a busy guest and what the engine itself uses, against a straight-line script; what a move costs in
//! bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qferry_bed::{Beat, DiskSpec, Error, Pair, Result, Side, Spec, Workload, free_port, image_facts, straight_line};

use crate::table::{Required, Table, middle};
use crate::{MIB, measured, mib, millis, run, runs};

const WAIT: Duration = Duration::from_secs(120);
/// The engine's budget for the whole blackout.
const BUDGET: Duration = Duration::from_millis(100);
/// The downtime limit of both. At its default of 300 ms QEMU stops a guest of this size with megabytes still to be
/// sent, and their number hides everything else.
const LIMIT: Duration = Duration::from_millis(10);
/// Beats to see on the destination, so that the pause lies between two of them.
const AFTERWARDS: u64 = 40;

/// Measures, and says whether every requirement was met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let runs = runs(10);
    println!("blackout: {runs} runs of each, alternating\n");

    let (mut script, mut engine, mut recorded) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        // Each goes first as often as the other.
        for turn in [run % 2, (run + 1) % 2] {
            let (name, taken) = match turn {
                0 => ("script", &mut script),
                _ => ("engine", &mut engine),
            };
            let figures = if turn == 0 { by_script()? } else { by_engine(qferry, false)? };
            progress(run, name, &figures);
            taken.push(figures);
        }
        if run % 3 == 0 {
            let figures = by_engine(qferry, true)?;
            progress(run, "engine --transcript", &figures);
            recorded.push(figures);
        }
    }
    let copy = copy(qferry)?;

    let blackout = |figures: &Figures| millis(figures.blackout);
    let steps = |figures: &Figures| millis(figures.blackout.saturating_sub(figures.last_ram));
    let gap = |figures: &Figures| millis(figures.gap);
    let earlier = |figures: &Figures| millis(figures.earlier);
    let (cpu, rss) = (|figures: &Figures| millis(figures.cpu), |figures: &Figures| figures.peak);
    let mut table = Table::begin("engine");
    let mut row = |name: &str, unit: &str, engine: f64, yardstick: f64, most: Option<f64>| {
        table.row(name, unit, engine, Some(yardstick), most.map(Required::AtMost));
    };
    let (of_script, of_engine) = (median(&script, blackout), median(&engine, blackout));
    row("blackout, against the script", "ms", of_engine, of_script, Some(1.10));
    row("  with --transcript", "ms", median(&recorded, blackout), of_script, None);
    row("  without QEMU's last RAM", "ms", median(&engine, steps), median(&script, steps), None);
    row("gap between beats around it", "ms", median(&engine, gap), median(&script, gap), None);
    row("longest gap before it", "ms", median(&engine, earlier), median(&script, earlier), None);
    row("CPU time, against 50 ms", "ms", median(&engine, cpu), 50.0, Some(1.0));
    row("  with --transcript", "ms", median(&recorded, cpu), 50.0, None);
    row("peak RSS, against 16 MiB", "MiB", median(&engine, rss), 16.0, Some(1.0));
    row("  with --transcript", "MiB", median(&recorded, rss), 16.0, None);
    row("disk size, against the source's", "MiB", copy.destination_taken, copy.source_taken, Some(1.05));
    match copy.wire {
        Some(wire) => row("NBD wire, against allocated bytes", "MiB", wire, copy.allocated, Some(1.03)),
        None => table.missed("NBD wire, against allocated bytes", "this is no network namespace of its own"),
    }
    println!("\nmedians; NBD wire: all bytes on the loopback device, both ways, TCP/IP headers included");
    Ok(table.met)
}

/// The figures of a migration.
#[derive(Clone, Copy, Default)]
struct Figures {
    /// STOP on the source to RESUME on the destination, by QEMU's time stamps.
    blackout: Duration,
    /// From `migrate-continue` to `completed`: QEMU sends the last RAM and the devices.
    last_ram: Duration,
    /// From the last beat on the source to the first on the destination.
    gap: Duration,
    /// The longest time without a beat before that.
    earlier: Duration,
    /// The engine's processor time, user and system; none for the script.
    cpu: Duration,
    /// The engine's peak RSS in MiB.
    peak: f64,
}

fn median(all: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    middle(all.iter().map(of).collect())
}

fn progress(run: usize, name: &str, figures: &Figures) {
    let Figures { blackout, last_ram, gap, earlier, cpu, peak } = figures;
    let [blackout, last_ram, gap, earlier] = [*blackout, *last_ram, *gap, *earlier].map(millis);
    print!("{:>3} {name:<20} blackout {blackout:>5.1} ms (last RAM {last_ram:>5.1})", run + 1);
    print!(", gap {gap:>5.1} ms, earlier {earlier:>5.1}");
    match cpu.is_zero() {
        true => println!(),
        false => println!(", CPU {:>4.1} ms, RSS {peak:>4.1} MiB", millis(*cpu)),
    }
}

/// The guest whose pause is measured.
fn busy() -> Spec {
    let workload = Workload { beat: Duration::from_millis(2), ram: 64 * MIB, dirty: 10_000_000, ..Workload::default() };
    let disk = DiskSpec { overlay_data: 64 * MIB, ..DiskSpec::default() };
    Spec { memory: 512, workload, disks: vec![disk], ..Spec::default() }
}

fn by_script() -> Result<Figures> {
    let pair = Pair::start(&busy())?;
    let since = Instant::now();
    let timings = straight_line::migrate_within(&pair, LIMIT)?;
    let last_ram = timings.ledger.iter().find(|(span, _)| span.starts_with("last memory"));
    let last_ram = last_ram.map(|(_, took)| *took).unwrap_or_default();
    seen_from_outside(&pair, since, Figures { last_ram, ..Figures::default() })
}

fn by_engine(qferry: &Path, transcript: bool) -> Result<Figures> {
    let pair = Pair::start(&busy())?;
    let since = Instant::now();
    let more = [PathBuf::from("--transcript"), pair.run_dir().join("transcript")];
    let used = migrate(qferry, &pair, if transcript { &more } else { &[] })?;
    seen_from_outside(&pair, since, used)
}

/// Completes the figures of a migration by those that the guest saw.
fn seen_from_outside(pair: &Pair, since: Instant, known: Figures) -> Result<Figures> {
    pair.wait_for_beats(Side::Destination, AFTERWARDS, WAIT)?;
    let longest = |beats: &[Beat]| {
        let gaps = beats.windows(2).filter_map(|pair| Some(pair.last()?.at - pair.first()?.at));
        gaps.max().unwrap_or_default()
    };
    let (mut at_source, at_destination) = (pair.beats(Side::Source), pair.beats(Side::Destination));
    at_source.retain(|beat| beat.at >= since);
    let around: Vec<Beat> = at_source.last().into_iter().chain(at_destination.first()).copied().collect();
    match pair.errors().first() {
        Some(error) => Err(Error::new(format!("the guest found: {error}"))),
        None => {
            Ok(Figures { blackout: pair.blackout()?, gap: longest(&around), earlier: longest(&at_source), ..known })
        }
    }
}

/// Migrates with the command as a user runs it.
fn migrate(qferry: &Path, pair: &Pair, more: &[PathBuf]) -> Result<Figures> {
    let mut command = measured(qferry)?;
    command.args(["migrate", "--json", "--source"]).arg(pair.source.qmp_path());
    command.arg("--destination").arg(pair.destination.qmp_path()).args(more);
    // the engine's is a budget for the whole blackout; the limit that it begins with is the same as the script's
    command.arg("--downtime").arg(format!("{}ms", BUDGET.as_millis()));
    let ran = run(command.env("XDG_RUNTIME_DIR", pair.run_dir()).env("XDG_STATE_HOME", pair.run_dir()))?;
    let (outcome, used) = (ran.line("outcome")?, ran.line("used")?);
    let spans = outcome["ledger"].as_array().into_iter().flatten();
    let last_ram = spans.filter(|span| span["span"] == "ram-and-devices").filter_map(|span| span["ms"].as_f64()).sum();
    let number = |key: &str| used[key].as_u64().unwrap_or_default();
    Ok(Figures {
        last_ram: Duration::from_secs_f64(f64::max(last_ram, 0.0) / 1000.0),
        cpu: Duration::from_micros(number("cpu_us")),
        peak: number("peak_kib") as f64 / 1024.0,
        ..Figures::default()
    })
}

/// Sizes in MiB.
struct Copy {
    allocated: f64,
    /// `None` where other traffic could be counted too.
    wire: Option<f64>,
    source_taken: f64,
    destination_taken: f64,
}

/// Moves a disk of an idle guest over TCP and looks at what it cost.
fn copy(qferry: &Path) -> Result<Copy> {
    let disk = DiskSpec { size: 1024 * MIB, overlay_data: 256 * MIB, ..DiskSpec::default() };
    let workload = Workload { dirty: 0, write: 0, read: 0, ..Workload::default() };
    let pair = Pair::start(&Spec { disks: vec![disk], workload, ..Spec::default() })?;
    let facts = |side| image_facts(pair.build(side), &pair.machine(side).disks()[0].overlay);
    let at_source = facts(Side::Source)?;
    let before = loopback();
    let nbd = format!("tcp:127.0.0.1:{}", free_port()?);
    let ram = format!("unix:{}", pair.run_dir().join("ram").display());
    migrate(qferry, &pair, &["--nbd-address", &nbd, "--migrate-address", &ram].map(PathBuf::from))?;
    let wire = before.zip(loopback()).map(|(before, after)| mib(after - before));
    pair.machine(Side::Destination).finish()?;
    let at_destination = facts(Side::Destination)?;
    Ok(Copy {
        allocated: mib(at_source.allocated),
        wire,
        source_taken: mib(at_source.disk_size),
        destination_taken: mib(at_destination.disk_size),
    })
}

/// Bytes sent over the loopback device so far, if it is up and the only device: a network namespace of our own.
fn loopback() -> Option<u64> {
    let table = fs::read_to_string("/proc/self/net/dev").ok()?;
    let mut devices = table.lines().skip(2);
    let (name, counters) = devices.next()?.split_once(':')?;
    let alone = devices.next().is_none() && name.trim() == "lo";
    // eight counters of what was received, then what was sent: bytes first
    counters.split_whitespace().nth(8)?.parse().ok().filter(|_| alone)
}
