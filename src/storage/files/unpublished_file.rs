//! A file under construction: locked, under a temporary name, and renamed to its final name only when it is complete.
//!
//! An existing file must never be replaced, but for one that the maker names as it was seen, and no file without the
//! temporary name touched. A value that is dropped before it is published removes its file; the next process empties
//! the file that a killed process left.

use super::spent_images::FileMark;
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, ftruncate, open, renameat_with},
    io::Errno,
};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;

/// How often the temporary file is opened again if other processes create and remove it at the same time.
const ATTEMPTS: usize = 16;

/// Why a file could not be made.
#[derive(Debug, Error)]
pub enum UnpublishedFileError {
    /// Another process makes the same file.
    #[error("{path} is being made by another qferry{who}")]
    Locked {
        /// The file.
        path: String,
        /// `, pid N`, where that is known.
        who: String,
    },
    /// The file exists by now.
    #[error("{path} was created meanwhile by somebody else, and is left alone")]
    Exists {
        /// The file.
        path: String,
    },
    /// The path has no file name, or something else than a temporary file has the temporary name.
    #[error("{path} cannot be made: {why}")]
    Unfit {
        /// The file.
        path: String,
        /// The reason.
        why: &'static str,
    },
    /// The system refused.
    #[error("cannot {doing} {path}")]
    Io {
        /// The verb for what failed.
        doing: &'static str,
        /// The file.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// A file that does not have its final name yet.
#[derive(Debug)]
pub struct UnpublishedFile {
    path: PathBuf,
    temporary: PathBuf,
    file: Arc<File>,
    published: bool,
    /// The file that may have the final name, and whose place this one takes.
    replaced: Option<FileMark>,
}

impl UnpublishedFile {
    /// Creates and locks the empty temporary file for `path`, in the same folder.
    ///
    /// # Errors
    /// Another process makes the same file right now, or the system refuses.
    pub fn claim(path: &Path) -> Result<Self, UnpublishedFileError> {
        let temporary = temporary(path).ok_or_else(|| unfit(path, "its path has no file name"))?;
        for _ in 0..ATTEMPTS {
            let made = match open(&temporary, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | FLAGS, MODE) {
                // A killed process left the file, or another process is at work: the lock tells.
                Err(Errno::EXIST) => open(&temporary, OFlags::RDWR | FLAGS, Mode::empty()),
                made => made,
            };
            let file = match made {
                Ok(file) => File::from(file),
                // Another process removed or renamed the file in between.
                Err(Errno::NOENT) if temporary.parent().is_some_and(Path::exists) => continue,
                Err(Errno::LOOP) => return Err(unfit(&temporary, "it is a symbolic link")),
                Err(error) => return Err(failed("create", &temporary, error)),
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(UnpublishedFileError::Locked { path: show(path), who: who(&file).unwrap_or_default() });
                }
                Err(error) => return Err(failed("lock", &temporary, error)),
            }
            let stat = fstat(&file).map_err(|error| failed("look at", &temporary, error))?;
            if !is_at(&temporary, stat.st_dev, stat.st_ino) {
                continue;
            }
            if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
                return Err(unfit(&temporary, "it is no regular file"));
            }
            if stat.st_nlink > 1 {
                // A process was killed between the two halves of a rename by links: the file with the final name is
                // complete.
                fs::remove_file(&temporary).map_err(|source| io_failed("remove", &temporary, source))?;
                continue;
            }
            ftruncate(&file, 0).map_err(|error| failed("empty", &temporary, error))?;
            return Ok(Self {
                path: path.to_owned(),
                temporary,
                file: Arc::new(file),
                published: false,
                replaced: None,
            });
        }
        Err(unfit(&temporary, "another process keeps creating and removing it"))
    }

    /// The same file, which takes the place of the one with this mark.
    #[must_use]
    pub fn in_place_of(mut self, replaced: Option<FileMark>) -> Self {
        self.replaced = replaced;
        self
    }

    /// The open file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The temporary path.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// The final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file to stable storage and gives it its final name. Blocks meanwhile.
    ///
    /// # Errors
    /// Another file than the one to be replaced has the final name by now, or the system refuses; the file is removed
    /// then. If only the sync of the directory fails, the file has its final name and stays.
    pub fn publish(mut self) -> Result<(), UnpublishedFileError> {
        self.file.sync_all().map_err(|source| io_failed("sync", &self.temporary, source))?;
        let found = fs::symlink_metadata(&self.path).ok().map(|found| FileMark::of(&found));
        let takes_place = self.replaced.is_some() && found == self.replaced;
        let flags = if takes_place { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let renamed = match renameat_with(CWD, &self.temporary, CWD, &self.path, flags) {
            // NFS and other file systems do not support the flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::link(&self.temporary, &self.path).and_then(|()| rustix::fs::unlink(&self.temporary))
            }
            renamed => renamed,
        };
        match renamed {
            Ok(()) => self.published = true,
            Err(Errno::EXIST) => return Err(UnpublishedFileError::Exists { path: show(&self.path) }),
            Err(error) => return Err(failed("name", &self.path, error)),
        }
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|source| io_failed("sync", directory, source))
    }
}

impl Drop for UnpublishedFile {
    fn drop(&mut self) {
        let is_own = self.file.metadata().is_ok_and(|file| is_at(&self.temporary, file.dev(), file.ino()));
        if !self.published && is_own {
            if let Err(error) = fs::remove_file(&self.temporary) {
                tracing::warn!(%error, path = %self.temporary.display(), "the temporary file could not be removed");
            }
        }
    }
}

const FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
/// The mode that `qemu-img` uses; the umask applies as well.
const MODE: Mode = Mode::from_raw_mode(0o644);

/// The temporary path of a file: `.NAME.qferry-partial` in the same folder.
pub fn temporary(path: &Path) -> Option<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name()?);
    name.push(".qferry-partial");
    Some(path.with_file_name(name))
}

fn is_at(path: &Path, device: u64, inode: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (device, inode))
}

/// The holder of the lock as `, pid N`, where the kernel tells.
fn who(file: &File) -> Option<String> {
    let metadata = file.metadata().ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    holder(&locks, metadata.ino()).map(|pid| format!(", pid {pid}"))
}

/// The process with a lock on an inode. Device numbers are ignored: some file systems show another number in
/// `/proc/locks` than `stat` does.
fn holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|&word| word == "FLOCK")?;
        let held = words.get(at + 4)?.rsplit(':').next()?.parse() == Ok(inode) && !line.contains("->");
        if held { words.get(at + 3)?.parse().ok() } else { None }
    })
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

fn unfit(path: &Path, why: &'static str) -> UnpublishedFileError {
    UnpublishedFileError::Unfit { path: show(path), why }
}

fn failed(doing: &'static str, path: &Path, error: Errno) -> UnpublishedFileError {
    io_failed(doing, path, error.into())
}

fn io_failed(doing: &'static str, path: &Path, source: io::Error) -> UnpublishedFileError {
    UnpublishedFileError::Io { doing, path: show(path), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn it_is_there_when_it_is_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a b");
        let partial = UnpublishedFile::claim(&path).expect("claimed");
        partial.file().as_ref().write_all(b"x").expect("written");
        assert_eq!(names(folder.path()), [".a b.qferry-partial"]);
        partial.publish().expect("published");
        assert_eq!(names(folder.path()), ["a b"]);
        assert_eq!(fs::read(&path).expect("read"), b"x");
    }

    #[test]
    fn what_exists_is_never_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        let partial = UnpublishedFile::claim(&path).expect("claimed");
        fs::write(&path, "theirs").expect("written");
        assert!(matches!(partial.publish(), Err(UnpublishedFileError::Exists { .. })));
        assert_eq!(names(folder.path()), ["a"]);
        assert_eq!(fs::read(&path).expect("read"), b"theirs");
    }

    #[test]
    fn one_at_a_time_and_what_is_left_is_begun_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        let first = UnpublishedFile::claim(&path).expect("claimed");
        match UnpublishedFile::claim(&path) {
            Err(UnpublishedFileError::Locked { who, .. }) => assert_eq!(who, format!(", pid {}", std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        assert_eq!(names(folder.path()), Vec::<String>::new());

        fs::write(temporary(&path).expect("a name"), "left").expect("written");
        let partial = UnpublishedFile::claim(&path).expect("claimed");
        assert_eq!(partial.file().metadata().expect("a size").len(), 0);
        drop(partial);

        // killed between link and unlink
        fs::write(&path, "whole").expect("written");
        fs::hard_link(&path, temporary(&path).expect("a name")).expect("linked");
        drop(UnpublishedFile::claim(&path).expect("claimed"));
        assert_eq!(fs::read(&path).expect("read"), b"whole");

        std::os::unix::fs::symlink(&path, temporary(&path).expect("a name")).expect("linked");
        assert!(matches!(UnpublishedFile::claim(&path), Err(UnpublishedFileError::Unfit { .. })));
        assert_eq!(fs::read(&path).expect("read"), b"whole");
    }

    #[test]
    fn the_holder_is_read() {
        let locks = "1: POSIX  ADVISORY  WRITE 5 fe:00:7 0 EOF\n2: FLOCK  ADVISORY  WRITE 77 fe:00:12 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 78 fe:00:13 0 EOF\n";
        assert_eq!((holder(locks, 12), holder(locks, 13), holder(locks, 7)), (Some(77), None, None));
    }
}
