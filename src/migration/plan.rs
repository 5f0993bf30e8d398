//! What would be done, and what speaks against it.
//!
//! Pure. `--plan` prints exactly what a run would start with.

use super::Settings;
use crate::{
    convergence::{
        Can, DiskRung, Task,
        predict::{Measurements, predict},
    },
    endpoint::Address,
    preflight::{
        checks::{self, Finding, Severity, Subject},
        contents::Contents,
        facts::{Facts, ports::Port},
        measured::{self, Measured},
        wanted::{self, Wanted},
    },
    progress::Estimate,
    qemu::{Features, reply::RunState},
    storage::{
        bitmaps,
        chain::Chain,
        identity::Comparison,
        layout::{self, Disk, Mode, Pair, Storage},
    },
};
use serde::Serialize;
use std::{collections::BTreeSet, time::Duration};

/// A migration as it would be done.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    /// What the checks found, blockers first.
    pub findings: Vec<Finding>,
    /// The disks that would move.
    pub disks: Vec<PlannedDisk>,
    /// What every disk of the source consists of, and what the destination has in its place.
    pub chains: Vec<Chains>,
    /// What was proved of images that must be the same.
    pub verified: Vec<Comparison>,
    /// What it would cost, as far as it is known.
    pub estimate: Estimate,
    /// Where the destination would listen for NBD and for RAM.
    #[serde(skip)]
    pub(crate) addresses: Option<(Address, Address)>,
    /// Where the source and the destination would listen while images are compared.
    #[serde(skip)]
    pub(crate) reading: (Option<Address>, Option<Address>),
    #[serde(skip)]
    pub(crate) pairs: Vec<Pair>,
    /// The images that are to be the same or empty.
    #[serde(skip)]
    pub(crate) wanted: Wanted,
    /// The guest's memory, bytes.
    #[serde(skip)]
    pub(crate) ram: u64,
    /// How many CPUs it has.
    #[serde(skip)]
    pub(crate) cpus: usize,
    /// What was measured for the estimate.
    #[serde(skip)]
    pub(crate) measured: Option<Measured>,
    /// The named bitmaps move with the guest.
    #[serde(skip)]
    pub(crate) bitmaps: bool,
    /// The guest was seen to run.
    #[serde(skip)]
    running: bool,
    /// The guest was seen on the source, running or paused.
    #[serde(skip)]
    pub(crate) on_source: bool,
}

/// A disk of the source and what the destination has in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chains {
    /// Its name.
    pub disk: String,
    /// How it is copied: `incremental`, `full`, or `none` where it is not.
    pub mode: &'static str,
    /// What it consists of.
    pub source: Chain,
    /// What is in its place.
    pub destination: Option<Chain>,
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
    /// What its images that are to be copied take on the source's file system, bytes: about what would be copied.
    pub actual_size: Option<u64>,
    /// How it is copied.
    pub mode: &'static str,
}

/// Bytes that a sender's kernel takes of a stream that is faster than the link, by Linux's default of `tcp_wmem`: 20 ms at
/// 1 Gbit/s and 55 ms at 400 Mbit/s were seen.
const TCP_BUFFERED: u64 = 2_500_000;

/// Findings that leave nothing to be read: the sides are not as they should be, or not ours to open exports in, or what is
/// to be read is being written to.
const UNREADABLE: [&str; 15] = [
    "port-taken",
    "address-missing",
    "same-process",
    "qemu-lacks",
    "source-state",
    "migration-blocked",
    "migration-under-way",
    "destination-state",
    "destination-used",
    "leftover",
    "export-open",
    "backing-is-live",
    "overlay-is-backing",
    "overlay-is-live",
    "overlay-taken",
];

impl Plan {
    /// What is left of a plan when it is taken up again.
    pub(crate) fn of(pairs: Vec<Pair>, addresses: Option<(Address, Address)>) -> Self {
        Self { pairs, addresses, ..Self::default() }
    }

    /// Makes the plan from what both sides said, and from what connections to the user's addresses came to. `id` names
    /// this run in the paths of its sockets.
    pub fn new(
        source: &Facts,
        destination: &Facts,
        ports: &[(&'static str, Address, Port)],
        settings: &Settings,
        id: &str,
    ) -> Self {
        let (all, theirs) = (source.disks(), destination.disks());
        let selection = &settings.selection;
        let is_none = selection.storage == Storage::None;
        let (shared, ours): (Vec<Disk>, Vec<Disk>) = all.iter().cloned().partition(|disk| {
            let there = layout::candidates(disk, &theirs, selection);
            !is_none && is_shared(disk, &there, source, destination)
        });
        let (pairs, problems) = layout::pair(&ours, &theirs, selection);
        let counterparts = layout::counterparts(&ours, &theirs, selection);
        let (unshared, standing) = match is_none {
            true => (counterparts, Vec::new()),
            false => (Vec::new(), counterparts.into_iter().filter(|(disk, _)| disk.read_only).collect()),
        };
        let able = |side: &Facts| side.features.migration_capabilities.contains(bitmaps::CAPABILITY);
        let bitmaps = bitmaps::decide(&ours, &pairs, selection.storage, (able(source), able(destination)));
        let wanted = wanted::wanted(source, destination, &pairs, &standing);

        let both_local = source.pid.is_some() && destination.pid.is_some();
        // none where its path would be too long for a socket
        let socket = |what: &str| Address::unix(settings.runtime_dir.join(format!("{id}-{what}"))).ok();
        let address = |given: &Option<Address>, what: &str, local: bool| {
            given.clone().or_else(|| if local { socket(what) } else { None })
        };
        let nbd = address(&settings.nbd_address, "nbd", both_local);
        let ram = address(&settings.migrate_address, "ram", both_local);
        let here = address(&settings.source_nbd_address, "here", source.pid.is_some());
        let there = address(&settings.nbd_address, "there", destination.pid.is_some());
        let mut addresses = vec![("--nbd-address", nbd.clone()), ("--migrate-address", ram.clone())];
        if !wanted.to_read(settings.verify_backing).is_empty() {
            addresses.push(("--source-nbd-address", here.clone()));
        }

        let shared: Vec<String> = shared.iter().map(|disk| disk.name().to_owned()).collect();
        let left_out: Vec<String> = layout::left_out(&ours, &pairs, selection);
        let mut findings = checks::run(&Subject {
            source,
            destination,
            pairs: &pairs,
            problems: &problems,
            shared: &shared,
            left_out: &left_out,
            standing: &standing,
            unshared: &unshared,
            spare: &layout::spare(&all, &theirs, &pairs),
            bitmaps: &bitmaps,
            tuning: &settings.tuning(bitmaps.moved),
            storage: selection.storage,
            overcommit: settings.overcommit,
            clean: settings.clean,
            addresses: &addresses,
            ports,
            allow_plaintext: settings.allow_plaintext,
        });
        findings.extend(checks::contents::wanted(&wanted, settings.verify_backing));
        let findings = checks::weigh(findings, &settings.force);
        let disks: Vec<PlannedDisk> = pairs.iter().map(planned).collect();
        let on_source = matches!(source.run, RunState::Running | RunState::Paused);
        let disk_bytes = disks.iter().map(|disk| disk.actual_size).sum();
        let estimate = Estimate { disk_bytes, ram_bytes: Some(source.ram), ..Estimate::default() };
        Self {
            findings,
            disks,
            chains: chains(&all, &theirs, &pairs, source, destination),
            verified: Vec::new(),
            estimate,
            addresses: nbd.zip(ram),
            reading: (here, there),
            pairs,
            wanted,
            ram: source.ram,
            cpus: source.machine.cpus,
            running: source.run == RunState::Running,
            measured: None,
            bitmaps: bitmaps.moved,
            on_source,
        }
    }

    /// Whether anything may be opened for reading in the two QEMUs.
    pub(crate) fn is_readable(&self) -> bool {
        !self.findings.iter().any(|finding| UNREADABLE.contains(&finding.code))
    }

    /// Adds what was read of both sides.
    pub(crate) fn add(&mut self, contents: Contents, force: &BTreeSet<String>) {
        self.findings.extend(checks::weigh(checks::contents::read(&contents), force));
        self.findings.sort_by_key(|finding| finding.severity);
        self.verified = contents.comparisons;
    }

    /// Notes that nothing was read. Where a blocker says why, that is enough; a leftover that is going to be removed is none.
    pub(crate) fn left_unread(&mut self) {
        if self.blockers().next().is_none() {
            self.findings.extend(checks::contents::unread(&self.wanted));
            self.findings.sort_by_key(|finding| finding.severity);
        }
    }

    /// Adds the disks of a side that were not left alone meanwhile.
    pub(crate) fn add_changed(&mut self, side: &str, disks: &[String]) {
        self.findings.extend(checks::contents::changed(side, disks));
        self.findings.sort_by_key(|finding| finding.severity);
    }

    /// Adds what was measured, and what follows from it for this migration; notes what could not be. `before` is how long
    /// it took until it was measured.
    pub(crate) fn add_measured(
        &mut self,
        measured: Measured,
        settings: &Settings,
        features: &Features,
        before: Duration,
    ) {
        self.findings.extend(measured.findings());
        self.findings.sort_by_key(|finding| finding.severity);
        if let Some(seen) = self.measurements(&measured, features, before) {
            let throttle = settings.policy.may_throttle();
            self.estimate = predict(&settings.policy, &self.task(settings, features, throttle), &seen);
        }
        self.measured = Some(measured);
    }

    /// What the controller has to do.
    pub(crate) fn task(&self, settings: &Settings, source: &Features, throttle: bool) -> Task {
        let policy = &settings.policy;
        let blocks = source.block_job_change && policy.disks.contains(&DiskRung::WriteBlocking) && !policy.observe;
        Task {
            budget: settings.downtime,
            ceiling: settings.bandwidth,
            disk_ceiling: settings.disk_bandwidth,
            timeout: settings.timeout,
            memory: self.ram,
            disks: self.pairs.iter().map(|pair| pair.source.virtual_size).collect(),
            dirty_rate: self
                .measured
                .as_ref()
                .and_then(|measured| measured.dirtied.first())
                .map(|(window, bytes)| *bytes as f64 / window.as_secs_f64()),
            can: Can {
                write_blocking: blocks,
                throttle,
                postcopy: policy.may_postcopy(),
                // with more channels it could not be held back, nor where nothing may be changed, nor where QEMU cannot be
                // told what to reckon with; and a paused guest's memory is through with its first pass
                overlap: settings.multifd.is_none()
                    && self.running
                    && !policy.observe
                    && source.avail_switchover_bandwidth,
                switchover_bandwidth: source.avail_switchover_bandwidth,
            },
            buffered: match self.addresses {
                Some((_, Address::Tcp { .. })) => TCP_BUFFERED,
                _ => 0,
            },
        }
    }

    /// What is known beforehand; None where too little is.
    fn measurements(&self, measured: &Measured, features: &Features, before: Duration) -> Option<Measurements> {
        let is_missing = |what: &str| measured.missing.iter().any(|missing| missing.what == what);
        if is_missing("dirty-rate") || is_missing("bandwidth") {
            return None;
        }
        let written = |disk: &str| measured.disks.iter().find(|rate| rate.disk == disk);
        let disk = |disk: &PlannedDisk| {
            let written = written(&disk.source).map_or(0, |rate| rate.bytes.0);
            Some((disk.source.clone(), disk.actual_size?, written))
        };
        let (dirty_rate, working_set) = measured::work(&measured.dirtied);
        Some(Measurements {
            memory: self.ram,
            used: measured.used,
            dirty_rate,
            working_set,
            disks: self.disks.iter().map(disk).collect::<Option<_>>()?,
            write_latency: measured.disks.iter().filter_map(|disk| disk.latency).max(),
            link: measured.bandwidth.map(|rate| rate.0 as f64),
            round_trip: measured.source_round_trip.max(measured.destination_round_trip),
            before,
            continuous: features.failing_status,
            switchover_bandwidth: features.avail_switchover_bandwidth,
        })
    }

    /// What was measured, where that was asked for and nothing forbids the migration.
    pub fn measured(&self) -> Option<&Measured> {
        self.measured.as_ref()
    }

    /// The findings that forbid the migration.
    pub fn blockers(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Blocker)
    }
}

/// Whether the destination has the same file open in its place: it would be mirrored onto itself. In another's place it
/// would be missed in its own.
fn is_shared(disk: &Disk, there: &[&Disk], source: &Facts, destination: &Facts) -> bool {
    let id = |facts: &Facts, disk: &Disk| disk.chain.top().and_then(|top| Some(facts.file(top)?.id));
    let file = id(source, disk);
    file.is_some() && there.iter().any(|other| id(destination, other) == file)
}

fn planned(pair: &Pair) -> PlannedDisk {
    let layers = &pair.source.chain.layers;
    let copied = match pair.mode {
        Mode::Incremental => layers.get(..1).unwrap_or_default(),
        Mode::Full => layers,
    };
    PlannedDisk {
        source: pair.source.name().to_owned(),
        destination: pair.destination.name().to_owned(),
        virtual_size: pair.source.virtual_size,
        actual_size: copied.iter().map(|layer| layer.actual_size).sum(),
        mode: pair.mode.as_str(),
    }
}

/// Every disk of the source beside what the destination has in its place.
fn chains(ours: &[Disk], theirs: &[Disk], pairs: &[Pair], source: &Facts, destination: &Facts) -> Vec<Chains> {
    let local = source.pid.is_some() && destination.pid.is_some();
    let marked = |chain: &Chain, facts: &Facts, other: &Facts| {
        let mut chain = chain.clone();
        for layer in &mut chain.layers {
            let file = facts.file(layer).filter(|_| local);
            layer.shared = file.map(|file| other.files.values().any(|theirs| theirs.id == file.id));
        }
        chain
    };
    let one = |disk: &Disk| {
        let pair = pairs.iter().find(|pair| pair.source == *disk);
        let other = pair.map(|pair| &pair.destination).or_else(|| layout::counterpart(disk, theirs));
        Chains {
            disk: disk.name().to_owned(),
            mode: pair.map_or("none", |pair| pair.mode.as_str()),
            source: marked(&disk.chain, source, destination),
            destination: other.map(|other| marked(&other.chain, destination, source)),
        }
    };
    ours.iter().map(one).collect()
}
