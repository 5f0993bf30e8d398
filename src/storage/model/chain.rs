//! The backing chain of a disk: its layers, the filter nodes between them, and the files of the layers.
//!
//! Pure. Everything comes from `query-named-block-nodes` and the graph of block nodes; QEMU's answers repeat the image
//! headers, so no image is opened.

use crate::qemu::reply::{BlockGraph, BlockNode, SnapshotInfo};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};

/// Drivers that pass reads through unchanged. Block jobs insert the last five.
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
/// Filters that a block job inserts for as long as the job runs; a filter that stays is a leftover.
const JOB_FILTERS: [&str; 5] = ["copy-before-write", "backup-top", "commit_top", "mirror_top", "stream"];

/// The block nodes of a disk, from its device down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingChain {
    /// The layers, top first (the guest writes to the top one); empty where QEMU does not show its graph of nodes.
    pub layers: Vec<Layer>,
    /// The filters above and between the layers, in the same order.
    pub filters: Vec<FilterNode>,
}

/// A node that passes reads through unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterNode {
    /// The node's name.
    pub node: String,
    /// The node's driver.
    pub driver: String,
    /// The index of the layer below the filter.
    pub above: usize,
}

impl FilterNode {
    /// Whether a block job inserted the filter: a mirror, a backup, a commit.
    pub fn is_of_a_job(&self) -> bool {
        JOB_FILTERS.contains(&self.driver.as_str())
    }
}

/// One image of a chain. Sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The format node; the protocol node where there is no format node.
    pub node: String,
    /// The format: `qcow2`, `raw`, ...
    pub format: String,
    /// The file name, or QEMU's `json:` description of the place that holds the layer.
    pub file: String,
    /// The protocol below the format.
    pub protocol: ProtocolNode,
    /// The size that the guest sees.
    pub virtual_size: u64,
    /// The space that the layer takes on its file system, where QEMU knows it.
    pub actual_size: Option<u64>,
    /// The cluster size, where the format has clusters.
    pub cluster_size: Option<u64>,
    /// The backing file, as the header names it.
    pub backing: Option<BackingLink>,
    /// Whether QEMU has opened the layer for reading only.
    pub read_only: bool,
    /// Whether the layer is encrypted.
    pub encrypted: bool,
    /// The external data file, if there is one.
    pub data_file: Option<String>,
    /// The properties that only qcow2 has.
    pub qcow2: Option<Qcow2>,
    /// The named bitmaps, on the node or in the image.
    pub bitmaps: Vec<NamedBitmap>,
    /// The snapshots inside the image. Journals of earlier versions do not tell them.
    #[serde(default)]
    pub snapshots: Vec<InnerSnapshot>,
    /// Whether QEMU reads and writes past the host's page cache (`cache.direct=on`).
    pub direct: bool,
    /// Whether the other QEMU has the same file open; `None` unless both QEMUs run on this host.
    pub shared: Option<bool>,
}

/// The protocol node of a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolNode {
    /// The node's name.
    pub node: String,
    /// The node's driver: `file`, `host_device`, `nbd`, ...
    pub driver: String,
    /// The path or address that the node has opened, as the node names it.
    pub file: String,
}

/// The backing file, as an image header names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingLink {
    /// The name in the header, unchanged.
    pub file: String,
    /// The name made absolute.
    pub full: String,
    /// The format, where the header gives one.
    pub format: Option<String>,
}

/// The properties of a layer that only qcow2 has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qcow2 {
    /// The version of the format: `0.10` (version 2) or `1.1` (version 3).
    pub compat: String,
    /// Whether QEMU may postpone refcount updates.
    pub lazy_refcounts: bool,
    /// The width of a refcount in bits.
    pub refcount_bits: u64,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// The compression of clusters, where the header gives it.
    pub compression_type: Option<String>,
    /// Whether the external data file can be read as a raw image.
    pub data_file_raw: bool,
}

/// A snapshot inside an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InnerSnapshot {
    /// The snapshot's name.
    pub name: String,
    /// Whether the state of a whole machine (`savevm`) is stored with the snapshot.
    pub has_machine_state: bool,
}

/// A dirty bitmap with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedBitmap {
    /// The bitmap's name.
    pub name: String,
    /// Bytes per bit.
    pub granularity: u64,
    /// Whether the image stores the bitmap.
    pub persistent: bool,
    /// Whether the bitmap can be migrated: no job uses it, and QEMU calls it consistent.
    pub usable: bool,
}

/// The edges of the graph of block nodes: which node uses which.
#[derive(Debug, Clone, Default)]
pub struct NodeGraph {
    children: HashMap<String, Vec<(String, String)>>,
    /// The ids of the jobs that use a node. Only the debug graph tells them.
    jobs: HashMap<String, Vec<String>>,
}

impl NodeGraph {
    /// Reads the edges from the nodes where QEMU lists their children (since 10.1), else from the debug graph.
    pub fn new(nodes: &[BlockNode], graph: &BlockGraph) -> Self {
        let mut children: HashMap<String, Vec<(String, String)>> = HashMap::new();
        let mut jobs: HashMap<String, Vec<String>> = HashMap::new();
        let of_kind = |kind: &str| -> HashMap<u64, &str> {
            graph.nodes.iter().filter(|n| n.kind == kind).map(|n| (n.id, n.name.as_str())).collect()
        };
        let (names, ids) = (of_kind("block-driver"), of_kind("block-job"));
        for edge in &graph.edges {
            let Some(child) = names.get(&edge.child).map(|name| (*name).to_owned()) else { continue };
            if let Some(parent) = names.get(&edge.parent) {
                children.entry((*parent).to_owned()).or_default().push((edge.name.clone(), child));
            } else if let Some(job) = ids.get(&edge.parent) {
                jobs.entry(child).or_default().push((*job).to_owned());
            }
        }
        for node in nodes.iter().filter(|node| !node.children.is_empty()) {
            let told = node.children.iter().map(|child| (child.child.clone(), child.node_name.clone()));
            children.insert(node.node_name.clone(), told.collect());
        }
        Self { children, jobs }
    }

    /// The ids of the jobs that use a node.
    pub fn jobs_on(&self, node: &str) -> &[String] {
        self.jobs.get(node).map_or(&[], Vec::as_slice)
    }

    /// The nodes below a node, and the node itself.
    pub fn below<'a>(&'a self, node: &'a str) -> BTreeSet<&'a str> {
        let (mut found, mut next) = (BTreeSet::new(), vec![node]);
        while let Some(node) = next.pop() {
            if found.insert(node) {
                next.extend(self.children.get(node).into_iter().flatten().map(|(_, child)| child.as_str()));
            }
        }
        found
    }

    fn child(&self, node: &str, role: &str) -> Option<&str> {
        let children = self.children.get(node)?;
        children.iter().find(|(name, _)| name == role).map(|(_, child)| child.as_str())
    }
}

impl BackingChain {
    /// Reads the chain below the root node of a device.
    pub fn read(root: &str, nodes: &[BlockNode], graph: &NodeGraph) -> Self {
        let find = |name: &str| nodes.iter().find(|node| node.node_name == name);
        let mut chain = Self::default();
        let mut next = find(root);
        // A chain has at most as many members as there are nodes: the bound ends the walk even if the graph has a
        // cycle.
        for _ in 0..nodes.len() {
            let Some(node) = next else { break };
            let name = node.node_name.as_str();
            if FILTERS.contains(&node.drv.as_str()) {
                let above = chain.layers.len();
                chain.filters.push(FilterNode { node: name.to_owned(), driver: node.drv.clone(), above });
                next = graph.child(name, "file").or_else(|| graph.child(name, "backing")).and_then(find);
                continue;
            }
            chain.layers.push(Layer::read(node, nodes, graph));
            next = graph.child(name, "backing").and_then(find);
        }
        chain
    }

    /// The layer that the guest writes to.
    pub fn top(&self) -> Option<&Layer> {
        self.layers.first()
    }

    /// The layer right below the top one.
    pub fn backing(&self) -> Option<&Layer> {
        self.layers.get(1)
    }
}

impl Layer {
    fn read(node: &BlockNode, nodes: &[BlockNode], graph: &NodeGraph) -> Self {
        let image = &node.image;
        let data = image.format_specific.as_ref().map(|specific| &specific.data);
        let protocol = protocol(node, nodes, graph);
        // A device directly on a protocol node has no format node, which QEMU treats as `raw`.
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
            // Below a filter QEMU describes the whole graph as `json:`. The protocol node then has the plain file name,
            // which stands for the layer unless an `offset` makes the layer a part of that file.
            file: match node.file.strip_prefix("json:") {
                Some(described) if !described.contains("\"offset\"") => protocol.file.clone(),
                _ => node.file.clone(),
            },
            virtual_size: image.virtual_size,
            actual_size: image.actual_size,
            cluster_size: image.cluster_size,
            backing,
            read_only: node.ro,
            encrypted: image.encrypted,
            data_file: data.and_then(|data| data.data_file.clone()),
            qcow2,
            bitmaps: bitmaps(node),
            snapshots: snapshots(node),
            direct: node.cache.as_ref().is_some_and(|cache| cache.direct),
            shared: None,
            protocol,
        }
    }
}

/// The protocol node of a layer, below its format node and any filters.
fn protocol(node: &BlockNode, nodes: &[BlockNode], graph: &NodeGraph) -> ProtocolNode {
    let mut bottom = node;
    for _ in 0..nodes.len() {
        let below = graph.child(&bottom.node_name, "file");
        match below.and_then(|name| nodes.iter().find(|node| node.node_name == name)) {
            Some(found) => bottom = found,
            None => break,
        }
    }
    ProtocolNode { node: bottom.node_name.clone(), driver: bottom.drv.clone(), file: file_name(&bottom.file) }
}

/// The path in QEMU's name for a file: QEMU describes a node with options of its own as `json:{...}`.
pub fn file_name(file: &str) -> String {
    let described = file.strip_prefix("json:").and_then(|json| serde_json::from_str::<Value>(json).ok());
    let mut inner = described.as_ref();
    while let Some(node) = inner {
        if let Some(name) = node.get("filename").and_then(Value::as_str) {
            return name.to_owned();
        }
        inner = node.get("file");
    }
    file.to_owned()
}

fn snapshots(node: &BlockNode) -> Vec<InnerSnapshot> {
    let snapshot =
        |told: &SnapshotInfo| InnerSnapshot { name: told.name.clone(), has_machine_state: told.vm_state_size > 0 };
    node.image.snapshots.iter().map(snapshot).collect()
}

/// The bitmaps of a node, with those that QEMU does not load because the image is opened for reading only.
fn bitmaps(node: &BlockNode) -> Vec<NamedBitmap> {
    let mut found: Vec<NamedBitmap> = Vec::new();
    for bitmap in &node.dirty_bitmaps {
        let Some(name) = bitmap.name.clone().filter(|name| !name.is_empty()) else { continue };
        let usable = !bitmap.busy && !bitmap.inconsistent;
        found.push(NamedBitmap { name, granularity: bitmap.granularity, persistent: bitmap.persistent, usable });
    }
    let specific = node.image.format_specific.as_ref();
    for bitmap in specific.map(|specific| &specific.data.bitmaps).into_iter().flatten() {
        if !found.iter().any(|known| known.name == bitmap.name) {
            let (name, granularity) = (bitmap.name.clone(), bitmap.granularity);
            found.push(NamedBitmap { name, granularity, persistent: true, usable: true });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, driver: &str, file: &str, more: &Value) -> BlockNode {
        let mut node = json!({"node-name": name, "drv": driver, "file": file, "ro": true,
            "image": {"virtual-size": 1 << 20}});
        for (key, value) in more.as_object().into_iter().flatten() {
            node[key] = value.clone();
        }
        serde_json::from_value(node).expect("a node")
    }

    /// A graph with edges as `parent role child`; the position of a node in `nodes` is its id.
    fn graph(nodes: &[BlockNode], edges: &[(&str, &str, &str)]) -> NodeGraph {
        let id = |name: &str| nodes.iter().position(|node| node.node_name == name).expect("a node of the test");
        let nodes_told = nodes
            .iter()
            .enumerate()
            .map(|(id, node)| json!({"id": id, "type": "block-driver", "name": node.node_name}));
        let device = json!({"id": 99, "type": "block-backend", "name": "top"});
        let edges =
            edges.iter().map(|(parent, role, child)| json!({"parent": id(parent), "child": id(child), "name": role}));
        let told = json!({"nodes": nodes_told.chain([device]).collect::<Vec<_>>(), "edges": edges.collect::<Vec<_>>()});
        NodeGraph::new(nodes, &serde_json::from_value(told).expect("a graph"))
    }

    /// An overlay below a throttle and a leftover mirror, over a qcow2 that is below a copy-on-read filter, over a raw.
    fn three_layers() -> Vec<BlockNode> {
        let top = json!({"ro": false, "cache": {"direct": true, "writeback": true, "no-flush": false},
            "image": {"virtual-size": 3 << 20, "actual-size": 700, "cluster-size": 65536, "backing-filename": "mid",
                "full-backing-filename": "/vm/mid", "backing-filename-format": "qcow2", "encrypted": true,
                "format-specific": {"type": "qcow2", "data": {"compat": "1.1", "refcount-bits": 16, "lazy-refcounts": true,
                    "extended-l2": true, "data-file": "/vm/data", "data-file-raw": true, "compression-type": "zstd",
                    "bitmaps": [{"name": "kept", "granularity": 65536, "flags": ["auto"]}, {"name": "both", "granularity": 1, "flags": []}]}}},
            "dirty-bitmaps": [{"name": "both", "count": 0, "granularity": 4096, "persistent": true, "busy": true},
                {"name": "mine", "count": 9, "granularity": 512}, {"count": 1}, {"name": "", "count": 1}]});
        let json = r#"json:{"driver": "throttle"}"#;
        vec![
            node("mirror", "mirror_top", json, &json!({})),
            node("slow", "throttle", json, &json!({})),
            node("top", "qcow2", json, &top),
            node("top-file", "file", "/vm/top", &json!({})),
            node("cor", "copy-on-read", json, &json!({})),
            node("mid", "qcow2", "/vm/mid", &json!({"image": {"virtual-size": 2 << 20, "backing-filename": "base"}})),
            node("mid-file", "host_device", "/dev/mid", &json!({})),
            node("base", "raw", "/vm/base", &json!({})),
            node("limits", "throttle", "/vm/base", &json!({})),
            node("base-file", "file", "/vm/base", &json!({})),
        ]
    }

    const EDGES: [(&str, &str, &str); 9] = [
        ("mirror", "backing", "slow"),
        ("slow", "file", "top"),
        ("top", "file", "top-file"),
        ("top", "backing", "cor"),
        ("cor", "file", "mid"),
        ("mid", "file", "mid-file"),
        ("mid", "backing", "base"),
        ("base", "file", "limits"),
        ("limits", "file", "base-file"),
    ];

    #[test]
    fn layers_and_filters_are_told_apart() {
        let nodes = three_layers();
        let chain = BackingChain::read("mirror", &nodes, &graph(&nodes, &EDGES));
        let layers: Vec<_> =
            chain.layers.iter().map(|l| (l.node.as_str(), l.format.as_str(), l.file.as_str())).collect();
        assert_eq!(layers, [("top", "qcow2", "/vm/top"), ("mid", "qcow2", "/vm/mid"), ("base", "raw", "/vm/base")]);
        let filters: Vec<_> = chain.filters.iter().map(|f| (f.node.as_str(), f.above, f.is_of_a_job())).collect();
        assert_eq!(filters, [("mirror", 0, true), ("slow", 0, false), ("cor", 1, false)]);
        let protocols: Vec<_> =
            chain.layers.iter().map(|l| (l.protocol.node.as_str(), l.protocol.driver.as_str())).collect();
        assert_eq!(protocols, [("top-file", "file"), ("mid-file", "host_device"), ("base-file", "file")]);
        assert_eq!(chain.backing().map(|layer| layer.node.as_str()), Some("mid"));
    }

    #[test]
    fn the_header_is_read() {
        let nodes = three_layers();
        let chain = BackingChain::read("top", &nodes, &graph(&nodes, &EDGES));
        let top = chain.top().expect("a layer");
        assert!(!top.read_only && top.encrypted && top.direct);
        assert_eq!((top.virtual_size, top.actual_size, top.cluster_size), (3 << 20, Some(700), Some(65536)));
        assert_eq!(top.data_file.as_deref(), Some("/vm/data"));
        let link = |file: &str, full: &str, format: Option<&str>| {
            Some(BackingLink { file: file.to_owned(), full: full.to_owned(), format: format.map(str::to_owned) })
        };
        assert_eq!(top.backing, link("mid", "/vm/mid", Some("qcow2")));
        assert_eq!(chain.layers[1].backing, link("base", "base", None), "what is not told is not made up");
        let qcow2 = top.qcow2.as_ref().expect("a qcow2");
        assert!(qcow2.lazy_refcounts && qcow2.extended_l2 && qcow2.data_file_raw);
        assert_eq!((qcow2.compat.as_str(), qcow2.compression_type.as_deref()), ("1.1", Some("zstd")));
        let bitmaps: Vec<_> =
            top.bitmaps.iter().map(|b| (b.name.as_str(), b.granularity, b.persistent, b.usable)).collect();
        assert_eq!(bitmaps, [("both", 4096, true, false), ("mine", 512, false, true), ("kept", 65536, true, true)]);
    }

    #[test]
    fn the_nodes_own_word_counts_for_more_than_the_graph() {
        let mut nodes = three_layers();
        let told = json!({"children": [{"child": "file", "node-name": "top-file"}, {"child": "backing", "node-name": "base"}]});
        nodes[2] = node("top", "qcow2", "/vm/top", &told);
        let chain = BackingChain::read("top", &nodes, &graph(&nodes, &EDGES));
        assert_eq!(chain.layers.iter().map(|layer| layer.node.as_str()).collect::<Vec<_>>(), ["top", "base"]);
    }

    #[test]
    fn the_path_is_found_in_a_description() {
        for (file, path) in [
            ("/vm/a", "/vm/a"),
            (r#"json:{"driver":"file","aio":"native","filename":"/vm/a"}"#, "/vm/a"),
            (r#"json:{"driver":"raw","file":{"driver":"file","filename":"/vm/a"}}"#, "/vm/a"),
            (r#"json:{"driver":"nbd","export":"x"}"#, r#"json:{"driver":"nbd","export":"x"}"#),
            ("json:{", "json:{"),
        ] {
            assert_eq!(file_name(file), path);
        }
    }

    #[test]
    fn what_is_not_told_ends_the_chain() {
        let nodes = three_layers();
        // a device right on a file has no format
        let bare = BackingChain::read("top-file", &nodes, &graph(&nodes, &EDGES));
        assert_eq!((bare.layers.len(), bare.layers[0].format.as_str()), (1, "raw"));
        assert_eq!(BackingChain::read("nowhere", &nodes, &NodeGraph::default()), BackingChain::default());
        // nodes that go in circles
        let circle = [("top", "backing", "mid"), ("mid", "backing", "top")];
        assert!(BackingChain::read("top", &nodes, &graph(&nodes, &circle)).layers.len() <= nodes.len());
    }
}
