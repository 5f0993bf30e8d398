//! The start of RAM's migration: the last look at the guest and at both machines, and the burst of commands that ends
//! with `migrate`.
//!
//! Capabilities and parameters are set here and not before the disks are copied: for hours they would bind a migration
//! that somebody else starts, and somebody else could change them. Both are asked for again before `migrate` is sent,
//! and the capabilities right behind it. An effect that QEMU refused is no effect: undoing it would undo what somebody
//! else did.

use super::{device_times, second_look};
use crate::{
    codes::{FailureCode, FindingCode},
    memory::{
        apply, precopy,
        tuning::{self, SideTuning, ThrottleMethod},
    },
    migration::{
        Effect, Failure, attempt::Attempt, context::Context, pair::QemuPair, runtime_dir, work_order::WorkOrder,
    },
    progress::{Side, describe},
    qemu::{Process, ProcessError, reply::RunState},
};
use qapi::qmp;
use serde_json::{Map, Value};
use std::pin::Pin;
use tokio::try_join;

/// QEMU's words where its one incoming migration was begun by another client.
const TAKEN: &str = "has already been started";

/// What is asked of both sides right behind `migrate`, once QEMU lets nobody change it any more.
pub(super) type Confirmation<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// Asks, for the last time before RAM is sent, how the guest stands: copying disks can take hours, and the guest's
/// owner may have paused or resumed it meanwhile.
pub(crate) async fn look_before_memory(
    context: &Context,
    qemus: &QemuPair,
    attempt: &mut Attempt,
) -> Result<(), Failure> {
    attempt.guest.begin_memory(&qemus.source.observed());
    // a source that does not answer is found out by the commands that follow
    if let Ok(answer) = qemus.source.ask(&qmp::query_status {}).await {
        attempt.guest.look(&answer.status);
        let awakens = |process: &Process| process.version().is_some_and(|version| version.wakes_migrated_guests());
        if answer.status == RunState::Suspended && (awakens(&qemus.source) || awakens(&qemus.destination)) {
            let words =
                "the guest has suspended itself, and is awake where it arrives: QEMU before 9.0 does not carry it";
            context.report.warn(FindingCode::GuestSuspended.as_str(), words);
        }
    }
    attempt.journal_guest().await
}

/// Sets migration parameters of the source. Before RAM is sent they are kept for the burst that ends with `migrate`.
pub(super) async fn set_parameters(
    source: &Process,
    attempt: &mut Attempt,
    parameters: Map<String, Value>,
) -> Result<(), ProcessError> {
    if attempt.log.effects().contains(&Effect::Migrate) {
        return apply::set_parameters(source, &parameters).await;
    }
    attempt.first_parameters.extend(parameters);
    Ok(())
}

/// Starts to send RAM. The confirmation that comes back must have come out well before the guest is handed over; RAM
/// that is sent quickly does not wait for it.
pub(super) async fn start_memory<'a>(
    context: &Context,
    qemus: &'a QemuPair,
    order: &'a WorkOrder,
    attempt: &mut Attempt,
) -> Result<Confirmation<'a>, Failure> {
    device_times::switch_on(context, qemus, attempt).await?;
    second_look::before_memory(qemus, order).await?;
    listen(context, &qemus.destination, order, attempt).await?;
    send(context, &qemus.source, order, attempt).await?;
    Ok(Box::pin(second_look::both_sides(qemus, order)))
}

/// Has the destination listen for RAM.
async fn listen(
    context: &Context,
    destination: &Process,
    order: &WorkOrder,
    attempt: &mut Attempt,
) -> Result<(), Failure> {
    let ram = order.route.ram();
    let socket = runtime_dir::socket_effect(&context.settings.runtime_dir, ram);
    let next = socket.into_iter().chain([Effect::Incoming]).collect();
    let (_, tuned) = set_up(context, destination, order, attempt, next).await?;
    let Err(error) = precopy::listen(destination, ram).await else {
        context.keep_private(ram);
        return Ok(());
    };
    let Some(words) = error.refusal().map(str::to_owned) else { return Err(error.into()) };
    // a destination that refused never listened: there is nothing to undo
    attempt.log.undone(&Effect::Incoming, &context.report).await;
    if !words.contains(TAKEN) {
        return Err(error.into());
    }
    // the settings are those of the engine now whose migration the destination took
    attempt.log.undone(&tuned, &context.report).await;
    Err(Failure::Interfered { code: FindingCode::DestinationUsed.into(), message: describe(&error) })
}

/// Has the source send RAM.
async fn send(context: &Context, source: &Process, order: &WorkOrder, attempt: &mut Attempt) -> Result<(), Failure> {
    let (wanted, _) = set_up(context, source, order, attempt, vec![Effect::Migrate]).await?;
    source.own_migration.note(&source.observed());
    let sent = precopy::send(source, order.route.ram());
    // asked right behind `migrate`: from there on QEMU lets nobody change a capability
    let changed = apply::changed_capability(source, &wanted);
    if let Err(error) = sent.await {
        if error.is_refusal() {
            // a migration that is under way is somebody else's, and is not cancelled
            attempt.log.undone(&Effect::Migrate, &context.report).await;
            if second_look::is_migrating(source).await {
                let code = FindingCode::MigrationUnderWay.into();
                return Err(Failure::Interfered { code, message: describe(&error) });
            }
        }
        return Err(error.into());
    }
    match changed.await? {
        Some(change) => Err(settings_changed(source, &change)),
        None => Ok(()),
    }
}

/// Sets the capabilities and parameters of one side and looks at them again, just before the command whose effects
/// are `next`. Those are noted with the settings, so that no journal is waited for in between. Gives the settings, and
/// the effect that they are.
async fn set_up(
    context: &Context,
    process: &Process,
    order: &WorkOrder,
    attempt: &mut Attempt,
    next: Vec<Effect>,
) -> Result<(SideTuning, Effect), Failure> {
    let (settings, report, side) = (&context.settings, &context.report, process.name().side);
    let mut wanted = order.tuning(settings).for_side(side, process.features());
    if side == Side::Source {
        // the bandwidth that QEMU measures beside the mirrors is less than the rest of RAM will have without them
        let measured =
            settings.bandwidth.map(|ceiling| tuning::switchover_bandwidth(Some(ceiling), process.features()));
        wanted.parameters.extend(measured.into_iter().flatten().chain(attempt.first_parameters.clone()));
    }
    let before = apply::read(process, &mut wanted).await?;
    let tuned = Effect::Tuned { side, before };
    attempt.log.note([tuned.clone()].into_iter().chain(next.clone())).await?;
    let set = apply::set_capabilities(process, wanted.capabilities.iter().copied()).await;
    let is_refused = set.as_ref().is_err_and(ProcessError::is_refusal);
    let checked = match set {
        Ok(()) => set_and_check(process, &mut wanted).await,
        Err(error) => Err(error.into()),
    };
    match checked {
        Ok(throttling) => {
            if side == Side::Source {
                attempt.throttling = throttling;
            }
            Ok((wanted, tuned))
        }
        Err(failure) => {
            for effect in &next {
                attempt.log.undone(effect, report).await;
            }
            if is_refused {
                attempt.log.undone(&tuned, report).await;
            }
            Err(failure)
        }
    }
}

/// Sets what is left to be set, and proves that everything is as it was set and that no migration is under way.
async fn set_and_check(process: &Process, wanted: &mut SideTuning) -> Result<ThrottleMethod, Failure> {
    let throttling = apply::set_up(process, wanted).await?;
    let (changed, migration) = try_join!(apply::changed_setting(process, wanted), process.ask(&qmp::query_migrate {}))?;
    second_look::require_no_migration(process, &migration)?;
    match changed {
        Some(change) => Err(settings_changed(process, &change)),
        None => Ok(throttling),
    }
}

fn settings_changed(process: &Process, change: &str) -> Failure {
    let message = format!("{}: another client changed a setting of the migration: {change}", process.name());
    Failure::Interfered { code: FailureCode::SettingsChanged, message }
}
