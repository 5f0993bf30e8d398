//! The file system that a file is on: its free space and its name.
//!
//! The module must never change a file.

use rustix::fs::{StatVfsMountFlags, statvfs};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// The device number.
    pub device: u64,
    /// The free bytes for an unprivileged process.
    pub free: u64,
    /// Whether the file system is mounted read-only.
    pub read_only: bool,
    /// The mount point and the type, such as `/var (xfs)`.
    pub name: String,
}

impl FileSystem {
    /// The file system of a file or directory.
    ///
    /// # Errors
    /// The system's error, above all that the file does not exist.
    pub fn of(path: &Path) -> io::Result<Self> {
        Self::among(&MountTable::read(), path)
    }

    /// The same for one of many paths, for which the mounts are read once.
    ///
    /// # Errors
    /// As [`FileSystem::of`].
    pub(crate) fn among(mounts: &MountTable, path: &Path) -> io::Result<Self> {
        let device = fs::metadata(path)?.dev();
        let space = statvfs(path)?;
        Ok(Self {
            device,
            free: space.f_bavail.saturating_mul(space.f_frsize),
            read_only: space.f_flag.contains(StatVfsMountFlags::RDONLY),
            name: mounts.name(path),
        })
    }
}

/// The name of the file system that a path is on, such as `/var (xfs)`.
pub fn name(path: &Path) -> String {
    MountTable::read().name(path)
}

/// The file systems that are mounted, as the kernel lists them.
pub(crate) struct MountTable(String);

impl MountTable {
    pub(crate) fn read() -> Self {
        Self(fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    fn name(&self, path: &Path) -> String {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        mounted(&self.0, &path).unwrap_or_else(|| path.display().to_string())
    }
}

/// A mount point without octal escapes: the kernel escapes these four characters.
fn unescaped(name: &str) -> String {
    name.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn mounted(mounts: &str, path: &Path) -> Option<String> {
    let read = |line: &str| {
        let (mount, rest) = line.split_once(" - ")?;
        let point = PathBuf::from(unescaped(mount.split(' ').nth(4)?));
        let kind = rest.split(' ').next()?.to_owned();
        path.starts_with(&point).then_some((point, kind))
    };
    // Of two mounts at the same point the later one covers the earlier; `max_by_key` returns the last maximum.
    let (point, kind) = mounts.lines().filter_map(read).max_by_key(|(point, _)| point.components().count())?;
    Some(format!("{} ({kind})", point.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_is_named() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/x rw\n2 1 0:5 / /a rw shared:1 - tmpfs tmpfs rw\n\
                      3 1 0:6 / /a\\040b rw - xfs /dev/y rw\n";
        for (path, expected) in [("/a/x", "/a (tmpfs)"), ("/ab", "/ (ext4)"), ("/a b/c", "/a b (xfs)")] {
            assert_eq!(mounted(mounts, Path::new(path)).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_directory_has_one() {
        assert!(FileSystem::of(Path::new("/")).is_ok_and(|found| found.device != 0));
        assert!(FileSystem::of(Path::new("/nowhere/at/all")).is_err());
    }
}
