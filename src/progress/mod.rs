//! What happened, as data: events while a migration runs, and the outcome it ends with.
//!
//! A leaf: every module may report through it, and it knows none of them. The shapes are the JSON of the contract; a
//! field once published stays. It must never decide anything.

mod event;
mod ledger;
mod moment;
mod outcome;
mod sink;

pub use event::{Event, Kind, Phase, PhaseState, Side};
pub use ledger::{Clock, Ledger, Mark, Span};
pub use moment::Moment;
pub use outcome::{DiskOutcome, Ending, Estimate, Outcome, RamOutcome, Reason, RunsOn, describe};
pub use sink::{Entered, JsonLines, Reporter, Sink, TracingSink};
