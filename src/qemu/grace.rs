//! The least time that a QEMU is given for an answer while something else bounds its silence.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The least time for an answer, milliseconds; zero where the usual times hold.
#[derive(Debug, Default)]
pub(crate) struct AnswerGrace(AtomicU64);

impl AnswerGrace {
    /// Gives every answer at least that time until what is returned is dropped. QEMU answers nothing in band while it
    /// drains and flushes its disks, and how long that may take is the caller's to judge.
    pub(crate) fn give(&self, least: Duration) -> GivenGrace<'_> {
        self.0.store(u64::try_from(least.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        GivenGrace(self)
    }

    /// The usual time for an answer, or the least one where that is longer.
    pub(super) fn bound(&self, usual: Duration) -> Duration {
        usual.max(Duration::from_millis(self.0.load(Ordering::Relaxed)))
    }
}

/// The time that [`AnswerGrace::give`] gives.
#[must_use = "answers have the usual time again when the value is dropped"]
pub(crate) struct GivenGrace<'a>(&'a AnswerGrace);

impl Drop for GivenGrace<'_> {
    fn drop(&mut self) {
        self.0.0.store(0, Ordering::Relaxed);
    }
}
