//! A guest that has arrived, and whose network does not know it.
//!
//! Pure. QEMU tells nothing of announcements, so the evidence is what makes an announcement impossible, or a host's
//! count of what has left the guest's cards.

use super::super::{
    cause::{Cause, Confidence},
    look::MonitorLook,
    pair::{PairLooks, SideLooks},
    remedy::RemedyCommand,
};
use crate::{
    codes::DiagnosisCode,
    progress::Side,
    qemu::reply::{MigrationStatus, RunState},
};
use serde_json::json;

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    for (side, seen) in looks.sides() {
        causes.extend(unannounced(side, seen));
    }
}

/// Whether a guest came to this side with a migration, and has run here at each look.
fn has_arrived(seen: &SideLooks) -> bool {
    // of a migration that it has sent, QEMU tells the numbers of RAM as well
    let runs = |look: &MonitorLook| {
        look.run == Some(RunState::Running)
            && look.migration.status == Some(MigrationStatus::Completed)
            && look.migration.ram.is_none()
    };
    seen.lasted() && seen.looks.iter().all(runs)
}

fn unannounced(side: Side, seen: &SideLooks) -> Option<Cause> {
    if !has_arrived(seen) {
        return None;
    }
    let taps = seen.process.iter().flat_map(|process| &process.taps);
    let (silent, heard): (Vec<_>, Vec<_>) = taps.partition(|tap| tap.sent == 0);
    let is_off = seen.announces_nothing();
    let mut evidence = vec![format!(
        "a guest has come to this side, and has run here for {:.1} s at least",
        seen.span().as_secs_f64()
    )];
    if is_off {
        evidence.push("announce-rounds is 0: QEMU announces nothing by itself".to_owned());
    }
    let confidence = match (silent.is_empty(), is_off) {
        (false, true) => Confidence::Certain,
        (false, false) => Confidence::Likely,
        // what the guest sends by itself tells its network as well
        (true, true) if heard.is_empty() && seen.has_network_card => {
            evidence.push("the packets that its network cards have sent were not seen".to_owned());
            Confidence::Possible
        }
        (true, _) => return None,
    };
    evidence.extend(
        silent.iter().map(|tap| {
            format!("not one packet has come out of the tap interface {}, no announcement either", tap.name)
        }),
    );
    let announce = json!({ "initial": 50, "max": 550, "rounds": 5, "step": 100 });
    Some(
        Cause::new(DiagnosisCode::NetworkUnannounced, confidence, evidence)
            .remedy(
                "see that the interface is up and in its bridge, and the card's link is on (set_link); then have QEMU \
                 announce the guest",
                "none: switches learn where the guest is, and must not while it runs elsewhere as well",
            )
            .command(RemedyCommand::new(side, "announce-self", announce))
            .fixable(),
    )
}
