//! What of the engine's own making is in a QEMU, told by its names.
//!
//! Pure. What is not named as ours is never listed, so never removed.

use super::export;
use crate::{
    qemu::reply::{BlockExport, BlockNode, Job},
    storage::model::layout::PREFIX,
};

/// Something of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// A block job.
    Job(String),
    /// A node of the block graph.
    Node(String),
    /// A dirty bitmap.
    Bitmap {
        /// The node it is on.
        node: String,
        /// Its name.
        name: String,
    },
    /// A block export.
    Export(String),
    /// A read-only export of a check that was killed: the next one removes it.
    ReadExport(String),
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

/// Lists it.
pub fn list(jobs: &[Job], nodes: &[BlockNode], exports: &[BlockExport]) -> Vec<Leftover> {
    let ours = |name: &str| name.starts_with(PREFIX);
    let mut found: Vec<Leftover> = Vec::new();
    found.extend(jobs.iter().filter(|job| ours(&job.id)).map(|job| Leftover::Job(job.id.clone())));
    for node in nodes {
        if ours(&node.node_name) {
            found.push(Leftover::Node(node.node_name.clone()));
        }
        let names = node.dirty_bitmaps.iter().filter_map(|bitmap| bitmap.name.clone());
        found.extend(
            names.filter(|name| ours(name)).map(|name| Leftover::Bitmap { node: node.node_name.clone(), name }),
        );
    }
    let export = |id: &str| match export::is_for_reading(id) {
        true => Leftover::ReadExport(id.to_owned()),
        false => Leftover::Export(id.to_owned()),
    };
    found.extend(exports.iter().filter(|found| ours(&found.id)).map(|found| export(&found.id)));
    found
}
