//! The one task that owns a QMP socket.
//!
//! Reads, writes and takes commands at the same time: a write that blocks never stops reading, and nothing a peer
//! sends ends the connection but its end of stream or an I/O error. It must never wait for a subscriber, a caller or
//! the disk, and everything it keeps for the peer is bounded.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::client::QmpOptions;
use super::counters::ConnectionCounters;
use super::events::QmpEvent;
use super::frame::{self, ErrorReply, EventFrame, FrameError, Greeting, LineCut, LineCutter, QmpFrame, ReplyFrame};
use super::pending::SendClaim;
use super::transcript::{LineDirection, Recorder};
use super::waiters::{ReplyMatch, ReplyWaiter, ReplyWaiters};

/// Most in-band commands QEMU is given before it has answered. At 8 it stops reading its monitor, and then an
/// out-of-band command could not get in either.
const IN_BAND_LIMIT: usize = 7;

/// How long to read on after a failed write, for the last words of a QEMU that just quit.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How many characters of its name an event over the length bound keeps.
const NAME_LIMIT: usize = 256;

/// What ended a connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CloseCause {
    /// The peer closed it: QEMU has exited, or dropped the monitor.
    #[error("QEMU closed the connection")]
    EndOfStream,
    /// Reading or writing failed.
    #[error("the connection to QEMU failed")]
    Io(#[source] Arc<io::Error>),
    /// The task that served it is gone, because its runtime shut down.
    #[error("the runtime that served the connection has shut down")]
    Runtime,
}

/// A command on its way to the task.
#[derive(Debug)]
pub(super) struct QueuedCommand {
    pub(super) serial: u64,
    pub(super) id: String,
    pub(super) command: Cow<'static, str>,
    pub(super) oob: bool,
    /// After this it must not be sent any more, even if its caller has not looked yet.
    pub(super) deadline: Option<Instant>,
    pub(super) message: Value,
    pub(super) claim: Arc<SendClaim>,
    pub(super) reply: oneshot::Sender<Result<Value, ErrorReply>>,
}

/// The ends of the channels that the task keeps; [`super::client::QmpLink`] has the others.
#[derive(Debug)]
pub(super) struct TaskEnds {
    pub(super) jobs: mpsc::UnboundedReceiver<QueuedCommand>,
    pub(super) events: broadcast::Sender<Arc<QmpEvent>>,
    pub(super) counters: watch::Sender<ConnectionCounters>,
    pub(super) waiting: watch::Sender<Option<Instant>>,
    pub(super) closed: watch::Sender<Option<CloseCause>>,
}

pub(super) struct QmpConnection<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    lines: LineCutter,
    /// The unwritten rest of the one line being written.
    outgoing: Bytes,
    unflushed: bool,
    jobs: mpsc::UnboundedReceiver<QueuedCommand>,
    in_band: VecDeque<QueuedCommand>,
    out_of_band: VecDeque<QueuedCommand>,
    closed: watch::Sender<Option<CloseCause>>,
    intake: LineIntake,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> QmpConnection<S> {
    pub(super) fn new(stream: S, ends: TaskEnds, options: &QmpOptions) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            lines: LineCutter::new(options.max_line),
            outgoing: Bytes::new(),
            unflushed: false,
            jobs: ends.jobs,
            in_band: VecDeque::new(),
            out_of_band: VecDeque::new(),
            closed: ends.closed,
            intake: LineIntake {
                waiters: ReplyWaiters::default(),
                sequence: 0,
                max_event: options.max_event,
                events: ends.events,
                counters: ends.counters,
                waiting: ends.waiting,
                tape: LabelledRecorder { label: options.label.clone(), recorder: options.recorder.clone() },
            },
        }
    }

    /// Reads up to the greeting. Events before it are passed on, anything else is counted and skipped.
    pub(super) async fn greeting(&mut self) -> Result<Greeting, CloseCause> {
        loop {
            while let Some(cut) = self.lines.next_cut() {
                if let Some(greeting) = self.intake.take(cut) {
                    return Ok(greeting);
                }
            }
            match self.reader.read_buf(self.lines.space()).await {
                Ok(0) => return Err(CloseCause::EndOfStream),
                Ok(_) => {}
                Err(error) => return Err(CloseCause::Io(Arc::new(error))),
            }
        }
    }

    /// Whether nothing at all has come.
    pub(super) fn is_silent(&self) -> bool {
        *self.intake.counters.borrow() == ConnectionCounters::default() && self.lines.torn() == 0
    }

    /// Serves until the stream ends or nobody holds the client any more.
    pub(super) async fn run(mut self) {
        self.take_lines();
        let Some(cause) = self.serve().await else {
            self.intake.tape.note(json!({"closed": "no longer needed"}));
            return;
        };
        let torn = self.lines.torn() as u64;
        self.intake.count(|counters| counters.torn_bytes += torn);
        self.intake.tape.note(json!({"closed": cause.to_string(), "torn_bytes": torn}));
        tracing::debug!(label = %self.intake.tape.label, %cause, torn, "QMP connection closed");
        // The cause first: whoever is woken by the drops below asks for it.
        self.closed.send_replace(Some(cause));
    }

    /// Returns what ended the stream, or `None` when every handle is gone.
    async fn serve(&mut self) -> Option<CloseCause> {
        loop {
            // All of them, so that no in-band command is picked while an out-of-band one waits behind it.
            while let Ok(job) = self.jobs.try_recv() {
                self.enqueue(job);
            }
            self.load();
            let flushing = self.outgoing.is_empty();
            let writing = !flushing || self.unflushed;
            tokio::select! {
                read = self.reader.read_buf(self.lines.space()) => match read {
                    Ok(0) => return Some(CloseCause::EndOfStream),
                    Ok(_) => self.take_lines(),
                    Err(error) => return Some(CloseCause::Io(Arc::new(error))),
                },
                wrote = write_some(&mut self.writer, &mut self.outgoing), if writing => match wrote {
                    Ok(()) => self.unflushed = !flushing,
                    Err(error) => {
                        self.hear_last_words().await;
                        return Some(CloseCause::Io(Arc::new(error)));
                    }
                },
                job = self.jobs.recv() => self.enqueue(job?),
            }
        }
    }

    fn take_lines(&mut self) {
        while let Some(cut) = self.lines.next_cut() {
            if self.intake.take(cut).is_some() {
                self.intake.count(|counters| counters.repeated_greetings += 1);
            }
        }
    }

    async fn hear_last_words(&mut self) {
        let reading = async {
            while matches!(self.reader.read_buf(self.lines.space()).await, Ok(1..)) {
                self.take_lines();
            }
        };
        if timeout(LAST_WORDS, reading).await.is_err() {
            tracing::debug!(label = %self.intake.tape.label, "the peer refuses writes but has not closed");
        }
    }

    fn enqueue(&mut self, job: QueuedCommand) {
        let queue = if job.oob { &mut self.out_of_band } else { &mut self.in_band };
        queue.push_back(job);
        // Withdrawn commands fall out here as well, else a peer that never reads would let them pile up.
        if queue.len() >= 64 && queue.len().is_power_of_two() {
            let before = queue.len();
            queue.retain(|job| !job.claim.is_withdrawn());
            let withdrawn = (before - queue.len()) as u64;
            self.intake.count(|counters| counters.withdrawn += withdrawn);
        }
    }

    /// Puts the next command on the wire, if the last one is written and QEMU has room for it.
    fn load(&mut self) {
        while self.outgoing.is_empty() {
            let room = self.intake.waiters.in_band() < IN_BAND_LIMIT;
            let in_band = || if room { self.in_band.pop_front() } else { None };
            let Some(job) = self.out_of_band.pop_front().or_else(in_band) else {
                return;
            };
            let expired = job.deadline.is_some_and(|deadline| deadline <= Instant::now());
            if (expired && job.claim.withdraw()) || !job.claim.send() {
                self.intake.count(|counters| counters.withdrawn += 1);
                continue;
            }
            self.outgoing = Bytes::from(format!("{}\n", job.message));
            self.intake.sent(job);
        }
    }
}

/// Writes what the socket takes; flushes when all is written. Cancel-safe: `outgoing` always says what is left.
async fn write_some<W: AsyncWrite + Unpin>(writer: &mut W, outgoing: &mut Bytes) -> io::Result<()> {
    if outgoing.is_empty() {
        return writer.flush().await;
    }
    match writer.write_buf(outgoing).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        _ => Ok(()),
    }
}

/// What becomes of the lines that come in.
struct LineIntake {
    waiters: ReplyWaiters,
    sequence: u64,
    max_event: usize,
    events: broadcast::Sender<Arc<QmpEvent>>,
    counters: watch::Sender<ConnectionCounters>,
    /// When the oldest in-band command was sent that is not answered.
    waiting: watch::Sender<Option<Instant>>,
    tape: LabelledRecorder,
}

impl LineIntake {
    fn count(&self, change: impl FnOnce(&mut ConnectionCounters)) {
        self.counters.send_modify(change);
    }

    fn sent(&mut self, job: QueuedCommand) {
        self.tape.line(LineDirection::Send, &job.message);
        let waiter = ReplyWaiter { id: job.id, command: job.command, sent_at: Instant::now(), reply: job.reply };
        let forgotten = self.waiters.insert(job.serial, !job.oob, waiter);
        self.note_waiting();
        self.count(|counters| {
            counters.commands += 1;
            counters.forgotten += forgotten;
        });
    }

    fn note_waiting(&self) {
        let since = self.waiters.waiting_since();
        self.waiting.send_if_modified(|known| std::mem::replace(known, since) != since);
    }

    /// Takes one line. Returns a greeting; everything else is dealt with here.
    fn take(&mut self, cut: LineCut) -> Option<Greeting> {
        let line = match cut {
            LineCut::Line(line) => line,
            LineCut::Oversized(length) => {
                self.tape.note(json!({"oversized": length}));
                self.lose_oldest();
                self.count(|counters| counters.oversized += 1);
                tracing::debug!(label = %self.tape.label, length, "a line over the length bound was thrown away");
                return None;
            }
        };
        if line.trim_ascii().is_empty() {
            return None;
        }
        match self.classify(&line) {
            Ok(QmpFrame::Greeting(greeting)) => return Some(greeting),
            Ok(QmpFrame::Event(event)) => self.publish(event, line.len()),
            Ok(QmpFrame::Reply(reply)) => self.settle(reply),
            Err(error) => {
                self.lose_oldest();
                self.count(|counters| counters.unparsable += 1);
                tracing::debug!(label = %self.tape.label, %error, length = line.len(), "skipped a line");
            }
        }
        None
    }

    fn lose_oldest(&mut self) {
        self.waiters.lose_oldest();
        self.note_waiting();
    }

    fn classify(&self, line: &BytesMut) -> Result<QmpFrame, FrameError> {
        let value = frame::parse(line).inspect_err(|_| self.tape.raw(line))?;
        self.tape.line(LineDirection::Receive, &value);
        QmpFrame::classify(value)
    }

    fn publish(&mut self, mut event: EventFrame, length: usize) {
        // Subscribers may hold as many events as the channel has room for; the bound on one bounds them all.
        let stripped = length > self.max_event;
        if stripped {
            event.data = Value::Null;
            event.name = event.name.chars().take(NAME_LIMIT).collect();
        }
        let event = QmpEvent::stamp(self.sequence, event);
        self.sequence += 1;
        self.count(|counters| {
            counters.events += 1;
            counters.stripped_events += u64::from(stripped);
        });
        // An error only says that nobody is subscribed.
        drop(self.events.send(Arc::new(event)));
    }

    fn settle(&mut self, reply: ReplyFrame) {
        let settled = self.waiters.settle(reply);
        self.note_waiting();
        let label = &self.tape.label;
        match &settled {
            ReplyMatch::Delivered => {}
            ReplyMatch::Late { command, age } => {
                tracing::info!(%label, %command, ?age, "a reply came late")
            }
            ReplyMatch::UnknownId => tracing::debug!(%label, "a reply to a command that is not ours"),
            ReplyMatch::Unidentified => tracing::debug!(%label, "an error reply without an id"),
        }
        self.count(|counters| match settled {
            ReplyMatch::Delivered => counters.replies += 1,
            ReplyMatch::Late { .. } => counters.late_replies += 1,
            ReplyMatch::UnknownId => counters.unknown_ids += 1,
            ReplyMatch::Unidentified => counters.unidentified_errors += 1,
        });
    }
}

/// The transcript of this connection, if there is one.
struct LabelledRecorder {
    label: Arc<str>,
    recorder: Option<Recorder>,
}

impl LabelledRecorder {
    fn line(&self, direction: LineDirection, line: &Value) {
        if let Some(recorder) = &self.recorder {
            recorder.line(&self.label, direction, line);
        }
    }

    fn raw(&self, line: &[u8]) {
        if let Some(recorder) = &self.recorder {
            recorder.raw(&self.label, LineDirection::Receive, line);
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "every caller makes the note on the spot")]
    fn note(&self, note: Value) {
        self.line(LineDirection::Note, &note);
    }
}
