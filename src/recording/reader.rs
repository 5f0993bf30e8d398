//! Reads transcripts of any origin in bounded memory, line by line.
//!
//! A file may come from anybody: a line that is too long, torn, no JSON or of a newer version is counted and passed
//! over. A line is read for what tells its kind; the rest of an answer is passed over unread, because answers are most
//! of a transcript.

use crate::{
    progress::Event,
    qmp::{
        frame::{LineCut, LineCutter},
        transcript::{CONTROLLER, ENGINE, LineDirection, TranscriptHeader},
    },
};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::{
    io::{self, Read},
    time::Duration,
};

/// Longest line that is read, in bytes. QEMU's schema, the longest answer of a full transcript, has about 300 KiB.
pub const LINE_LIMIT: usize = 2 << 20;
/// Longest line whose data is read; a value in memory takes many times the length of its text.
const DATA_LIMIT: usize = 64 << 10;
/// Longest event of the engine that is read: the outcome of a guest with a thousand disks.
const EVENT_LIMIT: usize = 512 << 10;
/// Bytes asked of the file at once.
const CHUNK: usize = 64 << 10;
/// How much earlier than an entry before it an entry may be: several tasks record, each with the time of its own.
const DISORDER: Duration = Duration::from_secs(1);
/// The side of the recorder's own notes.
const RECORDER: &str = "recorder";

/// A line of a transcript.
#[derive(Debug, Clone, PartialEq)]
pub enum RecordedLine {
    /// The header.
    Header(TranscriptHeader),
    /// Any other line.
    Entry(RecordedEntry),
}

/// An entry of a transcript, as far as the entry is read.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedEntry {
    /// Time since the recorder was made.
    pub at: Duration,
    /// Side: `source`, `destination`, or `engine`.
    pub side: String,
    /// What happened.
    pub content: RecordedContent,
}

/// What an entry tells.
#[derive(Debug, Clone, PartialEq)]
pub enum RecordedContent {
    /// An event of the engine.
    Engine(Box<Event>),
    /// A command was sent.
    Command {
        /// QEMU's name of the command.
        name: String,
        /// Id, by which the answer tells its command.
        id: Option<String>,
        /// Arguments; `Null` where the command has none or very long ones.
        arguments: Value,
    },
    /// An answer came.
    Answer {
        /// Id of the command.
        id: Option<String>,
        /// QEMU's words, where QEMU refused.
        refusal: Option<String>,
        /// What QEMU returned, where the reader was told to read the answers of that command; `Null` otherwise.
        value: Value,
    },
    /// An event of QEMU.
    Qmp {
        /// QEMU's name of the event.
        name: String,
        /// Data of the event; `Null` where the event has none or very long ones.
        data: Value,
    },
    /// QEMU's greeting.
    Greeting,
    /// A remark of the recorder or a connection.
    Note(Value),
    /// What the controller of convergence was given, where the reader was told to read it; `Null` otherwise.
    Controller(Value),
    /// A line that is none of these.
    Other,
}

/// A line as far as every kind of line is read.
#[derive(Deserialize)]
struct LineShape {
    v: u64,
    t_us: u64,
    side: String,
    dir: LineDirection,
    line: Option<BodyShape>,
}

/// The members that tell the kind of a line of QMP.
#[derive(Deserialize)]
struct BodyShape {
    execute: Option<String>,
    #[serde(rename = "exec-oob")]
    exec_oob: Option<String>,
    id: Option<String>,
    event: Option<String>,
    error: Option<RefusalShape>,
    #[serde(rename = "QMP")]
    greeting: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct RefusalShape {
    #[serde(default)]
    desc: String,
}

/// A line whose data is read.
#[derive(Deserialize)]
struct WholeLine<B> {
    line: B,
}

#[derive(Deserialize)]
struct ArgumentsShape {
    #[serde(default)]
    arguments: Value,
}

#[derive(Deserialize)]
struct ReturnShape {
    #[serde(default, rename = "return")]
    value: Value,
}

#[derive(Deserialize)]
struct DataShape {
    #[serde(default)]
    data: Value,
}

/// Iterator over the lines of a file, in bounded memory.
#[derive(Debug)]
pub struct BoundedLines<R> {
    source: R,
    lines: LineCutter,
    chunk: Box<[u8]>,
    ended: bool,
}

impl<R: Read> BoundedLines<R> {
    /// Reads from anything.
    pub fn new(source: R) -> Self {
        let chunk = vec![0; CHUNK].into_boxed_slice();
        Self { source, lines: LineCutter::new(LINE_LIMIT), chunk, ended: false }
    }

    fn fill(&mut self) -> io::Result<()> {
        let length = match self.source.read(&mut self.chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            length => length?,
        };
        // A last line without its newline is read like any other.
        self.ended = length == 0;
        let last: &[u8] = if self.ended && self.lines.torn() > 0 { b"\n" } else { &self.chunk[..length] };
        self.lines.reserve_space().extend_from_slice(last);
        Ok(())
    }
}

impl<R: Read> Iterator for BoundedLines<R> {
    type Item = io::Result<LineCut>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(cut) = self.lines.next_cut() {
                return Some(Ok(cut));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.fill() {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }
}

/// What is wrong with the lines that were read so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadFaults {
    /// Lines that are none of a transcript, or too long.
    pub skipped: u64,
    /// Entries whose times lie well before that of an earlier one; each was given that time.
    pub turned_back: u64,
}

/// Iterator over the lines of a transcript, whose times do not go back by more than a moment.
#[derive(Debug)]
pub struct RecordingReader<R> {
    lines: BoundedLines<R>,
    faults: ReadFaults,
    /// The latest time so far.
    latest: Duration,
    /// The commands whose answers are read.
    answers: &'static [&'static str],
    /// What the controller was given is read.
    reads_controller: bool,
}

impl<R: Read> RecordingReader<R> {
    /// Reads from anything.
    pub fn new(source: R) -> Self {
        let (lines, faults, latest) = (BoundedLines::new(source), ReadFaults::default(), Duration::ZERO);
        Self { lines, faults, latest, answers: &[], reads_controller: false }
    }

    /// The same reader, which reads what QEMU returned to these commands, too.
    #[must_use]
    pub fn reading_answers(self, answers: &'static [&'static str]) -> Self {
        Self { answers, ..self }
    }

    /// The same reader, which reads what the controller was given, too.
    #[must_use]
    pub fn reading_controller(self) -> Self {
        Self { reads_controller: true, ..self }
    }

    /// What is wrong with the lines so far.
    pub fn faults(&self) -> ReadFaults {
        self.faults
    }

    /// Sees to it that an entry is not told before an earlier one.
    fn keep_order(&mut self, entry: &mut RecordedEntry) {
        if entry.at + DISORDER < self.latest {
            self.faults.turned_back += 1;
            entry.at = self.latest;
        } else if entry.side != RECORDER {
            // the recorder's own notes overtake the entries that wait to be written
            self.latest = self.latest.max(entry.at);
        }
    }
}

impl<R: Read> Iterator for RecordingReader<R> {
    type Item = io::Result<RecordedLine>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.lines.next()? {
                Err(error) => return Some(Err(error)),
                Ok(LineCut::Line(line)) if line.trim_ascii().is_empty() => {}
                Ok(LineCut::Line(line)) => match read_with(&line, self.answers, self.reads_controller) {
                    Some(mut read) => {
                        if let RecordedLine::Entry(entry) = &mut read {
                            self.keep_order(entry);
                        }
                        return Some(Ok(read));
                    }
                    None => self.faults.skipped += 1,
                },
                Ok(LineCut::Oversized(_)) => self.faults.skipped += 1,
            }
        }
    }
}

/// Reads one line; `None` where the line is none of a transcript of this version.
pub fn read_line(line: &[u8]) -> Option<RecordedLine> {
    read_with(line, &[], false)
}

fn read_with(line: &[u8], answers: &[&str], reads_controller: bool) -> Option<RecordedLine> {
    if !line.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    match serde_json::from_slice::<LineShape>(line) {
        Ok(shape) if shape.v == 1 => Some(RecordedLine::Entry(entry(line, shape, answers, reads_controller)?)),
        Ok(_) => None,
        Err(_) => TranscriptHeader::of_line(line).map(RecordedLine::Header),
    }
}

fn entry(line: &[u8], shape: LineShape, answers: &[&str], reads_controller: bool) -> Option<RecordedEntry> {
    let LineShape { t_us, side, dir, line: body, .. } = shape;
    let content = match (dir, body) {
        (LineDirection::Note, _) if side == ENGINE => {
            let short = (line.len() <= EVENT_LIMIT).then_some(line)?;
            RecordedContent::Engine(Box::new(serde_json::from_slice::<WholeLine<Event>>(short).ok()?.line))
        }
        (LineDirection::Note, _) if side == CONTROLLER => {
            let wanted = reads_controller.then_some(line).filter(|line| line.len() <= EVENT_LIMIT);
            let read = wanted.and_then(|line| serde_json::from_slice::<WholeLine<Value>>(line).ok());
            RecordedContent::Controller(read.map(|whole| whole.line).unwrap_or_default())
        }
        (LineDirection::Note, _) => RecordedContent::Note(data_of::<Value>(line).unwrap_or_default()),
        (_, None) => RecordedContent::Other,
        (LineDirection::Send, Some(body)) => match body.execute.or(body.exec_oob) {
            Some(name) => {
                let wants = !is_question(&name);
                let arguments = wants.then(|| data_of::<ArgumentsShape>(line)).flatten();
                let arguments = arguments.map(|shape| shape.arguments).unwrap_or_default();
                RecordedContent::Command { name, id: body.id, arguments }
            }
            None => RecordedContent::Other,
        },
        (LineDirection::Receive, Some(body)) => match (body.event, body.greeting) {
            (Some(name), _) => {
                let data = data_of::<DataShape>(line).map(|shape| shape.data).unwrap_or_default();
                RecordedContent::Qmp { name, data }
            }
            (None, Some(_)) => RecordedContent::Greeting,
            (None, None) => {
                // the engine's ids begin with the name of the command
                let command = body.id.as_deref().and_then(|id| id.split('#').next());
                let wanted = command.is_some_and(|command| answers.contains(&command));
                let value = wanted.then(|| data_of::<ReturnShape>(line)).flatten().map(|shape| shape.value);
                let refusal = body.error.map(|refusal| refusal.desc);
                RecordedContent::Answer { id: body.id, refusal, value: value.unwrap_or_default() }
            }
        },
    };
    Some(RecordedEntry { at: Duration::from_micros(t_us), side, content })
}

/// Whether a command changes nothing and is sent many times.
pub fn is_question(command: &str) -> bool {
    command.starts_with("query-") || command.starts_with("qom-")
}

/// The data of a line that is not too long for that.
fn data_of<'de, B: Deserialize<'de>>(line: &'de [u8]) -> Option<B> {
    let short = (line.len() <= DATA_LIMIT).then_some(line)?;
    serde_json::from_slice::<WholeLine<B>>(short).ok().map(|whole| whole.line)
}
