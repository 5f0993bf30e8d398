//! The engine's side of the journal: what is about to be done is noted, in memory and on the disk, before it is done.
//!
//! The file is written by a thread of its own, in the order in which it is told, so that a slow disk holds up nothing but what
//! waits for it. It must never let an effect be brought about whose record is not known to be on the disk.

use super::{
    Effect, Failure,
    record::{Ended, Record},
};
use crate::{
    journal::{Journal, JournalError},
    progress::{Reporter, describe},
};
use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};
use tokio::{task::spawn_blocking, time::timeout};

/// How long the way back waits for the disk: it can be gone without the journal, but a guest may stand still.
const WAY_BACK: Duration = Duration::from_millis(500);

/// A record, and who waits until it is on the disk.
type Order = (Record, mpsc::Sender<Result<(), JournalError>>);

/// What has been changed so far, and the journal that says so.
#[derive(Debug, Default)]
pub(super) struct Log {
    effects: Vec<Effect>,
    journal: Option<(mpsc::Sender<Order>, PathBuf)>,
}

impl Log {
    /// Goes on from here; without a journal only in memory.
    pub(super) fn new(journal: Option<Journal<Record>>, effects: Vec<Effect>) -> Self {
        let writer = |mut journal: Journal<Record>| {
            let (orders, written) = mpsc::channel::<Order>();
            let path = journal.path().to_owned();
            thread::spawn(move || {
                for (record, waits) in written {
                    // nobody need wait any more
                    drop(waits.send(journal.append(&record).map(drop)));
                }
            });
            (orders, path)
        };
        Self { effects, journal: journal.map(writer) }
    }

    /// What may have been changed and is not undone, in order.
    pub(super) fn effects(&self) -> &[Effect] {
        &self.effects
    }

    /// Where the journal is, if there is one.
    fn path(&self) -> Option<&Path> {
        self.journal.as_ref().map(|(_, path)| path.as_path())
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
    pub(super) async fn undone(&mut self, effect: &Effect, report: &Reporter) {
        if let Some(at) = self.effects.iter().rposition(|one| one == effect) {
            let effect = self.effects.remove(at);
            self.tell(Record::Undone(effect), report).await;
        }
    }

    /// Writes a record of the way back, which is gone whatever becomes of the journal: every step of it can be taken twice,
    /// and a guest that stands still for the sake of a disk that is full, or hangs, would be worse.
    pub(super) async fn tell(&self, record: Record, report: &Reporter) {
        match timeout(WAY_BACK, self.write(record)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => report.warn("journal", describe(&failure)),
            Err(_) => report.warn("journal", format!("the journal was not written within {WAY_BACK:?}")),
        }
    }

    /// Writes the end. The file is then removed, unless it is to be kept.
    pub(super) async fn end(self, ended: Ended, keep: bool, report: &Reporter) {
        self.tell(Record::Ended(ended), report).await;
        if let Some(path) = self.path().filter(|_| !keep) {
            // one that stays says that there is nothing left to be done
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "the journal stays");
            }
        }
    }

    /// Writes a record, which is on its way when this returns, and waits until it is on the disk.
    ///
    /// # Errors
    /// It could not be written.
    pub(super) fn write(&self, record: Record) -> impl Future<Output = Result<(), Failure>> + use<> {
        let written = self.journal.as_ref().map(|(orders, _)| {
            let (waits, written) = mpsc::channel();
            // a writer that is gone drops both ends
            drop(orders.send((record, waits)));
            written
        });
        async move {
            let Some(written) = written else { return Ok(()) };
            match spawn_blocking(move || written.recv()).await {
                Ok(Ok(written)) => Ok(written?),
                // the writer, or the runtime
                Ok(Err(_)) | Err(_) => Err(JournalError::Gone.into()),
            }
        }
    }
}
