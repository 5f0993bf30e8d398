//! The destination's side of the disks: an NBD server with a writable export per overlay.
//!
//! It must never leave a writable export behind once the mirrors have settled: QEMU itself would let both write.

use crate::{
    endpoint::Address,
    qemu::{Process, ProcessError},
    storage::model::layout::{DiskPair, PREFIX, PairNames},
};
use qapi::qmp;
use serde_json::{Value, json};
use tokio::try_join;

/// Starts the server at the address.
///
/// # Errors
/// What QEMU says: above all that a server runs already, or that it may not create the socket.
pub async fn start_server(destination: &Process, address: &Address) -> Result<(), ProcessError> {
    let addr = match address {
        Address::Unix(path) => qmp::SocketAddressLegacy::unix(qmp::UnixSocketAddressWrapper {
            data: qmp::UnixSocketAddress { abstract_: None, tight: None, path: path.display().to_string() },
        }),
        Address::Tcp { host, port } => qmp::SocketAddressLegacy::inet(qmp::InetSocketAddressWrapper {
            data: qmp::InetSocketAddress {
                base: qmp::InetSocketAddressBase { host: host.clone(), port: port.to_string() },
                ipv4: None,
                ipv6: None,
                keep_alive: None,
                mptcp: None,
                numeric: None,
                to: None,
            },
        }),
    };
    destination.act(&qmp::nbd_server_start { addr, max_connections: None, tls_authz: None, tls_creds: None }).await
}

/// Offers one overlay for writing.
///
/// # Errors
/// What QEMU says.
pub async fn add(destination: &Process, pair: &DiskPair) -> Result<(), ProcessError> {
    let PairNames { export, .. } = &pair.names;
    destination.act(&qmp::block_export_add(options(export, export, &pair.destination.node, true))).await
}

/// The id of an export for reading begins with this, after the prefix that every name of the engine begins with.
const FOR_READING: &str = "view-";

/// The id of the export for reading with this number.
pub(in crate::storage) fn id_for_reading(number: usize) -> String {
    format!("{PREFIX}{FOR_READING}{number}")
}

/// Whether an export is one for reading, by its id.
pub(in crate::storage) fn is_for_reading(id: &str) -> bool {
    id.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with(FOR_READING))
}

/// An export of a node. One that is only read tells which layer a range is from, too.
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

/// Closes the server, and with it every export of its kind, and asks what is left.
///
/// QEMU answers `nbd-server-stop` only when the exports are gone; both commands are on their way at once, and the answer
/// to the second is the proof.
///
/// # Errors
/// What QEMU says, or no answer.
pub async fn stop_server(destination: &Process) -> Result<Vec<String>, ProcessError> {
    let stopped = destination.act(&qmp::nbd_server_stop {});
    let left = destination.ask(&qmp::query_block_exports {});
    let ((), left) = try_join!(stopped, left)?;
    Ok(left.0.into_iter().map(|export| export.id).collect())
}

/// For how many seconds QEMU may try to open an export. Its main loop waits for that, and the guest with it, and where the
/// server does not answer nothing but this ends the wait: a yank knows the connection only once it is there.
const OPEN_TIMEOUT: u32 = 3;

/// How the source's QEMU opens the export: a `json:` file name, so that the NBD node below gets a name too, which is the
/// one that `yank` knows.
pub fn target(address: &Address, pair: &DiskPair) -> String {
    let server = server(address);
    let (node, export) = (&pair.names.nbd, &pair.names.export);
    let file =
        json!({ "driver": "nbd", "node-name": node, "server": server, "export": export, "open-timeout": OPEN_TIMEOUT });
    format!("json:{}", json!({ "driver": "raw", "file": file }))
}

/// The server's address as an NBD node takes it.
pub(super) fn server(address: &Address) -> Value {
    match address {
        Address::Unix(path) => json!({ "type": "unix", "path": path.display().to_string() }),
        Address::Tcp { host, port } => json!({ "type": "inet", "host": host, "port": port.to_string() }),
    }
}
