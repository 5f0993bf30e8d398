//! What the destination needs, read from the source's chains.
//!
//! Pure. Nothing has been looked up at the destination yet.

use super::{arguments::Moves, settings::ProvisionSettings, settings::StorageMode};
use crate::{
    preflight::checks::{Finding, Severity, blocker, finding},
    storage::{
        chain::{Chain, Layer},
        image::{Backing, Image, Unlike},
        layout::Disk,
        place,
    },
};
use std::path::{Path, PathBuf};

/// What the source told.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// Every disk with a medium.
    pub(super) disks: Vec<(Disk, Chain)>,
    /// The directory that its relative names are meant from, where it is a process of this host.
    pub(super) directory: Option<PathBuf>,
    /// It is a process of this host, so that its paths and ours are the same.
    pub(super) local: bool,
}

/// A file that the destination needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The disk it is for.
    pub(super) disk: String,
    /// Where the source has it.
    pub(super) source: PathBuf,
    /// Where it is to be.
    pub(super) path: PathBuf,
    /// What it is.
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// An image without data of its own, for the guest to write to.
    Top(Image),
    /// A layer below one.
    Below(Below),
    /// The medium of a disk that is only read.
    Medium,
}

/// A layer that is only read. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Below {
    /// The source's node of its file.
    pub(super) node: String,
    pub(super) format: String,
    pub(super) virtual_size: u64,
    /// What it takes on the source's file system.
    pub(super) actual_size: Option<u64>,
    /// The layer below it, as it is to be named at the destination.
    pub(super) backing: Option<Backing>,
    /// The same as its header has it.
    pub(super) written: Option<(String, Option<String>)>,
    pub(super) data_file: Option<String>,
    /// A job put a filter into its chain: the layer may be written to right now.
    pub(super) in_a_job: bool,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Wish {
    /// The files, each once, a layer before what stands on it.
    pub(super) wanted: Vec<Wanted>,
    /// What is called otherwise at the destination.
    pub(super) moves: Moves,
    /// Disks whose images are on the command line, if it has them at all.
    pub(super) images: Vec<(String, PathBuf)>,
    pub(super) findings: Vec<Finding>,
}

/// Reads it.
pub(super) fn read(told: &Told, settings: &ProvisionSettings) -> Wish {
    let mut wish = Wish::default();
    let selection = &settings.selection;
    let named = selection.disks.iter().map(|(name, _)| name).chain(&selection.skip);
    for name in named.filter(|name| !told.disks.iter().any(|(disk, _)| disk.is_called(name))) {
        let remedy = "query-block shows qdev, device and node names";
        wish.findings.push(blocker("disk-unknown", name, "the source has no disk of this name", remedy));
    }
    for (disk, chain) in &told.disks {
        let chosen = selection.disks.iter().any(|(name, _)| disk.is_called(name));
        let skipped = selection.skip.iter().any(|name| disk.is_called(name));
        match () {
            () if skipped => {}
            () if disk.read_only && !chosen => wish.medium(disk, chain, told, settings),
            () if !chosen && !selection.disks.is_empty() => {
                let message = "it is writable and nothing is prepared for it";
                let remedy = "name it with --disk too, or say --skip-disk";
                wish.findings.push(finding(Severity::Warning, "disk-left-out", disk.name(), message, remedy));
            }
            () if settings.storage == StorageMode::None => wish.shared(disk, chain, told, settings),
            () => wish.disk(disk, chain, told, settings),
        }
    }
    wish
}

impl Wish {
    fn disk(&mut self, disk: &Disk, chain: &Chain, told: &Told, settings: &ProvisionSettings) {
        let name = disk.name();
        let Some((top, below)) = chain.layers.split_first() else {
            let message = "QEMU does not tell what it consists of";
            self.findings.push(blocker("chain-unknown", name, message, "leave it out with --skip-disk"));
            return;
        };
        let Some(source) = self.file(name, top, told) else { return };
        let Some(path) = settings.places.of_top(&source) else {
            let message = format!("it is not said where {} goes", source.display());
            self.findings.push(blocker("place-unknown", name, message, "say --to DIR, or --map SOURCE=DESTINATION"));
            return;
        };
        let mut backing = None;
        if settings.storage == StorageMode::Incremental {
            let in_a_job = chain.filters.iter().any(|filter| filter.is_of_a_job());
            for layer in below.iter().rev() {
                backing = Some(self.layer(name, layer, backing, in_a_job, told, settings));
            }
        }
        match Image::like(top, backing) {
            Ok(image) => {
                if top.qcow2.as_ref().is_some_and(|qcow2| qcow2.compat == "0.10") {
                    let message = "its image is of qcow2 version 2 and becomes one of version 3 (compat=1.1): an overlay \
                                   of version 2 cannot hide what is below it behind zeros";
                    self.findings.push(finding(Severity::Note, "image-upgraded", name, message, ""));
                }
                self.move_file(&source, &path);
                self.images.push((name.to_owned(), source.clone()));
                self.want(Wanted { disk: name.to_owned(), source, path, what: What::Top(image) });
            }
            Err(unlike) => self.findings.push(unlike_finding(name, &unlike)),
        }
    }

    /// A layer below, and those below it are wanted already. Gives what the layer above calls it.
    fn layer(
        &mut self,
        disk: &str,
        layer: &Layer,
        backing: Option<Backing>,
        in_a_job: bool,
        told: &Told,
        settings: &ProvisionSettings,
    ) -> Backing {
        let format = layer.format.clone();
        if !is_file(layer) {
            let message = format!(
                "its layer {} is reached through {}: the destination must reach it by the same name, and it is never copied",
                layer.file, layer.protocol.driver
            );
            self.findings.push(finding(Severity::Note, "layer-remote", disk, message, ""));
            return Backing { file: layer.file.clone(), format };
        }
        let Some(source) = self.file(disk, layer, told) else { return Backing { file: layer.file.clone(), format } };
        let path = settings.places.of_read_only(&source);
        self.move_file(&source, &path);
        let file = path.to_string_lossy().into_owned();
        let below = Below {
            node: layer.protocol.node.clone(),
            format: format.clone(),
            virtual_size: layer.virtual_size,
            actual_size: layer.actual_size,
            backing,
            written: layer.backing.as_ref().map(|link| (link.file.clone(), link.format.clone())),
            data_file: layer.data_file.clone(),
            in_a_job,
        };
        self.want(Wanted { disk: disk.to_owned(), source, path, what: What::Below(below) });
        Backing { file, format }
    }

    fn medium(&mut self, disk: &Disk, chain: &Chain, told: &Told, settings: &ProvisionSettings) {
        for layer in chain.layers.iter().filter(|layer| is_file(layer)) {
            // where its name is not known, the user's own arguments will say
            let Some(source) = path(layer, told) else { continue };
            let path = settings.places.of_read_only(&source);
            self.move_file(&source, &path);
            self.want(Wanted { disk: disk.name().to_owned(), source, path, what: What::Medium });
        }
    }

    /// With shared storage nothing is made, but its images may be called otherwise.
    fn shared(&mut self, disk: &Disk, chain: &Chain, told: &Told, settings: &ProvisionSettings) {
        for layer in chain.layers.iter().filter(|layer| is_file(layer)) {
            let moved = path(layer, told).and_then(|source| Some((settings.places.mapped(&source)?, source)));
            if let Some((path, source)) = moved {
                self.move_file(&source, &path);
                self.images.extend(
                    (self.images.iter().all(|(_, known)| *known != source)).then(|| (disk.name().to_owned(), source)),
                );
            }
        }
    }

    fn move_file(&mut self, source: &Path, path: &Path) {
        if source != path {
            self.moves.insert(source.to_owned(), path.to_owned());
        }
    }

    /// Adds a file unless it is wanted already; two that would have one path are a mistake.
    fn want(&mut self, wanted: Wanted) {
        match self.wanted.iter().find(|other| other.path == wanted.path) {
            None => self.wanted.push(wanted),
            Some(other) if other.source == wanted.source && !matches!(wanted.what, What::Top(_)) => {}
            Some(other) => {
                let (path, here) = (wanted.path.display(), wanted.source.display());
                let message = format!("{here} and {} would both be {path}", other.source.display());
                let remedy = "say where each goes with --map SOURCE=DESTINATION";
                self.findings.push(blocker("place-taken", &wanted.disk, message, remedy));
            }
        }
    }

    /// The path of a layer that must be a file.
    fn file(&mut self, disk: &str, layer: &Layer, told: &Told) -> Option<PathBuf> {
        let file = &layer.protocol.file;
        let found = path(layer, told);
        if found.is_none() {
            self.findings.push(match is_file(layer) {
                false => blocker(
                    "protocol-unsupported",
                    disk,
                    format!("its image {} is reached through {}", layer.file, layer.protocol.driver),
                    "an image that both sides reach is not prepared: leave it out with --skip-disk, or say --storage none",
                ),
                true => blocker(
                    "path-unknown",
                    disk,
                    format!("it is not known where {file} is"),
                    "start the source with absolute paths, or run qferry on its host",
                ),
            });
        }
        found
    }
}

fn is_file(layer: &Layer) -> bool {
    ["file", "host_device", "host_cdrom"].contains(&layer.protocol.driver.as_str())
}

fn path(layer: &Layer, told: &Told) -> Option<PathBuf> {
    is_file(layer).then(|| place::path_of(&layer.protocol.file, told.directory.as_deref()))?
}

fn unlike_finding(disk: &str, unlike: &Unlike) -> Finding {
    let remedy = "make its image by hand, and leave it out here with --skip-disk";
    match unlike {
        Unlike::Format(format) => {
            blocker("format-unsupported", disk, format!("its image is of the format {format}"), remedy)
        }
        Unlike::Encrypted => {
            blocker("image-encrypted", disk, "its image is encrypted, and its secret is not known here", remedy)
        }
        Unlike::DataFile(file) => {
            blocker("data-file", disk, format!("its image keeps its data in another file, {file}"), remedy)
        }
    }
}
