//! Removal of the leftovers of an earlier engine from a QEMU.
//!
//! The removal must never touch anything that [`leftover`](super::leftover) does not list. QEMU cannot tell whether the
//! engine that made them is still at work, so the removal runs only if the user asked for it, and never for a run whose
//! journal is known.

use super::{
    leftover::{self, Leftover},
    mirror_job,
};
use crate::qemu::{Process, ProcessError};
use qapi::qmp;
use tokio::try_join;

/// Lists what engines have left in a QEMU.
///
/// # Errors
/// QEMU does not answer.
pub async fn find(process: &Process) -> Result<Vec<Leftover>, ProcessError> {
    let (jobs, nodes, exports) = try_join!(
        process.ask(&qmp::query_jobs {}),
        process.ask(&qmp::query_named_block_nodes { flat: Some(true) }),
        process.ask(&qmp::query_block_exports {}),
    )?;
    Ok(leftover::list(&jobs.0, &nodes.0, &exports.0))
}

/// Removes the leftovers: first jobs, which then free their nodes and connections, then exports with their server,
/// nodes, and bitmaps.
///
/// # Errors
/// QEMU refuses to remove a leftover, or does not answer.
pub async fn remove(process: &Process, leftovers: &[Leftover]) -> Result<(), ProcessError> {
    for left in leftovers {
        if let Leftover::Job(id) = left {
            mirror_job::abort(process, id).await?;
        }
    }
    remove_exports(process, leftovers).await?;
    let nodes = process.ask(&qmp::query_named_block_nodes { flat: Some(true) }).await?.0;
    for left in leftovers {
        match left {
            // A node that was the target of a mirror may already have gone with its job.
            Leftover::Node(name) if nodes.iter().any(|node| node.node_name == *name) => {
                process.act(&qmp::blockdev_del { node_name: name.clone() }).await?;
            }
            Leftover::Bitmap { node, name } => {
                let bitmap = qmp::BlockDirtyBitmap { node: node.clone(), name: name.clone() };
                process.act(&qmp::block_dirty_bitmap_remove(bitmap)).await?;
            }
            _ => {}
        }
    }
    Ok(())
}

async fn remove_exports(process: &Process, leftovers: &[Leftover]) -> Result<(), ProcessError> {
    let mut removed = false;
    for left in leftovers {
        if let Leftover::Export(id) | Leftover::ReadExport(id) = left {
            let mode = Some(qmp::BlockExportRemoveMode::hard);
            process.act(&qmp::block_export_del { id: id.clone(), mode }).await?;
            removed = true;
        }
    }
    // A QEMU has one NBD server. The server is an engine's if no export of anybody else is left.
    let left = process.ask(&qmp::query_block_exports {}).await?.0;
    let is_leftover = |id: &str| {
        leftovers
            .iter()
            .any(|left| matches!(left, Leftover::Export(known) | Leftover::ReadExport(known) if known == id))
    };
    if removed && left.iter().all(|export| is_leftover(&export.id)) {
        process.act(&qmp::nbd_server_stop {}).await?;
    }
    Ok(())
}
