//! The disks: how they are paired, which are shared, which are left behind.
//!
//! Pure.

use super::{Finding, Severity, Subject, blocker, finding};
use crate::storage::model::{bitmaps::BitmapPlan, layout::PairingProblem};

pub(super) fn run(subject: &Subject<'_>) -> Vec<Finding> {
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
            blocker(
                "disk-unknown",
                name,
                format!("the {side} has no disk of this name"),
                "query-block shows qdev, device and node names",
            )
        }
        PairingProblem::Missing(disk) => {
            let remedy = "give the destination a device of the same id, name the pair with --disk SOURCE=DESTINATION, or leave it out with --skip-disk";
            blocker("disk-missing", disk.name(), "the destination has no disk like it", remedy)
        }
        PairingProblem::Ambiguous(disk) => blocker(
            "disk-ambiguous",
            disk.name(),
            "more than one disk matches",
            "name each pair with --disk SOURCE=DESTINATION",
        ),
        PairingProblem::ReadOnly(pair) => blocker(
            "disk-read-only",
            pair.source.name(),
            format!("the destination's {} is read-only", pair.destination.name()),
            "start the destination with it writable",
        ),
        PairingProblem::Size(pair) => {
            let (here, there) = (pair.source.virtual_size, pair.destination.virtual_size);
            let message = format!("it has {here} bytes, the destination's {} has {there}", pair.destination.name());
            blocker(
                "disk-size",
                pair.source.name(),
                message,
                "create the destination's overlay with exactly the source's virtual size",
            )
        }
    }
}

fn shared(disk: &str) -> Finding {
    finding(Severity::Note, "disk-shared", disk, "both sides have the same file open: it is not copied", "")
}

fn left_out(disk: &str) -> Finding {
    let message = "it is writable and is not moved: the guest will find whatever the destination has in its place";
    finding(Severity::Warning, "disk-left-out", disk, message, "name it with --disk too, or say --skip-disk")
}

fn lost(bitmaps: &BitmapPlan) -> Vec<Finding> {
    let remedy = "the next incremental backup has to be a full one";
    let told = bitmaps.lost.iter().map(|(disk, name, why)| {
        let message = format!("the dirty bitmap {name} does not arrive: {why}");
        finding(Severity::Warning, "bitmap-lost", disk, message, remedy)
    });
    told.collect()
}
