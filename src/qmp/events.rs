//! Events, fanned out.
//!
//! Owns the stamps on an event and a subscriber's view of the stream. It never decodes an event: names and data pass
//! as they came. A slow subscriber loses events and is told so; it can never delay a reply or another subscriber.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::client::QmpLink;
use super::connection::CloseCause;
use super::frame::EventFrame;

/// An event with the stamps of its receipt.
#[derive(Clone, Debug, PartialEq)]
pub struct QmpEvent {
    /// Its number on this connection, from 0, without gaps.
    pub sequence: u64,
    /// When this process read it; for measuring spans.
    pub received: Instant,
    /// The same moment on the wall clock; for comparing with logs.
    pub received_wall: SystemTime,
    /// QEMU's own clock when it emitted the event, since the Unix epoch, if it could read it. QEMU's host may differ
    /// from ours.
    pub emitted: Option<Duration>,
    /// QEMU's name for it, such as `BLOCK_JOB_READY`. Any name can occur.
    pub name: String,
    /// Its data; `Null` when it has none. Any member can be missing, any enum value unknown.
    pub data: Value,
}

impl QmpEvent {
    pub(super) fn stamp(sequence: u64, frame: EventFrame) -> Self {
        Self {
            sequence,
            received: tokio::time::Instant::now().into_std(),
            received_wall: SystemTime::now(),
            emitted: frame.timestamp,
            name: frame.name,
            data: frame.data,
        }
    }
}

/// What a subscription yields.
#[derive(Clone, Debug)]
pub enum StreamItem {
    /// An event.
    Event(Arc<QmpEvent>),
    /// This many events were lost because the subscriber was slow. Query again: events are only hints.
    Lagged(u64),
    /// The connection has ended; every further item says the same.
    Closed(CloseCause),
}

/// A subscription. It keeps the connection open.
pub struct EventStream {
    receiver: Option<broadcast::Receiver<Arc<QmpEvent>>>,
    link: Arc<QmpLink>,
}

impl EventStream {
    pub(super) fn new(link: Arc<QmpLink>, receiver: Option<broadcast::Receiver<Arc<QmpEvent>>>) -> Self {
        Self { receiver, link }
    }

    /// The next item. Events that arrived before the end of the connection come before [`StreamItem::Closed`].
    ///
    /// Cancel-safe: dropping the future loses nothing.
    pub async fn next(&mut self) -> StreamItem {
        if let Some(receiver) = &mut self.receiver {
            match receiver.recv().await {
                Ok(event) => return StreamItem::Event(event),
                Err(RecvError::Lagged(missed)) => return StreamItem::Lagged(missed),
                Err(RecvError::Closed) => self.receiver = None,
            }
        }
        StreamItem::Closed(self.link.cause())
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("ended", &self.receiver.is_none()).finish_non_exhaustive()
    }
}
