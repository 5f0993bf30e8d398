//! The histogram of how long the guest's writes take, which QEMU counts for a device of the source while mirrors copy.
//!
//! A device has a histogram for each kind of request, and QEMU removes all of them or none: 10.0 and later refuse to
//! remove one. So the engine must never touch a device for which anybody else has set a histogram. The engine's own is
//! known by its boundaries, after the engine's death too.

use crate::{
    progress::WriteTimes,
    qemu::{Process, ProcessError, SentCommand, reply::WriteStats},
    qmp::QmpRequest,
};
use qapi::qmp;

/// QEMU's command, which sets histograms and, without boundaries, removes them.
const SET: &str = "block-latency-histogram-set";
/// The number of boundaries, and the first one in nanoseconds.
const COUNT: usize = 44;
const FIRST: u64 = 7_000;

/// The boundaries in nanoseconds, from 7 us to 22 s: each is a third or a half above the one before.
pub const BOUNDARIES: [u64; COUNT] = boundaries();

const fn boundaries() -> [u64; COUNT] {
    let mut all = [0; COUNT];
    let mut at = 0;
    while at < COUNT {
        let octave = FIRST << (at / 2);
        all[at] = if at % 2 == 0 { octave } else { octave / 2 * 3 };
        at += 1;
    }
    all
}

/// Whose histograms a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistogramOwner {
    /// The device has none.
    Nobody,
    /// The device has the engine's, and no other.
    Engine,
    /// The device has the engine's, and another client has set others since.
    EngineAndAnother,
    /// The device has another client's.
    Another,
}

/// Finds out whose histograms a device has.
pub fn owner(stats: &WriteStats) -> HistogramOwner {
    let others = [&stats.rd_latency_histogram, &stats.zap_latency_histogram, &stats.flush_latency_histogram];
    let has_others = others.into_iter().any(Option::is_some);
    match &stats.wr_latency_histogram {
        Some(writes) if writes.boundaries != BOUNDARIES => HistogramOwner::Another,
        Some(_) if has_others => HistogramOwner::EngineAndAnother,
        Some(_) => HistogramOwner::Engine,
        None if has_others => HistogramOwner::Another,
        None => HistogramOwner::Nobody,
    }
}

/// The engine's counts for a device.
pub fn counts(stats: &WriteStats) -> Option<&[u64]> {
    let histogram = stats.wr_latency_histogram.as_ref()?;
    let is_own = histogram.boundaries == BOUNDARIES && histogram.bins.len() == COUNT + 1;
    is_own.then_some(&histogram.bins)
}

/// The times of the writes that are in these bins; `None` where there are none.
pub fn times(bins: &[u64]) -> Option<WriteTimes> {
    let writes = bins.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
    (writes > 0).then(|| WriteTimes {
        writes,
        p50_at_most_us: at_most(bins, writes, 50),
        p99_at_most_us: at_most(bins, writes, 99),
    })
}

/// The boundary below which so many per cent of the writes are, microseconds; `None` above the last boundary.
fn at_most(bins: &[u64], writes: u64, percent: u64) -> Option<u64> {
    let wanted = (u128::from(writes) * u128::from(percent)).div_ceil(100);
    let mut sum = 0;
    let bin = bins.iter().position(|count| {
        sum += u128::from(*count);
        sum >= wanted
    })?;
    BOUNDARIES.get(bin).map(|nanoseconds| nanoseconds.div_ceil(1000))
}

/// Has QEMU count the guest's writes to a device, from nought; the command is sent when the function is called.
pub fn begin(source: &Process, device: &str) -> SentCommand<()> {
    let request = QmpRequest::named(SET).with("id", device).with("boundaries-write", BOUNDARIES.to_vec());
    source.act_with(SET, request)
}

/// Removes the engine's histogram from a device. Says why it stays, where another client has set others beside it.
///
/// # Errors
/// QEMU refuses, or does not answer.
pub async fn remove(source: &Process, device: &str) -> Result<Option<String>, ProcessError> {
    let devices = source.ask(&qmp::query_blockstats { query_nodes: None }).await?.0;
    let found = devices.iter().find(|one| one.qdev.as_deref() == Some(device)).map(|one| owner(&one.stats));
    match found {
        Some(HistogramOwner::Engine) => {
            source.act_with(SET, QmpRequest::named(SET).with("id", device)).await?;
            Ok(None)
        }
        Some(HistogramOwner::EngineAndAnother) => Ok(Some(format!(
            "{}: the histogram of writes stays at {device}, for another client has set others there since, and QEMU \
             removes all of them or none",
            source.name()
        ))),
        // Another client's, or a device that was unplugged.
        Some(HistogramOwner::Nobody | HistogramOwner::Another) | None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::reply::LatencyHistogram;

    #[test]
    fn boundaries_rise_by_a_half_at_most() {
        assert_eq!(BOUNDARIES[..5], [7_000, 10_500, 14_000, 21_000, 28_000]);
        assert_eq!(BOUNDARIES[COUNT - 1], 22_020_096_000);
        assert!(BOUNDARIES.windows(2).all(|pair| pair[0] < pair[1] && pair[1] * 2 <= pair[0] * 3));
    }

    #[test]
    fn a_percentile_is_the_boundary_above_it() {
        let bins = |counts: &[(usize, u64)]| {
            let mut bins = vec![0; COUNT + 1];
            counts.iter().for_each(|(bin, count)| bins[*bin] = *count);
            bins
        };
        let told = |counts: &[(usize, u64)]| {
            times(&bins(counts)).map(|times| (times.writes, times.p50_at_most_us, times.p99_at_most_us))
        };
        for (counts, expected) in [
            (&[][..], None),
            (&[(0, 1)], Some((1, Some(7), Some(7)))),
            // 10.5 us, rounded up
            (&[(1, 4)], Some((4, Some(11), Some(11)))),
            (&[(0, 99), (10, 1)], Some((100, Some(7), Some(7)))),
            (&[(0, 98), (10, 2)], Some((100, Some(7), Some(224)))),
            (&[(0, 1), (2, 1)], Some((2, Some(7), Some(14)))),
            (&[(0, 1), (2, 2)], Some((3, Some(14), Some(14)))),
            (&[(3, 1), (COUNT, 1)], Some((2, Some(21), None))),
            (&[(COUNT, 5)], Some((5, None, None))),
            (&[(0, u64::MAX), (1, u64::MAX)], Some((u64::MAX, Some(7), Some(7)))),
        ] {
            assert_eq!(told(counts), expected, "{counts:?}");
        }
    }

    #[test]
    fn only_the_engines_own_histogram_is_the_engines() {
        let histogram = |boundaries: &[u64]| {
            Some(LatencyHistogram { boundaries: boundaries.to_vec(), bins: vec![0; boundaries.len() + 1] })
        };
        let (own, other) = (histogram(&BOUNDARIES), histogram(&[5]));
        let with = |writes: &Option<LatencyHistogram>, flushes: &Option<LatencyHistogram>| WriteStats {
            wr_latency_histogram: writes.clone(),
            flush_latency_histogram: flushes.clone(),
            ..WriteStats::default()
        };
        for (stats, expected, counted) in [
            (with(&None, &None), HistogramOwner::Nobody, false),
            (with(&own, &None), HistogramOwner::Engine, true),
            (with(&own, &other), HistogramOwner::EngineAndAnother, true),
            (with(&other, &None), HistogramOwner::Another, false),
            (with(&None, &other), HistogramOwner::Another, false),
            // 7.2 leaves an empty one
            (with(&histogram(&[]), &None), HistogramOwner::Another, false),
        ] {
            assert_eq!((owner(&stats), counts(&stats).is_some()), (expected, counted), "{stats:?}");
        }
    }
}
