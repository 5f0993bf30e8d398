//! The log of what the engine intends: each effect is noted in memory and in the journal before it is brought about.
//!
//! A thread of its own writes the journal, in the order of the records, so that a slow disk holds up only what waits
//! for a record. No effect may be brought about whose record is not known to be on the disk.

use super::{
    Effect, Failure, JournalPlace, Settings, journals,
    record::{JournalStatus, MigrationBegin, MigrationEnd, Record},
};
use crate::{
    journal::{Fold, Journal, JournalError},
    progress::{Reporter, describe},
    run_id::RunId,
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

/// How long the way back waits for the journal's disk: the guest may stand still, and the way back needs no journal.
const WAY_BACK: Duration = Duration::from_millis(500);

/// Every record of a run, kept outside of the engine's task: what the run intended is known even after the engine
/// panicked, and where no journal is kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Records(Arc<Mutex<Recorded>>);

#[derive(Debug, Default)]
struct Recorded {
    records: Vec<Record>,
    /// The journal's file, and whether it stays whatever becomes of the migration.
    journal: Option<(PathBuf, bool)>,
}

impl Records {
    fn push(&self, record: &Record) {
        self.lock().records.push(record.clone());
    }

    /// The records of a journal that another engine wrote.
    pub(crate) fn of_journal(records: impl Iterator<Item = Record>) -> Self {
        let recorded = Recorded { records: records.collect(), journal: None };
        Self(Arc::new(Mutex::new(recorded)))
    }

    /// The status that all records come to.
    pub(crate) fn status(&self) -> JournalStatus {
        let mut status = JournalStatus::default();
        for record in &self.lock().records {
            if let Err(illegal) = status.apply(record) {
                tracing::warn!(%illegal, "a record is left out");
            }
        }
        status
    }

    /// All records, in order.
    pub(crate) fn all(&self) -> Vec<Record> {
        self.lock().records.clone()
    }

    /// Opens the journal again that the engine has left behind, once its writer has ended; `None` where none was kept.
    ///
    /// # Errors
    /// The journal could not be opened.
    async fn reopen(&self) -> Result<Option<JournalWriter>, JournalError> {
        let Some((path, keep)) = self.lock().journal.clone() else { return Ok(None) };
        let deadline = Instant::now() + WAY_BACK;
        loop {
            match Journal::<Record>::open(&path) {
                Ok((journal, _)) => return Ok(Some(JournalWriter::start(journal, keep))),
                Err(JournalError::Locked { .. }) if Instant::now() < deadline => sleep(WAY_BACK / 50).await,
                Err(error) => return Err(error),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        // a record is pushed at once, so a panic leaves none half written
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has been changed so far, and the journal that says so; the default keeps it in memory alone.
#[derive(Debug, Default)]
pub(crate) struct IntentLog {
    run: RunId,
    effects: Vec<Effect>,
    records: Records,
    journal: Option<JournalWriter>,
}

/// The thread that writes the journal.
#[derive(Debug)]
struct JournalWriter {
    orders: mpsc::Sender<JournalOrder>,
    path: PathBuf,
    /// The user named the file: it stays, whatever becomes of the migration.
    keep: bool,
}

/// What the thread that writes the journal is to do, and who waits for it.
enum JournalOrder {
    Append(Record, mpsc::Sender<Result<(), JournalError>>),
    /// The last order: it unlocks the journal.
    Close(mpsc::Sender<()>),
}

impl IntentLog {
    /// Begins a log before anything is changed, with a journal where one is to be kept, and reports where that is.
    ///
    /// # Errors
    /// The journal could not be made or written.
    pub(crate) fn begin(
        settings: &Settings,
        begun: MigrationBegin,
        records: Records,
        report: &Reporter,
    ) -> Result<Self, JournalError> {
        let run = begun.run.clone();
        let file = settings.journal_file(&run);
        let begun = Record::Begun(Box::new(begun));
        records.push(&begun);
        let mut log = Self { run, records, ..Self::default() };
        if let Some(path) = file {
            let mut journal = Journal::create(&path)?;
            journal.append(&begun)?;
            let path = path.display().to_string();
            let because = format!("{path} records each step; if qferry dies, run: qferry recover {path}");
            report.detailed_action("journal", because, [("journal", path.as_str().into())]);
            let keep = matches!(settings.journal, JournalPlace::File(_));
            log.records.lock().journal = Some((journal.path().to_owned(), keep));
            if keep {
                journals::link(&log.run, journal.path());
            }
            log.journal = Some(JournalWriter::start(journal, keep));
        }
        Ok(log)
    }

    /// Goes on where the engine died that wrote this journal, with the effects that it had brought about. A journal in
    /// the state directory goes once nothing is left to be done, as its engine would have done it.
    pub(crate) fn take_up(run: RunId, journal: Journal<Record>, effects: Vec<Effect>) -> Self {
        let keep = !journals::is_in_state_directory(journal.path());
        Self { run, effects, records: Records::default(), journal: Some(JournalWriter::start(journal, keep)) }
    }

    /// Goes on after a panic of the engine, with the effects that it had brought about by its records.
    pub(crate) async fn go_on(run: RunId, records: &Records, effects: Vec<Effect>, report: &Reporter) -> Self {
        let journal = records.reopen().await.unwrap_or_else(|error| {
            report.warn("journal", describe(&error));
            None
        });
        Self { run, effects, records: records.clone(), journal }
    }

    /// The run whose log this is.
    pub(crate) fn run(&self) -> &RunId {
        &self.run
    }

    /// What may have been changed and is not undone, in order.
    pub(crate) fn effects(&self) -> &[Effect] {
        &self.effects
    }

    /// Notes effects that are about to be brought about. The log has them at once, so that the way back knows of them
    /// whatever becomes of the file.
    ///
    /// # Errors
    /// The record could not be written: the effects must not be brought about.
    pub(crate) async fn note(&mut self, effects: impl IntoIterator<Item = Effect>) -> Result<(), Failure> {
        let effects: Vec<Effect> = effects.into_iter().collect();
        if effects.is_empty() {
            return Ok(());
        }
        self.effects.extend(effects.iter().cloned());
        self.write(Record::Effects(effects)).await
    }

    /// The same while a guest waits, which a disk that hangs must not hold up.
    ///
    /// # Errors
    /// The record could not be written, or not in time.
    pub(crate) async fn note_in_time(&mut self, effects: impl IntoIterator<Item = Effect>) -> Result<(), Failure> {
        let slow = self.slow(WAY_BACK);
        within(WAY_BACK, slow, self.note(effects)).await
    }

    /// Notes whether the guest is to run, where that has changed; the record is on its way when this returns.
    ///
    /// # Errors
    /// The record could not be written.
    pub(crate) fn guest(&self, change: Option<bool>) -> impl Future<Output = Result<(), Failure>> + use<> {
        let written = change.map(|runs| self.write(Record::Guest { runs }));
        async {
            match written {
                Some(written) => written.await,
                None => Ok(()),
            }
        }
    }

    /// The same as [`Self::tell`] does it.
    pub(crate) async fn guest_on_the_way_back(&self, change: Option<bool>, report: &Reporter) {
        on_the_way_back(self.slow(WAY_BACK), self.guest(change), report).await;
    }

    /// Notes that an effect was refused, or has been undone.
    pub(crate) async fn undone(&mut self, effect: &Effect, report: &Reporter) {
        if let Some(at) = self.effects.iter().rposition(|one| one == effect) {
            let effect = self.effects.remove(at);
            self.tell(Record::Undone(effect), report).await;
        }
    }

    /// Writes a record of the way back, which goes on whatever becomes of the journal: every step of it can be taken
    /// twice, and a guest that stands still for the sake of a disk that is full, or hangs, would be worse.
    pub(crate) async fn tell(&self, record: Record, report: &Reporter) {
        on_the_way_back(self.slow(WAY_BACK), self.write(record), report).await;
    }

    /// Writes a record that the next step needs, while a guest stands still.
    ///
    /// # Errors
    /// The record could not be written, or not in time.
    pub(crate) async fn write_in_time(&self, record: Record) -> Result<(), Failure> {
        within(WAY_BACK, self.slow(WAY_BACK), self.write(record)).await
    }

    /// The error of a journal that was not written within this time.
    pub(crate) fn slow(&self, limit: Duration) -> JournalError {
        let path = self.journal.as_ref().map(|writer| writer.path.clone()).unwrap_or_default();
        JournalError::Slow { path, limit }
    }

    /// Removes the journal of a run that is refused after all, also one that the user named: nothing was changed.
    pub(crate) async fn discard(self, report: &Reporter) {
        let Self { run, journal, .. } = self;
        let Some(JournalWriter { orders, path, .. }) = journal else { return };
        journals::remove(&run, &path, false);
        close(orders, &path).await;
        report.action("journal", format!("{} is removed again", path.display()));
    }

    /// Writes the end, then removes the journal, unless the user named its file or something is left to be done, and
    /// unlocks it: another engine may take it up at once.
    pub(crate) async fn end(self, ended: MigrationEnd, report: &Reporter) {
        let settled = ended.is_settled();
        self.tell(Record::Ended(ended), report).await;
        let Some(JournalWriter { orders, path, keep }) = self.journal else { return };
        if settled {
            journals::remove(&self.run, &path, keep);
        }
        close(orders, &path).await;
    }

    /// Writes a record, which is on its way when this returns, and waits until it is on the disk.
    ///
    /// # Errors
    /// The record could not be written.
    pub(crate) fn write(&self, record: Record) -> impl Future<Output = Result<(), Failure>> + use<> {
        self.records.push(&record);
        let written = self.journal.as_ref().map(|writer| {
            let (waits, written) = mpsc::channel();
            // a writer that has ended drops both ends, which the receiver sees
            drop(writer.orders.send(JournalOrder::Append(record, waits)));
            written
        });
        async move {
            let Some(written) = written else { return Ok(()) };
            match spawn_blocking(move || written.recv()).await {
                Ok(Ok(written)) => Ok(written?),
                // the writer has ended, or the runtime is being shut down
                Ok(Err(_)) | Err(_) => Err(JournalError::WriterDied.into()),
            }
        }
    }
}

async fn within(
    limit: Duration,
    slow: JournalError,
    written: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    match timeout(limit, written).await {
        Ok(written) => written,
        Err(_) => Err(slow.into()),
    }
}

/// Unlocks a journal, and waits until it is unlocked.
async fn close(orders: mpsc::Sender<JournalOrder>, path: &Path) {
    let (close, closed) = mpsc::channel();
    drop(orders.send(JournalOrder::Close(close)));
    if timeout(WAY_BACK, spawn_blocking(move || closed.recv())).await.is_err() {
        tracing::warn!(path = %path.display(), "the journal is locked yet: its disk does not answer");
    }
}

async fn on_the_way_back(slow: JournalError, written: impl Future<Output = Result<(), Failure>>, report: &Reporter) {
    if let Err(failure) = within(WAY_BACK, slow, written).await {
        report.warn("journal", describe(&failure));
    }
}

impl JournalWriter {
    /// Starts the thread, which ends with the last order.
    fn start(mut journal: Journal<Record>, keep: bool) -> Self {
        let (orders, written) = mpsc::channel::<JournalOrder>();
        let path = journal.path().to_owned();
        thread::spawn(move || {
            for order in written {
                match order {
                    // a phase that was cancelled does not wait any more
                    JournalOrder::Append(record, waits) => drop(waits.send(journal.append(&record).map(drop))),
                    JournalOrder::Close(waits) => {
                        drop(journal);
                        return drop(waits);
                    }
                }
            }
        });
        Self { orders, path, keep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{Event, EventKind, EventSink};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts the warnings of the journal.
    #[derive(Default)]
    struct Warnings(AtomicUsize);

    impl EventSink for Warnings {
        fn emit(&self, event: &Event) {
            if matches!(&event.kind, EventKind::Warning { code, .. } if code == "journal") {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// A log whose journal's disk hangs: nothing that it is told to write comes to an end.
    fn hanging() -> (IntentLog, mpsc::Receiver<JournalOrder>) {
        let (orders, hangs) = mpsc::channel();
        let journal = JournalWriter { orders, path: PathBuf::from("/nowhere/journal"), keep: true };
        (IntentLog { journal: Some(journal), ..IntentLog::default() }, hangs)
    }

    #[tokio::test]
    async fn a_journal_whose_disk_hangs_holds_up_no_guest() {
        let (mut log, hangs) = hanging();
        let warnings = Arc::new(Warnings::default());
        let report = Reporter::new(warnings.clone());
        let patient = Duration::from_secs(60);
        let noted = timeout(patient, log.note_in_time([Effect::NbdServer])).await.expect("an end");
        assert!(matches!(noted, Err(Failure::Journal(JournalError::Slow { .. }))), "{noted:?}");
        assert_eq!(log.effects(), [Effect::NbdServer], "the way back knows of it all the same");
        let written = timeout(patient, log.write_in_time(Record::Starting)).await.expect("an end");
        let Err(failure) = written else { panic!("{written:?}") };
        assert!(describe(&failure).contains("the journal /nowhere/journal was not written within"), "{failure:?}");
        timeout(patient, log.tell(Record::Resuming, &report)).await.expect("an end");
        timeout(patient, log.undone(&Effect::NbdServer, &report)).await.expect("an end");
        timeout(patient, log.discard(&report)).await.expect("an end");
        assert_eq!(warnings.0.load(Ordering::Relaxed), 2, "of what was told, none was written");
        drop(hangs);
    }
}
