//! The fold of a journal's records to a state. Pure.
//!
//! The module owns the walk over the records. Which record may follow which is decided by the state.

use super::format::JournalEntry;
use std::error::Error;
use thiserror::Error;

/// A state that records are folded into. The default is the state of an empty journal.
pub trait Fold: Default {
    /// Type of the records.
    type Record;
    /// Reason why a record cannot follow the records before it.
    type Illegal: Error + 'static;

    /// Applies the next record to the state.
    ///
    /// # Errors
    /// When the record cannot follow the records before it.
    fn apply(&mut self, record: &Self::Record) -> Result<(), Self::Illegal>;
}

/// Records in an order that no engine writes.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "record {n} of the journal cannot follow the records before it: do not trust the journal, and look at both sides \
     with query-status"
)]
pub struct FoldError<I: Error + 'static> {
    /// The number of the first record that is illegal.
    pub n: u64,
    /// Reason of the state.
    #[source]
    pub illegal: I,
}

/// Folds all entries, in order.
///
/// # Errors
/// At the first record that is illegal.
pub fn fold<F: Fold>(entries: &[JournalEntry<F::Record>]) -> Result<F, FoldError<F::Illegal>> {
    let mut state = F::default();
    for JournalEntry { n, record, .. } in entries {
        state.apply(record).map_err(|illegal| FoldError { n: *n, illegal })?;
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Door {
        open: bool,
    }

    #[derive(Debug, Error, PartialEq, Eq)]
    #[error("the door is so already")]
    struct SameState;

    impl Fold for Door {
        type Record = bool;
        type Illegal = SameState;

        fn apply(&mut self, open: &bool) -> Result<(), SameState> {
            if self.open == *open {
                return Err(SameState);
            }
            self.open = *open;
            Ok(())
        }
    }

    fn door(records: &[bool]) -> Result<Door, FoldError<SameState>> {
        let entries: Vec<_> =
            (1..).zip(records).map(|(n, record)| JournalEntry { n, at: 0, record: *record }).collect();
        fold(&entries)
    }

    #[test]
    fn the_first_illegal_record_is_named() {
        assert_eq!(door(&[]), Ok(Door { open: false }));
        assert_eq!(door(&[true, false, true]), Ok(Door { open: true }));
        assert_eq!(door(&[true, true, true]), Err(FoldError { n: 2, illegal: SameState }));
    }
}
