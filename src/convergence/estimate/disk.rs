//! Mirrors.
//!
//! Pure.

use super::{super::sample::MirrorSample, Smooth, WINDOW};
use serde::Serialize;

/// The same as [`WINDOW`] for the first rate of a mirror, which RAM may be waiting for.
const FIRST: f64 = 50.0;
/// What a mirror must gain on its guest, as a part of its rate, not to be taken for one that never gets there.
const GAIN: f64 = 0.05;

/// One mirror as far as it is known. Bytes and bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Disk {
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

impl Disk {
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

/// How a mirror's estimate is made.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::convergence) struct DiskTrack {
    window: Option<(f64, MirrorSample)>,
    rate: Smooth,
    growth: Smooth,
    writes: Smooth,
    before: Smooth,
    since: Smooth,
    /// When it was switched to write-blocking.
    blocking: Option<f64>,
    /// Since when it has had its mode and its share.
    steady: Option<f64>,
    estimate: Disk,
}

impl DiskTrack {
    pub(in crate::convergence) fn estimate(&self) -> Disk {
        self.estimate
    }

    pub(in crate::convergence) fn add(&mut self, at: f64, now: &MirrorSample) {
        let estimate = &mut self.estimate;
        estimate.remaining = now.len.saturating_sub(now.offset) as f64;
        estimate.ready = now.ready;
        estimate.synced = now.actively_synced == Some(true);
        self.steady.get_or_insert(at);
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
        // the first length is known only once the bitmap is initialised
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
        // a smoothed rate never is 0 again
        if estimate.remaining <= 0.0 || (estimate.rate >= 1.0 && estimate.rate - estimate.growth > estimate.rate * GAIN)
        {
            estimate.gained_at = at;
        }
        estimate.write_rate = self.writes.get().unwrap_or_default();
        (estimate.latency_before, estimate.latency_since) = (self.before.get(), self.since.get());
        self.window = Some((at, now.clone()));
    }

    /// Since when it gets no nearer to being in step with its guest's writes, though they wait for it.
    pub(in crate::convergence) fn out_of_step(&self) -> Option<f64> {
        let Disk { remaining, gained_at, synced, .. } = self.estimate;
        self.blocking.filter(|_| !synced).map(|since| if remaining > 0.0 { gained_at.max(since) } else { since })
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

    /// Another mode or another share: what it gains is to be seen anew.
    pub(in crate::convergence) fn start_over(&mut self, at: f64) {
        (self.rate, self.growth, self.steady) = (Smooth::default(), Smooth::default(), Some(at));
        self.estimate.gained_at = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::fixture::{MIB, mirror};

    fn mib(bytes: f64) -> f64 {
        bytes / MIB as f64
    }

    fn near(is: f64, should: f64, tolerance: f64) -> bool {
        (is - should).abs() <= should * tolerance
    }

    #[test]
    fn a_mirror_is_known_by_what_it_gains() {
        let mut track = DiskTrack::default();
        // before the bitmap is initialised nothing is known
        track.add(0.0, &mirror("a", 0, 0));
        for second in 1..10u64 {
            track.add(second as f64 * 1000.0, &mirror("a", 1000 + second * 20, second * 100));
        }
        let disk = track.estimate();
        assert!(near(mib(disk.rate), 100.0, 0.01) && near(mib(disk.growth), 20.0, 0.01), "{disk:?}");
        assert_eq!(disk.remaining, (280 * MIB) as f64);
        assert!(disk.time_to_ready().is_some_and(|time| near(time, 3500.0, 0.02)), "{disk:?}");
        assert_eq!((disk.latency_before, disk.latency_since), (None, None));
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
        assert!(near(mib(disk.write_rate), 80.0, 0.01), "smoothed from 100 to 50: {disk:?}");
        assert_eq!(track.out_of_step(), Some(1000.0));
    }
}
