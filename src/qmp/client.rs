//! The handle to one QMP connection.
//!
//! The module owns the way in: greeting, negotiation and the queueing of commands in call order. A handle never touches
//! the socket after the greeting (the connection task does), never retries, and never decides what a missing answer
//! means.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::claim::SendClaim;
use super::connection::QmpConnection;
use super::counters::ConnectionCounters;
use super::event_stream::EventStream;
use super::frame::Greeting;
use super::link::{CloseCause, QmpLink, QueuedCommand, open_channels};
use super::options::QmpOptions;
use super::pending::{ExecuteError, PendingReply};
use super::request::{EncodeError, QmpRequest};
use super::waiters::id_of;

/// Reason why a connected stream did not become a client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// QEMU sent nothing at all.
    #[error(
        "connected, but QEMU sent no greeting within {waited:?}: another client probably holds this monitor, which \
         serves one client at a time; start QEMU with a further -qmp for qferry"
    )]
    Silent {
        /// Time that the client waited for the greeting.
        waited: Duration,
    },
    /// The peer sent something, but no greeting.
    #[error("connected, but this is no QMP monitor: the peer sent no greeting within {waited:?}, but \"{said}\"")]
    NotQmp {
        /// Time that the client waited for the greeting.
        waited: Duration,
        /// What the peer said instead, in part and on one line.
        said: String,
    },
    /// The connection ended before the greeting.
    #[error("the connection ended before QEMU sent a greeting")]
    Ended(#[source] CloseCause),
    /// QEMU greeted, but the negotiation did not succeed.
    #[error("QEMU sent its greeting, but the negotiation of capabilities did not succeed")]
    Negotiation(#[source] ExecuteError),
}

/// A handle to one QMP connection. Clones share the connection, which closes when the last clone, [`PendingReply`] and
/// [`EventStream`] is dropped.
#[derive(Clone)]
pub struct QmpClient {
    link: Arc<QmpLink>,
}

impl QmpClient {
    /// Makes a client of a stream just connected to a QMP monitor: waits for the greeting and negotiates capabilities.
    ///
    /// Events that arrive meanwhile are kept for the first subscriber.
    ///
    /// # Errors
    /// See [`ConnectError`]. Every error closes the stream.
    pub async fn connect<S>(stream: S, options: QmpOptions) -> Result<Self, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let waited = options.greeting_deadline;
        let (mut link, ends) = open_channels(&options);
        let mut connection = QmpConnection::new(stream, ends, &options);
        let greeting = match timeout(waited, connection.read_greeting()).await {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(cause)) => return Err(ConnectError::Ended(cause)),
            Err(_) if connection.is_silent() => return Err(ConnectError::Silent { waited }),
            Err(_) => return Err(ConnectError::NotQmp { waited, said: connection.first_words() }),
        };
        link.oob = options.oob && greeting.offers_oob();
        link.greeting = Some(greeting);
        let enable = link.oob.then_some(vec![qapi::qmp::QMPCapability::oob]);
        let client = Self { link: Arc::new(link) };
        tokio::spawn(connection.run());
        client.execute(&qapi::qmp::qmp_capabilities { enable }, waited).await.map_err(ConnectError::Negotiation)?;
        Ok(client)
    }

    /// Takes over a connection on which another client has finished the negotiation; `oob` says whether out-of-band
    /// execution was enabled. Replies to that client's commands are counted as unknown.
    ///
    /// # Panics
    /// When called outside of a tokio runtime.
    pub fn adopt<S>(stream: S, oob: bool, options: QmpOptions) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut link, ends) = open_channels(&options);
        let connection = QmpConnection::new(stream, ends, &options);
        link.oob = oob;
        tokio::spawn(connection.run());
        drop(options);
        Self { link: Arc::new(link) }
    }

    /// Queues a command at once, in call order, and returns the future of its result.
    ///
    /// `deadline` counts from now, whether or not the future is polled: a command whose deadline has passed is not
    /// sent any more. A missed deadline is [`ExecuteError::NoReply`]. Several commands can be under way at the same
    /// time.
    pub fn start(&self, request: QmpRequest, deadline: Duration) -> PendingReply {
        self.queue(request, deadline, false, false)
    }

    /// [`QmpClient::start`] for a command of the `qapi` crate. The crate's typed reply is not offered, because it is
    /// too strict for the range of QEMU versions: read the members you need from the JSON.
    pub fn execute<C: qapi::Command>(&self, command: &C, deadline: Duration) -> PendingReply {
        match QmpRequest::new(command) {
            Ok(request) => self.start(request, deadline),
            Err(error) => self.refuse::<C>(error),
        }
    }

    /// [`QmpClient::execute`] for an answer so long that taking it apart member by member costs more than all else: the
    /// reply is a JSON string, and the string is the line that QEMU sent, `return` and all. Nobody has looked whether
    /// the line is JSON. An answer that does not end with its id comes as its value.
    pub fn execute_unread<C: qapi::Command>(&self, command: &C, deadline: Duration) -> PendingReply {
        match QmpRequest::new(command) {
            Ok(request) => self.queue(request, deadline, false, true),
            Err(error) => self.refuse::<C>(error),
        }
    }

    /// Executes a command out of band: the command overtakes every in-band command, also in a QEMU whose main loop is
    /// stuck.
    ///
    /// The result is [`ExecuteError::OobNotNegotiated`] when the connection has no out-of-band execution. The compiler
    /// rejects a command that QEMU does not run out of band:
    ///
    /// ```compile_fail,E0080
    /// # use {qferry::internals::qmp::QmpClient, std::time::Duration};
    /// # fn example(client: &QmpClient) {
    /// drop(client.execute_oob(&qapi::qmp::query_status {}, Duration::from_secs(1)));
    /// # }
    /// # std::hint::black_box(example as fn(&QmpClient)); // the assertion is checked where code is made
    /// ```
    ///
    /// ```
    /// # use {qferry::internals::qmp::QmpClient, std::time::Duration};
    /// # fn example(client: &QmpClient) {
    /// drop(client.execute_oob(&qapi::qmp::query_yank {}, Duration::from_secs(1)));
    /// # }
    /// # std::hint::black_box(example as fn(&QmpClient)); // the assertion is checked where code is made
    /// ```
    pub fn execute_oob<C: qapi::Command>(&self, command: &C, deadline: Duration) -> PendingReply {
        const { assert!(C::ALLOW_OOB, "QEMU does not run this command out of band") };
        match QmpRequest::new(command) {
            Ok(request) if self.link.oob => self.queue(request, deadline, true, false),
            Ok(_) => {
                let error = ExecuteError::OobNotNegotiated { command: C::NAME.into() };
                PendingReply::failed(self.link.clone(), C::NAME.into(), error)
            }
            Err(error) => self.refuse::<C>(error),
        }
    }

    /// Subscribes to events from now on. The first subscription also has the events since the connection was made.
    pub fn subscribe(&self) -> EventStream {
        let first = self.link.first_events.lock().unwrap_or_else(PoisonError::into_inner).take();
        let receiver = first.or_else(|| Some(self.link.events.upgrade()?.subscribe()));
        EventStream::new(self.link.clone(), receiver)
    }

    /// Waits for the end of the connection and returns its cause.
    pub async fn wait_closed(&self) -> CloseCause {
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

    /// Totals of the connection so far.
    pub fn counters(&self) -> ConnectionCounters {
        *self.link.counters.borrow()
    }

    /// Waits until QEMU has left an in-band command unanswered for `patience`, whether or not the caller of that
    /// command still waits: QEMU's main loop hangs, or its process is frozen. The future never resolves once the
    /// connection has ended.
    pub async fn wait_unanswered(&self, patience: Duration) {
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

    fn queue(&self, request: QmpRequest, deadline: Duration, oob: bool, unread: bool) -> PendingReply {
        let serial = self.link.serial.fetch_add(1, Ordering::Relaxed);
        let id = id_of(request.name(), serial);
        let (command, message) = request.into_message(&id, oob);
        let started = Instant::now();
        let deadline = started.checked_add(deadline);
        let claim = Arc::new(SendClaim::default());
        let (reply, receiver) = oneshot::channel();
        let queued = QueuedCommand {
            serial,
            id,
            command: command.clone(),
            oob,
            deadline,
            message,
            unread,
            claim: claim.clone(),
            reply,
        };
        // After the end of the connection `send` hands the command back, and dropping it fails the caller.
        drop(self.link.commands.send(Box::new(queued)));
        PendingReply::waiting(self.link.clone(), command, (started, deadline), claim, receiver)
    }

    fn refuse<C: qapi::Command>(&self, error: EncodeError) -> PendingReply {
        PendingReply::failed(self.link.clone(), C::NAME.into(), ExecuteError::Encode(error))
    }
}

impl fmt::Debug for QmpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QmpClient")
            .field("label", &self.link.label)
            .field("oob", &self.link.oob)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
