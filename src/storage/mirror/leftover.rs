//! Leftovers of an engine in a QEMU: jobs, nodes, bitmaps and exports, recognised by the prefix of their names. The id
//! that follows the prefix tells the run that made them.
//!
//! Pure. Anything without the prefix is never listed, so the engine never removes anything of the user's.

use super::export;
use crate::{
    qemu::reply::{BlockExport, BlockNode, JobInfo},
    run_id::{PREFIX, RunId},
};

/// A job, node, bitmap or export that an engine made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// A block job.
    Job(String),
    /// A node of the block graph.
    Node(String),
    /// A dirty bitmap.
    Bitmap {
        /// The node with the bitmap.
        node: String,
        /// The bitmap's name.
        name: String,
    },
    /// A block export.
    Export(String),
    /// A read-only export of a check that was killed; the next check removes the export.
    ReadExport(String),
}

impl Leftover {
    /// The run that made the leftover.
    pub fn run(&self) -> RunId {
        let (Self::Job(name)
        | Self::Node(name)
        | Self::Bitmap { name, .. }
        | Self::Export(name)
        | Self::ReadExport(name)) = self;
        RunId::of_name(name).map(|(run, _)| run).unwrap_or_default()
    }
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Job(id) => write!(f, "block job {id}"),
            Self::Node(name) => write!(f, "block node {name}"),
            Self::Bitmap { node, name } => write!(f, "dirty bitmap {name} on node {node}"),
            Self::Export(id) | Self::ReadExport(id) => write!(f, "block export {id}"),
        }
    }
}

/// Lists the leftovers in a QEMU, from its answers about jobs, nodes and exports.
pub fn list(jobs: &[JobInfo], nodes: &[BlockNode], exports: &[BlockExport]) -> Vec<Leftover> {
    let has_prefix = |name: &str| name.starts_with(PREFIX);
    let mut found: Vec<Leftover> = Vec::new();
    found.extend(jobs.iter().filter(|job| has_prefix(&job.id)).map(|job| Leftover::Job(job.id.clone())));
    for node in nodes {
        if has_prefix(&node.node_name) {
            found.push(Leftover::Node(node.node_name.clone()));
        }
        let names = node.dirty_bitmaps.iter().filter_map(|bitmap| bitmap.name.clone());
        found.extend(
            names.filter(|name| has_prefix(name)).map(|name| Leftover::Bitmap { node: node.node_name.clone(), name }),
        );
    }
    let export = |id: &str| match export::is_for_reading(id) {
        true => Leftover::ReadExport(id.to_owned()),
        false => Leftover::Export(id.to_owned()),
    };
    found.extend(exports.iter().filter(|found| has_prefix(&found.id)).map(|found| export(&found.id)));
    found
}
