//! The engine: the order of a migration from the first greeting to the last clean-up, and the way back.
//!
//! [`Builder`] is an embedder's request, with its [`Settings`]; [`Running`] is the engine at work on it, and [`Plan`]
//! what would be done. `engine.rs` is the page to read first: every phase in its order. `phases` and `way_back` are
//! what it calls; `context`, `pair`, `attempt`, `guest` and `intents` are what they share. The engine composes
//! storage, memory and handover, none of which knows the others. No effect may be brought about before it is noted:
//! the way back undoes what was noted.

mod attempt;
mod builder;
mod check;
mod clean;
pub(crate) mod connection;
mod context;
mod deadlines;
mod device_logs;
mod effect;
pub(crate) mod ending;
mod engine;
mod failure;
mod fence_command;
#[cfg(test)]
pub(crate) mod finding_cases;
mod guest;
mod images;
mod intents;
pub(crate) mod interrupt;
pub(crate) mod journals;
mod pair;
mod panics;
mod participant;
mod phases;
mod plan;
pub mod record;
mod recovery;
pub(crate) mod running;
pub(crate) mod runtime_dir;
mod settings;
mod snapshot;
pub(crate) mod validate;
mod way_back;
mod work_order;
mod write_counts;

pub use builder::{Builder, Migration, panic_at, run_as};
pub use effect::Effect;
pub use failure::Failure;
pub use guest::GuestIntent;
pub use journals::{JournalInfo, RecoveryOutlook, journal_directory, journals};
pub use participant::{NotProved, ParticipantTraits, judge as judge_participant};
pub use plan::{Chains, Plan, PlannedDisk};
pub use recovery::Recovery;
pub use running::{Control, Events, Running};
pub use settings::{FENCE, JournalPlace, SWITCHOVER, Settings};
pub use snapshot::{DiskProgress, MemoryProgress, Progress};
pub use validate::{Invalid, InvalidSetting};
