//! The claim on one queued command, contested by its caller and the connection task.
//!
//! The module owns the answer to "did the command leave this process?". A command that was reported as unsent can
//! never be sent afterwards, and a command that may be on the wire can never be reported as unsent.

use std::sync::atomic::{AtomicU8, Ordering};

/// State of a command between the queue and the wire: queued, sent or withdrawn.
///
/// One compare-exchange decides between the caller that withdraws and the task that writes, so only one of them wins.
#[derive(Debug, Default)]
pub(super) struct SendClaim(AtomicU8);

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const WITHDRAWN: u8 = 2;

impl SendClaim {
    /// Claims the command for the task, which is about to write it. `false` if the command was withdrawn.
    pub(super) fn send(&self) -> bool {
        self.leave_queue(SENT)
    }

    /// Takes the command back, for its caller or for a task that finds its deadline missed. `false` if the command may
    /// be on the wire.
    pub(super) fn withdraw(&self) -> bool {
        self.leave_queue(WITHDRAWN) || self.is_withdrawn()
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        self.0.load(Ordering::Acquire) == WITHDRAWN
    }

    fn leave_queue(&self, to: u8) -> bool {
        self.0.compare_exchange(QUEUED, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_won_once() {
        let claim = SendClaim::default();
        assert!(claim.send());
        assert!(!claim.withdraw());
        assert!(!claim.is_withdrawn());
        let claim = SendClaim::default();
        assert!(claim.withdraw());
        assert!(claim.withdraw(), "the command stays withdrawn, whoever asks");
        assert!(!claim.send());
        assert!(claim.is_withdrawn());
    }

    #[test]
    fn a_contested_claim_has_one_winner() {
        for _ in 0..200 {
            let claim = SendClaim::default();
            let (sent, withdrawn) = std::thread::scope(|scope| {
                let writer = scope.spawn(|| claim.send());
                (claim.withdraw(), writer.join().unwrap())
            });
            assert!(sent != withdrawn);
        }
    }
}
