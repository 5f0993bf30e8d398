//! Reaches a side again whose monitor closed, before it is decided what became of the guest: a closed monitor is no
//! death, and behind a new connection there may be all that is to be undone.
//!
//! It must never take another process for the one that was there.

use crate::migration::{
    engine::Context,
    way_back::rollback::{QemuPair, ours},
};
use crate::{
    endpoint::{self, Address, PeerPid},
    handover::exchange,
    progress::Side,
    qemu::{Process, reply::MigrationStatus},
    qmp::{self, Recorder},
};
use qapi::qmp::query_migrate;
use std::time::Duration;
use tokio::time::timeout;

/// How long another connection may take: the guest may stand still.
const REDIAL: Duration = Duration::from_secs(2);

/// How long after its monitor a process may end that took the monitor with it.
const DYING: Duration = Duration::from_secs(1);

/// Where the monitors are; none where the embedder made the connection.
#[derive(Debug, Default)]
pub(crate) struct Redial {
    pub(crate) source: Option<Address>,
    pub(crate) destination: Option<Address>,
    pub(crate) recorder: Option<Recorder>,
}

impl Context {
    /// Reaches the sides again that can be. True if events of the source were missed: it was reached again, or its
    /// monitor closed and its process lived on.
    pub(crate) async fn reach_again(&self, sides: &mut QemuPair) -> bool {
        let (source, destination, missed) = {
            let reached = async { tokio::join!(self.other(sides, Side::Source), self.other(sides, Side::Destination)) };
            // Both begin now: a process that ends while its address is dialled did not end with its monitor.
            let cut = is_cut(&sides.source);
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
            sides.destination = process;
        }
        if let Some(process) = source {
            sides.source = process;
        }
        missed
    }

    /// A side over another connection, where the one there was has closed.
    pub(crate) async fn other(&self, sides: &QemuPair, side: Side) -> Option<Process> {
        let address = match side {
            Side::Source => &self.redial.source,
            Side::Destination => &self.redial.destination,
        };
        timeout(REDIAL, self.again(sides.side(side), address.as_ref())).await.ok()?
    }

    async fn again(&self, process: &Process, address: Option<&Address>) -> Option<Process> {
        if !process.is_gone() || process.peer().is_some_and(PeerPid::has_died) {
            return None;
        }
        let dialed = endpoint::dial(address?, REDIAL).await.ok()?;
        let peer = dialed.peer.filter(PeerPid::is_qemu);
        if process.peer().map(PeerPid::pid) != peer.as_ref().map(PeerPid::pid) {
            return None;
        }
        let known = peer.is_some();
        let recorder = self.redial.recorder.clone();
        let options = qmp::QmpOptions { recorder, ..qmp::QmpOptions::labelled(process.name().side.as_str()) };
        let again = process.reconnect(dialed.stream, peer, options).await.ok()?;
        if !known && !remembers(&again).await {
            return None;
        }
        self.report.action("reconnect", format!("the monitor of {} had closed", process.name()));
        Some(again)
    }
}

/// Whether a monitor closed while its process lived on, or may have: where the end of the process cannot be proved,
/// nothing tells the two apart. A process that dies closes its monitor a moment before it has ended.
pub(crate) async fn is_cut(process: &Process) -> bool {
    process.is_gone() && exchange::prove_ended(process, DYING).await.is_none()
}

/// Whether it remembers a migration, or has something of ours: one that was started anew does not.
async fn remembers(process: &Process) -> bool {
    let status = process.ask(&query_migrate {}).await.ok().and_then(|answer| answer.status);
    status.is_some_and(|status| status != MigrationStatus::None)
        || ours(process).await.is_ok_and(|ours| !ours.is_empty())
}
