//! Work in the background that tells events and can be cancelled.

use crate::progress::{Event, Reporter, Sink};
use std::sync::Arc;
use tokio::{
    sync::{broadcast, watch},
    task::JoinHandle,
};

/// Events kept for a reader that is slow; a migration makes a few each second.
const EVENTS: usize = 1024;

/// Something that runs, reports events, and can be cancelled.
#[derive(Debug)]
pub(crate) struct BackgroundTask<T> {
    running: JoinHandle<T>,
    pub(crate) cancel: Canceller,
    events: Option<Events>,
}

impl<T: Send + 'static> BackgroundTask<T> {
    pub(crate) fn start<F: Future<Output = T> + Send + 'static>(
        work: impl FnOnce(Reporter, watch::Receiver<bool>) -> F,
    ) -> Self {
        let (sender, receiver) = broadcast::channel(EVENTS);
        let (cancel, cancelled) = watch::channel(false);
        let running = tokio::spawn(work(Reporter::new(Arc::new(Broadcast(sender))), cancelled));
        Self { running, cancel: Canceller(cancel), events: Some(Events(receiver)) }
    }

    pub(crate) async fn wait(mut self) -> T {
        match (&mut self.running).await {
            Ok(ended) => ended,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => panic!("the runtime was shut down under it: {error}"),
        }
    }
}

impl<T> BackgroundTask<T> {
    pub(crate) fn events(&mut self) -> Events {
        match self.events.take() {
            Some(events) => {
                // the place of the next reader
                self.events = Some(Events(events.0.resubscribe()));
                events
            }
            None => Events(broadcast::channel(1).1),
        }
    }
}

impl<T> Drop for BackgroundTask<T> {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Cancels a migration, a look at both sides, or a preparation.
#[derive(Debug, Clone)]
pub struct Canceller(watch::Sender<bool>);

impl Canceller {
    /// As [`Migration::cancel`](super::Migration::cancel); harmless when said twice, or after the end.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }
}

/// A migration's events.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next event; `None` after the last, which is the outcome. A reader that falls far behind misses the oldest.
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

    /// The same for a thread of its own, outside of the runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        loop {
            match self.0.blocking_recv() {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "events were not read in time")
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// Hands events to whoever listens; a slow listener never holds the engine up.
struct Broadcast(broadcast::Sender<Event>);

impl Sink for Broadcast {
    fn emit(&self, event: &Event) {
        // nobody may be listening
        drop(self.0.send(event.clone()));
    }
}
