//! Gathers the facts of both sides and makes a plan: everything before the first change.
//!
//! Exports for reading are closed again, and leftovers are removed where a setting asks for that. Nothing else is
//! changed.

use super::{
    Failure, Settings,
    attempt::Attempt,
    connection::connect,
    context::Context,
    guest::GuestIntent,
    intents::IntentLog,
    interrupt::{cancelled, unless_cancelled},
    pair::QemuPair,
    plan::{Draft, Plan},
    record::{MigrationBegin, Party},
    runtime_dir,
    work_order::{Route, WorkOrder},
};
use crate::{
    codes::{FailureCode, Setting},
    endpoint::{Address, Endpoint},
    handover::ownership::BeforeContinue,
    preflight::{
        checks::Severity,
        contents::{self, ImageContents, ReadableSide},
        facts::{
            self, SideFacts,
            ports::{self, PortState},
        },
        machine_change::changes,
        measure::{self, BandwidthSource},
        measurements::GuestMeasurements,
    },
    progress::{LedgerClock, Moment, Phase, describe},
    qemu::{Process, reply::RunState},
    storage::{
        files::rate_limit::RateLimit,
        mirror::cleanup,
        model::layout::Disk,
        verify::{
            comparison::ComparisonSettings,
            identity::{Comparison, ComparisonResult, ProofLevel, ProofMethod},
        },
    },
};
use std::{sync::Arc, time::Duration};
use tokio::try_join;

/// Connects to both sides and makes the plan of a migration that is not run.
pub(crate) async fn survey(context: &Context, source: &Endpoint, destination: &Endpoint) -> Result<Plan, Failure> {
    let report = &context.report;
    let connecting = report.during(Phase::Connect, connect(source, destination, context.monitors.recorder.as_ref()));
    let pair = unless_cancelled(&context.cancel, connecting).await??;
    Ok(report.during(Phase::Preflight, Box::pin(look(context, &pair, false))).await?.0.plan)
}

/// Makes a plan and begins an attempt: the plan has no blocker, and the journal has the intent.
pub(crate) async fn begin(context: &Context, pair: &QemuPair) -> Result<(WorkOrder, Attempt), Failure> {
    let (settings, report) = (&context.settings, &context.report);
    let (draft, run) = look(context, pair, settings.clean).await?;
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
        on_source: true,
    })?;
    let clock = match (pair.source.peer(), pair.destination.peer()) {
        (Some(_), Some(_)) => LedgerClock::Qemu,
        _ => LedgerClock::Engine,
    };
    let mut attempt = Attempt::new(log, guest, clock);
    attempt.predicted.clone_from(&order.predicted);
    attempt.before_continue = Some(BeforeContinue::begin());
    Ok((order, attempt))
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

/// One QEMU, with the marks by which a recovery tells it from any other.
async fn party(process: &Process) -> Party {
    let threads = process.vcpu_threads().await.to_vec();
    Party { address: process.name().address.clone(), process: process.identity(), threads }
}

/// Gathers facts from both sides, drafts a plan, and reads the images that need a proof. Gives the draft and the
/// guest's run state on the source. `clean` allows leftovers to be removed.
async fn look(context: &Context, pair: &QemuPair, clean: bool) -> Result<(Draft, RunState), Failure> {
    let QemuPair { source, destination } = pair;
    let report = &context.report;
    let (mut source_facts, mut destination_facts) = unless_cancelled(&context.cancel, gather(pair)).await??;
    let mut settings = context.settings.clone();
    if clean && remove_leftovers(context, pair, &source_facts, &destination_facts).await? {
        (source_facts, destination_facts) = unless_cancelled(&context.cancel, gather(pair)).await??;
    }
    // a leftover that is there after the removal is in the way
    settings.clean &= !clean;
    let ports = unless_cancelled(&context.cancel, look_at_ports(&settings)).await?;
    let mut draft = Draft::new(&source_facts, &destination_facts, &ports, &settings, &context.run);
    if let Some(contents) = read(context, pair, &draft, &source_facts, &destination_facts).await? {
        for comparison in &contents.comparisons {
            if comparison.verdict == ComparisonResult::Same {
                report.action("verified", told(comparison));
            }
        }
        draft.add(contents, &settings.force);
        let again = async {
            try_join!(facts::look_again(source, &source_facts), facts::look_again(destination, &destination_facts))
        };
        match unless_cancelled(&context.cancel, again).await? {
            Ok((source_now, destination_now)) => {
                draft.add_changed("source", &changes(&source_facts, &source_now));
                draft.add_changed("destination", &changes(&destination_facts, &destination_now));
            }
            // a QEMU that does not answer now could not be read either, which a blocker says already
            Err(error) if draft.plan.blockers().next().is_none() => return Err(error.into()),
            Err(_) => {}
        }
    } else if settings.verify_backing != ProofLevel::Off {
        draft.left_unread();
    }
    if let Some(order) = draft.unblocked().filter(|_| settings.predict) {
        let before = Duration::from_millis(report.elapsed_ms());
        let measured = take_measurements(context, pair, &order.route, &source_facts).await?;
        report.action("measured", measured.told());
        draft.add_measured(measured, &settings, source.features(), before);
    }
    Ok((draft, source_facts.run))
}

async fn gather(pair: &QemuPair) -> Result<(SideFacts, SideFacts), Failure> {
    Ok(facts::gather_both(&pair.source, &pair.destination).await?)
}

/// Looks at the ports that the user gave.
async fn look_at_ports(settings: &Settings) -> Vec<(Setting, Address, PortState)> {
    let given = [
        (Setting::NbdAddress, &settings.nbd_address),
        (Setting::MigrateAddress, &settings.migrate_address),
        (Setting::SourceNbdAddress, &settings.source_nbd_address),
    ];
    let mut found = Vec::new();
    for (option, address) in given {
        if let Some(address) = address {
            found.extend(ports::look(address).await.map(|port| (option, address.clone(), port)));
        }
    }
    found
}

/// Removes the leftovers of an earlier migration, and gives whether there were any. While a migration is under way they
/// are in use, and stay.
async fn remove_leftovers(
    context: &Context,
    pair: &QemuPair,
    source: &SideFacts,
    destination: &SideFacts,
) -> Result<bool, Failure> {
    let under_way = source.migration.status.as_ref().is_some_and(|status| !status.is_over());
    if under_way || (source.leftovers.is_empty() && destination.leftovers.is_empty()) {
        return Ok(false);
    }
    for (process, facts) in [(&pair.source, source), (&pair.destination, destination)] {
        for left in &facts.leftovers {
            context.report.action("clean", format!("{}: removes {left}, which an earlier migration left", facts.name));
        }
        cleanup::remove(process, &facts.leftovers).await?;
    }
    Ok(true)
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
    let read = contents::read(source, destination, &draft.comparison, &how, &ceiling, &context.report, cancelled);
    // boxed: the future is too large for the stack of its caller
    Box::pin(read).await.map(Some).ok_or(Failure::Cancelled)
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
