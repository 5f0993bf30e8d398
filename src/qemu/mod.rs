//! One QEMU process: how it is spoken to, what it can do, and what it says.
//!
//! Owns the typed questions and answers ([`reply`]), what a build can do ([`Features`]), and the state folded from its
//! events ([`Observed`]). It must never decide what to do with any of it.

pub mod reply;

mod features;
mod observed;
mod process;
mod schema;

pub use features::Features;
pub use observed::{JobSeen, Observed};
pub use process::{Gone, Name, Process, ProcessError};
pub use schema::Schema;
