//! The way of the engine's events to their reader.

use super::{
    event::{ActionDetail, Event, EventKind},
    phase::{Phase, PhaseState},
};
use std::{fmt, sync::Arc, time::Instant};

/// Takes events as they happen.
///
/// The engine calls the sink from its own task, also while the guest is stopped: a sink must return at once and do its
/// work elsewhere.
pub trait EventSink: Send + Sync {
    /// Takes one event.
    fn emit(&self, event: &Event);
}

/// Stamps events with the time since the start and hands them to a sink.
#[derive(Clone)]
pub struct Reporter {
    start: Instant,
    sink: Arc<dyn EventSink>,
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").field("start", &self.start).finish_non_exhaustive()
    }
}

impl Reporter {
    /// Starts the clock.
    pub fn new(sink: Arc<dyn EventSink>) -> Self {
        Self { start: Instant::now(), sink }
    }

    /// Milliseconds since the start.
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Reports one thing.
    pub fn emit(&self, kind: EventKind) {
        self.sink.emit(&Event::new(self.elapsed_ms(), kind));
    }

    /// Reports that a phase begins or ends.
    pub fn phase(&self, phase: Phase, state: PhaseState) {
        self.emit(EventKind::Phase { phase, state });
    }

    /// Reports a phase's begin and end around its work, also when the work is dropped.
    pub async fn during<T>(&self, phase: Phase, work: impl Future<Output = T>) -> T {
        let _entered = self.enter(phase);
        work.await
    }

    /// Reports a phase's begin, and its end when the guard is dropped.
    pub fn enter(&self, phase: Phase) -> PhaseGuard {
        self.phase(phase, PhaseState::Begin);
        PhaseGuard(self.clone(), phase)
    }

    /// Reports something that the user should know.
    pub fn warn(&self, code: &str, message: impl Into<String>) {
        self.emit(EventKind::Warning { code: code.to_owned(), message: message.into() });
    }

    /// Reports a decision.
    pub fn action(&self, action: &str, because: impl Into<String>) {
        self.detailed_action(action, because, []);
    }

    /// Reports a decision with what it is about and its numbers.
    pub fn detailed_action<const N: usize>(
        &self,
        action: &str,
        because: impl Into<String>,
        details: [(&str, ActionDetail); N],
    ) {
        let details = details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.emit(EventKind::Action { action: action.to_owned(), because: because.into(), details });
    }
}

/// A phase under way: its end is reported when the guard is dropped.
#[derive(Debug)]
#[must_use = "the phase ends when the guard is dropped"]
pub struct PhaseGuard(Reporter, Phase);

impl Drop for PhaseGuard {
    fn drop(&mut self) {
        self.0.phase(self.1, PhaseState::End);
    }
}
