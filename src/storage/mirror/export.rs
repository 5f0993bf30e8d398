//! The NBD server of a QEMU: on the destination it offers a writable export per disk, to which the mirrors write.
//!
//! No writable export may stay once the mirrors have settled: QEMU would let the guest and a client of the export write
//! at the same time.

use crate::{
    endpoint::Address,
    qemu::{Features, Process, ProcessError, keep_alive},
    qmp::QmpRequest,
    run_id::RunId,
    storage::model::layout::{DiskPair, PairNames},
};
use qapi::{
    Command,
    qmp::{self, nbd_server_start},
};
use serde_json::{Value, json};
use tokio::try_join;

/// Starts the server at the address, for at most so many connections at once. QEMU accepts no other connection as long
/// as all of them are there.
///
/// # Errors
/// QEMU refuses, above all because a server runs already or because QEMU may not create the socket.
pub async fn start_server(
    destination: &Process,
    address: &Address,
    connections: Option<usize>,
) -> Result<(), ProcessError> {
    let max_connections = connections.and_then(|connections| u32::try_from(connections).ok());
    let (kind, data) = (keep_alive::socket_type(address), keep_alive::socket_members(address, destination.features()));
    let addr = json!({ "type": kind, "data": data });
    let request = QmpRequest::named(nbd_server_start::NAME).with("addr", addr);
    let request = match max_connections {
        Some(most) => request.with("max-connections", most),
        None => request,
    };
    destination.act_with(nbd_server_start::NAME, request).await
}

/// Exports the destination disk of a pair for writing.
///
/// # Errors
/// QEMU refuses, or does not answer.
pub async fn add(destination: &Process, pair: &DiskPair) -> Result<(), ProcessError> {
    let PairNames { export, .. } = &pair.names;
    destination.act(&qmp::block_export_add(options(export, export, &pair.destination.node, true))).await
}

/// The id of an export for reading has this behind the prefix and the id of its run.
const FOR_READING: &str = "view-";

/// The id of a run's export for reading with this number.
pub(in crate::storage) fn id_for_reading(run: &RunId, number: usize) -> String {
    run.name(format_args!("{FOR_READING}{number}"))
}

/// Whether an export is one for reading, by its id.
pub(in crate::storage) fn is_for_reading(id: &str) -> bool {
    RunId::of_name(id).is_some_and(|(_, what)| what.starts_with(FOR_READING))
}

/// The options of an export of a node. A read-only export also offers `qemu:allocation-depth`, which tells the layer
/// that a range comes from.
pub(in crate::storage) fn options(id: &str, name: &str, node: &str, writable: bool) -> qmp::BlockExportOptions {
    qmp::BlockExportOptions::nbd {
        base: qmp::BlockExportOptionsBase {
            fixed_iothread: None,
            iothread: None,
            writable: Some(writable),
            writethrough: None,
            id: id.to_owned(),
            node_name: node.to_owned(),
        },
        nbd: qmp::BlockExportOptionsNbd {
            base: qmp::BlockExportOptionsNbdBase { description: None, name: Some(name.to_owned()) },
            allocation_depth: (!writable).then_some(true),
            bitmaps: None,
        },
    }
}

/// Stops the server, which closes every NBD export, and returns the ids of the exports that are left.
///
/// QEMU answers `nbd-server-stop` only when the exports are closed. Both commands are sent at once, and the answer to
/// the second is the proof.
///
/// # Errors
/// QEMU refuses, or does not answer.
pub async fn stop_server(destination: &Process) -> Result<Vec<String>, ProcessError> {
    let stopped = destination.act(&qmp::nbd_server_stop {});
    let left = destination.ask(&qmp::query_block_exports {});
    let ((), left) = try_join!(stopped, left)?;
    Ok(left.0.into_iter().map(|export| export.id).collect())
}

/// Stops the server of a run. Another run's exports, or the user's, prove that the server is not this run's alone: then
/// only the exports of this run are removed, and the server stays.
///
/// # Errors
/// QEMU refuses, above all because no server runs, or does not answer.
pub async fn stop_own_server(destination: &Process, run: &RunId) -> Result<(), ProcessError> {
    let exports = destination.ask(&qmp::query_block_exports {}).await?.0;
    let (own, foreign): (Vec<_>, Vec<_>) = exports.into_iter().partition(|export| run.has_made(&export.id));
    if foreign.is_empty() {
        return stop_server(destination).await.map(drop);
    }
    let mode = Some(qmp::BlockExportRemoveMode::hard);
    for export in own {
        destination.act(&qmp::block_export_del { id: export.id, mode }).await?;
    }
    Ok(())
}

/// The seconds for which QEMU may try to open an export: QEMU takes whole seconds, so this is the least. QEMU's main
/// loop waits meanwhile, and the guest with it. If
/// the server does not answer, only this timeout ends the wait: `yank` reaches a connection only after it is
/// established.
const OPEN_TIMEOUT: u32 = 1;

/// The file name under which the source's QEMU opens the export. A `json:` description gives the NBD node below a name,
/// and `yank` needs that name.
pub fn target(address: &Address, pair: &DiskPair, source: &Features) -> String {
    let server = server(address, source);
    let (node, export) = (&pair.names.nbd, &pair.names.export);
    let file =
        json!({ "driver": "nbd", "node-name": node, "server": server, "export": export, "open-timeout": OPEN_TIMEOUT });
    format!("json:{}", json!({ "driver": "raw", "file": file }))
}

/// The server's address as an NBD node of the source takes it.
pub(super) fn server(address: &Address, source: &Features) -> Value {
    let mut server = keep_alive::socket_members(address, source);
    server.insert("type".to_owned(), keep_alive::socket_type(address).into());
    Value::Object(server)
}
