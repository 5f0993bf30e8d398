//! Frees a QEMU whose main loop hangs.
//!
//! QEMU hangs where it waits for an NBD server that was frozen or lies behind a dead link: then nothing but
//! out-of-band commands gets through, and `yank` ends the connection that QEMU waits for. A connection that the
//! engine did not make must never be yanked.

use crate::qemu::Process;
use qapi::qmp;
use std::time::Duration;
use tokio::time::timeout;

/// How long a QEMU may take to answer: out of band at any time, in band once its main loop was freed.
const FREED: Duration = Duration::from_millis(500);

/// Ends the connections that a source may wait for, the milder first: our own NBD connections, by their nodes; then,
/// where the source still hangs and `migration` allows it, the migration's channel. Gives the names of those that were
/// ended. The mirror or the migration that a connection served fails.
///
/// The channel may only be ended while the destination is unable to run the guest: the source takes that for a failed
/// migration, and resumes the guest.
pub async fn free<'a>(source: &Process, nodes: impl Iterator<Item = &'a str>, migration: bool) -> Vec<String> {
    let mut freed = Vec::new();
    for node in nodes {
        let instance = qmp::YankInstance::block_node(qmp::YankInstanceBlockNode { node_name: node.to_owned() });
        match timeout(FREED, source.act_oob(&qmp::yank { instances: vec![instance] })).await {
            Ok(Ok(())) => freed.push(format!("block node {node}")),
            // QEMU refuses to yank a node whose mirror has ended.
            Ok(Err(_)) => {}
            // A QEMU that does not answer out of band would not answer the next command either.
            Err(_) => return freed,
        }
    }
    if migration && !answers(source).await && yank_migration(source).await {
        freed.push("migration".to_owned());
    }
    freed
}

async fn yank_migration(source: &Process) -> bool {
    let yank = qmp::yank { instances: vec![qmp::YankInstance::migration] };
    matches!(timeout(FREED, source.act_oob(&yank)).await, Ok(Ok(())))
}

/// Whether QEMU answers in band.
pub async fn answers(source: &Process) -> bool {
    matches!(timeout(FREED, source.ask(&qmp::query_status {})).await, Ok(Ok(_)))
}
