//! The end of a guest whose source has ended before the guest was passed on: the guest runs nowhere, so what was made
//! for it at the destination is put out of the way.
//!
//! Nothing here may be done where the destination may have been given the guest.

use super::{
    destination::{self, DestinationEnd, DestinationPast},
    leftovers::remove_socket,
};
use crate::{
    handover::{
        exchange,
        way_back::{LostSource, WayBackGround, has_ended},
    },
    memory::apply,
    migration::{
        Effect, Failure,
        attempt::Attempt,
        ending::{End, NOT_PROVED, undetermined},
        pair::QemuPair,
    },
    progress::{Ending, Phase, Reporter, RunsOn, Side, describe},
    qemu::{Process, reply::MigrationStatus},
    storage::mirror::export,
};
use std::time::Duration;

/// How long a source that has said SHUTDOWN may take to end: QEMU flushes its disks before.
const ENDS: Duration = Duration::from_secs(4);
/// How long a source that has closed its monitor without a word may take to be seen to have ended.
const DIES: Duration = Duration::from_secs(1);

/// The end of a guest that a verdict has found on neither side: both have ended, and the destination never ran the
/// guest.
pub(crate) async fn end_after_handover(
    pair: &QemuPair,
    failure: &Failure,
    attempt: &mut Attempt,
    report: &Reporter,
) -> End {
    let past = DestinationPast {
        ground: WayBackGround::OnSource,
        followed: attempt.destination_followed,
        listened: attempt.log.effects().contains(&Effect::Incoming),
    };
    let end = end_with_source(pair, past, attempt, report).await;
    end.unwrap_or_else(|| undetermined(failure, NOT_PROVED))
}

/// Whether the source has passed its guest on in a migration that another client let complete. What has arrived at this
/// run's destination is accounted for there.
fn may_have_passed(source: &Process, ground: WayBackGround, has_arrived: bool) -> bool {
    let seen = source.observed();
    let has_entered = |status| seen.entered(&status).is_some();
    let has_failed = has_entered(MigrationStatus::Failed) || has_entered(MigrationStatus::Cancelled);
    // What completed after this run's `migrate-continue` is this run's, unless another began since.
    let is_anothers = source.own_migration.is_followed(&seen);
    let has_completed = ground == WayBackGround::NotGiven && has_entered(MigrationStatus::Completed);
    (is_anothers && !has_failed) || (has_completed && !has_arrived)
}

/// The end of a guest whose source is gone, where that is proved; `None` leaves everything as it is. Only on the way
/// back: the destination was not given the guest, or a verdict says that the destination never ran it.
pub(super) async fn end_with_source(
    pair: &QemuPair,
    past: DestinationPast,
    attempt: &mut Attempt,
    report: &Reporter,
) -> Option<End> {
    let QemuPair { source, destination } = pair;
    let shutdown = source.observed().shutdown;
    let patience = if shutdown.is_some() { ENDS } else { DIES };
    let proved = exchange::prove_ended(source, patience).await.is_some();
    let effects = attempt.log.effects().to_vec();
    let is_used = |effect: &Effect| matches!(effect, Effect::NbdServer | Effect::Incoming);
    // Another engine, or a person, may have passed the guest on to a destination that this engine has not used.
    let fate = destination::decide_fate(pair, past).await;
    let has_heard_all = past.followed && !destination.is_reconnected();
    let has_arrived = has_heard_all && destination.observed().entered(&MigrationStatus::Completed).is_some();
    let lost = LostSource {
        proved,
        told: shutdown.is_some(),
        passed: may_have_passed(source, past.ground, has_arrived),
        listened: past.listened,
        never_ran: past.ground == WayBackGround::OnSource
            || (has_heard_all && destination.observed().resumed.is_none()),
        destination: fate,
    };
    if !has_ended(&lost) {
        return None;
    }
    let failure = Failure::GuestEnded { gone: source.gone().await, shutdown };
    let mut reason = failure.reason();
    report.action("end", reason.message.clone());
    let cleaned = async {
        if effects.iter().any(is_used) {
            match destination::carry_out(destination, fate, report).await {
                DestinationEnd::Gone(_) => {
                    Ok(destination::await_end(destination, report).await.err().map(|e| describe(&e)))
                }
                // Somebody has started the destination since it was looked at.
                DestinationEnd::Left(why) if why.is_taken_over() => Err(why),
                DestinationEnd::Left(why) => Ok(Some(why.describe().to_owned())),
                DestinationEnd::Failed(error) => Ok(Some(describe(&error))),
            }
        } else {
            Ok(None)
        }
    };
    let left = report.during(Phase::Cleanup, cleaned).await.ok()?;
    if let Some(why) = left {
        let name = destination.name();
        attempt.leftovers.push(format!("{name}: its process, which waits for the guest ({why})"));
        report.warn("not-undone", format!("{name}: {why}"));
    }
    for effect in effects.iter().rev() {
        match effect {
            Effect::SocketFile(path) => attempt.leftovers.extend(remove_socket(path)),
            Effect::Tuned { side: Side::Destination, before } if !destination.has_ended().await => {
                if let Err(error) = apply::restore(destination, before).await {
                    report.warn("not-undone", describe(&error));
                    continue;
                }
            }
            Effect::NbdServer if !destination.has_ended().await => {
                if let Err(error) = export::stop_own_server(destination, attempt.log.run()).await {
                    report.warn("not-undone", describe(&error));
                    continue;
                }
            }
            // whatever was made in the source has ended with it, and the destination was ended above
            _ => {}
        }
        attempt.log.undone(effect, report).await;
    }
    if effects.iter().any(|effect| matches!(effect, Effect::Mirror(_))) {
        reason.message.push_str("; the destination's images hold a part of the disks: make them anew");
    }
    Some(End { ending: Ending::Ended, runs_on: RunsOn::None, reason: Some(reason) })
}
