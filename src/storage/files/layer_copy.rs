//! The copy of an image file through an NBD export: byte for byte, as sparse as the source, and verified afterwards.
//!
//! The copy must never write to any file but the given one. A copy that is dropped leaves that file half written; the
//! owner of the file removes it.

use super::{filesystem, rate_limit::RateLimit, unpublished_file::UnpublishedFile};
use crate::{
    nbd::{AllocationExtent, NbdClient, NbdError},
    progress::{EventKind, Reporter},
};
use rustix::io::Errno;
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use thiserror::Error;
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use twox_hash::XxHash3_64;

/// The size of a request, bytes.
const CHUNK: u64 = 1 << 20;
/// The number of requests in flight.
const IN_FLIGHT: usize = 16;
/// The range whose extents are asked for at once, bytes: the bound keeps the list small for large images.
const WINDOW: u64 = 1 << 30;
/// The bytes after which the written pieces are synced and read back while the copy goes on. With one verification at
/// the end the disk would first wait for the network, then everything else for the disk.
const CHECKED: u64 = 64 << 20;
/// The number of such verifications at once, each of which waits for the disk.
const CHECKS: usize = 3;
/// The number of pieces that a reader verifies at once, and the number of readers.
const BATCH: usize = 16;
const READERS: usize = 2;
/// How often progress is reported.
const SAMPLE: Duration = Duration::from_millis(250);

/// Why a layer could not be copied.
#[derive(Debug, Error)]
pub enum LayerCopyError {
    /// The export could not be read.
    #[error("cannot read {layer} from the source")]
    Read {
        /// The file.
        layer: String,
        /// The NBD error.
        #[source]
        source: NbdError,
    },
    /// The file could not be written, or not read back.
    #[error("cannot write {path} on the file system {file_system}")]
    Write {
        /// The file.
        path: String,
        /// The name of its file system.
        file_system: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file does not hold the bytes that were written.
    #[error(
        "{path} on the file system {file_system} does not hold the bytes that were written: the piece at {offset} differs"
    )]
    Differs {
        /// The file.
        path: String,
        /// The name of its file system.
        file_system: String,
        /// The first byte of the piece that differs.
        offset: u64,
    },
    /// A thread panicked.
    #[error("a thread that copies has failed")]
    Thread(#[source] JoinError),
}

impl LayerCopyError {
    /// Whether the file system is full, or a quota or size limit was reached.
    pub fn is_full(&self) -> bool {
        let full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                || error.raw_os_error() == Some(Errno::FBIG.raw_os_error())
        };
        matches!(self, Self::Write { source, .. } if full(source))
    }
}

/// A written piece, with the digest of the bytes that were received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct WrittenPiece {
    offset: u64,
    length: u64,
    digest: u64,
}

/// The copy of one layer.
#[derive(Debug)]
pub struct LayerCopy<'a> {
    /// The connection to the export.
    pub client: &'a NbdClient,
    /// The file to write.
    pub unpublished: &'a UnpublishedFile,
    /// The name of the layer in messages and events.
    pub layer: &'a str,
    /// The estimated bytes to copy: the space that the layer takes on the source.
    pub expected: u64,
    /// The reporter of progress.
    pub report: &'a Reporter,
}

impl LayerCopy<'_> {
    /// Copies everything but holes within the rate limit, syncs the file, reads it back and compares. Returns the
    /// number of copied bytes. The read may come from the page cache of the host.
    ///
    /// # Errors
    /// See [`LayerCopyError`].
    pub async fn run(&self, limit: &RateLimit) -> Result<u64, LayerCopyError> {
        let mut checks = JoinSet::new();
        let (copied, rest) = self.copy(limit, &mut checks).await?;
        while let Some(checked) = checks.join_next().await {
            self.judge(checked)?;
        }
        self.verify(rest).await?;
        Ok(copied)
    }

    /// Copies everything. Returns the number of copied bytes, and the pieces whose verification has not begun.
    async fn copy(
        &self,
        limit: &RateLimit,
        checks: &mut JoinSet<io::Result<ReadBack>>,
    ) -> Result<(u64, Vec<WrittenPiece>), LayerCopyError> {
        let size = self.client.size();
        let file = self.unpublished.file();
        file.set_len(size).map_err(|source| self.write_failed(source))?;
        let mut sample = LayerCopyProgress::new("copy");
        let (mut pieces, mut unchecked, mut tasks) = (Vec::new(), 0, JoinSet::new());
        let mut offset = 0;
        while offset < size {
            let length = WINDOW.min(size - offset);
            for (start, length) in chunks(&self.extents(offset, length).await?) {
                limit.pass(length).await;
                while tasks.len() >= IN_FLIGHT {
                    pieces.extend(self.written(&mut tasks).await?);
                }
                unchecked += length;
                if unchecked >= CHECKED {
                    while let Some(checked) = checks.try_join_next() {
                        self.judge(checked)?;
                    }
                    if checks.len() < CHECKS {
                        let (file, pieces) = (file.clone(), std::mem::take(&mut pieces));
                        checks.spawn_blocking(move || file.sync_data().and_then(|()| differing(&file, &pieces)));
                        unchecked = 0;
                    }
                }
                sample.add(length);
                sample.tell(self, false);
                tasks.spawn(piece(self.client.clone(), file.clone(), start, length));
            }
            offset += length;
        }
        while let Some(written) = self.written(&mut tasks).await? {
            pieces.push(written);
        }
        sample.tell(self, true);
        Ok((sample.done, pieces))
    }

    async fn extents(&self, offset: u64, length: u64) -> Result<Vec<AllocationExtent>, LayerCopyError> {
        match self.client.query_extents(offset, length).await {
            Ok(extents) => Ok(extents),
            // Without `base:allocation` the holes are unknown, so everything is copied.
            Err(NbdError::NotOffered { .. }) => {
                Ok(vec![AllocationExtent { start: offset, length, zero: false, hole: false }])
            }
            Err(source) => Err(self.read_failed(source)),
        }
    }

    async fn written(
        &self,
        tasks: &mut JoinSet<Result<WrittenPiece, PieceError>>,
    ) -> Result<Option<WrittenPiece>, LayerCopyError> {
        match tasks.join_next().await {
            None => Ok(None),
            Some(Ok(Ok(piece))) => Ok(Some(piece)),
            Some(Ok(Err(PieceError::Read(source)))) => Err(self.read_failed(source)),
            Some(Ok(Err(PieceError::Write(source)))) => Err(self.write_failed(source)),
            Some(Ok(Err(PieceError::Thread(error))) | Err(error)) => Err(LayerCopyError::Thread(error)),
        }
    }

    /// Syncs the file and verifies the remaining pieces.
    async fn verify(&self, mut pieces: Vec<WrittenPiece>) -> Result<(), LayerCopyError> {
        pieces.sort_by_key(|piece| piece.offset);
        let file = self.unpublished.file().clone();
        let synced = spawn_blocking(move || file.sync_data()).await.map_err(LayerCopyError::Thread)?;
        synced.map_err(|source| self.write_failed(source))?;

        let mut sample = LayerCopyProgress::new("verify");
        let mut tasks = JoinSet::new();
        let mut batches = pieces.chunks(BATCH).map(<[WrittenPiece]>::to_vec);
        loop {
            while tasks.len() < READERS {
                let Some(batch) = batches.next() else { break };
                let file = self.unpublished.file().clone();
                tasks.spawn_blocking(move || differing(&file, &batch));
            }
            let Some(read) = tasks.join_next().await else { break };
            sample.add(self.judge(read)?);
            sample.tell(self, false);
        }
        sample.tell(self, true);
        Ok(())
    }

    /// The bytes that a verification read; an error if a piece differs.
    fn judge(&self, checked: Result<io::Result<ReadBack>, JoinError>) -> Result<u64, LayerCopyError> {
        match checked.map_err(LayerCopyError::Thread)?.map_err(|source| self.write_failed(source))? {
            ReadBack { bytes, differs: None } => Ok(bytes),
            ReadBack { differs: Some(offset), .. } => {
                let (path, file_system) = self.place();
                Err(LayerCopyError::Differs { path, file_system, offset })
            }
        }
    }

    fn read_failed(&self, source: NbdError) -> LayerCopyError {
        LayerCopyError::Read { layer: self.layer.to_owned(), source }
    }

    fn write_failed(&self, source: io::Error) -> LayerCopyError {
        let (path, file_system) = self.place();
        LayerCopyError::Write { path, file_system, source }
    }

    fn place(&self) -> (String, String) {
        let path: PathBuf = self.unpublished.path().to_owned();
        let directory = path.parent().unwrap_or(&path);
        (path.display().to_string(), filesystem::name(directory))
    }
}

/// Why a piece could not be copied.
#[derive(Debug)]
enum PieceError {
    Read(NbdError),
    Write(io::Error),
    Thread(JoinError),
}

async fn piece(client: NbdClient, file: Arc<File>, offset: u64, length: u64) -> Result<WrittenPiece, PieceError> {
    let short = u32::try_from(length).unwrap_or(u32::MAX);
    let data = client.read(offset, short).await.map_err(PieceError::Read)?;
    let write = spawn_blocking(move || {
        let digest = XxHash3_64::oneshot(&data);
        file.write_all_at(&data, offset).map(|()| WrittenPiece { offset, length, digest })
    });
    write.await.map_err(PieceError::Thread)?.map_err(PieceError::Write)
}

/// The result of a verification.
#[derive(Debug, PartialEq, Eq)]
struct ReadBack {
    bytes: u64,
    /// The offset of the first piece that differs.
    differs: Option<u64>,
}

fn differing(file: &File, pieces: &[WrittenPiece]) -> io::Result<ReadBack> {
    let mut buffer = Vec::new();
    let mut bytes = 0;
    for piece in pieces {
        buffer.resize(usize::try_from(piece.length).unwrap_or(usize::MAX), 0);
        file.read_exact_at(&mut buffer, piece.offset)?;
        bytes += piece.length;
        if XxHash3_64::oneshot(&buffer) != piece.digest {
            return Ok(ReadBack { bytes, differs: Some(piece.offset) });
        }
    }
    Ok(ReadBack { bytes, differs: None })
}

/// The requests (offset and length) for everything that does not read as zeros.
fn chunks(extents: &[AllocationExtent]) -> impl Iterator<Item = (u64, u64)> + use<'_> {
    extents.iter().filter(|extent| !extent.zero).flat_map(|extent| {
        let (start, end) = (extent.start, extent.start + extent.length);
        let count = extent.length.div_ceil(CHUNK);
        (0..count).map(move |index| {
            let at = start + index * CHUNK;
            (at, CHUNK.min(end - at))
        })
    })
}

/// Reports the progress of a copy at intervals.
struct LayerCopyProgress {
    doing: &'static str,
    done: u64,
    told: Option<(Instant, u64)>,
}

impl LayerCopyProgress {
    fn new(doing: &'static str) -> Self {
        Self { doing, done: 0, told: None }
    }

    fn add(&mut self, bytes: u64) {
        self.done += bytes;
    }

    fn tell(&mut self, of: &LayerCopy<'_>, last: bool) {
        let now = Instant::now();
        let (then, before) = self.told.unwrap_or((now, 0));
        if self.told.is_some() && !last && now.duration_since(then) < SAMPLE {
            return;
        }
        let seconds = now.duration_since(then).as_secs_f64();
        let rate = if seconds > 0.0 { ((self.done - before) as f64 / seconds) as u64 } else { 0 };
        self.told = Some((now, self.done));
        let total = if last { self.done } else { of.expected.max(self.done) };
        let (image, doing) = (of.layer.to_owned(), self.doing.to_owned());
        of.report.emit(EventKind::Image { image, doing, done: self.done, total, rate: Some(rate) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out_and_the_rest_is_cut() {
        let extent = |start, length, zero| AllocationExtent { start, length, zero, hole: zero };
        let extents = [extent(0, 512, false), extent(512, 512, true), extent(1024, 2 * CHUNK + 1, false)];
        let expected = [(0, 512), (1024, CHUNK), (1024 + CHUNK, CHUNK), (1024 + 2 * CHUNK, 1)];
        assert_eq!(chunks(&extents).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_byte_that_differs_is_found() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(b"abcdef", 0).expect("written");
        let piece =
            |offset, data: &[u8]| WrittenPiece { offset, length: data.len() as u64, digest: XxHash3_64::oneshot(data) };
        assert_eq!(
            differing(&file, &[piece(0, b"ab"), piece(4, b"ef")]).expect("read"),
            ReadBack { bytes: 4, differs: None }
        );
        assert_eq!(
            differing(&file, &[piece(0, b"ab"), piece(2, b"cx")]).expect("read"),
            ReadBack { bytes: 4, differs: Some(2) }
        );
        assert!(differing(&file, &[piece(4, b"efg")]).is_err());
    }
}
