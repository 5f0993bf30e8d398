//! Events as lines of JSON.

use super::event::Event;
use std::{
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

/// Writes each event as one line of JSON.
///
/// A write blocks as long as the writer does, so that the lines are to be written by a thread of their own, not by the
/// sink of a running migration.
pub struct JsonLines<W>(Mutex<W>);

impl<W: Write> JsonLines<W> {
    /// Writes to `writer`, flushing after every line.
    pub fn new(writer: W) -> Self {
        Self(Mutex::new(writer))
    }

    /// Writes one event.
    ///
    /// # Errors
    /// The writer's errors, a closed pipe above all.
    pub fn write(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&line)?;
        writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{EventKind, Phase, PhaseState};

    #[test]
    fn an_event_is_one_line_of_the_contracts_json() {
        let event = Event::new(12, EventKind::Phase { phase: Phase::Storage, state: PhaseState::Begin });
        let mut buffer = Vec::new();
        JsonLines::new(&mut buffer).write(&event).expect("a vector takes everything");
        assert_eq!(
            String::from_utf8_lossy(&buffer),
            "{\"v\":1,\"t_ms\":12,\"type\":\"phase\",\"phase\":\"storage\",\"state\":\"begin\"}\n"
        );
    }
}
