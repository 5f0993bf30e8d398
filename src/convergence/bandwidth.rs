//! The ceiling on the wire, and how it is divided between RAM and the mirrors.
//!
//! Pure.

use super::{
    ConvergenceJob,
    history::History,
    sample::RamSample,
    shares::{BandwidthShares, MemoryShare},
    stage::ConvergenceStage,
};
use crate::quantity::Rate;
use std::collections::BTreeMap;

/// The weight of a favoured mirror against another.
const FAVOUR: u64 = 4;
/// The least part of the ceiling that RAM gets, however much the guest writes to its disks.
const LEAST: f64 = 0.25;
/// The part of the ceiling by which RAM's share must be off before it is changed. A share that follows every sample
/// would never let the rates that depend on it settle.
const HYSTERESIS: f64 = 0.125;
/// RAM gets a trickle only once less remains than is sent in this time at RAM's fastest pace, seconds: several looks
/// must fit in between.
const RESERVE: f64 = 0.05;
/// The least that is kept back for the trickle: a part of the guest's memory, up to so many bytes. The fastest pace
/// may be yet to come, for QEMU passes over a GiB of zero pages in less than a second.
const LAST: f64 = 1.0 / 16.0;
const LAST_BYTES: f64 = 536_870_912.0;

impl History {
    /// The history of a migration that has not begun. `disks` are the names of the disks that will be mirrored.
    pub fn new(job: ConvergenceJob, disks: impl IntoIterator<Item = String>) -> Self {
        let mut new = Self::without_shares(job, disks);
        new.applied.shares = shares(&new);
        new
    }
}

/// The shares that fit the present stage.
pub(super) fn shares(history: &History) -> BandwidthShares {
    let job = &history.job;
    let stage = ConvergenceStage::of(history);
    let memory = memory_share(history, stage);
    let left = match (stage, memory, job.ceiling) {
        (ConvergenceStage::Overlap { .. }, MemoryShare::Limited(memory), Some(ceiling)) => {
            Some(Rate(ceiling.0.saturating_sub(memory.0)))
        }
        (_, _, ceiling) => ceiling,
    };
    let for_mirrors = [left, job.disk_ceiling].into_iter().flatten().min();
    BandwidthShares { memory, mirrors: mirror_shares(history, for_mirrors) }
}

fn memory_share(history: &History, stage: ConvergenceStage) -> MemoryShare {
    let ceiling = history.job.ceiling;
    let share = match (stage, ceiling) {
        (ConvergenceStage::Overlap { trickles, .. }, _)
            if trickles || history.stands || remains_less_than(history, 0.0) =>
        {
            return MemoryShare::Trickle;
        }
        (_, None) => return MemoryShare::Unlimited,
        (ConvergenceStage::Overlap { .. }, Some(ceiling)) => beside_mirrors(history, ceiling),
        (_, Some(ceiling)) => {
            // the guest's writes go over the same wire, through mirrors that are ready
            let written: f64 = history.disks.values().map(|disk| disk.estimate().write_rate).sum();
            at_least(ceiling, ceiling.0 as f64 - written)
        }
    };
    match (history.applied.shares.memory, ceiling) {
        (MemoryShare::Limited(old), Some(ceiling))
            if (share.0 as f64 - old.0 as f64).abs() < ceiling.0 as f64 * HYSTERESIS =>
        {
            MemoryShare::Limited(old)
        }
        _ => MemoryShare::Limited(share),
    }
}

/// The share of each mirror in the rate that all of them may have.
fn mirror_shares(history: &History, all: Option<Rate>) -> BTreeMap<String, Option<Rate>> {
    // a mirror that is ready carries only the guest's writes: the mirrors that still copy get its part
    let is_any_copying = history.disks.values().any(|track| !track.estimate().ready);
    let weight = |disk: &String| if history.applied.favoured.contains(disk) { FAVOUR } else { 1 };
    let takes_part =
        |disk: &String| !is_any_copying || history.disks.get(disk).is_some_and(|track| !track.estimate().ready);
    let weights: u64 = history.disks.keys().filter(|&disk| takes_part(disk)).map(weight).sum();
    let count = u64::try_from(history.disks.len()).unwrap_or(u64::MAX);
    let part = |disk: &String, all: Rate| match takes_part(disk) {
        true => all.0 / weights.max(1) * weight(disk),
        false => all.0 / count.max(1),
    };
    // a speed of 0 would mean no limit
    history.disks.keys().map(|disk| (disk.clone(), all.map(|all| Rate(part(disk, all).max(1))))).collect()
}

/// The part of the ceiling that the mirrors leave for RAM.
fn beside_mirrors(history: &History, ceiling: Rate) -> Rate {
    let copied: f64 = history.disks.values().map(|disk| disk.estimate().rate).sum();
    at_least(ceiling, ceiling.0 as f64 - copied)
}

/// Whether RAM could end before the second look from now on, plus so many seconds at its fastest pace. The guest would
/// then stand still for as long as the mirrors still need.
pub(super) fn remains_less_than(history: &History, seconds: f64) -> bool {
    let peak = history.memory.peak();
    let reserve = |ram: RamSample| (peak * RESERVE).max((ram.total as f64 * LAST).min(LAST_BYTES));
    history.memory.last().is_some_and(|ram| (ram.remaining as f64) < reserve(ram) + peak * seconds)
}

fn at_least(ceiling: Rate, rate: f64) -> Rate {
    Rate(rate.max(ceiling.0 as f64 * LEAST).max(1.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        convergence::{
            Action,
            fixture::{ControllerRun, job, mib, mirror, policy, ready},
        },
        quantity::Rate,
    };

    fn run(ceiling: Option<u64>, disk_ceiling: Option<u64>, disks: &[&str]) -> ControllerRun {
        let mut job = job();
        (job.ceiling, job.disk_ceiling) = (ceiling.map(mib), disk_ceiling.map(mib));
        ControllerRun::new(&policy("converge"), job, disks)
    }

    fn mirrors(run: &ControllerRun) -> Vec<Option<Rate>> {
        run.shares().mirrors.values().copied().collect()
    }

    #[test]
    fn without_a_ceiling_there_is_nothing_to_share() {
        assert_eq!(mirrors(&run(None, None, &["a", "b"])), [None, None]);
        assert_eq!(run(None, None, &[]).shares().memory, MemoryShare::Unlimited);
    }

    #[test]
    fn one_ceiling_is_divided() {
        assert_eq!(mirrors(&run(Some(90), None, &["a", "b", "c"])), [Some(mib(30)); 3]);
        assert_eq!(mirrors(&run(Some(90), Some(60), &["a", "b"])), [Some(mib(30)); 2]);
        assert_eq!(mirrors(&run(None, Some(60), &["a", "b"])), [Some(mib(30)); 2]);
        assert_eq!(run(Some(90), None, &[]).shares().memory, MemoryShare::Limited(mib(90)));
    }

    #[test]
    fn no_share_is_nothing_at_all() {
        let mut tiny = run(None, None, &["a", "b", "c"]);
        tiny.history.job.ceiling = Some(Rate(1));
        let shares = shares(&tiny.history);
        let all = shares.mirrors.into_values().chain([shares.memory.rate()]);
        assert!(all.into_iter().all(|rate| rate.is_some_and(|rate| rate.0 > 0)));
    }

    #[test]
    fn a_mirror_that_is_ready_gives_its_part_away() {
        let mut run = run(Some(90), None, &["a", "b", "c"]);
        run.look(250, None, &[mirror("a", 100, 10), mirror("b", 100, 10), ready("c", false)]);
        assert_eq!(mirrors(&run), [Some(mib(45)), Some(mib(45)), Some(mib(30))]);
    }

    #[test]
    fn a_favoured_mirror_gets_more() {
        let mut run = run(Some(100), None, &["a", "b"]);
        run.history.note(&Action::Favour("b".to_owned()));
        assert_eq!(shares(&run.history).mirrors.into_values().collect::<Vec<_>>(), [Some(mib(20)), Some(mib(80))]);
    }

    /// RAM beside a mirror: 512 MiB of which so much remains.
    fn ram(remaining: u64) -> RamSample {
        let total = mib(512).0;
        let done = total - mib(remaining).0;
        RamSample {
            transferred: done,
            processed: done,
            remaining: mib(remaining).0,
            total,
            syncs: 1,
            ..Default::default()
        }
    }

    #[test]
    fn ram_waits_for_the_mirrors_and_is_let_go_after() {
        for ceiling in [None, Some(200)] {
            let mut run = run(ceiling, None, &["a"]);
            run.history.note(&Action::StartMemory);
            run.look(500, Some(ram(512)), &[mirror("a", 1000, 10)]);
            run.look(500, Some(ram(400)), &[mirror("a", 1000, 60)]);
            assert!(!run.shares().trickles());
            // less than a sixteenth is left
            run.look(500, Some(ram(30)), &[mirror("a", 1000, 110)]);
            assert!(run.shares().trickles());
            // RAM stays held, however much is found dirty
            run.look(500, Some(ram(300)), &[mirror("a", 1000, 160)]);
            assert!(run.shares().trickles());
            // a ready mirror is not enough where QEMU can block writes
            run.look(500, Some(ram(300)), &[ready("a", false)]);
            assert!(run.shares().trickles());
            run.look(500, Some(ram(300)), &[ready("a", true)]);
            assert_eq!(run.shares().memory.rate(), ceiling.map(mib));
            assert!(!run.shares().trickles());
        }
    }

    #[test]
    fn ram_of_a_guest_that_stands_is_held_until_the_mirrors_are_in_step() {
        let mut run = run(None, None, &["a"]);
        run.history.note(&Action::HoldMemory);
        run.history.note(&Action::StartMemory);
        run.look(500, Some(ram(512)), &[mirror("a", 1000, 10)]);
        assert!(!run.shares().trickles());
        run.stands = true;
        run.look(20, Some(ram(500)), &[mirror("a", 1000, 11)]);
        assert!(run.shares().trickles(), "however much remains");
        // the owner may come and go
        run.stands = false;
        run.look(500, Some(ram(500)), &[mirror("a", 1000, 60)]);
        assert!(run.shares().trickles());
        run.stands = true;
        run.look(500, Some(ram(499)), &[ready("a", false)]);
        assert!(run.shares().trickles());
        let decision = run.look(20, Some(ram(499)), &[ready("a", true)]);
        assert!(!run.shares().trickles() && decision.actions.contains(&Action::ReleaseMemory), "{decision:?}");
    }

    #[test]
    fn a_share_does_not_follow_every_sample() {
        let mut run = run(Some(200), None, &["a"]);
        run.history.note(&Action::StartMemory);
        let mut offset = 0;
        let mut changes = 0;
        for look in 0..40u64 {
            // 20 MiB in half a second, and a little more or less
            offset += 20 + look % 3;
            let decision = run.look(500, Some(ram(500)), &[mirror("a", 4000, offset)]);
            changes += decision.actions.iter().filter(|action| matches!(action, Action::ShareBandwidth(_))).count();
        }
        assert!(changes <= 3, "{changes}");
        let memory = run.shares().memory.rate().expect("a ceiling");
        assert!(memory > mib(130) && memory <= mib(170), "{memory}");
    }

    #[test]
    fn the_guests_writes_are_left_room_for() {
        let mut run = run(Some(100), None, &["a"]);
        for second in 0..10u64 {
            let mut mirror = ready("a", true);
            mirror.written = second * mib(40).0;
            run.look(1000, Some(ram(400)), &[mirror]);
        }
        let memory = run.shares().memory.rate().expect("a ceiling");
        assert!(memory >= mib(50) && memory <= mib(70), "{memory}");
    }
}
