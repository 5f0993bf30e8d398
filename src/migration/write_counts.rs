//! How long the guest's writes took, before and while they waited for the destination, from QEMU's counts.
//!
//! Pure. QEMU counts from the start of the mirrors on, and the counts at the switch to write-blocking divide them.

use crate::{
    progress::GuestWrites,
    qemu::reply::BlockStats,
    storage::{mirror::write_histogram, model::layout::DiskPair},
};
use std::collections::BTreeMap;

/// The counts of the disks that are mirrored, by the paths of their devices.
#[derive(Debug, Default)]
pub(crate) struct WriteCounts(BTreeMap<String, DiskWriteCounts>);

/// The counts of one disk.
#[derive(Debug, Default)]
struct DiskWriteCounts {
    /// The counts when the mirror became write-blocking.
    at_switch: Option<Vec<u64>>,
    /// The last counts that were seen.
    latest: Vec<u64>,
}

/// The path of the device of a pair's source disk.
pub(super) fn device(pair: &DiskPair) -> Option<&str> {
    pair.source.path.as_deref().filter(|path| !path.is_empty())
}

impl WriteCounts {
    /// QEMU counts the writes to this device from now on.
    pub(crate) fn begin(&mut self, device: String) {
        self.0.insert(device, DiskWriteCounts::default());
    }

    /// Whether QEMU counts any writes.
    pub(crate) fn is_counting(&self) -> bool {
        !self.0.is_empty()
    }

    /// Takes the counts in.
    pub(crate) fn look(&mut self, all: &[BlockStats]) {
        for (device, counts) in &mut self.0 {
            let found = all.iter().find(|one| one.qdev.as_ref() == Some(device));
            if let Some(bins) = found.and_then(|one| write_histogram::counts(&one.stats)) {
                counts.latest = bins.to_vec();
            }
        }
    }

    /// The counts that were taken in last are those from before a mirror was write-blocking.
    pub(crate) fn switch(&mut self, pair: &DiskPair) {
        let Some(counts) = device(pair).and_then(|device| self.0.get_mut(device)) else { return };
        counts.at_switch.get_or_insert_with(|| counts.latest.clone());
    }

    /// What is told of a disk; `None` where QEMU counted no write.
    pub(crate) fn told(&self, pair: &DiskPair) -> Option<GuestWrites> {
        let DiskWriteCounts { at_switch, latest } = self.0.get(device(pair)?)?;
        let before = at_switch.as_ref().unwrap_or(latest);
        let since = at_switch.as_ref().map(|before| {
            let before = before.iter().chain(std::iter::repeat(&0));
            latest.iter().zip(before).map(|(now, before)| now.saturating_sub(*before)).collect::<Vec<u64>>()
        });
        let told = GuestWrites {
            copying: write_histogram::times(before),
            write_blocking: since.and_then(|since| write_histogram::times(&since)),
        };
        (told != GuestWrites::default()).then_some(told)
    }
}
