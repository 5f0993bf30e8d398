//! A log of intents that outlives the process that writes it.
//!
//! Owns a file of records of which each is on the disk before [`Journal::append`] returns, its format, and its fold to a
//! state. What a record means is its user's: the room is generic over it, and does nothing about what it reads. It must
//! never say that a record is kept which a power cut could take, and never let two processes write one file.
//!
//! Everything here blocks on the disk: an async caller uses `spawn_blocking`.

mod file;
mod fold;
mod format;

pub use file::{Journal, JournalError, read};
pub use fold::{Fold, FoldError, fold};
pub use format::{FormatError, JournalEntry, LIMIT, ParsedJournal, VERSION, parse};
