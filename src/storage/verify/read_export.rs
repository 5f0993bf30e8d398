//! Read-only NBD exports of block nodes, for as long as an image is read through them.
//!
//! No node may be exported for writing, and nothing may stay behind: neither the exports nor the server, and a node
//! that waits for an incoming migration must be inactive again. [`ReadExports`] that are dropped without
//! [`ReadExports::close`] stay open in QEMU, as do those of a killed process; the next [`ReadExports::open`] removes
//! them.

use crate::{
    endpoint::{Address, keep_private},
    qemu::{Process, ProcessError},
    qmp::QmpRequest,
    run_id::RunId,
    storage::mirror::export,
};
use qapi::qmp;
use std::collections::BTreeSet;
use tokio::try_join;

/// The read-only exports of one QEMU, at one address.
#[derive(Debug)]
#[must_use = "the exports stay open in QEMU until they are closed"]
pub struct ReadExports {
    /// The run that reads.
    run: RunId,
    address: Address,
    /// The ids of the exports, in the order of the nodes.
    exports: Vec<String>,
    /// Exported nodes that were inactive before.
    inactive: Vec<String>,
    /// All nodes that were inactive before: QEMU also activates the nodes below an exported node, even if the export
    /// fails.
    before: BTreeSet<String>,
}

impl ReadExports {
    /// Exports `nodes` (pairs of an export's name and a node) for reading at `address`, with the metadata contexts
    /// `base:allocation` and `qemu:allocation-depth`. Exports that a dead engine left open are removed first; those of
    /// a living engine are not.
    ///
    /// # Errors
    /// [`ProcessError::InUse`] if QEMU's only NBD server runs already; else QEMU refuses, or does not answer. After an
    /// error everything is closed again, as far as QEMU still answers.
    pub async fn open(
        process: &Process,
        run: &RunId,
        address: &Address,
        nodes: &[(String, String)],
    ) -> Result<Self, ProcessError> {
        let before = set_of(process, false).await?;
        start_server(process, address).await?;
        // Only this process reads from the socket, so close it to others before anything is exported, whoever chose the
        // path.
        if let Err(error) = keep_private(address) {
            tracing::debug!(%address, %error, "the permissions of the socket could not be restricted; those of its folder apply");
        }
        let (run, address) = (run.clone(), address.clone());
        let mut opened = Self { run, address, exports: Vec::new(), inactive: Vec::new(), before };
        match opened.add(process, nodes).await {
            Ok(()) => Ok(opened),
            Err(error) => {
                if let Err(error) = opened.close(process).await {
                    tracing::warn!(%error, "the exports for reading could not be closed again");
                }
                Err(error)
            }
        }
    }

    /// Exports one more node.
    ///
    /// # Errors
    /// QEMU refuses, for example because another process holds the lock of the image, or does not answer.
    pub async fn offer(&mut self, process: &Process, name: &str, node: &str) -> Result<(), ProcessError> {
        self.add(process, &[(name.to_owned(), node.to_owned())]).await
    }

    /// The address of the NBD server.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Ends every connection, removes the exports, stops the server, and makes nodes inactive that were inactive
    /// before. A step that fails does not keep the others.
    ///
    /// # Errors
    /// The first failure.
    pub async fn close(self, process: &Process) -> Result<(), ProcessError> {
        // Send all commands in this order before awaiting any answer.
        let hard = Some(qmp::BlockExportRemoveMode::hard);
        let removed: Vec<_> = self.exports.iter().map(|id| process.act(&remove(id, hard))).collect();
        let stopped = process.act(&qmp::nbd_server_stop {});
        // Parents first: QEMU cannot make a node inactive below an active parent.
        let inactivated: Vec<_> = self.inactive.iter().rev().map(|node| inactivate(process, node)).collect();

        let mut first = Ok(());
        for answer in removed {
            // An export that is already closed is no failure: stopping the server proves that it is closed.
            if let Err(error) = answer.await {
                tracing::debug!(%error, "an export could not be removed by its id");
            }
        }
        first = first.and(stopped.await);
        if let Address::Unix(path) = &self.address {
            // QEMU itself removes the socket, unless QEMU was killed.
            drop(std::fs::remove_file(path));
        }
        for answer in inactivated {
            first = first.and(answer.await);
        }
        first.and(self.inactivate_rest(process).await)
    }

    /// Makes the remaining nodes inactive: QEMU leaves nodes active below a node whose export it refused, for example
    /// because of a lock. Parents must come first, but QEMU does not tell the order, so the loop repeats while it makes
    /// progress.
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
            let id = export::id_for_reading(&self.run, self.exports.len());
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

/// The active nodes, or the inactive nodes that wait for an incoming migration. QEMU before 10.0 neither tells them
/// apart nor can make a node inactive, so both sets are empty.
async fn set_of(process: &Process, active: bool) -> Result<BTreeSet<String>, ProcessError> {
    let known = process.ask(&qmp::query_named_block_nodes { flat: Some(true) }).await?.0;
    Ok(known.into_iter().filter(|node| node.active == Some(active)).map(|node| node.node_name).collect())
}

fn inactivate(process: &Process, node: &str) -> impl Future<Output = Result<(), ProcessError>> {
    let request = QmpRequest::named("blockdev-set-active").with("node-name", node).with("active", false);
    process.act_with("blockdev-set-active", request)
}

async fn start_server(process: &Process, address: &Address) -> Result<(), ProcessError> {
    let Err(refused) = export::start_server(process, address, None).await else { return Ok(()) };
    if !refused.is_refusal() {
        return Err(refused);
    }
    let exports = process.ask(&qmp::query_block_exports {}).await?.0;
    let ids: Vec<String> = exports.into_iter().map(|export| export.id).collect();
    // An engine never adds an export for reading to a foreign server: if all exports are for reading, an engine started
    // it.
    if !ids.is_empty() && ids.iter().all(|id| export::is_for_reading(id)) {
        // In mode "safe" QEMU refuses to remove an export with a client.
        for id in &ids {
            let removed = process.act(&remove(id, Some(qmp::BlockExportRemoveMode::safe))).await;
            removed.map_err(|error| match error.is_refusal() {
                true => in_use(process, "another qferry reads from it right now: wait until that one has ended"),
                false => error,
            })?;
        }
        let stopped = process.act(&qmp::nbd_server_stop {});
        try_join!(stopped, export::start_server(process, address, None)).map(drop)
    } else if refused.refusal().is_some_and(|words| words.contains("already running")) {
        let exports = if ids.is_empty() { "without exports".to_owned() } else { format!("with {}", ids.join(", ")) };
        let what = format!(
            "an NBD server runs there already, {exports}, and a QEMU can run only one: stop the server with \
             nbd-server-stop if nobody needs it"
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
