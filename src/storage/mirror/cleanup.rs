//! Removes what an earlier try of ours left in a QEMU.
//!
//! Only what [`leftover`](super::leftover) lists, which is named as ours: it must never touch anything else. Whether another
//! engine is at work cannot be seen from here, so this is done on the user's word alone.

use super::{leftover::Leftover, mirror_job};
use crate::qemu::{Process, ProcessError};
use qapi::qmp;

/// Removes them: jobs first, which free nodes and connections, then exports with their server, nodes, and bitmaps.
///
/// # Errors
/// The first that QEMU does not let go of, or no answer.
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
            // a mirror's target goes with its job
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
    // a QEMU has one server, and it is ours where nobody else offers anything there
    let left = process.ask(&qmp::query_block_exports {}).await?.0;
    let ours = |id: &str| {
        leftovers.iter().any(|left| matches!(left, Leftover::Export(ours) | Leftover::ReadExport(ours) if ours == id))
    };
    if removed && left.iter().all(|export| ours(&export.id)) {
        process.act(&qmp::nbd_server_stop {}).await?;
    }
    Ok(())
}
