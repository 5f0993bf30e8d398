//! The channels between the handles of a connection and the task that owns its socket.
//!
//! The module owns both halves: [`QmpLink`] for the handles, [`TaskEnds`] for the task. Dropping the last [`QmpLink`]
//! ends the task. The module never touches the socket.

use std::borrow::Cow;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::claim::SendClaim;
use super::counters::ConnectionCounters;
use super::event::QmpEvent;
use super::frame::{ErrorReply, Greeting};
use super::options::QmpOptions;

/// Cause of the end of a connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CloseCause {
    /// The peer closed the connection: QEMU has exited, or dropped the monitor.
    #[error("QEMU closed the connection")]
    EndOfStream,
    /// Reading or writing failed.
    #[error("the connection to QEMU failed")]
    Io(#[source] Arc<io::Error>),
    /// The task that served the connection is dead, because its runtime shut down.
    #[error("the runtime that served the connection has shut down")]
    Runtime,
}

/// A command on its way from a handle to the task.
#[derive(Debug)]
pub(super) struct QueuedCommand {
    pub(super) serial: u64,
    pub(super) id: String,
    pub(super) command: Cow<'static, str>,
    pub(super) oob: bool,
    /// Time after which the command must not be sent any more, even if its caller has not polled yet.
    pub(super) deadline: Option<Instant>,
    pub(super) message: Value,
    /// Whether the caller reads the line of the answer alone.
    pub(super) unread: bool,
    pub(super) claim: Arc<SendClaim>,
    pub(super) reply: oneshot::Sender<Result<Value, ErrorReply>>,
}

/// The state that every handle of a connection shares.
#[derive(Debug)]
pub(super) struct QmpLink {
    pub(super) label: Arc<str>,
    pub(super) greeting: Option<Greeting>,
    pub(super) oob: bool,
    pub(super) serial: AtomicU64,
    pub(super) commands: mpsc::UnboundedSender<Box<QueuedCommand>>,
    pub(super) events: broadcast::WeakSender<Arc<QmpEvent>>,
    /// Receiver from before the greeting, for the first subscriber, who therefore misses no event.
    pub(super) first_events: Mutex<Option<broadcast::Receiver<Arc<QmpEvent>>>>,
    pub(super) counters: watch::Receiver<ConnectionCounters>,
    pub(super) waiting: watch::Receiver<Option<Instant>>,
    pub(super) closed: watch::Receiver<Option<CloseCause>>,
}

impl QmpLink {
    /// Cause of the end of the connection; meaningful only after that end.
    pub(super) fn close_cause(&self) -> CloseCause {
        self.closed.borrow().clone().unwrap_or(CloseCause::Runtime)
    }
}

/// The task's ends of the channels of a [`QmpLink`].
#[derive(Debug)]
pub(super) struct TaskEnds {
    /// Boxed, because the channel keeps room for many.
    pub(super) commands: mpsc::UnboundedReceiver<Box<QueuedCommand>>,
    pub(super) events: broadcast::Sender<Arc<QmpEvent>>,
    pub(super) counters: watch::Sender<ConnectionCounters>,
    /// Time at which the oldest in-band command without an answer was sent.
    pub(super) waiting: watch::Sender<Option<Instant>>,
    pub(super) closed: watch::Sender<Option<CloseCause>>,
}

/// Makes the channels of a new connection.
pub(super) fn open_channels(options: &QmpOptions) -> (QmpLink, TaskEnds) {
    let (commands, commands_end) = mpsc::unbounded_channel();
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
        commands,
        events: events_end.downgrade(),
        first_events: Mutex::new(Some(first_events)),
        counters,
        waiting,
        closed,
    };
    let ends = TaskEnds {
        commands: commands_end,
        events: events_end,
        counters: counters_end,
        waiting: waiting_end,
        closed: closed_end,
    };
    (link, ends)
}
