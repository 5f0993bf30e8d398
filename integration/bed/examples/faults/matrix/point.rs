//! The points at which faults strike.

use std::fmt;
use std::time::Duration;

use qferry::internals::progress::Phase;
use qferry_bed::{Command, Side};
use serde_json::Value;

/// A moment of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// The engine says that a phase begins.
    Phase(Phase),
    /// In the switchover, when this command has been sent and is not yet delivered.
    Command {
        side: Side,
        name: String,
        /// Which of that name to that side since the switchover began, from 1.
        nth: usize,
        past: Past,
    },
    /// A time after the start.
    Moment(Duration),
}

/// The stage that a migration has reached by its commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Past {
    Nothing,
    /// The exports are told to go.
    Exports,
    /// `migrate-continue`.
    Given,
    /// `cont` to the destination.
    Started,
}

/// The phases in which a fault may strike.
pub(crate) const PHASES: [Phase; 6] =
    [Phase::Prepare, Phase::Storage, Phase::Memory, Phase::Switchover, Phase::Handover, Phase::Cleanup];

impl Point {
    /// The stage that is reached at this point, if it is known.
    pub(crate) fn past(&self) -> Past {
        match self {
            Self::Command { past, .. } => *past,
            Self::Phase(Phase::Handover) => Past::Exports,
            Self::Phase(Phase::Cleanup) => Past::Started,
            Self::Phase(_) | Self::Moment(_) => Past::Nothing,
        }
    }

    /// Whether the point is before a command of this name.
    pub(crate) fn names(&self, command: &str) -> bool {
        matches!(self, Self::Command { name, .. } if name == command)
    }

    /// Whether the last of these commands is that of the point.
    pub(crate) fn is_reached(&self, seen: &[Command]) -> bool {
        let Self::Command { side, name, nth, .. } = self else { return false };
        let is_it = |command: &&Command| command.side == *side && command.name == *name;
        seen.last().as_ref().is_some_and(is_it) && since_switchover(seen).iter().filter(is_it).count() == *nth
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Phase(phase) => write!(f, "{phase}"),
            Self::Command { side, name, nth: 1, .. } => write!(f, "{side}: {name}"),
            Self::Command { side, name, nth, .. } => write!(f, "{side}: {name} ({nth})"),
            Self::Moment(after) => write!(f, "after {} ms", after.as_millis()),
        }
    }
}

/// The commands from the mirrors' settling on.
fn since_switchover(seen: &[Command]) -> &[Command] {
    let settles = |command: &Command| {
        command.side == Side::Source
            && command.name == "block-job-cancel"
            && command.arguments.get("force").is_none_or(Value::is_null)
    };
    let begin = seen.iter().position(settles).unwrap_or(seen.len());
    seen.get(begin..).unwrap_or_default()
}

/// The points between each pair of commands of a switchover, from those of one that went well.
pub(crate) fn switchover(seen: &[Command]) -> Vec<Point> {
    let (mut points, mut past): (Vec<Point>, _) = (Vec::new(), Past::Nothing);
    for command in since_switchover(seen) {
        let (side, name) = (command.side, command.name.clone());
        let same =
            |point: &&Point| matches!(point, Point::Command { side: s, name: n, .. } if *s == side && *n == name);
        let nth = points.iter().filter(same).count() + 1;
        points.push(Point::Command { side, name, nth, past });
        past = past.max(match (side, command.name.as_str()) {
            (Side::Destination, "nbd-server-stop") => Past::Exports,
            (Side::Source, "migrate-continue") => Past::Given,
            (Side::Destination, "cont") => Past::Started,
            _ => Past::Nothing,
        });
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn command(side: Side, name: &str, arguments: Value) -> Command {
        Command { side, name: name.to_owned(), arguments, oob: false, at: Instant::now() }
    }

    #[test]
    fn points_are_counted_from_the_mirrors_settling_on() {
        use Side::{Destination, Source};
        let seen: Vec<Command> = [
            (Source, "query-jobs"),
            (Source, "block-job-cancel"),
            (Source, "query-jobs"),
            (Destination, "nbd-server-stop"),
            (Source, "migrate-continue"),
            (Source, "query-jobs"),
            (Destination, "cont"),
            (Source, "quit"),
        ]
        .map(|(side, name)| command(side, name, serde_json::json!({})))
        .into();
        let points = switchover(&seen);
        let told: Vec<_> = points.iter().map(|point| (point.to_string(), point.past())).collect();
        let told: Vec<_> = told.iter().map(|(name, past)| (name.as_str(), *past)).collect();
        assert_eq!(
            told,
            [
                ("source: block-job-cancel", Past::Nothing),
                ("source: query-jobs", Past::Nothing),
                ("destination: nbd-server-stop", Past::Nothing),
                ("source: migrate-continue", Past::Exports),
                ("source: query-jobs (2)", Past::Given),
                ("destination: cont", Past::Given),
                ("source: quit", Past::Started),
            ]
        );
        // Each point is reached once, at its place.
        for (at, point) in points.iter().enumerate() {
            let met: Vec<usize> = (1..=seen.len()).filter(|end| point.is_reached(&seen[..*end])).collect();
            assert_eq!(met, [at + 2], "{point}");
        }
        // The forced end of a mirror that starts again is no switchover.
        let forced = command(Source, "block-job-cancel", serde_json::json!({"force": true}));
        assert_eq!(switchover(&[forced]), []);
    }
}
