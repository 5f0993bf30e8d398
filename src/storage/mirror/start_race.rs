//! The start-write race: QEMU 8.0 to 10.2.1 can lose a write that falls between the start of a mirror and the end of
//! the initialisation of its bitmap (introduced by commit 32125b1460, fixed by 167ef239fb). No schema shows which
//! builds have the race, so the engine proves of every mirror that no write fell into its start.
//!
//! Pure. The proof: the engine adds a dirty bitmap to the node before the job starts, and reads the bitmap once the job
//! has initialised. A job has initialised when its `len` is above 0 or the job is ready: QEMU sets both only after the
//! mirror sees every write (`mirror_run`). A dirty count of 0 then means that the guest wrote nothing in between.

use crate::{
    qemu::reply::{BlockJobInfo, BlockNode, JobStatus},
    qmp::QemuVersion,
};
use std::time::Duration;

/// Whether a build can have the race. A version that has the mend, or is older than the defect, is the one proof that
/// there is: no distribution takes a mend against corruption out of a version that has it.
pub fn may_be_in(version: Option<QemuVersion>) -> bool {
    let Some(QemuVersion { major, minor, micro }) = version else { return true };
    match (major, minor) {
        (..=7, _) => false,
        (10, 0) => micro < 13,
        (10, 2) => micro < 2,
        (8..=10, _) => true,
        _ => false,
    }
}

/// How long the engine tries to start mirrors with the guest running: a start can take seconds.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How often the engine starts a mirror with the guest running, before the engine stops the guest for the start. A
/// start takes about ten milliseconds and does not disturb the guest; a stop does.
pub const ATTEMPTS: u32 = 16;

/// What the bitmap proves about the start of one mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartProof {
    /// The job still initialises: ask QEMU again.
    Unfinished,
    /// Proved: no write fell into the start.
    Clean,
    /// The guest wrote this many bytes during the start, or nothing can be proved (0): start the mirror again.
    Dirty(u64),
}

/// Judges a mirror's start. The caller must ask for `job` before it asks for `nodes`: see the module.
pub fn judge(job: &BlockJobInfo, nodes: &[BlockNode], node: &str, bitmap: &str) -> StartProof {
    let initialised = job.len > 0 || job.ready || job.status == JobStatus::Concluded;
    if !initialised {
        return StartProof::Unfinished;
    }
    let bitmaps = nodes.iter().filter(|n| n.node_name == node).flat_map(|n| &n.dirty_bitmaps);
    match bitmaps.into_iter().find(|b| b.name.as_deref() == Some(bitmap)) {
        Some(found) if found.count == 0 => StartProof::Clean,
        Some(found) => StartProof::Dirty(found.count),
        // A missing bitmap proves nothing.
        None => StartProof::Dirty(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(len: u64, ready: bool, status: &str) -> BlockJobInfo {
        serde_json::from_value(json!({"device": "j", "len": len, "offset": 0, "ready": ready, "status": status}))
            .expect("a job")
    }

    fn nodes(name: &str, count: u64) -> Vec<BlockNode> {
        let bitmap = json!({"name": name, "count": count});
        let node = json!({"node-name": "n", "drv": "qcow2", "ro": false, "image": {"virtual-size": 1}, "dirty-bitmaps": [bitmap, {"count": 9}]});
        vec![serde_json::from_value(node).expect("a node")]
    }

    #[test]
    fn only_a_version_proves_that_a_build_lacks_the_race() {
        for ((major, minor, micro), may) in [
            ((7, 2, 22), false),
            ((8, 0, 0), true),
            ((9, 2, 4), true),
            ((10, 0, 12), true),
            ((10, 0, 13), false),
            ((10, 1, 50), true),
            ((10, 2, 1), true),
            ((10, 2, 2), false),
            ((11, 0, 0), false),
        ] {
            assert_eq!(may_be_in(Some(QemuVersion { major, minor, micro })), may, "{major}.{minor}.{micro}");
        }
        assert!(may_be_in(None));
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
