//! How far a migration is, folded from its events.

use crate::progress::{Event, EventKind, Phase, PhaseState};
use serde::Serialize;
use std::collections::BTreeMap;

/// How far a migration, check, recovery or preparation is.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Progress {
    /// Milliseconds from the start to the last event.
    pub t_ms: u64,
    /// The phase that began last and has not ended.
    pub phase: Option<Phase>,
    /// The disks' mirrors, by the disk's name on the source.
    pub disks: BTreeMap<String, DiskProgress>,
    /// The RAM migration, once it was measured.
    pub memory: Option<MemoryProgress>,
}

/// How far the mirror of one disk is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DiskProgress {
    /// Bytes copied so far.
    pub copied: u64,
    /// Bytes to copy in all, as known now; grows while the guest writes.
    pub total: u64,
    /// Whether the destination has caught up once.
    pub ready: bool,
    /// Bytes per second, smoothed.
    pub rate: u64,
}

/// How far the RAM migration is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryProgress {
    /// Bytes sent so far.
    pub transferred: u64,
    /// Bytes still to send, as QEMU last counted.
    pub remaining: u64,
    /// Bytes per second sent, smoothed.
    pub bandwidth: u64,
    /// Milliseconds of blackout if the guest were stopped now; `None` until RAM was measured.
    pub predicted_blackout_ms: Option<u64>,
}

impl Progress {
    pub(crate) fn add(&mut self, event: &Event) {
        self.t_ms = event.t_ms;
        match &event.kind {
            EventKind::Phase { phase, state: PhaseState::Begin } => self.phase = Some(*phase),
            // phases may overlap: only its own end ends the one that began last
            EventKind::Phase { phase, state: PhaseState::End } => {
                self.phase = self.phase.filter(|begun| begun != phase)
            }
            EventKind::Disk { disk, copied, total, ready, rate, .. } => {
                let progress = DiskProgress { copied: *copied, total: *total, ready: *ready, rate: *rate };
                self.disks.insert(disk.clone(), progress);
            }
            EventKind::Memory { transferred, remaining, bandwidth, predicted_blackout_ms, .. } => {
                self.memory = Some(MemoryProgress {
                    transferred: *transferred,
                    remaining: *remaining,
                    bandwidth: *bandwidth,
                    predicted_blackout_ms: *predicted_blackout_ms,
                });
            }
            _ => {}
        }
    }
}
