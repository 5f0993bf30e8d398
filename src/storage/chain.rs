//! What a disk consists of: the layers of its backing chain, the filters between them and the files they are in.
//!
//! Pure. Read from `query-named-block-nodes` and the graph of nodes; QEMU's answers carry what the image headers say.

use crate::qemu::reply::{BlockGraph, BlockNode};
use serde::Serialize;
use std::collections::HashMap;

/// Drivers that change nothing of what is read below them. The last ones are put in by jobs.
const FILTERS: [&str; 14] = [
    "throttle",
    "copy-on-read",
    "compress",
    "preallocate",
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "snapshot-access",
    "copy-before-write",
    "backup-top",
    "commit_top",
    "mirror_top",
    "stream",
];
/// Filters that a job puts in for as long as it runs; one that stays is a leftover.
const JOB_FILTERS: [&str; 5] = ["copy-before-write", "backup-top", "commit_top", "mirror_top", "stream"];

/// A disk from its device down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// The layers, the one the guest writes to first; none where QEMU does not tell how its nodes hang together.
    pub layers: Vec<Layer>,
    /// The filters above and between them, in the same order.
    pub filters: Vec<Filter>,
}

/// A node that changes nothing of what is read through it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Filter {
    /// The node.
    pub node: String,
    /// Its driver.
    pub driver: String,
    /// The index of the layer it is above.
    pub above: usize,
}

impl Filter {
    /// Whether a job put it in: a mirror, a backup, a commit.
    pub fn is_of_a_job(&self) -> bool {
        JOB_FILTERS.contains(&self.driver.as_str())
    }
}

/// One image of a chain. Sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// The node of its format; that of its protocol where it has no format node.
    pub node: String,
    /// Its format: `qcow2`, `raw`, ...
    pub format: String,
    /// The file, or QEMU's `json:` description of what it is in.
    pub file: String,
    /// How the file is reached.
    pub protocol: Protocol,
    /// What a guest sees of it.
    pub virtual_size: u64,
    /// What it takes on its file system, where that is known.
    pub actual_size: Option<u64>,
    /// The size of its clusters, where the format has them.
    pub cluster_size: Option<u64>,
    /// The layer below, as the header names it.
    pub backing: Option<BackingLink>,
    /// Whether it is opened for reading only.
    pub read_only: bool,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The file with its data, where that is another one.
    pub data_file: Option<String>,
    /// What only qcow2 has.
    pub qcow2: Option<Qcow2>,
    /// Named bitmaps, on the node or in the image.
    pub bitmaps: Vec<Bitmap>,
    /// Whether it is past the host's page cache.
    pub direct: bool,
    /// Whether the other side has the very same file open; unknown unless both are of this host.
    pub shared: Option<bool>,
}

/// How a layer's file is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Protocol {
    /// The node.
    pub node: String,
    /// Its driver: `file`, `host_device`, `nbd`, ...
    pub driver: String,
    /// The node's name for what it is over.
    pub file: String,
}

/// The layer below, as a header names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackingLink {
    /// As it is written.
    pub file: String,
    /// Made absolute.
    pub full: String,
    /// Its format, where the header has that.
    pub format: Option<String>,
}

/// What only qcow2 has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Qcow2 {
    /// The version of the format: `0.10` or `1.1`.
    pub compat: String,
    /// Whether refcounts are written late.
    pub lazy_refcounts: bool,
    /// The width of a refcount, bits.
    pub refcount_bits: u64,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// How clusters are compressed, where it says.
    pub compression_type: Option<String>,
    /// Whether the data file can be read as a raw image.
    pub data_file_raw: bool,
}

/// A named bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Bytes for each of its bits.
    pub granularity: u64,
    /// Whether it is kept in the image.
    pub persistent: bool,
    /// Whether it can be moved: no job uses it, and it is consistent.
    pub usable: bool,
}

/// Which node uses which.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    children: HashMap<String, Vec<(String, String)>>,
}

impl Graph {
    /// From the nodes where they tell (10.1), else from the whole graph.
    pub fn new(nodes: &[BlockNode], graph: &BlockGraph) -> Self {
        let mut children: HashMap<String, Vec<(String, String)>> = HashMap::new();
        let names: HashMap<u64, &str> =
            graph.nodes.iter().filter(|n| n.kind == "block-driver").map(|n| (n.id, n.name.as_str())).collect();
        for edge in &graph.edges {
            if let (Some(parent), Some(child)) = (names.get(&edge.parent), names.get(&edge.child)) {
                children.entry((*parent).to_owned()).or_default().push((edge.name.clone(), (*child).to_owned()));
            }
        }
        for node in nodes.iter().filter(|node| !node.children.is_empty()) {
            let told = node.children.iter().map(|child| (child.child.clone(), child.node_name.clone()));
            children.insert(node.node_name.clone(), told.collect());
        }
        Self { children }
    }

    fn child(&self, node: &str, role: &str) -> Option<&str> {
        let children = self.children.get(node)?;
        children.iter().find(|(name, _)| name == role).map(|(_, child)| child.as_str())
    }
}

impl Chain {
    /// Reads the chain below a device's node.
    pub fn read(root: &str, nodes: &[BlockNode], graph: &Graph) -> Self {
        let find = |name: &str| nodes.iter().find(|node| node.node_name == name);
        let mut chain = Self::default();
        let mut next = find(root);
        // a chain cannot be longer than there are nodes, whatever QEMU says
        for _ in 0..nodes.len() {
            let Some(node) = next else { break };
            let name = node.node_name.as_str();
            if FILTERS.contains(&node.drv.as_str()) {
                let above = chain.layers.len();
                chain.filters.push(Filter { node: name.to_owned(), driver: node.drv.clone(), above });
                next = graph.child(name, "file").or_else(|| graph.child(name, "backing")).and_then(find);
                continue;
            }
            chain.layers.push(Layer::read(node, nodes, graph));
            next = graph.child(name, "backing").and_then(find);
        }
        chain
    }

    /// What the guest writes to.
    pub fn top(&self) -> Option<&Layer> {
        self.layers.first()
    }

    /// The layer below the top: with all that is below it, what an overlay takes from elsewhere.
    pub fn backing(&self) -> Option<&Layer> {
        self.layers.get(1)
    }
}

impl Layer {
    fn read(node: &BlockNode, nodes: &[BlockNode], graph: &Graph) -> Self {
        let image = &node.image;
        let data = image.format_specific.as_ref().map(|specific| &specific.data);
        let protocol = protocol(node, nodes, graph);
        // where a device is right on a file there is no format, which is `raw`
        let is_format = graph.child(&node.node_name, "file").is_some();
        let backing = image.backing_filename.as_ref().map(|file| BackingLink {
            file: file.clone(),
            full: image.full_backing_filename.clone().unwrap_or_else(|| file.clone()),
            format: image.backing_filename_format.clone(),
        });
        let qcow2 = data.and_then(|data| {
            Some(Qcow2 {
                compat: data.compat.clone()?,
                lazy_refcounts: data.lazy_refcounts.unwrap_or(false),
                refcount_bits: data.refcount_bits.unwrap_or(16),
                extended_l2: data.extended_l2.unwrap_or(false),
                compression_type: data.compression_type.clone(),
                data_file_raw: data.data_file_raw.unwrap_or(false),
            })
        });
        Self {
            node: node.node_name.clone(),
            format: if is_format { node.drv.clone() } else { "raw".to_owned() },
            // below a filter QEMU describes the whole graph here; the protocol's own name is the file
            file: if node.file.starts_with("json:") { protocol.file.clone() } else { node.file.clone() },
            virtual_size: image.virtual_size,
            actual_size: image.actual_size,
            cluster_size: image.cluster_size,
            backing,
            read_only: node.ro,
            encrypted: image.encrypted,
            data_file: data.and_then(|data| data.data_file.clone()),
            qcow2,
            bitmaps: bitmaps(node),
            direct: node.cache.as_ref().is_some_and(|cache| cache.direct),
            shared: None,
            protocol,
        }
    }
}

/// The node at the bottom of a layer, below its format and any filters.
fn protocol(node: &BlockNode, nodes: &[BlockNode], graph: &Graph) -> Protocol {
    let mut bottom = node;
    for _ in 0..nodes.len() {
        let below = graph.child(&bottom.node_name, "file");
        match below.and_then(|name| nodes.iter().find(|node| node.node_name == name)) {
            Some(found) => bottom = found,
            None => break,
        }
    }
    Protocol { node: bottom.node_name.clone(), driver: bottom.drv.clone(), file: bottom.file.clone() }
}

/// The node's own, and those in an image that is only read, which QEMU does not load.
fn bitmaps(node: &BlockNode) -> Vec<Bitmap> {
    let mut found: Vec<Bitmap> = Vec::new();
    for bitmap in &node.dirty_bitmaps {
        let Some(name) = bitmap.name.clone().filter(|name| !name.is_empty()) else { continue };
        let usable = !bitmap.busy && !bitmap.inconsistent;
        found.push(Bitmap { name, granularity: bitmap.granularity, persistent: bitmap.persistent, usable });
    }
    let specific = node.image.format_specific.as_ref();
    for bitmap in specific.map(|specific| &specific.data.bitmaps).into_iter().flatten() {
        if !found.iter().any(|known| known.name == bitmap.name) {
            let (name, granularity) = (bitmap.name.clone(), bitmap.granularity);
            found.push(Bitmap { name, granularity, persistent: true, usable: true });
        }
    }
    found
}
