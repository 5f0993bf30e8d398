//! The plan of a migration: its steps, and the findings that speak against it.
//!
//! Pure. `--plan` prints exactly the plan that a run would start with.

use super::{
    Failure, Settings,
    work_order::{ProvedFacts, Route, WorkOrder},
};
use crate::{
    codes::{FindingCode, Setting},
    convergence::predict::{DiskInput, PredictionInput, predict},
    endpoint::{Address, UnseenProcess},
    preflight::{
        checks::{self, CheckSubject, Finding, KnownRun, ListeningAddress, Severity},
        comparison_plan::{self, ComparisonPlan},
        contents::ImageContents,
        facts::{SideFacts, ports::PortState},
        machine_change::MachineChange,
        measurements::{self, GuestMeasurements},
    },
    progress::Estimate,
    qemu::{
        Features,
        reply::{MigrationStatus, RunState},
    },
    run_id::RunId,
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
use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

/// A migration as it would be done, for people and programs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    /// The findings of the checks, blockers first.
    pub findings: Vec<Finding>,
    /// The disks that would move.
    pub disks: Vec<PlannedDisk>,
    /// The images of every disk of the source, and of its counterpart on the destination.
    #[doc(hidden)]
    pub chains: Vec<Chains>,
    /// The comparisons of images that must be the same.
    #[doc(hidden)]
    pub verified: Vec<Comparison>,
    /// The expected cost of the migration, as far as it is known.
    pub estimate: Estimate,
    /// The measurements that the estimate was made from.
    #[serde(skip)]
    measured: Option<GuestMeasurements>,
}

/// A plan while it is made: the part for people and programs, the images that must be read, and a run's work order.
pub(crate) struct Draft {
    /// The part for people and programs.
    pub(crate) plan: Plan,
    /// The images that must be the same or must be empty.
    pub(crate) comparison: ComparisonPlan,
    /// The addresses at which the source and the destination would listen while images are compared.
    pub(crate) reading: (Option<Address>, Option<Address>),
    /// The work order of a run; `None` where no address could be chosen, which is a blocker.
    order: Option<WorkOrder>,
    /// Whether the guest was seen on the source: it runs, is paused, or stands after a disk error.
    on_source: bool,
}

/// A disk of the source and its counterpart on the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chains {
    /// The disk's name on the source.
    pub disk: String,
    /// The mode of the copy: `incremental`, `full`, or `none` where the disk is not copied.
    pub mode: &'static str,
    /// The images of the source's disk.
    pub source: BackingChain,
    /// The images of the counterpart, where there is one.
    pub destination: Option<BackingChain>,
}

/// A disk that would move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PlannedDisk {
    /// Its name on the source.
    pub source: String,
    /// Its name on the destination.
    pub destination: String,
    /// The size that the guest sees, bytes.
    pub virtual_size: u64,
    /// The space that the images to be copied take on the source, bytes: about the amount that would be copied.
    pub actual_size: Option<u64>,
    /// The mode of the copy: `incremental` or `full`.
    pub mode: &'static str,
}

impl Plan {
    /// The measurements, where they were asked for and nothing forbids the migration.
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
    /// Makes a plan from the facts of both sides and from connections to the ports that were given. The id of `run`
    /// is in the names that the run gives, and in the paths of its sockets.
    pub(crate) fn new(
        source: &SideFacts,
        destination: &SideFacts,
        ports: &[(Setting, Address, PortState)],
        settings: &Settings,
        run: &RunId,
        known_runs: &[KnownRun],
    ) -> Self {
        let (source_disks, destination_disks) = (source.disks(), destination.disks());
        let selection = &settings.selection;
        let is_none = selection.storage == StorageMode::None;
        let (shared, moving): (Vec<Disk>, Vec<Disk>) = source_disks.iter().cloned().partition(|disk| {
            let others = layout::candidates(disk, &destination_disks, selection);
            !is_none && is_shared(disk, &others, source, destination)
        });
        let (pairs, problems) = layout::pair(&moving, &destination_disks, selection, run);
        let counterparts = layout::counterparts(&moving, &destination_disks, selection);
        let (unshared, standing) = match is_none {
            true => (counterparts, Vec::new()),
            false => (Vec::new(), counterparts.into_iter().filter(|(disk, _)| disk.read_only).collect()),
        };
        let able = |side: &SideFacts| side.features.migration_capabilities.contains(bitmaps::CAPABILITY);
        let bitmaps =
            bitmaps::decide(&moving, &source.nodes, &pairs, selection.storage, (able(source), able(destination)));
        let comparison = comparison_plan::images(source, destination, &pairs, &standing);

        let address = |given: &Option<Address>, what: &str, sides: &[&SideFacts]| {
            listening_address(given.as_ref(), sides, &settings.runtime_dir, &format!("{run}-{what}"))
        };
        let nbd_address = address(&settings.nbd_address, "nbd", &[source, destination]);
        let ram_address = address(&settings.migrate_address, "ram", &[source, destination]);
        let source_address = address(&settings.source_nbd_address, "here", &[source]);
        let (nbd, ram) = (nbd_address.address().cloned(), ram_address.address().cloned());
        let source_reading = source_address.address().cloned();
        let destination_reading = address(&settings.nbd_address, "there", &[destination]).address().cloned();
        let mut addresses = vec![(Setting::NbdAddress, nbd_address), (Setting::MigrateAddress, ram_address)];
        if !comparison.to_read(settings.verify_backing).is_empty() {
            addresses.push((Setting::SourceNbdAddress, source_address));
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
            known_runs,
            addresses: &addresses,
            ports,
            allow_plaintext: settings.allow_plaintext,
        });
        findings.extend(checks::contents::planned(&comparison, settings.verify_backing));
        let findings = checks::weigh(findings, &settings.force);
        let disks: Vec<PlannedDisk> = pairs.iter().map(planned).collect();
        // A destination that takes a guest in, or has, may have this one: another engine may move it there.
        let receives = destination.migration.status.as_ref();
        let receives = receives.is_some_and(|status| *status == MigrationStatus::Completed || !status.is_over());
        let on_source =
            (source.run.is_live() || matches!(source.run, RunState::Paused | RunState::IoError)) && !receives;
        let disk_bytes = disks.iter().map(|disk| disk.actual_size).sum();
        let estimate = Estimate { disk_bytes, ram_bytes: Some(source.ram), ..Estimate::default() };
        let chains = chains(&source_disks, &destination_disks, &pairs, source, destination);
        let order = nbd.zip(ram).map(|addresses| WorkOrder {
            route: Route { pairs, addresses },
            memory: source.ram,
            cpus: source.machine.cpus,
            is_running: source.run.is_live(),
            dirty_rate: None,
            bitmaps: bitmaps.moved,
            predicted: None,
            proved: Arc::new(ProvedFacts { source: source.clone(), destination: destination.clone() }),
        });
        let plan = Plan { findings, disks, chains, estimate, ..Plan::default() };
        Self { plan, comparison, reading: (source_reading, destination_reading), order, on_source }
    }

    /// Adds the reason why no journal could be begun.
    pub(crate) fn add_journal(&mut self, why: Option<String>) {
        self.plan.find(why.map(|why| Finding::new(FindingCode::Journal, &Setting::Journal.to_string(), why)));
    }

    /// The work order of a plan without blockers.
    ///
    /// # Errors
    /// [`Failure::Refused`] with all blockers in its message, by the code of the gravest.
    pub(crate) fn order(self) -> Result<WorkOrder, Failure> {
        let Self { plan, order, on_source, .. } = self;
        let findings: Vec<Finding> = plan.blockers().cloned().collect();
        let refused = |code: FindingCode, message| Failure::Refused { code: code.into(), message, findings, on_source };
        match (plan.blockers().next(), order) {
            (None, Some(order)) => Ok(order),
            (None, None) => Err(refused(FindingCode::AddressMissing, "no address could be chosen".to_owned())),
            (Some(gravest), _) => {
                let blockers: Vec<String> = plan.blockers().map(ToString::to_string).collect();
                Err(refused(gravest.code.clone(), blockers.join("; ")))
            }
        }
    }

    /// The work order, unless a blocker forbids the run.
    pub(crate) fn unblocked(&self) -> Option<&WorkOrder> {
        self.order.as_ref().filter(|_| self.plan.blockers().next().is_none())
    }

    /// Whether images may be opened for reading in the two QEMUs.
    pub(crate) fn is_readable(&self) -> bool {
        self.plan.findings.iter().all(|finding| finding.code.is_readable())
    }

    /// Adds the contents of the images that were read.
    pub(crate) fn add(&mut self, contents: ImageContents, force: &BTreeSet<String>) {
        self.plan.find(checks::weigh(checks::contents::read(&contents), force));
        self.plan.verified = contents.comparisons;
    }

    /// Notes that no image was read, unless a blocker gives the reason. A leftover that is going to be removed is no
    /// blocker.
    pub(crate) fn left_unread(&mut self) {
        if self.plan.blockers().next().is_none() {
            self.plan.find(checks::contents::unread(&self.comparison));
        }
    }

    /// Adds what was changed on a side while images were read.
    pub(crate) fn add_changed(&mut self, side: &str, changes: &[MachineChange]) {
        self.plan.find(checks::contents::changed(side, changes));
    }

    /// Adds the measurements and the prediction from them, and notes the measurements that could not be made.
    /// `before` is the time that the migration takes until its disks are copied.
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

/// The input of a prediction; `None` where too little was measured.
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
        switchover_bandwidth: features.avail_switchover_bandwidth,
    })
}

/// Where a QEMU would listen: as the setting says, or at a socket of the run, which both QEMUs must be able to use.
fn listening_address(
    given: Option<&Address>,
    sides: &[&SideFacts],
    runtime_dir: &Path,
    name: &str,
) -> ListeningAddress {
    if let Some(given) = given {
        return ListeningAddress::Given(given.clone());
    }
    let elsewhere = sides.iter().filter(|side| side.pid.is_none()).map(|side| {
        let why = side
            .process
            .unseen
            .as_ref()
            .map_or_else(|| "is not known to be a process of this host".to_owned(), UnseenProcess::to_string);
        format!("{} {why}", side.name)
    });
    let elsewhere: Vec<String> = elsewhere.collect();
    match (&elsewhere[..], Address::unix(runtime_dir.join(name))) {
        ([], Ok(socket)) => ListeningAddress::Private(socket),
        ([], Err(_)) => ListeningAddress::Missing(format!(
            "the path of a socket in {}, which is {}, would have more than the 107 bytes that are possible",
            runtime_dir.display(),
            Setting::RuntimeDir
        )),
        (elsewhere, _) => ListeningAddress::Missing(elsewhere.join("; ")),
    }
}

/// Whether the destination has the disk's own file open in the disk's place: the disk would be mirrored onto itself.
/// A file in the place of another disk is not shared: its own disk would lack it.
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

/// Every disk of the source beside its counterpart on the destination.
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
