//! A log of intents that outlives the process that writes it.
//!
//! The room owns a file of records, its format, and the fold of the records to a state. Each record is on the disk
//! before [`Journal::append`] returns. The room is generic over the record: the meaning of a record belongs to the user
//! of the room, and no record is acted upon here. The room must never report a record as kept that a power cut could
//! take, let two processes write one file, or use a journal that
//! another user may have written.
//!
//! Every operation on a file blocks on the disk: an async caller uses `spawn_blocking`.

mod file;
mod fold;
mod format;

pub use file::{Journal, JournalError, LockHolder, find_lock_holder, make_folder, read, read_first};
pub use fold::{Fold, FoldError, fold};
pub use format::{FormatError, JournalEntry, LIMIT, ParsedJournal, VERSION, parse};
