//! Puts a side out of the way that does not answer: the last resort, and only where it was decided elsewhere that it
//! is safe.
//!
//! Silence is never taken for success: a process is fenced when the kernel says that it has ended, or the user's
//! command says that it cannot run.

use crate::{
    codes::Setting,
    handover::{
        exchange,
        ownership::{FencedSide, ProcessEnded},
        verdict::UsableFences,
        watchdog,
        way_back::{FrozenDestination, may_end_to_free},
    },
    migration::{context::Context, pair::QemuPair, work_order::Route},
    progress::Reporter,
    qemu::{Observed, Process, reply::MigrationStatus},
    trust::{self, FileOwner},
};
use std::{process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

/// How long a process may take to be gone after it was told to quit, or was killed.
pub(crate) const QUIT: Duration = Duration::from_secs(4);

/// The sides that can be fenced: processes of this host, and with a fence command any.
///
/// A side that a recovery could not ask may run the guest by now, because a person has finished what the dead engine
/// had begun, and holds its monitor. So such a side is not fenced, with two exceptions: a destination whose process is
/// stopped (SIGSTOP) on this host, where the source's answer proves that the destination never ran; and a destination
/// that no engine has started, where a user has asked for the recovery with a command (`may_fence_unasked`).
pub(super) fn find_fences(context: &Context, pair: &QemuPair, may_fence_unasked: bool) -> UsableFences {
    let has_command = context.settings.fence_command.is_some();
    let can = |process: &Process| !process.is_absent() && (process.peer().is_some() || has_command);
    let unasked = pair.destination.is_absent() && !pair.destination.was_replaced();
    let may_be_fenced = pair.destination.is_stopped() || (may_fence_unasked && has_command);
    UsableFences { source: can(&pair.source), destination: can(&pair.destination) || (unasked && may_be_fenced) }
}

/// Whether the user of a recovery vouches for a destination that nobody can ask: that no person has started the guest
/// there. A user does so who has asked for the recovery (`is_asked_for`) with a fence command. The word tells nothing
/// of a destination that has ended, nor of another QEMU at its address.
pub(crate) async fn consents(context: &Context, destination: &Process, is_asked_for: bool) -> bool {
    let unasked = destination.is_absent() && !destination.was_replaced();
    is_asked_for && context.settings.fence_command.is_some() && unasked && !destination.has_ended().await
}

/// Makes sure that a side cannot run the guest: ends its process where it is one of this host, and asks the user's
/// command elsewhere, or where the process could not be asked and may run. `None` where it is not proved.
pub(crate) async fn fence(context: &Context, process: &Process, why: &str) -> Option<FencedSide> {
    let report = &context.report;
    let ended = match !process.is_absent() || process.is_stopped() {
        true => end_process(process, why, report).await,
        false => None,
    };
    if let Some(ended) = ended {
        return ended.map(FencedSide::by_kill);
    }
    let command = context.settings.fence_command.as_ref()?;
    let name = process.name();
    // The command of a recovery is the journal's, and any command may have been changed since it was looked at.
    if let Err(error) = trust::locate(command, FileOwner::UserOrRoot) {
        report.warn("not-fenced", format!("{name}: the fence command is not run: {error}"));
        return None;
    }
    report.action("fence", format!("{name}: {} is run: {why}", command.display()));
    let mut command = Command::new(command);
    command.arg(name.side.as_str()).arg(&name.address).arg(why).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // an interrupt in the terminal is meant for qferry, not for the command
    command.process_group(0);
    let limit = context.settings.fence_timeout;
    let refused = match timeout(limit, command.status()).await {
        Ok(Ok(status)) => match FencedSide::by_command(name.side, status) {
            Some(fenced) => {
                process.note_ended();
                return Some(fenced);
            }
            None => format!("ended with {status}"),
        },
        Ok(Err(error)) => format!("could not be run: {error}"),
        Err(_) => format!("did not end within {limit:?}: give it more with {}", Setting::FenceTimeout),
    };
    report.warn("not-fenced", format!("{name}: the fence command {refused}"));
    None
}

/// Frees a source that hangs, before `migrate-continue`: by ending its connections out of band, and where that does
/// nothing, as while QEMU connects to an NBD server, by ending the process of the destination that it waits for, where
/// that is one of this host and [`may_end_to_free`] allows it. Only for an engine that has followed the destination
/// from the begin.
pub(crate) async fn free(context: &Context, pair: &QemuPair, route: &Route) {
    let QemuPair { source, destination } = pair;
    yank(context, source, route).await;
    let still_hangs = !source.is_gone() && !watchdog::answers(source).await;
    if still_hangs && !destination.is_gone() && !watchdog::answers(destination).await {
        let told = destination.observed();
        let frozen = FrozenDestination {
            followed: !destination.is_reconnected(),
            has_run: told.resumed.is_some(),
            is_passed_on: passes_on(&source.observed()) || passes_on(&told),
        };
        let is_ended = may_end_to_free(&frozen);
        tracing::info!(?frozen, is_ended, "the destination that a source waits for which hangs");
        if is_ended {
            let because = "it does not answer, and the source hangs in what it waits for of it";
            kill(destination, because, &context.report).await;
        }
    }
}

/// Whether the events of a side tell that the guest is passed on, or was.
fn passes_on(seen: &Observed) -> bool {
    let is_passing = |status: &MigrationStatus| {
        matches!(status, MigrationStatus::Device | MigrationStatus::Completed) || status.is_postcopy()
    };
    seen.migration.keys().any(is_passing)
}

/// Ends what the source has open for this run, out of band.
pub(crate) async fn yank(context: &Context, source: &Process, route: &Route) {
    let nodes = route.pairs.iter().map(|pair| pair.names.nbd.as_str());
    for freed in watchdog::free(source, nodes, true).await {
        context.report.action("yank", format!("{}: its {freed} is ended, for nothing comes of it", source.name()));
    }
}

/// Ends a process of this host that this engine has spoken to, and gives the proof that it has ended, if there is one;
/// `None` where the process is not known to be one of this host. A process that could not be asked may run a guest that
/// a person has handed over since.
pub(crate) async fn kill(process: &Process, why: &str, report: &Reporter) -> Option<Option<ProcessEnded>> {
    if process.is_absent() { None } else { end_process(process, why, report).await }
}

async fn end_process(process: &Process, why: &str, report: &Reporter) -> Option<Option<ProcessEnded>> {
    let killed = process.kill()?;
    report.action("fence", format!("{}: its process is ended: {why}", process.name()));
    Some(match killed {
        Ok(()) => exchange::prove_ended(process, QUIT).await,
        Err(error) => {
            report.warn("not-fenced", format!("{}: {error}", process.name()));
            None
        }
    })
}
