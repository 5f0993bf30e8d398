//! The measurements of a guest and of the connection to the destination, and their formulas from QEMU's numbers.
//!
//! Pure. A measurement describes the past: `convergence::predict` makes the prediction from it.

use super::checks::{Finding, FindingCode};
use crate::{
    qemu::reply::BlockStats,
    quantity::{Bytes, Rate},
    storage::model::layout::Disk,
};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// The windows of a build that knows milliseconds: two of them show whether the guest dirties the same memory again.
const WINDOWS: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(800)];
/// A longer window, for a guest whose working set did not show within the first two.
const LONG: Duration = Duration::from_secs(3);
/// The share of the fastest window's rate below which a window's rate shows that the working set is exhausted.
const KNEE: f64 = 0.85;
/// The dirtied bytes below which no longer window is worth its time: so little is sent at once.
const LITTLE: u64 = 16 << 20;
/// The window of a build that knows whole seconds only.
pub const WINDOW: [Duration; 1] = [Duration::from_secs(1)];
/// The number of pages whose contents QEMU compares in one window: reading them takes a core about 20 ms.
const PAGES: u64 = 1 << 15;
/// The bounds that QEMU has for the pages it samples of each GiB.
const SAMPLE_PAGES: (u64, u64) = (128, 1 << 14);
/// The size below which QEMU does not sample a block of RAM, bytes.
const LEAST_BLOCK: u64 = 128 << 20;
/// The first part of a probe, which counts for nothing: a TCP connection begins slowly.
const WARMING: Duration = Duration::from_millis(100);
/// The time that a probe goes on after its first part, if enough arrives.
const PROBED: Duration = Duration::from_millis(200);
/// The longest time of a probe, on a slow link.
const LONGEST: Duration = Duration::from_millis(1500);
/// The bytes that are enough: more than a probe has in flight at once, so that the link is measured and not the
/// buffers.
const ENOUGH: u64 = 8 << 20;

/// All measurements that a prediction uses.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GuestMeasurements {
    /// Whether the guest ran. The work of a guest that does not run is nothing, and is not measured.
    pub running: bool,
    /// The bytes of different pages that the guest dirtied, in windows of growing length. QEMU tells whole MiB/s,
    /// rounded down, so each number is up to 1 MiB times the window's seconds too low.
    pub dirtied: Vec<(Duration, u64)>,
    /// The guest's writes to each disk that would move.
    pub disks: Vec<DiskRate>,
    /// The rate at which a probe from the source arrives at the destination's NBD address. `None` where a setting has
    /// the ceiling, which is used in its place, or where the probe failed.
    pub bandwidth: Option<Rate>,
    /// The time that the source takes to answer a query.
    pub source_round_trip: Duration,
    /// The time that the destination takes to answer a query.
    pub destination_round_trip: Duration,
    /// The guest's RAM that has ever been touched, bytes: the rest is zero, and is not sent. The number is known of a
    /// source on this host only. Memory that the guest has freed since then is still counted.
    pub used: Option<u64>,
    /// The measurements that could not be made.
    pub missing: Vec<MissingMeasurement>,
}

/// A measurement that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingMeasurement {
    /// The measurement: `dirty-rate`, `disk-rate`, `bandwidth` or `round-trip`.
    pub what: &'static str,
    /// The reason, for people.
    pub why: String,
}

/// A guest's writes to one disk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskRate {
    /// The disk's name on the source.
    pub disk: String,
    /// The bytes per second.
    pub bytes: Rate,
    /// The number of writes per second.
    pub writes: f64,
    /// The mean time of a write; `None` where there was no write.
    pub latency: Option<Duration>,
}

impl GuestMeasurements {
    /// A note for each measurement that could not be made.
    pub fn findings(&self) -> Vec<Finding> {
        let note = |MissingMeasurement { what, why }: &MissingMeasurement| {
            Finding::new(FindingCode::NotMeasured, what, format!("it could not be measured: {why}"))
        };
        self.missing.iter().map(note).collect()
    }

    /// All measurements in one line, for people.
    pub fn told(&self) -> String {
        let mut parts = Vec::new();
        for (window, bytes) in &self.dirtied {
            parts.push(format!("{} of RAM dirtied in {} ms", Bytes(*bytes), window.as_millis()));
        }
        for DiskRate { disk, bytes, writes, .. } in &self.disks {
            parts.push(format!("{disk} written at {bytes} in {writes:.0} writes a second"));
        }
        parts.extend(self.bandwidth.map(|rate| format!("{rate} to the destination")));
        parts.extend(self.used.map(|used| format!("{} of RAM in use", Bytes(used))));
        match self.running {
            _ if parts.is_empty() => "nothing".to_owned(),
            true => parts.join(", "),
            false => format!("the guest does not run; {}", parts.join(", ")),
        }
    }
}

/// The windows in which dirtied memory is counted, one after the other. A build that knows only whole seconds gets one.
pub fn windows(milliseconds: bool) -> &'static [Duration] {
    if milliseconds { &WINDOWS } else { &WINDOW }
}

/// The rate at which a guest dirties RAM, bytes per second, by the fastest of its windows; and its working set, the
/// bytes that it dirties again and again. `None` where the rate is the same in every window: then its end was not
/// seen.
pub fn work(dirtied: &[(Duration, u64)]) -> (f64, Option<f64>) {
    let fastest = dirtied.iter().map(rate_in).fold(0.0, f64::max);
    let is_short = |one: &(Duration, u64)| rate_in(one) < fastest * KNEE;
    let most = dirtied.iter().map(|(_, bytes)| *bytes as f64).fold(0.0, f64::max);
    (fastest, dirtied.iter().any(is_short).then_some(most))
}

fn rate_in(&(window, bytes): &(Duration, u64)) -> f64 {
    bytes as f64 / window.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// A longer window, where the windows so far do not show the size of the guest's working set.
pub fn another(dirtied: &[(Duration, u64)]) -> Option<Duration> {
    let last = dirtied.last()?;
    (last.0 < LONG && last.1 > LITTLE && rate_in(last) >= work(dirtied).0 * KNEE).then_some(LONG)
}

/// The number of pages to sample of each GiB, so that a guest of any size costs about the same; or the reason why
/// there is nothing to sample. `blocks` are the sizes of the guest's blocks of RAM, bytes.
pub fn sample_pages(blocks: &[u64]) -> Result<u64, String> {
    let sampled: u64 = blocks.iter().filter(|block| **block >= LEAST_BLOCK).sum();
    if sampled == 0 {
        return Err(format!("QEMU samples no block of RAM below {}", Bytes(LEAST_BLOCK)));
    }
    let of_each = PAGES.saturating_mul(1 << 30) / sampled;
    Ok(of_each.clamp(SAMPLE_PAGES.0, SAMPLE_PAGES.1))
}

/// The bytes dirtied in a window, by QEMU's rate in MiB/s.
pub fn dirtied(rate: u64, window: Duration) -> u64 {
    let millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
    (rate << 20).saturating_mul(millis) / 1000
}

/// The writes to a disk between two answers of `query-blockstats`. `None` where one of them does not have the disk, or
/// where the disk was plugged in anew.
pub fn disk_rate(disk: &Disk, before: &[BlockStats], after: &[BlockStats], window: Duration) -> Option<DiskRate> {
    let (before, after) = (disk.stats(before)?, disk.stats(after)?);
    let seconds = Some(window.as_secs_f64()).filter(|seconds| *seconds > 0.0)?;
    let bytes = after.wr_bytes.checked_sub(before.wr_bytes)?;
    let writes = after.wr_operations.checked_sub(before.wr_operations)?;
    let nanoseconds = after.wr_total_time_ns.checked_sub(before.wr_total_time_ns)?;
    Some(DiskRate {
        disk: disk.name().to_owned(),
        bytes: Rate((bytes as f64 / seconds) as u64),
        writes: writes as f64 / seconds,
        latency: nanoseconds.checked_div(writes).map(Duration::from_nanos),
    })
}

/// Whether a probe may end. Each sample is the time since the probe's start and the bytes that have arrived.
pub fn is_probed(samples: &[(Duration, u64)]) -> bool {
    let Some(&(now, arrived)) = samples.last() else { return false };
    let warm = samples.iter().find(|(at, _)| *at >= WARMING).map_or(arrived, |(_, arrived)| *arrived);
    now >= LONGEST || (now >= WARMING + PROBED && arrived - warm >= ENOUGH)
}

/// The rate of a probe after its first part, or over all of it if the probe was over before.
pub fn bandwidth(samples: &[(Duration, u64)]) -> Option<Rate> {
    let (until, arrived) = *samples.last()?;
    let warm = samples.iter().find(|(at, seen)| *at >= WARMING && *seen < arrived);
    let (since, before) = warm.or(samples.first()).copied()?;
    let seconds = until.checked_sub(since)?.as_secs_f64();
    let bytes = arrived.checked_sub(before).filter(|bytes| *bytes > 0)?;
    (seconds > 0.0).then(|| Rate((bytes as f64 / seconds) as u64))
}

/// The bytes of the blocks of RAM, of these sizes, that are in memory or swapped out, by the text of a process's
/// `smaps`. `None` where there is no mapping that a block would fit in.
pub fn used(smaps: &str, blocks: &[u64]) -> Option<u64> {
    let mut mappings = mappings(smaps);
    let mut blocks = blocks.to_vec();
    blocks.sort_unstable_by(|a, b| b.cmp(a));
    let mut used = 0;
    for block in blocks {
        // the smallest mapping that a block fits in is its own: a larger one is of a larger block, or not the guest's
        let (&size, _) = mappings.range(block..).next()?;
        let held = mappings.get_mut(&size)?;
        used += held.pop()?.min(block);
        if held.is_empty() {
            mappings.remove(&size);
        }
    }
    Some(used)
}

/// The bytes in use of all mappings, by the mapping's size.
fn mappings(smaps: &str) -> BTreeMap<u64, Vec<u64>> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    for line in smaps.lines() {
        let Some((name, value)) = line.split_once(char::is_whitespace) else { continue };
        let Some(field) = name.strip_suffix(':') else {
            // a line without a field's name has the addresses of the next mapping
            all.extend(size_of(name).map(|size| (size, 0)));
            continue;
        };
        let counts = ["Rss", "Swap", "Shared_Hugetlb", "Private_Hugetlb"].contains(&field);
        if let (true, Some((_, held))) = (counts, all.last_mut()) {
            let kib = value.trim().strip_suffix("kB").and_then(|number| number.trim().parse::<u64>().ok());
            *held += kib.unwrap_or(0).saturating_mul(1024);
        }
    }
    // sorted, so that the fullest mapping of a size is the last, and is taken first
    all.sort_unstable();
    let mut mappings: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (size, held) in all {
        mappings.entry(size).or_default().push(held);
    }
    mappings
}

fn size_of(addresses: &str) -> Option<u64> {
    let (from, to) = addresses.split_once('-')?;
    u64::from_str_radix(to, 16).ok()?.checked_sub(u64::from_str_radix(from, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{qemu::reply::WriteStats, storage::model::chain::BackingChain};
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_guest_of_any_size_costs_about_the_same() {
        for (blocks, pages) in [
            (vec![1 << 30], Ok(16384)),
            (vec![128 * MIB], Ok(16384)),
            (vec![8 << 30], Ok(4096)),
            (vec![4 << 30, 4 << 30, 16 * MIB], Ok(4096)),
            (vec![64 << 30], Ok(512)),
            (vec![4 << 40], Ok(128)),
        ] {
            assert_eq!(sample_pages(&blocks), pages, "{blocks:?}");
        }
        for blocks in [vec![], vec![127 * MIB, 64 * MIB]] {
            assert!(sample_pages(&blocks).is_err(), "{blocks:?}");
        }
    }

    #[test]
    fn a_rate_of_mib_becomes_bytes_of_the_window() {
        for (rate, window, bytes) in
            [(10, ms(800), 8 * MIB), (1, ms(200), MIB / 5), (0, ms(800), 0), (7, ms(1000), 7 * MIB)]
        {
            assert_eq!(dirtied(rate, window), bytes, "{rate} in {window:?}");
        }
    }

    fn disk(path: &str, device: &str, node: &str) -> Disk {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Disk {
            qdev: None,
            device: some(device),
            node: node.to_owned(),
            path: some(path),
            file: String::new(),
            read_only: false,
            virtual_size: 0,
            chain: BackingChain::default(),
        }
    }

    fn stats(qdev: &str, device: &str, node: &str, bytes: u64, writes: u64, nanoseconds: u64) -> BlockStats {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let stats = WriteStats {
            wr_bytes: bytes,
            wr_operations: writes,
            wr_total_time_ns: nanoseconds,
            ..WriteStats::default()
        };
        BlockStats { device: device.to_owned(), qdev: some(qdev), node_name: some(node), stats }
    }

    #[test]
    fn a_disk_is_found_by_its_place_before_its_names() {
        let all = [
            stats("/machine/a", "drive1", "n1", 1, 0, 0),
            stats("/machine/b", "drive0", "n0", 2, 0, 0),
            stats("", "drive2", "n2", 3, 0, 0),
            stats("", "", "n3", 4, 0, 0),
        ];
        for (disk, bytes) in [
            (disk("/machine/a", "drive0", "n0"), Some(1)),
            (disk("", "drive2", "n0"), Some(3)),
            (disk("", "", "n3"), Some(4)),
            // a filter that a block job put on top has another name: the place stays
            (disk("/machine/b", "", "#block7"), Some(2)),
            (disk("/machine/c", "", "n9"), None),
        ] {
            assert_eq!(disk.stats(&all).map(|found| found.wr_bytes), bytes, "{disk:?}");
        }
    }

    #[test]
    fn rates_are_of_the_window() {
        let disk = disk("/p", "d", "n");
        let at = |bytes, writes, nanoseconds| vec![stats("/p", "d", "n", bytes, writes, nanoseconds)];
        let found = disk_rate(&disk, &at(1000, 10, 5000), &at(5096, 18, 45_000), ms(500)).expect("a rate");
        assert_eq!((found.bytes, found.writes), (Rate(8192), 16.0));
        assert_eq!((found.disk.as_str(), found.latency), ("d", Some(Duration::from_nanos(5000))));
        let quiet = disk_rate(&disk, &at(1000, 10, 5000), &at(1000, 10, 5000), ms(500)).expect("a rate");
        assert_eq!((quiet.bytes, quiet.writes, quiet.latency), (Rate(0), 0.0, None));
        // plugged in anew, unplugged, no time
        assert_eq!(disk_rate(&disk, &at(1000, 10, 5000), &at(0, 0, 0), ms(500)), None);
        assert_eq!(disk_rate(&disk, &at(1000, 10, 5000), &[], ms(500)), None);
        assert_eq!(disk_rate(&disk, &at(0, 0, 0), &at(0, 0, 0), ms(0)), None);
    }

    #[test]
    fn the_first_part_of_a_probe_counts_for_nothing() {
        let slow_start: Vec<_> = (0..=15).map(|n| (ms(n * 20), if n < 5 { n } else { (n - 4) * 2 * MIB })).collect();
        assert_eq!(bandwidth(&slow_start), Some(Rate(100 * MIB)));
        assert!(is_probed(&slow_start));
        // over before the first part was
        assert_eq!(bandwidth(&[(ms(0), 0), (ms(40), 400 * MIB)]), Some(Rate(10_000 * MIB)));
        // all of it came in the first part: then all of the time counts
        assert_eq!(bandwidth(&[(ms(0), 0), (ms(50), MIB), (ms(100), MIB)]), Some(Rate(10 * MIB)));
        for none in [&[][..], &[(ms(0), 0)], &[(ms(0), 0), (ms(300), 0)], &[(ms(5), MIB)]] {
            assert_eq!(bandwidth(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_slow_link_is_probed_for_longer() {
        let at = |rate: u64, millis: u64| -> Vec<_> {
            (0..=millis / 20).map(|n| (ms(n * 20), rate * n * 20 / 1000)).collect()
        };
        assert!(!is_probed(&[]));
        assert!(!is_probed(&at(1000 * MIB, 280)));
        assert!(is_probed(&at(1000 * MIB, 300)));
        assert!(!is_probed(&at(10 * MIB, 300)));
        assert!(is_probed(&at(10 * MIB, 920)));
        assert!(!is_probed(&at(0, 1480)));
        assert!(is_probed(&at(0, 1500)));
    }

    /// As the kernel writes it, less most fields.
    const SMAPS: &str = "\
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Size:             262144 kB
Rss:              100000 kB
Pss:              100000 kB
Swap:                 24 kB
SwapPss:              24 kB
VmFlags: rd wr mr mw me ac sd
7f0010000000-7f0010001000 ---p 00000000 00:00 0
Rss:                   0 kB
7f1000000000-7f1040000000 rw-s 00000000 00:0f 12 /anon_hugepage (deleted)
Rss:                   0 kB
Private_Hugetlb:  524288 kB
55d000000000-55d000021000 rw-p 00000000 00:00 0                          [heap]
Rss:                 132 kB
";

    #[test]
    fn used_memory_is_that_of_the_mapping_that_fits_best() {
        for (blocks, used_kib) in [
            (vec![256 * MIB], Some(100_024)),
            // the rest of the mapping is none of the block's
            (vec![64 * MIB], Some(64 * 1024)),
            (vec![1 << 30], Some(524_288)),
            (vec![256 * MIB, 1 << 30], Some(624_312)),
            (vec![256 * MIB, 256 * MIB], Some(100_024 + 256 * 1024)),
            (vec![256 * MIB, 256 * MIB, 256 * MIB], None),
            (vec![2 << 30], None),
        ] {
            assert_eq!(used(SMAPS, &blocks), used_kib.map(|kib| kib * 1024), "{blocks:?}");
        }
        assert_eq!(used("", &[MIB]), None);
    }

    #[test]
    fn what_is_missing_is_noted() {
        let missing = vec![MissingMeasurement { what: "bandwidth", why: "there is no NBD address".to_owned() }];
        let measured = GuestMeasurements { missing, ..GuestMeasurements::default() };
        let [note] = &measured.findings()[..] else { panic!("{measured:?}") };
        assert_eq!(
            (note.code.as_str(), note.severity, note.subject.as_str()),
            ("not-measured", crate::codes::Severity::Note, "bandwidth")
        );
        assert!(note.message.contains("there is no NBD address"));
        assert_eq!(measured.told(), "nothing");
    }

    proptest! {
        /// Whatever came, a rate is not above the fastest step, nor is there one where nothing came.
        #[test]
        fn a_rate_is_never_made_up(steps in prop::collection::vec((1u64..200, 0u64..(64 << 20)), 1..40)) {
            let mut samples = vec![(ms(0), 0)];
            for (millis, bytes) in &steps {
                let (at, arrived) = *samples.last().expect("one");
                samples.push((at + ms(*millis), arrived + bytes));
            }
            let fastest = steps.iter().map(|(millis, bytes)| bytes * 1000 / millis + 1).max().unwrap_or(0);
            match bandwidth(&samples) {
                Some(rate) => prop_assert!(rate.0 > 0 && rate.0 <= fastest + 1, "{rate:?} of {samples:?}"),
                None => prop_assert!(steps.iter().map(|step| step.1).sum::<u64>() * 1000 < samples[samples.len() - 1].0.as_millis() as u64 + 1),
            }
        }
    }

    #[test]
    fn windows_show_how_fast_and_how_much() {
        let window = |millis: u64, mib: u64| (Duration::from_millis(millis), mib << 20);
        for (windows, rate, set, next) in [
            (vec![], 0, None, false),
            (vec![window(200, 2), window(800, 8)], 10, None, false),
            (vec![window(200, 2), window(800, 4)], 10, Some(4), false),
            (vec![window(200, 20), window(800, 80)], 100, None, true),
            (vec![window(200, 20), window(800, 80), window(3000, 128)], 100, Some(128), false),
            (vec![window(200, 200), window(800, 800)], 1000, None, true),
        ] {
            let (found, found_set) = work(&windows);
            assert_eq!((found / 1048576.0).round() as u64, rate, "{windows:?}");
            assert_eq!(found_set.map(|bytes| bytes as u64 >> 20), set, "{windows:?}");
            assert_eq!(another(&windows).is_some(), next, "{windows:?}");
        }
    }
}
