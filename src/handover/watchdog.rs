//! Frees a QEMU whose main loop hangs.
//!
//! It hangs where it waits for an NBD server that was frozen or lies behind a dead link: then nothing but out-of-band
//! commands gets through, and `yank` ends what it waits for. It must never yank what is not ours.

use crate::qemu::Process;
use qapi::qmp;
use std::time::Duration;
use tokio::time::timeout;

/// How long a QEMU may take to answer: out of band at any time, in band once it was freed.
const FREED: Duration = Duration::from_millis(500);

/// Ends what a source waits for, the milder first: our own NBD connections, by their nodes, then, where that was not it and
/// `migration` allows it, the migration's channel. Gives what was ended. Each fails what it served: a mirror, or the
/// migration.
///
/// The channel may only be ended while the destination is not able to run the guest: the source takes that for a failed
/// migration, and resumes it.
pub async fn free<'a>(source: &Process, nodes: impl Iterator<Item = &'a str>, migration: bool) -> Vec<String> {
    let mut freed = Vec::new();
    for node in nodes {
        let instance = qmp::YankInstance::block_node(qmp::YankInstanceBlockNode { node_name: node.to_owned() });
        match timeout(FREED, source.act_oob(&qmp::yank { instances: vec![instance] })).await {
            Ok(Ok(())) => freed.push(format!("block node {node}")),
            // one that is not there, since its mirror has ended, is refused
            Ok(Err(_)) => {}
            // nor would it answer the next
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

/// Whether it answers in band.
pub async fn answers(source: &Process) -> bool {
    matches!(timeout(FREED, source.ask(&qmp::query_status {})).await, Ok(Ok(_)))
}
