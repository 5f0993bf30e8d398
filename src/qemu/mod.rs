//! One QEMU process: how it is spoken to, what it can do, and what it says.
//!
//! Owns the typed questions and answers ([`reply`]), what a build can do ([`Features`]), and the state folded from its
//! events ([`Observed`]). It must never decide what to do with any of it.

pub mod reply;

mod error;
mod features;
mod observed;
mod process;
mod schema;
mod sent;

pub use error::{Gone, Name, ProcessError};
pub use features::Features;
pub use observed::{JobSeen, Observed};
pub use process::Process;
pub use schema::Schema;
pub use sent::SentCommand;
