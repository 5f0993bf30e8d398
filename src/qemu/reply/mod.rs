//! QEMU's replies: the fields that the engine uses, read so that every version from 7.2 on can be decoded.
//!
//! A field that any supported version may leave out is optional, and an enum value that this crate does not know is
//! kept as `Other`. [`Query`] ties each of QEMU's commands to the shape of its reply. The tests
//! (`integration/versions`) decode every shape from recordings of every supported version. The types have the names of
//! QEMU's own schema where the schema has one.

mod block;
mod block_stats;
mod job;
mod list;
mod machine;
mod migration;
mod open_enum;
mod query;

pub use block::{
    BlockChild, BlockDevice, BlockExport, BlockGraph, BlockNode, BlockSettings, BlockdevCacheInfo, DirtyBitmap,
    FormatData, FormatSpecific, GraphEdge, GraphNode, ImageBitmap, IoLimits, NodeImage, SnapshotInfo,
};
pub use block_stats::{BlockStats, LatencyHistogram, WriteStats};
pub use job::{BlockJobInfo, JobInfo, JobStatus};
pub use list::TolerantList;
pub use machine::{
    CpuInfo, FeatureWord, HotpluggableCpu, HumanReadable, MemorySize, PciBus, PciFunction, PciId, QomProperty,
    RunState, StatusInfo, TraceEventInfo, VersionInfo,
};
pub use migration::{
    DirtyRate, MigrationCapabilityStatus, MigrationInfo, MigrationRamStats, MigrationStatus, XbzrleCacheStats,
};
pub use query::{QUERIES, Query};
