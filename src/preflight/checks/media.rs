//! Drives that have a medium on the destination alone: the guest would find a medium that nobody inserted.
//!
//! Pure. A medium that the source alone has is judged with the disks, and so are size and contents of a medium that
//! both sides have. Whether a tray is open is a part of the drive's own state, which goes with the guest.

use super::{
    disk_places::{counterpart, drive_name},
    finding::Finding,
    subject::CheckSubject,
};
use crate::{
    codes::FindingCode,
    qemu::reply::BlockDevice,
    storage::model::{chain::file_name, layout::Disk},
};

pub(super) fn run(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let empty = subject.source.devices.iter().filter(|drive| drive.inserted.is_none());
    let found = |drive: &BlockDevice| {
        let other = counterpart(drive, subject.pairs, &subject.destination.devices)?;
        let file = file_name(&other.inserted.as_ref()?.file);
        let message = format!("the drive is empty on the source, and has {file} on the destination");
        let finding = Finding::new(FindingCode::MediumExtra, &drive_name(drive), message);
        let id = other.qdev.as_deref().filter(|id| !id.is_empty())?;
        Some(finding.with_remedy(format!(
            "take the medium out: send the destination eject with the arguments {}",
            serde_json::json!({ "id": id, "force": true })
        )))
    };
    empty.filter_map(found).collect()
}

/// Whether a disk of the destination is in a drive that the source has without a medium.
pub(super) fn is_in_empty_drive(disk: &Disk, subject: &CheckSubject<'_>) -> bool {
    let empty = subject.source.devices.iter().filter(|drive| drive.inserted.is_none());
    let others = empty.filter_map(|drive| counterpart(drive, subject.pairs, &subject.destination.devices));
    others.into_iter().any(|other| disk.path.is_some() && other.qdev == disk.path)
}
