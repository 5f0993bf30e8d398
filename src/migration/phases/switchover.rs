//! The switchover: with the guest stopped, settles the mirrors and closes the exports.
//!
//! No question comes before the commands. Whether the mirrors are ready and the destination alive would only predict
//! what the answers of this phase prove: a mirror that was not ready does not conclude well, and a dead destination
//! closes no export.

use super::controller_record::{note, note_question, whole_micros};
use crate::{
    codes::FindingCode,
    convergence::{ControllerNote, OverBudget, PendingRest, keep_budget},
    handover::ownership::DisksDisengaged,
    migration::{
        Failure,
        attempt::Attempt,
        context::Context,
        deadlines::{self, SETTLED},
        pair::QemuPair,
        record::Record,
        work_order::Route,
    },
    progress::{LedgerMark, Moment},
    qemu::{
        Process, QemuName,
        reply::{MigrationInfo, RunState},
    },
    quantity::Bytes,
    storage::mirror::{export, mirror_job},
};
use qapi::qmp;
use std::time::Duration;
use tokio::{time::Instant, try_join};

/// The time for the flushes at the guest's stop that is told where the budget did not suffice.
const NOTABLE: Duration = Duration::from_millis(20);

/// Settles every mirror and closes every export, and proves it.
pub(crate) async fn disengage(
    context: &Context,
    pair: &QemuPair,
    route: &Route,
    stopped: Moment,
    attempt: &mut Attempt,
) -> Result<DisksDisengaged, Failure> {
    let QemuPair { source, destination } = pair;
    // The records are on their way already here: the disk takes a while to keep them, and the mirrors a while to
    // settle.
    attempt.given = true;
    let guest = attempt.journal_guest();
    let given = attempt.log.write(Record::Given);
    let given = async { try_join!(guest, given) };
    if route.pairs.is_empty() {
        attempt.ledger.mark(LedgerMark::PreSwitchover, stopped);
        let (rest, waits) = (source.ask(&qmp::query_migrate {}), keep_waiting(destination));
        // Another run may have begun to write to the destination's disks.
        let exports = destination.ask(&qmp::query_block_exports {});
        let rest = rest.await?;
        waits.await?;
        let exports: Vec<String> = exports.await?.0.into_iter().map(|export| export.id).collect();
        ask_for_budget(context, pair, stopped, &rest, attempt)?;
        given.await?;
        return Ok(DisksDisengaged::prove(std::iter::empty(), &[], &exports)?);
    }
    let settled = mirror_job::settle(source, &route.pairs, deadlines::left(context, source, &attempt.guest, SETTLED));
    let rest = source.ask(&qmp::query_migrate {});
    attempt.ledger.mark(LedgerMark::PreSwitchover, stopped);
    attempt.ledger.mark(LedgerMark::SettleSent, Moment::now());
    if let Some(last) = settled.await? {
        attempt.ledger.mark(LedgerMark::MirrorsSettled, last);
    }
    let asked = Instant::now();
    let waits = keep_waiting(destination);
    let (jobs, exports) = try_join!(source.ask(&qmp::query_jobs {}), export::stop_server(destination))?;
    waits.await?;
    attempt.ledger.mark(LedgerMark::ExportsGone, Moment::now());
    if let Some(history) = &mut attempt.history {
        let us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        history.answered_at_stop(us as f64 / 1000.0);
        note(context, || ControllerNote::StopAnswered { us });
    }
    attempt.copied = jobs.0.iter().map(|job| (job.id.clone(), job.current_progress)).collect();
    let mirrors = route.pairs.iter().map(|pair| pair.names.job.as_str());
    let disengaged = DisksDisengaged::prove(mirrors, &jobs.0, &exports)?;
    given.await?;
    ask_for_budget(context, pair, stopped, &rest.await?, attempt)?;
    Ok(disengaged)
}

/// Tells the destination once more to wait, and proves that the destination does. The commands are sent when the
/// function is called.
///
/// Somebody may have sent `cont` while disks were copied. A destination that was told so runs by itself as soon as the
/// destination has everything, though the source may take the guest back then; `stop` takes that word back.
pub(super) fn keep_waiting(destination: &Process) -> impl Future<Output = Result<(), Failure>> + use<> {
    let stopped = destination.act(&qmp::stop {});
    let run = destination.ask(&qmp::query_status {});
    let name = destination.name().clone();
    async move {
        let ((), run) = try_join!(stopped, run)?;
        refuse_unless_waiting(&name, run.status)
    }
}

/// Refuses to go on with a destination that does not wait for a guest any more.
fn refuse_unless_waiting(name: &QemuName, run: RunState) -> Result<(), Failure> {
    match run {
        RunState::InMigrate => Ok(()),
        run => {
            let message = format!("{name}: this QEMU does not wait for the guest any more: {run}");
            Err(Failure::Interfered { code: FindingCode::DestinationState.into(), message })
        }
    }
}

/// Refuses to go on where the blackout would exceed the budget. This is the last chance to ask: the end of the
/// mirrors is measured by now, and how much of RAM is left is known.
fn ask_for_budget(
    context: &Context,
    pair: &QemuPair,
    stopped: Moment,
    rest: &MigrationInfo,
    attempt: &Attempt,
) -> Result<(), Failure> {
    let Some(history) = attempt.history.as_ref().filter(|_| attempt.guest.wants_running()) else { return Ok(()) };
    // with postcopy the rest of RAM follows when the guest runs again
    let left = if attempt.ram.postcopy { 0 } else { rest.left() };
    let rest = PendingRest::Memory(Bytes(left));
    let stood = whole_micros(pair.stood(stopped));
    let kept = keep_budget(&context.settings.policy, history, stood, rest);
    note_question(context, stood, rest, kept.is_ok());
    Ok(kept.map(drop).map_err(|over| name_the_flush(over, pair, stopped))?)
}

/// Adds how long QEMU drained and flushed the source's disks, where that took long: `stopped` is when QEMU was done.
fn name_the_flush(mut over: OverBudget, pair: &QemuPair, stopped: Moment) -> OverBudget {
    let stood = pair.source.observed().stood_since();
    let flushed = stood.map_or(Duration::ZERO, |stood| stopped.local.saturating_duration_since(stood.local));
    if flushed >= NOTABLE {
        let words =
            format!("; {} ms of that passed while QEMU drained and flushed the source's disks", flushed.as_millis());
        over.because.push_str(&words);
    }
    over
}
