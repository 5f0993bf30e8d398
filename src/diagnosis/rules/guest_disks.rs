//! A guest whose requests to its disks do not complete.
//!
//! Pure.

use super::super::{
    cause::{Cause, Confidence},
    guest_queues::QueueLook,
    pair::{KEPT, PairLooks, SideLooks},
};
use crate::{codes::DiagnosisCode, progress::Side, qemu::reply::RunState};

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    for (side, seen) in looks.sides() {
        causes.extend(stalled(side, seen));
    }
}

/// Requests that QEMU had taken at the first look, and none of which it has answered since.
fn stalled(side: Side, seen: &SideLooks) -> Option<Cause> {
    let ((began, first), (ended, _)) = (seen.queues.first()?, seen.queues.last()?);
    let span = ended.saturating_sub(*began);
    // a guest that stands has no request answered
    let runs = !seen.looks.is_empty() && seen.looks.iter().all(|look| look.run == Some(RunState::Running));
    if span < KEPT || !runs {
        return None;
    }
    let stays = |queue: &&QueueLook| {
        let same = |then: &QueueLook| {
            (&then.device, then.queue, then.answered) == (&queue.device, queue.queue, queue.answered)
                && then.in_flight > 0
        };
        seen.queues.iter().all(|(_, queues)| queues.iter().any(same))
    };
    let stuck: Vec<&QueueLook> = first.iter().filter(stays).collect();
    if stuck.is_empty() {
        return None;
    }
    let words = |queue: &&QueueLook| {
        format!(
            "the {side}'s {}, queue {}: {} requests were under way at both looks, {:.1} s apart, and none has completed",
            queue.device,
            queue.queue,
            queue.in_flight,
            span.as_secs_f64()
        )
    };
    let mut evidence: Vec<String> = stuck.iter().map(words).collect();
    let throttled = seen.nodes.iter().any(|node| node.drv == "throttle");
    let confidence = if throttled { Confidence::Possible } else { Confidence::Likely };
    if throttled {
        evidence.push("there is a throttle node, and a limit that is low looks the same".to_owned());
    }
    evidence.push("storage that takes longer than that for a request looks the same".to_owned());
    Some(Cause::new(DiagnosisCode::GuestIoStalled, confidence, evidence).remedy(
        "look at the storage of the disk first: its server, and a mirror in write-blocking mode whose target is silent; \
         where these are well, stop and cont wake a QEMU that has lost a request while it drained",
        "stop waits for the same requests: where the storage or a mirror's target is dead, QEMU's main loop hangs in it",
    ))
}
