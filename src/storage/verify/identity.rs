//! Whether two read-only images have equal contents: which ranges to compare, and the result of a comparison.
//!
//! Pure. A mirror with `sync=top` copies only the overlay; the guest reads everything else from the destination's own
//! backing file. So the engine proves that the backing files of both sides are equal.

use crate::{quantity::Bytes, storage::model::layout::PREFIX};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The unit of a sample, bytes: the default cluster size of qcow2.
pub const SAMPLE: u64 = 64 << 10;
/// The unit of a digest, bytes.
pub const SEGMENT: u64 = 1 << 20;
/// The end of the name of a digest file.
pub const KEPT: &str = "digest";

/// How thoroughly the engine compares two images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ProofLevel {
    /// No comparison.
    Off,
    /// The formats, the sizes, and the map of allocated data.
    Metadata,
    /// The contents of a number of ranges, chosen at random where data is allocated.
    #[default]
    Sample,
    /// Everything that a guest can read.
    Full,
}

impl fmt::Display for ProofLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Sample => "sample",
            Self::Full => "full",
        })
    }
}

impl FromStr for ProofLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Full, Self::Sample, Self::Metadata, Self::Off];
        all.into_iter()
            .find(|proof| proof.to_string() == text)
            .ok_or_else(|| "write full, sample, metadata or off".into())
    }
}

/// A range of an image, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// The length.
    pub length: u64,
}

impl ByteRange {
    /// The first byte after the range.
    pub fn end(self) -> u64 {
        self.start + self.length
    }
}

/// A read-only image of the source, and the image that the destination has in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePair {
    /// The disks that read from the image.
    pub disks: Vec<String>,
    /// The source's image.
    pub source: ComparedImage,
    /// The destination's image.
    pub destination: ComparedImage,
}

/// One of the two images of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedImage {
    /// The block node of the image.
    pub node: String,
    /// The file of the image, then the files of the layers below.
    pub files: Vec<String>,
    /// The size that the guest sees, bytes.
    pub virtual_size: u64,
    /// The formats of the layers, each with its cluster size, in the order of `files`.
    pub formats: Vec<(String, Option<u64>)>,
}

impl ImagePair {
    /// The record of a comparison of the two images.
    pub fn judged(&self, method: ProofMethod, result: ComparisonResult) -> Comparison {
        let (source, destination) = (self.source.file().to_owned(), self.destination.file().to_owned());
        Comparison { disks: self.disks.clone(), source, destination, by: method, verdict: result }
    }
}

impl ComparedImage {
    /// The file of the image itself.
    pub fn file(&self) -> &str {
        self.files.first().map_or("", String::as_str)
    }

    /// Whether both values describe the same image, possibly opened by different nodes.
    pub fn is_of(&self, other: &Self) -> bool {
        let content = |image: &Self| (image.files.clone(), image.virtual_size, image.formats.clone());
        content(self) == content(other)
    }

    /// Whether every layer has a format that records where data is allocated. For a raw layer the file system records
    /// that, so the map of a raw layer is no property of the image.
    pub fn has_map(&self) -> bool {
        self.formats.iter().all(|(_, cluster)| cluster.is_some())
    }
}

/// A comparison of two images, with its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// The disks that read from the image.
    pub disks: Vec<String>,
    /// The source's file.
    pub source: String,
    /// The destination's file.
    pub destination: String,
    /// How the images were compared.
    pub by: ProofMethod,
    /// The result.
    #[serde(flatten)]
    pub verdict: ComparisonResult,
}

/// How two images were compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "proof")]
pub enum ProofMethod {
    /// Both QEMUs have the same file open, so nothing was read.
    SameFile,
    /// By the formats, the sizes and the map of allocated data.
    Metadata {
        /// The digest of the map, where the formats record one.
        map: Option<String>,
    },
    /// By ranges chosen at random.
    Sample {
        /// The seed of the random choice; the same seed chooses the same ranges.
        seed: u64,
        /// The number of ranges.
        ranges: usize,
        /// The bytes read of each image.
        bytes: u64,
    },
    /// By everything that a guest can read.
    Full {
        /// The digest of everything that a guest can read: BLAKE3 over the BLAKE3 digests of each MiB.
        digest: Option<String>,
        /// The bytes read of both images together.
        bytes: u64,
        /// For how many of the two images a stored digest was used in place of reading.
        kept: usize,
    },
}

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum ComparisonResult {
    /// The images are equal, as far as they were compared.
    Same,
    /// The images differ.
    Differ {
        /// The first differing byte that was found, or the first byte where only one image has data.
        offset: u64,
        /// The file of the source's layer that provides the byte.
        source_layer: String,
        /// The file of the destination's layer that provides the byte.
        destination_layer: String,
        /// The difference, in words.
        what: String,
    },
    /// The images could not be compared.
    Unproved {
        /// The reason.
        why: String,
    },
}

/// The path of the digest file beside an image.
pub fn kept_path(file: &str) -> String {
    format!("{file}.{PREFIX}{KEPT}")
}

/// The difference between the metadata of two images, in words.
pub fn metadata(source: &ComparedImage, destination: &ComparedImage) -> Option<String> {
    if source.virtual_size != destination.virtual_size {
        let (source, destination) = (Bytes(source.virtual_size), Bytes(destination.virtual_size));
        let (source, destination) = (source.exactly(), destination.exactly());
        return Some(format!("the source's image has {source}, the destination's {destination}"));
    }
    let describe = |image: &ComparedImage| {
        let one = |(format, cluster): &(String, Option<u64>)| match cluster {
            Some(bytes) => format!("{format} with clusters of {}", Bytes(*bytes).exactly()),
            None => format.clone(),
        };
        image.formats.iter().map(one).collect::<Vec<_>>().join(" over ")
    };
    let (source, destination) = (describe(source), describe(destination));
    (source != destination).then(|| format!("the source's image is {source}, the destination's {destination}"))
}

/// The ranges with data, aligned to `unit` and cut off at `size`, in ascending order and without overlaps.
pub fn data(extents: impl IntoIterator<Item = ByteRange>, unit: u64, size: u64) -> Vec<ByteRange> {
    let mut found: Vec<ByteRange> = Vec::new();
    for extent in extents.into_iter().filter(|extent| extent.length > 0) {
        let start = extent.start / unit * unit;
        let end = extent.end().div_ceil(unit).saturating_mul(unit).min(size);
        match found.last_mut() {
            Some(last) if start <= last.end() => last.length = last.length.max(end.saturating_sub(last.start)),
            _ if end > start => found.push(ByteRange { start, length: end - start }),
            _ => {}
        }
    }
    found
}

/// The parts of `ranges` outside of `excluded`. Both must be in ascending order and without overlaps.
pub fn without(ranges: &[ByteRange], excluded: &[ByteRange]) -> Vec<ByteRange> {
    let mut left = Vec::new();
    let mut cuts = excluded.iter().peekable();
    for range in ranges {
        let mut start = range.start;
        while let Some(cut) = cuts.peek() {
            if cut.end() <= start {
                cuts.next();
                continue;
            }
            if cut.start >= range.end() {
                break;
            }
            if cut.start > start {
                left.push(ByteRange { start, length: cut.start - start });
            }
            start = cut.end().min(range.end());
            if cut.end() > range.end() {
                break;
            }
            cuts.next();
        }
        if start < range.end() {
            left.push(ByteRange { start, length: range.end() - start });
        }
    }
    left
}

/// Chooses `count` ranges of at most [`SAMPLE`] bytes where data is: the first unit, the last unit, and one unit at
/// random from each of `count - 2` equal parts between them, so that no part of the image is left out.
pub fn choose(data: &[ByteRange], count: usize, seed: u64) -> Vec<ByteRange> {
    let units: u64 = data.iter().map(|range| range.length.div_ceil(SAMPLE)).sum();
    let count = (count as u64).min(units);
    let mut random = SplitMix64(seed);
    let picks = (0..count).map(|at| {
        let (from, to) = (at * units / count, (at + 1) * units / count);
        match at {
            0 => 0,
            last if last + 1 == count => units - 1,
            _ => from + random.below(to - from),
        }
    });
    let mut chosen = Vec::new();
    let (mut ranges, mut before) = (data.iter().peekable(), 0);
    for pick in picks {
        while let Some(range) = ranges.peek() {
            let units_of_range = range.length.div_ceil(SAMPLE);
            if pick < before + units_of_range {
                let start = range.start + (pick - before) * SAMPLE;
                chosen.push(ByteRange { start, length: SAMPLE.min(range.end() - start) });
                break;
            }
            before += units_of_range;
            ranges.next();
        }
    }
    chosen
}

/// The index of the first byte that differs.
pub fn first_difference(source: &[u8], destination: &[u8]) -> Option<usize> {
    if source == destination {
        return None;
    }
    let differs = source.iter().zip(destination).position(|(a, b)| a != b);
    Some(differs.unwrap_or_else(|| source.len().min(destination.len())))
}

/// The file that provides a byte. `depth` is the allocation depth of QEMU's NBD server: 1 for the image itself, 2 for
/// the layer below, 0 for no layer.
pub fn layer(image: &ComparedImage, depth: u32) -> &str {
    let index = usize::try_from(depth).unwrap_or(0).saturating_sub(1);
    image.files.get(index).or(image.files.first()).map_or("", String::as_str)
}

/// The random generator SplitMix64 (Steele, Lea and Flood, 2014): small, and with the same numbers on every machine.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A random number below `bound`, or 0 if `bound` is 0. The bias is below 2^-32 for any possible image.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, length: u64) -> ByteRange {
        ByteRange { start, length }
    }

    #[test]
    fn ranges_without_the_excluded() {
        let ranges = [range(0, 100), range(200, 100), range(400, 10)];
        for (excluded, left) in [
            (vec![], ranges.to_vec()),
            (vec![range(0, 1000)], vec![]),
            (vec![range(50, 200)], vec![range(0, 50), range(250, 50), range(400, 10)]),
            (
                vec![range(10, 10), range(30, 10)],
                vec![range(0, 10), range(20, 10), range(40, 60), range(200, 100), range(400, 10)],
            ),
            (vec![range(250, 155)], vec![range(0, 100), range(200, 50), range(405, 5)]),
        ] {
            assert_eq!(without(&ranges, &excluded), left, "{excluded:?}");
        }
    }

    #[test]
    fn data_is_aligned_and_joined() {
        let found = data([range(10, 5), range(60, 10), range(70, 1), range(300, 50)], 64, 340);
        assert_eq!(found, [range(0, 128), range(256, 84)]);
        assert_eq!(data([range(0, 0)], 64, 100), []);
    }

    #[test]
    fn a_sample_has_both_ends_and_the_same_seed_the_same() {
        let data = [range(0, 10 * SAMPLE), range(100 * SAMPLE, 1000 * SAMPLE), range(5000 * SAMPLE, SAMPLE / 2)];
        let chosen = choose(&data, 16, 7);
        assert_eq!(chosen.len(), 16);
        assert_eq!(chosen[0], range(0, SAMPLE));
        assert_eq!(chosen[15], range(5000 * SAMPLE, SAMPLE / 2));
        assert_eq!(chosen, choose(&data, 16, 7));
        assert_ne!(chosen, choose(&data, 16, 8));
        assert_eq!(choose(&data, 0, 7), []);
        assert_eq!(choose(&[], 16, 7), []);
        // An image with fewer units than wanted is sampled in full.
        assert_eq!(choose(&[range(0, 3 * SAMPLE)], 16, 7).len(), 3);
        assert_eq!(choose(&data, 1, 7), [range(0, SAMPLE)]);
    }

    #[test]
    fn metadata_tells_sizes_and_formats() {
        let image = |size, formats: &[(&str, Option<u64>)]| ComparedImage {
            node: "n".to_owned(),
            files: vec!["f".to_owned()],
            virtual_size: size,
            formats: formats.iter().map(|(name, cluster)| ((*name).to_owned(), *cluster)).collect(),
        };
        let raw = image(10, &[("raw", None)]);
        let qcow2 = image(10, &[("qcow2", Some(65536))]);
        assert_eq!(metadata(&raw, &raw), None);
        assert!(metadata(&raw, &image(11, &[("raw", None)])).is_some_and(|told| told.contains("11")));
        assert!(metadata(&raw, &qcow2).is_some_and(|told| told.contains("qcow2 with clusters of 64 KiB")));
        assert!(metadata(&qcow2, &image(10, &[("qcow2", Some(65536)), ("raw", None)])).is_some());
        assert!(qcow2.has_map() && !raw.has_map());
    }

    proptest! {
        #[test]
        fn samples_are_inside_apart_and_in_order(
            pieces in prop::collection::vec((1u64..200, 1u64..200), 0..20), count in 0usize..100, seed: u64
        ) {
            let mut at = 0;
            let data: Vec<ByteRange> = pieces.iter().map(|(gap, length)| {
                let range = ByteRange { start: (at + gap) * SAMPLE, length: length * SAMPLE };
                at += gap + length;
                range
            }).collect();
            let chosen = choose(&data, count, seed);
            let units: u64 = data.iter().map(|range| range.length / SAMPLE).sum();
            prop_assert_eq!(chosen.len() as u64, units.min(count as u64));
            prop_assert!(chosen.windows(2).all(|pair| pair[0].end() <= pair[1].start));
            for range in &chosen {
                prop_assert!(data.iter().any(|whole| whole.start <= range.start && range.end() <= whole.end()));
            }
        }

        #[test]
        fn what_is_left_is_outside_of_the_excluded(
            a in prop::collection::vec((0u64..50, 1u64..50), 0..10), b in prop::collection::vec((0u64..50, 1u64..50), 0..10)
        ) {
            let lay = |pieces: &[(u64, u64)]| {
                let mut at = 0;
                pieces.iter().map(|(gap, length)| {
                    let range = ByteRange { start: at + gap, length: *length };
                    at += gap + length;
                    range
                }).collect::<Vec<_>>()
            };
            let (ranges, excluded) = (lay(&a), lay(&b));
            let has = |ranges: &[ByteRange], at: u64| ranges.iter().any(|range| range.start <= at && at < range.end());
            let left = without(&ranges, &excluded);
            for at in 0..1000 {
                prop_assert_eq!(has(&left, at), has(&ranges, at) && !has(&excluded, at), "{}", at);
            }
        }
    }
}
