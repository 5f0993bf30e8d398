//! The handover: lets the source send the rest, waits for the guest to arrive, and starts it on the destination.
//!
//! Only a failure ends this phase early, and [`way_back::judge`](crate::migration::way_back::judge) finds out what it
//! means.

use crate::{
    handover::{
        exchange,
        ownership::{DisksDisengaged, NotDisengaged, count_sent_pages},
        verdict::ContKnowledge,
    },
    migration::{
        attempt::{Attempt, HandoverFailure},
        context::Context,
        deadlines::{self, ARRIVED, STARTED},
        pair::QemuPair,
        record::Record,
    },
    progress::LedgerMark,
};
use qapi::qmp;
use tokio::time::{Instant, timeout};

/// Hands the guest over.
pub(crate) async fn hand_over(
    context: &Context,
    pair: &QemuPair,
    disengaged: DisksDisengaged,
    attempt: &mut Attempt,
) -> Result<(), HandoverFailure> {
    let QemuPair { source, destination } = pair;
    // the question is on its way before `migrate-continue`, which does not wait for its answer
    let asked = attempt.ram.postcopy.then(|| source.ask(&qmp::query_migrate {}));
    let before = attempt.before_continue.take().ok_or(NotDisengaged::Continued);
    let before = before.map_err(|error| HandoverFailure::new(error, Some(ContKnowledge::Sent)))?;
    let (continued, without_effect) = exchange::relinquish(source, disengaged, before);
    // The record is due before `cont`, and the disk has until then while the last RAM is on its way.
    let starting = attempt.guest.wants_running().then(|| attempt.log.write(Record::Starting));
    let sent = match asked {
        Some(asked) => asked.await.ok().as_ref().and_then(count_sent_pages),
        None => None,
    };
    let deadline = deadlines::by(context, source, &attempt.guest, ARRIVED);
    let arrival = tokio::select! {
        biased;
        (error, before) = without_effect => {
            attempt.before_continue = Some(before);
            return Err(HandoverFailure::new(error, None));
        }
        arrival = exchange::await_arrival(source, destination, continued, deadline, sent) => arrival,
    };
    let arrival = arrival.map_err(|error| HandoverFailure::new(error, Some(ContKnowledge::Never)))?;
    attempt.ledger.mark(LedgerMark::SourceCompleted, arrival.sent);
    attempt.ledger.mark(LedgerMark::DestinationCompleted, arrival.loaded);
    // postcopy that was asked for need not have come about: QEMU completes at once where little is left
    attempt.ram.postcopy = arrival.postcopy;
    if let Some(starting) = starting {
        let limit = deadlines::left(context, source, &attempt.guest, STARTED);
        let deadline = Instant::now() + limit;
        // Without the record a later engine would take the destination for one that never ran.
        let recorded = timeout(limit, starting).await.unwrap_or_else(|_| Err(attempt.log.slow(limit).into()));
        recorded.map_err(|failure| HandoverFailure::new(failure, Some(ContKnowledge::Refused)))?;
        let started = exchange::start_guest(destination, arrival.proof, deadline).await;
        let resumed = match started {
            Ok(resumed) => resumed,
            Err(error) => {
                let cont = ContKnowledge::Never.take_answer(exchange::had_no_effect(destination, &error).await);
                return Err(HandoverFailure::new(error, Some(cont)));
            }
        };
        attempt.ledger.mark(LedgerMark::Resume, resumed);
    }
    Ok(())
}
