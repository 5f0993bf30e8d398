//! The file of a journal: made, locked, appended to, opened again.
//!
//! The module owns durability and the lock. An append returns once its line is on the disk. After a failed append no
//! other is tried, because a line must not follow a half-written one. The module must never write to a file that
//! another process has locked, nor to a file that is not a valid journal.

use crate::trust::{self, FileOwner, TrustError};

use super::format::{self, FormatError, JournalEntry, LIMIT, ParsedJournal};
use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    marker::PhantomData,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use thiserror::Error;

/// How often and at which interval a lock is tried: [`find_lock_holder`] holds it for an instant.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(5);

/// Reason why a journal cannot be begun, written or read.
#[derive(Debug, Error)]
pub enum JournalError {
    /// A file of that name exists.
    #[error(
        "{} exists already: give the journal the name of a new file; if the existing file is the journal of an engine \
         that died, run 'qferry recover' with it first",
        path.display()
    )]
    Exists {
        /// The journal.
        path: PathBuf,
    },
    /// Another process holds the lock.
    #[error(
        "the journal {} is locked: the engine that writes it still lives, so wait until that engine ends, or end it",
        path.display()
    )]
    Locked {
        /// The journal.
        path: PathBuf,
    },
    /// Another user may have written the journal, or may put another file in its place.
    #[error(
        "the journal {} is not used: a journal names processes to be ended and a command to be run, and somebody else \
         may have written it",
        path.display()
    )]
    Distrusted {
        /// The journal.
        path: PathBuf,
        /// Part of the path that another user may change.
        #[source]
        source: TrustError,
    },
    /// The file is not a journal, or a damaged one.
    #[error(
        "{} cannot be read as a journal, so nothing was done: look at both sides with query-status yourself",
        path.display()
    )]
    Content {
        /// The journal.
        path: PathBuf,
        /// Reason of the parser.
        #[source]
        source: FormatError,
    },
    /// A record does not serialise to JSON.
    #[error(
        "a record for the journal {} cannot be encoded: this is a fault of qferry, please report it",
        path.display()
    )]
    Encode {
        /// The journal.
        path: PathBuf,
        /// Error of the serialisation.
        #[source]
        source: serde_json::Error,
    },
    /// The journal would become longer than the limit for reading.
    #[error("the journal {} would become longer than {LIMIT} bytes: begin a new journal", path.display())]
    Full {
        /// The journal.
        path: PathBuf,
    },
    /// An earlier append failed.
    #[error(
        "the journal {} takes no more records, because an earlier record could not be written: see the first error",
        path.display()
    )]
    Broken {
        /// The journal.
        path: PathBuf,
    },
    /// The journal's disk is slower than the step that waits for it allows.
    #[error("the journal {} was not written within {limit:?}: its disk is slow, or hangs", path.display())]
    Slow {
        /// The journal.
        path: PathBuf,
        /// Time that the step has for the journal.
        limit: Duration,
    },
    /// The thread that writes the journal has panicked.
    #[error("the journal is not written any more: the thread that writes it has died")]
    WriterDied,
    /// Another operation on the file failed.
    #[error(
        "the journal {} cannot be {action}: check its path, its permissions and the free space of its file system, or \
         name another file",
        path.display()
    )]
    Io {
        /// The journal.
        path: PathBuf,
        /// Operation that failed, as a participle: `made`, `opened`, `locked`, `read`, `mended` or `written`.
        action: &'static str,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
}

/// A journal that this process alone may write. The file is locked as long as the value lives.
#[derive(Debug)]
pub struct Journal<R> {
    file: File,
    path: PathBuf,
    /// Number of the next record.
    next: u64,
    /// Length of the file in bytes.
    length: usize,
    broken: bool,
    records: PhantomData<fn(&R)>,
}

impl<R: Serialize + DeserializeOwned> Journal<R> {
    /// Begins a journal in a new file that only its owner can read. Missing folders of the path are made, with the same
    /// permissions. After the return, the file survives a power cut.
    ///
    /// # Errors
    /// [`JournalError::Exists`] where a file of that name exists; [`JournalError::Locked`] or [`JournalError::Io`]
    /// where the file cannot be made, locked or written.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, JournalError> {
        let path = path.into();
        let made = folder_of(&path).and_then(|folder| {
            make_folder(folder)?;
            trust::locate(folder, FileOwner::User).map_err(io::Error::other)?;
            let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path)?;
            Ok((file, folder))
        });
        let (file, folder) = match made {
            Ok(made) => made,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(JournalError::Exists { path }),
            Err(source) => return Err(JournalError::Io { path, action: "made", source }),
        };
        let begun = Self::begin(file, &path).and_then(|journal| {
            sync_folder(folder).map_err(|source| JournalError::Io { path: path.clone(), action: "written", source })?;
            Ok(journal)
        });
        // A journal that was not begun is removed, because the next attempt would find the file in its way.
        begun.inspect_err(|_| drop(fs::remove_file(&path)))
    }

    /// Looks whether a journal could be made at a path, and makes nothing.
    ///
    /// # Errors
    /// As [`Journal::create`], as far as they can be foreseen.
    pub fn rehearse(path: &Path) -> Result<(), JournalError> {
        if fs::symlink_metadata(path).is_ok() {
            return Err(JournalError::Exists { path: path.to_owned() });
        }
        let made = folder_of(path).and_then(|folder| match folder.exists() {
            true => trust::locate(folder, FileOwner::User).map(drop).map_err(io::Error::other),
            false => Ok(()),
        });
        made.map_err(|source| JournalError::Io { path: path.to_owned(), action: "made", source })
    }

    /// Opens a journal whose writer has died, to read it and to append to it. A torn last line is cut off.
    ///
    /// # Errors
    /// [`JournalError::Locked`] while the writer lives; [`JournalError::Content`] where the file is not a valid
    /// journal. The file then stays as it is.
    pub fn open(path: impl Into<PathBuf>) -> Result<(Self, Vec<JournalEntry<R>>), JournalError> {
        let path = path.into();
        let file = open_own(&path, OpenOptions::new().read(true).append(true))?;
        lock(&file, &path)?;
        let (parsed, length) = parse(&file, &path)?;
        let mended = |source| JournalError::Io { path: path.clone(), action: "mended", source };
        if parsed.whole < length {
            tracing::warn!(journal = %path.display(), bytes = length - parsed.whole, "a torn last record is cut off");
            file.set_len(parsed.whole as u64).map_err(mended)?;
        }
        // A writer that was killed before its sync leaves records that may be in the page cache alone.
        file.sync_all().map_err(mended)?;
        let next = parsed.next_number();
        let mut journal = Self { file, path, next, length: parsed.whole, broken: false, records: PhantomData };
        if parsed.whole == 0 {
            journal.write(&format::encode_header())?;
        }
        Ok((journal, parsed.entries))
    }

    /// Appends a record and returns its number. After the return, the record is on the disk.
    ///
    /// # Errors
    /// After any error, the recorded intent must not be begun. Where the file could not be written, every later append
    /// fails too.
    pub fn append(&mut self, record: &R) -> Result<u64, JournalError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let entry = JournalEntry { n: self.next, at: u64::try_from(since.as_millis()).unwrap_or(u64::MAX), record };
        let line = format::encode_entry(&entry);
        let line = line.map_err(|source| JournalError::Encode { path: self.path.clone(), source })?;
        self.write(&line)?;
        self.next += 1;
        Ok(entry.n)
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a journal in an empty file.
    fn begin(file: File, path: &Path) -> Result<Self, JournalError> {
        lock(&file, path)?;
        let path = path.to_owned();
        let mut journal = Self { file, path, next: 1, length: 0, broken: false, records: PhantomData };
        journal.write(&format::encode_header())?;
        Ok(journal)
    }

    /// Writes a line and waits until the line is on the disk.
    fn write(&mut self, line: &str) -> Result<(), JournalError> {
        if self.broken {
            return Err(JournalError::Broken { path: self.path.clone() });
        }
        if self.length + line.len() > LIMIT {
            return Err(JournalError::Full { path: self.path.clone() });
        }
        // The journal counts as broken until the sync has succeeded. A failed sync breaks it for good: the kernel may
        // have dropped the line from its cache, and would then report success to a second sync.
        self.broken = true;
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|source| JournalError::Io { path: self.path.clone(), action: "written", source })?;
        self.broken = false;
        self.length += line.len();
        Ok(())
    }
}

/// Reads a journal, also while another process writes it, and changes nothing.
///
/// # Errors
/// [`JournalError::Io`] where the file cannot be read; [`JournalError::Content`] where it is not a valid journal.
pub fn read<R: DeserializeOwned>(path: impl Into<PathBuf>) -> Result<Vec<JournalEntry<R>>, JournalError> {
    let path = path.into();
    let file = open_own(&path, OpenOptions::new().read(true))?;
    Ok(parse(&file, &path)?.0.entries)
}

/// Reads the first record of a journal, as [`read`] does, and no more of the file: `None` where none was written whole.
///
/// # Errors
/// See [`read`]. Damage behind the first record is not seen.
pub fn read_first<R: DeserializeOwned>(path: impl Into<PathBuf>) -> Result<Option<JournalEntry<R>>, JournalError> {
    let path = path.into();
    let failed = |source| JournalError::Io { path: path.clone(), action: "read", source };
    let file = open_own(&path, OpenOptions::new().read(true))?;
    let mut lines = BufReader::new(file.take(LIMIT as u64));
    let mut bytes = Vec::new();
    for _ in ["the header", "the record"] {
        lines.read_until(b'\n', &mut bytes).map_err(failed)?;
    }
    match format::parse(&bytes) {
        Ok(parsed) => Ok(parsed.entries.into_iter().next()),
        Err(source) => Err(JournalError::Content { path, source }),
    }
}

/// The process that holds the lock of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockHolder {
    /// The process, where the kernel tells it: not on another host, nor in another pid namespace.
    pub pid: Option<u32>,
}

/// Looks for the process that writes a journal; `None` where none lives.
///
/// # Errors
/// The file cannot be opened or locked.
pub fn find_lock_holder(path: &Path) -> io::Result<Option<LockHolder>> {
    require_plain_file(path)?;
    let file = File::open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockShared).map_err(io::Error::from) {
        Ok(()) => flock(&file, FlockOperation::Unlock).map(|()| None).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
            Ok(Some(LockHolder { pid: pid_among(&locks, file.metadata()?.ino()) }))
        }
        Err(error) => Err(error),
    }
}

/// The process with the lock on a file, by the lines of `/proc/locks`: `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0
/// EOF`. The numbers of devices there are not always those of `stat`, so two files with one inode give none.
fn pid_among(locks: &str, inode: u64) -> Option<u32> {
    let mut found = locks.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_writer = words.next() == Some("FLOCK") && words.next().is_some() && words.next() == Some("WRITE");
        let (pid, file) = (words.next()?, words.next()?);
        (is_writer && file.rsplit(':').next()?.parse() == Ok(inode)).then_some(pid.parse().ok()?)
    });
    found.next().filter(|_| found.next().is_none())
}

/// Reads and parses a file; also returns its length.
fn parse<R: DeserializeOwned>(file: &File, path: &Path) -> Result<(ParsedJournal<R>, usize), JournalError> {
    let mut bytes = Vec::new();
    let read = file.take(LIMIT as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|source| JournalError::Io { path: path.to_owned(), action: "read", source })?;
    let parsed = if bytes.len() > LIMIT { Err(FormatError::TooLong) } else { format::parse(&bytes) };
    match parsed {
        Ok(parsed) => Ok((parsed, bytes.len())),
        Err(source) => Err(JournalError::Content { path: path.to_owned(), source }),
    }
}

impl<R> Drop for Journal<R> {
    fn drop(&mut self) {
        // Closing the file is not enough while a child that another thread has just forked holds the descriptor, too.
        if let Err(error) = flock(&self.file, FlockOperation::Unlock) {
            tracing::debug!(path = %self.path.display(), %error, "unlocking failed; closing the file unlocks it");
        }
    }
}

/// Locks the file. The kernel drops the lock with the last descriptor, so also where this process is killed.
fn lock(file: &File, path: &Path) -> Result<(), JournalError> {
    let take = || flock(file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from);
    let mut locked = take();
    for _ in 0..TRIES {
        match &locked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
            _ => break,
        }
        locked = take();
    }
    locked.map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => JournalError::Locked { path: path.to_owned() },
        _ => JournalError::Io { path: path.to_owned(), action: "locked", source },
    })
}

/// Fails unless the path leads to a plain file. Opening a pipe would wait for its other end.
fn require_plain_file(path: &Path) -> io::Result<()> {
    match fs::metadata(path)?.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "the path does not lead to a plain file")),
    }
}

/// Opens a file that nobody but this user can have written or exchanged.
fn open_own(path: &Path, options: &mut OpenOptions) -> Result<File, JournalError> {
    let failed = |source| JournalError::Io { path: path.to_owned(), action: "opened", source };
    require_plain_file(path).map_err(failed)?;
    let located = trust::locate(path, FileOwner::User).map_err(|source| match source {
        TrustError::Io(source) => failed(source),
        source @ TrustError::Distrusted(_) => JournalError::Distrusted { path: path.to_owned(), source },
    })?;
    // The located path has no links.
    options.custom_flags(OFlags::NOFOLLOW.bits() as i32).open(located).map_err(failed)
}

fn folder_of(path: &Path) -> io::Result<&Path> {
    let folder = path.parent().ok_or(io::ErrorKind::IsADirectory)?;
    Ok(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
}

/// Makes a folder and its missing parents, readable by their owner alone, so that they survive a power cut.
///
/// # Errors
/// A folder cannot be made.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder_of(folder)?;
    make_folder(above)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        // Another process made the folder a moment ago.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(io::ErrorKind::NotADirectory.into()),
        made => made?,
    }
    sync_folder(above)
}

/// Writes a folder to the disk. Without that, a power cut can remove the name of a file whose content is safe.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    type WordJournal = Journal<String>;

    fn words(entries: Vec<JournalEntry<String>>) -> Vec<String> {
        entries.into_iter().map(|entry| entry.record).collect()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    /// Writes a new journal with these records and closes it.
    fn write_journal(path: &Path, records: &[&str]) {
        let mut journal = WordJournal::create(path).unwrap();
        for (n, record) in (1..).zip(records) {
            assert_eq!(journal.append(&(*record).to_owned()).unwrap(), n);
        }
    }

    #[test]
    fn the_first_record_is_read_whatever_is_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let first = || read_first::<String>(&path).map(|entry| entry.map(|entry| entry.record));
        write_journal(&path, &[]);
        assert_eq!(first().unwrap(), None);
        write_journal(&folder.path().join("other"), &["begun", "given"]);
        let whole = fs::read(folder.path().join("other")).unwrap();
        let second = whole.iter().rposition(|byte| *byte == b'g').unwrap();
        let damaged = [&whole[..second], b"\n\xff\n"].concat();
        for bytes in [&whole[..], &whole[..second], &damaged] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(first().unwrap().as_deref(), Some("begun"));
        }
        assert!(read::<String>(&path).is_err());
        fs::write(&path, "no journal\n").unwrap();
        assert!(matches!(first(), Err(JournalError::Content { .. })));
    }

    #[test]
    fn a_written_journal_is_read_and_continued() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/qferry/j");
        write_journal(&path, &["a", "b\n{"]);
        assert_eq!(mode(&path), 0o600);
        for made in ["state", "state/qferry"] {
            assert_eq!(mode(&directory.path().join(made)), 0o700, "{made}");
        }
        assert_eq!(words(read(&path).unwrap()), ["a", "b\n{"]);

        let (mut journal, entries) = WordJournal::open(&path).unwrap();
        assert_eq!(journal.path(), path);
        assert!(entries.windows(2).all(|pair| pair[0].at <= pair[1].at) && entries[0].at > 1_700_000_000_000);
        assert_eq!(words(entries), ["a", "b\n{"]);
        assert_eq!(journal.append(&"c".to_owned()).unwrap(), 3);
        assert_eq!(words(read(&path).unwrap()), ["a", "b\n{", "c"], "a journal can be read while it is written");
    }

    #[test]
    fn one_writer_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let mut first = WordJournal::create(&path).unwrap();
        let refused = WordJournal::open(&path).unwrap_err();
        assert!(matches!(refused, JournalError::Locked { .. }), "{refused:?}");
        assert!(refused.to_string().contains("still lives"), "{refused}");
        first.append(&"a".to_owned()).unwrap();
        // The lock holds against another process, too.
        let lock_elsewhere =
            |path: &Path| std::process::Command::new("flock").arg("-n").arg(path).arg("true").status().unwrap();
        assert!(!lock_elsewhere(&path).success());
        drop(first);
        assert!(lock_elsewhere(&path).success());
        let (second, entries) = WordJournal::open(&path).unwrap();
        assert_eq!(words(entries), ["a"]);
        assert!(matches!(WordJournal::open(&path), Err(JournalError::Locked { .. })));
        drop(second);
    }

    #[test]
    fn the_process_with_the_lock_is_found_and_its_lock_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let journal = WordJournal::create(&path).unwrap();
        let pid = Some(std::process::id());
        assert_eq!(find_lock_holder(&path).unwrap(), Some(LockHolder { pid }));
        assert!(matches!(WordJournal::open(&path), Err(JournalError::Locked { .. })));
        drop(journal);
        assert_eq!(find_lock_holder(&path).unwrap(), None);
        // a look holds the lock for an instant, which keeps nobody off
        let looks = thread::spawn({
            let path = path.clone();
            move || (0..2000).for_each(|_| assert!(find_lock_holder(&path).is_ok()))
        });
        while !looks.is_finished() {
            drop(WordJournal::open(&path).unwrap());
        }
        looks.join().unwrap();
        let locks = "1: POSIX  ADVISORY  WRITE 1 08:01:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 08:01:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 12 08:01:77 0 EOF\n3: FLOCK  ADVISORY  READ  5 00:21:78 0 EOF\n";
        assert_eq!([77, 78, 7].map(|inode| pid_among(locks, inode)), [Some(4711), None, None]);
        assert_eq!(pid_among(&locks.replace(":78", ":77").replace("READ ", "WRITE"), 77), None);
    }

    #[test]
    fn a_descriptor_in_a_child_does_not_keep_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let journal = WordJournal::create(&path).unwrap();
        let held = journal.file.try_clone().unwrap();
        drop(journal);
        assert!(WordJournal::open(&path).is_ok());
        drop(held);
    }

    #[test]
    fn only_a_new_file_is_made_a_journal() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("old"), "precious").unwrap();
        std::os::unix::fs::symlink(path("nothing"), path("link")).unwrap();
        for name in ["old", "link", "."] {
            let error = WordJournal::create(path(name)).unwrap_err();
            assert!(matches!(error, JournalError::Exists { .. }), "{name}: {error:?}");
        }
        assert_eq!(fs::read_to_string(path("old")).unwrap(), "precious");
        assert!(!path("nothing").exists());
        let error = WordJournal::create(path("old/j")).unwrap_err();
        assert!(matches!(error, JournalError::Io { action: "made", .. }), "{error:?}");
    }

    #[test]
    fn a_file_that_is_no_journal_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let newer = "{\"qferry-journal\":2}\n{\"n\":1";
        let bad = "{\"qferry-journal\":1}\nx\n{\"n\":1,\"at\":1,\"record\":\"a\"}\n{\"n\":";
        for content in ["precious", newer, bad] {
            fs::write(&path, content).unwrap();
            for error in [WordJournal::open(&path).map(drop).unwrap_err(), read::<String>(&path).map(drop).unwrap_err()]
            {
                assert!(matches!(error, JournalError::Content { .. }), "{error:?}");
                assert!(error.to_string().contains(path.to_str().unwrap()));
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        for path in [directory.path().to_owned(), directory.path().join("missing"), "/dev/zero".into()] {
            assert!(matches!(WordJournal::open(&path), Err(JournalError::Io { action: "opened", .. })));
            assert!(matches!(read::<String>(&path), Err(JournalError::Io { action: "opened", .. })));
        }
    }

    #[test]
    fn a_journal_that_others_may_have_written_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("folder");
        let path = folder.join("j");
        let set = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        write_journal(&path, &["a"]);
        let refused = |words: &str| {
            for error in [WordJournal::open(&path).map(drop).unwrap_err(), read::<String>(&path).map(drop).unwrap_err()]
            {
                assert!(matches!(error, JournalError::Distrusted { .. }), "{error:?}");
                let why = std::error::Error::source(&error).unwrap().to_string();
                assert!(why.contains(words), "{why}");
            }
        };
        for (loose, mode, usual) in [(&path, 0o666, 0o600), (&path, 0o660, 0o600), (&folder, 0o777, 0o700)] {
            set(loose, mode);
            refused(&format!("{} (mode {mode:04o})", loose.display()));
            set(loose, usual);
        }
        set(&folder, 0o777);
        let error = WordJournal::create(folder.join("new")).unwrap_err();
        assert!(matches!(error, JournalError::Io { action: "made", .. }), "{error:?}");
        assert!(!folder.join("new").exists());
        set(&folder, 0o1777);
        assert_eq!(words(WordJournal::open(&path).unwrap().1), ["a"], "nobody can exchange a file there");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(words(WordJournal::open(&link).unwrap().1), ["a"], "this user's own link");
        // Tests run as root or as a user; only root can give a file away.
        if trust::user() == 0 {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            refused("belongs to user 65534");
        }
    }

    #[test]
    fn an_endless_file_costs_bounded_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        write_journal(&path, &["a"]);
        // The file is extended by a terabyte of zeros.
        OpenOptions::new().append(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        let error = read::<String>(&path).unwrap_err();
        assert!(matches!(error, JournalError::Content { source: FormatError::TooLong, .. }), "{error:?}");
    }

    #[test]
    fn a_record_too_long_to_be_read_back_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let mut journal = WordJournal::create(&path).unwrap();
        let error = journal.append(&"x".repeat(LIMIT)).unwrap_err();
        assert!(matches!(error, JournalError::Full { .. }), "{error:?}");
        assert_eq!(journal.append(&"a".to_owned()).unwrap(), 1, "nothing of the long record was written");
        assert_eq!(words(read(&path).unwrap()), ["a"]);
    }

    /// A journal that is begun already and whose writes go to a device.
    fn open_device(path: &str) -> WordJournal {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        Journal { file, path: path.into(), next: 1, length: 0, broken: false, records: PhantomData }
    }

    #[test]
    fn a_journal_that_failed_once_stays_failed() {
        // A write to /dev/full fails for lack of space. A write to /dev/null succeeds, but its sync fails.
        for device in ["/dev/full", "/dev/null"] {
            let mut journal = open_device(device);
            let first = journal.append(&"a".to_owned()).unwrap_err();
            assert!(matches!(first, JournalError::Io { action: "written", .. }), "{first:?}");
            journal.file = tempfile::tempfile().unwrap();
            let second = journal.append(&"b".to_owned()).unwrap_err();
            assert!(matches!(second, JournalError::Broken { .. }), "{second:?}");
            assert_eq!(
                journal.file.metadata().unwrap().len(),
                0,
                "the second append wrote nothing, though the new file has room"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_journal_torn_at_any_byte_is_continued(
            records in proptest::collection::vec(".{0,9}", 0..4), at in any::<prop::sample::Index>(),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("j");
            write_journal(&path, &records.iter().map(String::as_str).collect::<Vec<_>>());
            let length = fs::metadata(&path).unwrap().len() as usize;
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(at.index(length + 1) as u64).unwrap();

            let (mut journal, entries) = WordJournal::open(&path).unwrap();
            let mut kept = words(entries);
            prop_assert_eq!(&kept[..], &records[..kept.len()]);
            prop_assert_eq!(journal.append(&"after".to_owned()).unwrap(), kept.len() as u64 + 1);
            kept.push("after".to_owned());
            prop_assert_eq!(words(read(&path).unwrap()), kept);
        }
    }
}
