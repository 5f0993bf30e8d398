//! Which images are to be the same on both sides, and which are to be empty.
//!
//! Pure.

use super::facts::Facts;
use crate::storage::{
    chain::{Chain, Layer},
    identity::{By, Comparison, Image, Proof, Twin, Verdict},
    layout::{Disk, Mode, Pair},
};

/// What is to be read of both sides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Images that are only read and are to be the same.
    pub twins: Vec<Twin>,
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
pub fn wanted(source: &Facts, destination: &Facts, pairs: &[Pair], standing: &[(&Disk, Option<&Disk>)]) -> Wanted {
    let mut found = Wanted::default();
    for pair in pairs {
        if pair.mode == Mode::Incremental {
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

fn layers_below(chain: &Chain) -> &[Layer] {
    chain.layers.get(1..).unwrap_or_default()
}

impl Wanted {
    /// The twins that are to be read for a proof. By metadata alone, nothing needs to be read of images whose format has no
    /// map of what is allocated.
    pub fn to_read(&self, proof: Proof) -> Vec<&Twin> {
        let is_read = |twin: &Twin| match proof {
            Proof::Off => false,
            Proof::Metadata => twin.source.has_map() && twin.destination.has_map(),
            _ => true,
        };
        self.comparable().filter(|twin| is_read(twin)).collect()
    }

    /// The twins of one size. Of others a check tells, and past the end of one there is nothing to be read.
    pub fn comparable(&self) -> impl Iterator<Item = &Twin> {
        self.twins.iter().filter(|twin| twin.source.virtual_size == twin.destination.virtual_size)
    }

    /// Nothing is to be done where one side has no such image, or one of another size: a check tells of that.
    fn add(&mut self, source: &Facts, destination: &Facts, disk: &str, here: &[Layer], there: &[Layer]) {
        if here.is_empty() || there.is_empty() {
            return;
        }
        let (ours, theirs) = (image(here), image(there));
        if let Some(twin) =
            self.twins.iter_mut().find(|t| t.source.files == ours.files && t.destination.files == theirs.files)
        {
            twin.disks.push(disk.to_owned());
            return;
        }
        let known =
            self.same.iter_mut().find(|same| same.source == ours.files[0] && same.destination == theirs.files[0]);
        if let Some(same) = known {
            same.disks.push(disk.to_owned());
            return;
        }
        let disks = vec![disk.to_owned()];
        if is_same(source, destination, here, there) {
            let (source, destination) = (ours.files[0].clone(), theirs.files[0].clone());
            self.same.push(Comparison { disks, source, destination, by: By::SameFile, verdict: Verdict::Same });
        } else {
            self.twins.push(Twin { disks, source: ours, destination: theirs });
        }
    }
}

/// Whether both chains are made of the very same files.
fn is_same(source: &Facts, destination: &Facts, here: &[Layer], there: &[Layer]) -> bool {
    let id = |facts: &Facts, layer: &Layer| facts.file(layer).map(|file| file.id);
    here.len() == there.len()
        && here.iter().zip(there).all(|(ours, theirs)| {
            let same = id(source, ours).is_some() && id(source, ours) == id(destination, theirs);
            // a data file is a file of its own, which is not looked up
            same && ours.data_file.is_none() && theirs.data_file.is_none()
        })
}

fn image(layers: &[Layer]) -> Image {
    Image {
        node: layers.first().map(|layer| layer.node.clone()).unwrap_or_default(),
        files: layers.iter().map(|layer| layer.file.clone()).collect(),
        virtual_size: layers.first().map_or(0, |layer| layer.virtual_size),
        formats: layers.iter().map(|layer| (layer.format.clone(), layer.cluster_size)).collect(),
    }
}
