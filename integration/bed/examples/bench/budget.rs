//! Moves with a budget of 20 ms on a host whose processors are busy: how many are thrown away, and how many keep it.

use std::hint::spin_loop;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use qferry_bed::{DiskSpec, Pair, Result, Spec, Workload};

use crate::table::{Required, Table, middle};
use crate::{MIB, moves, runs};

const BUDGET: &str = "20ms";
const BUDGET_MS: f64 = 20.0;
/// The number of moves, and of those that may end on the source.
const MOVES: usize = 40;
const LOST: f64 = 1.0;
/// Programs that compute for ever beside the two QEMUs.
const LOOPS: usize = 2;

/// Compares the moves with the number of them that may be lost.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let count = runs(MOVES);
    println!("\n{count} moves with a budget of {BUDGET}, beside {LOOPS} busy loops\n");
    let is_over = AtomicBool::new(false);
    let moved = thread::scope(|scope| {
        for _ in 0..LOOPS {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    spin_loop();
                }
            });
        }
        let moved: Result<Vec<_>> = (0..count).map(|run| one(qferry, run)).collect();
        is_over.store(true, Ordering::Relaxed);
        moved
    })?;
    let blackouts: Vec<f64> = moved.iter().map(|moved| moved.blackout).filter(|ms| ms.is_finite()).collect();
    let within = blackouts.iter().filter(|ms| **ms <= BUDGET_MS).count();
    let lost = moved.len() - blackouts.len();
    let mut table = Table::begin("engine");
    table.row("moves that ended on the source", "", lost as f64, Some(LOST), Some(Required::AtMost(1.0)));
    table.row("moves within the budget", "%", within as f64 * 100.0 / moved.len().max(1) as f64, None, None);
    table.row("blackout, median", "ms", middle(blackouts), Some(BUDGET_MS), None);
    Ok(table.met)
}

fn one(qferry: &Path, run: usize) -> Result<moves::Moved> {
    let workload = Workload { beat: Duration::from_millis(10), dirty: 4 * MIB, ..Workload::default() };
    let disk = DiskSpec { overlay_data: 16 * MIB, ..DiskSpec::default() };
    let pair = Pair::start(&Spec { workload, disks: vec![disk], ..Spec::default() })?;
    let moved = moves::migrate(qferry, &pair, &moves::options(&["--downtime", BUDGET]))?;
    match moved.converged() {
        true => println!("{:>3} moved, blackout {:>6.1} ms", run + 1, moved.blackout),
        false => println!("{:>3} ended on the source", run + 1),
    }
    Ok(moved)
}
