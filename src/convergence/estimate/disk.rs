//! The estimate of a mirror.
//!
//! Pure.

use super::{super::sample::MirrorSample, BETTER, SmoothedValue, WINDOW};
use crate::quantity::Rate;
use serde::Serialize;
use std::time::Duration;

/// The same as [`WINDOW`] for the first rate of a mirror, which RAM may be waiting for.
const FIRST: Duration = Duration::from_millis(50);
/// The part of its rate that a mirror must gain on its guest to count as gaining.
const GAIN: f64 = 0.05;
/// After so many laps that began with no less to copy than the best before them, a gain between two looks counts for
/// nothing.
const LAPS: u32 = 2;
/// A lap that takes longer meets all of a region that is rewritten. The mirror gains where the next lap begins with
/// less, even if after a burst of writes several laps pass before the best one is beaten.
const LONG: Duration = Duration::from_secs(3);
/// The bytes that a mirror has under way at most: QEMU copies so many at once, whatever the limit, and only then lets
/// the mirror wait until they are paid for.
const BURST: f64 = 16.0 * 1048576.0;
/// The longest wait that is put down to a limit, so that an absurd limit ends in a word about the mirror.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// How long a mirror waits at this limit for what it has copied at once: so long the counters of a mirror that copies
/// as fast as it may can stand still.
pub(in crate::convergence) fn wait_at(limit: Option<Rate>) -> Duration {
    let wait = limit.filter(|limit| limit.0 > 0).map(|limit| BURST / limit.0 as f64);
    wait.and_then(|wait| Duration::try_from_secs_f64(wait).ok()).unwrap_or_default().min(LONGEST_WAIT)
}

/// The least time that the rates of a mirror with this limit are taken over: a burst lies within, if there are any.
fn window_at(limit: Option<Rate>) -> Duration {
    let wait = wait_at(limit);
    // QEMU rounds the wait up to 100 ms
    if wait < WINDOW { WINDOW } else { wait + WINDOW }
}

/// One mirror as far as it is known. Sizes are bytes, rates bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct DiskEstimate {
    /// The rate at which the mirror copies.
    pub rate: f64,
    /// The rate at which the guest's writes add to the bytes to copy.
    pub growth: f64,
    /// The rate of the guest's writes.
    pub write_rate: f64,
    /// The bytes yet to copy.
    pub remaining: f64,
    /// The mean time of a guest's write while the mirror copied in the background, milliseconds.
    pub latency_before: Option<f64>,
    /// The same in write-blocking mode.
    pub latency_since: Option<f64>,
    /// The mean time of a guest's flush of late, milliseconds.
    pub flush: Option<f64>,
    /// The highest rate so far: the ability of a mirror that has little to do at present.
    pub fastest: f64,
    /// The moment when the mirror was last seen to gain on its guest, since the migration began.
    pub gained_at: Duration,
    /// The mirror has caught up once, and no client of QEMU has it paused.
    pub ready: bool,
    /// The mirror is in write-blocking mode, and nothing is left to copy.
    pub synced: bool,
    /// The mirror was paused at the last look.
    #[serde(skip)]
    pub paused: bool,
}

impl DiskEstimate {
    /// Milliseconds that the mirror would need for the bytes yet to copy, if the guest wrote no more.
    pub fn behind(&self) -> f64 {
        match self.synced || self.remaining <= 0.0 {
            true => 0.0,
            false => self.remaining / self.fastest.max(1.0) * 1000.0,
        }
    }

    /// Milliseconds until the mirror is ready, if nothing changes; `None` if never.
    pub fn time_to_ready(&self) -> Option<f64> {
        let gain = self.rate - self.growth;
        match self.ready || self.remaining <= 0.0 {
            true => Some(0.0),
            false => (gain > 0.0).then(|| self.remaining / gain * 1000.0),
        }
    }
}

/// One pass of a mirror: the copying of everything that was to be copied at one moment.
///
/// A region that is rewritten faster than it is copied is dirty as a whole whenever QEMU looks, and between two looks
/// the mirror seems to gain. The bytes to copy at the begin of each lap tell such a mirror from one that gains.
#[derive(Debug, Clone, Default, PartialEq)]
struct MirrorLap {
    began: Duration,
    /// The mirror when the lap began.
    first: CopyProgress,
    /// The mirror at the look before.
    last: CopyProgress,
    /// The most that was to be copied in the lap.
    count: u64,
    /// The least count of a lap; `None` before the second lap.
    best: Option<u64>,
    /// The number of laps since, none of them with a lower count.
    worse: u32,
    /// The count of the lap before, if that lap was long.
    before: Option<u64>,
    /// The rates over the lap before.
    pace: LapPace,
}

/// The bytes that a mirror has copied, of all that it has to copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct CopyProgress {
    offset: u64,
    len: u64,
}

/// The rates over a lap, bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct LapPace {
    copied: f64,
    added: f64,
}

impl MirrorLap {
    fn begin(at: Duration, now: CopyProgress) -> Self {
        let count = now.len.saturating_sub(now.offset);
        Self { began: at, first: now, last: now, count, ..Self::default() }
    }

    fn add(&mut self, at: Duration, now: CopyProgress) {
        let last = std::mem::replace(&mut self.last, now);
        if now.len <= last.len {
            return;
        }
        // QEMU has looked for dirty blocks, and may have copied some of them since: at most the bytes between two looks
        let to_copy = now.len.saturating_sub(last.offset);
        self.count = self.count.max(to_copy);
        let copied = now.offset.saturating_sub(self.first.offset);
        if copied.saturating_add(now.offset.saturating_sub(last.offset)) < self.count || at <= self.began {
            return;
        }
        let elapsed = at.saturating_sub(self.began);
        let rate = |bytes: u64| bytes as f64 / elapsed.as_secs_f64();
        let unbeaten = self.best.filter(|&best| !is_less(self.count, best));
        *self = Self {
            best: Some(unbeaten.unwrap_or(self.count)),
            worse: unbeaten.map_or(0, |_| self.worse + 1),
            before: (elapsed >= LONG).then_some(self.count),
            pace: LapPace { copied: rate(copied), added: rate(now.len.saturating_sub(self.first.len)) },
            count: to_copy,
            ..Self::begin(at, now)
        };
    }

    fn is_in_vain(&self) -> bool {
        self.worse >= LAPS && !self.before.is_some_and(|before| is_less(self.count, before))
    }
}

fn is_less(count: u64, than: u64) -> bool {
    (count as f64) < than as f64 * BETTER
}

/// The samples of a mirror, folded into an estimate.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::convergence) struct DiskTrack {
    window: Option<MirrorWindow>,
    /// The lap since the mirror got its mode, or was favoured; `None` until QEMU knows the bytes to copy, and once the
    /// mirror is ready.
    lap: Option<MirrorLap>,
    rate: SmoothedValue,
    growth: SmoothedValue,
    write_rate: SmoothedValue,
    latency_before: SmoothedValue,
    latency_since: SmoothedValue,
    flush: SmoothedValue,
    /// The moment of the switch to write-blocking.
    blocking: Option<Duration>,
    /// The moment of the last look at which the mirror had copied more than at the one before, or had nothing to copy.
    moved_at: Duration,
    /// The bytes that the mirror had copied at that look.
    copied: u64,
    /// The moment since which the mirror has had its mode and its share.
    steady: Option<Duration>,
    estimate: DiskEstimate,
}

/// The begin of the window from which the rates of a mirror are taken.
#[derive(Debug, Clone, PartialEq)]
struct MirrorWindow {
    began: Duration,
    first: MirrorSample,
    /// The limit that the mirror had when the window began: its first bytes were copied under that.
    limit: Option<Rate>,
}

impl DiskTrack {
    pub(in crate::convergence) fn estimate(&self) -> DiskEstimate {
        self.estimate
    }

    /// Adds a sample of the mirror, whose job has this limit.
    pub(in crate::convergence) fn add(&mut self, at: Duration, now: &MirrorSample, limit: Option<Rate>) {
        self.estimate.remaining = now.len.saturating_sub(now.offset) as f64;
        // QEMU refuses to complete or cancel the job while a client has it paused
        self.estimate.ready = now.ready && !now.paused;
        self.estimate.synced = now.actively_synced == Some(true);
        self.estimate.paused = now.paused;
        self.steady.get_or_insert(at);
        if now.offset != self.copied || self.estimate.remaining <= 0.0 {
            (self.moved_at, self.copied) = (at, now.offset);
        }
        let progress = CopyProgress { offset: now.offset, len: now.len };
        match &mut self.lap {
            // a mirror that is ready follows its guest's writes, as they come
            lap if now.ready => *lap = None,
            Some(lap) => lap.add(at, progress),
            // the first length is known only once QEMU has initialised the bitmap
            lap => *lap = (now.len > 0).then(|| MirrorLap::begin(at, progress)),
        }
        let Some(window) = &self.window else {
            self.estimate.gained_at = at;
            self.window = Some(MirrorWindow { began: at, first: now.clone(), limit });
            return;
        };
        let elapsed = at.saturating_sub(window.began);
        // A mirror that has copied nothing yet may be waiting for its limit.
        let may_wait = window_at(limit) > WINDOW && now.offset == window.first.offset;
        let is_first = self.rate.get().is_none() && !may_wait;
        if elapsed >= if is_first { FIRST } else { window_at(limit) } {
            let next = MirrorWindow { began: at, first: now.clone(), limit };
            if let Some(MirrorWindow { first, limit: before, .. }) = self.window.replace(next) {
                let most = before.zip(limit).map(|(before, limit)| before.max(limit));
                self.measure(at, elapsed, (&first, now), most);
            }
        }
    }

    /// Takes the rates from the two ends of a window.
    fn measure(
        &mut self,
        at: Duration,
        elapsed: Duration,
        (first, now): (&MirrorSample, &MirrorSample),
        most: Option<Rate>,
    ) {
        let estimate = &mut self.estimate;
        let rate = |now: u64, first: u64| now.saturating_sub(first) as f64 / elapsed.as_secs_f64();
        // A burst is not what the mirror can do. In write-blocking mode the guest's writes, which no limit holds up,
        // count as copied, too.
        let most = most.filter(|_| self.blocking.is_none()).map_or(f64::INFINITY, |most| most.0 as f64);
        let copied = rate(now.offset, first.offset).min(most);
        estimate.rate = self.rate.add(copied);
        // a mirror begins with a burst, before its speed limit takes effect
        if elapsed >= WINDOW {
            estimate.fastest = estimate.fastest.max(copied);
        }
        if first.len > 0 {
            self.growth.add(rate(now.len, first.len));
        } else if !now.paused {
            // QEMU initialises the bitmap, which takes its time
            estimate.gained_at = at;
        }
        estimate.growth = self.growth.get().unwrap_or_default();
        estimate.write_rate = self.write_rate.add(rate(now.written, first.written));
        let (writes, took) = (now.writes.saturating_sub(first.writes), now.write_ns.saturating_sub(first.write_ns));
        if writes > 0 {
            let mean = took as f64 / writes as f64 / 1e6;
            match self.blocking.is_some() {
                true => self.latency_since.add(mean),
                false => self.latency_before.add(mean),
            };
        }
        let (flushes, took) = (now.flushes.saturating_sub(first.flushes), now.flush_ns.saturating_sub(first.flush_ns));
        if flushes > 0 {
            estimate.flush = Some(self.flush.add(took as f64 / flushes as f64 / 1e6));
        }
        (estimate.latency_before, estimate.latency_since) = (self.latency_before.get(), self.latency_since.get());
        // a smoothed rate stays above 0 for long after the mirror has stopped to copy
        let gains = copied > 0.0 && estimate.rate - estimate.growth > estimate.rate * GAIN;
        if let Some(lap) = self.lap.as_ref().filter(|lap| lap.is_in_vain()) {
            (estimate.rate, estimate.growth) = (lap.pace.copied, lap.pace.added);
        } else if gains || estimate.remaining <= 0.0 && !now.paused {
            estimate.gained_at = at;
        }
    }

    /// The moment since which a mirror in write-blocking mode has come no nearer to being in step with its guest.
    pub(in crate::convergence) fn out_of_step(&self) -> Option<Duration> {
        let DiskEstimate { remaining, gained_at, synced, .. } = self.estimate;
        self.blocking.filter(|_| !synced).map(|since| if remaining > 0.0 { gained_at.max(since) } else { since })
    }

    /// The moment since which the guest's writes may have waited for the mirror: in write-blocking mode QEMU counts
    /// each of them as a part to copy until it is on the destination, and since that moment nothing has arrived there.
    pub(in crate::convergence) fn writes_wait(&self) -> Option<Duration> {
        self.blocking.filter(|_| self.estimate.remaining > 0.0).map(|since| self.moved_at.max(since))
    }

    /// Counts the mirror as gaining: it is so close to its guest that no more can be asked of it. In write-blocking
    /// mode more is asked: that the mirror moves.
    pub(in crate::convergence) fn keeps_up(&mut self, at: Duration) {
        if self.blocking.is_none() || self.moved_at == at {
            self.estimate.gained_at = at;
        }
    }

    /// Starts anew in write-blocking mode.
    pub(in crate::convergence) fn block(&mut self, at: Duration) {
        self.blocking = Some(at);
        self.start_over(at);
    }

    /// The moment since which the mirror has had its mode and its share.
    pub(in crate::convergence) fn steady_since(&self) -> Option<Duration> {
        self.steady
    }

    /// Starts the rates anew: the share of the mirror is another. The counts of its laps do not depend on the share.
    pub(in crate::convergence) fn share_anew(&mut self, at: Duration) {
        (self.rate, self.growth, self.steady) = (SmoothedValue::default(), SmoothedValue::default(), Some(at));
        if !self.lap.as_ref().is_some_and(MirrorLap::is_in_vain) {
            self.estimate.gained_at = at;
        }
    }

    /// Starts everything anew: the mirror has another mode, or a share that is meant to help it.
    pub(in crate::convergence) fn start_over(&mut self, at: Duration) {
        self.lap = None;
        self.share_anew(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::fixture::{MIB, in_mib, mirror, near};

    fn ms(at: u64) -> Duration {
        Duration::from_millis(at)
    }

    #[test]
    fn a_mirror_is_known_by_what_it_gains() {
        let mut track = DiskTrack::default();
        // nothing is known before QEMU has initialised the bitmap
        track.add(ms(0), &mirror("a", 0, 0), None);
        for second in 1..10u64 {
            track.add(ms(second * 1000), &mirror("a", 1000 + second * 20, second * 100), None);
        }
        let disk = track.estimate();
        assert!(near(in_mib(disk.rate), 100.0, 0.01) && near(in_mib(disk.growth), 20.0, 0.01), "{disk:?}");
        assert_eq!(disk.remaining, (280 * MIB) as f64);
        assert!(disk.time_to_ready().is_some_and(|time| near(time, 3500.0, 0.02)), "{disk:?}");
        assert_eq!((disk.latency_before, disk.latency_since), (None, None));
    }

    /// When a mirror is seen to gain nothing that copies `pace` a look, and looks for dirty blocks when nothing is
    /// left.
    fn saw(pace: u64, dirty: impl Fn(u64) -> u64, looks: u64) -> Option<Duration> {
        let (mut track, mut len, mut offset) = (DiskTrack::default(), 100, 0);
        (0..looks).map(|look| ms(look * 250)).find(|&at| {
            track.add(at, &mirror("a", len, offset), None);
            offset = len.min(offset + pace);
            if offset == len {
                len += dirty(len);
            }
            at - track.estimate().gained_at > ms(3000)
        })
    }

    #[test]
    fn a_mirror_over_a_region_that_is_dirty_again_and_again_gains_nothing() {
        // the laps of each pace are a saw of their own
        for pace in [1, 3, 8, 20, 64] {
            let seen = saw(pace, |_| 16, 1000).unwrap_or_else(|| panic!("at {pace}"));
            let (first, lap) = (100.0 / pace as f64 * 250.0, (16.0 / pace as f64).ceil() * 250.0);
            assert!(seen.as_millis() as f64 <= first + lap * 4.0 + 4000.0, "{seen:?} at {pace}");
        }
        // the count of the laps varies, and is no lower in the end
        assert!(saw(4, |len| 9 + len % 7, 4000).is_some());
    }

    #[test]
    fn a_mirror_that_finds_less_each_time_gains() {
        for pace in [1, 3, 8] {
            assert_eq!(saw(pace, |len| if len < 200 { (200 - len) / 2 } else { 0 }, 100 / pace * 6), None, "at {pace}");
        }
    }

    /// The longest time without a gain of a mirror that copies 5 a look, until it has caught up with a guest that
    /// writes so much a look.
    fn longest_in_vain(mut writes: impl FnMut(u64) -> u64) -> Duration {
        let mut track = DiskTrack::default();
        let (mut len, mut offset, mut longest) = (1000, 0, Duration::ZERO);
        for look in 0.. {
            let at = ms(look * 250);
            track.add(at, &mirror("a", len, offset), None);
            longest = longest.max(at - track.estimate().gained_at);
            offset = len.min(offset + 5);
            if offset == len {
                break;
            }
            len += writes(look);
        }
        longest
    }

    /// A mirror that copies 16 MiB at once whenever its limit allows, as its guest dirties so many bytes a second; the
    /// track after so many seconds, and the longest time without a gain in them.
    fn paced(limit: u64, dirtied: u64, seconds: u64) -> (DiskTrack, Duration) {
        let (mut track, mut paid, mut longest) = (DiskTrack::default(), 0, Duration::ZERO);
        let (mut offset, limit) = (0, limit * MIB / 10);
        for look in 0..seconds * 4 {
            let at = ms(look * 250);
            while look * 250 >= paid {
                offset += 16 * MIB;
                paid += (16 * MIB * 1000).div_ceil(limit);
            }
            let len = 4000 * MIB + dirtied * MIB / 10 * look / 4;
            track.add(at, &MirrorSample { len, offset, ..mirror("a", 0, 0) }, Some(Rate(limit)));
            longest = longest.max(at - track.estimate().gained_at);
        }
        (track, longest)
    }

    #[test]
    fn a_mirror_that_waits_for_its_limit_moves() {
        // tenths of a MiB
        for (limit, seconds) in [(3, 400), (10, 200), (20, 100), (49, 60), (160, 30), (2000, 10)] {
            for dirtied in [0, limit / 2] {
                let (track, longest) = paced(limit, dirtied, seconds);
                let most = wait_at(Some(Rate(limit * MIB / 10))) + ms(1000);
                let disk = track.estimate();
                assert!(longest < most, "{longest:?} of {most:?} at {limit}, {dirtied}");
                let (rate, growth) = (in_mib(disk.rate) * 10.0, in_mib(disk.growth) * 10.0);
                assert!(near(rate, limit as f64, 0.3) && disk.rate <= (limit * MIB / 10) as f64, "{disk:?} at {limit}");
                assert!((growth - dirtied as f64).abs() <= limit as f64 * 0.1, "{disk:?} at {limit}, {dirtied}");
                assert!(disk.time_to_ready().is_some(), "{disk:?} at {limit}, {dirtied}");
            }
        }
    }

    #[test]
    fn a_mirror_whose_guest_dirties_as_fast_as_its_limit_gains_nothing() {
        for limit in [10, 20, 49, 160] {
            let wait = wait_at(Some(Rate(limit * MIB / 10)));
            let (track, longest) = paced(limit, limit * 2, 100);
            assert!(longest > ms(3000) + wait && track.estimate().time_to_ready().is_none(), "{track:?} at {limit}");
        }
    }

    #[test]
    fn only_a_low_limit_lets_a_mirror_wait() {
        for (limit, wait) in [(None, 0), (Some(0), 0), (Some(16 * MIB), 1000), (Some(MIB), 16_000)] {
            assert_eq!(wait_at(limit.map(Rate)), ms(wait), "{limit:?}");
        }
        assert!(wait_at(Some(Rate(1))) == LONGEST_WAIT && wait_at(Some(Rate(u64::MAX))) < ms(1));
    }

    #[test]
    fn a_burst_of_writes_is_not_what_makes_a_mirror_vain() {
        // half of the bytes copied are dirtied again: the laps begin with 1000, 500, 250, then with 1900, 950, 475
        let halved = |look: u64| if look == 360 { 1800 } else { 2 + look % 2 };
        // four fifths of them
        let slow = |look: u64| if look == 500 { 600 } else { 4 };
        for writes in [&halved as &dyn Fn(u64) -> u64, &slow] {
            let longest = longest_in_vain(writes);
            assert!(longest < ms(5000), "{longest:?}");
        }
    }

    #[test]
    fn another_share_does_not_make_a_vain_mirror_gain() {
        let (mut track, mut len, mut offset) = (DiskTrack::default(), 16, 0);
        let vain = (0..400u64).map(|look| ms(look * 250)).find(|&at| {
            track.add(at, &mirror("a", len, offset), None);
            track.share_anew(at);
            (len, offset) = (if offset + 4 >= len { len + 16 } else { len }, offset + 4);
            at - track.estimate().gained_at > ms(3000)
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
        track.add(ms(0), &sample(0, 0), None);
        track.add(ms(1000), &sample(100, 200), None);
        track.block(ms(1000));
        track.add(ms(2000), &sample(150, 650), None);
        let disk = track.estimate();
        assert_eq!((disk.latency_before, disk.latency_since), (Some(2.0), Some(9.0)));
        assert!(near(in_mib(disk.write_rate), 80.0, 0.01), "smoothed from 100 to 50: {disk:?}");
        assert_eq!(track.out_of_step(), Some(ms(1000)));
    }
}
