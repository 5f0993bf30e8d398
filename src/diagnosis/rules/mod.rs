//! The rules: from what was seen of a migration to its causes.
//!
//! Each rule names at most one cause for each thing that it looks at. Where evidence fits several causes, each rule
//! that fits gives its own, as [`Confidence::Possible`], and says what would tell them apart. A healthy migration that
//! is slow fits none.
//!
//! Pure.

mod arrival;
mod channel;
mod failure;
mod guest;
mod guest_disks;
mod images;
mod memory;
mod mirrors;
mod ownerless;
mod owners;
mod process;
mod reach;

use super::{
    cause::{Cause, Confidence},
    pair::PairLooks,
};
use crate::codes::DiagnosisCode;

/// The causes, the most certain first; among equals, what holds a process comes before what follows from that.
pub(super) fn causes(looks: &PairLooks) -> Vec<Cause> {
    let mut causes = Vec::new();
    let rules = [
        reach::rule,
        process::rule,
        images::rule,
        owners::rule,
        ownerless::rule,
        failure::rule,
        channel::rule,
        guest::rule,
        mirrors::rule,
        memory::rule,
        arrival::rule,
        guest_disks::rule,
    ];
    for rule in rules {
        rule(looks, &mut causes);
    }
    explain(&mut causes);
    causes.sort_by_key(|cause| cause.confidence);
    causes
}

/// Takes down the confidence of what follows from another cause.
fn explain(causes: &mut [Cause]) {
    use DiagnosisCode as Code;
    const HELD: [Code; 3] = [Code::ProcessStopped, Code::SourceGone, Code::DestinationGone];
    let held = causes.iter().find(|cause| HELD.contains(&cause.code) && cause.confidence != Confidence::Possible);
    let Some(held) = held.map(|cause| cause.code) else { return };
    let follows = [
        Code::MonitorBlocked,
        Code::MonitorUnresponsive,
        Code::NoOutOfBand,
        Code::LinkDead,
        Code::Mtu,
        Code::MirrorStalledIdle,
        Code::MirrorStarved,
        Code::DeviceBlocked,
        Code::CancellingStuck,
        Code::SetupBlocked,
        Code::WaitingForContinue,
        Code::GuestIoStalled,
    ];
    for cause in causes.iter_mut().filter(|cause| follows.contains(&cause.code)) {
        cause.confidence = Confidence::Possible;
        cause.evidence.push(format!("follows from {held}"));
    }
}

#[cfg(test)]
mod tests;
