//! There and back, over and over, with faults at random.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use qferry_bed::{Random, Side};

use super::cell::{Cell, clean, run};
use super::fault::Fault;
use super::judge::Standing;
use super::point::Point;
use super::stage::Stage;

/// The span of the moments of faults, in lengths of a migration.
const BEYOND: f64 = 1.1;
/// One in this many migrations has no fault.
const CLEAN: u64 = 5;
/// The faults and their weights. To replace a guest that died with its QEMU takes longer than a migration, so such
/// faults are rare.
const FAULTS: [(Fault, u64); 9] = [
    (Fault::Killed(Side::Destination), 6),
    (Fault::Thawed, 3),
    (Fault::MigrationCut, 4),
    (Fault::NbdCut, 4),
    (Fault::NbdHole, 1),
    (Fault::EngineKilled, 4),
    (Fault::Cut(Side::Source), 1),
    (Fault::Cut(Side::Destination), 1),
    (Fault::Killed(Side::Source), 1),
];

/// The arguments of a soak.
pub(crate) struct Soak<'a> {
    pub(crate) qferry: &'a Path,
    pub(crate) version: &'a str,
    pub(crate) seed: u64,
    /// The number of migrations.
    pub(crate) migrations: usize,
    /// The time after which no further migration is begun.
    pub(crate) limit: Duration,
    /// The number of guests at the same time.
    pub(crate) lanes: usize,
    /// The faults that are left out.
    pub(crate) without: &'a [Fault],
}

/// The results of a soak.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) migrations: usize,
    pub(crate) moved: usize,
    pub(crate) back: usize,
    /// The guest died with its QEMU.
    pub(crate) nowhere: usize,
    /// Faults that struck.
    pub(crate) struck: usize,
    /// The longest pause of a guest.
    pub(crate) stood: Duration,
    pub(crate) wrong: Vec<String>,
}

/// Migrates as often as asked, or until the time is over or something is wrong.
pub(crate) fn soak(asked: &Soak<'_>, tell: &(dyn Fn(usize, &Cell) + Sync)) -> Tally {
    let (begun, tally, began) = (AtomicUsize::new(0), Mutex::new(Tally::default()), Instant::now());
    let lane = || {
        let mut stage = Stage::new(asked.qferry, asked.version);
        let mut typical = Duration::from_millis(800);
        loop {
            let number = begun.fetch_add(1, Ordering::Relaxed);
            if number >= asked.migrations || began.elapsed() > asked.limit {
                break;
            }
            // Each migration has a seed of its own, so that one lane does not depend on another.
            let mut random = Random::part_of(asked.seed, number as u64);
            if random.below(CLEAN) == 0 {
                let done = clean(&mut stage);
                if let Ok([first, .., last]) = done.as_deref() {
                    typical = (typical + (last.at - first.at).min(typical * 2)) / 2;
                }
                let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                tally.migrations += 1;
                match done {
                    Ok(_) => tally.moved += 1,
                    Err(error) => {
                        tally.wrong.push(format!("migration {number}: {error}"));
                        stage.abandon();
                    }
                }
                continue;
            }
            let fault = random.weighed(&faults(asked.without));
            let point = Point::Moment(typical.mul_f64(random.part() * BEYOND));
            let cell = run(&mut stage, fault, &point, false);
            tell(number, &cell);
            tally.lock().unwrap_or_else(PoisonError::into_inner).add(number, &cell);
        }
        if let Err(error) = stage.retire() {
            tally.lock().unwrap_or_else(PoisonError::into_inner).wrong.push(format!("at the end: {error}"));
        }
    };
    thread::scope(|scope| {
        for _ in 0..asked.lanes {
            scope.spawn(lane);
        }
    });
    tally.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    fn add(&mut self, number: usize, cell: &Cell) {
        self.migrations += 1;
        self.struck += usize::from(cell.struck);
        match cell.standing {
            Some(Standing::OnDestination) => self.moved += 1,
            Some(Standing::OnSource) => self.back += 1,
            Some(Standing::Nowhere(_)) => self.nowhere += 1,
            None => {}
        }
        self.stood = self.stood.max(cell.stood.unwrap_or_default());
        let told = |wrong: &String| format!("migration {number}: {} {}: {wrong}", cell.fault.name(), cell.point);
        self.wrong.extend(cell.wrong.iter().map(told));
    }
}

/// The faults with their weights, but those that are left out.
fn faults(without: &[Fault]) -> Vec<(Fault, u64)> {
    FAULTS.into_iter().filter(|(fault, _)| !without.contains(fault)).collect()
}
