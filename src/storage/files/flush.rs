//! Flushes an image that a QEMU of this host writes to.
//!
//! `fdatasync` flushes what a file has in the host's page cache, whichever process has written that: QEMU's own flush
//! of the image then finds little to do. The file's content is never read, and never changed.

use rustix::fs::OFlags;
use std::{
    fs::{self, FileType, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

/// Flushes a regular file or a block device. Blocks for as long as the disk takes, or the file system hangs.
///
/// # Errors
/// The file cannot be opened or flushed, or is of another kind.
pub fn flush(path: &Path) -> io::Result<()> {
    // A device that is no disk may act on being opened, so the kind is asked for beforehand.
    require_image(fs::metadata(path)?.file_type())?;
    let mut options = OpenOptions::new();
    // A FIFO may have taken the name since: opening one waits for its writer, unless told not to.
    let file = options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    require_image(file.metadata()?.file_type())?;
    file.sync_data()
}

fn require_image(kind: FileType) -> io::Result<()> {
    match kind.is_file() || kind.is_block_device() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType as NodeType, Mode, mknodat};

    #[test]
    fn only_images_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let [image, fifo] = ["image", "fifo"].map(|name| folder.path().join(name));
        fs::write(&image, [1; 5000]).unwrap();
        mknodat(CWD, &fifo, NodeType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let kind = |path: &Path| flush(path).map_err(|error| error.kind());
        assert_eq!(kind(&image), Ok(()));
        // without the look at its kind the FIFO, which has no writer, would keep the test for ever
        assert_eq!(kind(&fifo), Err(io::ErrorKind::InvalidInput));
        assert_eq!(kind(folder.path()), Err(io::ErrorKind::InvalidInput));
        assert_eq!(kind(Path::new("/dev/null")), Err(io::ErrorKind::InvalidInput));
        assert_eq!(kind(&folder.path().join("none")), Err(io::ErrorKind::NotFound));
    }
}
