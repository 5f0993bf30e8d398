//! The engine against libvirt and a straight-line script: one alternating sweep of all three, judged by what
//! `qferry sweep` measures the same way for everybody. `peer` has the programs.

use std::fs;
use std::path::{Path, PathBuf};

use qferry_bed::{Build, Error, Libvirtd, Result, Spec};

use crate::bars::{self, Group};
use crate::runs;
use crate::sweeps::{self, Trial, of};
use crate::table::{Required, Table, middle};

const SPEC: &str = include_str!("peers.toml");
const PEERS: [&str; 3] = ["qferry", "script", "libvirt"];
const LOADS: [&str; 2] = ["idle", "busy"];
const UNSHAPED: &str = "unshaped";
const GIGABIT: &str = "1 Gbit/s and 1 GiB";
/// The samples of all trials are kept in the repository only up to this size.
const SAMPLES: u64 = 1 << 20;

/// Measures, and says whether every requirement was met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    measure(qferry).map(|(_, met)| met)
}

/// The same, and the report and its data go into docs/.
pub(crate) fn write(qferry: &Path) -> Result<bool> {
    let (folder, met) = measure(qferry)?;
    keep(&folder, &Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs"))?;
    Ok(met)
}

fn measure(qferry: &Path) -> Result<(PathBuf, bool)> {
    needs_root()?;
    Libvirtd::programs()?;
    let runs = runs(10);
    println!("peers: {runs} migrations of each kind by each of {}, alternating\n", PEERS.join(", "));
    let text = spec(runs)?;
    let folder = sweeps::run(qferry, "peers", &text, runs * PEERS.len() * LOADS.len() * 2)?;
    let met = judge(&sweeps::trials(&folder)?, runs);
    println!("\nthe report is {}", folder.join("report.html").display());
    Ok((folder, met))
}

/// An error where nobody can become nobody.
fn needs_root() -> Result<()> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let users = map.split_whitespace().nth(2).and_then(|users| users.parse::<u64>().ok());
    match rustix::process::geteuid().is_root() && users > Some(65534) {
        true => Ok(()),
        false => {
            Err(Error::new("the comparison with libvirt needs root: its daemons are started as nobody on two hosts"))
        }
    }
}

fn spec(runs: usize) -> Result<String> {
    let build = Build::locate(&Spec::default().version)?;
    let own = std::env::current_exe().map_err(|error| Error::new(format!("the bench's own path: {error}")))?;
    let mut numbers = build.version().split('.');
    let machine = format!("pc-i440fx-{}.{}", numbers.next().unwrap_or_default(), numbers.next().unwrap_or("0"));
    let spec = sweeps::filled_in(SPEC, runs)?;
    Ok(spec.replace("@MACHINE@", &machine).replace("@BENCH@", &own.display().to_string()))
}

/// A figure of the trials that count.
fn values(trials: &[Trial], figure: &str, peer: &str, link: &str, load: &str) -> Vec<f64> {
    let levels = [link, load, peer].map(str::to_owned);
    let counted = trials.iter().filter(|trial| trial.levels == levels && trial.moved && trial.valid);
    counted.filter_map(|trial| trial.figures.get(figure)).copied().collect()
}

/// Prints the figures of all three, and says whether the engine's are as they must be.
fn judge(trials: &[Trial], runs: usize) -> bool {
    let mut table = Table::begin("qferry");
    for against in ["libvirt", "script"] {
        for link in [UNSHAPED, GIGABIT] {
            for load in LOADS {
                let place = if link == UNSHAPED { "unshaped" } else { "1 Gbit/s" };
                println!("against {against}, {place}, {load}:");
                let counted = ["qferry", against].map(|peer| values(trials, "command", peer, link, load).len());
                if counted.iter().any(|counted| *counted < runs) {
                    let why = format!("{} and {} of {runs} trials count", counted[0], counted[1]);
                    table.missed("  every trial counts", &why);
                }
                let total = if link == UNSHAPED { 0.6 } else { 0.9 };
                let rows = [
                    ("  blackout, STOP to RESUME", "blackout.events", 0.5),
                    ("  blackout, heard from outside", "outside.beats", 0.7),
                    ("  time with the destination's start", "total.with-start", total),
                ];
                for (name, figure, most) in rows {
                    let required = (against == "libvirt").then_some(Required::AtMost(most));
                    let median = |peer| middle(values(trials, figure, peer, link, load));
                    let [own, other] = ["qferry", against].map(median);
                    table.row(name, "ms", own, Some(other), required);
                }
            }
        }
    }
    println!(
        "\nmedians; over 1 Gbit/s with 1 GiB on the disk; the guest writes 10 times 256 KiB a second, and dirties 20 MiB/s where busy"
    );
    table.met
}

/// The picture that README shows.
fn drawn(trials: &[Trial]) -> String {
    let mut groups = Vec::new();
    for (link, place) in [(UNSHAPED, "unshaped"), (GIGABIT, "1 Gbit/s")] {
        for load in LOADS {
            let bars = PEERS.map(|peer| (peer.to_owned(), values(trials, "outside.beats", peer, link, load)));
            groups.push(Group { name: format!("{place}, {load}"), bars: bars.into() });
        }
    }
    bars::draw("How long the guest is silent when it moves, heard from outside: medians and quartiles", "ms", &groups)
}

/// Keeps the report, its data and its picture.
fn keep(folder: &Path, docs: &Path) -> Result<()> {
    let copy = |from: PathBuf, to: PathBuf| fs::copy(&from, &to).map(drop).map_err(of(&from));
    let data = docs.join("benchmark");
    fs::create_dir_all(&data).map_err(of(&data))?;
    copy(folder.join("report.html"), docs.join("benchmark.html"))?;
    let picture = data.join("blackout.svg");
    fs::write(&picture, drawn(&sweeps::trials(folder)?)).map_err(of(&picture))?;
    for name in ["results.csv", "trials.csv", "metrics.csv", "data_quality.csv", "environment.json"] {
        copy(folder.join(name), data.join(name))?;
    }
    let samples = folder.join("samples.jsonl");
    if fs::metadata(&samples).is_ok_and(|file| file.len() < SAMPLES) {
        copy(samples, data.join("samples.jsonl"))?;
    }
    // The spec is kept as it was run, but for where QEMU and this tree were.
    let spec = folder.join("spec.toml");
    let text = fs::read_to_string(&spec).map_err(of(&spec))?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().map_err(of(&spec))?;
    let to = data.join("spec.toml");
    let mut text = text.replace(&format!("{}/", root.display()), "");
    for program in ["qemu-system-x86_64", "qemu-img"] {
        text = text.replace(&sweeps::program(program)?, program);
    }
    fs::write(&to, text).map_err(of(&to))
}
