//! The disks: their pairs, the shared ones, and those that are left behind.
//!
//! Pure.

use super::{finding::Finding, subject::CheckSubject};
use crate::{
    codes::FindingCode,
    quantity::Bytes,
    storage::model::{bitmaps::BitmapPlan, layout::PairingProblem},
};

pub(super) fn run(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = subject.problems.iter().map(pairing).collect();
    findings.extend(subject.shared.iter().map(|disk| shared(disk)));
    findings.extend(lost(subject.bitmaps));
    findings.extend(subject.left_out.iter().map(|disk| left_out(disk)));
    findings
}

fn pairing(problem: &PairingProblem) -> Finding {
    match problem {
        PairingProblem::Unknown { name, on_source } => {
            let side = if *on_source { "source" } else { "destination" };
            Finding::new(FindingCode::DiskUnknown, name, format!("the {side} has no disk of this name"))
        }
        PairingProblem::Missing(disk) => {
            Finding::new(FindingCode::DiskMissing, disk.name(), "the destination has no disk that matches")
        }
        PairingProblem::Ambiguous(disk) => {
            Finding::new(FindingCode::DiskAmbiguous, disk.name(), "more than one disk matches")
        }
        PairingProblem::ReadOnly(pair) => {
            let message = format!("the destination's {} is read-only", pair.destination.name());
            Finding::new(FindingCode::DiskReadOnly, pair.source.name(), message)
        }
        PairingProblem::Size(pair) => {
            let (source, destination) = (Bytes(pair.source.virtual_size), Bytes(pair.destination.virtual_size));
            let message = format!(
                "it has {}, the destination's {} has {}",
                source.exactly(),
                pair.destination.name(),
                destination.exactly()
            );
            Finding::new(FindingCode::DiskSize, pair.source.name(), message)
        }
    }
}

fn shared(disk: &str) -> Finding {
    Finding::new(FindingCode::DiskShared, disk, "both sides have the same file open: it is not copied")
}

fn left_out(disk: &str) -> Finding {
    let message = "it is writable and is not moved: the guest will find whatever the destination has in its place";
    Finding::new(FindingCode::DiskLeftOut, disk, message)
}

fn lost(bitmaps: &BitmapPlan) -> Vec<Finding> {
    let told = bitmaps.lost.iter().map(|(disk, name, why)| {
        let message = format!("the dirty bitmap {name} does not arrive: {why}");
        Finding::new(FindingCode::BitmapLost, disk, message)
    });
    told.collect()
}
