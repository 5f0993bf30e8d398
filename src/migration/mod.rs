//! The engine: the order of a migration from the first greeting to the last clean-up, and the way back.
//!
//! [`Migration`] is the handle an embedder holds; [`Settings`] is what can be asked for; [`Plan`] is what would be done.
//! It composes storage, memory and handover, none of which knows the others, and it must never let one of them run
//! without an effect being noted first: what is not noted cannot be undone.

mod aftermath;
mod converge;
mod copy;
mod effect;
mod end;
mod failure;
mod fence;
mod handle;
mod interrupt;
mod log;
mod plan;
mod postcopy;
pub mod provision;
pub mod record;
mod recovery;
mod redial;
mod rollback;
mod run;
mod settings;
mod survey;
mod task;

pub use effect::Effect;
pub use failure::Failure;
pub use handle::{Builder, Check, Endpoint, Migration};
pub use plan::{Chains, Plan, PlannedDisk};
pub use recovery::Recovery;
pub use settings::{JournalPlace, SWITCHOVER, Settings};
pub use task::{Canceller, Events};
