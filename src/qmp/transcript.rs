//! A file of every line sent and received on one or more connections, and of the engine's decisions between them, for
//! people and for offline diagnosis.
//!
//! The module owns the file. Secrets are removed before an entry leaves the caller's thread. Recording must never delay
//! the wire: entries that the disk cannot take in time are dropped, counted and noted in the file.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use super::frame::{LineCut, LineCutter};
use super::redact::{mentions_secret, redacted_text};
use super::transcript_format::{entry_of, is_sample, render_line, render_raw};
use super::transcript_writer::{
    CuttableFile, QueuedEntry, TranscriptWriter, WriteBacklog, WriterMessage, WriterOutcome,
};
use crate::progress::{Event, EventKind};
use crate::trust::{self, FileOwner, TrustError};

pub use super::redact::redact;
pub use super::transcript_format::{CONTROLLER, ENGINE, EntryBody, LineDirection, TranscriptEntry, TranscriptHeader};

/// Most entries, and most bytes, waiting for the disk.
const QUEUE_ENTRIES: usize = 4096;
const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// The same bytes where answers are brief.
const BRIEF_QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Longest answer that a brief transcript keeps.
const BRIEF_ANSWER: usize = 8 * 1024;
/// Most bytes kept of a line that is not JSON.
const RAW_LIMIT: usize = 256;
/// Longest entry read back, in bytes. A written entry is a QMP line, whose length is bounded, and a little more.
const ENTRY_LIMIT: usize = 64 * 1024 * 1024;

/// Reason why a transcript cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TranscriptError {
    /// The directory of the transcript does not exist.
    #[error("the transcript {} cannot be made because its directory does not exist", path.display())]
    NoDirectory {
        /// The transcript.
        path: PathBuf,
    },
    /// A file of that name exists.
    #[error("{} exists already and is not overwritten: give the transcript the name of a new file", path.display())]
    Exists {
        /// The transcript.
        path: PathBuf,
    },
    /// Another user may write to the directory of the transcript, and could put another file in its place.
    #[error("the transcript {} is not made: {why}", path.display())]
    NotPrivate {
        /// The transcript.
        path: PathBuf,
        /// The part of the path that another user may change.
        why: String,
    },
    /// Another operation on the file failed.
    #[error("the transcript {} cannot be {action}", path.display())]
    Io {
        /// The transcript.
        path: PathBuf,
        /// Operation that failed, as a participle: `made`, `opened`, `written` or `read`.
        action: &'static str,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
}

/// Writer of a transcript. Clones write to the same file; the file is complete once the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Recorder {
    shared: Arc<RecorderCore>,
}

#[derive(Debug)]
struct RecorderCore {
    started: Instant,
    path: PathBuf,
    queue: SyncSender<WriterMessage>,
    backlog: Arc<WriteBacklog>,
    is_brief: bool,
    writer: Mutex<Option<JoinHandle<WriterOutcome>>>,
}

/// Totals of a finished transcript.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranscriptTotals {
    /// Number of entries in the file.
    pub written: u64,
    /// Number of entries that were dropped: the disk was too slow or failed, or the file came to its limit.
    pub dropped: u64,
}

impl Recorder {
    /// Makes the file, readable by its owner alone.
    ///
    /// # Errors
    /// [`TranscriptError::NoDirectory`], [`TranscriptError::Exists`], or [`TranscriptError::Io`] where the file cannot
    /// be made for another reason.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, TranscriptError> {
        Self::create_with(path.into(), TranscriptHeader::now(), None)
    }

    /// The same with a header, and brief where a limit in bytes is given: long answers are left out, and of what is
    /// beyond the limit the beginning and the end are kept. The file is locked while this process writes it.
    pub(crate) fn create_with(
        path: PathBuf,
        header: TranscriptHeader,
        limit: Option<u64>,
    ) -> Result<Self, TranscriptError> {
        let file = open_private(&path)?;
        // The lock only tells others that the writer lives, so a file system without locks is no hindrance.
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok();
        Self::write_to(path.clone(), BufWriter::new(file), header, limit).map_err(|source| TranscriptError::Io {
            path,
            action: "opened",
            source,
        })
    }

    fn write_to(
        path: PathBuf,
        file: impl CuttableFile + Send + 'static,
        header: TranscriptHeader,
        limit: Option<u64>,
    ) -> io::Result<Self> {
        let started = Instant::now();
        let (queue, messages) = sync_channel(QUEUE_ENTRIES);
        let backlog = Arc::new(WriteBacklog::default());
        let is_brief = limit.is_some();
        let header = serde_json::to_string(&TranscriptHeader { brief: is_brief, ..header })? + "\n";
        let writer = TranscriptWriter::new(file, started, limit, backlog.clone());
        let thread = thread::Builder::new().name("transcript".into()).spawn(move || writer.run(&header, &messages))?;
        let shared = RecorderCore { started, path, queue, backlog, is_brief, writer: Mutex::new(Some(thread)) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Records a JSON line, without its secrets. Never blocks.
    pub(super) fn record_line(&self, side: &str, dir: LineDirection, line: &Value) {
        self.queue_line(side, dir, line, line.to_string().into(), is_sample(line));
    }

    /// Records a JSON line that came, without its secrets: `text` is the line as it came. Never blocks.
    pub(super) fn record_received(&self, side: &str, line: &Value, text: &str) {
        self.queue_line(side, LineDirection::Receive, line, text.trim().into(), is_sample(line));
    }

    /// Whether an answer of this length is recorded by its length alone.
    pub(super) fn is_too_long(&self, length: usize) -> bool {
        self.shared.is_brief && length > BRIEF_ANSWER
    }

    /// Records that an answer came, without the answer. Never blocks.
    pub(super) fn record_length(&self, side: &str, id: Option<&Value>, length: usize) {
        let line = json!({"return_bytes": length, "id": id});
        self.record_line(side, LineDirection::Receive, &line);
    }

    /// Records an event of the engine. Never blocks.
    pub(crate) fn record_event(&self, event: &Event) {
        let is_sample =
            matches!(event.kind, EventKind::Disk { .. } | EventKind::Memory { .. } | EventKind::Image { .. });
        // Events always serialise.
        let line = serde_json::to_value(event).unwrap_or_default();
        self.queue_line(ENGINE, LineDirection::Note, &line, line.to_string().into(), is_sample);
    }

    /// Records what the controller of convergence was given. `is_sample` is one of many. Never blocks.
    pub(crate) fn record_controller(&self, note: &Value, is_sample: bool) {
        self.queue_line(CONTROLLER, LineDirection::Note, note, note.to_string().into(), is_sample);
    }

    /// Records the beginning of a line that is not JSON, or only its length if the line could hold a secret. Never
    /// blocks.
    pub(super) fn record_raw(&self, side: &str, dir: LineDirection, line: &[u8]) {
        let text = match mentions_secret(line) {
            true => format!("[withheld: {} bytes]", line.len()),
            false => line[..line.len().min(RAW_LIMIT)].escape_ascii().to_string(),
        };
        self.queue_entry(render_raw(self.shared.started.elapsed(), side, dir, &text), true);
    }

    /// Waits until every entry is in the file, and closes the file; later entries are dropped. The call blocks on the
    /// disk, so an async caller uses `spawn_blocking`. A second call returns at once, with the number of dropped
    /// entries alone.
    ///
    /// # Errors
    /// The first error of writing, if there was one. Entries after that error were dropped.
    pub fn finish(&self) -> Result<TranscriptTotals, TranscriptError> {
        let writer = self.take_writer();
        if let Some(writer) = &writer {
            // `send` fails only if the writer thread has ended already, and then no request to finish is needed.
            drop(self.shared.queue.send(WriterMessage::Finish));
            writer.thread().unpark();
        }
        self.totals(writer)
    }

    /// The same, but a disk that hangs is waited for no longer than `limit`.
    pub(crate) fn finish_within(&self, limit: Duration) -> Result<TranscriptTotals, TranscriptError> {
        const PAUSE: Duration = Duration::from_millis(2);
        let Some(writer) = self.take_writer() else { return self.totals(None) };
        let began = Instant::now();
        let mut is_told = false;
        while !writer.is_finished() {
            // A full queue has room again once the disk takes something.
            is_told =
                is_told || !matches!(self.shared.queue.try_send(WriterMessage::Finish), Err(TrySendError::Full(_)));
            writer.thread().unpark();
            if began.elapsed() > limit {
                let source = io::Error::new(io::ErrorKind::TimedOut, "the disk is slow, or hangs");
                return Err(TranscriptError::Io { path: self.shared.path.clone(), action: "written", source });
            }
            thread::sleep(PAUSE);
        }
        self.totals(Some(writer))
    }

    fn take_writer(&self) -> Option<JoinHandle<WriterOutcome>> {
        self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn totals(&self, writer: Option<JoinHandle<WriterOutcome>>) -> Result<TranscriptTotals, TranscriptError> {
        let (mut written, mut left_out, mut error) = (0, 0, None);
        match writer.map(JoinHandle::join) {
            Some(Ok(outcome)) => (written, left_out, error) = (outcome.written, outcome.left_out, outcome.error),
            Some(Err(_)) => error = Some(io::Error::other("the writer thread panicked")),
            None => {}
        }
        let dropped = left_out + self.shared.backlog.dropped.load(Ordering::Acquire);
        match error {
            Some(source) => Err(TranscriptError::Io { path: self.shared.path.clone(), action: "written", source }),
            None => Ok(TranscriptTotals { written, dropped }),
        }
    }

    /// `json` is the text of the line.
    fn queue_line(&self, side: &str, dir: LineDirection, line: &Value, json: Cow<'_, str>, is_sample: bool) {
        let text = render_line(self.shared.started.elapsed(), side, dir, &redacted_text(line, json));
        self.queue_entry(text, is_sample);
    }

    fn queue_entry(&self, text: String, is_sample: bool) {
        let backlog = &self.shared.backlog;
        let length = text.len();
        let waiting = backlog.bytes.fetch_add(length, Ordering::AcqRel);
        let most = if self.shared.is_brief { BRIEF_QUEUE_BYTES } else { QUEUE_BYTES };
        let entry = WriterMessage::Entry(QueuedEntry { text, is_sample });
        if waiting + length > most || self.shared.queue.try_send(entry).is_err() {
            backlog.bytes.fetch_sub(length, Ordering::AcqRel);
            backlog.dropped.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Makes the file, readable by its owner alone. An existing file or link of that name is left alone.
fn open_private(path: &Path) -> Result<File, TranscriptError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let located = trust::locate(folder, FileOwner::User);
    let made = match located {
        Err(TrustError::Distrusted(why)) => {
            return Err(TranscriptError::NotPrivate { path: path.into(), why: why.to_string() });
        }
        Err(TrustError::Io(error)) => Err(error),
        Ok(_) => OpenOptions::new().write(true).create_new(true).mode(0o600).open(path),
    };
    made.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => TranscriptError::NoDirectory { path: path.into() },
        io::ErrorKind::AlreadyExists => TranscriptError::Exists { path: path.into() },
        _ => TranscriptError::Io { path: path.into(), action: "made", source },
    })
}

/// Reader of a transcript: an iterator over its entries. Lines that are torn, foreign or newer are skipped and counted.
#[derive(Debug)]
pub struct Transcript<R> {
    source: R,
    path: PathBuf,
    lines: LineCutter,
    ended: bool,
    skipped: u64,
}

impl Transcript<File> {
    /// Opens a transcript.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, TranscriptError> {
        let path = path.into();
        match File::open(&path) {
            Ok(file) => Ok(Self::read(file, path)),
            Err(source) => Err(TranscriptError::Io { path, action: "opened", source }),
        }
    }
}

impl<R: Read> Transcript<R> {
    /// Reads a transcript from any reader; errors name `path`.
    pub fn read(source: R, path: impl Into<PathBuf>) -> Self {
        Self { source, path: path.into(), lines: LineCutter::new(ENTRY_LIMIT), ended: false, skipped: 0 }
    }

    /// Number of lines so far that were no entries.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        let length = match self.source.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            length => length?,
        };
        // A last line without its newline is parsed like any other; a torn one is no entry.
        self.ended = length == 0;
        let last: &[u8] = if self.ended && self.lines.torn() > 0 { b"\n" } else { &chunk[..length] };
        self.lines.reserve_space().extend_from_slice(last);
        Ok(())
    }
}

impl<R: Read> Iterator for Transcript<R> {
    type Item = Result<TranscriptEntry, TranscriptError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            while let Some(cut) = self.lines.next_cut() {
                match cut {
                    LineCut::Line(line) if line.trim_ascii().is_empty() => {}
                    LineCut::Line(line) => match entry_of(&line) {
                        Some(entry) => return Some(Ok(entry)),
                        None => self.skipped += u64::from(TranscriptHeader::of_line(&line).is_none()),
                    },
                    LineCut::Oversized(_) => self.skipped += 1,
                }
            }
            if self.ended {
                return None;
            }
            if let Err(source) = self.fill() {
                self.ended = true;
                return Some(Err(TranscriptError::Io { path: self.path.clone(), action: "read", source }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        io::Write,
        os::unix::fs::PermissionsExt,
        sync::mpsc::{Receiver, sync_channel},
    };

    fn text_of(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn recorded_lines_are_read_back_without_their_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.jsonl");
        let recorder = Recorder::create(&path).unwrap();
        recorder.record_line("source", LineDirection::Send, &json!({"execute": "stop", "id": "stop#1"}));
        recorder.record_line("destination", LineDirection::Receive, &json!({"arguments": {"password": "hunter2"}}));
        recorder.record_raw("source", LineDirection::Receive, b"{\"event\": \xff\n");
        recorder.record_raw("source", LineDirection::Receive, b"{\"password\": hunter2");
        recorder.record_raw("source", LineDirection::Receive, &[0; 1000]);
        assert_eq!(recorder.finish().unwrap(), TranscriptTotals { written: 5, dropped: 0 });

        let text = text_of(&path);
        assert!(!text.contains("hunter2"), "{text}");
        let (header, rest) = text.split_once('\n').unwrap();
        let header = TranscriptHeader::of_line(header.as_bytes()).unwrap();
        assert_eq!((header.v, header.qferry.as_str(), header.brief), (1, env!("CARGO_PKG_VERSION"), false));
        assert!(header.began_ms > 1_700_000_000_000 && header.run.is_none(), "{header:?}");
        assert!(rest.starts_with(r#"{"v":1,"t_us":"#), "{text}");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let mut transcript = Transcript::open(&path).unwrap();
        let entries: Vec<TranscriptEntry> = transcript.by_ref().map(Result::unwrap).collect();
        assert_eq!(transcript.skipped(), 0);
        assert_eq!(entries[0].side, "source");
        assert_eq!(entries[0].direction, LineDirection::Send);
        assert_eq!(entries[0].body, EntryBody::Line(json!({"execute": "stop", "id": "stop#1"})));
        assert_eq!(entries[2].body, EntryBody::Raw(r#"{\"event\": \xff\n"#.into()));
        assert_eq!(entries[3].body, EntryBody::Raw("[withheld: 20 bytes]".into()));
        assert_eq!(entries[4].body, EntryBody::Raw(r"\x00".repeat(RAW_LIMIT)));
        assert!(entries.windows(2).all(|pair| pair[0].at <= pair[1].at));
    }

    #[test]
    fn a_brief_transcript_has_events_and_no_long_answers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t");
        let header = TranscriptHeader::of_run("0abcdefghijk".into(), "/s".into(), "tcp:d:1".into());
        let recorder = Recorder::create_with(path.clone(), header.clone(), Some(1 << 20)).unwrap();
        assert!(recorder.is_too_long(BRIEF_ANSWER + 1) && !recorder.is_too_long(BRIEF_ANSWER));
        let because = "the image is https://user:hunter2@host/path".to_owned();
        let action = EventKind::Action { action: "roll-back".into(), because, details: Default::default() };
        recorder.record_length("source", Some(&json!("query-qmp-schema#2")), 200_000);
        recorder.record_event(&Event::new(12, action));
        assert_eq!(
            recorder.finish_within(Duration::from_secs(9)).unwrap(),
            TranscriptTotals { written: 2, dropped: 0 }
        );

        let text = text_of(&path);
        let read = TranscriptHeader::of_line(text.lines().next().unwrap().as_bytes()).unwrap();
        assert_eq!(read, TranscriptHeader { brief: true, ..header });
        let entries: Vec<TranscriptEntry> = Transcript::open(&path).unwrap().map(Result::unwrap).collect();
        assert_eq!(entries[0].body, EntryBody::Line(json!({"return_bytes": 200_000, "id": "query-qmp-schema#2"})));
        let EntryBody::Line(event) = &entries[1].body else { panic!("{entries:?}") };
        assert_eq!((entries[1].side.as_str(), entries[1].direction), (ENGINE, LineDirection::Note));
        assert_eq!(
            (&event["type"], &event["action"], &event["t_ms"]),
            (&"action".into(), &"roll-back".into(), &12.into())
        );
        assert!(!text.contains("hunter2"), "{text}");
        let full = Recorder::create(directory.path().join("u")).unwrap();
        assert!(!full.is_too_long(1 << 30));
    }

    #[test]
    fn a_query_and_its_answer_are_samples() {
        for (line, expected) in [
            (json!({"execute": "query-migrate", "id": "query-migrate#1"}), true),
            (json!({"exec-oob": "query-yank"}), true),
            (json!({"return": {}, "id": "query-migrate#1"}), true),
            (json!({"return_bytes": 9, "id": "qom-list#1"}), true),
            (json!({"error": {}, "id": "query-migrate#1"}), false),
            (json!({"execute": "migrate", "id": "migrate#1"}), false),
            (json!({"return": {}, "id": "migrate#1"}), false),
            (json!({"event": "STOP"}), false),
            (json!(7), false),
        ] {
            assert_eq!(is_sample(&line), expected, "{line}");
        }
    }

    /// A disk that never takes anything.
    #[test]
    fn a_disk_that_hangs_is_not_waited_for() {
        let (_held, released) = sync_channel::<()>(0);
        let disk = SlowDisk { released, kept: Arc::default() };
        let recorder = Recorder::write_to("t".into(), disk, TranscriptHeader::now(), None).unwrap();
        for number in 0..2 * QUEUE_ENTRIES {
            recorder.record_line("a", LineDirection::Send, &json!(number));
        }
        let error = recorder.finish_within(Duration::from_millis(20)).unwrap_err();
        assert!(error.to_string().contains("cannot be written"), "{error}");
    }

    #[test]
    fn torn_foreign_and_newer_lines_are_skipped_and_counted() {
        let text = concat!(
            "{\"v\":1,\"t_us\":5,\"side\":\"a\",\"dir\":\"note\",\"line\":1,\"new\":2}\n",
            "\n",
            "not json\n",
            "{\"v\":2,\"t_us\":5,\"side\":\"a\",\"dir\":\"note\",\"line\":1}\n",
            "{\"v\":1,\"t_us\":5,\"side\":\"a\",\"dir\":\"sideways\",\"line\":1}\n",
            "{\"v\":1,\"t_us\":5,\"side\":\"a\",\"dir\":\"note\"}\n",
            "{\"v\":1,\"t_us\":6,\"side\":\"b\",\"dir\":\"send\",\"line\":null}\n",
            "{\"v\":1,\"t_us\":7,\"si",
        );
        let mut transcript = Transcript::read(text.as_bytes(), "t");
        let at: Vec<u128> = transcript.by_ref().map(|entry| entry.unwrap().at.as_micros()).collect();
        assert_eq!(at, [5, 6]);
        assert_eq!(transcript.skipped(), 5);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail(
            lines in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..80),
                    "\\{\"v\":[12],\"t_us\":-?[0-9]{1,22},\"side\":\"a\",\"dir\":\"(send|x)\",\"(line|raw)\":[\\[{\"a1}\\]]{0,6}\\}?"
                        .prop_map(String::into_bytes),
                ],
                0..6,
            ),
            length in 1_usize..50,
        ) {
            /// A reader that gives a few bytes at a time.
            struct SlowReader<'a>(&'a [u8], usize);
            impl Read for SlowReader<'_> {
                fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                    let length = self.1.min(into.len());
                    self.0.read(&mut into[..length])
                }
            }
            let bytes = lines.join(&b'\n');
            let mut read = Transcript::read(bytes.as_slice(), "t");
            let whole: Vec<TranscriptEntry> = read.by_ref().map(Result::unwrap).collect();
            prop_assert!(whole.len() as u64 + read.skipped() <= bytes.split(|byte| *byte == b'\n').count() as u64);
            let mut again = Transcript::read(SlowReader(&bytes, length), "t");
            prop_assert_eq!(again.by_ref().map(Result::unwrap).collect::<Vec<_>>(), whole);
            prop_assert_eq!(again.skipped(), read.skipped());
        }
    }

    #[test]
    fn only_a_new_file_is_made_a_transcript() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let missing = Recorder::create(path("no/t")).unwrap_err();
        assert!(matches!(missing, TranscriptError::NoDirectory { .. }), "{missing:?}");

        std::fs::create_dir(path("open")).unwrap();
        std::fs::set_permissions(path("open"), PermissionsExt::from_mode(0o777)).unwrap();
        let open = Recorder::create(path("open/t")).unwrap_err();
        assert!(matches!(open, TranscriptError::NotPrivate { .. }), "{open:?}");
        assert!(open.to_string().contains("open (mode 0777)"), "{open}");

        std::fs::write(path("old"), "precious").unwrap();
        std::os::unix::fs::symlink(path("nothing"), path("link")).unwrap();
        for path in [directory.path().to_owned(), path("old"), path("link"), "/dev/null".into()] {
            let error = Recorder::create(&path).unwrap_err();
            assert!(matches!(error, TranscriptError::Exists { .. }), "{error:?}");
        }
        assert_eq!(text_of(&path("old")), "precious");

        Recorder::create(path("new")).unwrap().finish().unwrap();
        assert_eq!(std::fs::metadata(path("new")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_full_disk_is_reported_at_the_end() {
        struct FullDisk;
        impl CuttableFile for FullDisk {
            fn cut(&mut self, _: u64) -> io::Result<()> {
                Ok(())
            }
        }
        impl Write for FullDisk {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let recorder = Recorder::write_to("t".into(), FullDisk, TranscriptHeader::now(), None).unwrap();
        recorder.record_line("a", LineDirection::Send, &json!(1));
        recorder.record_line("a", LineDirection::Send, &json!(2));
        let error = recorder.finish().unwrap_err();
        assert!(matches!(error, TranscriptError::Io { action: "written", .. }), "{error:?}");
        assert!(recorder.finish().is_ok());
    }

    /// A disk that takes nothing until it is released, and then keeps every byte.
    struct SlowDisk {
        released: Receiver<()>,
        kept: Arc<Mutex<Vec<u8>>>,
    }

    impl CuttableFile for SlowDisk {
        fn cut(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    impl Write for SlowDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.released.recv().unwrap_or(());
            self.kept.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_disk_loses_entries_and_says_so() {
        let (release, released) = sync_channel::<()>(0);
        let kept = Arc::new(Mutex::new(Vec::new()));
        let disk = SlowDisk { released, kept: kept.clone() };
        let recorder = Recorder::write_to("t".into(), disk, TranscriptHeader::now(), None).unwrap();
        let sent = QUEUE_ENTRIES as u64 + 100;
        for number in 0..sent {
            recorder.record_line("a", LineDirection::Send, &json!(number));
        }
        drop(release);
        let totals = recorder.finish().unwrap();
        assert!(totals.dropped >= 99, "{totals:?}");
        let kept = kept.lock().unwrap();
        let notes: u64 = Transcript::read(kept.as_slice(), "t")
            .filter_map(|entry| match entry.unwrap() {
                TranscriptEntry { direction: LineDirection::Note, body: EntryBody::Line(note), .. } => {
                    note["dropped"].as_u64()
                }
                _ => None,
            })
            .sum();
        assert_eq!(notes, totals.dropped);
    }
}
