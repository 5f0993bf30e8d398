//! Gathers the facts of both sides and makes a plan: everything before the first change.
//!
//! Exports for reading are closed again, and leftovers are removed where a setting asks for that and nothing else is in
//! the way. Nothing else is changed.

use super::{
    Failure, Settings,
    attempt::Attempt,
    connection::connect,
    context::Context,
    guest::GuestIntent,
    images,
    intents::IntentLog,
    interrupt::{cancelled, unless_cancelled},
    journals::{self, Parties, journal_directory},
    pair::QemuPair,
    plan::{Draft, Plan},
    record::{MigrationBegin, Party, Record},
    runtime_dir,
    work_order::{Route, WorkOrder},
};
use crate::{
    codes::{FailureCode, FindingCode, Setting},
    endpoint::{Address, Endpoint},
    handover::ownership::BeforeContinue,
    journal::Journal,
    preflight::{
        checks::{KnownRun, Severity},
        comparison_plan::{ComparisonPlan, EmptyImage},
        contents::{self, ImageContents, ReadableSide},
        facts::{
            self, SideFacts,
            ports::{self, PortState},
        },
        machine_change::changes,
        measure::{self, BandwidthSource},
        measurements::GuestMeasurements,
    },
    progress::{LedgerClock, Moment, Phase, Reporter, describe},
    qemu::Process,
    run_id::RunId,
    storage::{
        files::{
            rate_limit::RateLimit,
            spent_images::{self, FileMark},
        },
        mirror::cleanup,
        model::layout::Disk,
        verify::{
            comparison::ComparisonSettings,
            identity::{Comparison, ComparisonResult, ProofLevel, ProofMethod},
        },
    },
};
use std::{fs, path::PathBuf, sync::Arc, time::Duration};
use tokio::{task::spawn_blocking, try_join};

/// Connects to both sides and makes the plan of a migration that is not run.
pub(crate) async fn survey(context: &Context, source: &Endpoint, destination: &Endpoint) -> Result<Plan, Failure> {
    let report = &context.report;
    let connecting = report.during(Phase::Connect, connect(source, destination, context.monitors.recorder.as_ref()));
    let pair = unless_cancelled(&context.cancel, connecting).await??;
    let looked = async {
        let mut drafted = draft(context, &pair, context.settings.clean).await?;
        prove(context, &pair, &mut drafted, EstimateSubject::LaterRun).await?;
        Ok(drafted.draft.plan)
    };
    report.during(Phase::Preflight, Box::pin(looked)).await
}

/// Makes a plan and begins an attempt: the plan has no blocker, and the journal has the intent.
pub(crate) async fn begin(context: &Context, pair: &QemuPair) -> Result<(WorkOrder, Attempt), Failure> {
    let mut drafted = draft(context, pair, context.settings.clean).await?;
    let mut removed = Vec::new();
    if context.settings.clean && drafted.has_leftovers() {
        // nothing is removed for a migration that is refused all the same
        if drafted.draft.plan.blockers().next().is_some() {
            drafted.draft.order()?;
            return Err(Failure::Internal("a plan with a blocker was not refused".to_owned()));
        }
        let done = remove_leftovers(context, pair, &drafted, &mut removed).await;
        done.map_err(|failure| cleaned(failure, &removed))?;
        // a leftover that is there after the removal is in the way
        drafted = draft(context, pair, false).await.map_err(|failure| cleaned(failure, &removed))?;
    }
    begin_with(context, pair, drafted).await.map_err(|failure| cleaned(failure, &removed))
}

/// A failure after leftovers were removed: something was changed.
fn cleaned(failure: Failure, removed: &[String]) -> Failure {
    match removed {
        [] => failure,
        removed => Failure::Cleaned { removed: removed.join(", "), failure: Box::new(failure) },
    }
}

async fn begin_with(context: &Context, pair: &QemuPair, mut drafted: Drafted) -> Result<(WorkOrder, Attempt), Failure> {
    let (settings, report) = (&context.settings, &context.report);
    prove(context, pair, &mut drafted, EstimateSubject::ThisRun).await?;
    let Drafted { draft, source: SideFacts { run, .. }, .. } = drafted;
    for finding in draft.plan.findings.iter().filter(|finding| finding.severity != Severity::Blocker) {
        report.warn(finding.code.as_str(), finding.to_string());
    }
    let order = draft.order()?;
    let guest = GuestIntent::new(&run);
    let begun = begun(context, pair, &order.route, &guest).await;
    let log = IntentLog::begin(settings, begun, context.records.clone(), report).map_err(|error| Failure::Refused {
        code: FailureCode::Journal,
        message: format!(
            "{}; give another place with {}, or keep no journal with {}",
            describe(&error),
            Setting::Journal,
            Setting::Journal.set_to("nowhere")
        ),
        findings: Vec::new(),
        on_source: true,
    })?;
    // Of two engines that looked at the same time, each has its journal by now, and at least one sees the other's.
    if let Some(other) = known_runs(context, pair).await?.into_iter().find(|known| known.engine_lives) {
        log.discard(report).await;
        return Err(in_use(&other));
    }
    let clock = match (pair.source.peer(), pair.destination.peer()) {
        (Some(_), Some(_)) => LedgerClock::Qemu,
        _ => LedgerClock::Engine,
    };
    let mut attempt = Attempt::new(log, guest, clock);
    attempt.predicted.clone_from(&order.predicted);
    attempt.before_continue = Some(BeforeContinue::begin());
    attempt.images = images::of_order(&order);
    Ok((order, attempt))
}

/// The refusal of a run beside another one.
pub(crate) fn in_use(other: &KnownRun) -> Failure {
    let pid = other.engine_pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    let message =
        format!("another qferry{pid} has begun with one of these two QEMUs: its journal is {}", other.journal);
    // Nobody but that engine knows where the guest will be.
    Failure::Refused { code: FindingCode::QemuInUse.into(), message, findings: Vec::new(), on_source: false }
}

/// The record that a recovery starts from.
async fn begun(context: &Context, pair: &QemuPair, route: &Route, guest: &GuestIntent) -> MigrationBegin {
    let settings = &context.settings;
    let (source, destination) = tokio::join!(party(&pair.source), party(&pair.destination));
    MigrationBegin {
        run: context.run.clone(),
        source,
        destination,
        was_running: guest.wants_running(),
        pairs: route.pairs.clone(),
        addresses: route.addresses.clone(),
        postcopy: settings.policy.may_postcopy(),
        keep_source: settings.keep_source,
        runtime_dir: settings.runtime_dir.clone(),
        fence_command: settings.fence_command.clone(),
        fence_timeout: settings.fence_timeout,
        switchover_timeout: settings.switchover_limit(),
        tells_start: true,
    }
}

/// The migration that an estimate is made for.
#[derive(Clone, Copy)]
enum EstimateSubject {
    /// A run that may follow, and that need not measure anything.
    LaterRun,
    /// The run that measures: its measurements take a part of its time.
    ThisRun,
}

/// A plan as it is drafted from the facts of both sides, before any image is read.
struct Drafted {
    draft: Draft,
    source: SideFacts,
    destination: SideFacts,
}

impl Drafted {
    fn has_leftovers(&self) -> bool {
        !self.source.leftovers.is_empty() || !self.destination.leftovers.is_empty()
    }
}

/// Gathers facts from both sides and drafts a plan; `clean` says that leftovers are going to be removed.
async fn draft(context: &Context, pair: &QemuPair, clean: bool) -> Result<Drafted, Failure> {
    let (source, destination) = unless_cancelled(&context.cancel, gather(pair)).await??;
    let settings = Settings { clean, ..context.settings.clone() };
    let ports = unless_cancelled(&context.cancel, look_at_ports(&settings, &source, &destination)).await?;
    let known = unless_cancelled(&context.cancel, known_runs(context, pair)).await??;
    let mut draft = Draft::new(&source, &destination, &ports, &settings, &context.run, &known);
    draft.add_journal(unusable_journal(&settings, &context.run).await?);
    Ok(Drafted { draft, source, destination })
}

/// The reason why the run could begin no journal.
async fn unusable_journal(settings: &Settings, run: &RunId) -> Result<Option<String>, Failure> {
    let Some(path) = settings.journal_file(run) else { return Ok(None) };
    let tried = spawn_blocking(move || Journal::<Record>::rehearse(&path)).await;
    let tried = tried.map_err(|error| Failure::Internal(format!("the journal was not looked at: {error}")))?;
    Ok(tried.err().map(|error| describe(&error)))
}

/// The other runs that journals tell of and that have to do with one of the two QEMUs.
async fn known_runs(context: &Context, pair: &QemuPair) -> Result<Vec<KnownRun>, Failure> {
    let (source, destination) = tokio::join!(party(&pair.source), party(&pair.destination));
    let parties = Parties { source, destination };
    let (settings, run) = (context.settings.clone(), context.run.clone());
    let found = spawn_blocking(move || journals::runs_of(&settings, &run, &parties)).await;
    let found = found.map_err(|error| Failure::Internal(format!("the journals were not looked at: {error}")))?;
    Ok(found.into_iter().map(|(known, _)| known).collect())
}

/// One QEMU, with the marks by which a recovery tells it from any other.
pub(crate) async fn party(process: &Process) -> Party {
    let threads = process.vcpu_threads().await.to_vec();
    Party { address: process.name().address.clone(), process: process.identity(), threads }
}

/// Reads the images that need a proof, and measures where that is asked for.
async fn prove(
    context: &Context,
    pair: &QemuPair,
    drafted: &mut Drafted,
    subject: EstimateSubject,
) -> Result<(), Failure> {
    let QemuPair { source, destination } = pair;
    let (settings, report) = (&context.settings, &context.report);
    let Drafted { draft, source: source_facts, destination: destination_facts } = drafted;
    if let Some(contents) = read(context, pair, draft, source_facts, destination_facts).await? {
        for comparison in &contents.comparisons {
            if comparison.verdict == ComparisonResult::Same {
                tell_verified(comparison, report);
            }
        }
        draft.add(contents, &settings.force);
        let again = async {
            try_join!(facts::look_again(source, source_facts), facts::look_again(destination, destination_facts))
        };
        match unless_cancelled(&context.cancel, again).await? {
            Ok((source_now, destination_now)) => {
                draft.add_changed("source", &changes(source_facts, &source_now));
                draft.add_changed("destination", &changes(destination_facts, &destination_now));
            }
            // a QEMU that does not answer now could not be read either, which a blocker says already
            Err(error) if draft.plan.blockers().next().is_none() => return Err(error.into()),
            Err(_) => {}
        }
    } else if settings.verify_backing != ProofLevel::Off {
        draft.left_unread();
    }
    if let Some(order) = draft.unblocked().filter(|_| settings.predict) {
        let before = report.elapsed_ms();
        let measured = take_measurements(context, pair, &order.route, source_facts).await?;
        let before = match subject {
            EstimateSubject::LaterRun => before,
            EstimateSubject::ThisRun => report.elapsed_ms(),
        };
        report.action("measured", measured.told());
        draft.add_measured(measured, settings, source.features(), Duration::from_millis(before));
    }
    Ok(())
}

async fn gather(pair: &QemuPair) -> Result<(SideFacts, SideFacts), Failure> {
    Ok(facts::gather_both(&pair.source, &pair.destination).await?)
}

/// Looks at the addresses that the user gave, all at once.
async fn look_at_ports(
    settings: &Settings,
    source: &SideFacts,
    destination: &SideFacts,
) -> Vec<(Setting, Address, PortState)> {
    let look = async |setting: Setting, given: &Option<Address>, listener: &SideFacts, connector| {
        let address = given.as_ref()?;
        Some((setting, address.clone(), ports::look(address, listener, connector).await?))
    };
    let (nbd, ram, reading) = tokio::join!(
        look(Setting::NbdAddress, &settings.nbd_address, destination, Some(source)),
        look(Setting::MigrateAddress, &settings.migrate_address, destination, Some(source)),
        look(Setting::SourceNbdAddress, &settings.source_nbd_address, source, None),
    );
    [nbd, ram, reading].into_iter().flatten().collect()
}

/// Removes the leftovers of runs whose journals are not here, and notes each that was removed. That no migration is
/// under way is proved, and that no engine whose journal is in the state directory has one of the QEMUs. The user's
/// word says that no other engine is at work with them.
async fn remove_leftovers(
    context: &Context,
    pair: &QemuPair,
    drafted: &Drafted,
    removed: &mut Vec<String>,
) -> Result<(), Failure> {
    for (process, facts) in [(&pair.source, &drafted.source), (&pair.destination, &drafted.destination)] {
        if facts.leftovers.is_empty() {
            continue;
        }
        for left in &facts.leftovers {
            context.report.action("clean", format!("{}: removes {left}, which an earlier migration left", facts.name));
        }
        let done = cleanup::remove(process, &facts.leftovers).await;
        let still_there = match done {
            Ok(()) => Vec::new(),
            // without an answer each may have gone
            Err(_) => cleanup::find(process).await.unwrap_or_default(),
        };
        let gone = facts.leftovers.iter().filter(|left| !still_there.contains(left));
        removed.extend(gone.map(|left| format!("{}: {left}", facts.name)));
        done?;
    }
    Ok(())
}

/// Reads the images that must be the same or empty; `None` where no proof is wanted or a finding forbids the reading.
async fn read(
    context: &Context,
    pair: &QemuPair,
    draft: &Draft,
    source_facts: &SideFacts,
    destination_facts: &SideFacts,
) -> Result<Option<ImageContents>, Failure> {
    let settings = &context.settings;
    if settings.verify_backing == ProofLevel::Off || !draft.is_readable() {
        return Ok(None);
    }
    let (source, destination) = (draft.reading.0.as_ref(), draft.reading.1.as_ref());
    runtime_dir::make(&settings.runtime_dir, [source, destination].into_iter().flatten())?;
    let ceiling = [settings.bandwidth, settings.disk_bandwidth].into_iter().flatten().min();
    let seed = settings.sample_seed.unwrap_or_else(|| {
        let now = Moment::now().wall;
        now.as_secs() << 20 ^ u64::from(now.subsec_nanos())
    });
    let how = ComparisonSettings {
        proof: settings.verify_backing,
        samples: settings.samples,
        seed,
        keep: settings.keep_digests,
    };
    let source = ReadableSide { run: &context.run, process: &pair.source, facts: source_facts, address: source };
    let destination =
        ReadableSide { run: &context.run, process: &pair.destination, facts: destination_facts, address: destination };
    let ceiling = Arc::new(RateLimit::new(ceiling));
    let cancelled = cancelled(&context.cancel);
    let plan = with_spent(&draft.comparison, destination_facts).await;
    let read = contents::read(source, destination, &plan, &how, &ceiling, &context.report, cancelled);
    // boxed: the future is too large for the stack of its caller
    Box::pin(read).await.map(Some).ok_or(Failure::Cancelled)
}

/// The plan with the destination's images that a record tells to be spent.
async fn with_spent(plan: &ComparisonPlan, destination: &SideFacts) -> ComparisonPlan {
    let mut plan = plan.clone();
    let file = |image: &EmptyImage| destination.files.get(&image.file).map(|file| file.path.clone());
    let paths: Vec<_> = plan.empty_images.iter().map(file).collect();
    let looked = spawn_blocking(move || {
        let marks = spent_images::marks(&journal_directory());
        let mark = |path: PathBuf| fs::metadata(path).ok().map(|file| FileMark::of(&file));
        let is_spent = |path: Option<PathBuf>| path.and_then(mark).is_some_and(|mark| marks.contains(&mark));
        paths.into_iter().map(is_spent).collect::<Vec<_>>()
    })
    .await;
    for (image, spent) in plan.empty_images.iter_mut().zip(looked.unwrap_or_default()) {
        image.spent = spent;
    }
    plan
}

/// Makes the measurements that a prediction needs.
async fn take_measurements(
    context: &Context,
    pair: &QemuPair,
    route: &Route,
    source: &SideFacts,
) -> Result<GuestMeasurements, Failure> {
    let settings = &context.settings;
    let nbd = route.nbd();
    runtime_dir::make(&settings.runtime_dir, [nbd])?;
    let bandwidth = match settings.bandwidth {
        Some(_) => BandwidthSource::Ceiling,
        None => BandwidthSource::Probe(&context.run, nbd),
    };
    let cancelled = cancelled(&context.cancel);
    let disks: Vec<&Disk> = route.pairs.iter().map(|pair| &pair.source).collect();
    let work = measure::measure(&pair.source, &pair.destination, source, &disks, bandwidth, &context.report, cancelled);
    Box::pin(work).await.ok_or(Failure::Cancelled)
}

/// Reports a proof.
fn tell_verified(comparison: &Comparison, report: &Reporter) {
    let Comparison { source, destination, by, .. } = comparison;
    let files = [("source", source.as_str().into()), ("destination", destination.as_str().into())];
    let [from, to] = files;
    let ranges_of = |ranges: usize| u64::try_from(ranges).unwrap_or(u64::MAX).into();
    match by {
        ProofMethod::Sample { seed, ranges, bytes } => report.detailed_action(
            "verified",
            told(comparison),
            [from, to, ("seed", (*seed).into()), ("ranges", ranges_of(*ranges)), ("bytes", (*bytes).into())],
        ),
        ProofMethod::Full { digest: Some(digest), .. } => {
            report.detailed_action("verified", told(comparison), [from, to, ("digest", digest.as_str().into())]);
        }
        _ => report.detailed_action("verified", told(comparison), [from, to]),
    }
}

/// The proof of a comparison, for people.
fn told(comparison: &Comparison) -> String {
    let Comparison { source, destination, by, .. } = comparison;
    match by {
        ProofMethod::SameFile => format!("{source} is the destination's {destination}: one file"),
        ProofMethod::Metadata { map: Some(map) } => {
            format!("{source} and the destination's {destination} have data in the same places (map {map})")
        }
        ProofMethod::Metadata { map: None } => {
            format!("{source} and the destination's {destination} have the same sizes")
        }
        ProofMethod::Sample { ranges: 0, .. } => {
            format!("{source} and the destination's {destination} are both zero throughout")
        }
        ProofMethod::Sample { seed, ranges, bytes } => format!(
            "{source} and the destination's {destination} are alike in {ranges} ranges, {bytes} bytes in all (seed {seed})"
        ),
        ProofMethod::Full { digest, kept, .. } => format!(
            "{source} and the destination's {destination} are the same (digest {}{})",
            digest.as_deref().unwrap_or("unknown"),
            match kept {
                0 => "",
                1 => ", one of them kept",
                _ => ", both kept",
            }
        ),
    }
}
