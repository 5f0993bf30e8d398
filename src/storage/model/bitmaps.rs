//! Whether the named dirty bitmaps of the disks can be migrated with the guest, by QEMU's capability `dirty-bitmaps`.
//!
//! Pure. The capability migrates all bitmaps of all nodes or fails the migration, so the engine uses the capability
//! only if every bitmap can be migrated. A bitmap goes to the device or node of the same name, so names must be equal
//! in both QEMUs. QEMU has a parameter that limits the capability to some bitmaps (`block-bitmap-mapping`), but no way
//! to unset the parameter again: after a migration that went back, QEMU would go on to pass over all other bitmaps.

use super::layout::{Disk, DiskPair, PREFIX, StorageMode};
use crate::qemu::reply::BlockNode;
use std::collections::BTreeSet;

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

/// Decides whether QEMU migrates the bitmaps. `nodes`: all nodes of the source. `able`: whether the source and the
/// destination have the capability.
pub fn decide(
    source: &[Disk],
    nodes: &[BlockNode],
    pairs: &[DiskPair],
    storage: StorageMode,
    able: (bool, bool),
) -> BitmapPlan {
    let mut decided = BitmapPlan::default();
    let mut obstacle: Option<String> = None;
    let mut all = Vec::new();
    let mut tops = BTreeSet::new();
    for disk in source {
        let Some(top) = disk.chain.top() else { continue };
        for bitmap in top.bitmaps.iter().filter(|bitmap| !bitmap.name.starts_with(PREFIX)) {
            // The source writes the persistent bitmaps of a shared image back when it gives up the image.
            if disk.read_only || (storage == StorageMode::None && bitmap.persistent) {
                continue;
            }
            all.push((disk.name().to_owned(), bitmap.name.clone()));
            tops.insert(top.node.as_str());
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
    let obstacle = obstacle.or_else(|| stray(nodes, &tops));
    decided.lost = left_below(pairs);
    match obstacle {
        Some(why) => decided.lost.extend(all.into_iter().map(|(disk, name)| (disk, name, why.clone()))),
        None => decided.moved = !all.is_empty(),
    }
    decided
}

/// The reason why QEMU sends no bitmap at all where one is on a node that is not copied: such a node has a name that
/// the destination does not know, or an image that QEMU only reads.
fn stray(nodes: &[BlockNode], tops: &BTreeSet<&str>) -> Option<String> {
    let elsewhere = nodes.iter().filter(|node| !tops.contains(node.node_name.as_str()));
    let named = elsewhere.flat_map(|node| node.dirty_bitmaps.iter().map(move |bitmap| (node, bitmap)));
    let mut names = named.filter_map(|(node, bitmap)| Some((node, bitmap.name.as_deref()?)));
    let (node, name) = names.find(|(_, name)| !name.is_empty() && !name.starts_with(PREFIX))?;
    Some(format!(
        "QEMU sends all bitmaps or none, and bitmap {name} is on node {} ({}), which is not copied; the bitmaps arrive \
         once that one is removed with block-dirty-bitmap-remove",
        node.node_name, node.file
    ))
}

/// The bitmaps in images below the copied ones that the destination's images do not have.
fn left_below(pairs: &[DiskPair]) -> Vec<(String, String, String)> {
    let below = |disk: &Disk| disk.chain.layers.get(1..).unwrap_or_default().to_vec();
    let mut lost = Vec::new();
    for pair in pairs {
        let others = below(&pair.destination);
        let has = |name: &str| others.iter().any(|layer| layer.bitmaps.iter().any(|bitmap| bitmap.name == name));
        for layer in below(&pair.source) {
            for bitmap in layer.bitmaps.iter().filter(|bitmap| !bitmap.name.starts_with(PREFIX) && !has(&bitmap.name)) {
                let why = format!("the bitmap is in {}, which is not copied", layer.file);
                lost.push((pair.source.name().to_owned(), bitmap.name.clone(), why));
            }
        }
    }
    lost
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
    use serde_json::json;

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
        decide(&[source], &[], &pairs, storage, able)
    }

    /// A bitmap below the top image, or on a node that no disk has, keeps all others behind.
    #[test]
    fn one_that_cannot_go_keeps_all_behind() {
        let base = |bitmaps: &[(&str, bool, bool)]| disk(None, "base", bitmaps).chain.layers;
        let over = |top: Disk, below: Vec<Layer>| {
            let layers = top.chain.layers.iter().cloned().chain(below).collect();
            Disk { chain: BackingChain { layers, filters: Vec::new() }, ..top }
        };
        let node = |name: &str, bitmap: &str| -> BlockNode {
            let image = json!({ "virtual-size": 1 });
            let bitmaps = json!([{ "name": bitmap, "count": 0 }, { "count": 0 }]);
            let node = json!({ "node-name": name, "drv": "qcow2", "file": "/f", "ro": true, "image": image,
                "dirty-bitmaps": bitmaps });
            serde_json::from_value(node).unwrap()
        };
        let top = || disk(None, "n", &[("daily", true, true)]);
        let held = [("old", true, true)];
        for (what, nodes, source_base, destination_base, moved, lost) in [
            ("only the top has one", vec![node("n", "daily")], base(&[]), base(&[]), true, vec![]),
            (
                "the engine's own",
                vec![node("n", "daily"), node("m", "qferry-guard-0")],
                base(&[]),
                base(&[]),
                true,
                vec![],
            ),
            ("the base, too", vec![node("base", "old")], base(&held), base(&[]), false, vec!["old", "daily"]),
            ("and the destination's", vec![node("base", "old")], base(&held), base(&held), false, vec!["daily"]),
            ("not loaded from the base", vec![], base(&held), base(&[]), true, vec!["old"]),
            ("a node of no disk", vec![node("spare", "other")], base(&[]), base(&[]), false, vec!["daily"]),
        ] {
            let source = over(top(), source_base);
            let destination = over(disk(None, "n", &[]), destination_base);
            let names = PairNames::new(&crate::run_id::RunId::default(), 0);
            let pair = DiskPair { source: source.clone(), destination, mode: CopyMode::Incremental, names };
            let decided = decide(&[source], &nodes, &[pair], StorageMode::Incremental, (true, true));
            let told: Vec<&str> = decided.lost.iter().map(|(_, name, _)| name.as_str()).collect();
            assert_eq!((decided.moved, told), (moved, lost), "{what}");
        }
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
