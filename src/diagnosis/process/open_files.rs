//! The images that a process has open: files and block devices, not its libraries and logs' pipes.

use super::{image_locks::ImageLocks, socket_owners::DESCRIPTORS};
use std::{fs, os::unix::fs::FileTypeExt, path::Path};

/// The most files that are told.
const MOST: usize = 256;

/// A file or a block device that a process has open.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::diagnosis) struct OpenFileLook {
    pub(in crate::diagnosis) path: String,
    pub(in crate::diagnosis) writable: bool,
    /// Whether a QEMU, this one or another, has it locked for writing.
    pub(in crate::diagnosis) is_locked: bool,
}

/// The open files of the process whose folder this is, and the number of its descriptors.
pub(super) fn open_files(root: &Path) -> std::io::Result<(Vec<OpenFileLook>, usize)> {
    let (mut found, mut count) = (Vec::new(), 0);
    let locks = ImageLocks::read();
    for entry in fs::read_dir(root.join("fd"))?.flatten().take(DESCRIPTORS) {
        count += 1;
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy();
        let data = fs::metadata(entry.path());
        let is_disk = data.as_ref().is_ok_and(|data| {
            let kind = data.file_type();
            kind.is_file() || kind.is_block_device()
        });
        // memory that has a name only
        if !target.starts_with('/') || target.starts_with("/memfd:") || target.starts_with("/dev/shm/") || !is_disk {
            continue;
        }
        let info = fs::read_to_string(root.join("fdinfo").join(entry.file_name())).unwrap_or_default();
        let path = target.chars().filter(|c| !c.is_control()).collect();
        let is_locked = data.is_ok_and(|data| locks.hold(&data));
        found.push(OpenFileLook { path, writable: is_writable(&info), is_locked });
    }
    found.sort();
    found.dedup();
    found.truncate(MOST);
    Ok((found, count))
}

/// Whether a file was opened for writing, by its `fdinfo`: `flags:` holds, in octal, those of open(2).
fn is_writable(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|flags| u64::from_str_radix(flags.trim(), 8).ok()).is_some_and(|flags| flags & 3 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_with_the_right_to_write() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        let written = fs::File::create(&path).expect("a file");
        let read = fs::File::open(&path).expect("a file");
        let (found, count) = open_files(Path::new("/proc/self")).expect("descriptors");
        let of: Vec<bool> = found
            .iter()
            .filter(|file| file.path == path.to_str().unwrap_or_default())
            .map(|file| file.writable)
            .collect();
        assert_eq!(of, [false, true]);
        assert!(count >= 2);
        drop((written, read));
        assert!(is_writable("pos:\t0\nflags:\t02100002\nmnt_id:\t1\n") && !is_writable("pos:\t0\nflags:\t0100000\n"));
        assert!(!is_writable(""));
    }
}
