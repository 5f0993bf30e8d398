//! The log for people, written by a thread of its own: a terminal or pipe that blocks or is gone must never hold the
//! engine up. What does not fit into the queue is lost.

use super::{screen, signals};
use std::{
    io::{self, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};
use tracing::Level;

/// Lines that may wait.
const QUEUE: usize = 4096;
/// How long the end of the command waits for the last lines.
const PATIENCE: Duration = Duration::from_millis(500);

enum Entry {
    Text(Vec<u8>),
    Done(SyncSender<()>),
}

/// The log; [`CommandLog::finish`] it before the process ends.
#[derive(Debug)]
pub struct CommandLog(SyncSender<Entry>);

impl CommandLog {
    /// Starts to log to stderr what is at least as grave as `level`.
    pub fn start(level: Level) -> Self {
        // before the first thread: each inherits the block
        signals::block_those_of_a_terminal();
        let (queue, entries) = sync_channel(QUEUE);
        thread::spawn(move || write(&entries));
        let writer = queue.clone();
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(move || Line(writer.clone()))
            // it would be told on the very stderr that failed, with a panic
            .log_internal_errors(false)
            .init();
        Self(queue)
    }

    /// Waits, not for long, until what was logged is written.
    pub fn finish(&self) {
        let (done, written) = sync_channel(1);
        if self.0.try_send(Entry::Done(done)).is_ok() {
            // a stderr that blocks is not waited for
            written.recv_timeout(PATIENCE).ok();
        }
    }
}

fn write(entries: &Receiver<Entry>) {
    for entry in entries {
        match entry {
            // a reader that went away is no reason to stop
            Entry::Text(text) => {
                if !screen::take_note(&without_colours(&String::from_utf8_lossy(&text))) {
                    drop(io::stderr().write_all(&text));
                }
            }
            Entry::Done(done) => drop(done.try_send(())),
        }
    }
}

/// A line without the sequences that switch colours.
fn without_colours(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or(part, |(_, rest)| rest)).trim_end().to_owned()
}

struct Line(SyncSender<Entry>);

impl Write for Line {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        drop(self.0.try_send(Entry::Text(text.to_vec())));
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
