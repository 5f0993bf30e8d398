//! Whether the named dirty bitmaps of the disks can be migrated with the guest, by QEMU's capability `dirty-bitmaps`.
//!
//! Pure. The capability migrates all bitmaps of all nodes or fails the migration, so the engine uses the capability
//! only if every bitmap can be migrated. A bitmap goes to the device or node of the same name, so names must be equal
//! in both QEMUs.

use super::layout::{Disk, DiskPair, PREFIX, StorageMode};

/// The capability's name.
pub const CAPABILITY: &str = "dirty-bitmaps";

/// What happens to the bitmaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BitmapPlan {
    /// Whether QEMU migrates the bitmaps.
    pub moved: bool,
    /// The bitmaps that stay behind: disk, bitmap, and reason.
    pub lost: Vec<(String, String, String)>,
}

/// Decides whether QEMU migrates the bitmaps. `able`: whether the source and the destination have the capability.
pub fn decide(source: &[Disk], pairs: &[DiskPair], storage: StorageMode, able: (bool, bool)) -> BitmapPlan {
    let mut decided = BitmapPlan::default();
    let mut obstacle: Option<String> = None;
    let mut all = Vec::new();
    for disk in source {
        let Some(top) = disk.chain.top() else { continue };
        for bitmap in top.bitmaps.iter().filter(|bitmap| !bitmap.name.starts_with(PREFIX)) {
            // The source writes the persistent bitmaps of a shared image back when it gives up the image.
            if disk.read_only || (storage == StorageMode::None && bitmap.persistent) {
                continue;
            }
            all.push((disk.name().to_owned(), bitmap.name.clone()));
            let pair = pairs.iter().find(|pair| pair.source == *disk);
            let why = match (pair, able) {
                (_, (false, _)) => Some("the source's QEMU has no capability dirty-bitmaps".to_owned()),
                (_, (_, false)) => Some("the destination's QEMU has no capability dirty-bitmaps".to_owned()),
                (None, _) => Some(format!("disk {} is not copied", disk.name())),
                (Some(_), _) if !bitmap.usable => {
                    Some(format!("bitmap {} of disk {} is in use by a job or inconsistent", bitmap.name, disk.name()))
                }
                (Some(pair), _) => {
                    let (source, destination) = (alias(&pair.source), alias(&pair.destination));
                    (source.is_none() || source != destination).then(|| {
                        format!("the drive or node of disk {} does not have the same name in both QEMUs", disk.name())
                    })
                }
            };
            obstacle = obstacle.or(why);
        }
    }
    match obstacle {
        Some(why) => decided.lost = all.into_iter().map(|(disk, name)| (disk, name, why.clone())).collect(),
        None => decided.moved = !all.is_empty(),
    }
    decided
}

/// The name under which QEMU sends a disk's bitmaps: the name of the drive, else of the node of the top image.
fn alias(disk: &Disk) -> Option<&str> {
    let node = disk.chain.top().map(|top| top.node.as_str()).filter(|node| !node.starts_with('#'));
    disk.device.as_deref().or(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::model::{
        chain::{BackingChain, Layer, NamedBitmap},
        layout::{CopyMode, PairNames},
    };

    fn disk(device: Option<&str>, node: &str, bitmaps: &[(&str, bool, bool)]) -> Disk {
        let bitmap = |(name, persistent, usable): &(&str, bool, bool)| NamedBitmap {
            name: (*name).to_owned(),
            granularity: 65536,
            persistent: *persistent,
            usable: *usable,
        };
        let top = Layer { node: node.to_owned(), bitmaps: bitmaps.iter().map(bitmap).collect(), ..Layer::default() };
        Disk {
            qdev: Some("disk0".to_owned()),
            device: device.map(str::to_owned),
            node: node.to_owned(),
            path: None,
            file: String::new(),
            read_only: false,
            virtual_size: 1,
            chain: BackingChain { layers: vec![top], filters: Vec::new() },
        }
    }

    fn one(source: Disk, destination: Disk, storage: StorageMode, able: (bool, bool)) -> BitmapPlan {
        let pair = DiskPair {
            source: source.clone(),
            destination,
            mode: CopyMode::Full,
            names: PairNames::new(&crate::run_id::RunId::default(), 0),
        };
        let pairs = if storage == StorageMode::None { vec![] } else { vec![pair] };
        decide(&[source], &pairs, storage, able)
    }

    #[test]
    fn they_move_where_every_one_can() {
        use StorageMode::{Incremental, None as Shared};
        let good = [("a", true, true), ("qferry-guard-0", false, true)];
        let plain = || disk(None, "n", &[]);
        let yes = (true, true);
        for (source, destination, storage, able, moved, lost) in [
            (disk(None, "n", &good), plain(), Incremental, yes, true, 0),
            (disk(Some("d"), "#block1", &good), disk(Some("d"), "#block2", &[]), Incremental, yes, true, 0),
            (disk(None, "#block1", &good), disk(None, "#block1", &[]), Incremental, yes, false, 1),
            (disk(None, "n", &good), disk(None, "m", &[]), Incremental, yes, false, 1),
            (disk(None, "n", &good), plain(), Incremental, (true, false), false, 1),
            (disk(None, "n", &[("a", true, true), ("b", false, false)]), plain(), Incremental, yes, false, 2),
            (plain(), plain(), Incremental, (false, false), false, 0),
            (disk(None, "n", &good), plain(), Shared, yes, false, 0),
            (disk(None, "n", &[("a", false, true)]), plain(), Shared, yes, false, 1),
        ] {
            let decided = one(source, destination, storage, able);
            assert_eq!((decided.moved, decided.lost.len()), (moved, lost), "{decided:?}");
        }
    }
}
