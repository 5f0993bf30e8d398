//! A mirror that another client has completed: QEMU has put the mirror's target in the place of the guest's disk.
//!
//! `block-job-complete` on a ready mirror makes the guest write through the NBD client node to the destination's image
//! alone. From then on the export is the guest's disk: the end of the NBD server or of the destination takes the disk
//! away, and what the guest has written since is in no other image.

use crate::{
    qemu::{
        Process, ProcessError, QemuName,
        reply::{BlockNode, JobInfo, JobStatus},
    },
    storage::model::layout::DiskPair,
};
use qapi::qmp;

/// The pairs whose disk the guest has on the destination by now.
///
/// # Errors
/// QEMU does not answer.
pub async fn find<'a>(source: &Process, pairs: &'a [DiskPair]) -> Result<Vec<&'a DiskPair>, ProcessError> {
    // QEMU answers in the order of the commands. With the jobs first, a job that ends between the two answers counts
    // as one that still runs, and never as a pivot.
    let jobs = source.ask(&qmp::query_jobs {});
    let nodes = source.ask(&qmp::query_named_block_nodes { flat: Some(true) });
    let (jobs, nodes) = tokio::try_join!(jobs, nodes)?;
    Ok(pairs.iter().filter(|pair| is_pivoted(&jobs.0, &nodes.0, &pair.names.job, &pair.names.target)).collect())
}

/// Whether the guest has the target of a mirror as its disk. The job alone holds the target, and lets go of the target
/// when the job ends, so a target that outlives its job has a new user. Above the target a filter of the user may be
/// the root of the guest's device, and so the device's root is not asked for.
fn is_pivoted(jobs: &[JobInfo], nodes: &[BlockNode], job: &str, target: &str) -> bool {
    let holds = |found: &JobInfo| found.status != JobStatus::Concluded || found.error.is_some();
    let is_held = jobs.iter().any(|found| found.id == job && holds(found));
    !is_held && nodes.iter().any(|node| node.node_name == target)
}

/// What a person needs to know of such a disk, and can do.
pub fn describe(pair: &DiskPair, source: &QemuName) -> String {
    let (disk, image, export) = (pair.source.name(), pair.destination.name(), &pair.names.export);
    format!(
        "{source}: disk {disk}: another client has completed its mirror (block-job-complete), so the guest writes to the \
         destination's image alone ({image}), through the NBD export {export}; the destination and its NBD server must \
         stay until the disk is back: mirror it from node {} into an image on the source's host that is made anew \
         (drive-mirror sync=full, block-job-complete once ready), then end the destination",
        pair.names.target
    )
}

#[cfg(test)]
mod tests {
    //! Promise: pivoted-disk.

    use super::*;
    use serde_json::{Value, from_value, json};

    #[test]
    fn a_target_that_outlives_its_job_is_the_guests_disk() {
        let node = |name: &str| -> BlockNode {
            from_value(json!({"node-name": name, "drv": "raw", "ro": false, "image": {"virtual-size": 1}})).unwrap()
        };
        let job = |status: &str, error: Option<&str>| -> Value {
            let mut job = json!({"id": "m", "status": status, "type": "mirror", "current-progress": 0});
            if let Some(error) = error {
                job["error"] = json!(error);
            }
            job
        };
        for (jobs, nodes, expected) in [
            (vec![], vec!["disk"], false),
            (vec![], vec!["disk", "t"], true),
            (vec![job("concluded", None)], vec!["disk", "t"], true),
            (vec![job("concluded", None)], vec!["disk"], false),
            (vec![job("concluded", Some("Input/output error"))], vec!["disk", "t"], false),
            (vec![job("running", None)], vec!["disk", "t"], false),
            (vec![job("ready", None)], vec!["disk", "t"], false),
            (vec![job("pending", None)], vec!["disk", "t"], false),
            (vec![job("of-tomorrow", None)], vec!["disk", "t"], false),
        ] {
            let told = format!("{jobs:?} {nodes:?}");
            let jobs: Vec<JobInfo> = jobs.into_iter().map(|job| from_value(job).unwrap()).collect();
            let nodes: Vec<BlockNode> = nodes.into_iter().map(node).collect();
            assert_eq!(is_pivoted(&jobs, &nodes, "m", "t"), expected, "{told}");
        }
    }
}
