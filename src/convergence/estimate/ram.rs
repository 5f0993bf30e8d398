//! RAM.
//!
//! Pure. On 10.0 `remaining` falls through a pass and jumps at the sync that ends it, on 11.1 QEMU syncs about ten times a
//! second. What was found dirty between two syncs is what `remaining` grew by plus what was sent meanwhile, on both.

use super::{super::sample::RamSample, BETTER, SmoothedValue, WINDOW};
use serde::Serialize;
use std::collections::VecDeque;

/// How far apart two looks must be for a pace to be taken from them, milliseconds.
const APART: f64 = 50.0;

/// RAM as far as it is known. Bytes and bytes per second; times in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct MemoryEstimate {
    /// Sent over the wire.
    pub bandwidth: f64,
    /// MemoryEstimate taken care of, zero pages and all.
    pub pace: f64,
    /// What the guest dirties, as far as it is found: pages that are still to be sent are not found again.
    pub dirty_rate: f64,
    /// The most that was found dirty at once: memory that is rewritten again and again is at least this much.
    pub working_set: f64,
    /// To send, when it was last counted anew.
    pub fresh: f64,
    /// The least of those counts.
    pub best: f64,
    /// When it was so little for the first time.
    pub best_at: f64,
    /// How often it was counted since, without being better.
    pub worse: u32,
    /// Every page was sent once.
    pub first_pass_over: bool,
}

impl MemoryEstimate {
    /// How the guest's dirtying compares with what is sent: from 1 on it does not converge. None while nothing is known.
    pub fn load(&self) -> Option<f64> {
        (self.pace > 0.0).then(|| self.dirty_rate / self.pace)
    }

    /// Milliseconds until no more than `rest` bytes remain, if all goes on as it does; None if never.
    pub fn time_to(&self, rest: f64, load: f64) -> Option<f64> {
        if self.fresh <= rest {
            return Some(0.0);
        }
        // each pass leaves what was dirtied during it, so the rest shrinks by (1 - load) x pace
        (load < 1.0 && self.pace > 0.0).then(|| (self.fresh - rest) / (self.pace * (1.0 - load)) * 1000.0)
    }
}

/// What is found dirty by error, as a part of what was sent meanwhile.
const NOISE: f64 = 0.05;
/// How many estimates of RAM are kept to tell a trend from a burst.
const RECENT: usize = 32;

/// How RAM's estimate is made.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::convergence) struct MemoryTrack {
    began: Option<f64>,
    last: Option<(f64, RamSample)>,
    /// The sync where the window of the dirty rate began, and what was found dirty and processed since.
    window: (f64, f64, f64),
    /// The most that remained after a sync in the window, and how many syncs there were.
    counted: (f64, u64),
    /// The window holds what was dirtied under other conditions: it ends with the next sync and counts for nothing.
    stale: bool,
    /// Since it was last shared out anew.
    bandwidth: SmoothedValue,
    /// The most that was sent in a window of it, bytes per second; 0 before the first.
    fastest: f64,
    /// Where the window of the bandwidth began: when, and what was transferred.
    sent: (f64, u64),
    dirty: SmoothedValue,
    pace: SmoothedValue,
    /// What is smoothed is of the first pass, which says little of those after it: zero pages are passed over quickly, and
    /// memory that is rewritten is found once however often it was.
    provisional: bool,
    /// The fastest that memory was taken care of, bytes per second, and since when and which count the next pace is measured.
    peak: f64,
    paced: (f64, u64),
    /// When something was last sent.
    moved: f64,
    estimate: MemoryEstimate,
    /// The latest estimates since something was changed, and since when each holds.
    recent: VecDeque<(f64, MemoryEstimate)>,
}

impl MemoryTrack {
    /// When the first sample with RAM was taken.
    pub(in crate::convergence) fn began(&self) -> Option<f64> {
        self.began
    }

    pub(in crate::convergence) fn estimate(&self) -> Option<MemoryEstimate> {
        (self.fastest > 0.0 || self.bandwidth.get().is_some()).then_some(self.estimate)
    }

    /// What the wire carried for RAM with its present share, once that was measured.
    pub(in crate::convergence) fn carried(&self) -> Option<f64> {
        self.bandwidth.get()
    }

    /// The fastest that memory was taken care of, zero pages and all, bytes per second.
    pub(in crate::convergence) fn peak(&self) -> f64 {
        self.peak
    }

    /// When something was last sent.
    pub(in crate::convergence) fn moved(&self) -> f64 {
        self.moved
    }

    /// The most that the wire was seen to carry for RAM.
    pub(in crate::convergence) fn fastest(&self) -> f64 {
        self.fastest
    }

    /// The bandwidth is shared out anew.
    pub(in crate::convergence) fn share_anew(&mut self, at: f64) {
        self.bandwidth = SmoothedValue::default();
        if let Some((_, last)) = self.last {
            self.sent = (at, last.transferred);
        }
        self.forget_rates(at);
    }

    pub(in crate::convergence) fn last(&self) -> Option<RamSample> {
        self.last.map(|(_, sample)| sample)
    }

    pub(in crate::convergence) fn recent(&self) -> impl DoubleEndedIterator<Item = &(f64, MemoryEstimate)> {
        self.recent.iter()
    }

    /// What was measured before no longer holds: the guest is throttled differently now, or the bandwidth is another.
    pub(in crate::convergence) fn forget_rates(&mut self, at: f64) {
        self.dirty = SmoothedValue::default();
        self.pace = SmoothedValue::default();
        self.recent.clear();
        self.stale = true;
        self.estimate.worse = 0;
        self.estimate.best_at = at;
    }

    pub(in crate::convergence) fn add(&mut self, at: f64, now: RamSample) {
        let Some((then, last)) = self.last.replace((at, now)) else {
            (self.began, self.moved) = (Some(at), at);
            self.window = (at, 0.0, 0.0);
            self.sent = (at, now.transferred);
            self.paced = (at, now.processed);
            let all = now.remaining as f64;
            self.estimate = MemoryEstimate { fresh: all, best: all, best_at: at, ..MemoryEstimate::default() };
            return;
        };
        if at <= then {
            return;
        }
        // one per cent is QEMU's own, set up so that it is ready for more
        if now.throttle_pct.abs_diff(last.throttle_pct) > 1 {
            self.forget_rates(at);
        }
        let estimate = &mut self.estimate;
        // where nothing was sent, nothing is known of what can be: a compressor fills its first packets for as long
        if at - self.sent.0 >= WINDOW && now.transferred > self.sent.1 {
            let rate = now.transferred.saturating_sub(self.sent.1) as f64 / (at - self.sent.0) * 1000.0;
            self.bandwidth.add(rate);
            self.fastest = self.fastest.max(rate);
            self.sent = (at, now.transferred);
            estimate.bandwidth = self.bandwidth.get().unwrap_or_default();
        }
        let processed = now.processed.saturating_sub(last.processed) as f64;
        let found = (now.remaining as f64 - last.remaining as f64 + processed).max(0.0);
        self.window.1 += found;
        self.window.2 += processed;
        if now.transferred > last.transferred {
            self.moved = at;
        }
        // a look that comes right after another says little
        if at - self.paced.0 >= APART {
            let taken = now.processed.saturating_sub(self.paced.1) as f64;
            self.peak = self.peak.max(taken / (at - self.paced.0) * 1000.0);
            self.paced = (at, now.processed);
        }
        let first_pass = !estimate.first_pass_over;
        estimate.first_pass_over |= now.processed >= now.total && now.total > 0;
        if let (true, true, Some(measured)) = (first_pass, estimate.first_pass_over, now.measured_dirty_rate) {
            // one pass tells nothing of how fast memory is rewritten; this was measured meanwhile, apart from it
            (estimate.dirty_rate, estimate.pace) = (measured as f64, estimate.bandwidth);
            estimate.fresh = found.max(now.remaining as f64);
            remember(&mut self.recent, self.began.unwrap_or(at), *estimate);
        }
        self.provisional |= first_pass;
        // the counters are not read all at once, so a little is always found
        if now.syncs == last.syncs && found < (processed * NOISE).max(1e6) {
            return;
        }
        self.counted =
            (self.counted.0.max(now.remaining as f64), self.counted.1 + now.syncs.saturating_sub(last.syncs));
        if std::mem::take(&mut self.stale) {
            self.window = (at, 0.0, 0.0);
            self.counted = (0.0, 0);
            estimate.fresh = now.remaining as f64;
            return;
        }
        let elapsed = at - self.window.0;
        if elapsed < WINDOW {
            return;
        }
        estimate.working_set = estimate.working_set.max(self.window.1);
        if std::mem::replace(&mut self.provisional, first_pass) {
            (self.dirty, self.pace) = (SmoothedValue::default(), SmoothedValue::default());
        }
        self.dirty.add(self.window.1 / elapsed * 1000.0);
        self.pace.add(self.window.2 / elapsed * 1000.0);
        estimate.dirty_rate = self.dirty.get().unwrap_or_default();
        estimate.pace = self.pace.get().unwrap_or_default();
        // the counts were a while ago, and a part of what was found then has been sent since
        let (most, counts) = std::mem::take(&mut self.counted);
        estimate.fresh = most.max(self.window.1 / counts.max(1) as f64).min(now.total as f64);
        if !first_pass {
            // what was sent once and is to be sent again was rewritten, all of it
            estimate.working_set = estimate.working_set.max(estimate.fresh);
        }
        let since = self.window.0;
        self.window = (at, 0.0, 0.0);
        if estimate.fresh <= estimate.best * BETTER {
            (estimate.best, estimate.best_at, estimate.worse) = (estimate.fresh, at, 0);
        } else {
            estimate.worse += 1;
        }
        remember(&mut self.recent, since, *estimate);
    }
}

/// Keeps an estimate and since when it holds, in place of the oldest where there are enough.
fn remember(recent: &mut VecDeque<(f64, MemoryEstimate)>, since: f64, estimate: MemoryEstimate) {
    if recent.len() == RECENT {
        recent.pop_front();
    }
    recent.push_back((since, estimate));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::fixture::{GuestRam, MIB, in_mib, near};

    fn watched(ram: &mut GuestRam, from: u64, to: u64, track: &mut MemoryTrack) -> MemoryEstimate {
        for look in from / 100..to / 100 {
            let sample = ram.after(100);
            if ram.count < 10.0 {
                // QEMU would stop the guest about here
                break;
            }
            track.add((look * 100 + 100) as f64, sample);
        }
        track.estimate().expect("an estimate")
    }

    #[test]
    fn both_ways_of_counting_come_to_the_same() {
        for continuous in [false, true] {
            for (dirtied, working_set) in [(50.0, 400.0), (50.0, 128.0), (80.0, 128.0), (20.0, 300.0)] {
                let (mut ram, mut track) = (GuestRam::new(dirtied, working_set, continuous), MemoryTrack::default());
                let first = watched(&mut ram, 0, 4000, &mut track);
                assert!(!first.first_pass_over && near(in_mib(first.bandwidth), 100.0, 0.02), "{first:?}");
                let memory = watched(&mut ram, 4000, 14_000, &mut track);
                let told = format!("{dirtied} of {working_set}, {continuous}: {memory:?}");
                assert!(memory.first_pass_over, "{told}");
                assert!(near(in_mib(memory.bandwidth), 100.0, 0.05), "{told}");
                // with many counts a pass less is found, for what is still to be sent is not found again
                let tolerance = if continuous { 0.3 } else { 0.2 };
                assert!(near(in_mib(memory.dirty_rate), dirtied, tolerance), "{told}");
                // it can only be seen as far as it was dirtied between two counts
                let seen = in_mib(memory.working_set);
                assert!(seen <= working_set * 1.02 && seen >= working_set.min(dirtied) * 0.6, "{told}");
                assert!(memory.load().is_some_and(|load| near(load, dirtied / 100.0, tolerance)), "{told}");
                assert!(memory.best <= memory.working_set, "{told}");
            }
        }
    }

    #[test]
    fn a_guest_that_dirties_more_than_is_sent_is_seen_to() {
        for continuous in [false, true] {
            let (mut ram, mut track) = (GuestRam::new(200.0, 128.0, continuous), MemoryTrack::default());
            let memory = watched(&mut ram, 0, 14_000, &mut track);
            // all that is sent is found dirty again: more cannot be found
            assert!(memory.load().is_some_and(|load| load > 0.9), "{continuous}: {memory:?}");
            assert!(memory.time_to(1e6, 1.0).is_none() && memory.worse > 2, "{continuous}: {memory:?}");
        }
    }

    #[test]
    fn zero_pages_of_the_first_pass_say_nothing_of_the_next() {
        let mut track = MemoryTrack::default();
        let sample = |processed: u64, remaining: u64, transferred: u64, syncs| RamSample {
            processed: processed * MIB,
            remaining: remaining * MIB,
            transferred: transferred * MIB,
            total: 512 * MIB,
            syncs,
            ..RamSample::default()
        };
        track.add(0.0, sample(0, 512, 0, 1));
        track.add(1000.0, sample(512, 60, 100, 2));
        let first = track.estimate().expect("an estimate");
        assert!(near(in_mib(first.pace), 512.0, 0.01) && near(in_mib(first.bandwidth), 100.0, 0.01), "{first:?}");
        track.add(1600.0, sample(572, 54, 160, 3));
        let next = track.estimate().expect("an estimate");
        assert!(near(in_mib(next.pace), 100.0, 0.01) && near(in_mib(next.dirty_rate), 90.0, 0.01), "{next:?}");
    }

    #[test]
    fn what_sends_nothing_yet_says_nothing_of_the_bandwidth() {
        let mut track = MemoryTrack::default();
        let sample = |transferred: u64| RamSample { transferred, remaining: MIB, total: MIB, ..RamSample::default() };
        for look in 0..10 {
            track.add(look as f64 * 100.0, sample(0));
            assert_eq!((track.carried(), track.estimate()), (None, None));
        }
        track.add(1000.0, sample(MIB));
        assert!(track.carried().is_some_and(|carried| near(in_mib(carried), 1.0, 0.01)), "{track:?}");
    }

    #[test]
    fn what_was_dirtied_under_other_conditions_counts_for_nothing() {
        for continuous in [false, true] {
            for by_hand in [false, true] {
                let (mut ram, mut track) = (GuestRam::new(150.0, 128.0, continuous), MemoryTrack::default());
                let before = watched(&mut ram, 0, 7000, &mut track);
                ram.throttle = if by_hand { 0 } else { 70 };
                if by_hand {
                    ram.dirtied = 45.0;
                    track.share_anew(7000.0);
                    assert!(track.carried().is_none() && track.estimate().is_some());
                }
                let after = watched(&mut ram, 7000, 12_000, &mut track);
                assert!(in_mib(before.dirty_rate) > 60.0, "{before:?}");
                assert!(near(in_mib(after.dirty_rate), 45.0, 0.3), "{continuous}, {by_hand}: {after:?}");
                assert!(track.carried().is_some() && near(in_mib(track.fastest()), 100.0, 0.05));
            }
        }
    }

    #[test]
    fn no_more_estimates_are_kept_than_a_trend_needs() {
        // a measurement beside the first pass comes when there are enough already
        let mut track = MemoryTrack::default();
        for look in 0..200u64 {
            let processed = look * 4 * MIB;
            track.add(
                look as f64 * 250.0,
                RamSample {
                    transferred: processed,
                    processed,
                    remaining: 800 * MIB - processed.min(400 * MIB),
                    total: 400 * MIB,
                    measured_dirty_rate: Some(MIB),
                    syncs: look,
                    ..RamSample::default()
                },
            );
        }
        assert!(track.estimate().is_some_and(|memory| memory.first_pass_over));
        assert_eq!(track.recent().count(), RECENT);
    }
}
