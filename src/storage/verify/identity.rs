//! Whether two images that are only read hold the same: what to compare, and what to make of it.
//!
//! Pure. `sync=top` copies only what the overlay holds; all else the guest reads from the destination's own backing file,
//! so that one has to be the source's, proved and not taken on trust.

use crate::storage::model::layout::PREFIX;
use serde::Serialize;
use std::{fmt, str::FromStr};

/// The unit of a sample, bytes: the default cluster size of qcow2.
pub const SAMPLE: u64 = 64 << 10;
/// The unit of a digest, bytes.
pub const SEGMENT: u64 = 1 << 20;
/// What the name of a kept digest ends with.
pub const KEPT: &str = "digest";

/// How well two images are to be proved to be the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProofLevel {
    /// Not at all.
    Off,
    /// Format, sizes, and where data is allocated.
    Metadata,
    /// That the contents of a number of ranges, chosen at random where data is, are equal.
    #[default]
    Sample,
    /// That everything a guest can read is equal.
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

/// A part of an image. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ByteRange {
    /// Where it begins.
    pub start: u64,
    /// How long it is.
    pub length: u64,
}

impl ByteRange {
    /// Where it ends.
    pub fn end(self) -> u64 {
        self.start + self.length
    }
}

/// What is compared: an image of the source that is only read, and the destination's in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePair {
    /// The disks it is below, or is.
    pub disks: Vec<String>,
    /// The source's.
    pub source: ComparedImage,
    /// The destination's.
    pub destination: ComparedImage,
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedImage {
    /// Its node.
    pub node: String,
    /// Its file, then those of the layers below it.
    pub files: Vec<String>,
    /// The size a guest sees, bytes.
    pub virtual_size: u64,
    /// The formats of its layers, with cluster sizes, the same order.
    pub formats: Vec<(String, Option<u64>)>,
}

impl ImagePair {
    /// What a comparison of the two came to.
    pub fn judged(&self, by: ProofMethod, verdict: ComparisonResult) -> Comparison {
        let (source, destination) = (self.source.file().to_owned(), self.destination.file().to_owned());
        Comparison { disks: self.disks.clone(), source, destination, by, verdict }
    }
}

impl ComparedImage {
    /// Its own file.
    pub fn file(&self) -> &str {
        self.files.first().map_or("", String::as_str)
    }

    /// Whether it is the same image, opened by whatever node.
    pub fn is_of(&self, other: &Self) -> bool {
        let told = |image: &Self| (image.files.clone(), image.virtual_size, image.formats.clone());
        told(self) == told(other)
    }

    /// Whether its format says where data is; else the file system does, which is no property of the image.
    pub fn has_map(&self) -> bool {
        self.formats.iter().all(|(_, cluster)| cluster.is_some())
    }
}

/// What a comparison came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// The disks it is below, or is.
    pub disks: Vec<String>,
    /// The source's file.
    pub source: String,
    /// The destination's.
    pub destination: String,
    /// How it was proved.
    pub by: ProofMethod,
    /// What was found.
    #[serde(flatten)]
    pub verdict: ComparisonResult,
}

/// How two images were proved to be the same, or not to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "proof")]
pub enum ProofMethod {
    /// They are one and the same file.
    SameFile,
    /// By format, sizes and the map of what is allocated.
    Metadata {
        /// The digest of the map, where the format has one.
        map: Option<String>,
    },
    /// By ranges chosen at random.
    Sample {
        /// What they were chosen from: the same seed chooses the same.
        seed: u64,
        /// How many.
        ranges: usize,
        /// How much in all, bytes on each side.
        bytes: u64,
    },
    /// By everything.
    Full {
        /// The digest of all that a guest can read: BLAKE3 over the BLAKE3 of each MiB.
        digest: Option<String>,
        /// How much was read, bytes on both sides together.
        bytes: u64,
        /// On how many of the two sides a kept digest was trusted.
        kept: usize,
    },
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum ComparisonResult {
    /// The same, as far as was looked.
    Same,
    /// Not the same.
    Differ {
        /// The first byte found to differ, or the place where one has data and the other has none.
        offset: u64,
        /// The file on the source that the byte is from.
        source_layer: String,
        /// And on the destination.
        destination_layer: String,
        /// What differs there.
        what: String,
    },
    /// They could not be compared.
    Unproved {
        /// Why.
        why: String,
    },
}

/// Where a kept digest of an image is: beside it.
pub fn kept_path(file: &str) -> String {
    format!("{file}.{PREFIX}{KEPT}")
}

/// What differs by metadata alone, in words.
pub fn metadata(source: &ComparedImage, destination: &ComparedImage) -> Option<String> {
    if source.virtual_size != destination.virtual_size {
        let (here, there) = (source.virtual_size, destination.virtual_size);
        return Some(format!("the source's has {here} bytes, the destination's {there}"));
    }
    let told = |image: &ComparedImage| {
        let one = |(format, cluster): &(String, Option<u64>)| match cluster {
            Some(bytes) => format!("{format} with clusters of {bytes} bytes"),
            None => format.clone(),
        };
        image.formats.iter().map(one).collect::<Vec<_>>().join(" over ")
    };
    let (here, there) = (told(source), told(destination));
    (here != there).then(|| format!("the source's is {here}, the destination's {there}"))
}

/// The ranges with data, aligned to `unit` and cut off at `size`, in order and apart.
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

/// What is in `ours` and not in `theirs`; both in order and apart.
pub fn without(ours: &[ByteRange], theirs: &[ByteRange]) -> Vec<ByteRange> {
    let mut left = Vec::new();
    let mut cuts = theirs.iter().peekable();
    for range in ours {
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

/// Chooses `count` ranges of at most [`SAMPLE`] bytes among those with data: the first and the last, and one at random
/// from each of as many equal parts of what lies between, so that no part of the image is left out.
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
            let here = range.length.div_ceil(SAMPLE);
            if pick < before + here {
                let start = range.start + (pick - before) * SAMPLE;
                chosen.push(ByteRange { start, length: SAMPLE.min(range.end() - start) });
                break;
            }
            before += here;
            ranges.next();
        }
    }
    chosen
}

/// The first byte that differs.
pub fn first_difference(source: &[u8], destination: &[u8]) -> Option<usize> {
    if source == destination {
        return None;
    }
    let differs = source.iter().zip(destination).position(|(a, b)| a != b);
    Some(differs.unwrap_or_else(|| source.len().min(destination.len())))
}

/// The file that a byte is from. `depth` is QEMU's: 1 for the image itself, 2 for the layer below, 0 for none of them.
pub fn layer(image: &ComparedImage, depth: u32) -> &str {
    let index = usize::try_from(depth).unwrap_or(0).saturating_sub(1);
    image.files.get(index).or(image.files.first()).map_or("", String::as_str)
}

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and the same on every machine.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`; 0 where that is 0. The bias is below 2^-32 for any image there is.
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
    fn what_one_has_and_the_other_has_not() {
        let ours = [range(0, 100), range(200, 100), range(400, 10)];
        for (theirs, left) in [
            (vec![], ours.to_vec()),
            (vec![range(0, 1000)], vec![]),
            (vec![range(50, 200)], vec![range(0, 50), range(250, 50), range(400, 10)]),
            (
                vec![range(10, 10), range(30, 10)],
                vec![range(0, 10), range(20, 10), range(40, 60), range(200, 100), range(400, 10)],
            ),
            (vec![range(250, 155)], vec![range(0, 100), range(200, 50), range(405, 5)]),
        ] {
            assert_eq!(without(&ours, &theirs), left, "{theirs:?}");
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
        // all there is, where that is less
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
        assert!(metadata(&raw, &qcow2).is_some_and(|told| told.contains("qcow2 with clusters of 65536 bytes")));
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
        fn what_is_left_is_ours_alone(
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
            let (ours, theirs) = (lay(&a), lay(&b));
            let has = |ranges: &[ByteRange], at: u64| ranges.iter().any(|range| range.start <= at && at < range.end());
            let left = without(&ours, &theirs);
            for at in 0..1000 {
                prop_assert_eq!(has(&left, at), has(&ours, at) && !has(&theirs, at), "{}", at);
            }
        }
    }
}
