//! The destination's images that a run writes to. They are held, so that the way back can record which of them hold a
//! part of a disk.

use super::{pair::QemuPair, work_order::WorkOrder};
use crate::{
    endpoint::PeerPid,
    preflight::facts::files,
    storage::{
        files::spent_images::HeldImage,
        model::{chain::file_name, layout::DiskPair},
    },
};
use tokio::task::spawn_blocking;

/// The images that a run is going to write to, where they are files of this host.
pub(super) fn of_order(order: &WorkOrder) -> Vec<HeldImage> {
    let image = |pair: &DiskPair| {
        let file = order.proved.destination.file(pair.destination.chain.top()?)?;
        HeldImage::hold(&pair.destination.file, &file.path).filter(|_| !file.is_device)
    };
    order.route.pairs.iter().filter_map(image).collect()
}

/// The images that a run of an earlier engine may have written to, as far as the destination's process of this host has
/// them open. A process that took part and has kept an image open since is the proof that the file of that name is the
/// one that the run wrote, and QEMU's lock the proof that no other QEMU has used it. Nothing proves that of the images
/// of a destination that has ended before.
pub(super) async fn of_recovery(pair: &QemuPair, disks: &[DiskPair]) -> Vec<HeldImage> {
    let destination = &pair.destination;
    let Some(pid) = destination.peer().filter(|_| !destination.is_absent()).map(PeerPid::pid) else {
        return Vec::new();
    };
    let paths: Vec<String> = disks.iter().map(|disk| disk.destination.file.clone()).collect();
    let hold = move || {
        let image = |path: &String| HeldImage::hold(path, &files::open_under(pid, &file_name(path))?);
        paths.iter().filter_map(image).collect()
    };
    let held = spawn_blocking(hold).await.unwrap_or_default();
    match destination.has_ended().await {
        // The pid may have been another process's.
        true => Vec::new(),
        false => held,
    }
}
