//! The one task that owns a QMP socket.
//!
//! The task reads, writes and takes commands at the same time: a write that blocks never stops reading, and nothing a
//! peer sends ends the connection but its end of stream or an I/O error. The task must never wait for a subscriber, a
//! caller or the disk, and everything it keeps on behalf of the peer is bounded.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, timeout};

use super::counters::ConnectionCounters;
use super::event::QmpEvent;
use super::frame::{self, EventFrame, FrameError, Greeting, LineCut, LineCutter, QmpFrame, ReplyFrame};
use super::link::{CloseCause, QueuedCommand, TaskEnds};
use super::options::QmpOptions;
use super::transcript::{LineDirection, Recorder};
use super::waiters::{ReplyMatch, ReplyWaiter, ReplyWaiters};

/// Most in-band commands that QEMU may have unanswered. With 8 in its queue (`QMP_REQ_QUEUE_LEN_MAX`) QEMU stops
/// reading its monitor, and then an out-of-band command could not get in either.
const IN_BAND_LIMIT: usize = 7;

/// Time to read on after a failed write, for the last events of a QEMU that just quit.
const LAST_EVENTS: Duration = Duration::from_millis(100);

/// Number of characters of its name that an event over the length bound keeps.
const NAME_LIMIT: usize = 256;

/// Number of bytes that are kept of what came first, to tell what the peer is that does not greet.
const FIRST_WORDS: usize = 120;

/// State of the task: the socket, the commands that wait to be written, and the handling of incoming lines.
pub(super) struct QmpConnection<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    lines: LineCutter,
    /// What came before the greeting, in part.
    first: Vec<u8>,
    /// The unwritten rest of the one line being written.
    outgoing: Bytes,
    unflushed: bool,
    commands: mpsc::UnboundedReceiver<Box<QueuedCommand>>,
    in_band: VecDeque<Box<QueuedCommand>>,
    out_of_band: VecDeque<Box<QueuedCommand>>,
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
            first: Vec::new(),
            outgoing: Bytes::new(),
            unflushed: false,
            commands: ends.commands,
            in_band: VecDeque::new(),
            out_of_band: VecDeque::new(),
            closed: ends.closed,
            intake: LineIntake {
                waiters: ReplyWaiters::default(),
                sequence: 0,
                answered: None,
                max_event: options.max_event,
                events: ends.events,
                counters: ends.counters,
                waiting: ends.waiting,
                recorder: LabelledRecorder { label: options.label.clone(), recorder: options.recorder.clone() },
            },
        }
    }

    /// Reads up to the greeting. Events before the greeting are passed on, anything else is counted and skipped.
    pub(super) async fn read_greeting(&mut self) -> Result<Greeting, CloseCause> {
        loop {
            while let Some(cut) = self.lines.next_cut() {
                if let Some(greeting) = self.intake.take(cut) {
                    return Ok(greeting);
                }
            }
            let space = self.lines.reserve_space();
            let before = space.len();
            match self.reader.read_buf(space).await {
                Ok(0) => return Err(CloseCause::EndOfStream),
                Ok(_) => {
                    let room = FIRST_WORDS.saturating_sub(self.first.len());
                    self.first.extend(space.iter().skip(before).take(room));
                }
                Err(error) => return Err(CloseCause::Io(Arc::new(error))),
            }
        }
    }

    /// The first words of a peer that has not greeted, on one line and without control characters.
    pub(super) fn first_words(&self) -> String {
        let text = String::from_utf8_lossy(&self.first);
        let words: Vec<&str> = text.split(|c: char| c.is_control() || c.is_whitespace()).collect();
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Whether not a single byte has come.
    pub(super) fn is_silent(&self) -> bool {
        *self.intake.counters.borrow() == ConnectionCounters::default() && self.lines.torn() == 0
    }

    /// Serves until the stream ends or the last handle is dropped.
    pub(super) async fn run(mut self) {
        self.take_lines();
        let Some(cause) = self.serve().await else {
            self.intake.recorder.record_note(json!({"closed": "no longer needed"}));
            return;
        };
        let torn = self.lines.torn() as u64;
        self.intake.count(|counters| counters.torn_bytes += torn);
        self.intake.recorder.record_note(json!({"closed": cause.to_string(), "torn_bytes": torn}));
        tracing::debug!(label = %self.intake.recorder.label, %cause, torn, "QMP connection closed");
        // The cause must be set before the channels are dropped: the drops wake waiters, who then ask for the cause.
        self.closed.send_replace(Some(cause));
    }

    /// Returns the cause of the end, or `None` when the last handle was dropped.
    async fn serve(&mut self) -> Option<CloseCause> {
        loop {
            // Drain the whole channel: an out-of-band command may wait behind in-band ones and must be loaded first.
            while let Ok(queued) = self.commands.try_recv() {
                self.enqueue(queued);
            }
            self.load_next();
            let flushing = self.outgoing.is_empty();
            let writing = !flushing || self.unflushed;
            tokio::select! {
                read = self.reader.read_buf(self.lines.reserve_space()) => match read {
                    Ok(0) => return Some(CloseCause::EndOfStream),
                    Ok(_) => self.take_lines(),
                    Err(error) => return Some(CloseCause::Io(Arc::new(error))),
                },
                wrote = write_some(&mut self.writer, &mut self.outgoing), if writing => match wrote {
                    Ok(()) => self.unflushed = !flushing,
                    Err(error) => {
                        self.read_last_events().await;
                        return Some(CloseCause::Io(Arc::new(error)));
                    }
                },
                queued = self.commands.recv() => self.enqueue(queued?),
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

    async fn read_last_events(&mut self) {
        let reading = async {
            while matches!(self.reader.read_buf(self.lines.reserve_space()).await, Ok(1..)) {
                self.take_lines();
            }
        };
        if timeout(LAST_EVENTS, reading).await.is_err() {
            let label = &self.intake.recorder.label;
            tracing::debug!(%label, "the peer refuses writes but has not closed the connection");
        }
    }

    fn enqueue(&mut self, queued: Box<QueuedCommand>) {
        let queue = if queued.oob { &mut self.out_of_band } else { &mut self.in_band };
        queue.push_back(queued);
        // Withdrawn commands are removed here too, because a peer that never reads would let them pile up.
        if queue.len() >= 64 && queue.len().is_power_of_two() {
            let before = queue.len();
            queue.retain(|waiting| !waiting.claim.is_withdrawn());
            let withdrawn = (before - queue.len()) as u64;
            self.intake.count(|counters| counters.withdrawn += withdrawn);
        }
    }

    /// Makes the next command the outgoing line, if the last line is written and QEMU has room for a command.
    fn load_next(&mut self) {
        while self.outgoing.is_empty() {
            let room = self.intake.waiters.in_band() < IN_BAND_LIMIT;
            let in_band = || if room { self.in_band.pop_front() } else { None };
            let Some(queued) = self.out_of_band.pop_front().or_else(in_band) else {
                return;
            };
            let expired = queued.deadline.is_some_and(|deadline| deadline <= Instant::now());
            if (expired && queued.claim.withdraw()) || !queued.claim.send() {
                self.intake.count(|counters| counters.withdrawn += 1);
                continue;
            }
            self.outgoing = Bytes::from(format!("{}\n", queued.message));
            self.intake.note_sent(*queued);
        }
    }
}

/// Writes as much as the socket takes, and flushes when all is written. Cancel-safe: `outgoing` is always the rest.
async fn write_some<W: AsyncWrite + Unpin>(writer: &mut W, outgoing: &mut Bytes) -> io::Result<()> {
    if outgoing.is_empty() {
        return writer.flush().await;
    }
    match writer.write_buf(outgoing).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        _ => Ok(()),
    }
}

/// Handling of incoming lines: replies go to their callers, events to subscribers, every line to the transcript.
struct LineIntake {
    waiters: ReplyWaiters,
    sequence: u64,
    /// Time at which the last answer to an in-band command came.
    answered: Option<Instant>,
    max_event: usize,
    events: broadcast::Sender<Arc<QmpEvent>>,
    counters: watch::Sender<ConnectionCounters>,
    /// Time at which the oldest in-band command without an answer was sent.
    waiting: watch::Sender<Option<Instant>>,
    recorder: LabelledRecorder,
}

impl LineIntake {
    fn count(&self, change: impl FnOnce(&mut ConnectionCounters)) {
        self.counters.send_modify(change);
    }

    fn note_sent(&mut self, sent: QueuedCommand) {
        self.recorder.record_line(LineDirection::Send, &sent.message);
        let QueuedCommand { id, command, reply, unread, .. } = sent;
        let waiter = ReplyWaiter { id, command, sent_at: Instant::now(), reply, unread };
        let forgotten = self.waiters.insert(sent.serial, !sent.oob, waiter);
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

    /// Takes one line. A greeting is returned; every other line is handled to its end.
    fn take(&mut self, cut: LineCut) -> Option<Greeting> {
        let line = match cut {
            LineCut::Line(line) => line,
            LineCut::Oversized(length) => {
                self.recorder.record_note(json!({"oversized": length}));
                self.lose_oldest();
                self.count(|counters| counters.oversized += 1);
                tracing::debug!(label = %self.recorder.label, length, "a line over the length bound was thrown away");
                return None;
            }
        };
        if line.trim_ascii().is_empty() {
            return None;
        }
        if let Some(reply) = self.unread_reply(&line) {
            self.deliver(reply);
            return None;
        }
        match self.classify(&line) {
            Ok(QmpFrame::Greeting(greeting)) => return Some(greeting),
            Ok(QmpFrame::Event(event)) => self.publish(event, line.len()),
            Ok(QmpFrame::Reply(reply)) => self.deliver(reply),
            Err(error) => {
                self.lose_oldest();
                self.count(|counters| counters.unparsable += 1);
                tracing::debug!(label = %self.recorder.label, %error, length = line.len(), "skipped a line");
            }
        }
        None
    }

    fn lose_oldest(&mut self) {
        self.waiters.lose_oldest();
        self.note_waiting();
    }

    /// The line as an answer, if its caller reads the line alone.
    fn unread_reply(&self, line: &BytesMut) -> Option<ReplyFrame> {
        if !self.waiters.has_unread() {
            return None;
        }
        let reply = frame::unread_reply(line).filter(|reply| self.waiters.is_unread(reply.id.as_ref()))?;
        match &self.recorder.recorder {
            // The parser and the removal of secrets cost more than the rest of a migration's recording.
            Some(recorder) if recorder.is_too_long(line.len()) => {
                recorder.record_length(&self.recorder.label, reply.id.as_ref(), line.len());
            }
            Some(_) => self.recorder.record_received(&frame::parse(line).ok()?, line),
            None => {}
        }
        Some(reply)
    }

    fn classify(&self, line: &BytesMut) -> Result<QmpFrame, FrameError> {
        let value = frame::parse(line).inspect_err(|_| self.recorder.record_raw(line))?;
        match &self.recorder.recorder {
            Some(recorder) if recorder.is_too_long(line.len()) && value.get("return").is_some() => {
                recorder.record_length(&self.recorder.label, value.get("id"), line.len());
            }
            _ => self.recorder.record_received(&value, line),
        }
        QmpFrame::classify(value)
    }

    fn publish(&mut self, mut event: EventFrame, length: usize) {
        // Subscribers can hold as many events as the channel has room for, so the bound on one event bounds them all.
        let stripped = length > self.max_event;
        if stripped {
            event.data = Value::Null;
            event.name = event.name.chars().take(NAME_LIMIT).collect();
        }
        let unanswered = self.waiters.waiting_since().map(Instant::into_std);
        let event = QmpEvent::stamp(self.sequence, event, unanswered, self.answered.map(Instant::into_std));
        self.sequence += 1;
        self.count(|counters| {
            counters.events += 1;
            counters.stripped_events += u64::from(stripped);
        });
        // `send` fails only where nobody is subscribed.
        drop(self.events.send(Arc::new(event)));
    }

    fn deliver(&mut self, reply: ReplyFrame) {
        let before = self.waiters.in_band();
        let matched = self.waiters.deliver(reply);
        if self.waiters.in_band() < before {
            self.answered = Some(Instant::now());
        }
        self.note_waiting();
        let label = &self.recorder.label;
        match &matched {
            ReplyMatch::Delivered => {}
            ReplyMatch::Late { command, age } => {
                tracing::info!(%label, %command, ?age, "a reply came late")
            }
            ReplyMatch::UnknownId => tracing::debug!(%label, "a reply to a command that this client did not send"),
            ReplyMatch::Unidentified => tracing::debug!(%label, "an error reply without an id"),
        }
        self.count(|counters| match matched {
            ReplyMatch::Delivered => counters.replies += 1,
            ReplyMatch::Late { .. } => counters.late_replies += 1,
            ReplyMatch::UnknownId => counters.unknown_ids += 1,
            ReplyMatch::Unidentified => counters.unidentified_errors += 1,
        });
    }
}

/// The transcript of this connection, if one is recorded, and the label of the connection.
struct LabelledRecorder {
    label: Arc<str>,
    recorder: Option<Recorder>,
}

impl LabelledRecorder {
    fn record_line(&self, direction: LineDirection, line: &Value) {
        if let Some(recorder) = &self.recorder {
            recorder.record_line(&self.label, direction, line);
        }
    }

    fn record_received(&self, value: &Value, line: &[u8]) {
        // whoever has parsed the line knows that it is text
        if let (Some(recorder), Ok(text)) = (&self.recorder, std::str::from_utf8(line)) {
            recorder.record_received(&self.label, value, text);
        }
    }

    fn record_raw(&self, line: &[u8]) {
        if let Some(recorder) = &self.recorder {
            recorder.record_raw(&self.label, LineDirection::Receive, line);
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "every caller makes the note as a temporary")]
    fn record_note(&self, note: Value) {
        self.record_line(LineDirection::Note, &note);
    }
}
