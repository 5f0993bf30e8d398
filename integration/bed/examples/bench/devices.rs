//! What it costs the blackout that both QEMUs log how long each device takes.
//!
//! Two blackouts in turns differ by more than the cost. So QEMU writes its lines with times, and the time between two
//! lines that is no device's own is an upper bound for the cost of one: QEMU's work between two devices is in it.

use std::fs;
use std::path::Path;

use qferry_bed::{Error, Pair, Result, Spec};

use crate::moves;
use crate::runs;
use crate::table::{Required, Table, middle};

/// A budget that no busy host exceeds: the blackout is measured, and not bounded.
const BUDGET: &str = "2s";
/// What the lines of both sides may cost, milliseconds.
const COST: f64 = 0.3;

/// Measures, and says whether the requirement was met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let runs = runs(20);
    println!("devices: {runs} migrations with the times of devices and without, in turns\n");
    let (mut taken, mut costs): ([Vec<f64>; 2], [Vec<f64>; 2]) = Default::default();
    for run in 0..runs {
        for turn in [run % 2, (run + 1) % 2] {
            let folder = tempfile::tempdir().map_err(|error| Error::new(format!("a folder: {error}")))?;
            let log = folder.path().join("%d.log").display().to_string();
            let extra = ["-D", &log, "-msg", "timestamp=on"].map(str::to_owned).into();
            let pair = Pair::start(&Spec { network: true, extra, ..Spec::quick() })?;
            let more: &[&str] = if turn == 0 { &["--no-device-times"] } else { &[] };
            let pids = [pair.source.pid(), pair.destination.pid()];
            let moved = moves::migrate(qferry, &pair, &moves::options(&[&["--downtime", BUDGET], more].concat()))?;
            taken[turn].push(moved.blackout);
            let mut words = String::new();
            if turn == 1 {
                for (pid, costs) in pids.into_iter().zip(&mut costs) {
                    let log = fs::read_to_string(folder.path().join(format!("{pid}.log"))).unwrap_or_default();
                    let cost = between(&log);
                    words += &format!(", {:.3} ms between {} lines", cost.0, cost.1);
                    costs.push(cost.0);
                }
            }
            println!("{:>3} blackout {:>6.2} ms{words}", run + 1, moved.blackout);
        }
    }
    let [without, with] = taken.map(middle);
    let [source, destination] = costs.map(middle);
    let mut table = Table::begin("with");
    table.row("blackout", "ms", with, Some(without), None);
    let us = |ms: f64| ms * 1000.0;
    for (name, cost) in [("lines of the source", source), ("lines of the destination", destination)] {
        table.row(name, "us", us(cost), None, None);
    }
    table.row(
        "both, were they one after the other",
        "us",
        us(source + destination),
        Some(us(COST)),
        Some(Required::AtMost(1.0)),
    );
    println!("\nmedians; the last ratio is to a bound");
    Ok(table.met)
}

/// The milliseconds between neighbouring lines of devices that are no device's own, and the number of lines. Not a
/// number where there are no lines.
fn between(log: &str) -> (f64, usize) {
    let (mut before, mut sum, mut lines) = (None, f64::NAN, 0);
    for line in log.lines() {
        // 10.0: THREAD@SECONDS:EVENT
        let time = line.split_once('@').and_then(|(_, rest)| rest.split_once(':'));
        let time = time.filter(|(_, event)| event.contains(" type=non-iterable "));
        let read = time.and_then(|(seconds, event)| {
            let own: f64 = event.rsplit_once(" downtime=")?.1.parse().ok()?;
            Some((seconds.parse::<f64>().ok()? * 1000.0, own / 1000.0))
        });
        if let (Some(before), Some((at, own))) = (before, read) {
            let other: f64 = at - before - own;
            sum = if sum.is_nan() { other } else { sum + other };
            lines += 1;
        }
        before = read.map(|(at, _)| at);
    }
    (sum, lines)
}
