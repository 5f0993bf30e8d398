//! One QEMU process: how the engine speaks to it, what its build can do, and what it says.
//!
//! Owns the typed questions and replies ([`reply`]), the features of a build ([`Features`]), and the state folded from
//! its events ([`Observed`]). This room must never decide what to do with any of it.

pub mod keep_alive;
pub mod log_file;
pub mod log_line;
pub mod reply;
pub mod trace_events;

mod connection_origin;
mod error;
mod features;
mod grace;
mod migrations;
mod observed;
mod process;
mod schema;
mod sent;

pub use error::{Gone, ProcessError, QemuName};
pub use features::Features;
pub use observed::{HaltSeen, JobSeen, Observed, ShutdownSeen};
pub use process::Process;
pub use schema::Schema;
pub use sent::SentCommand;
