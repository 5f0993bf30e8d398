//! The estimate of RAM.
//!
//! Pure. `remaining` falls through a pass and jumps at the sync that ends the pass; where the rest seems to fit into
//! the downtime limit, QEMU syncs within a pass, too (10.0.13 and 11.1.3 alike). The bytes found dirty between two
//! syncs are the growth of `remaining` plus the bytes sent meanwhile.

use super::{super::sample::RamSample, BETTER, CounterMark, SmoothedValue, WINDOW, measured::MeasuredRates};
use crate::quantity::Bytes;
use serde::Serialize;
use std::{collections::VecDeque, time::Duration};

/// The least time between two looks for a pace to be taken from them.
const APART: Duration = Duration::from_millis(15);
/// The part of the bytes sent meanwhile that may be found dirty by error, and the least of it, bytes: QEMU's counters
/// are not read all at once.
const NOISE: f64 = 0.05;
const LEAST_NOISE: f64 = 1e6;
/// The number of estimates that are kept to tell a trend from a burst.
const RECENT: usize = 32;

/// RAM as far as it is known. Sizes are bytes, rates bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct MemoryEstimate {
    /// The rate over the wire.
    pub bandwidth: f64,
    /// The rate at which memory is processed, zero pages included.
    pub pace: f64,
    /// The rate at which pages are found dirty. A page that is still to be sent is not found again, so the guest may
    /// dirty more.
    pub dirty_rate: f64,
    /// The most that was found dirty at once: the guest rewrites at least so much again and again.
    pub working_set: f64,
    /// The bytes to send at the last count.
    pub fresh: f64,
    /// The least of those counts.
    pub best: f64,
    /// The moment of that count, since the migration began.
    pub best_at: Duration,
    /// The number of counts since then, none of them better.
    pub worse: u32,
    /// Every page was sent once.
    pub first_pass_over: bool,
}

impl MemoryEstimate {
    /// The guest's dirtying as a part of the pace: from 1 on RAM does not converge. `None` while nothing is known.
    pub fn load(&self) -> Option<f64> {
        (self.pace > 0.0).then(|| self.dirty_rate / self.pace)
    }

    /// Milliseconds until no more than `rest` bytes remain, if nothing changes; `None` if never.
    pub fn time_to(&self, rest: f64, load: f64) -> Option<f64> {
        if self.fresh <= rest {
            return Some(0.0);
        }
        // each pass leaves the pages that were dirtied during it, so the rest shrinks by (1 - load) x pace
        (load < 1.0 && self.pace > 0.0).then(|| (self.fresh - rest) / (self.pace * (1.0 - load)) * 1000.0)
    }
}

/// The samples of RAM, folded into an estimate.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::convergence) struct MemoryTrack {
    began: Option<Duration>,
    last: Option<RamLook>,
    dirtied: DirtyWindow,
    /// The window holds pages that were dirtied under other conditions: it ends with the next sync and counts for
    /// nothing.
    stale: bool,
    /// The bandwidth since RAM's share was last changed.
    bandwidth: SmoothedValue,
    /// The highest bandwidth of a window, bytes per second; 0 before the first.
    fastest: f64,
    /// The same with RAM's present share, without the first window, in which buffers are filled.
    capacity: f64,
    /// The begin of the window of the bandwidth.
    transferred: CounterMark,
    dirty_rate: SmoothedValue,
    pace: SmoothedValue,
    /// The smoothed rates are those of the first pass, which say little of later passes: zero pages are passed over
    /// quickly, and memory that is rewritten is found once however often it was rewritten.
    provisional: bool,
    /// A sync was seen since RAM was started.
    synced: bool,
    /// More than one sync was seen in the first pass.
    syncs_within: bool,
    /// The fastest pace between two looks, bytes per second.
    peak: f64,
    /// The begin of the window of that pace.
    processed: CounterMark,
    /// The moment when something was last sent.
    moved: Duration,
    estimate: MemoryEstimate,
    /// The latest estimates since conditions changed.
    recent: VecDeque<DatedEstimate>,
    measured: MeasuredRates,
}

/// A sample of RAM and its moment.
#[derive(Debug, Clone, Copy, PartialEq)]
struct RamLook {
    at: Duration,
    ram: RamSample,
}

/// An estimate and the begin of the window that it comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::convergence) struct DatedEstimate {
    pub(in crate::convergence) since: Duration,
    pub(in crate::convergence) memory: MemoryEstimate,
}

/// The window from which a dirty rate is taken. It begins and ends with a sync.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct DirtyWindow {
    began: Duration,
    /// The bytes found dirty.
    found: Bytes,
    /// The bytes processed.
    processed: Bytes,
    /// The most that remained after a sync.
    most: Bytes,
    /// The number of syncs.
    syncs: u64,
}

impl DirtyWindow {
    fn begin(at: Duration) -> Self {
        Self { began: at, ..Self::default() }
    }
}

impl MemoryTrack {
    /// The moment of the first sample with RAM.
    pub(in crate::convergence) fn began(&self) -> Option<Duration> {
        self.began
    }

    pub(in crate::convergence) fn estimate(&self) -> Option<MemoryEstimate> {
        (self.fastest > 0.0 || self.bandwidth.get().is_some()).then_some(self.estimate)
    }

    /// The bandwidth with RAM's present share, once that was measured.
    pub(in crate::convergence) fn carried(&self) -> Option<f64> {
        self.bandwidth.get()
    }

    /// The fastest pace between two looks, zero pages included, bytes per second.
    pub(in crate::convergence) fn peak(&self) -> f64 {
        self.peak
    }

    /// The moment when something was last sent.
    pub(in crate::convergence) fn moved(&self) -> Duration {
        self.moved
    }

    /// The highest bandwidth so far.
    pub(in crate::convergence) fn fastest(&self) -> f64 {
        self.fastest
    }

    pub(in crate::convergence) fn last(&self) -> Option<RamSample> {
        self.last.map(|look| look.ram)
    }

    /// The bandwidth that RAM's present share reaches where there is something to send. Pages of zeros make the
    /// bandwidth of a window in the first pass lower than that.
    pub(in crate::convergence) fn capacity(&self) -> Option<f64> {
        let known = if self.capacity > 0.0 { self.capacity } else { self.bandwidth.get()? };
        (known > 0.0).then_some(known)
    }

    /// RAM after its first pass, as QEMU's measurements of the guest's dirty rate foretell it while that pass runs.
    /// `None` where they tell nothing that can be believed. The rest is the most that the pass can leave.
    pub(in crate::convergence) fn foreseen(&self) -> Option<MemoryEstimate> {
        let (dirty_rate, pace) = (self.measured.sustained()?, self.capacity()?);
        let pass = self.moved.saturating_sub(self.began?) + self.left_of_pass()?;
        let fresh = (dirty_rate * pass.as_secs_f64()).min(self.last?.ram.total as f64);
        Some(MemoryEstimate { dirty_rate, pace, fresh, worse: 0, ..self.estimate })
    }

    /// The time that the present pass takes yet; less where zeros are left.
    pub(in crate::convergence) fn left_of_pass(&self) -> Option<Duration> {
        let ram = self.last?.ram;
        let left = match self.estimate.first_pass_over {
            true => ram.remaining,
            // syncs within the pass add to what remains
            false => ram.total.saturating_sub(ram.processed),
        };
        let seconds = left as f64 / self.capacity()?;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// QEMU was seen to sync within the first pass, and not only at its end.
    pub(in crate::convergence) fn syncs_within_passes(&self) -> bool {
        self.syncs_within
    }

    /// The guest's usual dirtying as a part of the bandwidth, by QEMU's measurements.
    pub(in crate::convergence) fn usual_load(&self) -> Option<f64> {
        Some(self.measured.usual()? / self.capacity()?)
    }

    /// The most that the guest dirties, as a part of the bandwidth, by QEMU's measurements.
    pub(in crate::convergence) fn highest_load(&self) -> Option<f64> {
        Some(self.measured.highest()? / self.capacity()?)
    }

    /// No sync has told the rates of a whole pass after the first one yet.
    pub(in crate::convergence) fn is_provisional(&self) -> bool {
        self.provisional
    }

    /// Whether another measurement of the guest's dirty rate would tell something that RAM's syncs do not.
    /// A guest that dirties less than the part `light` of what is sent needs no second one.
    pub(in crate::convergence) fn wants_measurement(&self, at: Duration, light: f64) -> bool {
        let Some(capacity) = self.capacity() else { return false };
        let is_open = !self.estimate.first_pass_over || self.provisional;
        let is_busy = self.measured.last().is_none_or(|rate| rate > capacity * light);
        is_open && is_busy && self.measured.is_wanting(at)
    }

    pub(in crate::convergence) fn recent(&self) -> impl DoubleEndedIterator<Item = &DatedEstimate> {
        self.recent.iter()
    }

    /// Starts the rates anew: the share of RAM is another.
    pub(in crate::convergence) fn share_anew(&mut self, at: Duration) {
        self.bandwidth = SmoothedValue::default();
        self.capacity = 0.0;
        if let Some(last) = self.last {
            self.transferred = CounterMark { at, count: Bytes(last.ram.transferred) };
        }
        self.forget_rates(at);
    }

    /// Starts all rates but the bandwidth anew: the guest is throttled differently, or the bandwidth is another.
    pub(in crate::convergence) fn forget_rates(&mut self, at: Duration) {
        self.dirty_rate = SmoothedValue::default();
        self.pace = SmoothedValue::default();
        self.recent.clear();
        self.stale = true;
        self.estimate.worse = 0;
        self.estimate.best_at = at;
    }

    pub(in crate::convergence) fn add(&mut self, at: Duration, now: RamSample) {
        let Some(last) = self.last.replace(RamLook { at, ram: now }) else {
            return self.begin(at, now);
        };
        if at <= last.at {
            return;
        }
        // one per cent is QEMU's own: auto-converge is set up so that it is ready for more
        if now.throttle_pct.abs_diff(last.ram.throttle_pct) > 1 {
            self.forget_rates(at);
        }
        self.measure_speed(at, now);
        if now.transferred > last.ram.transferred {
            self.moved = at;
        }
        let processed = Bytes(now.processed.saturating_sub(last.ram.processed));
        let found = Bytes(now.remaining.saturating_add(processed.0).saturating_sub(last.ram.remaining));
        self.dirtied.found.0 = self.dirtied.found.0.saturating_add(found.0);
        self.dirtied.processed.0 = self.dirtied.processed.0.saturating_add(processed.0);
        let noise = (processed.0 as f64 * NOISE).max(LEAST_NOISE);
        let is_sync = now.syncs != last.ram.syncs || found.0 as f64 >= noise;
        let was_over = self.estimate.first_pass_over;
        // the first pass is over once all of RAM was processed and the sync that ends the pass was seen: the count of
        // what was dirtied comes with that sync
        self.syncs_within |= self.synced && is_sync && !was_over;
        self.synced |= is_sync;
        self.estimate.first_pass_over |= self.synced && now.processed >= now.total && now.total > 0;
        self.provisional |= !was_over;
        if is_sync {
            self.dirtied.most = self.dirtied.most.max(Bytes(now.remaining));
            self.dirtied.syncs += now.syncs.saturating_sub(last.ram.syncs);
            self.end_window(at, now, !was_over);
        }
        let is_measured = self.measured.add(at, &now);
        let ends = self.estimate.first_pass_over && !was_over;
        if ends || (is_measured && was_over && self.provisional) {
            self.believe_measurements(at);
        }
    }

    fn begin(&mut self, at: Duration, now: RamSample) {
        (self.began, self.moved) = (Some(at), at);
        self.dirtied = DirtyWindow::begin(at);
        self.transferred = CounterMark { at, count: Bytes(now.transferred) };
        self.processed = CounterMark { at, count: Bytes(now.processed) };
        let all = now.remaining as f64;
        self.estimate = MemoryEstimate { fresh: all, best: all, best_at: at, ..MemoryEstimate::default() };
    }

    fn measure_speed(&mut self, at: Duration, now: RamSample) {
        // while nothing is sent, nothing is known of the bandwidth: a compressor fills its first packets for a while
        let transferred = Bytes(now.transferred);
        if self.transferred.age(at) >= WINDOW && transferred > self.transferred.count {
            let rate = self.transferred.advance(at, transferred);
            if self.bandwidth.get().is_some() {
                self.capacity = self.capacity.max(rate);
            }
            self.bandwidth.add(rate);
            self.fastest = self.fastest.max(rate);
            self.estimate.bandwidth = self.bandwidth.get().unwrap_or_default();
        }
        // a look that comes right after another says little
        if self.processed.age(at) >= APART {
            self.peak = self.peak.max(self.processed.advance(at, Bytes(now.processed)));
        }
    }

    /// Takes the rates of the first pass from QEMU's measurements: the pass itself does not tell how fast memory is
    /// rewritten.
    fn believe_measurements(&mut self, at: Duration) {
        let is_throttled = self.last.is_some_and(|last| last.ram.throttle_pct > 1);
        let sustained = self.measured.sustained();
        let Some(rate) = sustained.or(self.measured.last()).filter(|_| !is_throttled) else { return };
        self.estimate.dirty_rate = rate;
        self.estimate.pace = self.capacity().unwrap_or(self.estimate.bandwidth);
        // estimates from within the first pass confirm nothing, and neither does a measurement confirm itself
        self.recent.clear();
        self.remember(self.began.filter(|_| sustained.is_some()).unwrap_or(at));
    }

    /// Ends the window of the dirty rate at a sync, if the window is long enough.
    fn end_window(&mut self, at: Duration, now: RamSample, first_pass: bool) {
        if std::mem::take(&mut self.stale) {
            self.dirtied = DirtyWindow::begin(at);
            self.estimate.fresh = now.remaining as f64;
            return;
        }
        let elapsed = at.saturating_sub(self.dirtied.began);
        if elapsed < WINDOW {
            return;
        }
        let window = std::mem::replace(&mut self.dirtied, DirtyWindow::begin(at));
        let (found, processed) = (window.found.0 as f64, window.processed.0 as f64);
        let estimate = &mut self.estimate;
        estimate.working_set = estimate.working_set.max(found);
        if std::mem::replace(&mut self.provisional, first_pass) {
            (self.dirty_rate, self.pace) = (SmoothedValue::default(), SmoothedValue::default());
        }
        estimate.dirty_rate = self.dirty_rate.add(found / elapsed.as_secs_f64());
        estimate.pace = self.pace.add(processed / elapsed.as_secs_f64());
        // a part of the bytes that were counted has been sent since
        estimate.fresh = (window.most.0 as f64).max(found / window.syncs.max(1) as f64).min(now.total as f64);
        if !first_pass {
            // pages that were sent once and are to be sent again were all rewritten
            estimate.working_set = estimate.working_set.max(estimate.fresh);
        }
        if estimate.fresh <= estimate.best * BETTER {
            (estimate.best, estimate.best_at, estimate.worse) = (estimate.fresh, at, 0);
        } else {
            estimate.worse += 1;
        }
        self.remember(window.began);
    }

    /// Keeps the present estimate, in place of the oldest where there are enough.
    fn remember(&mut self, since: Duration) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(DatedEstimate { since, memory: self.estimate });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::fixture::{GuestRam, MIB, in_mib, near};

    fn ms(at: u64) -> Duration {
        Duration::from_millis(at)
    }

    fn watched(ram: &mut GuestRam, from: u64, to: u64, track: &mut MemoryTrack) -> MemoryEstimate {
        for look in from / 100..to / 100 {
            let sample = ram.after(100);
            if ram.count < 10.0 {
                // QEMU would stop the guest about here
                break;
            }
            track.add(ms(look * 100 + 100), sample);
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
                // many counts a pass find less, since pages that are still to be sent are not found again
                let tolerance = if continuous { 0.3 } else { 0.2 };
                assert!(near(in_mib(memory.dirty_rate), dirtied, tolerance), "{told}");
                // the working set is seen only as far as it was dirtied between two counts
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
            // no more can be found dirty than was sent
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
        track.add(ms(0), sample(0, 512, 0, 1));
        track.add(ms(1000), sample(512, 60, 100, 2));
        let first = track.estimate().expect("an estimate");
        assert!(near(in_mib(first.pace), 512.0, 0.01) && near(in_mib(first.bandwidth), 100.0, 0.01), "{first:?}");
        track.add(ms(1600), sample(572, 54, 160, 3));
        let next = track.estimate().expect("an estimate");
        assert!(near(in_mib(next.pace), 100.0, 0.01) && near(in_mib(next.dirty_rate), 90.0, 0.01), "{next:?}");
    }

    #[test]
    fn what_sends_nothing_yet_says_nothing_of_the_bandwidth() {
        let mut track = MemoryTrack::default();
        let sample = |transferred: u64| RamSample { transferred, remaining: MIB, total: MIB, ..RamSample::default() };
        for look in 0..10 {
            track.add(ms(look * 100), sample(0));
            assert_eq!((track.carried(), track.estimate()), (None, None));
        }
        track.add(ms(1000), sample(MIB));
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
                    track.share_anew(ms(7000));
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
        // a measurement beside the first pass comes when enough estimates are kept already
        let mut track = MemoryTrack::default();
        for look in 0..200u64 {
            let processed = look * 4 * MIB;
            track.add(
                ms(look * 250),
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
