//! How one ceiling is divided between the mirrors and RAM.
//!
//! Pure.

use super::{
    estimate::DiskEstimate,
    history::{BandwidthShares, History},
    millis,
    sample::RamSample,
};
use crate::quantity::Rate;
use std::collections::BTreeMap;

/// What RAM is held back to while a mirror is not ready yet: a page in each of QEMU's windows of 100 ms. 0 would be no limit.
pub const HELD: Rate = Rate(4096);
/// The bandwidth with which no more than a byte would fit into a downtime limit of 1 ms: QEMU reckons in bytes a millisecond.
/// (With a limit of 0 it would not count anew before it stops the guest, and stop it with all that was dirtied since.)
pub(super) const NOTHING: Rate = Rate(1000);
/// What a mirror may always be behind its guest by, bytes: one that had little to do has not shown how fast it is.
const LITTLE: f64 = 1048576.0;
/// The part of the budget that a mirror may be behind its guest by, where it cannot be kept in step.
const BEHIND: f64 = 0.25;
/// How much more a favoured mirror gets than another.
const FAVOUR: u64 = 4;
/// The least part of the ceiling that RAM gets however much the guest writes to its disks.
const LEAST: f64 = 0.25;
/// By which part of the ceiling a share must be off before it is changed: a share that follows every sample settles nowhere.
const HYSTERESIS: f64 = 0.125;
/// For how much of its fastest pace RAM is held back before its end, seconds: several looks at it must come in between.
const RESERVE: f64 = 0.05;
/// The least that it is held back for: a part of the guest's memory, and bytes. Its fastest pace may be yet to come, for zero
/// pages are passed over by the GiB in a second.
const LAST: f64 = 1.0 / 16.0;
const LAST_BYTES: f64 = 536_870_912.0;
/// For how much of its fastest pace before that it is looked at more often, seconds: else there are ten looks a second.
const NEAR: f64 = 0.15;

/// How the ceiling is shared out, as far as things stand.
pub(super) fn share(history: &History) -> BandwidthShares {
    let job = &history.job;
    let waiting = !is_ready(history);
    let overlapped = is_overlapped(history);
    let memory = match (overlapped, job.ceiling) {
        (true, _) if is_held(history) => Some(HELD),
        (_, None) => None,
        (true, Some(ceiling)) => Some(room(history, ceiling)),
        (false, Some(ceiling)) => {
            let written: f64 = history.disks.values().map(|disk| disk.estimate().write_rate).sum();
            Some(at_least(ceiling, ceiling.0 as f64 - written))
        }
    };
    let memory = match (memory, history.applied.share.memory, job.ceiling) {
        // near enough to what it is
        (Some(new), Some(old), Some(ceiling)) if new != HELD && old != HELD => {
            let off = (new.0 as f64 - old.0 as f64).abs();
            Some(if off < ceiling.0 as f64 * HYSTERESIS { old } else { new })
        }
        (new, _, _) => new,
    };
    // what RAM has beside them is not theirs
    let left = match (overlapped, memory, job.ceiling) {
        (true, Some(memory), Some(ceiling)) => Some(Rate(ceiling.0.saturating_sub(memory.0))),
        (_, _, ceiling) => ceiling,
    };
    let for_mirrors = [left, job.disk_ceiling].into_iter().flatten().min();
    let weight = |disk: &str| if history.applied.favoured.iter().any(|name| name == disk) { FAVOUR } else { 1 };
    // those that are ready only carry what the guest writes: once one is, the others get its part
    let takes_part = |disk: &String| !waiting || history.disks.get(disk).is_some_and(|track| !track.estimate().ready);
    let all: u64 = history.disks.keys().filter(|&disk| takes_part(disk)).map(|disk| weight(disk)).sum();
    let mirrors: BTreeMap<String, Option<Rate>> = history
        .disks
        .keys()
        .map(|disk| {
            let equal = u64::try_from(history.disks.len()).unwrap_or(u64::MAX);
            let part = |total: Rate| match takes_part(disk) {
                true => total.0 / all.max(1) * weight(disk),
                false => total.0 / equal.max(1),
            };
            // 0 would mean no limit
            (disk.clone(), for_mirrors.map(|total| Rate(part(total).max(1))))
        })
        .collect();
    BandwidthShares { memory, mirrors }
}

/// Every mirror has caught up once.
fn is_ready(history: &History) -> bool {
    history.disks.values().all(|track| track.estimate().ready)
}

/// RAM is sent beside mirrors that it has to wait for.
fn is_overlapped(history: &History) -> bool {
    history.applied.memory_since.is_some() && !is_settled(history)
}

/// Every mirror is ready, and none can fall behind any more where QEMU can see to that.
pub(super) fn is_settled(history: &History) -> bool {
    history.disks.values().all(|track| {
        let disk = track.estimate();
        disk.ready && if history.job.abilities.write_blocking { disk.synced } else { is_close(history, &disk) }
    })
}

/// Whether a mirror is so little behind its guest that the rest can be copied with the guest stopped.
pub(super) fn is_close(history: &History, disk: &DiskEstimate) -> bool {
    disk.remaining <= LITTLE || disk.behind() <= millis(history.job.budget) * BEHIND
}

/// What the mirrors leave of a ceiling.
pub(super) fn room(history: &History, ceiling: Rate) -> Rate {
    let copied: f64 = history.disks.values().map(|disk| disk.estimate().rate).sum();
    at_least(ceiling, ceiling.0 as f64 - copied)
}

/// Whether RAM is so far that it must wait for the mirrors: with the rest it could be through before it is looked at again,
/// and then the guest would stand still for as long as they need.
fn is_held(history: &History) -> bool {
    let held = history.applied.share.memory == Some(HELD);
    held || history.memory.last().is_some_and(|now| (now.remaining as f64) < reserve(history, now.total))
}

/// What of RAM is held back beside mirrors that are not ready, bytes.
fn reserve(history: &History, total: u64) -> f64 {
    (history.memory.peak() * RESERVE).max((total as f64 * LAST).min(LAST_BYTES))
}

/// Whether a look is worth more than the usual ten a second: RAM is about to be held back for the mirrors, which must not come
/// too late, or waits for nothing but that they get in step with their guest.
pub(super) fn is_pressing(history: &History) -> bool {
    if !is_overlapped(history) {
        return false;
    }
    if history.applied.share.memory == Some(HELD) {
        return history.job.abilities.write_blocking && is_ready(history);
    }
    let near = |now: RamSample| reserve(history, now.total) + history.memory.peak() * NEAR;
    history.memory.last().is_some_and(|now| (now.remaining as f64) < near(now))
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
        run.share().mirrors.values().copied().collect()
    }

    #[test]
    fn without_a_ceiling_there_is_nothing_to_share() {
        assert_eq!(mirrors(&run(None, None, &["a", "b"])), [None, None]);
        assert_eq!(run(None, None, &[]).share().memory, None);
    }

    #[test]
    fn one_ceiling_is_divided() {
        assert_eq!(mirrors(&run(Some(90), None, &["a", "b", "c"])), [Some(mib(30)); 3]);
        assert_eq!(mirrors(&run(Some(90), Some(60), &["a", "b"])), [Some(mib(30)); 2]);
        assert_eq!(mirrors(&run(None, Some(60), &["a", "b"])), [Some(mib(30)); 2]);
        assert_eq!(run(Some(90), None, &[]).share().memory, Some(mib(90)));
    }

    #[test]
    fn no_share_is_nothing_at_all() {
        let mut tiny = run(None, None, &["a", "b", "c"]);
        tiny.history.job.ceiling = Some(Rate(1));
        let share = share(&tiny.history);
        assert!(share.mirrors.values().chain([&share.memory]).all(|rate| rate.is_some_and(|rate| rate.0 > 0)));
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
        assert_eq!(share(&run.history).mirrors.into_values().collect::<Vec<_>>(), [Some(mib(20)), Some(mib(80))]);
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
            assert_ne!(run.share().memory, Some(HELD));
            // a sixteenth is left
            run.look(500, Some(ram(30)), &[mirror("a", 1000, 110)]);
            assert_eq!(run.share().memory, Some(HELD));
            // and it stays held, however much is found dirty
            run.look(500, Some(ram(300)), &[mirror("a", 1000, 160)]);
            assert_eq!(run.share().memory, Some(HELD));
            // ready is not enough where no write may be behind
            run.look(500, Some(ram(300)), &[ready("a", false)]);
            assert_eq!(run.share().memory, Some(HELD));
            run.look(500, Some(ram(300)), &[ready("a", true)]);
            assert_eq!(run.share().memory, ceiling.map(mib));
        }
    }

    #[test]
    fn a_look_presses_before_ram_is_held_and_when_it_may_be_let_go() {
        let mut run = run(None, None, &["a"]);
        run.history.note(&Action::StartMemory);
        run.look(500, Some(ram(512)), &[mirror("a", 1000, 10)]);
        run.look(500, Some(ram(400)), &[mirror("a", 1000, 20)]);
        assert!(!run.history.is_pressing(), "there is time for two looks and more at 224 MiB/s");
        run.look(1000, Some(ram(60)), &[mirror("a", 1000, 30)]);
        assert!(run.history.is_pressing() && run.share().memory.is_none(), "it is not held yet");
        run.look(20, Some(ram(20)), &[mirror("a", 1000, 31)]);
        assert!(!run.history.is_pressing() && run.share().memory == Some(HELD));
        run.look(20, Some(ram(20)), &[ready("a", false)]);
        assert!(run.history.is_pressing(), "the mirror gets in step in some milliseconds");
        run.look(20, Some(ram(20)), &[ready("a", true)]);
        assert!(!run.history.is_pressing());
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
        let memory = run.share().memory.expect("a ceiling");
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
        let memory = run.share().memory.expect("a ceiling");
        assert!(memory >= mib(50) && memory <= mib(70), "{memory}");
    }
}
