//! Block jobs at work on the disks.
//!
//! Pure. Measured on 7.2, 10.0.13 and 11.1: QEMU mirrors a node only if no job uses that node, and refuses to give up
//! the images at the switchover while a backup or a commit has its filter among them. A stream further down hinders
//! neither, but writes to an image that was proved to be the destination's, and changes the chain when it ends: the
//! migration would go back.

use super::{finding::Finding, subject::CheckSubject};
use crate::{
    codes::FindingCode,
    storage::model::{
        chain::NodeGraph,
        layout::{Disk, PREFIX},
    },
};

pub(super) fn run(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let CheckSubject { source, destination, pairs, .. } = *subject;
    let mut findings = Vec::new();
    for pair in pairs {
        let name = pair.source.name();
        let found = holds(name, &pair.source, &source.graph);
        let found = found.or_else(|| holds(name, &pair.destination, &destination.graph));
        findings.extend(found.or_else(|| works_below(name, &pair.source, &source.graph)));
    }
    let copied = |disk: &Disk| pairs.iter().any(|pair| pair.source == *disk);
    for disk in source.disks().iter().filter(|disk| !copied(disk)) {
        let below = || works_below(disk.name(), disk, &source.graph).map(Finding::into_warning);
        findings.extend(keeps_images(disk).or_else(below));
    }
    findings
}

/// Finds a job that keeps a disk from being mirrored, or its images from being given up.
fn holds(name: &str, disk: &Disk, graph: &NodeGraph) -> Option<Finding> {
    let filter = disk.chain.filters.iter().find(|filter| filter.is_of_a_job());
    let message = match (filter, jobs_on(graph, &disk.node).next()) {
        (Some(filter), _) => format!("a block job holds it: node {} is a {}", filter.node, filter.driver),
        (None, Some(job)) => format!("a block job holds it: {job} uses node {}", disk.node),
        (None, None) => return None,
    };
    Some(Finding::new(FindingCode::DiskHasJob, name, message))
}

/// Finds a job that keeps the images of a disk that is not copied from being given up.
fn keeps_images(disk: &Disk) -> Option<Finding> {
    let filter = disk.chain.filters.iter().find(|filter| filter.is_of_a_job() && filter.driver != "mirror_top")?;
    let message = format!(
        "a block job holds it, and QEMU would not give up its images at the switchover: node {} is a {}",
        filter.node, filter.driver
    );
    Some(Finding::new(FindingCode::DiskHasJob, disk.name(), message))
}

/// Finds a job that works somewhere on a disk's images.
fn works_below(name: &str, disk: &Disk, graph: &NodeGraph) -> Option<Finding> {
    let layers = disk.chain.layers.iter().flat_map(|layer| [&layer.node, &layer.protocol.node]);
    let nodes = layers.chain(disk.chain.filters.iter().map(|filter| &filter.node)).chain([&disk.node]);
    let (job, node) = nodes.into_iter().find_map(|node| Some((jobs_on(graph, node).next()?, node)))?;
    let message = format!("the block job {job} works on its node {node}");
    Some(Finding::new(FindingCode::DiskHasJob, name, message).with_remedy(
        "wait for the job or cancel it: once it writes to an image or ends, the images are others than those that were \
         compared, and a migration goes back",
    ))
}

/// The jobs that use a node and are not of qferry: those are leftovers, which have a finding of their own.
fn jobs_on<'a>(graph: &'a NodeGraph, node: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    graph.jobs_on(node).iter().map(String::as_str).filter(|job| !job.starts_with(PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codes::Severity,
        storage::model::chain::{BackingChain, FilterNode, Layer},
    };
    use serde_json::json;

    /// The disk `disk0`, whose node `top` is over `base`, with filters between the two.
    fn disk(filters: &[&str]) -> Disk {
        let layer = |node: &str| Layer { node: node.to_owned(), ..Layer::default() };
        let filter = |driver: &&str| FilterNode { node: "f".to_owned(), driver: (*driver).to_owned(), above: 1 };
        Disk {
            qdev: Some("disk0".to_owned()),
            device: None,
            node: "top".to_owned(),
            path: None,
            file: String::new(),
            read_only: false,
            virtual_size: 1,
            chain: BackingChain {
                layers: ["top", "base"].map(layer).into(),
                filters: filters.iter().map(filter).collect(),
            },
        }
    }

    /// A graph in which a job uses one node.
    fn graph(job: &str, node: &str) -> NodeGraph {
        let vertex = |id, kind, name| json!({ "id": id, "type": kind, "name": name });
        let told = json!({
            "nodes": [vertex(1, "block-driver", node), vertex(2, "block-job", job), vertex(3, "block-backend", "")],
            "edges": [{ "parent": 2, "child": 1, "name": "main node" }, { "parent": 3, "child": 1, "name": "root" }],
        });
        NodeGraph::new(&[], &serde_json::from_value(told).unwrap())
    }

    #[test]
    fn a_job_holds_a_disk_or_works_below_it() {
        use Severity::{Blocker, Warning};
        for (filters, job, node, copied, alone) in [
            (&[][..], "j", "top", Some(Blocker), Some(Warning)),
            (&[], "j", "base", Some(Blocker), Some(Warning)),
            (&[], "j", "elsewhere", None, None),
            (&[], "qferry-mirror-0", "top", None, None),
            (&["throttle"], "j", "elsewhere", None, None),
            // the filter of a stream
            (&["copy-on-read"], "j", "f", Some(Blocker), Some(Warning)),
            (&["copy-before-write"], "j", "f", Some(Blocker), Some(Blocker)),
            (&["commit_top"], "j", "elsewhere", Some(Blocker), Some(Blocker)),
            (&["mirror_top"], "j", "f", Some(Blocker), Some(Warning)),
        ] {
            let (disk, graph) = (disk(filters), graph(job, node));
            let below = || works_below("disk0", &disk, &graph);
            let found = holds("disk0", &disk, &graph).or_else(below);
            assert_eq!(found.as_ref().map(|found| found.severity), copied, "{filters:?} {job} {node}: {found:?}");
            let found = keeps_images(&disk).or_else(|| below().map(Finding::into_warning));
            assert_eq!(found.as_ref().map(|found| found.severity), alone, "{filters:?} {job} {node}: {found:?}");
            assert!(found.is_none_or(|found| found.code == "disk-has-job" && !found.remedy.is_empty()));
        }
    }
}
