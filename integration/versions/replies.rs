//! Every recorded reply, read by the engine's own types: all are read, and no field is missed.

use super::recording::{COURSES, Version, command_of, versions};
use qapi::qmp;
use qferry::internals::{
    preflight::facts::{
        cpu::{self, CpuidRegister},
        ram_blocks,
    },
    qemu::reply::{
        BlockDevice, BlockExport, BlockGraph, BlockJobInfo, BlockNode, BlockStats, CpuInfo, DirtyRate, FeatureWord,
        GraphEdge, HumanReadable, JobInfo, JobStatus, MemorySize, MigrationCapabilityStatus, MigrationInfo,
        MigrationStatus, PciBus, QUERIES, QomProperty, Query, RunState, StatusInfo, TolerantList, VersionInfo,
    },
    qmp::transcript::LineDirection,
};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The content of a decoded answer.
pub(crate) trait Answer {
    /// The number of elements of a list.
    fn elements(&self) -> Option<usize> {
        None
    }

    /// The optional fields that are present. A misnamed field is never among them.
    fn present(&self) -> Vec<&'static str>;

    /// The enum values without a name in this crate.
    fn strange(&self) -> Vec<String> {
        Vec::new()
    }
}

impl<T: Answer> Answer for TolerantList<T> {
    fn elements(&self) -> Option<usize> {
        Some(self.0.len())
    }
    fn present(&self) -> Vec<&'static str> {
        self.0.iter().flat_map(Answer::present).collect()
    }
    fn strange(&self) -> Vec<String> {
        self.0.iter().flat_map(Answer::strange).collect()
    }
}

fn those<const N: usize>(fields: [(&'static str, bool); N]) -> Vec<&'static str> {
    fields.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

impl Answer for StatusInfo {
    fn present(&self) -> Vec<&'static str> {
        Vec::new()
    }
    fn strange(&self) -> Vec<String> {
        match &self.status {
            RunState::Other(status) => vec![format!("run state {status}")],
            _ => Vec::new(),
        }
    }
}

impl Answer for MigrationInfo {
    fn present(&self) -> Vec<&'static str> {
        let ram =
            |what: fn(&qferry::internals::qemu::reply::MigrationRamStats) -> bool| self.ram.as_ref().is_some_and(what);
        those([
            ("status", self.status.is_some()),
            ("ram.mbps", ram(|ram| ram.mbps > 0.0)),
            ("ram.dirty-pages-rate", ram(|ram| ram.dirty_pages_rate > 0)),
            ("ram.dirty-sync-count", ram(|ram| ram.dirty_sync_count > 0)),
            ("downtime", self.downtime.is_some()),
            ("expected-downtime", self.expected_downtime.is_some()),
            ("error-desc", self.error_desc.is_some()),
        ])
    }
    fn strange(&self) -> Vec<String> {
        match &self.status {
            Some(MigrationStatus::Other(status)) => vec![format!("migration status {status}")],
            _ => Vec::new(),
        }
    }
}

impl Answer for MigrationCapabilityStatus {
    fn present(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

impl Answer for Map<String, Value> {
    fn present(&self) -> Vec<&'static str> {
        let wanted = ["downtime-limit", "max-bandwidth"];
        wanted.into_iter().filter(|name| self.contains_key(*name)).collect()
    }
}

impl Answer for BlockDevice {
    fn present(&self) -> Vec<&'static str> {
        let mut fields = those([
            ("device", !self.device.is_empty()),
            ("qdev", self.qdev.is_some()),
            ("inserted", self.inserted.is_some()),
            ("nothing inserted", self.inserted.is_none()),
        ]);
        fields.extend(self.inserted.iter().flat_map(Answer::present));
        fields
    }
}

impl Answer for BlockNode {
    fn present(&self) -> Vec<&'static str> {
        those([
            ("node.file", !self.file.is_empty()),
            ("image.actual-size", self.image.actual_size.is_some()),
            ("image.full-backing-filename", self.image.full_backing_filename.is_some()),
            ("image.backing-filename", self.image.backing_filename.is_some()),
            ("image.backing-filename-format", self.image.backing_filename_format.is_some()),
            ("image.cluster-size", self.image.cluster_size.is_some()),
            (
                "image.compat",
                self.image.format_specific.as_ref().is_some_and(|specific| specific.data.compat.is_some()),
            ),
            ("dirty-bitmaps.name", self.dirty_bitmaps.iter().any(|bitmap| bitmap.name.is_some())),
            ("dirty-bitmaps.granularity", self.dirty_bitmaps.iter().any(|bitmap| bitmap.granularity > 0)),
            ("children", !self.children.is_empty()),
            ("active", self.active.is_some()),
            ("cache", self.cache.is_some()),
        ])
    }
}

fn strange_job(status: &JobStatus) -> Vec<String> {
    match status {
        JobStatus::Other(status) => vec![format!("job status {status}")],
        _ => Vec::new(),
    }
}

impl Answer for BlockJobInfo {
    fn present(&self) -> Vec<&'static str> {
        those([("actively-synced", self.actively_synced.is_some())])
    }
    fn strange(&self) -> Vec<String> {
        strange_job(&self.status)
    }
}

impl Answer for JobInfo {
    fn present(&self) -> Vec<&'static str> {
        those([("current-progress", self.current_progress > 0)])
    }
    fn strange(&self) -> Vec<String> {
        strange_job(&self.status)
    }
}

impl Answer for MemorySize {
    fn present(&self) -> Vec<&'static str> {
        those([("plugged-memory", self.plugged_memory.is_some())])
    }
}

impl Answer for BlockStats {
    fn present(&self) -> Vec<&'static str> {
        those([
            ("stats.device", !self.device.is_empty()),
            ("stats.node-name", self.node_name.is_some()),
            ("stats.qdev", self.qdev.is_some()),
        ])
    }
}

impl Answer for DirtyRate {
    fn present(&self) -> Vec<&'static str> {
        let measured = self.status == "measured" && self.dirty_rate.is_some();
        those([("dirty-rate", measured)])
    }
}

impl Answer for BlockGraph {
    fn present(&self) -> Vec<&'static str> {
        let backing = |edge: &GraphEdge| edge.name == "backing";
        those([
            ("graph.backing", self.edges.iter().any(backing)),
            ("graph.node", self.nodes.iter().any(|node| node.kind == "block-driver")),
        ])
    }
}

impl Answer for BlockExport {
    fn present(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

impl Answer for VersionInfo {
    fn present(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

impl Answer for CpuInfo {
    fn present(&self) -> Vec<&'static str> {
        those([("thread-id", self.thread_id.is_some())])
    }
}

impl Answer for QomProperty {
    fn present(&self) -> Vec<&'static str> {
        those([("child", self.child().is_some())])
    }
}

impl Answer for PciBus {
    fn present(&self) -> Vec<&'static str> {
        those([("qdev_id", self.devices.0.iter().any(|function| !function.qdev_id.is_empty()))])
    }
}

impl Answer for HumanReadable {
    fn present(&self) -> Vec<&'static str> {
        those([("RAM blocks", ram_blocks::read(&self.human_readable_text).is_some_and(|blocks| blocks.len() > 3))])
    }
}

/// A QOM property of any kind. (Another test looks at feature words.)
impl Answer for Value {
    fn present(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

/// A decoded reply: the fields that were present, and the unknown enum values.
type Decoded = Result<(Vec<&'static str>, Vec<String>), String>;

fn decode<Q: Query<Returned: Answer>>(reply: &Value) -> Decoded {
    let answer = serde_json::from_value::<Q::Returned>(reply.clone()).map_err(|error| error.to_string())?;
    let length = reply.as_array().map(Vec::len);
    match answer.elements() == length || answer.elements().is_none() {
        true => Ok((answer.present(), answer.strange())),
        false => Err(format!("{:?} of {length:?} elements", answer.elements())),
    }
}

/// The reader of each command's answer. The test below fails for a query that is missing here or was never recorded.
pub(crate) fn readers() -> BTreeMap<&'static str, fn(&Value) -> Decoded> {
    fn reader<Q: Query<Returned: Answer>>() -> (&'static str, fn(&Value) -> Decoded) {
        (Q::NAME, decode::<Q>)
    }
    let readers = BTreeMap::from([
        reader::<qmp::query_status>(),
        reader::<qmp::query_migrate>(),
        reader::<qmp::query_migrate_capabilities>(),
        reader::<qmp::query_migrate_parameters>(),
        reader::<qmp::query_block>(),
        reader::<qmp::query_named_block_nodes>(),
        reader::<qmp::query_block_jobs>(),
        reader::<qmp::query_jobs>(),
        reader::<qmp::query_block_exports>(),
        reader::<qmp::query_memory_size_summary>(),
        reader::<qmp::query_blockstats>(),
        reader::<qmp::query_dirty_rate>(),
        reader::<qmp::x_debug_query_block_graph>(),
        reader::<qmp::query_version>(),
        reader::<qmp::query_cpus_fast>(),
        reader::<qmp::query_pci>(),
        reader::<qmp::x_query_ramblock>(),
        reader::<qmp::qom_list>(),
        reader::<qmp::qom_get>(),
    ]);
    let queries: BTreeSet<&str> = QUERIES.iter().copied().collect();
    assert_eq!(readers.keys().copied().collect::<BTreeSet<_>>(), queries, "a query has no reader in this test");
    readers
}

/// The fields that the recordings of every version must have, but for those in [`absent`].
const FIELDS: &[&str] = &[
    "RAM blocks",
    "active",
    "actively-synced",
    "cache",
    "child",
    "children",
    "current-progress",
    "device",
    "dirty-bitmaps.granularity",
    "dirty-bitmaps.name",
    "dirty-rate",
    "downtime",
    "downtime-limit",
    "error-desc",
    "expected-downtime",
    "graph.backing",
    "graph.node",
    "image.actual-size",
    "image.backing-filename",
    "image.backing-filename-format",
    "image.cluster-size",
    "image.compat",
    "image.full-backing-filename",
    "inserted",
    "max-bandwidth",
    "node.file",
    "nothing inserted",
    "plugged-memory",
    "qdev",
    "qdev_id",
    "ram.dirty-pages-rate",
    "ram.dirty-sync-count",
    "ram.mbps",
    "stats.device",
    "stats.node-name",
    "stats.qdev",
    "status",
];

fn absent(version: &Version) -> Vec<&'static str> {
    let features = version.features();
    those([
        // since 10.0
        ("active", version.name.starts_with("7.")),
        ("actively-synced", !features.block_job_change),
        // since 10.1, as the argument
        ("children", !features.mirror_target_is_zero),
        // The destination, which knew the error, has exited.
        ("error-desc", !features.incoming_exit_on_error),
    ])
}

#[test]
fn every_reply_is_read_whole() {
    let readers = readers();
    for version in versions() {
        let (mut met, mut present, mut strange) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (course, side, line) in version.lines(LineDirection::Receive) {
            let Some(reply) = line.get("return") else { continue };
            let Some((command, read)) = readers.get_key_value(command_of(&line)) else { continue };
            let (fields, values) =
                read(reply).unwrap_or_else(|error| panic!("{} {course} {side}: {error}: {line}", version.name));
            met.insert(*command);
            present.extend(fields);
            strange.extend(values);
        }
        let never: Vec<_> = QUERIES.iter().filter(|query| !met.contains(*query)).collect();
        assert!(never.is_empty(), "{}: no recorded answer to {never:?}: record anew", version.name);
        let missed: Vec<_> = FIELDS.iter().copied().filter(|field| !present.contains(field)).collect();
        assert_eq!(missed, absent(&version), "{}: fields that are never there, or misnamed", version.name);
        assert!(strange.is_empty(), "{}: {strange:?}", version.name);
    }
}

/// The feature words of every version have bits in a leaf of the recordings' CPUs.
#[test]
fn feature_words_are_read_whole() {
    for version in versions() {
        let mut read = 0;
        for (course, side, line) in version.lines(LineDirection::Receive) {
            let Some(list) = line["return"].as_array().filter(|_| command_of(&line) == "qom-get") else { continue };
            let words = serde_json::from_value::<Vec<FeatureWord>>(line["return"].clone());
            let words = words.unwrap_or_else(|error| panic!("{} {course} {side}: {error}: {line}", version.name));
            let known = cpu::words(&words);
            assert_eq!(known.len(), list.len(), "{} {course} {side}: a register twice", version.name);
            let leaf = |word: &CpuidRegister| word.leaf == 7 && word.subleaf == Some(0) && word.register == "EBX";
            assert!(known.iter().any(|(word, bits)| leaf(word) && *bits != 0), "{} {course} {side}", version.name);
            read += 1;
        }
        assert_eq!(read, COURSES.len() * 2, "{}: one of each side", version.name);
    }
}

#[test]
fn capabilities_are_those_of_the_schema() {
    for version in versions() {
        decode::<qmp::query_migrate_capabilities>(&version.capabilities).unwrap();
        let list: TolerantList<MigrationCapabilityStatus> =
            serde_json::from_value(version.capabilities.clone()).unwrap();
        let names: BTreeSet<String> = list.0.into_iter().map(|capability| capability.capability).collect();
        assert_eq!(names, version.features().migration_capabilities, "{}", version.name);
    }
}
