//! When the controller looks again: often where something is about to be decided, rarely where a mirror or a pass over
//! RAM has long to go. One engine may run a thousand migrations, and each look costs both QEMU and the engine.
//!
//! Pure. Events come between two looks and are not waited for here: the end of a pass, a mirror that gets ready, and
//! the guest's stop.

use super::{
    bandwidth::remains_less_than,
    history::History,
    stage::{ConvergenceStage, MirrorProgress},
};
use std::time::Duration;

/// The time to the first looks after mirrors began: RAM may be started beside them as soon as their pace is known.
const FIRST: Duration = Duration::from_millis(60);
/// The time between two looks where the next step is near: mirrors that are ready need some milliseconds until they
/// are in step with the guest.
const NEAR: Duration = Duration::from_millis(20);
/// The time between two looks while only disks are copied: no event tells how far they are. The longer one is for
/// mirrors that have long to go.
const DISKS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];
/// The same while RAM is sent: QEMU decides every 100 ms whether to switch over, and in a pass that has long to go it
/// cannot.
const MEMORY: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];
/// The part of what a mirror or a pass still needs after which it is looked at again.
const PART: f64 = 0.125;
/// RAM that must be held back before it ends may end at this rate, bytes per second: QEMU passes over a GiB of zero
/// pages in a quarter of a second.
const ZERO_PAGES: f64 = 4e9;
/// The time before RAM is held back beside mirrors in which it is looked at as often as where the next step is near,
/// seconds at its fastest pace.
const HOLDS: f64 = 0.15;
/// The time at RAM's begin in which RAM is looked at so often, because its pace is not known yet: QEMU takes some 70
/// ms to begin, and passes over a GiB of zero pages in as many more.
const BEGINS: Duration = Duration::from_millis(300);

impl History {
    /// The time until the next look, unless an event asks for one before.
    pub fn next_look(&self) -> Duration {
        match ConvergenceStage::of(self) {
            ConvergenceStage::Disks(MirrorProgress::Copying) => disks(self),
            ConvergenceStage::Disks(_) => NEAR,
            ConvergenceStage::Overlap { mirrors: MirrorProgress::Ready, trickles: true }
                if self.job.abilities.write_blocking =>
            {
                NEAR
            }
            ConvergenceStage::Overlap { trickles: false, .. } => {
                let begins = self.memory.began().is_none_or(|began| self.since(began) < BEGINS);
                if begins || remains_less_than(self, HOLDS) { NEAR } else { memory(self, ZERO_PAGES) }
            }
            ConvergenceStage::Memory { held: false } => memory(self, 0.0),
            _ => MEMORY[0],
        }
    }

    /// Whether the end of a pass over RAM is worth a look of its own: RAM must be held back before it completes, or the
    /// next look is far away.
    pub fn looks_after_pass(&self) -> bool {
        matches!(ConvergenceStage::of(self), ConvergenceStage::Overlap { .. }) || self.next_look() > MEMORY[0]
    }
}

fn disks(history: &History) -> Duration {
    let copying = || history.disks.values().map(|track| track.estimate()).filter(|disk| !disk.ready);
    if copying().any(|disk| disk.fastest <= 0.0 && !disk.paused) {
        return FIRST;
    }
    // A mirror that does not converge is looked at as usual.
    let least = copying().map(|disk| disk.time_to_ready().unwrap_or_default()).min_by(f64::total_cmp);
    part_of(least.unwrap_or_default() / 1000.0, DISKS)
}

/// RAM is at least as fast as this, bytes per second.
fn memory(history: &History, fastest: f64) -> Duration {
    let fastest = history.memory.peak().max(fastest);
    let left = history.memory.last().map_or(0.0, |ram| ram.remaining as f64);
    part_of(if fastest > 0.0 { left / fastest } else { 0.0 }, MEMORY)
}

/// A part of what is left, seconds, within these bounds.
fn part_of(left: f64, [least, most]: [Duration; 2]) -> Duration {
    Duration::try_from_secs_f64(left * PART).unwrap_or(most).clamp(least, most)
}

#[cfg(test)]
mod tests {
    use crate::convergence::{
        Action, RamSample,
        fixture::{ControllerRun, MIB, job, mirror, policy, ready},
    };

    fn run() -> ControllerRun {
        ControllerRun::new(&policy("converge"), job(), &["a"])
    }

    fn ram(total: u64, remaining: u64) -> RamSample {
        let (total, remaining) = (total * MIB, remaining * MIB);
        let processed = total - remaining;
        RamSample { total, remaining, processed, transferred: processed, syncs: 1, ..RamSample::default() }
    }

    fn next(run: &ControllerRun) -> u128 {
        run.history.next_look().as_millis()
    }

    #[test]
    fn disks_are_looked_at_more_rarely_the_longer_they_still_take() {
        let mut run = run();
        assert_eq!(next(&run), 60, "the pace is not known");
        // 100 MiB/s
        for copied in (0..1000).step_by(50) {
            run.look(500, None, &[mirror("a", 1000, copied)]);
            let eighth = (1000 - copied) * 10 / 8;
            let expected = if copied == 0 { 60 } else { eighth.clamp(250, 1000) };
            let next = next(&run);
            assert!(next.abs_diff(u128::from(expected)) <= 20, "{copied}: {next} ms and not {expected} ms");
        }
        run.look(500, None, &[ready("a", false)]);
        assert_eq!(next(&run), 20);
    }

    #[test]
    fn a_long_pass_is_looked_at_rarely_and_its_end_at_once() {
        let mut run = run();
        run.look(500, None, &[ready("a", true)]);
        run.history.note(&Action::StartMemory);
        assert_eq!(next(&run), 100);
        for (at, remaining) in [8192, 8142, 8092].into_iter().enumerate() {
            run.look(500, Some(ram(8192, remaining)), &[ready("a", true)]);
            assert!(at == 0 || next(&run) == 500, "{remaining}: {}", next(&run));
        }
        assert!(run.history.looks_after_pass());
        run.look(500, Some(ram(8192, 200)), &[ready("a", true)]);
        assert_eq!(next(&run), 100, "little remains");
        assert!(!run.history.looks_after_pass(), "short passes are no matter");
    }

    #[test]
    fn ram_that_is_held_back_may_end_as_fast_as_qemu_passes_over_zero_pages() {
        let mut run = run();
        run.history.note(&Action::HoldMemory);
        run.history.note(&Action::StartMemory);
        run.look(500, Some(ram(8192, 8192)), &[mirror("a", 100_000, 10)]);
        run.look(500, Some(ram(8192, 8142)), &[mirror("a", 100_000, 20)]);
        run.look(500, Some(ram(8192, 8092)), &[mirror("a", 100_000, 30)]);
        let long = next(&run);
        assert!((200..=270).contains(&long), "{long}");
        assert!(run.history.looks_after_pass());
    }

    #[test]
    fn a_look_presses_before_ram_is_held_and_when_it_may_be_let_go() {
        let mut run = run();
        run.history.note(&Action::StartMemory);
        assert_eq!(next(&run), 20, "nothing of RAM was seen yet");
        run.look(500, Some(ram(512, 512)), &[mirror("a", 1000, 10)]);
        assert_eq!(next(&run), 20, "its pace is not known");
        run.look(500, Some(ram(512, 400)), &[mirror("a", 1000, 20)]);
        assert_eq!(next(&run), 100, "there is time for two looks and more at 224 MiB/s");
        run.look(1000, Some(ram(512, 60)), &[mirror("a", 1000, 30)]);
        assert!(next(&run) == 20 && !run.shares().trickles(), "RAM is not held back yet");
        run.look(20, Some(ram(512, 20)), &[mirror("a", 1000, 31)]);
        assert!(next(&run) >= 100 && run.shares().trickles());
        run.look(20, Some(ram(512, 20)), &[ready("a", false)]);
        assert_eq!(next(&run), 20, "the mirror gets in step in some milliseconds");
        run.look(20, Some(ram(512, 20)), &[ready("a", true)]);
        assert_eq!(next(&run), 100);
    }
}
