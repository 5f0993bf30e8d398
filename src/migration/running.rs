//! What an embedder holds of the engine at work: how it goes, how it is cancelled, and how it ended.
//!
//! The engine has a thread and a runtime of its own, unless the embedder insists on its own runtime: a task that
//! blocks a runtime holds up everything on it, and a guest may stand still meanwhile. Nothing here may panic in the
//! embedder's code, and nothing may wait for a reader.

use super::{panics, snapshot::Progress, validate::Invalid};
use crate::{
    progress::{Event, EventKind, EventSink, PhaseState, Reporter},
    qmp::Recorder,
};
use std::{
    fmt,
    panic::catch_unwind,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};
use tokio::{
    runtime,
    sync::{broadcast, watch},
};

/// Events kept for a reader that is slow: of some seconds. Room for them is taken at once, and a process may run a
/// thousand migrations.
const EVENTS: usize = 128;

/// Work of the engine.
pub(crate) type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What turns true, or closes, when the user cancels.
pub(crate) type Cancelled = watch::Receiver<bool>;

/// What is done once a panic, whose words come first, has thrown the work away.
pub(crate) type AfterPanic<T> = Box<dyn FnOnce(String, Reporter, Cancelled) -> Work<T> + Send>;

/// What the engine is to do, and what it does after a panic.
pub(crate) trait EngineJob: Send + 'static {
    /// What it ends with.
    type Ended: Clone + Send + 'static;

    /// The work itself.
    fn work(self, report: Reporter, cancel: Cancelled) -> Work<Self::Ended>;

    /// What is to be done after a panic.
    fn after_panic(&self) -> AfterPanic<Self::Ended>;

    /// What the job ends with where its runtime was shut down under it, or where it was never begun.
    fn lost(begun: bool, report: &Reporter) -> Self::Ended;

    /// The transcript, which has every event beside the lines of the monitors.
    fn recorder(&self) -> Option<Recorder> {
        None
    }

    /// What the job is to panic at when it reports it, for the tests of this repository.
    fn panic_at(&self) -> Option<&str> {
        None
    }
}

/// The engine at work on a migration, a check, a recovery or a preparation, which ends with `T`.
///
/// Dropping it cancels: the engine then goes back in the background, as long as the process lives. To know how that
/// ends, cancel with [`Self::control`] and wait.
pub struct Running<T> {
    ended: Arc<Slot<T>>,
    control: Control,
    /// The reader that has every event, until the first call takes it.
    first: Mutex<Option<broadcast::Receiver<Event>>>,
    /// What later readers are made from; nothing is read from it.
    later: broadcast::Receiver<Event>,
    progress: Arc<Mutex<Progress>>,
}

impl<T: Clone + Send + 'static> Running<T> {
    /// Starts the job on a thread and a runtime of its own.
    pub(crate) fn on_a_thread<J: EngineJob<Ended = T>>(job: J) -> Self {
        let (running, task) = prepare(job);
        // a thread that cannot be started drops the task, and with that fills the slot
        let spawned = thread::Builder::new().name("qferry".to_owned()).spawn(move || {
            let Ok(runtime) = runtime::Builder::new_current_thread().enable_all().build() else { return };
            let BackgroundTask { promise, work } = task;
            promise.begin();
            let ended = runtime.block_on(work);
            // the connections close now; a journal whose disk hangs is not waited for
            runtime.shutdown_background();
            promise.keep(ended);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "the engine's thread cannot be started");
        }
        running
    }

    /// Starts the job on the runtime that the caller is in.
    pub(crate) fn on_the_current_runtime<J: EngineJob<Ended = T>>(job: J) -> Result<Self, Invalid> {
        let expected = "call it within a tokio runtime that was built with enable_all, or start without `_here`";
        let handle = runtime::Handle::try_current().map_err(|_| Invalid::one("runtime", "none", expected))?;
        // tokio tells of a driver that is missing by a panic alone
        let drivers = || (tokio::time::sleep(Duration::ZERO), tokio::net::UnixStream::pair().is_ok());
        if catch_unwind(|| drop(drivers())).is_err() {
            return Err(Invalid::one("runtime", "a tokio runtime without its drivers for time and I/O", expected));
        }
        Ok(Self::on_runtime(job, &handle))
    }

    /// Starts the job on a runtime that is there.
    fn on_runtime<J: EngineJob<Ended = T>>(job: J, runtime: &runtime::Handle) -> Self {
        let (running, BackgroundTask { promise, work }) = prepare(job);
        drop(runtime.spawn(async move {
            promise.begin();
            let ended = work.await;
            promise.keep(ended);
        }));
        running
    }

    /// Waits for the end, on any runtime or none. The call may be dropped and made again, also after the end.
    pub async fn wait(&mut self) -> T {
        loop {
            let mut filled = self.ended.filled.subscribe();
            if let Some(ended) = lock(&self.ended.value).clone() {
                return ended;
            }
            // the slot keeps the sender, so this waits until it is filled
            drop(filled.changed().await);
        }
    }

    /// Calls `each` with every event, and blocks the thread to the end.
    pub(crate) fn follow_blocking(mut self, mut each: impl FnMut(&Event)) -> T {
        let mut events = self.events();
        while let Some(event) = events.blocking_next() {
            each(&event);
        }
        self.wait_blocking()
    }

    /// Waits for the end, and blocks the thread meanwhile.
    pub fn wait_blocking(&mut self) -> T {
        let mut value = lock(&self.ended.value);
        loop {
            if let Some(ended) = value.clone() {
                return ended;
            }
            value = self.ended.condition.wait(value).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Running<T> {
    /// Something to steer it with from elsewhere.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The events: from the first one on the first call, from now on in later ones. The engine never waits for a
    /// reader.
    pub fn events(&self) -> Events {
        Events(lock(&self.first).take().unwrap_or_else(|| self.later.resubscribe()))
    }

    /// How far it is, as its events have said so far.
    pub fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.control.cancel();
    }
}

impl<T> fmt::Debug for Running<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("ended", &*self.ended.filled.borrow()).finish_non_exhaustive()
    }
}

/// Steers a running migration, check, recovery or preparation.
#[derive(Debug, Clone)]
pub struct Control(watch::Sender<bool>);

impl Control {
    /// Asks to give up and go back; harmless when said twice, or after the end. A migration that hands the guest over
    /// already ends as it does.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }
}

/// The events of a running migration, check, recovery or preparation.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next event, on any runtime or none; `None` after the last. The last event of a migration or a recovery is
    /// its outcome. A reader that falls far behind misses the oldest.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "events were not read in time")
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// The same for a thread of its own, which is blocked meanwhile.
    pub fn blocking_next(&mut self) -> Option<Event> {
        block_on(self.next())
    }
}

/// Where the end is put, for as many as wait.
struct Slot<T> {
    value: Mutex<Option<T>>,
    /// For those that block.
    condition: Condvar,
    /// For those that await.
    filled: watch::Sender<bool>,
}

/// Fills the slot, also where the runtime throws the work away.
struct Promise<J: EngineJob> {
    ended: Arc<Slot<J::Ended>>,
    report: Reporter,
    begun: AtomicBool,
}

impl<J: EngineJob> Promise<J> {
    fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    fn keep(&self, ended: J::Ended) {
        lock(&self.ended.value).get_or_insert(ended);
        self.ended.condition.notify_all();
        self.ended.filled.send_replace(true);
    }
}

impl<J: EngineJob> Drop for Promise<J> {
    fn drop(&mut self) {
        if !*self.ended.filled.borrow() {
            let begun = self.begun.load(Ordering::Relaxed);
            self.keep(J::lost(begun, &self.report));
        }
    }
}

struct BackgroundTask<J: EngineJob> {
    promise: Promise<J>,
    work: Work<J::Ended>,
}

fn prepare<J: EngineJob>(job: J) -> (Running<J::Ended>, BackgroundTask<J>) {
    let (sender, receiver) = broadcast::channel(EVENTS);
    let (cancel, cancelled) = watch::channel(false);
    let progress = Arc::new(Mutex::new(Progress::default()));
    let panic_at = Mutex::new(job.panic_at().map(str::to_owned));
    let recorder = job.recorder();
    let report = Reporter::new(Arc::new(Broadcast { events: sender, progress: progress.clone(), recorder, panic_at }));
    let ended =
        Arc::new(Slot { value: Mutex::new(None), condition: Condvar::new(), filled: watch::Sender::new(false) });
    let (reporter, after_panic) = (report.clone(), job.after_panic());
    let work = Box::pin(async move {
        match panics::caught(job.work(reporter.clone(), cancelled.clone())).await {
            Ok(ended) => ended,
            Err(words) => match panics::caught(after_panic(words, reporter.clone(), cancelled)).await {
                Ok(ended) => ended,
                Err(_) => J::lost(true, &reporter),
            },
        }
    });
    let promise = Promise { ended: ended.clone(), report, begun: false.into() };
    let (first, later) = (Mutex::new(Some(receiver.resubscribe())), receiver);
    (Running { ended, control: Control(cancel), first, later, progress }, BackgroundTask { promise, work })
}

/// Hands events to those that listen.
struct Broadcast {
    events: broadcast::Sender<Event>,
    progress: Arc<Mutex<Progress>>,
    recorder: Option<Recorder>,
    /// What the engine panics at, once.
    panic_at: Mutex<Option<String>>,
}

impl EventSink for Broadcast {
    fn emit(&self, event: &Event) {
        lock(&self.progress).add(event);
        if let Some(recorder) = &self.recorder {
            recorder.record_event(event);
        }
        // nobody may be listening
        drop(self.events.send(event.clone()));
        let planned = lock(&self.panic_at).take_if(|moment| *moment == moment_of(event));
        if let Some(moment) = planned {
            panic!("a test wants a panic at {moment}");
        }
    }
}

/// What an event reports, in a word or two.
fn moment_of(event: &Event) -> String {
    match &event.kind {
        EventKind::Phase { phase, state: PhaseState::Begin } => format!("{phase} begin"),
        EventKind::Phase { phase, state: PhaseState::End } => format!("{phase} end"),
        EventKind::Action { action, .. } => action.clone(),
        EventKind::Warning { code, .. } => code.clone(),
        _ => String::new(),
    }
}

/// A value whose lock a panic has left behind is whole: each is written at once.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Blocks the thread until the future is ready. A runtime's own `block_on` panics where the thread is a runtime's.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    // a task's budget of polls is given anew by its runtime alone, which waits for this
    let mut future = std::pin::pin!(tokio::task::unconstrained(future));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(ready) => return ready,
            Poll::Pending => thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Reason;

    /// Waits for a cancel, panics, or is thrown away.
    enum Does {
        WaitForCancel,
        Panic,
        Forever,
    }

    impl EngineJob for Does {
        type Ended = String;

        fn work(self, report: Reporter, mut cancel: Cancelled) -> Work<String> {
            Box::pin(async move {
                report.warn("begun", "begun");
                match self {
                    Self::WaitForCancel => drop(cancel.wait_for(|cancelled| *cancelled).await),
                    Self::Panic => panic!("the {}th wheel", 5),
                    Self::Forever => std::future::pending().await,
                }
                "cancelled".to_owned()
            })
        }

        fn after_panic(&self) -> AfterPanic<String> {
            Box::new(|words, _, _| Box::pin(async move { format!("judged after: {words}") }))
        }

        fn lost(begun: bool, _: &Reporter) -> String {
            format!("lost, begun: {begun}")
        }
    }

    #[test]
    fn work_starts_and_ends_without_a_runtime() {
        let mut running = Running::on_a_thread(Does::WaitForCancel);
        let mut events = running.events();
        let is_first = |event: Option<Event>| matches!(event.map(|event| event.kind), Some(EventKind::Warning { .. }));
        assert!(is_first(events.blocking_next()));
        running.control().cancel();
        assert_eq!(running.wait_blocking(), "cancelled");
        assert_eq!(events.blocking_next(), None);
        // again, after the end, in either way
        assert_eq!(
            (running.wait_blocking(), block_on(running.wait())),
            ("cancelled".to_owned(), "cancelled".to_owned())
        );
        assert_eq!(running.events().blocking_next(), None);
    }

    #[tokio::test]
    async fn blocking_calls_do_not_panic_within_a_runtime() {
        let mut running = Running::on_a_thread(Does::WaitForCancel);
        assert!(running.events().blocking_next().is_some());
        // a wait that is dropped is no end
        assert!(tokio::time::timeout(Duration::from_millis(1), running.wait()).await.is_err());
        running.control().cancel();
        assert_eq!(running.wait_blocking(), "cancelled");
        assert_eq!(running.wait().await, "cancelled");
    }

    #[test]
    fn a_panic_is_judged_and_waiting_never_panics() {
        let mut running = Running::on_a_thread(Does::Panic);
        assert_eq!(running.wait_blocking(), "judged after: the 5th wheel");
    }

    #[test]
    fn a_runtime_that_is_shut_down_is_told() {
        let runtime = runtime::Builder::new_current_thread().build().unwrap();
        let mut running = Running::on_runtime(Does::Forever, runtime.handle());
        runtime.block_on(tokio::task::yield_now());
        drop(runtime);
        assert_eq!(running.wait_blocking(), "lost, begun: true");
    }

    #[test]
    fn dropping_cancels() {
        let running = Running::on_a_thread(Does::WaitForCancel);
        let mut events = running.events();
        drop(running);
        while events.blocking_next().is_some() {}
    }

    #[test]
    fn a_reason_can_be_told_from_any_thread() {
        fn is_sendable<T: Send + Sync>() {}
        is_sendable::<Running<Result<String, Reason>>>();
        is_sendable::<Control>();
        is_sendable::<Events>();
    }
}
