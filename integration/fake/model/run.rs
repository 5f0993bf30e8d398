//! A migration that has ended: outcome, events and commands.

use qferry::internals::progress::{Event, EventKind, Outcome};
use tokio::time::Instant;

use crate::fake::ReceivedCommand;

/// A migration that has ended.
pub struct MigrationRun {
    pub outcome: Outcome,
    pub events: Vec<Event>,
    /// Commands as they arrived, and events (in capitals) as they were sent.
    pub log: Vec<(String, ReceivedCommand)>,
}

impl MigrationRun {
    /// The commands to both sides that change something, such as `source: stop`.
    pub fn told(&self) -> Vec<String> {
        let told = self.log.iter().filter(|(_, seen)| !asks(seen) && is_command(seen));
        told.map(|(side, seen)| format!("{side}: {}", seen.name)).collect()
    }

    pub fn count(&self, told: &str) -> usize {
        self.told().iter().filter(|line| *line == told).count()
    }

    pub fn position(&self, told: &str) -> usize {
        let position = self.told().iter().position(|line| line == told);
        position.unwrap_or_else(|| panic!("{told} was not sent: {:#?}", self.told()))
    }

    /// Commands, queries and events from the last STOP to the last RESUME.
    pub fn blackout(&self) -> Vec<(String, Instant)> {
        let at = |event: &str| self.log.iter().rposition(|(_, seen)| seen.name == event).unwrap();
        let window = &self.log[at("STOP")..=at("RESUME")];
        window.iter().map(|(side, seen)| (format!("{side}: {}", seen.name), seen.at)).collect()
    }

    pub fn code(&self) -> &str {
        self.outcome.reason.as_ref().map_or("", |reason| reason.code.as_str())
    }

    pub fn message(&self) -> &str {
        self.outcome.reason.as_ref().map_or("", |reason| &reason.message)
    }

    pub fn warned(&self, wanted: &str) -> bool {
        self.events.iter().any(|event| matches!(&event.kind, EventKind::Warning { code, .. } if code == wanted))
    }

    pub fn actions(&self, wanted: &str) -> usize {
        let acted = |event: &&Event| matches!(&event.kind, EventKind::Action { action, .. } if action == wanted);
        self.events.iter().filter(acted).count()
    }
}

impl std::fmt::Debug for MigrationRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines: Vec<String> = self.log.iter().map(|(side, seen)| format!("{side}: {}", seen.name)).collect();
        write!(f, "{:#?}\n{lines:#?}", self.outcome)?;
        self.events.iter().try_for_each(|event| match &event.kind {
            EventKind::Warning { .. } | EventKind::Action { .. } => write!(f, "\n{:?}", event.kind),
            _ => Ok(()),
        })
    }
}

/// Whether a command only asks, and changes nothing.
pub fn asks(seen: &ReceivedCommand) -> bool {
    let asks = ["query-", "x-query-", "x-debug-query-", "qom-list", "qom-get", "trace-event-get-state"]
        .iter()
        .any(|begin| seen.name.starts_with(begin));
    let tells = seen.arguments["command-line"].as_str().is_some_and(|line| line.starts_with("info "));
    asks || seen.name == "qmp_capabilities" || seen.name == "human-monitor-command" && tells
}

fn is_command(seen: &ReceivedCommand) -> bool {
    seen.name.chars().any(|c| c.is_ascii_lowercase())
}
