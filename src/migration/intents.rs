//! The engine's side of the journal: what is about to be done is noted, in memory and on the disk, before it is done.
//!
//! The file is written by a thread of its own, in the order in which it is told, so that a slow disk holds up nothing but what
//! waits for it. It must never let an effect be brought about whose record is not known to be on the disk.

use super::{
    Effect, Failure, JournalPlace, Settings,
    record::{Begun, Ended, Party, Record},
    way_back::rollback::QemuPair,
    work_order::Route,
};
use crate::{
    journal::{Journal, JournalError},
    progress::{Reporter, describe},
    qemu::Process,
};
use std::{
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{task::spawn_blocking, time::timeout};

/// How long the way back waits for the disk: it can be gone without the journal, but a guest may stand still.
const WAY_BACK: Duration = Duration::from_millis(500);

/// What the thread that writes the journal is told, and who waits for it.
enum Order {
    Append(Record, mpsc::Sender<Result<(), JournalError>>),
    /// The last: the journal is unlocked by it.
    Close(mpsc::Sender<()>),
}

/// What has been changed so far, and the journal that says so; the default keeps it in memory alone.
#[derive(Debug, Default)]
pub(crate) struct IntentLog {
    effects: Vec<Effect>,
    /// Whether the guest is to run wherever the migration ends, as it was noted last.
    runs: bool,
    journal: Option<File>,
}

/// The journal as it is written.
#[derive(Debug)]
struct File {
    orders: mpsc::Sender<Order>,
    path: PathBuf,
    /// It is left there whatever becomes of the migration: the user named it.
    keep: bool,
}

impl IntentLog {
    /// Begins a journal where one is to be kept, before anything is changed, and tells where.
    ///
    /// # Errors
    /// It could not be made or written.
    pub(crate) fn begin(
        settings: &Settings,
        sides: &QemuPair,
        route: &Route,
        report: &Reporter,
    ) -> Result<Self, JournalError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("{}.{:09}-{}", now.as_secs(), now.subsec_nanos(), std::process::id());
        let Some(path) = settings.journal_file(&id) else { return Ok(Self::default()) };
        let mut journal = Journal::create(&path)?;
        journal.append(&Record::Begun(Box::new(begun(settings, sides, route))))?;
        let because = format!("what is done is noted in {0}: should this die, run qferry recover {0}", path.display());
        report.action("journal", because);
        let keep = matches!(settings.journal, JournalPlace::File(_));
        Ok(Self { effects: Vec::new(), runs: sides.was_running, journal: Some(File::start(journal, keep)) })
    }

    /// Goes on where another engine died, with what it had changed, and whether the guest is to run.
    pub(crate) fn take_up(journal: Journal<Record>, effects: Vec<Effect>, runs: bool) -> Self {
        Self { effects, runs, journal: Some(File::start(journal, true)) }
    }

    /// What may have been changed and is not undone, in order.
    pub(crate) fn effects(&self) -> &[Effect] {
        &self.effects
    }

    /// Notes what is about to be brought about. Known in memory at once, so that the way back has it whatever becomes of
    /// the file.
    ///
    /// # Errors
    /// It could not be written: it must not be brought about.
    pub(crate) async fn note(&mut self, effects: impl IntoIterator<Item = Effect>) -> Result<(), Failure> {
        let effects: Vec<Effect> = effects.into_iter().collect();
        if effects.is_empty() {
            return Ok(());
        }
        self.effects.extend(effects.iter().cloned());
        self.write(Record::Effects(effects)).await
    }

    /// Notes whether the guest is to run, where its owner has changed that; on its way when this returns.
    ///
    /// # Errors
    /// It could not be written.
    pub(crate) fn guest(&mut self, runs: bool) -> impl Future<Output = Result<(), Failure>> + use<> {
        let changed = std::mem::replace(&mut self.runs, runs) != runs;
        let written = changed.then(|| self.write(Record::Guest { runs }));
        async {
            match written {
                Some(written) => written.await,
                None => Ok(()),
            }
        }
    }

    /// The same on the way back, as [`Self::tell`] does it.
    pub(crate) async fn tell_guest(&mut self, runs: bool, report: &Reporter) {
        on_the_way_back(self.guest(runs), report).await;
    }

    /// Notes that something is not there, or not any more.
    pub(crate) async fn undone(&mut self, effect: &Effect, report: &Reporter) {
        if let Some(at) = self.effects.iter().rposition(|one| one == effect) {
            let effect = self.effects.remove(at);
            self.tell(Record::Undone(effect), report).await;
        }
    }

    /// Writes a record of the way back, which is gone whatever becomes of the journal: every step of it can be taken twice,
    /// and a guest that stands still for the sake of a disk that is full, or hangs, would be worse.
    pub(crate) async fn tell(&self, record: Record, report: &Reporter) {
        on_the_way_back(self.write(record), report).await;
    }

    /// Writes the end. The file is then removed, unless it is the user's or something is left to be done, and unlocked: it may
    /// be taken up at once.
    pub(crate) async fn end(self, ended: Ended, report: &Reporter) {
        let settled = ended.is_settled();
        self.tell(Record::Ended(ended), report).await;
        let Some(File { orders, path, keep }) = self.journal else { return };
        if settled && !keep {
            // one that stays says that there is nothing left to be done
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "the journal stays");
            }
        }
        let (close, closed) = mpsc::channel();
        drop(orders.send(Order::Close(close)));
        if timeout(WAY_BACK, spawn_blocking(move || closed.recv())).await.is_err() {
            tracing::warn!(path = %path.display(), "the journal is locked yet: its disk does not answer");
        }
    }

    /// Writes a record, which is on its way when this returns, and waits until it is on the disk.
    ///
    /// # Errors
    /// It could not be written.
    pub(crate) fn write(&self, record: Record) -> impl Future<Output = Result<(), Failure>> + use<> {
        let written = self.journal.as_ref().map(|file| {
            let (waits, written) = mpsc::channel();
            // a writer that is gone drops both ends
            drop(file.orders.send(Order::Append(record, waits)));
            written
        });
        async move {
            let Some(written) = written else { return Ok(()) };
            match spawn_blocking(move || written.recv()).await {
                Ok(Ok(written)) => Ok(written?),
                // the writer, or the runtime
                Ok(Err(_)) | Err(_) => Err(JournalError::WriterDied.into()),
            }
        }
    }
}

async fn on_the_way_back(written: impl Future<Output = Result<(), Failure>>, report: &Reporter) {
    match timeout(WAY_BACK, written).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => report.warn("journal", describe(&failure)),
        Err(_) => report.warn("journal", format!("the journal was not written within {WAY_BACK:?}")),
    }
}

impl File {
    /// Starts the thread that writes it, which ends with the last order.
    fn start(mut journal: Journal<Record>, keep: bool) -> Self {
        let (orders, written) = mpsc::channel::<Order>();
        let path = journal.path().to_owned();
        thread::spawn(move || {
            for order in written {
                match order {
                    // nobody need wait any more
                    Order::Append(record, waits) => drop(waits.send(journal.append(&record).map(drop))),
                    Order::Close(waits) => {
                        drop(journal);
                        return drop(waits);
                    }
                }
            }
        });
        Self { orders, path, keep }
    }
}

/// What a recovery has to know.
fn begun(settings: &Settings, sides: &QemuPair, route: &Route) -> Begun {
    let party = |process: &Process| Party { address: process.name().address.clone(), process: process.identity() };
    Begun {
        source: party(&sides.source),
        destination: party(&sides.destination),
        was_running: sides.was_running,
        pairs: route.pairs.clone(),
        addresses: route.addresses.clone(),
        postcopy: settings.policy.may_postcopy(),
        keep_source: settings.keep_source,
        runtime_dir: settings.runtime_dir.clone(),
        fence_command: settings.fence_command.clone(),
        switchover_timeout: settings.switchover_limit(),
    }
}
