//! The places of the disks: the guest must find the same disk at the same address. QEMU loads the state of a disk
//! whatever image the disk is on.
//!
//! Pure.

use super::{finding::Finding, subject::CheckSubject};
use crate::{
    codes::FindingCode,
    preflight::facts::SideFacts,
    qemu::reply::BlockDevice,
    storage::model::layout::{self, DiskPair},
};

pub(super) fn run(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let CheckSubject { source, destination, pairs, .. } = *subject;
    let drives = source.devices.iter().filter(|drive| drive.qdev.is_some());
    let both = drives.filter_map(|drive| Some((drive, counterpart(drive, pairs, &destination.devices)?)));
    both.filter_map(|(drive, other)| compare(source, drive, destination, other)).collect()
}

/// The destination's drive for a drive of the source: its pair, and else the drive of the same name, for disks that are
/// shared, left out or read-only, and for drives without a medium.
pub(super) fn counterpart<'a>(
    drive: &BlockDevice,
    pairs: &[DiskPair],
    destination: &'a [BlockDevice],
) -> Option<&'a BlockDevice> {
    match pairs.iter().find(|pair| pair.source.path == drive.qdev) {
        Some(pair) => destination.iter().find(|other| other.qdev == pair.destination.path),
        None => layout::drive_counterpart(drive, destination),
    }
}

fn compare(source: &SideFacts, drive: &BlockDevice, destination: &SideFacts, other: &BlockDevice) -> Option<Finding> {
    let name = drive_name(drive);
    let place = |side: &SideFacts, drive: &BlockDevice| match drive.qdev.as_ref() {
        Some(qdev) => side.places.get(qdev).cloned().unwrap_or_else(|| Err("QEMU does not tell".to_owned())),
        None => Err("no device of the guest uses it".to_owned()),
    };
    let (at_source, at_destination) = match (place(source, drive), place(destination, other)) {
        (Ok(at_source), Ok(at_destination)) => (at_source, at_destination),
        (at_source, at_destination) => {
            let unknown = [("source", at_source.err()), ("destination", at_destination.err())];
            let told = unknown.into_iter().filter_map(|(side, why)| Some(format!("on the {side}: {}", why?)));
            let message = format!("its place in the guest is not known {}", told.collect::<Vec<_>>().join("; "));
            return Some(Finding::new(FindingCode::DiskPlaceUnknown, &name, message));
        }
    };
    if at_source == at_destination {
        return None;
    }
    let taken = destination.devices.iter().find(|drive| place(destination, drive).as_ref() == Ok(&at_source));
    let taken = taken.map(|drive| format!(", where the destination has {}", drive_name(drive))).unwrap_or_default();
    let message = format!(
        "the guest has it at {at_source}{taken}; the destination has its {} at {at_destination}",
        drive_name(other)
    );
    Some(Finding::new(FindingCode::DiskPlaceDiffers, &name, message))
}

/// The drive's name for people.
pub(super) fn drive_name(drive: &BlockDevice) -> String {
    let qdev = drive.qdev.as_deref().unwrap_or_default();
    let node = drive.inserted.as_ref().map_or("", |node| node.node_name.as_str());
    let names = [layout::id_of(qdev).unwrap_or_default(), &drive.device, node, qdev];
    names.into_iter().find(|name| !name.is_empty()).unwrap_or("?").to_owned()
}
