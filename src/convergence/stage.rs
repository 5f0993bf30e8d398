//! The stage of a migration: whether RAM or a mirror is what the guest's stop waits for.
//!
//! Pure. A stage follows from the history alone and is made once for each sample; no stage is stored.

use super::history::{ControllerEnd, History, MemoryState};

/// The progress of all mirrors together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MirrorProgress {
    /// At least one mirror has not caught up with its guest yet.
    Copying,
    /// Every mirror has caught up once, but at least one of them can still fall behind.
    Ready,
    /// No mirror would prolong a blackout: each is in write-blocking mode with nothing left to copy or, where QEMU
    /// cannot block writes, has almost nothing left.
    InStep,
}

/// The stage of a migration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ConvergenceStage {
    /// RAM has not been started.
    Disks(MirrorProgress),
    /// RAM is sent beside mirrors that are not in step, and must not stop the guest before they are.
    Overlap {
        /// The mirrors' progress: copying, or ready.
        mirrors: MirrorProgress,
        /// RAM gets a trickle only, since little of it remains.
        trickles: bool,
    },
    /// The mirrors are in step: the guest's stop depends on RAM alone.
    Memory {
        /// QEMU is still kept from stopping the guest, as it was beside the mirrors.
        held: bool,
    },
    /// Postcopy was asked for.
    Postcopy {
        /// QEMU reports that the guest's pages are fetched on demand.
        running: bool,
    },
    /// The controller gave up for another reason than time. A policy that only observes goes on.
    GivenUp {
        /// RAM has been started.
        memory_started: bool,
    },
    /// The user's timeout is over.
    TimedOut,
}

impl MirrorProgress {
    pub(super) fn of(history: &History) -> Self {
        let disks = || history.disks.values().map(|track| track.estimate());
        match (disks().all(|disk| disk.ready), disks().all(|disk| history.is_in_step(&disk))) {
            (false, _) => Self::Copying,
            (true, false) => Self::Ready,
            (true, true) => Self::InStep,
        }
    }
}

impl ConvergenceStage {
    pub(super) fn of(history: &History) -> Self {
        let applied = &history.applied;
        let runs_postcopy = history.memory.last().is_some_and(|ram| ram.postcopy);
        match applied.end {
            Some(ControllerEnd::TimedOut) => Self::TimedOut,
            _ if runs_postcopy => Self::Postcopy { running: true },
            Some(ControllerEnd::GaveUp) => Self::GivenUp { memory_started: applied.memory != MemoryState::NotStarted },
            Some(ControllerEnd::Postcopy) => Self::Postcopy { running: false },
            None => match (applied.memory, MirrorProgress::of(history)) {
                (MemoryState::NotStarted, mirrors) => Self::Disks(mirrors),
                (state, MirrorProgress::InStep) => Self::Memory { held: state == MemoryState::Held },
                (_, mirrors) => Self::Overlap { mirrors, trickles: applied.shares.trickles() },
            },
        }
    }
}
