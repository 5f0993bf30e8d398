//! Which images are to be the same on both sides, and which are to be empty.
//!
//! Pure.

use super::facts::Facts;
use crate::storage::{
    model::{
        chain::{BackingChain, Layer},
        layout::{CopyMode, Disk, DiskPair},
    },
    verify::identity::{ComparedImage, Comparison, ComparisonResult, ImagePair, ProofLevel, ProofMethod},
};

/// What is to be read of both sides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Images that are only read and are to be the same.
    pub twins: Vec<ImagePair>,
    /// Those that are one file, and so the same without a look.
    pub same: Vec<Comparison>,
    /// The destination's images that are to be empty.
    pub blanks: Vec<Blank>,
}

/// An image that is to be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blank {
    /// The source's disk that goes onto it.
    pub disk: String,
    /// Its node.
    pub node: String,
    /// Its file.
    pub file: String,
    /// Its virtual size, bytes.
    pub size: u64,
    /// Whether it is over a backing file: then not even a zero may be in it.
    pub overlay: bool,
}

/// Finds out what is to be read.
///
/// Where a disk is copied incrementally, all that is below its top image; of a disk that is only read, all. Two disks
/// over one backing file have it read once.
pub fn wanted(source: &Facts, destination: &Facts, pairs: &[DiskPair], standing: &[(&Disk, Option<&Disk>)]) -> Wanted {
    let mut found = Wanted::default();
    for pair in pairs {
        if pair.mode == CopyMode::Incremental {
            let (here, there) = (layers_below(&pair.source.chain), layers_below(&pair.destination.chain));
            found.add(source, destination, pair.source.name(), here, there);
        }
        // a flash memory is never empty, and is written over
        if let Some(top) = pair.destination.chain.top().filter(|_| !pair.destination.is_flash()) {
            found.blanks.push(Blank {
                disk: pair.source.name().to_owned(),
                node: top.node.clone(),
                file: top.file.clone(),
                size: top.virtual_size,
                overlay: pair.destination.chain.layers.len() > 1,
            });
        }
    }
    // firmware comes over with the guest's memory, and may be of another build there
    for (disk, counterpart) in standing.iter().filter(|(disk, _)| !disk.is_flash()) {
        let alike = counterpart.filter(|other| other.virtual_size == disk.virtual_size);
        let there = alike.map_or(&[][..], |other| &other.chain.layers[..]);
        found.add(source, destination, disk.name(), &disk.chain.layers, there);
    }
    found
}

/// The disks of a side whose chains are not what they were before: other nodes, a job's filter, or a file below the top that
/// was written to. What was read of them meanwhile proves nothing.
pub fn changed(before: &Facts, after: &Facts) -> Vec<String> {
    let told = |facts: &Facts, disk: &Disk| {
        let layers = disk.chain.layers.iter().enumerate().map(|(depth, layer)| {
            let is_written = depth == 0 && !disk.read_only;
            let modified = facts.file(layer).filter(|_| !is_written).map(|file| file.modified);
            (layer.node.clone(), layer.file.clone(), layer.read_only, modified)
        });
        (layers.collect::<Vec<_>>(), disk.chain.filters.clone())
    };
    let now = after.disks();
    let is_same = |disk: &Disk| {
        let other = now.iter().find(|other| other.name() == disk.name());
        other.is_some_and(|other| told(before, disk) == told(after, other))
    };
    before.disks().iter().filter(|disk| !is_same(disk)).map(|disk| disk.name().to_owned()).collect()
}

fn layers_below(chain: &BackingChain) -> &[Layer] {
    chain.layers.get(1..).unwrap_or_default()
}

impl Wanted {
    /// The twins that are to be read for a proof. By metadata alone, nothing needs to be read of images whose format has no
    /// map of what is allocated.
    pub fn to_read(&self, proof: ProofLevel) -> Vec<&ImagePair> {
        let is_read = |twin: &ImagePair| match proof {
            ProofLevel::Off => false,
            ProofLevel::Metadata => twin.source.has_map() && twin.destination.has_map(),
            _ => true,
        };
        self.comparable().filter(|twin| is_read(twin)).collect()
    }

    /// The twins of one size. Of others a check tells, and past the end of one there is nothing to be read.
    pub fn comparable(&self) -> impl Iterator<Item = &ImagePair> {
        self.twins.iter().filter(|twin| twin.source.virtual_size == twin.destination.virtual_size)
    }

    /// Nothing is to be done where one side has no such image, or one of another size: a check tells of that.
    fn add(&mut self, source: &Facts, destination: &Facts, disk: &str, here: &[Layer], there: &[Layer]) {
        if here.is_empty() || there.is_empty() {
            return;
        }
        let (ours, theirs) = (image(here), image(there));
        if is_same(source, destination, here, there) {
            let (source, destination) = (&ours.files[0], &theirs.files[0]);
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
        match self.twins.iter_mut().find(|twin| twin.source.is_of(&ours) && twin.destination.is_of(&theirs)) {
            Some(known) => known.disks.push(disk.to_owned()),
            None => self.twins.push(ImagePair { disks: vec![disk.to_owned()], source: ours, destination: theirs }),
        }
    }
}

/// Whether both chains are made of the very same files.
fn is_same(source: &Facts, destination: &Facts, here: &[Layer], there: &[Layer]) -> bool {
    let id = |facts: &Facts, layer: &Layer| facts.file(layer).map(|file| file.id);
    here.len() == there.len()
        && here.iter().zip(there).all(|(ours, theirs)| {
            let whole = !ours.file.starts_with("json:") && !theirs.file.starts_with("json:");
            let alike = (&ours.format, ours.virtual_size) == (&theirs.format, theirs.virtual_size);
            let same = whole && alike && id(source, ours).is_some() && id(source, ours) == id(destination, theirs);
            // a data file is a file of its own, which is not looked up
            same && ours.data_file.is_none() && theirs.data_file.is_none()
        })
}

fn image(layers: &[Layer]) -> ComparedImage {
    ComparedImage {
        node: layers.first().map(|layer| layer.node.clone()).unwrap_or_default(),
        files: layers.iter().map(|layer| layer.file.clone()).collect(),
        virtual_size: layers.first().map_or(0, |layer| layer.virtual_size),
        formats: layers.iter().map(|layer| (layer.format.clone(), layer.cluster_size)).collect(),
    }
}
