//! Images that somebody else writes to.
//!
//! Pure.

use super::super::{
    cause::{Cause, Confidence},
    pair::{PairLooks, SideLooks},
};
use crate::{
    codes::DiagnosisCode,
    progress::Side,
    qemu::reply::{MigrationStatus, RunState},
};

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    for (side, seen) in looks.sides() {
        causes.extend(locked(side, seen));
    }
}

/// A guest that has arrived and stands, because QEMU could not take its images over.
fn locked(side: Side, seen: &SideLooks) -> Option<Cause> {
    let has_guest = seen.stood() && seen.lasted() && seen.run() != Some(&RunState::InMigrate);
    if !has_guest || seen.status() != Some(&MigrationStatus::Completed) {
        return None;
    }
    // What is inactive holds no lock to write. After a `cont` that failed the node of the file counts as active, and
    // the node of the format above it does not.
    let is_inactive = |path: &str| seen.nodes.iter().any(|node| node.file == path && node.active == Some(false));
    let files = seen.process.iter().flat_map(|process| &process.files);
    let evidence: Vec<String> = files
        .filter(|file| file.is_locked && is_inactive(&file.path))
        .map(|file| {
            format!("the {side}'s image {} is not active, and another process has it locked to write", file.path)
        })
        .collect();
    if evidence.is_empty() {
        return None;
    }
    Some(Cause::new(DiagnosisCode::ImageLocked, Confidence::Certain, evidence).remedy(
        "find the process that holds the image (lslocks, or fuser on the image) and end its use; then cont",
        "where the holder is the other side of the migration, its guest may still write",
    ))
}
