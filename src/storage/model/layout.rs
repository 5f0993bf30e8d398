//! The pairs of a source disk and the destination disk that receives it, and the names of everything that the engine
//! makes in the QEMUs for a pair.
//!
//! Pure. Two disks are a pair only if both QEMUs give them the same name or the user pairs them; order and size of
//! disks decide nothing.

use super::chain::BackingChain;
use crate::{
    qemu::reply::{BlockDevice, BlockStats, WriteStats},
    run_id::RunId,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

pub use crate::run_id::PREFIX;

/// A disk of the source or of the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The device's id, where the user gave one.
    pub qdev: Option<String>,
    /// The drive's name, from `-drive id=`.
    pub device: Option<String>,
    /// The topmost block node.
    pub node: String,
    /// The device's path in QOM.
    pub path: Option<String>,
    /// The file of the top image.
    pub file: String,
    /// Whether the guest cannot write to the disk.
    pub read_only: bool,
    /// The size that the guest sees, bytes.
    pub virtual_size: u64,
    /// The backing chain.
    pub chain: BackingChain,
}

impl Disk {
    /// The disk of a block device, unless the device is empty. `chain` reads the backing chain below a node.
    pub fn new(device: &BlockDevice, chain: impl FnOnce(&str) -> BackingChain) -> Option<Self> {
        let node = device.inserted.as_ref()?;
        let qdev = device.qdev.as_deref();
        let chain = chain(&node.node_name);
        Some(Self {
            qdev: qdev.and_then(id_of).map(str::to_owned),
            device: Some(device.device.clone()).filter(|name| !name.is_empty()),
            node: node.node_name.clone(),
            path: qdev.map(str::to_owned),
            file: chain.top().map_or_else(|| node.file.clone(), |top| top.file.clone()),
            read_only: node.ro,
            virtual_size: node.image.virtual_size,
            chain,
        })
    }

    /// The disk's entry among QEMU's statistics. The path in QOM comes first: `query-block` and `query-blockstats` give
    /// the same path, and no two devices share one. A disk without a device is found by the name of its drive or node.
    pub fn stats<'a>(&self, all: &'a [BlockStats]) -> Option<&'a WriteStats> {
        let place = self.path.as_deref().filter(|path| !path.is_empty());
        let placed = place.and_then(|place| all.iter().find(|one| one.qdev.as_deref() == Some(place)));
        let found = placed.or_else(|| {
            let named = |one: &&BlockStats| !one.device.is_empty() && self.device.as_deref() == Some(&one.device);
            let node = |one: &&BlockStats| one.node_name.as_deref() == Some(&self.node);
            all.iter().find(named).or_else(|| all.iter().find(node))
        });
        found.map(|one| &one.stats)
    }

    /// Whether the disk is a flash device, such as the one with the EFI variables. A flash device is small and never
    /// empty, and its contents are migrated with the guest's memory. Only the machine itself can own a device at such a
    /// QOM path.
    pub fn is_flash(&self) -> bool {
        let part = self.path.as_deref().and_then(|path| path.strip_prefix("/machine/"));
        part.is_some_and(|part| !part.contains('/') && part.contains(".flash"))
    }

    /// The disk's name for people: the device's id, else the drive's name, else the node's name.
    pub fn name(&self) -> &str {
        self.qdev.as_deref().or(self.device.as_deref()).unwrap_or(&self.node)
    }

    /// Whether `name` is the id of the device, the name of the drive, or the name of the node.
    pub fn is_called(&self, name: &str) -> bool {
        [self.qdev.as_deref(), self.device.as_deref(), Some(&self.node)].contains(&Some(name))
    }
}

/// The id in `/machine/peripheral/ID/...`, or a `qdev` that is an id itself; none for an anonymous device.
pub fn id_of(qdev: &str) -> Option<&str> {
    match qdev.strip_prefix("/machine/") {
        Some(path) => path.strip_prefix("peripheral/")?.split('/').next(),
        None => Some(qdev).filter(|id| !id.is_empty() && !id.starts_with('/')),
    }
}

/// Which disks the user wants to migrate, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DiskSelection {
    /// Disks to migrate, each with the destination disk to migrate to; empty means every disk that the guest can write
    /// to.
    pub disks: Vec<(String, Option<String>)>,
    /// Source disks to leave out.
    pub skip: Vec<String>,
    /// How the contents of the disks get to the destination.
    pub storage: StorageMode,
}

/// How the contents of the guest's disks get to the destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum StorageMode {
    /// The engine copies the contents of the overlays, onto overlays over the same backing files.
    #[default]
    Incremental,
    /// The engine copies everything, onto images that need no backing file.
    Full,
    /// The engine copies nothing: both QEMUs open the same files.
    None,
}

impl FromStr for StorageMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "incremental" => Ok(Self::Incremental),
            "full" => Ok(Self::Full),
            "none" => Ok(Self::None),
            _ => Err("write incremental, full or none".to_owned()),
        }
    }
}

impl fmt::Display for StorageMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Incremental => "incremental",
            Self::Full => "full",
            Self::None => "none",
        })
    }
}

/// How the engine copies one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyMode {
    /// The contents of the top image: `sync=top`.
    Incremental,
    /// Everything that the guest sees, over whatever the destination's image held: `sync=full`.
    Full,
}

impl CopyMode {
    /// The name in the JSON output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incremental => "incremental",
            Self::Full => "full",
        }
    }

    /// The mode for a disk. For a disk without a backing file the two modes copy the same.
    fn of(disk: &Disk, storage: StorageMode) -> Self {
        match storage {
            StorageMode::Incremental if disk.chain.layers.len() != 1 && !disk.is_flash() => Self::Incremental,
            _ => Self::Full,
        }
    }
}

/// A source disk and the destination disk that receives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPair {
    /// The disk on the source.
    pub source: Disk,
    /// The disk on the destination.
    pub destination: Disk,
    /// How the engine copies the disk.
    pub mode: CopyMode,
    /// The names of the jobs, nodes, bitmaps and exports for this pair.
    pub names: PairNames,
}

/// The names of everything that the engine makes in the QEMUs for one pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairNames {
    /// The mirror job, on the source.
    pub job: String,
    /// The mirror's target node, on the source.
    pub target: String,
    /// The NBD client node below the target; `yank` takes this name.
    pub nbd: String,
    /// The bitmap that proves the start of the mirror, on the source's node.
    pub bitmap: String,
    /// The export's id and name, on the destination.
    pub export: String,
}

impl PairNames {
    /// The names that a run gives for the pair with this index.
    pub fn new(run: &RunId, index: usize) -> Self {
        let name = |what: &str| run.name(format_args!("{what}-{index}"));
        Self {
            job: name("mirror"),
            target: name("target"),
            nbd: name("nbd"),
            bitmap: name("guard"),
            export: name("export"),
        }
    }
}

/// A disk that could not be paired, or a pair that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairingProblem {
    /// The user gave a name that no disk has.
    Unknown {
        /// The name.
        name: String,
        /// Whether the name was to be a disk of the source (else of the destination).
        on_source: bool,
    },
    /// The destination has no disk for this source disk.
    Missing(Disk),
    /// More than one destination disk fits this source disk, or the disk that fits is taken by another pair.
    Ambiguous(Disk),
    /// The destination disk is read-only.
    ReadOnly(DiskPair),
    /// The sizes of the two disks differ.
    Size(DiskPair),
}

/// Pairs the disks.
///
/// A source disk goes to the destination disk with the same device id, else the same drive name, else the same node
/// name, else the same path in QOM. By default every disk that the guest can write to is paired. The names of each pair
/// are those of the run.
pub fn pair(
    source: &[Disk],
    destination: &[Disk],
    selection: &DiskSelection,
    run: &RunId,
) -> (Vec<DiskPair>, Vec<PairingProblem>) {
    let mut problems = Vec::new();
    let mut pairs: Vec<DiskPair> = Vec::new();
    let unknown = |name: &str, on_source| PairingProblem::Unknown { name: name.to_owned(), on_source };

    let copied = selection.storage != StorageMode::None;
    let named = selection.disks.iter().map(|(name, _)| name).chain(&selection.skip);
    problems
        .extend(named.filter(|name| !source.iter().any(|disk| disk.is_called(name))).map(|name| unknown(name, true)));

    for disk in source {
        let wanted = selection.disks.iter().find(|(name, _)| disk.is_called(name));
        let chosen = if selection.disks.is_empty() { !disk.read_only } else { wanted.is_some() };
        if !chosen || !copied || selection.skip.iter().any(|name| disk.is_called(name)) {
            continue;
        }
        let target = wanted.and_then(|(_, target)| target.as_deref());
        match (&candidates(disk, destination, selection)[..], target) {
            ([], Some(name)) => problems.push(unknown(name, false)),
            ([], None) => problems.push(PairingProblem::Missing(disk.clone())),
            (&[other], _) if pairs.iter().any(|pair| pair.destination == *other) => {
                problems.push(PairingProblem::Ambiguous(disk.clone()));
            }
            (&[other], _) => {
                let (mode, names) = (CopyMode::of(disk, selection.storage), PairNames::new(run, pairs.len()));
                let pair = DiskPair { source: disk.clone(), destination: other.clone(), mode, names };
                if other.read_only {
                    problems.push(PairingProblem::ReadOnly(pair.clone()));
                }
                if disk.virtual_size != other.virtual_size {
                    problems.push(PairingProblem::Size(pair.clone()));
                }
                pairs.push(pair);
            }
            _ => problems.push(PairingProblem::Ambiguous(disk.clone())),
        }
    }
    (pairs, problems)
}

/// The destination disks that a source disk may go to: the disk that the user named, else the disks of the same name.
pub fn candidates<'a>(disk: &Disk, destination: &'a [Disk], selection: &DiskSelection) -> Vec<&'a Disk> {
    let wanted = selection.disks.iter().find(|(name, _)| disk.is_called(name));
    match wanted.and_then(|(_, target)| target.as_deref()) {
        Some(name) => destination.iter().filter(|other| other.is_called(name)).collect(),
        None => alike(disk, destination),
    }
}

/// The names of writable disks that the user neither named nor left out explicitly.
pub fn left_out(source: &[Disk], pairs: &[DiskPair], selection: &DiskSelection) -> Vec<String> {
    let moves = |disk: &Disk| pairs.iter().any(|pair| pair.source == *disk);
    let skipped = |disk: &Disk| selection.skip.iter().any(|name| disk.is_called(name));
    let unnamed =
        |disk: &Disk| !selection.disks.is_empty() && !selection.disks.iter().any(|(name, _)| disk.is_called(name));
    let left = source.iter().filter(|disk| !disk.read_only && unnamed(disk) && !moves(disk) && !skipped(disk));
    left.map(|disk| disk.name().to_owned()).collect()
}

/// Every source disk that the user neither named nor left out, with the destination disk of the same name.
pub fn counterparts<'a>(
    source: &'a [Disk],
    destination: &'a [Disk],
    selection: &DiskSelection,
) -> Vec<(&'a Disk, Option<&'a Disk>)> {
    let named = |disk: &Disk| selection.disks.iter().any(|(name, _)| disk.is_called(name));
    let skipped = |disk: &Disk| selection.skip.iter().any(|name| disk.is_called(name));
    let left = source.iter().filter(|disk| !named(disk) && !skipped(disk));
    left.map(|disk| (disk, counterpart(disk, destination))).collect()
}

/// The destination disk with the name of a source disk.
pub fn counterpart<'a>(disk: &Disk, destination: &'a [Disk]) -> Option<&'a Disk> {
    alike(disk, destination).first().copied()
}

/// The destination's drive with the name of a source's drive. A drive without a medium has one, too.
pub fn drive_counterpart<'a>(drive: &BlockDevice, destination: &'a [BlockDevice]) -> Option<&'a BlockDevice> {
    let by: [fn(&BlockDevice) -> Option<&str>; 4] = [
        |drive| drive.qdev.as_deref().and_then(id_of),
        |drive| Some(drive.device.as_str()).filter(|name| !name.is_empty()),
        |drive| drive.inserted.as_ref().map(|node| node.node_name.as_str()).filter(|node| !node.starts_with('#')),
        |drive| drive.qdev.as_deref(),
    ];
    of_same_name(drive, destination, &by).first().copied()
}

/// The writable destination disks without a counterpart: no pair uses them, and no source disk has their name.
pub fn spare<'a>(source: &[Disk], destination: &'a [Disk], pairs: &[DiskPair]) -> Vec<&'a Disk> {
    let taken = |disk: &Disk| pairs.iter().any(|pair| pair.destination == *disk);
    let known = |disk: &Disk| counterpart(disk, source).is_some();
    destination.iter().filter(|disk| !disk.read_only && !taken(disk) && !known(disk)).collect()
}

/// The disks among `others` with a name of this disk, by the strongest kind of name that finds any.
fn alike<'a>(disk: &Disk, others: &'a [Disk]) -> Vec<&'a Disk> {
    let by: [fn(&Disk) -> Option<&str>; 4] = [
        |disk| disk.qdev.as_deref(),
        |disk| disk.device.as_deref(),
        |disk| Some(disk.node.as_str()).filter(|node| !node.starts_with('#')),
        |disk| disk.path.as_deref(),
    ];
    of_same_name(disk, others, &by)
}

/// Those among `others` that have a name in common with `one`, by the first kind of name that finds any.
fn of_same_name<'a, T>(one: &T, others: &'a [T], by: &[fn(&T) -> Option<&str>]) -> Vec<&'a T> {
    let found = by.iter().map(|key| match key(one) {
        Some(name) => others.iter().filter(|other| key(other) == Some(name)).collect(),
        None => Vec::new(),
    });
    found.into_iter().find(|found: &Vec<&T>| !found.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn disk(qdev: &str, device: &str, node: &str) -> Disk {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Disk {
            qdev: some(qdev),
            device: some(device),
            node: node.to_owned(),
            path: None,
            file: String::new(),
            read_only: false,
            virtual_size: 1 << 30,
            chain: BackingChain::default(),
        }
    }

    fn pair(source: &[Disk], other: &[Disk], selection: &DiskSelection) -> (Vec<DiskPair>, Vec<PairingProblem>) {
        super::pair(source, other, selection, &RunId::default())
    }

    fn names(pairs: &[DiskPair]) -> Vec<(&str, &str)> {
        pairs.iter().map(|pair| (pair.source.name(), pair.destination.name())).collect()
    }

    #[test]
    fn ids_come_before_drive_names_before_node_names() {
        let source = [disk("vda", "drv0", "n0"), disk("", "drv1", "#block1"), disk("", "", "n2")];
        let destination = [disk("", "", "n2"), disk("x", "drv1", "#block1"), disk("vda", "drv9", "n9")];
        let (pairs, problems) = pair(&source, &destination, &DiskSelection::default());
        assert_eq!(names(&pairs), [("vda", "vda"), ("drv1", "x"), ("n2", "n2")]);
        assert!(problems.is_empty());
    }

    #[test]
    fn names_that_qemu_makes_up_pair_nothing() {
        let (pairs, problems) = pair(&[disk("", "", "#block1")], &[disk("", "", "#block1")], &DiskSelection::default());
        assert!(pairs.is_empty());
        assert!(matches!(problems[..], [PairingProblem::Missing(_)]));
    }

    #[test]
    fn an_anonymous_device_is_paired_by_its_place() {
        let at = |node: &str, n: usize| Disk {
            path: Some(format!("/machine/peripheral-anon/device[{n}]")),
            ..disk("", "", node)
        };
        let (pairs, _) = pair(
            &[at("#block1", 0), at("#block2", 1)],
            &[at("#block7", 1), at("#block8", 0)],
            &DiskSelection::default(),
        );
        assert_eq!(names(&pairs), [("#block1", "#block8"), ("#block2", "#block7")]);
    }

    #[test]
    fn the_user_selects_and_skips() {
        let disks = [disk("a", "", "n0"), disk("b", "", "n1"), Disk { read_only: true, ..disk("cd", "", "n2") }];
        let chosen = DiskSelection { disks: vec![("a".to_owned(), Some("n1".to_owned()))], ..DiskSelection::default() };
        let (pairs, _) = pair(&disks, &disks, &chosen);
        assert_eq!((names(&pairs), left_out(&disks, &pairs, &chosen)), (vec![("a", "b")], vec!["b".to_owned()]));
        let skipped = DiskSelection { skip: vec!["n0".to_owned()], ..DiskSelection::default() };
        let (pairs, _) = pair(&disks, &disks, &skipped);
        assert_eq!((names(&pairs), left_out(&disks, &pairs, &skipped)), (vec![("b", "b")], vec![]));
        let wrong = DiskSelection { disks: vec![("zz".to_owned(), None)], ..DiskSelection::default() };
        assert_eq!(
            pair(&disks, &disks, &wrong).1,
            [PairingProblem::Unknown { name: "zz".to_owned(), on_source: true }]
        );
        let both = DiskSelection {
            disks: vec![("a".to_owned(), Some("b".to_owned())), ("b".to_owned(), None)],
            ..DiskSelection::default()
        };
        assert!(matches!(pair(&disks, &disks, &both).1[..], [PairingProblem::Ambiguous(_)]));
    }

    #[test]
    fn sizes_and_read_only_are_told() {
        let small = Disk { virtual_size: 1, read_only: true, ..disk("a", "", "n") };
        let (_, problems) = pair(&[disk("a", "", "n")], &[small], &DiskSelection::default());
        assert!(matches!(problems[..], [PairingProblem::ReadOnly(_), PairingProblem::Size(_)]));
    }

    #[test]
    fn only_the_machines_own_flash_is_flash() {
        let at = |path: &str| Disk { path: Some(path.to_owned()), ..disk("", "pflash0", "flash") };
        assert!(at("/machine/system.flash1").is_flash() && at("/machine/virt.flash0").is_flash());
        for path in ["/machine/peripheral/x.flash0/virtio-backend", "/machine/peripheral-anon/device[0]", "pflash0", ""]
        {
            assert!(!at(path).is_flash(), "{path}");
        }
        assert!(!disk("flash", "pflash0", "flash").is_flash());
    }

    #[test]
    fn ids_are_read_from_qom_paths() {
        for (qdev, id) in [
            ("/machine/peripheral/vd0/virtio-backend", Some("vd0")),
            ("/machine/peripheral-anon/device[0]/virtio-backend", None),
            ("/machine/unattached/device[5]", None),
            ("ide0-hd0", Some("ide0-hd0")),
            ("", None),
        ] {
            assert_eq!(id_of(qdev), id, "{qdev}");
        }
    }

    proptest! {
        #[test]
        fn no_destination_disk_is_used_twice(
            source in prop::collection::vec(("[ab]?", "[cd]?", "[ef]"), 0..5),
            destination in prop::collection::vec(("[ab]?", "[cd]?", "[ef]"), 0..5),
        ) {
            let make = |list: Vec<(String, String, String)>| -> Vec<Disk> {
                list.iter().map(|(qdev, device, node)| disk(qdev, device, node)).collect()
            };
            let (source, destination) = (make(source), make(destination));
            let (pairs, problems) = pair(&source, &destination, &DiskSelection::default());
            for (index, one) in pairs.iter().enumerate() {
                prop_assert!(pairs[..index].iter().all(|other| other.destination != one.destination));
                prop_assert!(destination.contains(&one.destination));
            }
            let unpaired = problems.iter().filter(|p| matches!(p, PairingProblem::Missing(_) | PairingProblem::Ambiguous(_)));
            prop_assert_eq!(pairs.len() + unpaired.count(), source.len());
        }
    }
}
