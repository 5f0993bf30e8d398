//! The share of a link of 1 Gbit/s that a migration uses, from the first byte of disks or RAM until the guest pauses.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use qferry_bed::{DiskSpec, Error, Link, Pair, Result, Side, Spec, Wire, Workload};

use crate::moves::{self, Said};
use crate::table::{Required, Table, middle};
use crate::{MIB, runs};

/// Bytes of a plain copy.
const COPIED: u64 = 128 * MIB;
/// More than the preflight sends, and little of what comes after.
const FIRST: u64 = 256 << 10;
/// Between two looks at the device.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Measures, and says whether the requirement was met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let runs = runs(3);
    println!("link: {runs} moves of an idle guest over 1 Gbit/s, each between two plain copies\n");
    let (mut moved, mut copied) = (Vec::new(), Vec::new());
    for run in 0..runs {
        let (used, plain) = one(qferry)?;
        println!("{:>3} move {:>6.1} MiB/s, copies {:>6.1} MiB/s", run + 1, used, plain);
        moved.push(used);
        copied.push(plain);
    }
    let mut table = Table::begin("engine");
    let (copied, rate) = (middle(copied), Link::gigabit().bits_per_second as f64 / 8.0 / MIB as f64);
    let least = Some(Required::AtLeast(0.95));
    table.row("use of 1 Gbit/s, against a plain copy", "MiB/s", middle(moved), Some(copied), least);
    // The yardstick is no good on a machine that is too busy to fill the link.
    table.row("a plain copy, against the link's rate", "MiB/s", copied, Some(rate), Some(Required::AtLeast(0.9)));
    println!("\nmedians; all bytes that the source's device sent, headers included");
    Ok(table.met)
}

/// MiB a second of a move, and of the plain copies around it.
fn one(qferry: &Path) -> Result<(f64, f64)> {
    let workload = Workload { ram: 512 * MIB, dirty: 0, verify: 0, write: 0, read: 0, ..Workload::default() };
    let disk = DiskSpec { size: 512 * MIB, overlay_data: 256 * MIB, ..DiskSpec::default() };
    let spec = Spec { memory: 768, workload, disks: vec![disk], link: Some(Link::gigabit()), ..Spec::default() };
    let pair = Pair::start(&spec)?;
    let wire = pair.wire().ok_or_else(|| Error::new("the pair has no link"))?;
    let before = wire.copy(COPIED)?.device;
    let done = AtomicBool::new(false);
    let (moved, first) = thread::scope(|scope| {
        let first = scope.spawn(|| first_byte(wire, &done));
        let moved = moves::migrate(qferry, &pair, &[]);
        done.store(true, Ordering::Relaxed);
        (moved, first.join())
    });
    let (moved, first) = (moved?, first.map_err(|_| Error::new("a thread panicked"))??);
    let Said { at, sent, .. } = moved.begin("switchover")?;
    let after = wire.copy(COPIED)?.device;
    let used = (sent - first.1) as f64 / (*at - first.0).as_secs_f64();
    Ok((used / MIB as f64, (before + after) / 2.0 / MIB as f64))
}

/// The last look before more was sent than a preflight sends.
fn first_byte(wire: &Wire, done: &AtomicBool) -> Result<(Instant, u64)> {
    let began = wire.sent(Side::Source)?;
    let mut last = (Instant::now(), began);
    while !done.load(Ordering::Relaxed) {
        let now = (Instant::now(), wire.sent(Side::Source)?);
        if now.1 > began + FIRST {
            return Ok(last);
        }
        last = now;
        thread::sleep(LOOK_AGAIN);
    }
    Err(Error::new("nothing was sent over the link"))
}
