//! The engine's own policy against the ideal schedule of the simulator, which knows the guest and the link from the
//! start: the price of what the engine has to find out while RAM is sent.

use std::path::Path;
use std::time::Duration;

use qferry::internals::convergence::simulate::{GuestModel, LinkModel, ideal};
use qferry::internals::convergence::{Abilities, ConvergenceJob, Policy};
use qferry_bed::{Error, Link, Pair, Result, Spec};
use serde_json::Value;

use crate::converge::{BUDGET, TIMEOUT, bandwidth};
use crate::moves::{self, MEMORY, Moved, WORKING_SET};
use crate::table::{Required, Table, middle};
use crate::{MIB, runs};

/// The rates at which the guest rewrites memory, as a share of the link's payload, and whether the guest may be
/// throttled at all.
const LOADS: [(&str, f64, bool); 4] =
    [("0.5 x", 0.5, false), ("0.9 x", 0.9, true), ("1.5 x", 1.5, true), ("2 x", 2.0, true)];
/// The greatest quotient of a move's time and the ideal one.
const MOST: f64 = 1.15;
/// One per cent is QEMU's own, and no guest notices it: auto-converge is set up so that it is ready for more.
const READY: u64 = 1;

/// A move and its ideal, milliseconds from the begin of RAM until the guest runs on the destination.
struct Compared {
    fact: f64,
    ideal: f64,
    /// Per cent by which the guest was throttled.
    throttle: u64,
}

/// Measures, and says whether the requirement was met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let runs = runs(2);
    println!("ideal: {runs} moves for each load against the ideal schedule; given up after {TIMEOUT}\n");
    let bandwidth = bandwidth()?;
    let used = used(qferry)?;
    let [link, in_use] = [bandwidth, used].map(|bytes| bytes / MIB as f64);
    println!("the link carries {link:.1} MiB/s of payload, and the guest uses {in_use:.0} MiB of memory");
    let mut all = Vec::new();
    for (load, share, may_throttle) in LOADS {
        let compared: Vec<Compared> =
            (0..runs).map(|run| one(qferry, run, load, bandwidth, share, used)).collect::<Result<_>>()?;
        all.push((load, may_throttle, compared));
    }
    let mut table = Table::begin("engine");
    for (load, may_throttle, compared) in &all {
        let [fact, ideal] =
            [|one: &Compared| one.fact, |one: &Compared| one.ideal].map(|of| middle(compared.iter().map(of).collect()));
        table.row(
            &format!("{load} RAM, against the ideal schedule"),
            "ms",
            fact,
            Some(ideal),
            Some(Required::AtMost(MOST)),
        );
        let most = compared.iter().map(|one| one.throttle).max().unwrap_or(0);
        if !may_throttle && most > READY {
            table.missed(&format!("{load} not throttled"), &format!("throttled by {most} %"));
        }
    }
    println!("\nmedians, from the begin of RAM until the guest runs on the destination; budget {BUDGET}");
    Ok(table.met)
}

/// Bytes of RAM that a guest which does nothing sends: its memory in use.
fn used(qferry: &Path) -> Result<f64> {
    let (_, moved) = moved(qferry, 0)?;
    figure(outcome(&moved)?, "/ram/bytes")
}

fn one(qferry: &Path, run: usize, load: &str, bandwidth: f64, share: f64, used: f64) -> Result<Compared> {
    let (reached, moved) = moved(qferry, (bandwidth * share) as u64)?;
    let outcome = outcome(&moved)?;
    let begin = |phase: &str| figure(&moved.begin(phase)?.line, "/t_ms");
    // a move that was given up counts as endless
    let fact = if moved.converged() { begin("switchover")? - begin("memory")? + moved.blackout } else { f64::INFINITY };
    let throttle = outcome["ram"]["throttle_max_pct"].as_u64().unwrap_or(0);
    let compared = Compared { fact, ideal: ideal_time(bandwidth, reached, used)?, throttle };
    print!("{:>3} {load:<6} rewrites {:>6.1} MiB/s", run + 1, reached / MIB as f64);
    print!(", RAM took {:>7.0} ms, ideal {:>7.0} ms", compared.fact, compared.ideal);
    println!(", blackout {:>6.1} ms, throttled by {throttle} %{}", moved.blackout, actions(&moved, begin("memory")?));
    Ok(compared)
}

/// Moves a guest that rewrites its memory at this rate. Gives the rate that it reached, and its move.
fn moved(qferry: &Path, rate: u64) -> Result<(f64, Moved)> {
    let workload = moves::dirtying(rate);
    let pair = Pair::start(&Spec { memory: MEMORY, workload, link: Some(Link::gigabit()), ..Spec::default() })?;
    let reached = moves::reach(&pair)?;
    Ok((reached, moves::migrate(qferry, &pair, &moves::options(&["--downtime", BUDGET, "--timeout", TIMEOUT]))?))
}

/// The time of the ideal schedule, milliseconds.
fn ideal_time(bandwidth: f64, dirty_rate: f64, used: f64) -> Result<f64> {
    let guest = GuestModel {
        memory: (MEMORY * MIB) as f64,
        used,
        working_set: WORKING_SET as f64,
        dirty_rate,
        ..GuestModel::default()
    };
    let abilities = Abilities { throttle: true, switchover_bandwidth: true, ..Abilities::default() };
    let budget = BUDGET.trim_end_matches("ms").parse().map_err(|error| Error::new(format!("{BUDGET}: {error}")))?;
    let budget = Duration::from_millis(budget);
    let job = ConvergenceJob { budget, memory: MEMORY * MIB, abilities, ..ConvergenceJob::default() };
    // the time of the handover, as a usual one has it
    let link = LinkModel {
        bandwidth,
        memory_rate: 1e9,
        mirror_rate: 1e9,
        round_trip: 0.5,
        device_state: 6.0,
        switchover_bandwidth: true,
    };
    Ok(ideal(&Policy::default(), &job, &guest, &link).total_ms)
}

/// The throttles and downtime limits that the engine set, each with its time since the begin of RAM.
fn actions(moved: &Moved, began: f64) -> String {
    let told = moved.said.iter().filter(|said| said.line["type"] == "action").filter_map(|said| {
        let details = &said.line["details"];
        let what = match (&details["throttle_pct"], &details["downtime_limit_ms"]) {
            (Value::Number(percent), _) => format!("{percent} %"),
            (_, Value::Number(limit)) => format!("{limit} ms"),
            _ => return None,
        };
        Some(format!("; {what} at {:.0} ms", said.line["t_ms"].as_f64()? - began))
    });
    told.collect()
}

fn outcome(moved: &Moved) -> Result<&Value> {
    moved.said.last().map(|said| &said.line).ok_or_else(|| Error::new("no outcome"))
}

fn figure(line: &Value, at: &str) -> Result<f64> {
    line.pointer(at).and_then(Value::as_f64).ok_or_else(|| Error::new(format!("no {at} in {line}")))
}
