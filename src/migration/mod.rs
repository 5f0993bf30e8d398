//! The engine: the order of a migration from the first greeting to the last clean-up, and the way back.
//!
//! [`Migration`] is the handle an embedder holds; [`Settings`] is what can be asked for; [`Plan`] is what would be done.
//! `engine.rs` is the page to read first: every phase in its order. `phases` and `way_back` are what it calls; `context`,
//! `pair`, `attempt`, `guest` and `intents` are what they share. The engine composes storage, memory and handover, none of
//! which knows the others. No effect may be brought about before it is noted: the way back undoes what was noted.

mod attempt;
pub(crate) mod background_task;
mod check;
pub(crate) mod connection;
mod context;
mod deadlines;
mod effect;
mod ending;
mod engine;
mod failure;
mod guest;
mod handle;
mod intents;
pub(crate) mod interrupt;
mod pair;
mod phases;
mod plan;
pub mod record;
mod recovery;
pub(crate) mod runtime_dir;
mod settings;
mod way_back;
mod work_order;

pub use background_task::{Canceller, Events};
pub use effect::Effect;
pub use failure::Failure;
pub use handle::{Builder, Check, Endpoint, Migration};
pub use plan::{Chains, Plan, PlannedDisk};
pub use recovery::Recovery;
pub use settings::{JournalPlace, SWITCHOVER, Settings};
