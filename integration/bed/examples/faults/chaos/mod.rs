//! An attacker: random legal QMP from a second client, guests that do what guests do, signals and cuts at random
//! moments, each migration judged from outside of the engine.
//!
//! Everything random comes from the seed of a run and the number of a migration, so that one migration can be repeated
//! alone. How a busy host spreads its time is not in the seed: a moment is so long after a phase's begin, or before a
//! command.

mod attack;
mod client;
mod engine;
mod figures;
mod judge;
mod plan;
mod rules;
mod sampler;
mod table;
mod trial;
mod verdict;

pub(crate) use plan::Plan;
pub(crate) use table::{kept, put, section, table, tell};
pub(crate) use verdict::{Verdict, try_plan};

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The arguments of a run.
pub(crate) struct Chaos<'a> {
    pub(crate) qferry: &'a Path,
    pub(crate) version: &'a str,
    pub(crate) seed: u64,
    /// The migrations to try, at most.
    pub(crate) migrations: u64,
    /// The time after which no further migration is begun.
    pub(crate) limit: Duration,
    /// The number of guests at the same time.
    pub(crate) lanes: usize,
    /// The one migration to repeat.
    pub(crate) only: Option<u64>,
}

/// Tries migrations until there were enough or the time is over.
pub(crate) fn attack(asked: &Chaos<'_>) -> Vec<Verdict> {
    let (begun, began, verdicts) = (AtomicU64::new(0), Instant::now(), Mutex::new(Vec::new()));
    let lane = || loop {
        let number = begun.fetch_add(1, Ordering::Relaxed);
        if number >= asked.migrations || began.elapsed() > asked.limit {
            break;
        }
        let plan = Plan::draw(asked.seed, asked.only.unwrap_or(number));
        let verdict = try_plan(&plan, asked.qferry, asked.version);
        let mut verdicts = verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        tell(asked.seed, &verdict, asked.only.is_some());
        verdicts.push(verdict);
    };
    thread::scope(|scope| {
        for _ in 0..asked.lanes {
            scope.spawn(lane);
        }
    });
    let mut verdicts = verdicts.into_inner().unwrap_or_else(PoisonError::into_inner);
    verdicts.sort_by_key(|verdict| verdict.plan.number);
    verdicts
}
