//! A step of a published schedule, and how a policy file writes it.
//!
//! Pure.

use crate::quantity::duration;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A step of a schedule. It is due once all its conditions are met.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "WrittenStep", into = "WrittenStep")]
#[non_exhaustive]
pub struct ScheduleStep {
    /// The number of passes that must have ended.
    pub passes: u64,
    /// The time that must have passed.
    pub after: Duration,
    /// The time for each GiB of RAM and disks that must have passed.
    pub after_per_gib: Duration,
    /// The action.
    pub then: StepAction,
}

/// The action of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepAction {
    /// Set the downtime limit, but never above the user's budget.
    Downtime(Duration),
    /// Start postcopy.
    Postcopy,
    /// Give up and roll back.
    GiveUp,
}

/// A step as it is written: with a downtime limit, or with a word for its end of the schedule.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenStep {
    #[serde(default)]
    passes: u64,
    #[serde(default, with = "duration")]
    after: Duration,
    #[serde(default, with = "duration")]
    after_per_gib: Duration,
    #[serde(default, with = "duration::option", skip_serializing_if = "Option::is_none")]
    downtime: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    then: Option<WrittenEnd>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WrittenEnd {
    Postcopy,
    GiveUp,
}

impl TryFrom<WrittenStep> for ScheduleStep {
    type Error = &'static str;

    fn try_from(step: WrittenStep) -> Result<Self, Self::Error> {
        let WrittenStep { passes, after, after_per_gib, downtime, then } = step;
        let then = match (downtime, then) {
            (Some(limit), None) => StepAction::Downtime(limit),
            (None, Some(WrittenEnd::Postcopy)) => StepAction::Postcopy,
            (None, Some(WrittenEnd::GiveUp)) => StepAction::GiveUp,
            _ => return Err("a step has either a downtime, or then = \"postcopy\" or \"give-up\""),
        };
        Ok(Self { passes, after, after_per_gib, then })
    }
}

impl From<ScheduleStep> for WrittenStep {
    fn from(step: ScheduleStep) -> Self {
        let ScheduleStep { passes, after, after_per_gib, then } = step;
        let (downtime, then) = match then {
            StepAction::Downtime(limit) => (Some(limit), None),
            StepAction::Postcopy => (None, Some(WrittenEnd::Postcopy)),
            StepAction::GiveUp => (None, Some(WrittenEnd::GiveUp)),
        };
        Self { passes, after, after_per_gib, downtime, then }
    }
}
