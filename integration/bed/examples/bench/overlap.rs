//! Disks and RAM at the same time against one after the other, where nothing but the machine bounds them.

use std::fs;
use std::path::Path;

use qferry_bed::{DiskSpec, Error, Pair, Result, Spec, Workload};

use crate::moves;
use crate::table::{Required, Table, middle};
use crate::{MIB, runs};

/// Measures, and says whether the requirement was met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let runs = runs(4);
    println!("overlap: {runs} runs of each, alternating\n");
    let mut taken = [Vec::new(), Vec::new()];
    for run in 0..runs {
        for turn in [run % 2, (run + 1) % 2] {
            let (name, overlap) = if turn == 0 { ("one after the other", false) } else { ("overlapped", true) };
            let (total, blackout) = one(qferry, overlap)?;
            println!("{:>3} {name:<20} {total:>8.0} ms, blackout {blackout:>6.1} ms", run + 1);
            taken[turn].push((total, blackout));
        }
    }
    let median = |turn: usize, of: fn(&(f64, f64)) -> f64| middle(taken[turn].iter().map(of).collect());
    let (total, blackout) = (|figures: &(f64, f64)| figures.0, |figures: &(f64, f64)| figures.1);
    let mut table = Table::begin("overlapped");
    let most = Some(Required::AtMost(0.80));
    table.row("total time, against one after the other", "ms", median(1, total), Some(median(0, total)), most);
    table.row("blackout", "ms", median(1, blackout), Some(median(0, blackout)), None);
    println!("\nmedians; 1.5 GiB of overlay, 1.4 GiB of 2 GiB of RAM in use, unix sockets");
    Ok(table.met)
}

/// Total time and blackout in milliseconds.
fn one(qferry: &Path, overlap: bool) -> Result<(f64, f64)> {
    let workload = Workload { ram: 1434 * MIB, dirty: 0, verify: 0, write: 0, read: 0, ..Workload::default() };
    let disk = DiskSpec { size: 2048 * MIB, overlay_data: 1536 * MIB, ..DiskSpec::default() };
    let pair = Pair::start(&Spec { memory: 2048, workload, disks: vec![disk], ..Spec::default() })?;
    let policy = pair.run_dir().join("policy.toml");
    fs::write(&policy, format!("overlap = {overlap}\n"))
        .map_err(|error| Error::new(format!("writing {}: {error}", policy.display())))?;
    let moved = moves::migrate(qferry, &pair, &["--policy".to_owned(), policy.display().to_string()])?;
    Ok((moved.total, moved.blackout))
}
