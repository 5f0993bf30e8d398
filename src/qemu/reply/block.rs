//! Replies about devices with a medium, block nodes, images and exports.

use serde::{Deserialize, Serialize};

/// An element of `query-block`: a device of the guest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockDevice {
    /// The name given by `-drive id=`, or empty.
    #[serde(default)]
    pub device: String,
    /// The device's id or its path in QOM.
    pub qdev: Option<String>,
    /// Whether the medium can be taken out: a CD drive.
    #[serde(default)]
    pub removable: bool,
    /// The node of the medium; none in an empty CD drive.
    pub inserted: Option<BlockNode>,
}

/// A node of the block graph.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockNode {
    /// The node's name; `#block123` where QEMU made it up.
    pub node_name: String,
    /// The driver.
    pub drv: String,
    /// The file that the node is over, or a `json:` description.
    #[serde(default)]
    pub file: String,
    /// Whether the node is read-only.
    pub ro: bool,
    /// The image that the node reads.
    pub image: NodeImage,
    /// Bitmaps on the node.
    #[serde(default)]
    pub dirty_bitmaps: Vec<DirtyBitmap>,
    /// The nodes below it (10.1); before that only the graph tells.
    #[serde(default)]
    pub children: Vec<BlockChild>,
    /// Whether the node is active (10.0): it is not while QEMU waits for an incoming migration.
    pub active: Option<bool>,
    /// The host's caching of the node.
    pub cache: Option<BlockdevCacheInfo>,
    /// What a client can set while QEMU runs.
    #[serde(flatten)]
    pub settings: BlockSettings,
}

/// What a client can set of a node or of its device while QEMU runs. The limits are those of `block_set_io_throttle`:
/// `query-block` alone tells them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct BlockSettings {
    /// What QEMU does with writes of zeros: `off`, `on`, `unmap`.
    #[serde(skip_serializing)]
    pub detect_zeroes: Option<String>,
    /// The end of an image above which a write has QEMU send an event; 0 where that is not asked for.
    #[serde(skip_serializing)]
    pub write_threshold: u64,
    /// The limits of I/O.
    #[serde(flatten)]
    pub limits: IoLimits,
}

/// The limits of a device's I/O, under QEMU's own names; 0 is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are those of block_set_io_throttle")]
pub struct IoLimits {
    pub bps: u64,
    pub bps_rd: u64,
    pub bps_wr: u64,
    pub iops: u64,
    pub iops_rd: u64,
    pub iops_wr: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_rd_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_wr_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_rd_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_wr_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_max_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_rd_max_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_wr_max_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_max_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_rd_max_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_wr_max_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_size: Option<u64>,
}

/// A node's use of another.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockChild {
    /// The role of the other node: `file`, `backing`, `data-file`.
    pub child: String,
    /// The other node.
    pub node_name: String,
}

/// The host's caching of a node.
#[derive(Debug, Clone, Deserialize)]
pub struct BlockdevCacheInfo {
    /// Whether requests bypass the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// Whether QEMU passes over flushes (`cache=unsafe`).
    #[serde(default, rename = "no-flush")]
    pub no_flush: bool,
}

/// The image of a node, as `query-block` and `query-named-block-nodes` describe it. Sizes in bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeImage {
    /// The size that the guest sees.
    pub virtual_size: u64,
    /// The space that the file takes on its file system.
    pub actual_size: Option<u64>,
    /// The size of the image's clusters, where the format has them.
    pub cluster_size: Option<u64>,
    /// Whether the image is encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// The backing file as the image's header names it.
    pub backing_filename: Option<String>,
    /// The backing file's name made absolute.
    pub full_backing_filename: Option<String>,
    /// The backing file's format as the image's header names it.
    pub backing_filename_format: Option<String>,
    /// The particulars of the image's format.
    pub format_specific: Option<FormatSpecific>,
    /// The snapshots inside the image.
    #[serde(default)]
    pub snapshots: Vec<SnapshotInfo>,
}

/// A snapshot inside an image.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    /// The snapshot's name.
    pub name: String,
    /// The size of the state of a whole machine (`savevm`) that is stored with the snapshot; 0 where there is none.
    #[serde(default)]
    pub vm_state_size: u64,
}

/// The particulars of one image format.
#[derive(Debug, Clone, Deserialize)]
pub struct FormatSpecific {
    /// The particulars of a qcow2 image; those of other formats are passed over.
    #[serde(default)]
    pub data: FormatData,
}

/// The particulars of a qcow2 image.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FormatData {
    /// The version of the format: `0.10` or `1.1`.
    pub compat: Option<String>,
    /// Whether refcounts are written late.
    pub lazy_refcounts: Option<bool>,
    /// The width of a refcount in bits.
    pub refcount_bits: Option<u64>,
    /// Whether clusters have subclusters.
    pub extended_l2: Option<bool>,
    /// The method by which clusters are compressed.
    pub compression_type: Option<String>,
    /// The file that holds the data, where that is another one.
    pub data_file: Option<String>,
    /// Whether the data file can be read as a raw image.
    pub data_file_raw: Option<bool>,
    /// Bitmaps kept in the image.
    #[serde(default)]
    pub bitmaps: Vec<ImageBitmap>,
}

/// A bitmap kept in an image.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageBitmap {
    /// The bitmap's name.
    pub name: String,
    /// Bytes for each of its bits.
    pub granularity: u64,
}

/// A dirty bitmap.
#[derive(Debug, Clone, Deserialize)]
pub struct DirtyBitmap {
    /// The bitmap's name; a mirror's own has none.
    pub name: Option<String>,
    /// Dirty bytes.
    pub count: u64,
    /// Bytes for each of its bits.
    #[serde(default)]
    pub granularity: u64,
    /// Whether the bitmap is kept in the image.
    #[serde(default)]
    pub persistent: bool,
    /// Whether a job uses the bitmap.
    #[serde(default)]
    pub busy: bool,
    /// Whether the bitmap was not saved properly: QEMU refuses to use one that was not.
    #[serde(default)]
    pub inconsistent: bool,
}

/// `x-debug-query-block-graph`: which node uses which. QEMU does not call it stable, but has had it since 4.0.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct BlockGraph {
    /// Nodes, and their users from outside of the graph: devices, exports, jobs.
    #[serde(default)]
    pub nodes: Vec<GraphNode>,
    /// The use of one by another.
    #[serde(default)]
    pub edges: Vec<GraphEdge>,
}

/// A vertex of the block graph.
#[derive(Debug, Clone, Deserialize)]
pub struct GraphNode {
    /// The vertex' number in this answer.
    pub id: u64,
    /// `block-driver` for a node, `block-job` for a job, `block-backend` for another user.
    #[serde(rename = "type")]
    pub kind: String,
    /// A node's name, or a job's id.
    pub name: String,
}

/// An edge of the block graph.
#[derive(Debug, Clone, Deserialize)]
pub struct GraphEdge {
    /// The vertex that uses the other.
    pub parent: u64,
    /// The vertex that is used.
    pub child: u64,
    /// The role of the child: `file`, `backing`, `data-file`.
    pub name: String,
}

/// An element of `query-block-exports`.
#[derive(Debug, Clone, Deserialize)]
pub struct BlockExport {
    /// The export's id.
    pub id: String,
}
