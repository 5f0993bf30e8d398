//! The folder of transcripts: bounded in the number of files, in the length of each, and in the sum.
//!
//! A file has the id of its run for a name, and ids sort by time. Only files with such names are listed or removed, and
//! no file whose writer lives is removed.

use crate::{
    qmp::{
        Recorder,
        transcript::{TranscriptError, TranscriptHeader, TranscriptTotals},
    },
    run_id::LENGTH,
    trust::{self, TrustError},
};
use rustix::fs::{FlockOperation, OFlags, flock};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use thiserror::Error;

/// Most bytes of one file. An idle guest's migration takes about 100 KiB, and a long one 1 MiB for ten minutes.
pub const FILE_LIMIT: u64 = 4 << 20;
/// The end of a file's name.
const EXTENSION: &str = ".jsonl";
/// Time for which the end of a migration waits for a disk that hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// The bounds of a folder of transcripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingBounds {
    /// Most files.
    pub files: usize,
    /// Most bytes of one file.
    pub file: u64,
    /// Most bytes of all files.
    pub sum: u64,
}

impl Default for RingBounds {
    fn default() -> Self {
        Self { files: 64, file: FILE_LIMIT, sum: 64 << 20 }
    }
}

/// Reason why the folder takes no transcript.
#[derive(Debug, Error)]
pub enum RingError {
    /// The folder cannot be made, or another user may write to it.
    #[error("the folder {} is not used", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The reason.
        #[source]
        source: TrustError,
    },
    /// The file cannot be made.
    #[error(transparent)]
    File(#[from] TranscriptError),
}

/// A transcript in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingFile {
    /// The file.
    pub path: PathBuf,
    /// Id of the run, which is the name of the file.
    pub run: String,
    /// Length in bytes.
    pub length: u64,
}

/// A folder of transcripts.
#[derive(Debug, Clone)]
pub struct TranscriptRing {
    folder: PathBuf,
    bounds: RingBounds,
}

impl TranscriptRing {
    /// The ring in a folder, which need not exist.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, bounds: RingBounds::default() }
    }

    /// The same with other bounds.
    #[must_use]
    pub fn bounds(self, bounds: RingBounds) -> Self {
        Self { bounds, ..self }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Begins the transcript of a run, after the oldest files were removed as far as the bounds ask for that. A missing
    /// folder is made for its owner alone.
    ///
    /// # Errors
    /// The folder or the file cannot be made, or another user may write to the folder.
    pub fn begin(&self, run: &str, header: TranscriptHeader) -> Result<Recorder, RingError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(TrustError::Io);
        let trusted = made.and_then(|()| trust::folder(&self.folder));
        trusted.map_err(|source| RingError::Folder { path: self.folder.clone(), source })?;
        self.prune();
        let path = self.folder.join(format!("{run}{EXTENSION}"));
        Ok(Recorder::create_with(path, header, Some(self.bounds.file))?)
    }

    /// The transcripts, the newest first. A folder that is missing has none.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn files(&self) -> io::Result<Vec<RingFile>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let run = name.to_str().and_then(|name| name.strip_suffix(EXTENSION)).filter(|run| is_run(run));
            // No link is followed, and a file may be removed while the folder is read.
            let found_file = entry.metadata().ok().filter(fs::Metadata::is_file);
            if let (Some(run), Some(metadata)) = (run, found_file) {
                found.push(RingFile { path: entry.path(), run: run.to_owned(), length: metadata.len() });
            }
        }
        found.sort_by(|one, other| other.run.cmp(&one.run));
        Ok(found)
    }

    /// Makes room for one more file of the greatest length. A file that cannot be removed is left: the next run tries
    /// again.
    fn prune(&self) {
        let Ok(files) = self.files() else { return };
        let (mut number, mut sum) = (1, self.bounds.file);
        for file in files {
            number += 1;
            sum += file.length;
            let is_beyond = number > self.bounds.files || sum > self.bounds.sum;
            if is_beyond && !matches!(has_writer(&file.path), Ok(true)) {
                if let Err(error) = fs::remove_file(&file.path) {
                    tracing::debug!(path = %file.path.display(), %error, "an old transcript is not removed");
                }
            }
        }
    }
}

fn is_run(name: &str) -> bool {
    name.len() == LENGTH && name.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
}

/// Whether the process that writes a transcript lives: the process holds a lock on the file.
///
/// # Errors
/// The file cannot be opened or locked.
pub fn has_writer(path: &Path) -> io::Result<bool> {
    let file = open_plain(path)?;
    match flock(&file, FlockOperation::NonBlockingLockShared).map_err(io::Error::from) {
        Ok(()) => flock(&file, FlockOperation::Unlock).map(|()| false).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// Opens a plain file for reading. A pipe or a device could block the reader or never end.
///
/// # Errors
/// The file cannot be opened, or is no plain file.
pub fn open_plain(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "the path does not lead to a plain file")),
    }
}

/// Ends a transcript of the ring. A disk that hangs is not waited for.
///
/// # Errors
/// The first error of writing, or that the disk hangs.
pub fn finish(recorder: &Recorder) -> Result<TranscriptTotals, TranscriptError> {
    recorder.finish_within(PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn name(number: u32) -> String {
        format!("{number:012}")
    }

    fn begin(ring: &TranscriptRing, number: u32) -> Result<Recorder, RingError> {
        ring.begin(&name(number), TranscriptHeader::of_run(name(number), "/s".into(), "/d".into()))
    }

    fn numbers(ring: &TranscriptRing) -> Vec<u32> {
        ring.files().unwrap().iter().map(|file| file.run.parse().unwrap()).collect()
    }

    #[test]
    fn the_oldest_give_way_to_the_number_and_to_the_sum() {
        let folder = tempfile::tempdir().unwrap();
        let ring = TranscriptRing::new(folder.path().join("a/transcripts"));
        assert_eq!(ring.files().unwrap(), []);
        let bounds = RingBounds { files: 4, file: 1 << 20, sum: 8 << 20 };
        let ring = ring.bounds(bounds);
        for number in 0..6 {
            begin(&ring, number).unwrap().finish().unwrap();
        }
        assert_eq!(numbers(&ring), [5, 4, 3, 2]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(ring.folder()), mode(&ring.files().unwrap()[0].path)), (0o700, 0o600));
        // Files of other names are the user's, and take no part.
        for other in ["notes.jsonl", "000000000007.txt", "000000000007.jsonl.gz", "00000000000A.jsonl"] {
            fs::write(ring.folder().join(other), vec![0; 9 << 20]).unwrap();
        }
        fs::create_dir(ring.folder().join("000000000008.jsonl")).unwrap();
        std::os::unix::fs::symlink("/nowhere", ring.folder().join("000000000009.jsonl")).unwrap();
        assert_eq!(numbers(&ring), [5, 4, 3, 2]);
        // The third oldest alone makes the sum too large, so that the older two go as well.
        fs::write(ring.folder().join("000000000004.jsonl"), vec![0; 7 << 20]).unwrap();
        begin(&ring, 6).unwrap().finish().unwrap();
        assert_eq!(numbers(&ring), [6, 5]);
        assert_eq!(fs::read_dir(ring.folder()).unwrap().count(), 2 + 4 + 2);
    }

    #[test]
    fn a_file_that_is_written_stays() {
        let folder = tempfile::tempdir().unwrap();
        let ring = TranscriptRing::new(folder.path().to_owned());
        let ring = ring.bounds(RingBounds { files: 1, file: 1 << 20, sum: 2 << 20 });
        let first = begin(&ring, 1).unwrap();
        let path = ring.files().unwrap()[0].path.clone();
        assert!(has_writer(&path).unwrap());
        begin(&ring, 2).unwrap().finish().unwrap();
        assert_eq!(numbers(&ring), [2, 1]);
        first.finish().unwrap();
        assert!(!has_writer(&path).unwrap());
        begin(&ring, 3).unwrap().finish().unwrap();
        assert_eq!(numbers(&ring), [3]);
    }

    #[test]
    fn no_folder_of_others_and_no_file_in_its_place_is_used() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let ring = TranscriptRing::new(folder.path().to_owned());
        assert!(matches!(begin(&ring, 1), Err(RingError::Folder { source: TrustError::Distrusted(_), .. })));
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
        begin(&ring, 1).unwrap().finish().unwrap();
        assert!(matches!(begin(&ring, 1), Err(RingError::File(TranscriptError::Exists { .. }))));
        fs::write(folder.path().join("file"), "").unwrap();
        let in_the_way = TranscriptRing::new(folder.path().join("file/transcripts"));
        assert!(matches!(begin(&in_the_way, 1), Err(RingError::Folder { source: TrustError::Io(_), .. })));
    }
}
