//! The engine's side of the journal: what is about to be done is noted, in memory and on the disk, before it is done.
//!
//! The file is written by a thread of its own, so that a slow disk holds up nothing but what waits for it. It must never let
//! an effect be brought about whose record is not known to be on the disk.

use super::{
    Effect, Failure,
    record::{Ended, Record},
};
use crate::journal::Journal;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

/// What has been changed so far, and the journal that says so.
#[derive(Debug, Default)]
pub(super) struct Log {
    effects: Vec<Effect>,
    journal: Option<Arc<Mutex<Journal<Record>>>>,
}

impl Log {
    /// Goes on from here; without a journal only in memory.
    pub(super) fn new(journal: Option<Journal<Record>>, effects: Vec<Effect>) -> Self {
        Self { effects, journal: journal.map(|journal| Arc::new(Mutex::new(journal))) }
    }

    /// What may have been changed and is not undone, in order.
    pub(super) fn effects(&self) -> &[Effect] {
        &self.effects
    }

    /// Where the journal is, if there is one.
    pub(super) fn path(&self) -> Option<PathBuf> {
        let journal = self.journal.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(journal.path().to_owned())
    }

    /// Notes what is about to be brought about. Known in memory at once, so that the way back has it whatever becomes of
    /// the file.
    ///
    /// # Errors
    /// It could not be written: it must not be brought about.
    pub(super) async fn note(&mut self, effects: impl IntoIterator<Item = Effect>) -> Result<(), Failure> {
        let effects: Vec<Effect> = effects.into_iter().collect();
        if effects.is_empty() {
            return Ok(());
        }
        self.effects.extend(effects.iter().cloned());
        self.write(Record::Effects(effects)).await
    }

    /// Notes that something is not there, or not any more.
    ///
    /// # Errors
    /// It could not be written.
    pub(super) async fn undone(&mut self, effect: &Effect) -> Result<(), Failure> {
        match self.effects.iter().rposition(|one| one == effect) {
            Some(at) => {
                let effect = self.effects.remove(at);
                self.write(Record::Undone(effect)).await
            }
            None => Ok(()),
        }
    }

    /// Writes the end. The file is then removed, unless it is to be kept.
    ///
    /// # Errors
    /// It could not be written.
    pub(super) async fn end(self, ended: Ended, keep: bool) -> Result<(), Failure> {
        self.write(Record::Ended(ended)).await?;
        if let Some(path) = self.path().filter(|_| !keep) {
            // one that stays says that there is nothing left to be done
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "the journal stays");
            }
        }
        Ok(())
    }

    /// Writes a record, and waits until it is on the disk.
    ///
    /// # Errors
    /// It could not be written.
    pub(super) fn write(&self, record: Record) -> impl Future<Output = Result<(), Failure>> + use<> {
        let journal = self.journal.clone();
        async move {
            let Some(journal) = journal else { return Ok(()) };
            let write = move || journal.lock().unwrap_or_else(PoisonError::into_inner).append(&record).map(drop);
            match tokio::task::spawn_blocking(write).await {
                Ok(written) => Ok(written?),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // the runtime is being shut down, and takes this with it
                Err(_) => std::future::pending().await,
            }
        }
    }
}
