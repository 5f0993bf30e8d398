//! The handle to one QMP connection.
//!
//! Owns the way in: greeting, negotiation and the queueing of commands in call order. It never touches the socket
//! afterwards (the connection task does), never retries, and never decides what a missing answer means.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{CloseCause, QmpConnection, QueuedCommand, TaskEnds};
use super::counters::ConnectionCounters;
use super::events::{EventStream, QmpEvent};
use super::frame::Greeting;
use super::pending::{ExecuteError, PendingReply, SendClaim};
use super::request::{EncodeError, QmpRequest};
use super::transcript::Recorder;
use super::waiters::id_of;

/// How a connection behaves.
#[derive(Clone, Debug)]
pub struct QmpOptions {
    /// What the transcript and the log call this connection, such as `source`.
    pub label: Arc<str>,
    /// How long to wait for the greeting, and again for the answer to the negotiation.
    pub greeting_deadline: Duration,
    /// Enable out-of-band execution if it is offered.
    pub oob: bool,
    /// Longest line accepted, in bytes. A longer one is thrown away and counted.
    pub max_line: usize,
    /// Longest event kept with its data, in bytes on the line. A longer one is passed on without data and counted. In
    /// memory `0,` takes 32 bytes and more, so this times `event_capacity` is not yet what a flood can cost.
    pub max_event: usize,
    /// How many events a subscriber may lag behind before it loses some; at least 1.
    pub event_capacity: usize,
    /// Where to record every line.
    pub recorder: Option<Recorder>,
}

impl Default for QmpOptions {
    fn default() -> Self {
        Self {
            label: "qemu".into(),
            greeting_deadline: Duration::from_secs(5),
            oob: true,
            max_line: 16 * 1024 * 1024,
            max_event: 4 * 1024, // the longest of a migration have some 200 bytes
            event_capacity: 1024,
            recorder: None,
        }
    }
}

impl QmpOptions {
    /// The defaults, under this label.
    pub fn labelled(label: impl Into<Arc<str>>) -> Self {
        Self { label: label.into(), ..Self::default() }
    }
}

/// Why no client could be made from a connected stream.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Connected, and then silence.
    #[error(
        "connected, but QEMU sent no greeting within {waited:?}: another client probably holds this monitor, which \
         serves one at a time; start QEMU with a further -qmp for qferry"
    )]
    Silent {
        /// How long the greeting was waited for.
        waited: Duration,
    },
    /// Something was said, but no greeting among it.
    #[error("connected, but within {waited:?} nothing that came was a QMP greeting: is this a QMP monitor?")]
    NotQmp {
        /// How long the greeting was waited for.
        waited: Duration,
    },
    /// The connection ended before the greeting.
    #[error("the connection ended before QEMU sent a greeting")]
    Ended(#[source] CloseCause),
    /// QEMU greeted, but the negotiation did not succeed.
    #[error("QEMU sent its greeting, but the negotiation of capabilities did not succeed")]
    Negotiation(#[source] ExecuteError),
}

/// A handle to one QMP connection. Clones share it; it closes when every clone, [`PendingReply`] and [`EventStream`] is gone.
#[derive(Clone)]
pub struct QmpClient {
    link: Arc<QmpLink>,
}

/// What every handle shares. It ends the connection task by being dropped.
#[derive(Debug)]
pub(super) struct QmpLink {
    label: Arc<str>,
    greeting: Option<Greeting>,
    oob: bool,
    serial: AtomicU64,
    jobs: mpsc::UnboundedSender<QueuedCommand>,
    events: broadcast::WeakSender<Arc<QmpEvent>>,
    /// Open since before the greeting, for the first subscriber, so that it misses nothing.
    first_events: Mutex<Option<broadcast::Receiver<Arc<QmpEvent>>>>,
    counters: watch::Receiver<ConnectionCounters>,
    waiting: watch::Receiver<Option<Instant>>,
    closed: watch::Receiver<Option<CloseCause>>,
}

impl QmpLink {
    /// What ended the connection; to be asked only when it has ended.
    pub(super) fn cause(&self) -> CloseCause {
        self.closed.borrow().clone().unwrap_or(CloseCause::Runtime)
    }
}

impl QmpClient {
    /// Makes a client of a stream just connected to a QMP monitor: waits for the greeting and negotiates.
    ///
    /// Events that arrive meanwhile are kept for the first subscriber.
    ///
    /// # Errors
    /// See [`ConnectError`]. Whatever the error, the stream is closed.
    pub async fn connect<S>(stream: S, options: QmpOptions) -> Result<Self, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let waited = options.greeting_deadline;
        let (mut link, mut connection) = wire(stream, &options);
        let greeting = match timeout(waited, connection.greeting()).await {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(cause)) => return Err(ConnectError::Ended(cause)),
            Err(_) if connection.is_silent() => return Err(ConnectError::Silent { waited }),
            Err(_) => return Err(ConnectError::NotQmp { waited }),
        };
        link.oob = options.oob && greeting.offers_oob();
        link.greeting = Some(greeting);
        let enable = link.oob.then_some(vec![qapi::qmp::QMPCapability::oob]);
        let client = Self { link: Arc::new(link) };
        tokio::spawn(connection.run());
        client.execute(&qapi::qmp::qmp_capabilities { enable }, waited).await.map_err(ConnectError::Negotiation)?;
        Ok(client)
    }

    /// Takes over a connection that someone else has greeted and negotiated; `oob` says whether out-of-band execution
    /// was enabled. Replies to earlier commands of theirs are counted as unknown.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn adopt<S>(stream: S, oob: bool, options: QmpOptions) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut link, connection) = wire(stream, &options);
        link.oob = oob;
        tokio::spawn(connection.run());
        drop(options);
        Self { link: Arc::new(link) }
    }

    /// Queues a command at once, in call order, and returns the future of its result.
    ///
    /// `deadline` counts from now, whether or not the future is polled: a command whose deadline has passed is not
    /// sent any more. A missed one is [`ExecuteError::NoReply`]. Several commands can be under way at the same time.
    pub fn start(&self, request: QmpRequest, deadline: Duration) -> PendingReply {
        self.queue(request, false, deadline)
    }

    /// [`QmpClient::start`] for a command of the `qapi` crate. Its typed reply is not offered, being too strict
    /// for the range of QEMU versions: read the members you need from the JSON.
    pub fn execute<C: qapi::Command>(&self, command: &C, deadline: Duration) -> PendingReply {
        match QmpRequest::new(command) {
            Ok(request) => self.start(request, deadline),
            Err(error) => self.refuse::<C>(error),
        }
    }

    /// Executes a command out of band: it overtakes every in-band command, also in a QEMU whose main loop is stuck.
    ///
    /// Resolves to [`ExecuteError::OobNotNegotiated`] when the connection has no out-of-band execution. A command
    /// that QEMU does not run out of band is rejected by the compiler:
    ///
    /// ```compile_fail,E0080
    /// # use {qferry::qmp::QmpClient, std::time::Duration};
    /// # fn example(client: &QmpClient) {
    /// drop(client.execute_oob(&qapi::qmp::query_status {}, Duration::from_secs(1)));
    /// # }
    /// # std::hint::black_box(example as fn(&QmpClient)); // the assertion is checked where code is made
    /// ```
    ///
    /// ```
    /// # use {qferry::qmp::QmpClient, std::time::Duration};
    /// # fn example(client: &QmpClient) {
    /// drop(client.execute_oob(&qapi::qmp::query_yank {}, Duration::from_secs(1)));
    /// # }
    /// # std::hint::black_box(example as fn(&QmpClient)); // the assertion is checked where code is made
    /// ```
    pub fn execute_oob<C: qapi::Command>(&self, command: &C, deadline: Duration) -> PendingReply {
        const { assert!(C::ALLOW_OOB, "QEMU does not run this command out of band") };
        match QmpRequest::new(command) {
            Ok(request) if self.link.oob => self.queue(request, true, deadline),
            Ok(_) => {
                let error = ExecuteError::OobNotNegotiated { command: C::NAME.into() };
                PendingReply::failed(self.link.clone(), C::NAME.into(), error)
            }
            Err(error) => self.refuse::<C>(error),
        }
    }

    /// Subscribes to events from now on. The first subscription also has those since the connection was made.
    pub fn subscribe(&self) -> EventStream {
        let first = self.link.first_events.lock().unwrap_or_else(PoisonError::into_inner).take();
        let receiver = first.or_else(|| Some(self.link.events.upgrade()?.subscribe()));
        EventStream::new(self.link.clone(), receiver)
    }

    /// Waits for the end of the connection and returns its cause.
    pub async fn closed(&self) -> CloseCause {
        let mut closed = self.link.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or(CloseCause::Runtime),
            Err(_) => CloseCause::Runtime,
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.link.closed.borrow().is_some() || self.link.closed.has_changed().is_err()
    }

    /// QEMU's greeting; `None` on an adopted connection.
    pub fn greeting(&self) -> Option<&Greeting> {
        self.link.greeting.as_ref()
    }

    /// Whether out-of-band execution was negotiated.
    pub fn oob(&self) -> bool {
        self.link.oob
    }

    /// What the connection has met so far.
    pub fn counters(&self) -> ConnectionCounters {
        *self.link.counters.borrow()
    }

    /// Waits until QEMU has left an in-band command unanswered for so long, whether or not its caller still waits: its main
    /// loop hangs, or it was frozen. For ever, once the connection has ended.
    pub async fn unanswered(&self, patience: Duration) {
        let mut waiting = self.link.waiting.clone();
        loop {
            let since = *waiting.borrow_and_update();
            let overdue = async {
                match since.and_then(|since| since.checked_add(patience)) {
                    Some(overdue) => sleep_until(overdue).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = overdue => return,
                changed = waiting.changed() => if changed.is_err() { std::future::pending().await }
            }
        }
    }

    fn queue(&self, request: QmpRequest, oob: bool, deadline: Duration) -> PendingReply {
        let serial = self.link.serial.fetch_add(1, Ordering::Relaxed);
        let id = id_of(request.name(), serial);
        let (command, message) = request.into_message(&id, oob);
        let started = Instant::now();
        let deadline = started.checked_add(deadline);
        let claim = Arc::new(SendClaim::default());
        let (reply, receiver) = oneshot::channel();
        let job =
            QueuedCommand { serial, id, command: command.clone(), oob, deadline, message, claim: claim.clone(), reply };
        // After the end of the connection the job comes straight back, and dropping it is what fails the caller.
        drop(self.link.jobs.send(job));
        PendingReply::waiting(self.link.clone(), command, (started, deadline), claim, receiver)
    }

    fn refuse<C: qapi::Command>(&self, error: EncodeError) -> PendingReply {
        PendingReply::failed(self.link.clone(), C::NAME.into(), ExecuteError::Encode(error))
    }
}

impl fmt::Debug for QmpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("label", &self.link.label)
            .field("oob", &self.link.oob)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// Joins the shared half and the task's half of a new connection.
fn wire<S>(stream: S, options: &QmpOptions) -> (QmpLink, QmpConnection<S>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (jobs, jobs_end) = mpsc::unbounded_channel();
    let capacity = options.event_capacity.clamp(1, 1 << 20);
    let (events_end, first_events) = broadcast::channel(capacity);
    let (counters_end, counters) = watch::channel(ConnectionCounters::default());
    let (waiting_end, waiting) = watch::channel(None);
    let (closed_end, closed) = watch::channel(None);
    let link = QmpLink {
        label: options.label.clone(),
        greeting: None,
        oob: false,
        serial: AtomicU64::new(1),
        jobs,
        events: events_end.downgrade(),
        first_events: Mutex::new(Some(first_events)),
        counters,
        waiting,
        closed,
    };
    let ends = TaskEnds {
        jobs: jobs_end,
        events: events_end,
        counters: counters_end,
        waiting: waiting_end,
        closed: closed_end,
    };
    (link, QmpConnection::new(stream, ends, options))
}
