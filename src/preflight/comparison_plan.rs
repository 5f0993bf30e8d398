//! Plans the proofs: the images that must be the same on both sides, and those that must be empty.
//!
//! Pure.

use super::facts::SideFacts;
use crate::storage::{
    model::{
        chain::{BackingChain, Layer},
        layout::{CopyMode, Disk, DiskPair},
    },
    verify::identity::{ComparedImage, Comparison, ComparisonResult, ImagePair, ProofLevel, ProofMethod},
};

/// The images of both sides that must be read, and those that need not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ComparisonPlan {
    /// Images that the guest only reads, which must be the same on both sides.
    pub image_pairs: Vec<ImagePair>,
    /// Images that are one file on both sides: nothing needs to be read to prove that they are the same.
    pub same: Vec<Comparison>,
    /// The destination's images that must be empty.
    pub empty_images: Vec<EmptyImage>,
}

/// An image of the destination that must be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmptyImage {
    /// The source's disk that is copied onto the image.
    pub disk: String,
    /// Its node.
    pub node: String,
    /// Its file.
    pub file: String,
    /// Its virtual size, bytes.
    pub size: u64,
    /// Whether the image is over a backing file: then not even a zero may be written in it.
    pub overlay: bool,
    /// What the mirror is going to write to the image.
    pub mirrored: MirroredParts,
    /// Whether a record tells that the image holds nothing but a part of a disk, from a migration that was called off.
    pub spent: bool,
}

/// The parts of an image that a mirror writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirroredParts {
    /// All of the image.
    All,
    /// Those where the source's top has clusters of its own. A top of this kind keeps each as long as a guest uses the
    /// image: what the guest discards becomes a cluster of zeros.
    Allocated {
        /// The node of the source's top.
        node: String,
        /// The size of the pieces, bytes: each piece with a cluster in it is written whole.
        granularity: u64,
    },
    /// Those where the source's top has clusters of its own, of which a guest that discards makes fewer: qcow2 of
    /// version 2, and all other formats.
    Fewer,
}

impl MirroredParts {
    fn of(mode: CopyMode, source: &Layer, destination: &Layer) -> Self {
        let keeps = source.format == "qcow2" && source.qcow2.as_ref().is_some_and(|qcow2| qcow2.compat != "0.10");
        match mode {
            CopyMode::Full => Self::All,
            CopyMode::Incremental if keeps => {
                Self::Allocated { node: source.node.clone(), granularity: granularity(destination.cluster_size) }
            }
            CopyMode::Incremental => Self::Fewer,
        }
    }
}

/// A size of pieces that a mirror onto an image of such clusters is sure to write whole. A mirror is told no
/// granularity: `bdrv_get_default_bitmap_granularity` takes the target's cluster size within these bounds, and the
/// upper one where the target, an NBD client, does not tell any.
fn granularity(cluster_size: Option<u64>) -> u64 {
    cluster_size.unwrap_or(0).clamp(4096, 65536)
}

/// Finds the images that are to be read.
///
/// Of a disk that is copied incrementally, all images below its top must be read; of a disk that the guest only reads,
/// all of them. A backing file that two disks share is read once.
pub fn images(
    source: &SideFacts,
    destination: &SideFacts,
    pairs: &[DiskPair],
    standing: &[(&Disk, Option<&Disk>)],
) -> ComparisonPlan {
    let mut found = ComparisonPlan::default();
    for pair in pairs {
        if pair.mode == CopyMode::Incremental {
            let (layers, others) = (layers_below(&pair.source.chain), layers_below(&pair.destination.chain));
            found.add(source, destination, pair.source.name(), layers, others);
        }
        // a flash memory is never empty: a mirror writes over all of it
        let tops = pair.destination.chain.top().zip(pair.source.chain.top());
        if let Some((top, copied)) = tops.filter(|_| !pair.destination.is_flash()) {
            found.empty_images.push(EmptyImage {
                disk: pair.source.name().to_owned(),
                node: top.node.clone(),
                file: top.file.clone(),
                size: top.virtual_size,
                overlay: pair.destination.chain.layers.len() > 1,
                mirrored: MirroredParts::of(pair.mode, copied, top),
                spent: false,
            });
        }
    }
    // firmware arrives with the guest's memory, so the destination's file may be of another build
    for (disk, counterpart) in standing.iter().filter(|(disk, _)| !disk.is_flash()) {
        let alike = counterpart.filter(|other| other.virtual_size == disk.virtual_size);
        let others = alike.map_or(&[][..], |other| &other.chain.layers[..]);
        found.add(source, destination, disk.name(), &disk.chain.layers, others);
    }
    found
}

fn layers_below(chain: &BackingChain) -> &[Layer] {
    chain.layers.get(1..).unwrap_or_default()
}

impl ComparisonPlan {
    /// The pairs that must be read for a proof. A proof by metadata reads only images whose format has a map of its
    /// allocated clusters.
    pub fn to_read(&self, proof: ProofLevel) -> Vec<&ImagePair> {
        let is_read = |twin: &ImagePair| match proof {
            ProofLevel::Off => false,
            ProofLevel::Metadata => twin.source.has_map() && twin.destination.has_map(),
            _ => true,
        };
        self.comparable().filter(|twin| is_read(twin)).collect()
    }

    /// The pairs of one size. A check tells of all others, and past the end of the shorter there is nothing to compare.
    pub fn comparable(&self) -> impl Iterator<Item = &ImagePair> {
        self.image_pairs.iter().filter(|twin| twin.source.virtual_size == twin.destination.virtual_size)
    }

    /// Adds the images of a disk. A side without such an image adds nothing: a check of the disks reports that.
    fn add(&mut self, source: &SideFacts, destination: &SideFacts, disk: &str, layers: &[Layer], others: &[Layer]) {
        if layers.is_empty() || others.is_empty() {
            return;
        }
        let (image, other) = (image_of(layers), image_of(others));
        if is_same(source, destination, layers, others) {
            let (source, destination) = (&image.files[0], &other.files[0]);
            match self.same.iter_mut().find(|same| same.source == *source && same.destination == *destination) {
                Some(known) => known.disks.push(disk.to_owned()),
                None => self.same.push(Comparison {
                    disks: vec![disk.to_owned()],
                    source: source.clone(),
                    destination: destination.clone(),
                    by: ProofMethod::SameFile,
                    verdict: ComparisonResult::Same,
                }),
            }
            return;
        }
        match self.image_pairs.iter_mut().find(|twin| twin.source.is_of(&image) && twin.destination.is_of(&other)) {
            Some(known) => known.disks.push(disk.to_owned()),
            None => {
                self.image_pairs.push(ImagePair { disks: vec![disk.to_owned()], source: image, destination: other })
            }
        }
    }
}

/// Whether both chains consist of the very same files.
fn is_same(source: &SideFacts, destination: &SideFacts, layers: &[Layer], others: &[Layer]) -> bool {
    let id = |facts: &SideFacts, layer: &Layer| facts.file(layer).map(|file| file.id);
    layers.len() == others.len()
        && layers.iter().zip(others).all(|(layer, other)| {
            let whole = !layer.file.starts_with("json:") && !other.file.starts_with("json:");
            let alike = (&layer.format, layer.virtual_size) == (&other.format, other.virtual_size);
            let same = whole && alike && id(source, layer).is_some() && id(source, layer) == id(destination, other);
            // the data file of a qcow2 image is a second file, whose inode is not looked up
            same && layer.data_file.is_none() && other.data_file.is_none()
        })
}

fn image_of(layers: &[Layer]) -> ComparedImage {
    ComparedImage {
        node: layers.first().map(|layer| layer.node.clone()).unwrap_or_default(),
        files: layers.iter().map(|layer| layer.file.clone()).collect(),
        virtual_size: layers.first().map_or(0, |layer| layer.virtual_size),
        formats: layers.iter().map(|layer| (layer.format.clone(), layer.cluster_size)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::model::chain::Qcow2;

    #[test]
    fn only_a_top_that_keeps_its_clusters_tells_what_will_be_written() {
        let layer = |format: &str, compat: Option<&str>, cluster_size| {
            let qcow2 = compat.map(|compat| Qcow2 { compat: compat.to_owned(), ..Qcow2::default() });
            Layer { node: "top".to_owned(), format: format.to_owned(), qcow2, cluster_size, ..Layer::default() }
        };
        let parts = |mode, format: &str, compat, cluster_size| {
            MirroredParts::of(mode, &layer(format, compat, None), &layer("qcow2", Some("1.1"), cluster_size))
        };
        let allocated = |granularity| MirroredParts::Allocated { node: "top".to_owned(), granularity };
        for (mode, format, compat, cluster_size, expected) in [
            (CopyMode::Full, "raw", None, None, MirroredParts::All),
            (CopyMode::Incremental, "qcow2", Some("1.1"), Some(65536), allocated(65536)),
            (CopyMode::Incremental, "qcow2", Some("1.1"), Some(2 << 20), allocated(65536)),
            (CopyMode::Incremental, "qcow2", Some("1.1"), Some(512), allocated(4096)),
            (CopyMode::Incremental, "qcow2", Some("1.1"), None, allocated(4096)),
            (CopyMode::Incremental, "qcow2", Some("0.10"), Some(65536), MirroredParts::Fewer),
            (CopyMode::Incremental, "qcow2", None, Some(65536), MirroredParts::Fewer),
            (CopyMode::Incremental, "qed", None, Some(65536), MirroredParts::Fewer),
        ] {
            assert_eq!(parts(mode, format, compat, cluster_size), expected, "{mode:?} {format} {compat:?}");
        }
    }
}
