//! What QEMU answers: only the fields the engine uses, and tolerant of every version from 7.2 on.
//!
//! A field that any supported version may leave out is optional; an enum value nobody knows yet is kept as `Other`.
//! [`Query`] ties each of QEMU's commands to its answer. Every shape is decoded from recordings of every supported
//! version in the tests (`integration/versions`).

use qapi::qmp;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{fmt, marker::PhantomData};

mod block_stats;
mod machine;

pub use block_stats::{BlockStats, WriteStats};
pub use machine::{CpuInfo, FeatureWord, HumanReadable, PciBus, PciFunction, PciId, QomProperty, VersionInfo};

/// A command that asks, with the shape of its answer.
pub trait Query: qapi::Command {
    /// The tolerant answer.
    type Answer: DeserializeOwned;
}

macro_rules! queries {
    ($($command:path => $answer:ty,)*) => {
        $(impl Query for $command { type Answer = $answer; })*

        /// The names of all commands that have an answer here.
        pub const QUERIES: &[&str] = &[$(<$command as qapi::Command>::NAME,)*];
    };
}

queries! {
    qmp::query_status => Status,
    qmp::query_migrate => Migration,
    qmp::query_migrate_capabilities => List<Capability>,
    qmp::query_migrate_parameters => Map<String, Value>,
    qmp::query_block => List<BlockDevice>,
    qmp::query_named_block_nodes => List<BlockNode>,
    qmp::query_block_jobs => List<BlockJob>,
    qmp::query_jobs => List<Job>,
    qmp::query_blockstats => List<BlockStats>,
    qmp::query_block_exports => List<BlockExport>,
    qmp::query_memory_size_summary => MemorySize,
    qmp::query_dirty_rate => DirtyRate,
    qmp::x_debug_query_block_graph => BlockGraph,
    qmp::query_version => VersionInfo,
    qmp::query_cpus_fast => List<CpuInfo>,
    qmp::query_pci => List<PciBus>,
    qmp::x_query_ramblock => HumanReadable,
    qmp::qom_list => List<QomProperty>,
    qmp::qom_get => Value,
}

/// Decodes an open world of names: every one that is not listed becomes `Other`.
macro_rules! open_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)*
            /// A value this crate does not know.
            Other(String),
        }

        impl $name {
            /// QEMU's word.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Other(text) => text,
                }
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                match text {
                    $($text => Self::$variant,)*
                    other => Self::Other(other.to_owned()),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer).map(|text| Self::from(text.as_str()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

open_enum! {
    /// QEMU's run state; those the engine tells apart.
    RunState {
        /// The guest runs.
        Running = "running",
        /// The user stopped it.
        Paused = "paused",
        /// Waiting for a migration to come in.
        InMigrate = "inmigrate",
        /// Stopped by the migration, which is not over.
        FinishMigrate = "finish-migrate",
        /// Stopped by a migration that completed.
        PostMigrate = "postmigrate",
        /// Never started: QEMU was started with `-S`.
        Prelaunch = "prelaunch",
        /// Powered off by the guest, in a QEMU started with `-no-shutdown`.
        Shutdown = "shutdown",
        /// The guest reported a panic.
        GuestPanicked = "guest-panicked",
        /// Stopped by a disk error, as `werror=stop` asks for.
        IoError = "io-error",
        /// Stopped by a watchdog device.
        Watchdog = "watchdog",
        /// Suspended by the guest (ACPI S3).
        Suspended = "suspended",
        /// Stopped by an error inside QEMU or KVM.
        InternalError = "internal-error",
    }
}

open_enum! {
    /// The status of a migration. An unknown one means "keep waiting".
    MigrationStatus {
        /// None was started.
        None = "none",
        /// Connecting.
        Setup = "setup",
        /// RAM is being copied.
        Active = "active",
        /// The guest is stopped and the source waits for `migrate-continue`.
        PreSwitchover = "pre-switchover",
        /// Device state is being sent.
        Device = "device",
        /// Device state is being sent for postcopy: where the destination cannot load it, the source resumes (11.1).
        PostcopyDevice = "postcopy-device",
        /// The guest belongs to the destination, which fetches its pages from the source.
        PostcopyActive = "postcopy-active",
        /// The channel broke in postcopy, and waits to be made anew.
        PostcopyPaused = "postcopy-paused",
        /// It is being made anew: connecting (9.1).
        PostcopyRecoverSetup = "postcopy-recover-setup",
        /// It is being made anew: both sides compare what has arrived.
        PostcopyRecover = "postcopy-recover",
        /// Over, and well.
        Completed = "completed",
        /// Over: the cause is in `error-desc`.
        Failed = "failed",
        /// Being cleaned up after a failure (11.1).
        Failing = "failing",
        /// A cancellation is under way.
        Cancelling = "cancelling",
        /// Over: it was cancelled.
        Cancelled = "cancelled",
    }
}

impl MigrationStatus {
    /// Whether nothing more will happen to it.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::None | Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Whether the guest belongs to the destination while the source has pages of it. On the source: no command lets the
    /// guest go on there any more.
    pub fn is_postcopy(&self) -> bool {
        matches!(self, Self::PostcopyActive | Self::PostcopyPaused | Self::PostcopyRecoverSetup | Self::PostcopyRecover)
    }
}

open_enum! {
    /// The status of a job.
    JobStatus {
        /// Made, not started.
        Created = "created",
        /// Copying.
        Running = "running",
        /// Caught up once.
        Ready = "ready",
        /// Paused.
        Paused = "paused",
        /// Over, kept until it is dismissed.
        Concluded = "concluded",
    }
}

/// A list, of which an element that cannot be read is left out rather than spoiling the rest.
///
/// QEMU lists foreign jobs, nodes and devices beside ours; a strange one among them must not blind the engine.
#[derive(Debug, Clone)]
pub struct List<T>(pub Vec<T>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);

        impl<'de, T: DeserializeOwned> serde::de::Visitor<'de> for Visitor<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(element) = elements.next_element::<Value>()? {
                    // serde would read a list as a struct too, member by member
                    let read = match element.is_object() {
                        true => T::deserialize(&element),
                        false => Err(serde::de::Error::custom("not an object")),
                    };
                    match read {
                        Ok(element) => list.push(element),
                        Err(error) => tracing::debug!(%error, %element, "left out of a list"),
                    }
                }
                Ok(List(list))
            }
        }

        deserializer.deserialize_seq(Visitor(PhantomData))
    }
}

/// `query-status`.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// The run state.
    pub status: RunState,
}

/// `query-migrate`: empty where no migration was ever started.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Migration {
    /// Where it stands.
    pub status: Option<MigrationStatus>,
    /// RAM, once it is being copied.
    pub ram: Option<Ram>,
    /// Milliseconds the guest was stopped, by QEMU's reckoning; once completed.
    pub downtime: Option<u64>,
    /// Milliseconds QEMU expects the guest to be stopped for, if it switched now.
    pub expected_downtime: Option<u64>,
    /// The pages that were sent as their differences, with `xbzrle`.
    #[serde(default)]
    pub xbzrle_cache: XbzrleCache,
    /// Per cent by which the vCPUs are throttled.
    pub cpu_throttle_percentage: Option<u64>,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// Why the guest cannot be migrated at all.
    #[serde(default)]
    pub blocked_reasons: Vec<String>,
}

impl Migration {
    /// Bytes of memory that were taken care of so far, however they were sent; a page that was sent twice counts twice.
    pub fn processed(&self) -> u64 {
        let differences = self.xbzrle_cache.pages.saturating_sub(self.xbzrle_cache.overflow);
        let pages = |ram: &Ram| ram.normal.saturating_add(ram.duplicate).saturating_add(differences);
        self.ram.as_ref().map_or(0, |ram| pages(ram).saturating_mul(ram.page_size))
    }
}

/// The part of `query-migrate` on pages that were sent as their differences.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct XbzrleCache {
    /// How many were tried so far.
    #[serde(default)]
    pub pages: u64,
    /// How many of them differed too much, and were sent whole: these are counted among the normal ones, too.
    #[serde(default)]
    pub overflow: u64,
}

/// The RAM part of `query-migrate`. Sizes in bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ram {
    /// Sent so far.
    pub transferred: u64,
    /// Still to send, as last counted.
    pub remaining: u64,
    /// The guest's RAM.
    pub total: u64,
    /// Megabits (10^6) per second.
    #[serde(default)]
    pub mbps: f64,
    /// Pages per second the guest dirties.
    #[serde(default)]
    pub dirty_pages_rate: u64,
    /// Bitmap syncs; on 11.1 about ten a second, whatever happens.
    #[serde(default)]
    pub dirty_sync_count: u64,
    /// Pages sent so far with their content.
    #[serde(default)]
    pub normal: u64,
    /// Pages sent so far as one byte, being all the same.
    #[serde(default)]
    pub duplicate: u64,
    /// Bytes in a page.
    #[serde(default = "page_size")]
    pub page_size: u64,
}

fn page_size() -> u64 {
    4096
}

/// An element of `query-migrate-capabilities`.
#[derive(Debug, Clone, Deserialize)]
pub struct Capability {
    /// Its name.
    pub capability: String,
    /// Whether it is on.
    pub state: bool,
}

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
    /// What is in it; nothing in an empty CD drive.
    pub inserted: Option<BlockNode>,
}

/// A node of the block graph.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockNode {
    /// Its name; `#block123` where QEMU made it up.
    pub node_name: String,
    /// The driver.
    pub drv: String,
    /// The file it is over, or a `json:` description.
    #[serde(default)]
    pub file: String,
    /// Whether it may not be written.
    pub ro: bool,
    /// What is in the image.
    pub image: Image,
    /// Bitmaps on the node.
    #[serde(default)]
    pub dirty_bitmaps: Vec<DirtyBitmap>,
    /// The nodes it uses (10.1); before that only the graph tells.
    #[serde(default)]
    pub children: Vec<BlockChild>,
    /// Whether it may be used (10.0): not while it waits for an incoming migration.
    pub active: Option<bool>,
    /// How it is cached.
    pub cache: Option<Cache>,
}

/// A node's use of another.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockChild {
    /// What for: `file`, `backing`, `data-file`.
    pub child: String,
    /// The other node.
    pub node_name: String,
}

/// How a node is cached by the host.
#[derive(Debug, Clone, Deserialize)]
pub struct Cache {
    /// Past the host's page cache.
    pub direct: bool,
}

/// What `query-block` tells of an image. Sizes in bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    /// The size the guest sees.
    pub virtual_size: u64,
    /// What the file takes on its file system.
    pub actual_size: Option<u64>,
    /// The size of its clusters, where the format has them.
    pub cluster_size: Option<u64>,
    /// Whether it is encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// The backing file as the image's header names it.
    pub backing_filename: Option<String>,
    /// The same, made absolute.
    pub full_backing_filename: Option<String>,
    /// The backing file's format as the image's header names it.
    pub backing_filename_format: Option<String>,
    /// What only this format has.
    pub format_specific: Option<FormatSpecific>,
}

/// What only one image format has.
#[derive(Debug, Clone, Deserialize)]
pub struct FormatSpecific {
    /// Its particulars; those of other formats than qcow2 are passed over.
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
    /// The width of a refcount.
    pub refcount_bits: Option<u64>,
    /// Whether clusters have subclusters.
    pub extended_l2: Option<bool>,
    /// How clusters are compressed.
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
    /// Its name.
    pub name: String,
    /// Bytes for each of its bits.
    pub granularity: u64,
}

/// A dirty bitmap.
#[derive(Debug, Clone, Deserialize)]
pub struct DirtyBitmap {
    /// Its name; a mirror's own has none.
    pub name: Option<String>,
    /// Dirty bytes.
    pub count: u64,
    /// Bytes for each of its bits.
    #[serde(default)]
    pub granularity: u64,
    /// Whether it is kept in the image.
    #[serde(default)]
    pub persistent: bool,
    /// Whether a job uses it.
    #[serde(default)]
    pub busy: bool,
    /// Whether it was not saved well, and is good for nothing.
    #[serde(default)]
    pub inconsistent: bool,
}

/// `x-debug-query-block-graph`: which node uses which. Not a stable interface of QEMU's, but there since 4.0.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct BlockGraph {
    /// Nodes, and who uses them from outside: devices, exports, jobs.
    #[serde(default)]
    pub nodes: Vec<GraphNode>,
    /// Who uses whom.
    #[serde(default)]
    pub edges: Vec<GraphEdge>,
}

/// A vertex of the block graph.
#[derive(Debug, Clone, Deserialize)]
pub struct GraphNode {
    /// Its number in this answer.
    pub id: u64,
    /// `block-driver` for a node.
    #[serde(rename = "type")]
    pub kind: String,
    /// A node's name.
    pub name: String,
}

/// An edge of the block graph.
#[derive(Debug, Clone, Deserialize)]
pub struct GraphEdge {
    /// Who uses.
    pub parent: u64,
    /// Who is used.
    pub child: u64,
    /// What for: `file`, `backing`, `data-file`.
    pub name: String,
}

/// An element of `query-block-jobs`. Sizes in bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJob {
    /// The job's id.
    pub device: String,
    /// All there is to copy, as known now.
    pub len: u64,
    /// What has been copied.
    pub offset: u64,
    /// Whether the target has caught up once.
    pub ready: bool,
    /// Where it stands.
    pub status: JobStatus,
    /// Whether every write reaches the target before the guest hears of it (8.2).
    pub actively_synced: Option<bool>,
    /// Why it ended, if it ended badly.
    pub error: Option<String>,
}

/// An element of `query-jobs`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Job {
    /// The job's id.
    pub id: String,
    /// Where it stands.
    pub status: JobStatus,
    /// What has been done, in the job's own unit (bytes for a mirror).
    #[serde(default)]
    pub current_progress: u64,
    /// Why it ended, if it ended badly.
    pub error: Option<String>,
}

/// `query-memory-size-summary`. Sizes in bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemorySize {
    /// What the guest was started with.
    pub base_memory: u64,
    /// What was plugged in later; absent where the machine has no memory hotplug.
    pub plugged_memory: Option<u64>,
}

/// `query-dirty-rate`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DirtyRate {
    /// Where the measurement stands: `measured` once it is over.
    pub status: String,
    /// MiB a second of different pages, rounded down; once measured.
    pub dirty_rate: Option<u64>,
}

impl DirtyRate {
    /// MiB a second, once it is measured.
    pub fn measured(&self) -> Option<u64> {
        self.dirty_rate.filter(|_| self.status == "measured")
    }
}

/// An element of `query-block-exports`.
#[derive(Debug, Clone, Deserialize)]
pub struct BlockExport {
    /// The export's id.
    pub id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_nobody_knows_is_kept() {
        let migration: Migration = serde_json::from_str(r#"{"status":"of-tomorrow","new":{"a":1}}"#).expect("decodes");
        assert_eq!(migration.status, Some(MigrationStatus::Other("of-tomorrow".to_owned())));
        assert!(!migration.status.is_some_and(|s| s.is_over()));
    }

    #[test]
    fn what_was_taken_care_of_is_counted_however_it_was_sent() {
        let plain = r#"{"ram":{"transferred":9,"remaining":0,"total":0,"normal":3,"duplicate":4,"page-size":4096}"#;
        for (more, pages) in [("}", 7), (r#","xbzrle-cache":{"pages":5,"overflow":2}}"#, 10)] {
            let migration: Migration = serde_json::from_str(&format!("{plain}{more}")).expect("decodes");
            assert_eq!(migration.processed(), pages * 4096);
        }
        assert_eq!(serde_json::from_str::<Migration>("{}").expect("decodes").processed(), 0);
    }

    #[test]
    fn one_strange_element_spoils_nothing() {
        let list: List<Job> =
            serde_json::from_str(r#"[{"id":"a","status":"ready"},{"strange":1},7,["b","ready"]]"#).expect("decodes");
        assert_eq!(list.0.len(), 1);
    }
}
