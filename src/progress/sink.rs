//! Where events go.

use super::{Event, Kind, Phase, PhaseState};
use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// Takes events as they happen. It is called from the engine's own task, also while the guest stands still: it must
/// return at once and do its work elsewhere.
pub trait Sink: Send + Sync {
    /// Takes one event.
    fn emit(&self, event: &Event);
}

/// Stamps events with the time since the start and hands them to a sink.
#[derive(Clone)]
pub struct Reporter {
    start: Instant,
    sink: Arc<dyn Sink>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("start", &self.start).finish_non_exhaustive()
    }
}

impl Reporter {
    /// Starts the clock.
    pub fn new(sink: Arc<dyn Sink>) -> Self {
        Self { start: Instant::now(), sink }
    }

    /// Milliseconds since the start.
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Reports one thing.
    pub fn emit(&self, kind: Kind) {
        self.sink.emit(&Event { v: 1, t_ms: self.elapsed_ms(), kind });
    }

    /// Reports that a phase begins or ends.
    pub fn phase(&self, phase: Phase, state: PhaseState) {
        self.emit(Kind::Phase { phase, state });
    }

    /// Reports a phase's begin and end around its work, also when the work is dropped.
    pub async fn during<T>(&self, phase: Phase, work: impl Future<Output = T>) -> T {
        let _entered = self.enter(phase);
        work.await
    }

    /// Reports a phase's begin, and its end when what is returned is dropped.
    pub fn enter(&self, phase: Phase) -> Entered {
        self.phase(phase, PhaseState::Begin);
        Entered(self.clone(), phase)
    }

    /// Reports something the user should know.
    pub fn warn(&self, code: &str, message: impl Into<String>) {
        self.emit(Kind::Warning { code: code.to_owned(), message: message.into() });
    }

    /// Reports a decision.
    pub fn action(&self, action: &str, because: impl Into<String>) {
        self.emit(Kind::Action { action: action.to_owned(), because: because.into() });
    }
}

/// A phase that goes on as long as this is there.
#[derive(Debug)]
pub struct Entered(Reporter, Phase);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.phase(self.1, PhaseState::End);
    }
}

/// Writes each event as one line of JSON. Blocks as its writer does: feed it from a thread of its own, not as the sink
/// of a running migration.
pub struct JsonLines<W>(Mutex<W>);

impl<W: Write> JsonLines<W> {
    /// Writes to `writer`, flushing after every line.
    pub fn new(writer: W) -> Self {
        Self(Mutex::new(writer))
    }

    /// Writes one event.
    ///
    /// # Errors
    /// What the writer says; a closed pipe above all.
    pub fn write(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&line)?;
        writer.flush()
    }
}

/// Hands events to `tracing`, samples at debug level and the rest at info.
#[derive(Debug, Clone, Copy, Default)]
pub struct TracingSink;

impl Sink for TracingSink {
    fn emit(&self, event: &Event) {
        match &event.kind {
            Kind::Disk { .. } | Kind::Image { .. } | Kind::Memory { .. } => {
                tracing::debug!(?event.kind, t_ms = event.t_ms)
            }
            Kind::Warning { code, message } => tracing::warn!(%code, %message, t_ms = event.t_ms),
            _ => tracing::info!(?event.kind, t_ms = event.t_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_of_the_contracts_json() {
        let event = Event { v: 1, t_ms: 12, kind: Kind::Phase { phase: Phase::Storage, state: PhaseState::Begin } };
        let mut buffer = Vec::new();
        JsonLines::new(&mut buffer).write(&event).expect("a vector takes everything");
        assert_eq!(
            String::from_utf8_lossy(&buffer),
            "{\"v\":1,\"t_ms\":12,\"type\":\"phase\",\"phase\":\"storage\",\"state\":\"begin\"}\n"
        );
    }
}
