//! Disks and RAM at the same time against one after the other, bounded by the machine alone.

use std::fs;
use std::path::Path;
use std::time::Duration;

use qferry_bed::{DiskSpec, Error, Pair, Result, Spec, Workload, straight_line};

use crate::moves;
use crate::table::{Required, Table, middle};
use crate::{MIB, runs};

/// The engine and the script, which move the guest in both ways.
const MOVERS: [&str; 2] = ["engine", "straight script"];

/// Measures, and says whether the requirement was met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let runs = runs(4);
    println!("overlap: {runs} runs of each, alternating\n");
    // The times of the engine and of the script, one after the other and overlapped.
    let mut taken: [[Vec<(f64, f64)>; 2]; 2] = Default::default();
    for run in 0..runs {
        for (mover, taken) in MOVERS.iter().zip(&mut taken) {
            for turn in [run % 2, (run + 1) % 2] {
                let (name, overlapped) = if turn == 0 { ("one after the other", false) } else { ("overlapped", true) };
                let (total, blackout) =
                    if *mover == "engine" { engine(qferry, overlapped)? } else { script(overlapped)? };
                println!("{:>3} {mover:<16} {name:<20} {total:>8.0} ms, blackout {blackout:>6.1} ms", run + 1);
                taken[turn].push((total, blackout));
            }
        }
    }
    let (total, blackout) = (|figures: &(f64, f64)| figures.0, |figures: &(f64, f64)| figures.1);
    let median = |of: fn(&(f64, f64)) -> f64, taken: &[(f64, f64)]| middle(taken.iter().map(of).collect());
    let mut table = Table::begin("overlapped");
    for (mover, [one, both]) in MOVERS.iter().zip(&taken) {
        let most = (*mover == "engine").then_some(Required::AtMost(0.80));
        table.row(&format!("{mover}: total time"), "ms", median(total, both), Some(median(total, one)), most);
        table.row(&format!("{mover}: blackout"), "ms", median(blackout, both), Some(median(blackout, one)), None);
    }
    println!(
        "\nmedians, against one after the other; 1.25 GiB of overlay, 2.8 GiB of 4 GiB of RAM in use, unix sockets"
    );
    Ok(table.met)
}

/// Disks and RAM each take about as long. The destination has its memory before it starts, as where huge pages are
/// reserved, and nothing goes through the page cache, as with `cache=none`: hosts of virtual machines take back what
/// memory is free and give it again twenty times as slowly as it is used, and that would be measured else.
fn pair() -> Result<Pair> {
    let workload = Workload { ram: 2867 * MIB, dirty: 0, verify: 0, write: 0, read: 0, ..Workload::default() };
    let disk = DiskSpec { size: 2048 * MIB, overlay_data: 1280 * MIB, direct: true, ..DiskSpec::default() };
    let extra = vec!["-mem-prealloc".to_owned()];
    Pair::start(&Spec { memory: 4096, workload, disks: vec![disk], extra, ..Spec::default() })
}

/// Total time and blackout in milliseconds.
fn script(overlapped: bool) -> Result<(f64, f64)> {
    let pair = pair()?;
    let within = Duration::from_millis(300);
    let timings = match overlapped {
        true => straight_line::migrate_overlapped(&pair, within)?,
        false => straight_line::migrate_within(&pair, within)?,
    };
    Ok((timings.total.as_secs_f64() * 1000.0, timings.blackout.as_secs_f64() * 1000.0))
}

/// Total time and blackout in milliseconds.
fn engine(qferry: &Path, overlap: bool) -> Result<(f64, f64)> {
    let pair = pair()?;
    let policy = pair.run_dir().join("policy.toml");
    fs::write(&policy, format!("overlap = {overlap}\n"))
        .map_err(|error| Error::new(format!("writing {}: {error}", policy.display())))?;
    let moved = moves::migrate(qferry, &pair, &["--policy".to_owned(), policy.display().to_string()])?;
    Ok((moved.total, moved.blackout))
}
