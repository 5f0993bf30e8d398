//! What a run needs to know: made of a plan without blockers, or, as far as the way back goes, of a journal.
//!
//! Pure.

use super::Settings;
use crate::{
    convergence::{Abilities, ConvergenceJob, DiskRung},
    endpoint::Address,
    progress::Estimate,
    qemu::Features,
    storage::model::layout::DiskPair,
};

/// Bytes that a sender's kernel takes of a stream that is faster than the link, by Linux's default of `tcp_wmem`: 20
/// ms at 1 Gbit/s and 55 ms at 400 Mbit/s were seen.
const TCP_BUFFERED: u64 = 2_500_000;

/// What moves, and over which addresses. A journal keeps it, so that another engine can take a migration up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// The disks that move.
    pub(crate) pairs: Vec<DiskPair>,
    /// Where the destination listens, for NBD and for RAM.
    pub(crate) addresses: (Address, Address),
}

impl Route {
    /// Where the destination listens for NBD.
    pub(crate) fn nbd(&self) -> &Address {
        &self.addresses.0
    }

    /// Where the destination listens for RAM.
    pub(crate) fn ram(&self) -> &Address {
        &self.addresses.1
    }
}

/// All that a run is told of the plan that it carries out.
#[derive(Debug, Clone)]
pub(crate) struct WorkOrder {
    /// What moves, and over which addresses.
    pub(crate) route: Route,
    /// The guest's memory, bytes.
    pub(crate) memory: u64,
    /// How many virtual CPUs the guest has.
    pub(crate) cpus: usize,
    /// The guest was seen to run.
    pub(crate) is_running: bool,
    /// What the guest was seen to dirty, bytes per second, where that was measured.
    pub(crate) dirty_rate: Option<f64>,
    /// The named bitmaps move with the guest.
    pub(crate) bitmaps: bool,
    /// The estimate, where the user asked for one.
    pub(crate) predicted: Option<Estimate>,
}

impl WorkOrder {
    /// What the controller has to do.
    pub(crate) fn task(&self, settings: &Settings, source: &Features, throttle: bool) -> ConvergenceJob {
        let policy = &settings.policy;
        let blocks = source.block_job_change && policy.disks.contains(&DiskRung::WriteBlocking) && !policy.observe;
        ConvergenceJob {
            budget: settings.downtime,
            ceiling: settings.bandwidth,
            disk_ceiling: settings.disk_bandwidth,
            timeout: settings.timeout,
            memory: self.memory,
            disks: self.route.pairs.iter().map(|pair| pair.source.virtual_size).collect(),
            dirty_rate: self.dirty_rate,
            abilities: Abilities {
                write_blocking: blocks,
                throttle,
                postcopy: policy.may_postcopy(),
                // RAM cannot be held back on several channels, nor where nothing may be changed, nor where QEMU
                // cannot be told the bandwidth to reckon with; and a paused guest's memory is sent in its first pass
                overlap: settings.multifd.is_none()
                    && self.is_running
                    && !policy.observe
                    && source.avail_switchover_bandwidth,
                switchover_bandwidth: source.avail_switchover_bandwidth,
            },
            buffered: match self.route.ram() {
                Address::Tcp { .. } => TCP_BUFFERED,
                _ => 0,
            },
        }
    }
}
