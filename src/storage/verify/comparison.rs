//! The comparison of two images, read through read-only exports of the two QEMUs.
//!
//! A comparison never fails: an image that cannot be read makes the result `Unproved`. The comparison must never write
//! to an image, nor read an image that the guest may be writing to.

use super::{
    digest_cache::{self, FileStamp, ImageLocation},
    identity::{
        self, ByteRange, ComparedImage, Comparison, ComparisonResult, ImagePair, ProofLevel, ProofMethod, SAMPLE,
        SEGMENT,
    },
};
use crate::{
    nbd::{NbdClient, NbdError},
    progress::{EventKind, Reporter},
    storage::files::rate_limit::RateLimit,
};
use std::{collections::VecDeque, io, sync::Arc, time::Duration};
use tokio::{task::JoinHandle, time::Instant, try_join};

/// How many reads are under way at once, for each image.
const IN_FLIGHT: usize = 8;
/// The range of an image whose map is asked for at once, bytes. The NBD client limits the extents in an answer, so the
/// map of a large fragmented image is asked for in parts.
const WINDOW: u64 = 64 << 30;
/// How often progress is reported.
const TELL: Duration = Duration::from_millis(250);

/// How images are to be compared.
#[derive(Debug, Clone)]
pub struct ComparisonSettings {
    /// How thoroughly.
    pub proof: ProofLevel,
    /// The number of ranges in a sample.
    pub samples: usize,
    /// The seed from which the ranges of a sample are chosen.
    pub seed: u64,
    /// Whether to store the digest of an image that was read in full, beside the image.
    pub keep: bool,
}

/// An image with a connection to its export.
#[derive(Debug, Clone)]
pub struct OpenImage<'a> {
    /// The image.
    pub image: &'a ComparedImage,
    /// The connection.
    pub client: &'a NbdClient,
    /// The place for the digest, if the files of the image are on this host.
    pub place: Option<ImageLocation>,
}

/// Why a comparison stopped early.
enum ComparisonStop {
    /// The byte at this offset differs; with the difference in words.
    Differ(u64, &'static str),
    /// The image of the source or of the destination could not be read.
    Unread(&'static str, NbdError),
}

/// Compares an image of the source with the destination's.
pub async fn compare(
    images: &ImagePair,
    source: OpenImage<'_>,
    destination: OpenImage<'_>,
    how: &ComparisonSettings,
    limit: &Arc<RateLimit>,
    report: &Reporter,
) -> Comparison {
    let mut comparison = RunningComparison {
        source: &source,
        destination: &destination,
        limit,
        progress: ComparisonProgress { image: source.image.file().to_owned(), last: None, report },
    };
    let (method, stop) = comparison.run(how).await;
    let result = match stop {
        None => ComparisonResult::Same,
        Some(ComparisonStop::Unread(side, error)) => {
            ComparisonResult::Unproved { why: format!("the {side}'s image cannot be read: {error}") }
        }
        Some(ComparisonStop::Differ(offset, what)) => {
            let layer = async |open: &OpenImage<'_>| {
                let depth = open.client.query_depths(offset, 1).await.ok().and_then(|found| Some(found.first()?.depth));
                identity::layer(open.image, depth.unwrap_or(1)).to_owned()
            };
            let (source_layer, destination_layer) = (layer(&source).await, layer(&destination).await);
            ComparisonResult::Differ { offset, source_layer, destination_layer, what: what.to_owned() }
        }
    };
    images.judged(method, result)
}

/// A comparison under way.
struct RunningComparison<'a> {
    source: &'a OpenImage<'a>,
    destination: &'a OpenImage<'a>,
    limit: &'a Arc<RateLimit>,
    progress: ComparisonProgress<'a>,
}

impl RunningComparison<'_> {
    async fn run(&mut self, how: &ComparisonSettings) -> (ProofMethod, Option<ComparisonStop>) {
        match how.proof {
            ProofLevel::Off | ProofLevel::Metadata => self.maps().await,
            // Two digests prove everything, and cost nothing.
            ProofLevel::Sample if self.kept().iter().all(Option::is_some) => self.full(how).await,
            ProofLevel::Sample => self.sample(how).await,
            ProofLevel::Full => self.full(how).await,
        }
    }

    /// The digests of the two images that are kept and trusted.
    fn kept(&self) -> [Option<String>; 2] {
        [self.source, self.destination].map(|open| open.place.as_ref().and_then(digest_cache::trusted))
    }

    /// Compares where data is allocated, if the formats of both images record that.
    async fn maps(&mut self) -> (ProofMethod, Option<ComparisonStop>) {
        if !(self.source.image.has_map() && self.destination.image.has_map()) {
            return (ProofMethod::Metadata { map: None }, None);
        }
        let (source, destination) = match self.both_maps(1).await {
            Ok(maps) => maps,
            Err(stop) => return (ProofMethod::Metadata { map: None }, Some(stop)),
        };
        let mut digest = blake3::Hasher::new();
        for range in &source {
            digest.update(&range.start.to_le_bytes());
            digest.update(&range.length.to_le_bytes());
        }
        let map = Some(digest.finalize().to_hex().to_string());
        let only_source = identity::without(&source, &destination).first().map(|range| range.start);
        let only_destination = identity::without(&destination, &source).first().map(|range| range.start);
        let stop = match (only_source, only_destination) {
            (Some(start), other) if other.is_none_or(|other| start <= other) => {
                Some(ComparisonStop::Differ(start, "the source's image has data there, the destination's has none"))
            }
            (_, Some(start)) => {
                Some(ComparisonStop::Differ(start, "the destination's image has data there, the source's has none"))
            }
            _ => None,
        };
        (ProofMethod::Metadata { map }, stop)
    }

    /// Compares ranges with data, and some ranges where only one of the images has data.
    async fn sample(&mut self, how: &ComparisonSettings) -> (ProofMethod, Option<ComparisonStop>) {
        let (source, destination) = match self.both_maps(SAMPLE).await {
            Ok(maps) => maps,
            Err(stop) => return (ProofMethod::Sample { seed: how.seed, ranges: 0, bytes: 0 }, Some(stop)),
        };
        let few = how.samples.div_ceil(4);
        let mut chosen = identity::choose(&source, how.samples, how.seed);
        chosen.extend(identity::choose(&identity::without(&source, &destination), few, how.seed));
        chosen.extend(identity::choose(&identity::without(&destination, &source), few, how.seed));
        chosen.sort_by_key(|range| range.start);
        chosen.dedup();
        let bytes = chosen.iter().map(|range| range.length).sum();
        let method = ProofMethod::Sample { seed: how.seed, ranges: chosen.len(), bytes };
        self.progress.begin(bytes);
        let stop = self.alike(chosen.into_iter(), |_, _| ()).await.err();
        (method, stop)
    }

    /// Compares everything, with stored digests in place of reading. If a stored digest differs from the other image,
    /// both images are read after all: only that finds the offset, and the stored digest may be wrong.
    async fn full(&mut self, how: &ComparisonSettings) -> (ProofMethod, Option<ComparisonStop>) {
        let sides = [self.source, self.destination];
        let before = sides.map(|open| open.place.as_ref().filter(|_| how.keep).map(digest_cache::stamps_to_keep));
        let kept = self.kept();
        let trusted = kept.iter().flatten().count();
        if let [Some(source), Some(destination)] = &kept {
            if source == destination {
                return (ProofMethod::Full { digest: Some(source.clone()), bytes: 0, kept: 2 }, None);
            }
        } else if let Some((digest, open)) = match &kept {
            [Some(digest), None] => Some((digest, self.destination)),
            [None, Some(digest)] => Some((digest, self.source)),
            _ => None,
        } {
            match self.digest(open).await {
                Ok((read, bytes)) if read == *digest => {
                    self.keep(before, &read);
                    return (ProofMethod::Full { digest: Some(read), bytes, kept: trusted }, None);
                }
                Ok(_) => {}
                Err(stop) => return (ProofMethod::Full { digest: None, bytes: 0, kept: trusted }, Some(stop)),
            }
        }
        match self.everything().await {
            Ok((digest, bytes)) => {
                self.keep(before, &digest);
                (ProofMethod::Full { digest: Some(digest), bytes, kept: 0 }, None)
            }
            Err(stop) => (ProofMethod::Full { digest: None, bytes: 0, kept: 0 }, Some(stop)),
        }
    }

    /// Reads both images, and returns their common digest with the bytes read.
    async fn everything(&mut self) -> Result<(String, u64), ComparisonStop> {
        let size = self.source.image.virtual_size;
        let (source, destination) = self.both_maps(SEGMENT).await?;
        let both = identity::data(merged(&source, &destination), SEGMENT, size);
        let bytes = both.iter().map(|range| range.length).sum();
        self.progress.begin(bytes);
        let mut digest = ImageDigest::new(size);
        self.alike(split(&both), |range, data| digest.add(range.start, data)).await?;
        Ok((digest.finish(), 2 * bytes))
    }

    /// Reads one image, and returns its digest with the bytes read.
    async fn digest(&mut self, open: &OpenImage<'_>) -> Result<(String, u64), ComparisonStop> {
        let side = if std::ptr::eq(open, self.source) { "source" } else { "destination" };
        let map = map(open, SEGMENT).await.map_err(|error| ComparisonStop::Unread(side, error))?;
        let bytes = map.iter().map(|range| range.length).sum();
        self.progress.begin(bytes);
        let mut digest = ImageDigest::new(open.image.virtual_size);
        let mut under_way = VecDeque::new();
        let mut next = split(&map);
        loop {
            while under_way.len() < IN_FLIGHT {
                let Some(range) = next.next() else { break };
                let (client, limit) = (open.client.clone(), Arc::clone(self.limit));
                under_way.push_back(PendingRead(tokio::spawn(async move {
                    limit.pass(range.length).await;
                    client.read(range.start, length(range)).await.map(|data| (range, data))
                })));
            }
            let Some(mut first) = under_way.pop_front() else { break };
            let (range, data) = first.get().await.map_err(|error| ComparisonStop::Unread(side, error))?;
            digest.add(range.start, &data);
            self.progress.done(range.length);
        }
        Ok((digest.finish(), bytes))
    }

    /// Reads ranges of both images in order and passes the common contents to `held`; stops at the first difference.
    async fn alike(
        &mut self,
        mut next: impl Iterator<Item = ByteRange>,
        mut held: impl FnMut(ByteRange, &[u8]),
    ) -> Result<(), ComparisonStop> {
        let mut under_way = VecDeque::new();
        loop {
            while under_way.len() < IN_FLIGHT {
                let Some(range) = next.next() else { break };
                let (source, destination) = (self.source.client.clone(), self.destination.client.clone());
                let limit = Arc::clone(self.limit);
                under_way.push_back(PendingRead(tokio::spawn(async move {
                    limit.pass(2 * range.length).await;
                    let (start, length) = (range.start, length(range));
                    let source = async { source.read(start, length).await.map_err(|e| ("source", e)) };
                    let destination = async { destination.read(start, length).await.map_err(|e| ("destination", e)) };
                    try_join!(source, destination).map(|(source, destination)| (range, source, destination))
                })));
            }
            let Some(mut first) = under_way.pop_front() else { return Ok(()) };
            let (range, source, destination) =
                first.get().await.map_err(|(side, error)| ComparisonStop::Unread(side, error))?;
            if let Some(at) = identity::first_difference(&source, &destination) {
                return Err(ComparisonStop::Differ(range.start + at as u64, "the contents differ"));
            }
            held(range, &source);
            self.progress.done(range.length);
        }
    }

    async fn both_maps(&self, unit: u64) -> Result<(Vec<ByteRange>, Vec<ByteRange>), ComparisonStop> {
        let source = async { map(self.source, unit).await.map_err(|error| ComparisonStop::Unread("source", error)) };
        let destination =
            async { map(self.destination, unit).await.map_err(|error| ComparisonStop::Unread("destination", error)) };
        try_join!(source, destination)
    }

    /// Stores a digest beside both images if that was asked for. `before` has the stamps of the files from before they
    /// were read, so a file that changed meanwhile makes the digest invalid.
    fn keep(&self, before: [Option<io::Result<Vec<FileStamp>>>; 2], digest: &str) {
        for (open, stamps) in [self.source, self.destination].into_iter().zip(before) {
            let (Some(place), Some(stamps)) = (&open.place, stamps) else { continue };
            if let Err(error) = stamps.and_then(|stamps| digest_cache::keep(place, stamps, digest)) {
                let (path, code) = (place.path.display(), "digest-not-kept");
                self.progress.report.warn(code, format!("{path}: the digest could not be kept: {error}"));
            }
        }
    }
}

/// The ranges where an image does not read as zeros, according to its NBD server.
async fn map(open: &OpenImage<'_>, unit: u64) -> Result<Vec<ByteRange>, NbdError> {
    let size = open.image.virtual_size;
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let length = WINDOW.min(size - at);
        let extents = open.client.query_extents(at, length).await?;
        found.extend(extents.into_iter().filter(|e| !e.zero).map(|e| ByteRange { start: e.start, length: e.length }));
        at += length;
    }
    Ok(identity::data(found, unit, size))
}

fn merged(source: &[ByteRange], destination: &[ByteRange]) -> Vec<ByteRange> {
    let mut all: Vec<ByteRange> = source.iter().chain(destination).copied().collect();
    all.sort_by_key(|range| range.start);
    all
}

/// Cuts ranges that are aligned to segments into segments. The last segment of an image may be shorter.
fn split(ranges: &[ByteRange]) -> impl Iterator<Item = ByteRange> {
    let pieces = |range: &ByteRange| {
        let range = *range;
        (range.start..range.end())
            .step_by(SEGMENT as usize)
            .map(move |start| ByteRange { start, length: SEGMENT.min(range.end() - start) })
    };
    ranges.iter().flat_map(pieces)
}

fn length(range: ByteRange) -> u32 {
    // Every request is at most a segment long.
    u32::try_from(range.length).unwrap_or(u32::MAX)
}

/// A read under way, which is aborted when the value is dropped.
struct PendingRead<T>(JoinHandle<T>);

impl<T> PendingRead<T> {
    async fn get(&mut self) -> T {
        match (&mut self.0).await {
            Ok(read) => read,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is shutting down, which drops this task as well.
            Err(_) => std::future::pending().await,
        }
    }
}

impl<T> Drop for PendingRead<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The digest of everything that a guest can read of an image: the digest of the digests of its segments. Skipped
/// segments count as zeros, so the digest does not depend on whether zeros are stored.
struct ImageDigest {
    all: blake3::Hasher,
    size: u64,
    at: u64,
    zero: blake3::Hash,
}

impl ImageDigest {
    fn new(size: u64) -> Self {
        let zero = blake3::hash(&vec![0; SEGMENT as usize]);
        Self { all: blake3::Hasher::new(), size, at: 0, zero }
    }

    fn add(&mut self, start: u64, data: &[u8]) {
        self.skip(start);
        self.all.update(blake3::hash(data).as_bytes());
        self.at = start + data.len() as u64;
    }

    fn skip(&mut self, to: u64) {
        while self.at < to {
            let length = SEGMENT.min(to - self.at);
            let hash = if length == SEGMENT { self.zero } else { blake3::hash(&vec![0; length as usize]) };
            self.all.update(hash.as_bytes());
            self.at += length;
        }
    }

    fn finish(mut self) -> String {
        self.skip(self.size);
        self.all.finalize().to_hex().to_string()
    }
}

/// Reports the progress of a comparison at intervals.
struct ComparisonProgress<'a> {
    image: String,
    last: Option<(Instant, u64, u64)>,
    report: &'a Reporter,
}

impl ComparisonProgress<'_> {
    fn begin(&mut self, total: u64) {
        self.last = Some((Instant::now(), 0, total));
    }

    fn done(&mut self, bytes: u64) {
        let Some((last, done, total)) = &mut self.last else { return };
        *done += bytes;
        if last.elapsed() >= TELL || done == total {
            *last = Instant::now();
            let (image, done, total) = (self.image.clone(), *done, *total);
            self.report.emit(EventKind::Image { image, doing: "compare".to_owned(), done, total, rate: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_does_not_depend_on_how_zeros_are_stored() {
        let data = vec![7u8; SEGMENT as usize];
        let size = 3 * SEGMENT + 100;
        let mut sparse = ImageDigest::new(size);
        sparse.add(SEGMENT, &data);
        let mut whole = ImageDigest::new(size);
        whole.add(0, &vec![0; SEGMENT as usize]);
        whole.add(SEGMENT, &data);
        whole.add(2 * SEGMENT, &vec![0; SEGMENT as usize]);
        whole.add(3 * SEGMENT, &[0; 100]);
        let digest = sparse.finish();
        assert_eq!(digest, whole.finish());
        let mut other = ImageDigest::new(size);
        other.add(2 * SEGMENT, &data);
        assert_ne!(digest, other.finish());
        assert_ne!(digest, ImageDigest::new(size).finish());
    }

    #[test]
    fn ranges_are_cut_into_segments() {
        let cut = split(&[ByteRange { start: SEGMENT, length: 2 * SEGMENT + 5 }]);
        let told: Vec<(u64, u64)> = cut.map(|range| (range.start, range.length)).collect();
        assert_eq!(told, [(SEGMENT, SEGMENT), (2 * SEGMENT, SEGMENT), (3 * SEGMENT, 5)]);
    }
}
