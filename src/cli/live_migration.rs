//! `qferry migrate --tui`: the live view of the engine's own migration, in place of its bars.

use super::{
    render,
    screen::{EngineFeed, EngineLimits, SessionEnd, ViewMode, ViewSession},
};
use crate::{
    migration::{Control, Events},
    progress::{Event, EventKind},
};
use std::{
    sync::mpsc::{Receiver, TryRecvError, sync_channel},
    thread,
    time::Instant,
};

/// The events that may wait for the view.
const QUEUE: usize = 1024;
/// The warnings that are repeated once the view is gone.
const WARNINGS: usize = 64;

/// Shows events until the last. Whoever leaves the view gets the bars.
pub(super) fn follow(mut events: Events, limits: EngineLimits, control: &Control) {
    let (sender, queue) = sync_channel(QUEUE);
    thread::spawn(move || {
        while let Some(event) = events.blocking_next() {
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    let rest = match ViewSession::begin(ViewMode::Migrate) {
        Ok(session) => show(session, EngineFeed::new(limits), &queue, control),
        Err(error) => {
            render::say(&format!("qferry: the terminal cannot be used for the view: {error}"));
            None
        }
    };
    let mut rest = rest.into_iter();
    render::follow_from(|| rest.next().or_else(|| queue.recv().ok()), false);
}

/// Shows the view; what it gives back has come and has not been shown.
fn show(mut session: ViewSession, mut feed: EngineFeed, queue: &Receiver<Event>, control: &Control) -> Option<Event> {
    let began = Instant::now();
    let mut warnings = Vec::new();
    let (last, lost) = loop {
        let next = loop {
            match queue.try_recv() {
                Ok(event) if matches!(event.kind, EventKind::Outcome(_)) => break Some(Some(event)),
                Ok(event) => {
                    if let EventKind::Warning { message, .. } = &event.kind {
                        warnings.push(format!("[{:>8.3}s] warning: {message}", event.t_ms as f64 / 1000.0));
                        warnings.truncate(WARNINGS);
                    }
                    feed.take(&event);
                }
                Err(TryRecvError::Empty) => break None,
                Err(TryRecvError::Disconnected) => break Some(None),
            }
        };
        if let Some(last) = next {
            break (last, None);
        }
        feed.at(began.elapsed());
        session.notes().iter().for_each(|note| feed.note(note));
        match session.step(feed.view()) {
            SessionEnd::None => {}
            SessionEnd::Interrupted => {
                control.cancel();
                feed.note("cancelling, as Ctrl-C asks; a guest that is handed over already goes on");
            }
            SessionEnd::Left => break (None, None),
            SessionEnd::Lost(error) => break (None, error),
        }
    };
    // gives the terminal back
    drop(session);
    warnings.iter().for_each(|warning| render::say(warning));
    if let Some(error) = lost {
        render::say(&format!("qferry: the view failed: {error}; the migration goes on"));
    }
    last
}
