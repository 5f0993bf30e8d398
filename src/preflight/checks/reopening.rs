//! Images that a QEMU has open and could not open anew, which a handover makes it do.
//!
//! Pure.

use super::{finding::Finding, subject::CheckSubject};
use crate::{codes::FindingCode, preflight::facts::reopening::ReopenHindrance, storage::model::layout::Disk};

/// The end of a message about the source, where nothing shows that QEMU keeps the image open.
const ANEW: &str = "QEMU opens an image with auto-read-only, as each -drive has it, anew when it hands over the guest";

/// Runs the checks of this file.
pub(super) fn run(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let copied = subject.pairs.iter().map(|pair| (&pair.source, Some(&pair.destination)));
    let standing = subject.unshared.iter().filter(|(disk, _)| !disk.read_only).copied();
    let mut findings = Vec::new();
    for (disk, other) in copied.chain(standing) {
        findings.extend(on_source(disk, subject));
        findings.extend(other.and_then(|other| on_destination(disk, other, subject)));
    }
    findings
}

fn on_source(disk: &Disk, subject: &CheckSubject<'_>) -> Option<Finding> {
    let facts = &subject.source.reopening;
    let file = &disk.chain.top()?.protocol.file;
    let hindrance = facts.hindered.get(file)?;
    let found = |code, message: String| Finding::new(code, disk.name(), message);
    let is_kept = facts.kept_open.contains(file);
    let later = format!(
        "the source's QEMU has {file} open, and {hindrance}: what is opened by that name later, a backup as well as a QEMU, has not the guest's data"
    );
    match hindrance {
        // rights count when a file is opened, and not as long as it is open
        ReopenHindrance::Denied { .. } if is_kept => None,
        ReopenHindrance::Denied { user, reads, .. } => {
            let end = match reads {
                true => "for reading alone, and could not take it back if the guest had to return",
                false => "and the migration would fail then, after everything was copied",
            };
            let message = format!("{file}: {hindrance}; {ANEW}, {end}");
            let remedy = format!("let that user have the file: chown {user} {file}, or setfacl -m u:{user}:rw {file}");
            Some(found(FindingCode::ReopenDenied, message).with_remedy(remedy))
        }
        _ if is_kept => Some(found(FindingCode::ImageNameLost, later)),
        ReopenHindrance::NameGone => Some(found(
            FindingCode::ImageReplaced,
            format!(
                "the source's QEMU has {file} open, and {hindrance}; {ANEW}, and the migration would fail then, after everything was copied"
            ),
        )),
        ReopenHindrance::NameTaken => Some(found(
            FindingCode::ImageReplaced,
            format!(
                "the source's QEMU has {file} open, and {hindrance}; {ANEW}, and if the guest had to go back then, that file would be its disk"
            ),
        )),
    }
}

/// A destination's image whose name is lost would be lost with its process. Its rights have a check of their own.
fn on_destination(disk: &Disk, other: &Disk, subject: &CheckSubject<'_>) -> Option<Finding> {
    let file = &other.chain.top()?.protocol.file;
    let hindrance = subject.destination.reopening.hindered.get(file)?;
    if matches!(hindrance, ReopenHindrance::Denied { .. }) {
        return None;
    }
    let message = format!(
        "the destination's QEMU has {file} open, and {hindrance}: the guest's data there would be found by nobody once that QEMU ends"
    );
    let finding = Finding::new(FindingCode::ImageReplaced, disk.name(), message);
    Some(
        finding.with_remedy(
            "start the destination anew, on the image that has the name now, or give the image its name back",
        ),
    )
}
