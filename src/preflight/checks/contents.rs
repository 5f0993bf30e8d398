//! The contents of images: those that must be the same on both sides, and those that must be empty.
//!
//! Pure.

use super::finding::Finding;
use crate::{
    codes::{FindingCode, Setting},
    preflight::{
        comparison_plan::ComparisonPlan,
        contents::{EmptyImageCheck, EmptyImageState, ImageContents},
        machine_change::MachineChange,
    },
    storage::verify::identity::{self, Comparison, ComparisonResult, ImagePair, ProofLevel, ProofMethod},
};

/// Judges the images by what is known without reading them.
pub fn planned(plan: &ComparisonPlan, proof: ProofLevel) -> Vec<Finding> {
    let mut findings: Vec<Finding> = plan.image_pairs.iter().filter_map(|twin| metadata(twin, proof)).collect();
    findings.extend(unverified(plan, proof));
    findings
}

/// Judges the images by their contents.
pub fn read(contents: &ImageContents) -> Vec<Finding> {
    let mut findings: Vec<Finding> = contents.comparisons.iter().filter_map(compared).collect();
    findings.extend(contents.comparisons.iter().filter_map(without_map));
    findings.extend(contents.empty_images.iter().filter_map(filled));
    findings
}

/// Judges what was changed on a side while images were read.
pub fn changed(side: &str, changes: &[MachineChange]) -> Vec<Finding> {
    let one = |change: &MachineChange| {
        let MachineChange { device, what, before, now } = change;
        let message = format!("its {what} was changed on the {side} while images were compared: {before}, now {now}");
        Finding::new(FindingCode::ChainChanged, device, message)
    };
    changes.iter().map(one).collect()
}

/// The remedy of findings about sizes and formats alone.
fn by_contents() -> String {
    format!("compare the contents with {}", Setting::VerifyBacking.set_to("sample"))
}

fn metadata(twin: &ImagePair, proof: ProofLevel) -> Option<Finding> {
    let what = identity::metadata(&twin.source, &twin.destination)?;
    let (file, other) = (twin.source.file(), twin.destination.file());
    let message = format!("{file} and the destination's {other} are not alike: {what}");
    let disks = twin.disks.join(", ");
    if twin.source.virtual_size != twin.destination.virtual_size {
        return Some(Finding::new(FindingCode::BackingSize, &disks, message));
    }
    Some(match proof {
        ProofLevel::Metadata => Finding::new(FindingCode::BackingDiffers, &disks, message).with_remedy(by_contents()),
        // the data that a guest reads is compared, and that comparison decides
        _ => Finding::new(FindingCode::BackingFormat, &disks, message),
    })
}

/// The disks over the images that must be the same, for a finding about all of them; `None` where no image must be
/// read.
fn unread_disks(plan: &ComparisonPlan) -> Option<String> {
    let disks: Vec<&str> = plan.image_pairs.iter().flat_map(|twin| &twin.disks).map(String::as_str).collect();
    match (disks.is_empty(), plan.empty_images.is_empty()) {
        (true, true) => None,
        (true, false) => Some("disks".to_owned()),
        (false, _) => Some(disks.join(", ")),
    }
}

fn unverified(plan: &ComparisonPlan, proof: ProofLevel) -> Option<Finding> {
    let message = "nothing proves that the destination's backing files are the source's, nor that its images are empty";
    let disks = unread_disks(plan).filter(|_| proof == ProofLevel::Off)?;
    Some(Finding::new(FindingCode::BackingUnverified, &disks, message))
}

/// Notes that the images must be read and were not.
pub fn unread(plan: &ComparisonPlan) -> Option<Finding> {
    let message = "no image was read because of a leftover of an earlier migration: it is not proved that the \
                   destination's backing files are the source's, nor that its images are empty";
    let finding = Finding::new(FindingCode::BackingUnverified, &unread_disks(plan)?, message);
    Some(finding.with_remedy(format!(
        "migrate with {}, which removes the leftover, then reads the images, and may still refuse",
        Setting::Clean
    )))
}

fn without_map(comparison: &Comparison) -> Option<Finding> {
    let message =
        format!("only sizes and formats were compared: {} has no map of what is allocated", comparison.source);
    let by_sizes = comparison.by == ProofMethod::Metadata { map: None } && comparison.verdict == ComparisonResult::Same;
    by_sizes.then(|| {
        Finding::new(FindingCode::BackingUnverified, &comparison.disks.join(", "), message).with_remedy(by_contents())
    })
}

fn compared(comparison: &Comparison) -> Option<Finding> {
    let disks = comparison.disks.join(", ");
    match &comparison.verdict {
        ComparisonResult::Same => None,
        ComparisonResult::Differ { offset, source_layer, destination_layer, what } => {
            let message =
                format!("{source_layer} and the destination's {destination_layer} differ at byte {offset}: {what}");
            Some(Finding::new(FindingCode::BackingDiffers, &disks, message))
        }
        ComparisonResult::Unproved { why } => {
            let Comparison { source, destination, .. } = comparison;
            let message = format!("{source} and the destination's {destination} could not be compared: {why}");
            Some(Finding::new(FindingCode::BackingUnproved, &disks, message))
        }
    }
}

fn filled(check: &EmptyImageCheck) -> Option<Finding> {
    let EmptyImageCheck { disk, file, overlay, spent, holds } = check;
    let (code, message) = match (holds, overlay) {
        (EmptyImageState::Nothing, _) => return None,
        (EmptyImageState::Spent(at), _) => (
            FindingCode::ImageSpent,
            format!(
                "the destination's {file} holds a part of a disk, from byte {at} on, that a migration left which was called \
                 off: all of it is written again"
            ),
        ),
        (EmptyImageState::Data(at), true) => (
            FindingCode::OverlayNotEmpty,
            format!("the destination's {file} is not empty: it has data of its own at byte {at}"),
        ),
        (EmptyImageState::Data(at), false) => (
            FindingCode::DestinationHoldsData,
            format!("the destination's {file} is not empty, and would be overwritten: it has data at byte {at}"),
        ),
        (EmptyImageState::AllData, _) => (
            FindingCode::DestinationHoldsData,
            format!(
                "the destination's {file} is a LUKS volume, and would be overwritten: QEMU takes all of such a volume for \
                 data, so nothing tells whether somebody has written to it"
            ),
        ),
        (EmptyImageState::Locked(words), _) => {
            (FindingCode::DiskLocked, format!("another process has the destination's {file} open for writing: {words}"))
        }
        (EmptyImageState::Unknown(why), _) => (
            FindingCode::OverlayUnproved,
            format!("whether the destination's {file} is empty could not be seen: {why}"),
        ),
    };
    let finding = Finding::new(code, disk, message);
    match (holds, spent) {
        (EmptyImageState::AllData, _) => Some(finding.with_remedy(
            "make the volume anew with qemu-img create -f luks, and then say that it is new; or use a qcow2 image with \
             encrypt.format=luks, which tells what is written",
        )),
        (EmptyImageState::Data(_), true) => Some(finding.with_remedy(format!(
            "this is what a migration left that was called off, and the next one would not write over all of it: end \
             the destination and make the image anew (qferry prepare does, with {})",
            Setting::Again
        ))),
        _ => Some(finding),
    }
}
