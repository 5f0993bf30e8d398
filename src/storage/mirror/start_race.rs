//! The start-write race: on QEMU 8.0 to 10.2.1 a write that falls between the start of a mirror and the end of its
//! bitmap's initialisation can be lost (facts: introduced by 32125b1460, fixed by 167ef239fb). No schema shows which
//! builds have it, so every mirror's start is proved to be free of writes.
//!
//! Pure. The proof: a dirty bitmap that was on the node before the job and is read once the job is past its
//! initialisation. It is past it when its `len` is no longer 0 or it is ready, for QEMU sets both only after the mirror
//! sees every write (`mirror_run`). A count of 0 then means that no write fell in between.

use crate::qemu::reply::{BlockJob, BlockNode, JobStatus};

/// How often a mirror is started before the guest is paused for its start. A start takes some ten milliseconds and costs
/// the guest nothing, a pause does.
pub const ATTEMPTS: u32 = 16;

/// What is known of the start of one mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartProof {
    /// The initialisation goes on: look again.
    Unfinished,
    /// Proved: no write fell into the window.
    Clean,
    /// Bytes were written in the window, or nothing can be proved: start again.
    Dirty(u64),
}

/// Judges a mirror's start. `job` must have been read before `nodes`.
pub fn judge(job: &BlockJob, nodes: &[BlockNode], node: &str, bitmap: &str) -> StartProof {
    let initialised = job.len > 0 || job.ready || job.status == JobStatus::Concluded;
    if !initialised {
        return StartProof::Unfinished;
    }
    let bitmaps = nodes.iter().filter(|n| n.node_name == node).flat_map(|n| &n.dirty_bitmaps);
    match bitmaps.into_iter().find(|b| b.name.as_deref() == Some(bitmap)) {
        Some(found) if found.count == 0 => StartProof::Clean,
        Some(found) => StartProof::Dirty(found.count),
        // a bitmap that is not there proves nothing
        None => StartProof::Dirty(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(len: u64, ready: bool, status: &str) -> BlockJob {
        serde_json::from_value(json!({"device": "j", "len": len, "offset": 0, "ready": ready, "status": status}))
            .expect("a job")
    }

    fn nodes(name: &str, count: u64) -> Vec<BlockNode> {
        let bitmap = json!({"name": name, "count": count});
        let node = json!({"node-name": "n", "drv": "qcow2", "ro": false, "image": {"virtual-size": 1}, "dirty-bitmaps": [bitmap, {"count": 9}]});
        vec![serde_json::from_value(node).expect("a node")]
    }

    #[test]
    fn a_start_is_clean_only_by_proof() {
        let running = |len| job(len, false, "running");
        for (job, nodes, verdict) in [
            (running(0), nodes("g", 0), StartProof::Unfinished),
            (running(0), nodes("g", 65536), StartProof::Unfinished),
            (running(1), nodes("g", 0), StartProof::Clean),
            (running(1), nodes("g", 65536), StartProof::Dirty(65536)),
            (job(0, true, "ready"), nodes("g", 0), StartProof::Clean),
            (job(0, true, "ready"), nodes("g", 512), StartProof::Dirty(512)),
            (running(1), nodes("another", 0), StartProof::Dirty(0)),
            (running(1), Vec::new(), StartProof::Dirty(0)),
        ] {
            assert_eq!(judge(&job, &nodes, "n", "g"), verdict, "{job:?}");
        }
    }
}
