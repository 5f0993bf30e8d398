//! Watches, while disks are copied, how the guest stands: that takes hours at times, in which the guest's owner pauses
//! or resumes it, and in which it may stop by itself.

use crate::{
    migration::{Failure, attempt::Attempt},
    qemu::Process,
};
use qapi::qmp;
use std::time::Duration;
use tokio::time::Instant;

/// The time after which QEMU is asked though no event has told of a change: events are hints, and may be lost.
const EVERY: Duration = Duration::from_secs(10);

/// When the source was last asked how its guest stands.
pub(super) struct GuestWatch {
    asked: Instant,
    changes: u64,
}

impl GuestWatch {
    /// Begins where the preflight has asked.
    pub(super) fn begin(source: &Process) -> Self {
        Self { asked: Instant::now(), changes: source.observed().stance_changes }
    }

    /// Asks how the guest stands where that may have changed, and tells the journal.
    ///
    /// # Errors
    /// The guest has stopped by itself, or the source does not answer.
    pub(super) async fn look(&mut self, source: &Process, attempt: &mut Attempt) -> Result<(), Failure> {
        let changes = source.observed().stance_changes;
        if changes == self.changes && self.asked.elapsed() < EVERY {
            return Ok(());
        }
        let answer = source.ask(&qmp::query_status {}).await?;
        (self.changes, self.asked) = (changes, Instant::now());
        attempt.guest.look(&answer.status);
        attempt.journal_guest().await?;
        refuse_halted(attempt)
    }
}

/// Gives a guest up that has stopped by itself since the migration began: such a state is its owner's to see, where it
/// came about.
///
/// # Errors
/// The guest has.
pub(crate) fn refuse_halted(attempt: &Attempt) -> Result<(), Failure> {
    attempt.guest.halt().map_or(Ok(()), |run| Err(Failure::GuestHalted(run.clone())))
}
