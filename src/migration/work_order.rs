//! The orders of a run, made from a plan without blockers. A recovery reads the part that the way back needs from a
//! journal.
//!
//! Pure.

use super::Settings;
use crate::{
    convergence::{Abilities, BuildAbilities, ConvergenceJob},
    endpoint::Address,
    memory::tuning::{MigrationTuning, ThrottleMode},
    preflight::facts::SideFacts,
    progress::{Estimate, Side},
    qemu::Features,
    storage::model::layout::DiskPair,
};
use std::sync::Arc;

/// The capability with which the pages that a guest waits for in postcopy have a channel of their own, and do not queue
/// behind those that nobody waits for.
const PREEMPT: &str = "postcopy-preempt";

/// The bytes that a sender's kernel buffers when a stream is faster than the link, by Linux's default of `tcp_wmem`.
/// The delay was measured as 20 ms at 1 Gbit/s and 55 ms at 400 Mbit/s.
const TCP_BUFFERED: u64 = 2_500_000;

/// The disks that move, and the addresses. A journal keeps the route, so that another engine can recover the migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// The disks that move.
    pub(crate) pairs: Vec<DiskPair>,
    /// The addresses at which the destination listens, for NBD and for RAM.
    pub(crate) addresses: (Address, Address),
}

impl Route {
    /// The address at which the destination listens for NBD.
    pub(crate) fn nbd(&self) -> &Address {
        &self.addresses.0
    }

    /// The address at which the destination listens for RAM.
    pub(crate) fn ram(&self) -> &Address {
        &self.addresses.1
    }
}

/// The part of a plan that a run carries out.
#[derive(Debug, Clone)]
pub(crate) struct WorkOrder {
    /// The disks that move, and the addresses.
    pub(crate) route: Route,
    /// The guest's memory, bytes.
    pub(crate) memory: u64,
    /// The number of the guest's virtual CPUs.
    pub(crate) cpus: usize,
    /// Whether the guest was seen to run.
    pub(crate) is_running: bool,
    /// The rate at which the guest dirties RAM, bytes per second, where it was measured.
    pub(crate) dirty_rate: Option<f64>,
    /// Whether the named dirty bitmaps move with the guest.
    pub(crate) bitmaps: bool,
    /// The prediction, where one was asked for.
    pub(crate) predicted: Option<Estimate>,
    /// The facts from which the plan was made.
    pub(crate) proved: Arc<ProvedFacts>,
}

/// The facts of both sides that the checks were made with. They must hold until RAM is sent.
#[derive(Debug)]
pub(crate) struct ProvedFacts {
    pub(crate) source: SideFacts,
    pub(crate) destination: SideFacts,
}

impl WorkOrder {
    /// What this run wants of QEMU's migration.
    pub(crate) fn tuning(&self, settings: &Settings) -> MigrationTuning {
        let ProvedFacts { source, destination } = &*self.proved;
        let preempt = [source, destination].iter().all(|side| side.features.migration_capabilities.contains(PREEMPT));
        MigrationTuning { preempt, ..settings.tuning(self.bitmaps) }
    }

    /// The commands that the source's build and the settings leave to the controller, whatever the policy is.
    pub(crate) fn build_abilities(&self, settings: &Settings, source: &Features) -> BuildAbilities {
        let throttled = MigrationTuning { throttle: ThrottleMode::OnDemand, ..MigrationTuning::default() };
        BuildAbilities {
            write_blocking: source.block_job_change,
            throttle: throttled.for_side(Side::Source, source).throttles(),
            // RAM cannot be held back with multifd, nor where QEMU has no avail-switchover-bandwidth; the memory of a
            // paused guest is sent in one pass, so holding is no use
            overlap: settings.multifd.is_none() && self.is_running && source.avail_switchover_bandwidth,
            switchover_bandwidth: source.avail_switchover_bandwidth,
        }
    }

    /// The job of the controller of convergence.
    pub(crate) fn task(&self, settings: &Settings, source: &Features, throttle: bool) -> ConvergenceJob {
        ConvergenceJob {
            budget: settings.downtime,
            strict: settings.strict_budget,
            ceiling: settings.bandwidth,
            disk_ceiling: settings.disk_bandwidth,
            timeout: settings.timeout,
            memory: self.memory,
            disks: self.route.pairs.iter().map(|pair| pair.source.virtual_size).collect(),
            // whole bytes, so that a replay reads the same number
            dirty_rate: self.dirty_rate.map(f64::round),
            abilities: Abilities { throttle, ..self.build_abilities(settings, source).under(&settings.policy) },
            buffered: match self.route.ram() {
                Address::Tcp { .. } => TCP_BUFFERED,
                _ => 0,
            },
        }
    }
}
