//! What was read of both sides: images that must be the same, and images that must be empty.
//!
//! Pure.

use super::{Finding, Severity, blocker, finding, note};
use crate::{
    preflight::{
        contents::{Contents, Filling, Holds},
        wanted::Wanted,
    },
    storage::verify::identity::{self, Comparison, ComparisonResult, ImagePair, ProofLevel, ProofMethod},
};

/// Judges what is known of the images without reading them.
pub fn wanted(wanted: &Wanted, proof: ProofLevel) -> Vec<Finding> {
    let mut findings: Vec<Finding> = wanted.twins.iter().filter_map(|twin| metadata(twin, proof)).collect();
    findings.extend(unverified(wanted, proof));
    findings
}

/// Judges what was read.
pub fn read(contents: &Contents) -> Vec<Finding> {
    let mut findings: Vec<Finding> = contents.comparisons.iter().filter_map(compared).collect();
    findings.extend(contents.comparisons.iter().filter_map(without_map));
    findings.extend(contents.fillings.iter().filter_map(filled));
    findings
}

/// Judges a side whose disks were not left alone while they were read.
pub fn changed(side: &str, disks: &[String]) -> Vec<Finding> {
    let one = |disk: &String| {
        let message = format!("what it is over changed on the {side} while it was compared");
        blocker("chain-changed", disk, message, "wait for the block job that does it, and check again")
    };
    disks.iter().map(one).collect()
}

fn metadata(twin: &ImagePair, proof: ProofLevel) -> Option<Finding> {
    let what = identity::metadata(&twin.source, &twin.destination)?;
    let (ours, theirs) = (twin.source.file(), twin.destination.file());
    let message = format!("{ours} and the destination's {theirs} are not alike: {what}");
    let disks = twin.disks.join(", ");
    if twin.source.virtual_size != twin.destination.virtual_size {
        return Some(blocker("backing-size", &disks, message, SAME));
    }
    match proof {
        ProofLevel::Metadata => {
            Some(blocker("backing-differs", &disks, message, "--verify-backing sample looks at the contents"))
        }
        // what a guest reads is what counts
        _ => Some(note("backing-format", &disks, message)),
    }
}

const SAME: &str =
    "bring the source's own to the destination: qferry prepare --populate missing does, where none is there";

fn unverified(wanted: &Wanted, proof: ProofLevel) -> Option<Finding> {
    let disks: Vec<&str> = wanted.twins.iter().flat_map(|twin| &twin.disks).map(String::as_str).collect();
    let message = "nothing proves that the destination's backing files are the source's, nor that its images are empty";
    let needed = proof == ProofLevel::Off && !(disks.is_empty() && wanted.blanks.is_empty());
    let subject = if disks.is_empty() { "disks".to_owned() } else { disks.join(", ") };
    needed.then(|| {
        let remedy = "a guest over another backing file is corrupted: --verify-backing sample takes about a second";
        finding(Severity::Warning, "backing-unverified", &subject, message, remedy)
    })
}

/// Says that nothing was read yet, although it is to be.
pub fn unread(wanted: &Wanted) -> Option<Finding> {
    let disks: Vec<&str> = wanted.twins.iter().flat_map(|twin| &twin.disks).map(String::as_str).collect();
    let message = "nothing was read while something of an earlier try is there: neither that the destination's backing \
                   files are the source's nor that its images are empty is proved";
    (!(disks.is_empty() && wanted.blanks.is_empty())).then(|| {
        let subject = if disks.is_empty() { "disks".to_owned() } else { disks.join(", ") };
        let remedy = "migrate --clean removes it first, then reads, and may still refuse";
        finding(Severity::Warning, "backing-unverified", &subject, message, remedy)
    })
}

fn without_map(comparison: &Comparison) -> Option<Finding> {
    let message =
        format!("only sizes and formats were compared: {} has no map of what is allocated", comparison.source);
    let by_sizes = comparison.by == ProofMethod::Metadata { map: None } && comparison.verdict == ComparisonResult::Same;
    by_sizes.then(|| {
        let disks = comparison.disks.join(", ");
        finding(
            Severity::Warning,
            "backing-unverified",
            &disks,
            message,
            "--verify-backing sample looks at the contents",
        )
    })
}

fn compared(comparison: &Comparison) -> Option<Finding> {
    let disks = comparison.disks.join(", ");
    match &comparison.verdict {
        ComparisonResult::Same => None,
        ComparisonResult::Differ { offset, source_layer, destination_layer, what } => {
            let message =
                format!("{source_layer} and the destination's {destination_layer} differ at byte {offset}: {what}");
            Some(blocker("backing-differs", &disks, message, SAME))
        }
        ComparisonResult::Unproved { why } => {
            let (ours, theirs) = (&comparison.source, &comparison.destination);
            let message = format!("{ours} and the destination's {theirs} could not be compared: {why}");
            let remedy = "both QEMUs must be able to export it, and be reached from here: see --nbd-address and --source-nbd-address; --verify-backing off goes on with nothing proved";
            Some(blocker("backing-unproved", &disks, message, remedy))
        }
    }
}

fn filled(filling: &Filling) -> Option<Finding> {
    let Filling { disk, file, overlay, holds } = filling;
    match (holds, overlay) {
        (Holds::Nothing, _) => None,
        (Holds::Data(at), true) => {
            let message = format!("the destination's {file} is not empty: it has data of its own at byte {at}");
            let remedy = "what it has would stay wherever the source's has nothing: make a fresh overlay";
            Some(blocker("overlay-not-empty", disk, message, remedy))
        }
        (Holds::Data(at), false) => {
            let message =
                format!("the destination's {file} is not empty, and would be overwritten: it has data at byte {at}");
            Some(blocker(
                "destination-holds-data",
                disk,
                message,
                "make a fresh image, if nobody needs what is in this one",
            ))
        }
        (Holds::Locked(words), _) => {
            let message = format!("another process has the destination's {file} open for writing: {words}");
            let remedy = "if that is the source, both have the same file: --storage none then copies nothing";
            Some(blocker("disk-locked", disk, message, remedy))
        }
        (Holds::Unknown(why), _) => {
            let message = format!("whether the destination's {file} is empty could not be seen: {why}");
            let remedy = "its QEMU must be able to export it, and be reached from here: see --nbd-address; --verify-backing off goes on with nothing proved";
            Some(blocker("overlay-unproved", disk, message, remedy))
        }
    }
}
