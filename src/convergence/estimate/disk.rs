//! Mirrors.
//!
//! Pure.

use super::{super::sample::MirrorSample, BETTER, SmoothedValue, WINDOW};
use serde::Serialize;

/// The same as [`WINDOW`] for the first rate of a mirror, which RAM may be waiting for.
const FIRST: f64 = 50.0;
/// What a mirror must gain on its guest, as a part of its rate, not to be taken for one that never gets there.
const GAIN: f64 = 0.05;
/// After so many laps that began with no less to copy than the best before them, a gain between two looks counts for nothing.
const LAPS: u32 = 2;
/// A lap that takes longer, milliseconds, meets all of a region that is rewritten: where the next one begins with less, that
/// is a gain, and after a burst of writes there are several before the best one is beaten.
const LONG: f64 = 3000.0;

/// One mirror as far as it is known. Bytes and bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct DiskEstimate {
    /// Copied.
    pub rate: f64,
    /// What the guest's writes add to what is to be copied.
    pub growth: f64,
    /// The guest's writes.
    pub write_rate: f64,
    /// To copy yet.
    pub remaining: f64,
    /// The mean time of a guest's write while the mirror copied in the background, milliseconds.
    pub latency_before: Option<f64>,
    /// The same in write-blocking mode.
    pub latency_since: Option<f64>,
    /// The most that it copied, bytes per second: what it can do, where it has little to do.
    pub fastest: f64,
    /// When the mirror was last seen to gain on its guest.
    pub gained_at: f64,
    /// It has caught up once.
    pub ready: bool,
    /// In write-blocking mode, and nothing is behind any more.
    pub synced: bool,
}

impl DiskEstimate {
    /// Milliseconds that it would need for what it is behind by, if the guest wrote no more.
    pub fn behind(&self) -> f64 {
        match self.synced || self.remaining <= 0.0 {
            true => 0.0,
            false => self.remaining / self.fastest.max(1.0) * 1000.0,
        }
    }

    /// Milliseconds until the mirror is ready, if all goes on as it does; None if never.
    pub fn time_to_ready(&self) -> Option<f64> {
        let gain = self.rate - self.growth;
        match self.ready || self.remaining <= 0.0 {
            true => Some(0.0),
            false => (gain > 0.0).then(|| self.remaining / gain * 1000.0),
        }
    }
}

/// All that was to be copied at one moment being copied: the pass of a mirror.
///
/// Over a region that is rewritten faster than it is copied, all of it is dirty whenever QEMU looks, and the mirror seems to
/// gain until it looks again. How much there is at the begin of each lap tells it from one that gains.
#[derive(Debug, Clone, Default, PartialEq)]
struct MirrorLap {
    began: f64,
    /// What was copied and what was to be copied in all when it began.
    offset: u64,
    len: u64,
    /// The same at the look before.
    last: (u64, u64),
    /// The most that was to be copied in it.
    count: u64,
    /// The least with which any of them began; None before the second.
    best: Option<u64>,
    /// How many began with no less since.
    worse: u32,
    /// What the last one, if it was long, began with.
    before: Option<u64>,
    /// What the last one copied, and what was added meanwhile, bytes per second.
    pace: (f64, f64),
}

impl MirrorLap {
    fn begin(at: f64, now: &MirrorSample) -> Self {
        let count = now.len.saturating_sub(now.offset);
        Self { began: at, offset: now.offset, len: now.len, last: (now.offset, now.len), count, ..Self::default() }
    }

    fn add(&mut self, at: f64, now: &MirrorSample) {
        let (offset, len) = std::mem::replace(&mut self.last, (now.offset, now.len));
        if now.len <= len {
            return;
        }
        // QEMU has looked what is dirty, and a part of that may have been copied since: as much as between two looks
        self.count = self.count.max(now.len.saturating_sub(offset));
        let copied = now.offset.saturating_sub(self.offset);
        if copied.saturating_add(now.offset.saturating_sub(offset)) < self.count || at <= self.began {
            return;
        }
        let rate = |bytes: u64| bytes as f64 / (at - self.began) * 1000.0;
        let unbeaten = self.best.filter(|&best| !is_less(self.count, best));
        *self = Self {
            best: Some(unbeaten.unwrap_or(self.count)),
            worse: unbeaten.map_or(0, |_| self.worse + 1),
            before: (at - self.began >= LONG).then_some(self.count),
            pace: (rate(copied), rate(now.len.saturating_sub(self.len))),
            count: now.len.saturating_sub(offset),
            ..Self::begin(at, now)
        };
    }

    fn in_vain(&self) -> bool {
        self.worse >= LAPS && !self.before.is_some_and(|before| is_less(self.count, before))
    }
}

fn is_less(count: u64, than: u64) -> bool {
    (count as f64) < than as f64 * BETTER
}

/// How a mirror's estimate is made.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::convergence) struct DiskTrack {
    window: Option<(f64, MirrorSample)>,
    /// Since it has had its mode, or was favoured; None until something is known to be copied, and once it is ready.
    lap: Option<MirrorLap>,
    rate: SmoothedValue,
    growth: SmoothedValue,
    writes: SmoothedValue,
    before: SmoothedValue,
    since: SmoothedValue,
    /// When it was switched to write-blocking.
    blocking: Option<f64>,
    /// Since when it has had its mode and its share.
    steady: Option<f64>,
    estimate: DiskEstimate,
}

impl DiskTrack {
    pub(in crate::convergence) fn estimate(&self) -> DiskEstimate {
        self.estimate
    }

    pub(in crate::convergence) fn add(&mut self, at: f64, now: &MirrorSample) {
        let estimate = &mut self.estimate;
        estimate.remaining = now.len.saturating_sub(now.offset) as f64;
        estimate.ready = now.ready;
        estimate.synced = now.actively_synced == Some(true);
        self.steady.get_or_insert(at);
        match &mut self.lap {
            // it follows its guest's writes, which come as they come
            lap if now.ready => *lap = None,
            Some(lap) => lap.add(at, now),
            // the first length is known only once the bitmap is initialised
            lap => *lap = (now.len > 0).then(|| MirrorLap::begin(at, now)),
        }
        let Some((then, last)) = &self.window else {
            estimate.gained_at = at;
            self.window = Some((at, now.clone()));
            return;
        };
        let elapsed = at - then;
        if elapsed < if self.rate.get().is_some() { WINDOW } else { FIRST } {
            return;
        }
        let rate = |now: u64, last: u64| now.saturating_sub(last) as f64 / elapsed * 1000.0;
        let copied = rate(now.offset, last.offset);
        self.rate.add(copied);
        // what it begins with is a burst, which no speed limit has seen yet
        if elapsed >= WINDOW {
            estimate.fastest = estimate.fastest.max(copied);
        }
        if last.len > 0 {
            self.growth.add(rate(now.len, last.len));
        } else {
            estimate.gained_at = at;
        }
        self.writes.add(rate(now.written, last.written));
        let (writes, took) = (now.writes.saturating_sub(last.writes), now.write_ns.saturating_sub(last.write_ns));
        if writes > 0 {
            let mean = took as f64 / writes as f64 / 1e6;
            match self.blocking.is_some() {
                true => self.since.add(mean),
                false => self.before.add(mean),
            }
        }
        estimate.rate = self.rate.get().unwrap_or_default();
        estimate.growth = self.growth.get().unwrap_or_default();
        let in_vain = self.lap.as_ref().filter(|lap| lap.in_vain());
        // a smoothed rate never is 0 again
        let gains = estimate.rate >= 1.0 && estimate.rate - estimate.growth > estimate.rate * GAIN;
        if let Some(lap) = in_vain {
            (estimate.rate, estimate.growth) = lap.pace;
        } else if gains || estimate.remaining <= 0.0 {
            estimate.gained_at = at;
        }
        estimate.write_rate = self.writes.get().unwrap_or_default();
        (estimate.latency_before, estimate.latency_since) = (self.before.get(), self.since.get());
        self.window = Some((at, now.clone()));
    }

    /// Since when it gets no nearer to being in step with its guest's writes, though they wait for it.
    pub(in crate::convergence) fn out_of_step(&self) -> Option<f64> {
        let DiskEstimate { remaining, gained_at, synced, .. } = self.estimate;
        self.blocking.filter(|_| !synced).map(|since| if remaining > 0.0 { gained_at.max(since) } else { since })
    }

    /// It is so little behind its guest that nothing is to be wished for.
    pub(in crate::convergence) fn keeps_up(&mut self, at: f64) {
        self.estimate.gained_at = at;
    }

    /// From now on in write-blocking mode.
    pub(in crate::convergence) fn block(&mut self, at: f64) {
        self.blocking = Some(at);
        self.start_over(at);
    }

    /// Since when it has been seen to do what it can with its mode and its share.
    pub(in crate::convergence) fn steady_since(&self) -> Option<f64> {
        self.steady
    }

    /// Another share: its rates are to be seen anew. How much each lap begins with does not hang on it.
    pub(in crate::convergence) fn share_anew(&mut self, at: f64) {
        (self.rate, self.growth, self.steady) = (SmoothedValue::default(), SmoothedValue::default(), Some(at));
        if !self.lap.as_ref().is_some_and(MirrorLap::in_vain) {
            self.estimate.gained_at = at;
        }
    }

    /// Another mode, or a share that is to help it: what it gains is to be seen anew.
    pub(in crate::convergence) fn start_over(&mut self, at: f64) {
        self.lap = None;
        self.share_anew(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::fixture::{MIB, in_mib, mirror, near};

    #[test]
    fn a_mirror_is_known_by_what_it_gains() {
        let mut track = DiskTrack::default();
        // before the bitmap is initialised nothing is known
        track.add(0.0, &mirror("a", 0, 0));
        for second in 1..10u64 {
            track.add(second as f64 * 1000.0, &mirror("a", 1000 + second * 20, second * 100));
        }
        let disk = track.estimate();
        assert!(near(in_mib(disk.rate), 100.0, 0.01) && near(in_mib(disk.growth), 20.0, 0.01), "{disk:?}");
        assert_eq!(disk.remaining, (280 * MIB) as f64);
        assert!(disk.time_to_ready().is_some_and(|time| near(time, 3500.0, 0.02)), "{disk:?}");
        assert_eq!((disk.latency_before, disk.latency_since), (None, None));
    }

    /// A mirror that copies `pace` and looks what is dirty when nothing is left, of what a guest rewrites.
    fn saw(pace: u64, dirty: impl Fn(u64) -> u64, looks: u64) -> Option<f64> {
        let (mut track, mut len, mut offset) = (DiskTrack::default(), 100, 0);
        (0..looks).map(|look| look as f64 * 250.0).find(|&at| {
            track.add(at, &mirror("a", len, offset));
            offset = len.min(offset + pace);
            if offset == len {
                len += dirty(len);
            }
            at - track.estimate().gained_at > 3000.0
        })
    }

    #[test]
    fn a_mirror_over_a_region_that_is_dirty_again_and_again_gains_nothing() {
        // in a saw of its own, and all at once
        for pace in [1, 3, 8, 20, 64] {
            let seen = saw(pace, |_| 16, 1000).unwrap_or_else(|| panic!("at {pace}"));
            let (first, lap) = (100.0 / pace as f64 * 250.0, (16.0 / pace as f64).ceil() * 250.0);
            assert!(seen <= first + lap * 4.0 + 4000.0, "{seen} at {pace}");
        }
        // it varies, and is no less in the end
        assert!(saw(4, |len| 9 + len % 7, 4000).is_some());
    }

    #[test]
    fn a_mirror_that_finds_less_each_time_gains() {
        for pace in [1, 3, 8] {
            assert_eq!(saw(pace, |len| if len < 200 { (200 - len) / 2 } else { 0 }, 100 / pace * 6), None, "at {pace}");
        }
    }

    /// The longest that a mirror, which copies 5 a look, was not seen to gain before it caught up with a guest that writes so
    /// much a look.
    fn longest_in_vain(mut writes: impl FnMut(u64) -> u64) -> f64 {
        let mut track = DiskTrack::default();
        let (mut len, mut offset, mut longest) = (1000, 0, 0.0_f64);
        for look in 0.. {
            let at = look as f64 * 250.0;
            track.add(at, &mirror("a", len, offset));
            longest = longest.max(at - track.estimate().gained_at);
            offset = len.min(offset + 5);
            if offset == len {
                break;
            }
            len += writes(look);
        }
        longest
    }

    #[test]
    fn a_burst_of_writes_is_not_what_makes_a_mirror_vain() {
        // half of what it copies is dirtied again: the laps begin with 1000, 500, 250, then with 1900, 950, 475
        let halved = |look: u64| if look == 360 { 1800 } else { 2 + look % 2 };
        // four fifths
        let slow = |look: u64| if look == 500 { 600 } else { 4 };
        for writes in [&halved as &dyn Fn(u64) -> u64, &slow] {
            let longest = longest_in_vain(writes);
            assert!(longest < 5000.0, "{longest}");
        }
    }

    #[test]
    fn another_share_does_not_make_a_vain_mirror_gain() {
        let (mut track, mut len, mut offset) = (DiskTrack::default(), 16, 0);
        let vain = (0..400u64).map(|look| look as f64 * 250.0).find(|&at| {
            track.add(at, &mirror("a", len, offset));
            track.share_anew(at);
            (len, offset) = (if offset + 4 >= len { len + 16 } else { len }, offset + 4);
            at - track.estimate().gained_at > 3000.0
        });
        let vain = vain.expect("it is recognised");
        track.start_over(vain);
        assert_eq!(track.estimate().gained_at, vain);
    }

    #[test]
    fn what_write_blocking_costs_is_measured() {
        let mut track = DiskTrack::default();
        let sample = |writes: u64, ms: u64| MirrorSample {
            written: writes * MIB,
            writes,
            write_ns: ms * 1_000_000,
            ..mirror("a", 100, 50)
        };
        track.add(0.0, &sample(0, 0));
        track.add(1000.0, &sample(100, 200));
        track.block(1000.0);
        track.add(2000.0, &sample(150, 650));
        let disk = track.estimate();
        assert_eq!((disk.latency_before, disk.latency_since), (Some(2.0), Some(9.0)));
        assert!(near(in_mib(disk.write_rate), 80.0, 0.01), "smoothed from 100 to 50: {disk:?}");
        assert_eq!(track.out_of_step(), Some(1000.0));
    }
}
