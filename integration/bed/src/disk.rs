//! Disks: a backing file with known content, and a qcow2 overlay on it with some more.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::qemu_build::Build;

const MIB: u64 = 1 << 20;
/// Content comes in multiples of this.
const GRAIN: u64 = 64 << 10;
/// More pieces than this and they are made larger.
const PIECES: u64 = 512;

/// The shape of one disk, the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Virtual size in bytes, a multiple of 64 KiB.
    pub size: u64,
    /// Size of the backing file, also a multiple; it may be smaller.
    pub backing: u64,
    /// Bytes of data in the backing file, spread evenly over it.
    pub backing_data: u64,
    /// Bytes of data in the source's overlay before the guest boots, spread evenly over it.
    pub overlay_data: u64,
    /// The overlays' cluster size.
    pub cluster: u64,
    /// Read operations a second that the source's overlay file may do once the guest has booted. Needs `-blockdev`.
    pub throttled_reads: Option<u64>,
}

impl Default for DiskSpec {
    fn default() -> Self {
        Self {
            size: 128 * MIB,
            backing: 128 * MIB,
            backing_data: 32 * MIB,
            overlay_data: 16 * MIB,
            cluster: GRAIN,
            throttled_reads: None,
        }
    }
}

/// The files of one disk on one side.
#[derive(Clone, Debug)]
pub struct DiskFiles {
    /// The raw backing file, this side's own copy.
    pub backing: PathBuf,
    /// The qcow2 overlay that QEMU has open.
    pub overlay: PathBuf,
}

/// A piece of known content: where, and the byte it consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) byte: u8,
}

impl DiskSpec {
    pub(crate) fn check(&self) -> Result<()> {
        let whole =
            [self.size, self.backing, self.backing_data, self.overlay_data].iter().all(|bytes| bytes % GRAIN == 0);
        if !whole || self.size == 0 || self.backing_data > self.backing || self.overlay_data > self.size {
            return Err(Error::new(format!("sizes must be multiples of 64 KiB and data must fit: {self:?}")));
        }
        Ok(())
    }

    /// The content of the backing file of disk `number`; the rest is zero.
    pub(crate) fn backing_pieces(&self, number: usize) -> Vec<Piece> {
        spread(self.backing, self.backing_data, number as u64 * 2 + 1)
    }

    /// What the source's overlay has on top of it from the start.
    pub(crate) fn overlay_pieces(&self, number: usize) -> Vec<Piece> {
        spread(self.size, self.overlay_data, number as u64 * 2)
    }

    /// Makes the files of disk `number` in a side's folder; the overlay is empty.
    pub(crate) fn create(&self, build: &Build, folder: &Path, number: usize) -> Result<DiskFiles> {
        let files = DiskFiles {
            backing: folder.join(format!("backing{number}.raw")),
            overlay: folder.join(format!("disk{number}.qcow2")),
        };
        let file = File::create(&files.backing).context(|| format!("creating {}", files.backing.display()))?;
        file.set_len(self.backing).context(|| "sizing the backing file")?;
        for piece in self.backing_pieces(number) {
            let content = vec![piece.byte; usize::try_from(piece.length).context(|| "a piece of content")?];
            file.write_all_at(&content, piece.start).context(|| "filling the backing file")?;
        }
        self.create_overlay(build, &files)?;
        Ok(files)
    }

    /// Makes the overlay, or makes it empty again.
    pub(crate) fn create_overlay(&self, build: &Build, files: &DiskFiles) -> Result<()> {
        let (cluster, size) = (format!("cluster_size={}", self.cluster), self.size.to_string());
        let (backing, overlay) = (files.backing.as_os_str(), files.overlay.as_os_str());
        let options = ["create", "-q", "-f", "qcow2", "-F", "raw", "-o", &cluster, "-b"].map(AsRef::as_ref);
        build.img(options.into_iter().chain([backing, overlay, size.as_ref()])).map(drop)
    }

    /// Puts the source's content into its overlay.
    pub(crate) fn fill_overlay(&self, build: &Build, files: &DiskFiles, number: usize) -> Result<()> {
        let pieces = self.overlay_pieces(number);
        if pieces.is_empty() {
            return Ok(());
        }
        let write = |piece: &Piece| format!("write -q -P {} {} {}", piece.byte, piece.start, piece.length);
        let commands: Vec<_> = pieces.iter().map(write).collect();
        build.io(&files.overlay, commands.iter().map(String::as_str)).map(drop)
    }
}

/// Spreads `data` bytes over `size` in equal pieces at equal distances, the first at 0.
fn spread(size: u64, data: u64, salt: u64) -> Vec<Piece> {
    if data == 0 {
        return Vec::new();
    }
    let length = data.div_ceil(PIECES).next_multiple_of(GRAIN);
    let count = data.div_ceil(length);
    let distance = (size / count / GRAIN * GRAIN).max(GRAIN);
    let piece = |index: u64| {
        let start = index * distance;
        let byte = (start / GRAIN).wrapping_mul(31).wrapping_add(salt * 53) % 255 + 1;
        Piece { start, length: length.min(size - start), byte: byte as u8 } // 1 to 255
    };
    (0..count).map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_spread_without_overlap_and_inside() {
        for (size, data) in
            [(128 * MIB, 32 * MIB), (64 << 30, 8 * MIB), (MIB, MIB), (2048 * MIB, 1536 * MIB), (GRAIN, GRAIN)]
        {
            let pieces = spread(size, data, 1);
            assert!(!pieces.is_empty() && pieces.len() as u64 <= PIECES);
            for pair in pieces.windows(2) {
                assert!(pair[0].start + pair[0].length <= pair[1].start, "{size} {data}: {pair:?}");
            }
            assert!(pieces.iter().all(|piece| piece.start + piece.length <= size && piece.byte > 0));
            let total: u64 = pieces.iter().map(|piece| piece.length).sum();
            assert!(total >= data * 9 / 10 && total <= data * 11 / 10, "{size} {data}: {total}");
        }
    }
}
