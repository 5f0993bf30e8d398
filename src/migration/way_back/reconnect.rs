//! Reaches a side again whose monitor closed, before it is decided what became of the guest: a closed monitor is no
//! death, and all that is to be undone may be behind a new connection.
//!
//! Another process at the address must never be taken for the one that was there.

use crate::{
    endpoint::{Dialed, Endpoint, PeerPid},
    handover::exchange,
    migration::{
        connection::with_own_process,
        context::Context,
        pair::QemuPair,
        participant::{self, NotProved},
    },
    progress::Side,
    qemu::Process,
    qmp,
};
use std::time::Duration;
use tokio::time::timeout;

/// How long another connection may take: the guest may stand still.
const REDIAL: Duration = Duration::from_secs(2);

/// How long after its monitor a process may end that took the monitor with it.
const DYING: Duration = Duration::from_secs(1);

/// Reaches the sides again that can be reached. True if events of the source were missed: the source was reached
/// again, or its monitor closed and its process lived on.
pub(crate) async fn reach_again(context: &Context, pair: &mut QemuPair) -> bool {
    let (source, destination, missed) = {
        let reached = async {
            tokio::join!(reach_side(context, pair, Side::Source), reach_side(context, pair, Side::Destination))
        };
        // The wait for the end of the process begins with the dialling: a process that ends only while its address is
        // dialled did not end with its monitor.
        let cut = is_cut(&pair.source);
        tokio::pin!(reached, cut);
        let mut known = None;
        let (source, destination) = loop {
            tokio::select! {
                biased;
                reached = &mut reached => break reached,
                found = &mut cut, if known.is_none() => known = Some(found),
            }
        };
        let missed = match (&source, known) {
            (Some(_), _) => true,
            (None, Some(cut)) => cut,
            (None, None) => cut.await,
        };
        (source, destination, missed)
    };
    if let Some(process) = destination {
        pair.destination = process;
    }
    if let Some(process) = source {
        pair.source = process;
    }
    missed
}

/// Whether a monitor closed while its process lived on, or may have: where the end of the process cannot be proved,
/// nothing tells the two apart. A process that dies closes its monitor a moment before it has ended.
pub(crate) async fn is_cut(process: &Process) -> bool {
    process.is_gone() && exchange::prove_ended(process, DYING).await.is_none()
}

/// One side over another connection, where the connection to it has closed.
pub(crate) async fn reach_side(context: &Context, pair: &QemuPair, side: Side) -> Option<Process> {
    let endpoint = context.monitors.endpoint(side)?;
    timeout(REDIAL, dial_again(context, pair.side(side), endpoint)).await.ok()?
}

async fn dial_again(context: &Context, process: &Process, endpoint: &Endpoint) -> Option<Process> {
    if !process.may_be_reached_again() {
        return None;
    }
    let Dialed { stream, peer, .. } = endpoint.dial(REDIAL).await.ok()?;
    let known = process.peer().map(PeerPid::pid);
    // A peer where none was known may be a stranger that has made a forwarder's socket.
    if known.is_some() && known != peer.as_ref().map(PeerPid::pid) {
        return None;
    }
    let recorder = context.monitors.recorder.clone();
    let options = qmp::QmpOptions { recorder, ..qmp::QmpOptions::labelled(process.name().side.as_str()) };
    let again = with_own_process(endpoint, process.reconnect(stream, peer, options).await.ok()?).await;
    if known != again.peer().map(PeerPid::pid) {
        return None;
    }
    let status = context.records.status();
    let begun = status.begun.as_ref()?;
    let party = match again.name().side {
        Side::Source => &begun.source,
        Side::Destination => &begun.destination,
    };
    if let Err(NotProved(why)) =
        participant::prove(&again, party, process.peer(), &begun.pairs, status.certain_effects()).await
    {
        context.report.warn("another-qemu", format!("{}: another QEMU answers there: {why}", again.name()));
        return None;
    }
    context.report.action("reconnect", format!("the monitor of {} had closed", process.name()));
    Some(again)
}
