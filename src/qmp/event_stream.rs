//! A subscriber's view of the events of one connection.
//!
//! The module owns the subscription. A slow subscriber loses events and is told so; it can never delay a reply or
//! another subscriber.

use std::fmt;
use std::sync::Arc;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::event::QmpEvent;
use super::link::{CloseCause, QmpLink};

/// One item of an [`EventStream`].
#[derive(Clone, Debug)]
pub enum StreamItem {
    /// An event.
    Event(Arc<QmpEvent>),
    /// Number of events that were lost because the subscriber was slow. Query again: events are only hints.
    Lagged(u64),
    /// End of the connection; every further item says the same.
    Closed(CloseCause),
}

/// A subscription to the events of a connection. The connection stays open as long as a subscription lives.
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
        StreamItem::Closed(self.link.close_cause())
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").field("ended", &self.receiver.is_none()).finish_non_exhaustive()
    }
}
