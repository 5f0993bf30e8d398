//! Copies a file through an NBD export, byte for byte and as sparse as it is, and proves what was written.
//!
//! It must never write anywhere but into the file it is given. Dropped on the way, it leaves that file half written, for
//! its owner to remove.

use super::{filesystem, rate_limit::RateLimit, unpublished_file::UnpublishedFile};
use crate::{
    nbd::{AllocationExtent, NbdClient, NbdError},
    progress::{Kind, Reporter},
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

/// What one request reads.
const CHUNK: u64 = 1 << 20;
/// How many requests are on their way.
const IN_FLIGHT: usize = 16;
/// How much is asked about at once, so that what is known of a large image stays small.
const WINDOW: u64 = 1 << 30;
/// How much is written before it is synced and read back while the copy goes on: without that the disk would rest first,
/// and then everything else.
const CHECKED: u64 = 64 << 20;
/// How many such checks are under way at once, each of which waits for the disk.
const CHECKS: usize = 3;
/// How many chunks are read back at once, by how many.
const BATCH: usize = 16;
const READERS: usize = 2;
/// How often progress is told.
const SAMPLE: Duration = Duration::from_millis(250);

/// Why a file could not be copied.
#[derive(Debug, Error)]
pub enum LayerCopyError {
    /// It could not be read from the source.
    #[error("cannot read {layer} from the source")]
    Read {
        /// The file.
        layer: String,
        /// What happened.
        #[source]
        source: NbdError,
    },
    /// It could not be written.
    #[error("cannot write {path} on the file system {file_system}")]
    Write {
        /// The file.
        path: String,
        /// What it is on.
        file_system: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What is read back is not what was received.
    #[error("{path} on the file system {file_system} does not hold what was written: the chunk at {offset} differs")]
    Differs {
        /// The file.
        path: String,
        /// What it is on.
        file_system: String,
        /// Where.
        offset: u64,
    },
    /// A thread of ours failed.
    #[error("a thread that copies failed")]
    Thread(#[source] JoinError),
}

impl LayerCopyError {
    /// Whether there was no room for it.
    pub fn is_full(&self) -> bool {
        let full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                || error.raw_os_error() == Some(Errno::FBIG.raw_os_error())
        };
        matches!(self, Self::Write { source, .. } if full(source))
    }
}

/// A piece that was written, and the digest of what was received for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct WrittenPiece {
    offset: u64,
    length: u64,
    digest: u64,
}

/// Copies one file, and verifies it.
#[derive(Debug)]
pub struct LayerCopy<'a> {
    /// What is read.
    pub client: &'a NbdClient,
    /// What is written.
    pub partial: &'a UnpublishedFile,
    /// Its name for people.
    pub layer: &'a str,
    /// What it takes at the source, as far as that is known: about what there is to copy.
    pub expected: u64,
    /// Where progress goes.
    pub report: &'a Reporter,
}

impl LayerCopy<'_> {
    /// Copies what is not a hole, not faster than `ceiling` allows, has it written to stable storage, reads it back as the host
    /// has it and compares. Gives the bytes that were copied.
    ///
    /// # Errors
    /// See [`LayerCopyError`].
    pub async fn run(&self, ceiling: &RateLimit) -> Result<u64, LayerCopyError> {
        let mut checks = JoinSet::new();
        let (copied, rest) = self.copy(ceiling, &mut checks).await?;
        while let Some(checked) = checks.join_next().await {
            self.judge(checked)?;
        }
        self.verify(rest).await?;
        Ok(copied)
    }

    /// Copies it all. Gives the bytes, and the pieces whose check has not begun.
    async fn copy(
        &self,
        ceiling: &RateLimit,
        checks: &mut JoinSet<io::Result<ReadBack>>,
    ) -> Result<(u64, Vec<WrittenPiece>), LayerCopyError> {
        let size = self.client.size();
        let file = self.partial.file();
        file.set_len(size).map_err(|source| self.write_failed(source))?;
        let mut sample = LayerCopyProgress::new("copy");
        let (mut pieces, mut unchecked, mut tasks) = (Vec::new(), 0, JoinSet::new());
        let mut offset = 0;
        while offset < size {
            let length = WINDOW.min(size - offset);
            for (start, length) in chunks(&self.extents(offset, length).await?) {
                ceiling.pass(length).await;
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
            // a server that does not tell what are holes has it all copied
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

    /// Reads every piece back, once all is on stable storage: as the host has it, which may be in its cache.
    async fn verify(&self, mut pieces: Vec<WrittenPiece>) -> Result<(), LayerCopyError> {
        pieces.sort_by_key(|piece| piece.offset);
        let file = self.partial.file().clone();
        let synced = spawn_blocking(move || file.sync_data()).await.map_err(LayerCopyError::Thread)?;
        synced.map_err(|source| self.write_failed(source))?;

        let mut sample = LayerCopyProgress::new("verify");
        let mut tasks = JoinSet::new();
        let mut batches = pieces.chunks(BATCH).map(<[WrittenPiece]>::to_vec);
        loop {
            while tasks.len() < READERS {
                let Some(batch) = batches.next() else { break };
                let file = self.partial.file().clone();
                tasks.spawn_blocking(move || differing(&file, &batch));
            }
            let Some(read) = tasks.join_next().await else { break };
            sample.add(self.judge(read)?);
            sample.tell(self, false);
        }
        sample.tell(self, true);
        Ok(())
    }

    /// What came of a check: the bytes that were read, all as they should be.
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
        let path: PathBuf = self.partial.path().to_owned();
        let directory = path.parent().unwrap_or(&path);
        (path.display().to_string(), filesystem::name(directory))
    }
}

/// Why a piece was not written.
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

/// What was read back.
#[derive(Debug, PartialEq, Eq)]
struct ReadBack {
    bytes: u64,
    /// Where the first piece is that is not as it was received.
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

/// What is to be read: everything that is not zeros, in requests of one chunk at most.
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

/// How far it is, told now and then.
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
        of.report.emit(Kind::Image { image, doing, done: self.done, total, rate: Some(rate) });
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
