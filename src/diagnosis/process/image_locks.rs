//! The images that a QEMU has locked for writing, as the kernel's table of locks tells.
//!
//! Reads alone. QEMU locks single bytes of an image for what it does with it; whose such a lock is, the table does not
//! tell, for it belongs to an open file and to no process.

use std::{
    collections::BTreeSet,
    fs::{File, Metadata},
    io::Read,
    os::unix::fs::MetadataExt,
};

/// The byte that QEMU locks in an image that it may write to: `RAW_LOCK_PERM_BASE` and the bit of `BLK_PERM_WRITE`.
const WRITES: u64 = 101;
/// The most bytes of the table that are read.
const BYTES: u64 = 4 << 20;

/// The images that a QEMU has locked for writing, each by its device and inode as the table writes them.
#[derive(Debug, Default)]
pub(super) struct ImageLocks(BTreeSet<String>);

impl ImageLocks {
    /// Reads the table of this host.
    pub(super) fn read() -> Self {
        let mut table = String::new();
        if let Ok(file) = File::open("/proc/locks") {
            file.take(BYTES).read_to_string(&mut table).ok();
        }
        Self::of(&table)
    }

    fn of(table: &str) -> Self {
        Self(table.lines().filter_map(written).map(str::to_owned).collect())
    }

    /// Whether some QEMU has this file locked for writing.
    pub(super) fn hold(&self, file: &Metadata) -> bool {
        let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
        self.0.contains(&format!("{major:02x}:{minor:02x}:{}", file.ino()))
    }
}

/// The file of a row whose lock is there, belongs to an open file, and covers the byte.
fn written(row: &str) -> Option<&str> {
    let mut fields = row.split_whitespace().skip(1);
    if fields.next()? != "OFDLCK" {
        return None;
    }
    let (file, first, last) = (fields.nth(3)?, fields.next()?, fields.next()?);
    let last = if last == "EOF" { u64::MAX } else { last.parse().ok()? };
    (first.parse::<u64>().ok()? <= WRITES && WRITES <= last).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_of_an_image_that_is_written() {
        for (row, expected) in [
            ("1: OFDLCK ADVISORY  READ  -1 fe:00:132 100 101", Some("fe:00:132")),
            ("2: OFDLCK ADVISORY  READ -1 00:2b:7 101 EOF", Some("00:2b:7")),
            // QEMU lets nobody else write, and reads
            ("3: OFDLCK ADVISORY  READ  -1 fe:00:132 201 201", None),
            ("4: OFDLCK ADVISORY  READ  -1 fe:00:132 100 100", None),
            ("5: POSIX  ADVISORY  WRITE 77 fe:00:132 0 EOF", None),
            ("5: -> OFDLCK ADVISORY  READ -1 fe:00:132 101 101", None),
            ("6: OFDLCK ADVISORY", None),
            ("", None),
        ] {
            assert_eq!(written(row), expected, "{row}");
        }
        let file = File::open("/proc/self/exe").and_then(|file| file.metadata()).expect("a file");
        assert!(!ImageLocks::read().hold(&file) && !ImageLocks::of("torn").hold(&file));
    }
}
