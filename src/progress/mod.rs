//! Progress as data: events while a migration runs, and the outcome with which it ends.
//!
//! A leaf: every room may report through it, and it knows none of them. The shapes are the JSON of the contract, and a
//! field once published stays. Everything written here can also be read, by this version and by others: see
//! [`EventKind::Unknown`]. This room must never decide anything.

mod causes;
mod device_time;
mod event;
mod json_lines;
mod ledger;
mod moment;
mod outcome;
mod phase;
mod reporter;
#[cfg(test)]
mod round_trip;
mod side;

pub use causes::describe;
pub use device_time::{DevicePhase, DeviceTime, describe_devices};
pub use event::{ActionDetail, ActionDetails, Event, EventKind};
pub use json_lines::JsonLines;
pub use ledger::{BlackoutLedger, LedgerClock, LedgerMark, LedgerSpan};
pub use moment::Moment;
pub use outcome::{
    AnotherTry, DiskOutcome, Ending, Estimate, EstimatedRung, GuestPause, GuestWrites, Outcome, PauseCause,
    PostcopyBlocktime, RamOutcome, Reason, RunsOn, WriteTimes,
};
pub use phase::{Phase, PhaseState};
pub use reporter::{EventSink, PhaseGuard, Reporter};
pub use side::Side;
