//! The thread that owns the file of a transcript, and the bound on the length of that file.
//!
//! The thread takes entries from a bounded queue, so that the disk delays nobody but the thread. A file with a limit
//! keeps its beginning and its end: once the first half is full, entries are kept in memory as well as on the disk, and
//! where the second half is full the older part of that half is thrown away and rewritten without its samples. The
//! file is whole after each step, so that the death of this program leaves a readable one.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use super::transcript_format::{LineDirection, render_line};

/// Time for which the thread lets entries gather. A wake-up and a write for each entry would cost more than the entry.
const GATHERING: Duration = Duration::from_millis(50);
/// Longest note of what is left out, in bytes.
const NOTE_LENGTH: u64 = 256;

/// A file that can be cut off, so that its end can be written anew.
pub(super) trait CuttableFile: Write {
    /// Cuts the file off after `length` bytes; the next write follows there.
    fn cut(&mut self, length: u64) -> io::Result<()>;

    /// Gives up the lock that tells others that the writer lives.
    fn unlock(&self) {}
}

impl CuttableFile for BufWriter<File> {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.flush()?;
        self.get_mut().set_len(length)?;
        self.seek(SeekFrom::Start(length)).map(drop)
    }

    fn unlock(&self) {
        // Closing the file is not enough while a child that another thread has just forked holds the descriptor, too.
        flock(self.get_ref(), FlockOperation::Unlock).ok();
    }
}

/// An entry in the queue.
#[derive(Debug)]
pub(super) struct QueuedEntry {
    /// The line of the file, with its newline.
    pub(super) text: String,
    /// A sample is one of many of its kind: a file that becomes too long can do without it.
    pub(super) is_sample: bool,
}

/// A message to the thread.
pub(super) enum WriterMessage {
    Entry(QueuedEntry),
    Finish,
}

/// Counts that the connections and the writer thread share.
#[derive(Debug, Default)]
pub(super) struct WriteBacklog {
    pub(super) bytes: AtomicUsize,
    pub(super) dropped: AtomicU64,
}

/// The end of the thread.
pub(super) struct WriterOutcome {
    pub(super) written: u64,
    pub(super) left_out: u64,
    pub(super) error: Option<io::Error>,
}

/// The thread that owns the file.
pub(super) struct TranscriptWriter<W> {
    file: W,
    started: Instant,
    backlog: Arc<WriteBacklog>,
    /// Number of dropped entries already noted in the file.
    noted: u64,
    written: u64,
    error: Option<io::Error>,
    /// Bytes in the file.
    length: u64,
    limit: Option<u64>,
    tail: Option<TranscriptTail>,
}

/// The second half of a file with a limit.
struct TranscriptTail {
    /// Offset in the file, and the time of the recorder, at which the tail began.
    offset: u64,
    began: Duration,
    entries: VecDeque<QueuedEntry>,
    left_out: u64,
    left_out_bytes: u64,
}

impl<W: CuttableFile> TranscriptWriter<W> {
    pub(super) fn new(file: W, started: Instant, limit: Option<u64>, backlog: Arc<WriteBacklog>) -> Self {
        Self { file, started, backlog, noted: 0, written: 0, error: None, length: 0, limit, tail: None }
    }

    pub(super) fn run(mut self, header: &str, messages: &Receiver<WriterMessage>) -> WriterOutcome {
        self.put(header);
        self.attempt(W::flush);
        while let Ok(first) = messages.recv() {
            // The end of the recording unparks the thread.
            thread::park_timeout(GATHERING);
            let mut next = Ok(first);
            let is_last = loop {
                match next {
                    Ok(WriterMessage::Entry(entry)) => self.take(entry),
                    Ok(WriterMessage::Finish) => break true,
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break false,
                }
                next = messages.try_recv();
            };
            // The file is complete up to now if this program is killed.
            self.attempt(W::flush);
            if is_last {
                break;
            }
        }
        self.note_drops();
        self.attempt(W::flush);
        self.file.unlock();
        let left_out = self.tail.as_ref().map_or(0, |tail| tail.left_out);
        WriterOutcome { written: self.written - left_out, left_out, error: self.error }
    }

    fn take(&mut self, entry: QueuedEntry) {
        self.note_drops();
        let length = entry.text.len();
        self.write(entry);
        self.backlog.bytes.fetch_sub(length, Ordering::AcqRel);
    }

    fn note_drops(&mut self) {
        let dropped = self.backlog.dropped.load(Ordering::Acquire);
        if dropped > self.noted && self.error.is_none() {
            let note = json!({"dropped": dropped - self.noted});
            self.noted = dropped;
            let text = note_line(self.started.elapsed(), &note);
            self.write(QueuedEntry { text, is_sample: false });
        }
    }

    fn write(&mut self, entry: QueuedEntry) {
        if self.error.is_some() {
            self.backlog.dropped.fetch_add(1, Ordering::AcqRel);
            return;
        }
        match self.limit {
            Some(limit) => self.write_within(limit, entry),
            None => self.put(&entry.text),
        }
        self.written += u64::from(self.error.is_none());
    }

    /// Writes an entry and keeps the length of the file within its limit.
    fn write_within(&mut self, limit: u64, mut entry: QueuedEntry) {
        let half = limit / 2;
        if entry.text.len() as u64 > half / 4 {
            entry.text = note_line(self.started.elapsed(), &json!({"too_long": entry.text.len()}));
        }
        let length = self.length + entry.text.len() as u64;
        if self.tail.is_none() && length <= half {
            return self.put(&entry.text);
        }
        let (offset, began) = (self.length, self.started.elapsed());
        let tail = self.tail.get_or_insert_with(|| TranscriptTail::new(offset, began));
        tail.entries.push_back(entry);
        if length > limit {
            let text = tail.shorten((limit - tail.offset) / 2);
            let offset = tail.offset;
            self.attempt(|file| file.cut(offset));
            self.length = offset;
            self.put(&text);
        } else if let Some(text) = tail.entries.back().map(|entry| entry.text.clone()) {
            self.put(&text);
        }
    }

    fn put(&mut self, text: &str) {
        self.attempt(|file| file.write_all(text.as_bytes()));
        self.length += text.len() as u64;
    }

    /// Runs an action on the file, unless an earlier one failed: the end of the file is torn then.
    fn attempt(&mut self, action: impl FnOnce(&mut W) -> io::Result<()>) {
        if self.error.is_none() {
            self.error = action(&mut self.file).err();
        }
    }
}

impl TranscriptTail {
    fn new(offset: u64, began: Duration) -> Self {
        Self { offset, began, entries: VecDeque::new(), left_out: 0, left_out_bytes: 0 }
    }

    /// Throws the older part of the entries away, and returns the text of the tail: a note, what is no sample of the
    /// older part, and the newer part. The two parts take at most `budget` bytes, and the older part half of that.
    fn shorten(&mut self, budget: u64) -> String {
        let mut newer: u64 = self.entries.iter().map(|entry| entry.text.len() as u64).sum();
        let mut older = Vec::new();
        while newer > budget / 2 && !self.entries.is_empty() {
            let Some(entry) = self.entries.pop_front() else { break };
            newer -= entry.text.len() as u64;
            older.push(entry);
        }
        // The latest of the older part are worth the most.
        let mut room = (budget / 2).saturating_sub(NOTE_LENGTH);
        for entry in older.into_iter().rev() {
            let length = entry.text.len() as u64;
            if !entry.is_sample && length <= room {
                room -= length;
                self.entries.push_front(entry);
            } else {
                self.left_out += 1;
                self.left_out_bytes += length;
                // A gap among entries that are no samples would have no mark, so nothing before the gap is kept.
                room = if entry.is_sample { room } else { 0 };
            }
        }
        let note = json!({"left_out": self.left_out, "bytes": self.left_out_bytes});
        let mut text = note_line(self.began, &note);
        self.entries.iter().for_each(|entry| text.push_str(&entry.text));
        text
    }
}

fn note_line(at: Duration, note: &Value) -> String {
    render_line(at, "recorder", LineDirection::Note, &note.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::transcript::{EntryBody, Transcript, TranscriptEntry};
    use super::*;
    use proptest::prelude::*;

    impl CuttableFile for Vec<u8> {
        fn cut(&mut self, length: u64) -> io::Result<()> {
            self.truncate(length as usize);
            Ok(())
        }
    }

    /// Writes entries `(number, is_sample, padding)` to a file with a limit; returns the longest that the file was, the
    /// entries in the file, and the number of those that were left out.
    fn write_all(
        limit: u64,
        entries: impl IntoIterator<Item = (u64, bool, usize)>,
    ) -> (u64, Vec<TranscriptEntry>, u64) {
        let mut writer = TranscriptWriter::new(Vec::new(), Instant::now(), Some(limit), Arc::default());
        let mut longest = 0;
        for (number, is_sample, padding) in entries {
            let line = json!([number, "x".repeat(padding)]).to_string();
            let text = render_line(Duration::from_micros(number), "a", LineDirection::Send, &line);
            writer.write(QueuedEntry { text, is_sample });
            longest = longest.max(writer.file.len() as u64);
            assert_eq!(writer.file.len() as u64, writer.length);
        }
        let left_out = writer.tail.as_ref().map_or(0, |tail| tail.left_out);
        let mut transcript = Transcript::read(writer.file.as_slice(), "t");
        let read: Vec<TranscriptEntry> = transcript.by_ref().map(Result::unwrap).collect();
        assert_eq!(transcript.skipped(), 0);
        (longest, read, left_out)
    }

    fn numbers(entries: &[TranscriptEntry]) -> Vec<u64> {
        entries.iter().filter(|entry| entry.side == "a").map(|entry| entry.at.as_micros() as u64).collect()
    }

    #[test]
    fn a_long_file_keeps_its_beginning_its_end_and_what_is_no_sample() {
        let entries = |last: u64| (0..=last).map(|number| (number, number % 100 != 0, 60));
        let (_, read, left_out) = write_all(64 << 10, entries(300));
        assert_eq!((numbers(&read), left_out), ((0..=300).collect(), 0));

        let (longest, read, left_out) = write_all(64 << 10, entries(10_000));
        assert!(longest <= 64 << 10, "{longest}");
        let kept = numbers(&read);
        let head: Vec<u64> = (0..200).collect();
        let tail: Vec<u64> = (9_950..=10_000).collect();
        assert!(kept.starts_with(&head) && kept.ends_with(&tail), "{kept:?}");
        assert!(kept.is_sorted() && kept.contains(&9_500), "{kept:?}");
        let notes: Vec<_> = read.iter().filter(|entry| entry.side == "recorder").collect();
        let [TranscriptEntry { body: EntryBody::Line(note), .. }] = notes[..] else { panic!("{notes:?}") };
        assert_eq!(note["left_out"], left_out);
        assert_eq!(left_out + kept.len() as u64, 10_001);
        assert!(read.windows(2).filter(|pair| pair[0].side == pair[1].side).all(|pair| pair[0].at <= pair[1].at));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn no_entries_make_a_file_longer_than_its_limit(
            entries in proptest::collection::vec((any::<bool>(), prop_oneof![0..200_usize, 3000..9000_usize]), 0..150),
        ) {
            let numbered = (0..).zip(&entries).map(|(number, (is_sample, padding))| (number, *is_sample, *padding));
            let (longest, read, left_out) = write_all(32 << 10, numbered);
            prop_assert!(longest <= 32 << 10, "{longest}");
            let too_long = read.iter().filter(|entry| matches!(&entry.body, EntryBody::Line(line) if line.get("too_long").is_some()));
            let (kept, too_long) = (numbers(&read), too_long.count() as u64);
            prop_assert!(kept.is_sorted());
            prop_assert!(kept.len() as u64 + too_long + left_out == entries.len() as u64);
        }
    }

    #[test]
    fn a_file_on_the_disk_is_cut_and_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t");
        let mut file = BufWriter::new(File::create(&path).unwrap());
        file.write_all(b"beginning, middle").unwrap();
        file.cut(9).unwrap();
        file.write_all(b" and end").unwrap();
        file.flush().unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "beginning and end");
    }
}
