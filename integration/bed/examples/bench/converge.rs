//! The engine's own policy against the published schedules of nova, vdsm and KubeVirt, on the same guest and the same
//! link, under loads from none to more than the link carries; and against the ideal schedule.

use std::path::Path;

use qferry_bed::{Error, Link, Pair, Result, Spec};

use crate::ideal;
use crate::moves::{self, MEMORY, Moved};
use crate::table::{Required, Table, middle};
use crate::{MIB, runs};

/// The policies; the engine's own comes first.
const POLICIES: [&str; 4] = ["converge", "nova", "vdsm", "kubevirt"];
/// The rates at which the guest rewrites memory, as a share of the link's payload.
const LOADS: [(&str, f64); 4] = [("idle", 0.0), ("0.5 x", 0.5), ("0.9 x", 0.9), ("1.5 x", 1.5)];
/// The blackout budget of every policy.
pub(crate) const BUDGET: &str = "300ms";
/// The time after which a migration counts as not converged.
pub(crate) const TIMEOUT: &str = "60s";
/// The factor by which two equal policies may differ, and the grains on top of it, milliseconds, which no policy
/// decides: QEMU checks every 100 ms whether it may stop the guest, and the pause scatters by a few milliseconds.
const SHARE: f64 = 1.05;
const TOTAL_GRAIN: f64 = 100.0;
const BLACKOUT_GRAIN: f64 = 5.0;

/// One figure of a move.
type Of = fn(&Moved) -> f64;

/// Measures, and says whether every requirement was met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let runs = runs(3);
    println!("converge: {runs} runs of each policy for each load, taking turns; given up after {TIMEOUT}\n");
    let bandwidth = bandwidth()?;
    println!("the link carries {:.1} MiB/s of payload", bandwidth / MIB as f64);
    let mut all = Vec::new();
    for (load, share) in LOADS {
        let mut taken: [Vec<Moved>; POLICIES.len()] = Default::default();
        for run in 0..runs {
            // each policy goes first as often as the others
            for turn in 0..POLICIES.len() {
                let policy = (run + turn) % POLICIES.len();
                taken[policy].push(one(qferry, run, load, POLICIES[policy], bandwidth * share)?);
            }
        }
        all.push((load, taken));
    }
    let mut table = Table::begin(POLICIES[0]);
    for (load, taken) in &all {
        judge(&mut table, load, taken);
    }
    println!(
        "\nmedians; inf: not converged; equal is up to {SHARE} times, and {TOTAL_GRAIN} ms of time or {BLACKOUT_GRAIN} ms"
    );
    println!("of blackout more; budget {BUDGET}; load: memory rewritten, as a share of the link's payload\n");
    let is_near_ideal = ideal::bench(qferry)?;
    Ok(table.met && is_near_ideal)
}

/// The payload that the link carries, bytes per second.
pub(crate) fn bandwidth() -> Result<f64> {
    let pair = Pair::start(&Spec { link: Some(Link::gigabit()), ..Spec::quick() })?;
    let wire = pair.wire().ok_or_else(|| Error::new("the pair has no link"))?;
    Ok(wire.copy(128 * MIB)?.payload)
}

fn one(qferry: &Path, run: usize, load: &str, policy: &str, rate: f64) -> Result<Moved> {
    let workload = moves::dirtying(rate as u64);
    let pair = Pair::start(&Spec { memory: MEMORY, workload, link: Some(Link::gigabit()), ..Spec::default() })?;
    let reached = moves::reach(&pair)?;
    let words = ["--policy", policy, "--downtime", BUDGET, "--timeout", TIMEOUT];
    let moved = moves::migrate(qferry, &pair, &moves::options(&words))?;
    let (asked, reached) = (rate / MIB as f64, reached / MIB as f64);
    print!("{:>3} {load:<6} {policy:<9} rewrites {reached:>6.1} of {asked:>6.1} MiB/s", run + 1);
    println!(", total {:>7.0} ms, blackout {:>7.1} ms", moved.total, moved.blackout);
    Ok(moved)
}

fn judge(table: &mut Table, load: &str, taken: &[Vec<Moved>; POLICIES.len()]) {
    let [own, others @ ..] = taken;
    let converged = |moves: &[Moved]| moves.iter().filter(|moved| moved.converged()).count() as f64;
    for (policy, other) in POLICIES[1..].iter().zip(others) {
        let figures: [(&str, Of, f64); 2] = [
            ("total", |moved| moved.total, TOTAL_GRAIN), //
            ("blackout", |moved| moved.blackout, BLACKOUT_GRAIN),
        ];
        for (name, of, grain) in figures {
            let [own, other] = [own, other].map(|moves| middle(moves.iter().map(of).collect()));
            // a policy that never converges is no measure
            let most = other.is_finite().then_some(Required::AtMost(SHARE + grain / other));
            table.row(&format!("{load} {name}, against {policy}"), "ms", own, Some(other), most);
        }
    }
    let best = others.iter().map(|moves| converged(moves)).fold(0.0, f64::max);
    let least = (best > 0.0).then_some(Required::AtLeast(1.0));
    table.row(&format!("{load} converged, against the best other"), "runs", converged(own), Some(best), least);
}
