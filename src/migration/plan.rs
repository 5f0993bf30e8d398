//! What would be done, and what speaks against it.
//!
//! Pure. `--plan` prints exactly what a run would start with.

use super::Settings;
use crate::{
    endpoint::Address,
    preflight::{
        checks::{self, Finding, Severity, Subject},
        facts::Facts,
    },
    qemu::reply::RunState,
    storage::layout::{self, Disk, Pair},
};
use serde::Serialize;

/// A migration as it would be done.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// What the checks found, blockers first.
    pub findings: Vec<Finding>,
    /// The disks that would move.
    pub disks: Vec<PlannedDisk>,
    /// What it would cost, as far as it is known.
    pub estimate: Estimate,
    /// Where the destination would listen for NBD and for RAM.
    #[serde(skip)]
    pub(super) addresses: Option<(Address, Address)>,
    #[serde(skip)]
    pub(super) pairs: Vec<Pair>,
    /// The guest was seen on the source, running or paused.
    #[serde(skip)]
    pub(super) on_source: bool,
}

/// A disk that would move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedDisk {
    /// Its name on the source.
    pub source: String,
    /// Its name on the destination.
    pub destination: String,
    /// The size the guest sees, bytes.
    pub virtual_size: u64,
    /// What its top image takes on the source's file system, bytes: about what would be copied.
    pub actual_size: Option<u64>,
    /// How it is copied.
    pub mode: &'static str,
}

/// What a migration would cost; what cannot be foreseen yet is null.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Milliseconds in all.
    pub total_ms: Option<u64>,
    /// Milliseconds the guest would be stopped.
    pub blackout_ms: Option<u64>,
    /// Bytes of disks to copy.
    pub disk_bytes: Option<u64>,
    /// Bytes of RAM to copy, at least once where they are not zero.
    pub ram_bytes: Option<u64>,
    /// Whether it would come to an end.
    pub converges: Option<bool>,
}

impl Plan {
    /// Makes the plan from what both sides said. `id` names this run in the paths of its sockets.
    pub fn new(source: &Facts, destination: &Facts, settings: &Settings, id: &str) -> Self {
        let ours = Disk::all(&source.devices);
        let (shared, ours): (Vec<Disk>, Vec<Disk>) =
            ours.into_iter().partition(|disk| is_shared(disk, source, destination));
        let (pairs, problems) = layout::pair(&ours, &Disk::all(&destination.devices), &settings.selection);

        let both_local = source.pid.is_some() && destination.pid.is_some();
        let address = |given: &Option<Address>, what: &str| {
            // none where its path would be too long for a socket
            let socket = || Address::unix(settings.runtime_dir.join(format!("{id}-{what}"))).ok();
            let chosen = || if both_local { socket() } else { None };
            given.clone().or_else(chosen)
        };
        let (nbd, ram) = (address(&settings.nbd_address, "nbd"), address(&settings.migrate_address, "ram"));

        let shared: Vec<String> = shared.iter().map(|disk| disk.name().to_owned()).collect();
        let left_out: Vec<String> = layout::left_out(&ours, &pairs, &settings.selection);
        let findings = checks::run(&Subject {
            source,
            destination,
            pairs: &pairs,
            problems: &problems,
            shared: &shared,
            left_out: &left_out,
            addresses: &[("--nbd-address", nbd.clone()), ("--migrate-address", ram.clone())],
            allow_plaintext: settings.allow_plaintext,
            force: &settings.force,
        });
        let disks: Vec<PlannedDisk> = pairs.iter().map(|pair| planned(pair, source)).collect();
        let on_source = matches!(source.run, RunState::Running | RunState::Paused);
        let disk_bytes = disks.iter().map(|disk| disk.actual_size).sum();
        let estimate = Estimate { disk_bytes, ram_bytes: Some(source.ram), ..Estimate::default() };
        Self { findings, disks, estimate, addresses: nbd.zip(ram), pairs, on_source }
    }

    /// The findings that forbid the migration.
    pub fn blockers(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Blocker)
    }
}

/// Whether the destination has the same file open: it would be mirrored onto itself.
fn is_shared(disk: &Disk, source: &Facts, destination: &Facts) -> bool {
    let file = source.files.get(&disk.node);
    file.is_some_and(|file| destination.files.values().any(|other| other == file))
}

fn planned(pair: &Pair, source: &Facts) -> PlannedDisk {
    let nodes = source.devices.iter().filter_map(|device| device.inserted.as_ref());
    let node = nodes.into_iter().find(|node| node.node_name == pair.source.node);
    PlannedDisk {
        source: pair.source.name().to_owned(),
        destination: pair.destination.name().to_owned(),
        virtual_size: pair.source.virtual_size,
        actual_size: node.and_then(|node| node.image.actual_size),
        mode: "incremental",
    }
}
