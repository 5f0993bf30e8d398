//! Whether anybody else could have written a file that the engine acts on, or could come into a folder that the engine
//! uses.
//!
//! A journal names processes to end and a command to run, a fence command is run with the engine's rights, and a socket
//! carries the guest's RAM. The room has one rule (pure) and one reader of owners and modes. The room must never change
//! an owner or a mode: a file that fails the rule may be anybody's, and its user decides.

mod reader;
mod rule;

pub use reader::{TrustError, UNMAPPED_OWNERS, folder, locate, open_file, user};
pub use rule::{Distrust, FileOwner, PathStep, StepKind, judge};
