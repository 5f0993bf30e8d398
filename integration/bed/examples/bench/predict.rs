//! The estimate of `--plan` against the migration right afterwards.

use std::path::Path;

use qferry_bed::{DiskSpec, Error, Link, Pair, Result, Spec, Workload};
use serde_json::Value;

use crate::moves::{self, MEMORY};
use crate::table::{Required, Table, middle};
use crate::{MIB, runs};

/// The greatest median error of the estimates, per cent.
const TIME: f64 = 15.0;
const BLACKOUT: f64 = 30.0;
/// The time after which a migration counts as not converged.
const TIMEOUT: &str = "60s";

/// The percentiles of the errors that are printed.
const PERCENTILES: [usize; 7] = [0, 10, 25, 50, 75, 90, 100];

/// A link between the two hosts.
#[derive(Clone, Copy)]
struct Route {
    name: &'static str,
    link: Option<Link>,
    /// `--bandwidth`, if there is one.
    ceiling: Option<&'static str>,
    /// Bytes per second that the loads are shares of.
    carries: f64,
}

const ROUTES: [Route; 4] = [
    Route { name: "1 Gbit/s", link: Some(Link::gigabit()), ceiling: None, carries: 119.0e6 },
    Route { name: "400 Mbit/s", link: Some(Link { bits_per_second: 400_000_000 }), ceiling: None, carries: 47.0e6 },
    Route {
        name: "1 Gbit/s, ceiling",
        link: Some(Link::gigabit()),
        ceiling: Some("64MiB/s"),
        carries: 64.0 * MIB as f64,
    },
    Route { name: "unix, ceiling", link: None, ceiling: Some("96MiB/s"), carries: 96.0 * MIB as f64 },
];

/// The rates at which the guest rewrites memory, as a share of the link, and writes disk blocks of 64 KiB, a second.
const LOADS: [(&str, f64, u64); 5] =
    [("idle", 0.0, 0), ("0.3 x", 0.3, 0), ("0.6 x", 0.6, 0), ("writes", 0.0, 80), ("0.3 x, writes", 0.3, 80)];

/// Milliseconds; infinite for a migration that does not converge.
#[derive(Clone, Copy, Debug)]
struct Figures {
    total: f64,
    blackout: f64,
}

/// One figure of a migration.
type Of = fn(&Figures) -> f64;

/// An estimate and the migration that followed.
struct Prediction {
    estimate: Figures,
    fact: Figures,
}

/// Measures, and says whether every requirement was met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let rounds = runs(1);
    println!("predict: {} moves, each estimated right before\n", rounds * ROUTES.len() * LOADS.len());
    let mut all = Vec::new();
    for _ in 0..rounds {
        for route in ROUTES {
            for load in LOADS {
                let name = format!("{}, {}", route.name, load.0);
                let one = one(qferry, route, load)?;
                let Prediction { estimate, fact } = &one;
                print!("{:>3} {name:<32} total {:>6.0} estimate {:>6.0} ms", all.len() + 1, fact.total, estimate.total);
                println!(", blackout {:>6.1} estimate {:>6.1} ms", fact.blackout, estimate.blackout);
                all.push(one);
            }
        }
    }
    Ok(judge(&all))
}

fn judge(all: &[Prediction]) -> bool {
    let converges = |figures: &Figures| figures.total.is_finite();
    let right = all.iter().filter(|one| converges(&one.estimate) == converges(&one.fact)).count();
    let moved: Vec<_> = all.iter().filter(|one| converges(&one.estimate) && converges(&one.fact)).collect();
    let errors = |of: Of| {
        let error = |one: &&Prediction| (of(&one.estimate) / of(&one.fact) - 1.0) * 100.0;
        let mut errors: Vec<f64> = moved.iter().map(error).collect();
        errors.sort_by(f64::total_cmp);
        errors
    };
    let figures: [(&str, Of, f64); 2] =
        [("total time", |figures| figures.total, TIME), ("blackout", |figures| figures.blackout, BLACKOUT)];
    println!("\nerror of the estimates, in per cent of the fact; below 0 is too low");
    println!("{:<12} {}", "", PERCENTILES.map(|at| format!("{:>8}", format!("{at} %"))).concat());
    for (name, of, _) in figures {
        let errors = errors(of);
        println!("{name:<12} {}", PERCENTILES.map(|at| format!("{:>8.1}", percentile(&errors, at))).concat());
    }
    let mut table = Table::begin("estimate");
    for (name, of, bound) in figures {
        let sizes: Vec<f64> = errors(of).into_iter().map(f64::abs).collect();
        let within = sizes.iter().filter(|size| **size <= bound).count() as f64;
        let most = Some(Required::AtMost(1.0));
        table.row(&format!("{name}, median error, against {bound} %"), "%", middle(sizes), Some(bound), most);
        table.row(&format!("  within {bound} %, of all"), "runs", within, Some(moved.len() as f64), None);
    }
    let exactly = Some(Required::AtLeast(1.0));
    table.row("convergence estimated right, of all", "runs", right as f64, Some(all.len() as f64), exactly);
    table.met
}

/// The value of a sorted list below which so many per cent of it are; NaN for an empty list.
fn percentile(sorted: &[f64], at: usize) -> f64 {
    sorted.get(sorted.len().saturating_sub(1) * at / 100).copied().unwrap_or(f64::NAN)
}

fn one(qferry: &Path, route: Route, (_, share, writes): (&str, f64, u64)) -> Result<Prediction> {
    let workload = Workload { write: writes, block: 64 << 10, ..moves::dirtying((route.carries * share) as u64) };
    let disk = DiskSpec { overlay_data: 64 * MIB, ..DiskSpec::default() };
    let spec = Spec { memory: MEMORY, workload, disks: vec![disk], link: route.link, ..Spec::default() };
    let pair = Pair::start(&spec)?;
    moves::reach(&pair)?;
    let ceiling = route.ceiling.map(|rate| ["--bandwidth", rate]);
    let options = moves::options(ceiling.as_ref().map_or(&[], |words| words.as_slice()));
    let (code, said) = moves::run(&pair, moves::command(qferry, &pair, &options).arg("--plan"))?;
    let plan = said.iter().map(|said| &said.line).find(|line| line["type"] == "plan");
    let plan = plan.filter(|_| code == Some(0)).ok_or_else(|| Error::new(format!("no plan: {code:?} {said:?}")))?;
    let estimate = figures(&plan["estimate"])?;
    let moved = moves::migrate(qferry, &pair, &[options, moves::options(&["--timeout", TIMEOUT])].concat())?;
    Ok(Prediction { estimate, fact: Figures { total: moved.total, blackout: moved.blackout } })
}

fn figures(estimate: &Value) -> Result<Figures> {
    let figure = |key: &str| estimate[key].as_f64();
    match (estimate["converges"].as_bool(), figure("total_ms"), figure("blackout_ms")) {
        (Some(false), ..) => Ok(Figures { total: f64::INFINITY, blackout: f64::INFINITY }),
        (Some(true), Some(total), Some(blackout)) => Ok(Figures { total, blackout }),
        _ => Err(Error::new(format!("the plan has no estimate: {estimate}"))),
    }
}
