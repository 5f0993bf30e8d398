//! What would be done, and what speaks against it.
//!
//! Pure. `--plan` prints exactly what a run would start with.

use super::{
    Failure, Settings,
    work_order::{Route, WorkOrder},
};
use crate::{
    codes::{FindingCode, Setting},
    convergence::predict::{DiskInput, PredictionInput, predict},
    endpoint::Address,
    preflight::{
        checks::{self, CheckSubject, Finding, Severity},
        comparison_plan::{self, ComparisonPlan},
        contents::ImageContents,
        facts::{SideFacts, ports::PortState},
        measurements::{self, GuestMeasurements},
    },
    progress::Estimate,
    qemu::{Features, reply::RunState},
    storage::{
        model::{
            bitmaps,
            chain::BackingChain,
            layout::{self, CopyMode, Disk, DiskPair, StorageMode},
        },
        verify::identity::Comparison,
    },
};
use serde::Serialize;
use std::{collections::BTreeSet, time::Duration};

/// A migration as it would be done, for people and programs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    /// What the checks found, blockers first.
    pub findings: Vec<Finding>,
    /// The disks that would move.
    pub disks: Vec<PlannedDisk>,
    /// What every disk of the source consists of, and what the destination has in its place.
    #[doc(hidden)]
    pub chains: Vec<Chains>,
    /// What was proved of images that must be the same.
    #[doc(hidden)]
    pub verified: Vec<Comparison>,
    /// What the migration would cost, as far as it is known.
    pub estimate: Estimate,
    /// What was measured for the estimate.
    #[serde(skip)]
    measured: Option<GuestMeasurements>,
}

/// A plan while it is made: what is to be told of it, what is to be read for it, and what a run would need.
pub(crate) struct Draft {
    /// What is to be told.
    pub(crate) plan: Plan,
    /// The images that are to be compared or to be empty.
    pub(crate) comparison: ComparisonPlan,
    /// Where the source and the destination would listen while images are compared.
    pub(crate) reading: (Option<Address>, Option<Address>),
    /// What a run would need; `None` where no address could be chosen, which is a blocker.
    order: Option<WorkOrder>,
    /// The guest was seen on the source, running or paused.
    on_source: bool,
}

/// A disk of the source and what the destination has in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chains {
    /// Its name.
    pub disk: String,
    /// How it is copied: `incremental`, `full`, or `none` where it is not.
    pub mode: &'static str,
    /// What it consists of.
    pub source: BackingChain,
    /// What is in its place.
    pub destination: Option<BackingChain>,
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

impl Plan {
    /// What was measured, where that was asked for and nothing forbids the migration.
    #[doc(hidden)]
    pub fn measured(&self) -> Option<&GuestMeasurements> {
        self.measured.as_ref()
    }

    /// The findings that forbid the migration.
    pub fn blockers(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Blocker)
    }

    /// Adds findings, blockers first.
    fn find(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings);
        self.findings.sort_by_key(|finding| finding.severity);
    }
}

impl Draft {
    /// Makes a plan of what both sides said, and of what connections to the user's addresses came to. `id` names this
    /// run in the paths of its sockets.
    pub(crate) fn new(
        source: &SideFacts,
        destination: &SideFacts,
        ports: &[(Setting, Address, PortState)],
        settings: &Settings,
        id: &str,
    ) -> Self {
        let (source_disks, destination_disks) = (source.disks(), destination.disks());
        let selection = &settings.selection;
        let is_none = selection.storage == StorageMode::None;
        let (shared, moving): (Vec<Disk>, Vec<Disk>) = source_disks.iter().cloned().partition(|disk| {
            let others = layout::candidates(disk, &destination_disks, selection);
            !is_none && is_shared(disk, &others, source, destination)
        });
        let (pairs, problems) = layout::pair(&moving, &destination_disks, selection);
        let counterparts = layout::counterparts(&moving, &destination_disks, selection);
        let (unshared, standing) = match is_none {
            true => (counterparts, Vec::new()),
            false => (Vec::new(), counterparts.into_iter().filter(|(disk, _)| disk.read_only).collect()),
        };
        let able = |side: &SideFacts| side.features.migration_capabilities.contains(bitmaps::CAPABILITY);
        let bitmaps = bitmaps::decide(&moving, &pairs, selection.storage, (able(source), able(destination)));
        let comparison = comparison_plan::images(source, destination, &pairs, &standing);

        let both_local = source.pid.is_some() && destination.pid.is_some();
        // a path can be too long for a socket
        let socket = |what: &str| Address::unix(settings.runtime_dir.join(format!("{id}-{what}"))).ok();
        let address = |given: &Option<Address>, what: &str, local: bool| {
            given.clone().or_else(|| if local { socket(what) } else { None })
        };
        let nbd = address(&settings.nbd_address, "nbd", both_local);
        let ram = address(&settings.migrate_address, "ram", both_local);
        let source_reading = address(&settings.source_nbd_address, "here", source.pid.is_some());
        let destination_reading = address(&settings.nbd_address, "there", destination.pid.is_some());
        let mut addresses = vec![(Setting::NbdAddress, nbd.clone()), (Setting::MigrateAddress, ram.clone())];
        if !comparison.to_read(settings.verify_backing).is_empty() {
            addresses.push((Setting::SourceNbdAddress, source_reading.clone()));
        }

        let shared: Vec<String> = shared.iter().map(|disk| disk.name().to_owned()).collect();
        let left_out: Vec<String> = layout::left_out(&moving, &pairs, selection);
        let mut findings = checks::run(&CheckSubject {
            source,
            destination,
            pairs: &pairs,
            problems: &problems,
            shared: &shared,
            left_out: &left_out,
            standing: &standing,
            unshared: &unshared,
            spare: &layout::spare(&source_disks, &destination_disks, &pairs),
            bitmaps: &bitmaps,
            tuning: &settings.tuning(bitmaps.moved),
            storage: selection.storage,
            overcommit: settings.overcommit,
            clean: settings.clean,
            addresses: &addresses,
            ports,
            allow_plaintext: settings.allow_plaintext,
        });
        findings.extend(checks::contents::planned(&comparison, settings.verify_backing));
        let findings = checks::weigh(findings, &settings.force);
        let disks: Vec<PlannedDisk> = pairs.iter().map(planned).collect();
        let on_source = matches!(source.run, RunState::Running | RunState::Paused);
        let disk_bytes = disks.iter().map(|disk| disk.actual_size).sum();
        let estimate = Estimate { disk_bytes, ram_bytes: Some(source.ram), ..Estimate::default() };
        let chains = chains(&source_disks, &destination_disks, &pairs, source, destination);
        let order = nbd.zip(ram).map(|addresses| WorkOrder {
            route: Route { pairs, addresses },
            memory: source.ram,
            cpus: source.machine.cpus,
            is_running: source.run == RunState::Running,
            dirty_rate: None,
            bitmaps: bitmaps.moved,
            predicted: None,
        });
        let plan = Plan { findings, disks, chains, estimate, ..Plan::default() };
        Self { plan, comparison, reading: (source_reading, destination_reading), order, on_source }
    }

    /// What a run needs, of a plan without blockers.
    ///
    /// # Errors
    /// [`Failure::Refused`] with all blockers in its message, by the code of the gravest.
    pub(crate) fn order(self) -> Result<WorkOrder, Failure> {
        let Self { plan, order, on_source, .. } = self;
        let refused = |code: FindingCode, message| Failure::Refused { code: code.into(), message, on_source };
        match (plan.blockers().next(), order) {
            (None, Some(order)) => Ok(order),
            (None, None) => Err(refused(FindingCode::AddressMissing, "no address could be chosen".to_owned())),
            (Some(gravest), _) => {
                let blockers: Vec<String> = plan.blockers().map(ToString::to_string).collect();
                Err(refused(gravest.code.clone(), blockers.join("; ")))
            }
        }
    }

    /// What a run would need, unless a blocker forbids it.
    pub(crate) fn unblocked(&self) -> Option<&WorkOrder> {
        self.order.as_ref().filter(|_| self.plan.blockers().next().is_none())
    }

    /// Whether anything may be opened for reading in the two QEMUs.
    pub(crate) fn is_readable(&self) -> bool {
        self.plan.findings.iter().all(|finding| finding.code.is_readable())
    }

    /// Adds what was read of both sides.
    pub(crate) fn add(&mut self, contents: ImageContents, force: &BTreeSet<String>) {
        self.plan.find(checks::weigh(checks::contents::read(&contents), force));
        self.plan.verified = contents.comparisons;
    }

    /// Notes that nothing was read. Where a blocker says why, that is enough; a leftover that is going to be removed
    /// is none.
    pub(crate) fn left_unread(&mut self) {
        if self.plan.blockers().next().is_none() {
            self.plan.find(checks::contents::unread(&self.comparison));
        }
    }

    /// Adds the disks of a side that were not left alone meanwhile.
    pub(crate) fn add_changed(&mut self, side: &str, disks: &[String]) {
        self.plan.find(checks::contents::changed(side, disks));
    }

    /// Adds what was measured, and what follows from it for this migration; notes what could not be. `before` is how
    /// long it took until it was measured.
    pub(crate) fn add_measured(
        &mut self,
        measured: GuestMeasurements,
        settings: &Settings,
        features: &Features,
        before: Duration,
    ) {
        self.plan.find(measured.findings());
        if let Some(order) = &mut self.order {
            if let Some(seen) = measurements(&self.plan.disks, order.memory, &measured, features, before) {
                let throttle = settings.policy.may_throttle();
                self.plan.estimate = predict(&settings.policy, &order.task(settings, features, throttle), &seen);
            }
            let first = measured.dirtied.first();
            order.dirty_rate = first.map(|(window, bytes)| *bytes as f64 / window.as_secs_f64());
            order.predicted = Some(self.plan.estimate.clone());
        }
        self.plan.measured = Some(measured);
    }
}

/// What is known beforehand; None where too little is.
fn measurements(
    disks: &[PlannedDisk],
    memory: u64,
    measured: &GuestMeasurements,
    features: &Features,
    before: Duration,
) -> Option<PredictionInput> {
    let is_missing = |what: &str| measured.missing.iter().any(|missing| missing.what == what);
    if is_missing("dirty-rate") || is_missing("bandwidth") {
        return None;
    }
    let written = |disk: &str| measured.disks.iter().find(|rate| rate.disk == disk);
    let disk = |disk: &PlannedDisk| {
        let written = written(&disk.source).map_or(0, |rate| rate.bytes.0);
        Some(DiskInput { name: disk.source.clone(), bytes: disk.actual_size?, write_rate: written })
    };
    let (dirty_rate, working_set) = measurements::work(&measured.dirtied);
    Some(PredictionInput {
        memory,
        used: measured.used,
        dirty_rate,
        working_set,
        disks: disks.iter().map(disk).collect::<Option<_>>()?,
        write_latency: measured.disks.iter().filter_map(|disk| disk.latency).max(),
        link: measured.bandwidth.map(|rate| rate.0 as f64),
        round_trip: measured.source_round_trip.max(measured.destination_round_trip),
        before,
        continuous: features.failing_status,
        switchover_bandwidth: features.avail_switchover_bandwidth,
    })
}

/// Whether the destination has the disk's own file open in its place: the disk would be mirrored onto itself. A file in
/// the place of another disk is no shared one: it would be missed in its own place.
fn is_shared(disk: &Disk, others: &[&Disk], source: &SideFacts, destination: &SideFacts) -> bool {
    let id = |facts: &SideFacts, disk: &Disk| disk.chain.top().and_then(|top| Some(facts.file(top)?.id));
    let file = id(source, disk);
    file.is_some() && others.iter().any(|other| id(destination, other) == file)
}

fn planned(pair: &DiskPair) -> PlannedDisk {
    let layers = &pair.source.chain.layers;
    let copied = match pair.mode {
        CopyMode::Incremental => layers.get(..1).unwrap_or_default(),
        CopyMode::Full => layers,
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
fn chains(
    source_disks: &[Disk],
    destination_disks: &[Disk],
    pairs: &[DiskPair],
    source: &SideFacts,
    destination: &SideFacts,
) -> Vec<Chains> {
    let local = source.pid.is_some() && destination.pid.is_some();
    let marked = |chain: &BackingChain, facts: &SideFacts, other: &SideFacts| {
        let mut chain = chain.clone();
        for layer in &mut chain.layers {
            let file = facts.file(layer).filter(|_| local);
            layer.shared = file.map(|file| other.files.values().any(|same| same.id == file.id));
        }
        chain
    };
    let one = |disk: &Disk| {
        let pair = pairs.iter().find(|pair| pair.source == *disk);
        let other = pair.map(|pair| &pair.destination).or_else(|| layout::counterpart(disk, destination_disks));
        Chains {
            disk: disk.name().to_owned(),
            mode: pair.map_or("none", |pair| pair.mode.as_str()),
            source: marked(&disk.chain, source, destination),
            destination: other.map(|other| marked(&other.chain, destination, source)),
        }
    };
    source_disks.iter().map(one).collect()
}
