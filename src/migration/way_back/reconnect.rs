//! Reaches a side again whose monitor closed, before it is decided what became of the guest: a closed monitor is no death,
//! and behind a new connection there may be all that is to be undone.
//!
//! It must never take another process for the one that was there.

use crate::migration::{
    engine::Context,
    way_back::rollback::{QemuPair, ours},
};
use crate::{
    endpoint::{self, Address, PeerPid},
    progress::Side,
    qemu::{Process, reply::MigrationStatus},
    qmp::{self, Recorder},
};
use qapi::qmp::query_migrate;
use std::time::Duration;
use tokio::time::timeout;

/// How long another connection may take: the guest may stand still.
const REDIAL: Duration = Duration::from_secs(2);

/// Where the monitors are; none where the embedder made the connection.
#[derive(Debug, Default)]
pub(crate) struct Redial {
    pub(crate) source: Option<Address>,
    pub(crate) destination: Option<Address>,
    pub(crate) recorder: Option<Recorder>,
}

impl Context {
    /// Reaches the sides again that can be. True if the source was: what it did meanwhile, no event has told.
    pub(crate) async fn reach_again(&self, sides: &mut QemuPair) -> bool {
        let (source, destination) = tokio::join!(self.other(sides, Side::Source), self.other(sides, Side::Destination));
        if let Some(process) = destination {
            sides.destination = process;
        }
        source.map(|process| sides.source = process).is_some()
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

/// Whether it remembers a migration, or has something of ours: one that was started anew does not.
async fn remembers(process: &Process) -> bool {
    let status = process.ask(&query_migrate {}).await.ok().and_then(|answer| answer.status);
    status.is_some_and(|status| status != MigrationStatus::None)
        || ours(process).await.is_ok_and(|ours| !ours.is_empty())
}
