//! Read-only NBD exports of nodes, for as long as something is read through them.
//!
//! It must never offer a node for writing, and never leave behind what it opened: the exports, the server, and the
//! activity of a node that waits for an incoming migration. A [`ReadExports`] that is dropped without [`ReadExports::close`] stays open
//! in QEMU, as does that of a killed process; the next one to be opened there removes it.

use crate::{
    endpoint::{Address, keep_private},
    qemu::{Process, ProcessError},
    qmp::QmpRequest,
    storage::mirror::export,
};
use qapi::qmp;
use std::collections::BTreeSet;
use tokio::try_join;

/// Nodes of one QEMU that can be read at an address, each as an export.
#[derive(Debug)]
#[must_use = "it stays open in QEMU until it is closed"]
pub struct ReadExports {
    address: Address,
    /// The ids of the exports, in the order of the nodes.
    exports: Vec<String>,
    /// Nodes that were exported and had been inactive before.
    inactive: Vec<String>,
    /// All that were inactive before: what is below an exported node becomes active with it, or before it fails to.
    before: BTreeSet<String>,
}

impl ReadExports {
    /// Exports each of `nodes`, which are pairs of an export's name and a node, for reading at `address`. Contexts for
    /// `base:allocation` and `qemu:allocation-depth` are offered.
    ///
    /// What a dead process of ours left open there is removed first; what a living one reads from is not.
    ///
    /// # Errors
    /// [`ProcessError::InUse`] where an NBD server runs already, which QEMU has only one of; else what QEMU says. Whatever
    /// the error, nothing is left open as far as QEMU still answers.
    pub async fn open(process: &Process, address: &Address, nodes: &[(String, String)]) -> Result<Self, ProcessError> {
        let before = set_of(process, false).await?;
        start_server(process, address).await?;
        // only we read from it, so also where the user named it; before anything can be read there
        if let Err(error) = keep_private(address) {
            tracing::debug!(%address, %error, "who may connect is left to the folder of the socket");
        }
        let mut view = Self { address: address.clone(), exports: Vec::new(), inactive: Vec::new(), before };
        match view.add(process, nodes).await {
            Ok(()) => Ok(view),
            Err(error) => {
                if let Err(error) = view.close(process).await {
                    tracing::warn!(%error, "what was exported for reading could not be closed again");
                }
                Err(error)
            }
        }
    }

    /// Exports one more node, on its own.
    ///
    /// # Errors
    /// What QEMU says: where another process has the image open for writing, that it could not get a lock.
    pub async fn offer(&mut self, process: &Process, name: &str, node: &str) -> Result<(), ProcessError> {
        self.add(process, &[(name.to_owned(), node.to_owned())]).await
    }

    /// Where the exports are.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Ends every connection, removes the exports, stops the server, and makes inactive again what was inactive before.
    /// Everything is tried, whatever fails on the way.
    ///
    /// # Errors
    /// The first failure.
    pub async fn close(self, process: &Process) -> Result<(), ProcessError> {
        // all are on their way, in this order, before any answer is awaited
        let hard = Some(qmp::BlockExportRemoveMode::hard);
        let removed: Vec<_> = self.exports.iter().map(|id| process.act(&remove(id, hard))).collect();
        let stopped = process.act(&qmp::nbd_server_stop {});
        // those above first: a node whose parent is active cannot be made inactive
        let inactivated: Vec<_> = self.inactive.iter().rev().map(|node| inactivate(process, node)).collect();

        let mut first = Ok(());
        for answer in removed {
            // one that is gone already is no failure: the server's end is the proof
            if let Err(error) = answer.await {
                tracing::debug!(%error, "an export could not be removed by its id");
            }
        }
        first = first.and(stopped.await);
        if let Address::Unix(path) = &self.address {
            // QEMU removes it itself, unless it was killed
            drop(std::fs::remove_file(path));
        }
        for answer in inactivated {
            first = first.and(answer.await);
        }
        first.and(self.inactivate_rest(process).await)
    }

    /// Makes inactive again what is active below nodes that are not: an export that was refused, as by a lock, leaves it
    /// so. Whatever is above comes first, which QEMU does not tell the order of.
    async fn inactivate_rest(&self, process: &Process) -> Result<(), ProcessError> {
        if self.before.is_empty() {
            return Ok(());
        }
        let mut left = usize::MAX;
        loop {
            let active: Vec<String> = set_of(process, true).await?.intersection(&self.before).cloned().collect();
            if active.is_empty() || active.len() >= left {
                return Ok(());
            }
            left = active.len();
            let answers: Vec<_> = active.iter().map(|node| inactivate(process, node)).collect();
            for answer in answers {
                answer.await?;
            }
        }
    }

    async fn add(&mut self, process: &Process, nodes: &[(String, String)]) -> Result<(), ProcessError> {
        let mut answers = Vec::new();
        for (name, node) in nodes {
            let id = export::id_for_reading(self.exports.len());
            answers.push(process.act(&qmp::block_export_add(export::options(&id, name, node, false))));
            self.inactive.extend(self.before.get(node).cloned());
            self.exports.push(id);
        }
        for answer in answers {
            answer.await?;
        }
        Ok(())
    }
}

/// The nodes that are active, or those that may not be used yet, because they wait for an incoming migration. Before 10.0
/// QEMU does not tell, nor can it put a node back.
async fn set_of(process: &Process, active: bool) -> Result<BTreeSet<String>, ProcessError> {
    let known = process.ask(&qmp::query_named_block_nodes { flat: Some(true) }).await?.0;
    Ok(known.into_iter().filter(|node| node.active == Some(active)).map(|node| node.node_name).collect())
}

fn inactivate(process: &Process, node: &str) -> impl Future<Output = Result<(), ProcessError>> {
    let request = QmpRequest::named("blockdev-set-active").with("node-name", node).with("active", false);
    process.act_with("blockdev-set-active", request)
}

async fn start_server(process: &Process, address: &Address) -> Result<(), ProcessError> {
    let Err(refused) = export::start_server(process, address).await else { return Ok(()) };
    if !refused.is_refusal() {
        return Err(refused);
    }
    let exports = process.ask(&qmp::query_block_exports {}).await?.0;
    let ids: Vec<String> = exports.into_iter().map(|export| export.id).collect();
    // a view never adds to someone else's server: where all exports are of a view, so is the server
    if !ids.is_empty() && ids.iter().all(|id| export::is_for_reading(id)) {
        // "safe" refuses where somebody is connected
        for id in &ids {
            let removed = process.act(&remove(id, Some(qmp::BlockExportRemoveMode::safe))).await;
            removed.map_err(|error| match error.is_refusal() {
                true => in_use(process, "another qferry reads from it right now: wait for it"),
                false => error,
            })?;
        }
        let stopped = process.act(&qmp::nbd_server_stop {});
        try_join!(stopped, export::start_server(process, address)).map(drop)
    } else if refused.refusal().is_some_and(|words| words.contains("already running")) {
        let exports = if ids.is_empty() { "without exports".to_owned() } else { format!("with {}", ids.join(", ")) };
        let what = format!(
            "an NBD server runs there already, {exports}, and a QEMU has only one: stop it with nbd-server-stop if \
             nobody needs it"
        );
        Err(in_use(process, what))
    } else {
        Err(refused)
    }
}

fn in_use(process: &Process, what: impl Into<String>) -> ProcessError {
    ProcessError::InUse { at: process.name().clone(), what: what.into() }
}

fn remove(id: &str, mode: Option<qmp::BlockExportRemoveMode>) -> qmp::block_export_del {
    qmp::block_export_del { id: id.to_owned(), mode }
}
