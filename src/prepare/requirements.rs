//! The files that the destination needs, read from the source's backing chains.
//!
//! Pure. Nothing of the destination is known yet.

use super::{command_line::MovedFiles, settings::PrepareSettings};
use crate::{
    codes::Setting,
    preflight::checks::{Finding, FindingCode},
    storage::{
        files::image::{BackingFile, NewImage, UnsupportedImage},
        model::{
            chain::Layer,
            layout::{Disk, StorageMode},
            path_map,
        },
    },
};
use std::path::{Path, PathBuf};

/// The disks of the source, and what is known of its process.
#[derive(Debug, Clone, Default)]
pub(super) struct SourceLayout {
    /// All disks with a medium.
    pub(super) disks: Vec<Disk>,
    /// The working directory, from which relative names are resolved; known if the source is a process of this host.
    pub(super) directory: Option<PathBuf>,
    /// Whether the source is a process of this host, so that its paths are valid here.
    pub(super) local: bool,
}

/// A file that the destination needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequiredFile {
    /// The disk that needs the file.
    pub(super) disk: String,
    /// The path on the source.
    pub(super) source: PathBuf,
    /// The path on the destination.
    pub(super) path: PathBuf,
    /// The role of the file.
    pub(super) role: Role,
}

/// The role of a required file in its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// A new image without data of its own, for the guest to write to.
    Top(NewImage),
    /// A backing file.
    Backing(BackingLayer),
    /// The medium of a read-only disk.
    Medium,
}

/// A backing layer, which the guest only reads. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BackingLayer {
    /// The protocol node on the source.
    pub(super) node: String,
    pub(super) format: String,
    pub(super) virtual_size: u64,
    /// The space that the layer takes on the source's file system.
    pub(super) actual_size: Option<u64>,
    /// The backing file as the header must name it on the destination.
    pub(super) backing: Option<BackingFile>,
    /// The backing file and its format as the header names them now.
    pub(super) written: Option<(String, Option<String>)>,
    pub(super) data_file: Option<String>,
    /// Whether a block job has a filter in the chain, so that the layer may be written to right now.
    pub(super) in_a_job: bool,
    /// Whether the layer is a block device on the source.
    pub(super) on_device: bool,
}

/// Everything that the destination needs.
#[derive(Debug, Clone, Default)]
pub(super) struct Requirements {
    /// The files, each once, a backing file before the images above.
    pub(super) files: Vec<RequiredFile>,
    /// The files with another path on the destination.
    pub(super) moves: MovedFiles,
    /// The disks, each with the image whose path should be on the source's command line.
    pub(super) images: Vec<(String, PathBuf)>,
    pub(super) findings: Vec<Finding>,
}

/// Reads the requirements from the disks of the source.
pub(super) fn read(layout: &SourceLayout, settings: &PrepareSettings) -> Requirements {
    let mut requirements = Requirements::default();
    let selection = &settings.selection;
    let named = selection.disks.iter().map(|(name, _)| name).chain(&selection.skip);
    for name in named.filter(|name| !layout.disks.iter().any(|disk| disk.is_called(name))) {
        requirements.findings.push(Finding::new(FindingCode::DiskUnknown, name, "the source has no disk of this name"));
    }
    for disk in &layout.disks {
        let chosen = selection.disks.iter().any(|(name, _)| disk.is_called(name));
        let skipped = selection.skip.iter().any(|name| disk.is_called(name));
        match () {
            () if skipped => {}
            () if disk.read_only && !chosen => requirements.medium(disk, layout, settings),
            () if !chosen && !selection.disks.is_empty() => {
                let message = "it is writable and nothing is prepared for it";
                requirements.findings.push(Finding::new(FindingCode::DiskLeftOut, disk.name(), message));
            }
            () if settings.selection.storage == StorageMode::None => requirements.shared(disk, layout, settings),
            () => requirements.disk(disk, layout, settings),
        }
    }
    requirements
}

impl Requirements {
    fn disk(&mut self, disk: &Disk, layout: &SourceLayout, settings: &PrepareSettings) {
        let name = disk.name();
        let Some((top, lower)) = disk.chain.layers.split_first() else {
            let message = "QEMU does not tell what it consists of";
            let remedy = format!("leave it out with {}", Setting::Skip);
            self.findings.push(Finding::new(FindingCode::ChainUnknown, name, message).with_remedy(remedy));
            return;
        };
        let Some(source) = self.file(name, top, layout) else { return };
        let Some(path) = settings.places.of_top(&source) else {
            let message = format!("it is not said where {} goes", source.display());
            self.findings.push(Finding::new(FindingCode::PlaceUnknown, name, message));
            return;
        };
        let mut backing = None;
        if settings.selection.storage == StorageMode::Incremental {
            let in_a_job = disk.chain.filters.iter().any(|filter| filter.is_of_a_job());
            for layer in lower.iter().rev() {
                backing = Some(self.layer(name, layer, backing, in_a_job, layout, settings));
            }
        }
        match NewImage::like(top, backing) {
            Ok(image) => {
                if top.qcow2.as_ref().is_some_and(|qcow2| qcow2.compat == "0.10") {
                    let message = "its image is of qcow2 version 2 and becomes one of version 3 (compat=1.1): an overlay \
                                   of version 2 cannot hide what is below it behind zeros";
                    self.findings.push(Finding::new(FindingCode::ImageUpgraded, name, message));
                }
                self.move_file(&source, &path);
                self.images.push((name.to_owned(), source.clone()));
                self.require(RequiredFile { disk: name.to_owned(), source, path, role: Role::Top(image) });
            }
            Err(unlike) => self.findings.push(unlike_finding(name, &unlike)),
        }
    }

    /// Requires a backing layer, after the layers below. Returns the name that the layer above must use.
    fn layer(
        &mut self,
        disk: &str,
        layer: &Layer,
        backing: Option<BackingFile>,
        in_a_job: bool,
        layout: &SourceLayout,
        settings: &PrepareSettings,
    ) -> BackingFile {
        let format = layer.format.clone();
        if !is_file(layer) {
            let message = format!(
                "its layer {} is reached through {}: the destination must reach it by the same name, and it is never copied",
                layer.file, layer.protocol.driver
            );
            self.findings.push(Finding::new(FindingCode::LayerRemote, disk, message));
            return BackingFile { file: layer.file.clone(), format };
        }
        let Some(source) = self.file(disk, layer, layout) else {
            return BackingFile { file: layer.file.clone(), format };
        };
        let path = settings.places.of_read_only(&source);
        self.move_file(&source, &path);
        let file = path.to_string_lossy().into_owned();
        let lower = BackingLayer {
            node: layer.protocol.node.clone(),
            format: format.clone(),
            virtual_size: layer.virtual_size,
            actual_size: layer.actual_size,
            backing,
            written: layer.backing.as_ref().map(|link| (link.file.clone(), link.format.clone())),
            data_file: layer.data_file.clone(),
            in_a_job,
            on_device: layer.protocol.driver != "file",
        };
        self.require(RequiredFile { disk: disk.to_owned(), source, path, role: Role::Backing(lower) });
        BackingFile { file, format }
    }

    fn medium(&mut self, disk: &Disk, layout: &SourceLayout, settings: &PrepareSettings) {
        for layer in disk.chain.layers.iter().filter(|layer| is_file(layer)) {
            // A medium without a known path is named by the user's own arguments.
            let Some(source) = path(layer, layout) else { continue };
            let path = settings.places.of_read_only(&source);
            self.move_file(&source, &path);
            self.require(RequiredFile { disk: disk.name().to_owned(), source, path, role: Role::Medium });
        }
    }

    /// With shared storage no file is made, but the paths of the images may differ.
    fn shared(&mut self, disk: &Disk, layout: &SourceLayout, settings: &PrepareSettings) {
        for layer in disk.chain.layers.iter().filter(|layer| is_file(layer)) {
            let moved = path(layer, layout).and_then(|source| Some((settings.places.mapped(&source)?, source)));
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

    /// Adds a file unless it is already required. Two files for one path are a blocker.
    fn require(&mut self, required: RequiredFile) {
        match self.files.iter().find(|other| other.path == required.path) {
            None => self.files.push(required),
            Some(other) if other.source == required.source && !matches!(required.role, Role::Top(_)) => {}
            Some(other) => {
                let (path, source) = (required.path.display(), required.source.display());
                let message = format!("{source} and {} would both be {path}", other.source.display());
                self.findings.push(Finding::new(FindingCode::PlaceTaken, &required.disk, message));
            }
        }
    }

    /// The path of a layer; a blocker if the layer is no file.
    fn file(&mut self, disk: &str, layer: &Layer, layout: &SourceLayout) -> Option<PathBuf> {
        let file = &layer.protocol.file;
        let found = path(layer, layout);
        if found.is_none() {
            self.findings.push(match is_file(layer) {
                false => Finding::new(
                    FindingCode::ProtocolUnsupported,
                    disk,
                    format!("its image {} is reached through {}", layer.file, layer.protocol.driver),
                ),
                true => Finding::new(FindingCode::PathUnknown, disk, format!("it is not known where {file} is")),
            });
        }
        found
    }
}

fn is_file(layer: &Layer) -> bool {
    ["file", "host_device", "host_cdrom"].contains(&layer.protocol.driver.as_str())
}

fn path(layer: &Layer, layout: &SourceLayout) -> Option<PathBuf> {
    is_file(layer).then(|| path_map::path_of(&layer.protocol.file, layout.directory.as_deref()))?
}

fn unlike_finding(disk: &str, unlike: &UnsupportedImage) -> Finding {
    let (code, message) = match unlike {
        UnsupportedImage::Format(format) => {
            (FindingCode::FormatUnsupported, format!("its image is of the format {format}"))
        }
        UnsupportedImage::Encrypted => {
            (FindingCode::ImageEncrypted, "its image is encrypted, and its secret is not known here".to_owned())
        }
        UnsupportedImage::DataFile(file) => {
            (FindingCode::DataFile, format!("its image keeps its data in another file, {file}"))
        }
    };
    Finding::new(code, disk, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::model::{
        chain::{BackingChain, FilterNode, ProtocolNode, Qcow2},
        layout::DiskSelection,
        path_map::PathMap,
    };

    fn layer(file: &str, format: &str) -> Layer {
        let qcow2 = Qcow2 { compat: "1.1".to_owned(), refcount_bits: 16, ..Qcow2::default() };
        Layer {
            format: format.to_owned(),
            file: file.to_owned(),
            protocol: ProtocolNode { node: format!("p-{file}"), driver: "file".to_owned(), file: file.to_owned() },
            virtual_size: 1 << 20,
            qcow2: Some(qcow2).filter(|_| format == "qcow2"),
            ..Layer::default()
        }
    }

    fn disk(name: &str, layers: Vec<Layer>) -> Disk {
        Disk {
            qdev: Some(name.to_owned()),
            device: None,
            node: format!("n-{name}"),
            path: None,
            file: layers[0].file.clone(),
            read_only: false,
            virtual_size: 1 << 20,
            chain: BackingChain { layers, filters: Vec::new() },
        }
    }

    fn settings(to: Option<&str>, maps: &[(&str, &str)]) -> PrepareSettings {
        let maps = maps.iter().map(|(from, to)| (from.into(), to.into())).collect();
        PrepareSettings { places: PathMap { maps, to: to.map(PathBuf::from) }, ..PrepareSettings::default() }
    }

    fn stored(storage: StorageMode, mut settings: PrepareSettings) -> PrepareSettings {
        settings.selection.storage = storage;
        settings
    }

    fn requirements(disks: Vec<Disk>, settings: &PrepareSettings) -> Requirements {
        read(&SourceLayout { disks, directory: Some("/cwd".into()), local: true }, settings)
    }

    fn paths(requirements: &Requirements) -> Vec<String> {
        requirements.files.iter().map(|required| required.path.display().to_string()).collect()
    }

    fn codes(requirements: &Requirements) -> Vec<String> {
        requirements.findings.iter().map(|finding| finding.code.to_string()).collect()
    }

    fn chain() -> Vec<Layer> {
        vec![layer("top", "qcow2"), layer("/s/mid", "qcow2"), layer("/s/base", "raw")]
    }

    #[test]
    fn the_bottom_comes_first_and_each_names_the_one_below() {
        let found = requirements(vec![disk("d", chain())], &settings(Some("/d"), &[("/s/base", "/b/x")]));
        assert_eq!(paths(&found), ["/b/x", "/s/mid", "/d/top"]);
        assert_eq!(codes(&found), Vec::<String>::new());
        let Role::Backing(middle) = &found.files[1].role else { panic!("{found:?}") };
        assert_eq!(middle.backing, Some(BackingFile { file: "/b/x".to_owned(), format: "raw".to_owned() }));
        let Role::Top(top) = &found.files[2].role else { panic!("{found:?}") };
        assert_eq!(top.backing, Some(BackingFile { file: "/s/mid".to_owned(), format: "qcow2".to_owned() }));
        assert_eq!(found.files[2].source, PathBuf::from("/cwd/top"), "relative names are the process's");
        let moved = [("/cwd/top", "/d/top"), ("/s/base", "/b/x")].map(|(from, to)| (from.into(), to.into()));
        assert_eq!(found.moves, MovedFiles::from(moved));
    }

    #[test]
    fn full_stands_alone_and_none_makes_nothing() {
        let full = stored(StorageMode::Full, settings(Some("/d"), &[]));
        let found = requirements(vec![disk("d", chain())], &full);
        assert_eq!(paths(&found), ["/d/top"]);
        assert!(matches!(&found.files[0].role, Role::Top(image) if image.backing.is_none()));
        let none = stored(StorageMode::None, settings(None, &[("/s", "/t")]));
        let found = requirements(vec![disk("d", chain())], &none);
        assert_eq!((paths(&found).len(), found.moves.len()), (0, 2));
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let to = settings(Some("/d"), &[]);
        let with = |change: fn(&mut Layer)| {
            let mut top = layer("/s/top", "qcow2");
            change(&mut top);
            codes(&requirements(vec![disk("d", vec![top])], &to))
        };
        assert_eq!(with(|_| {}), Vec::<&str>::new());
        assert_eq!(with(|top| top.encrypted = true), ["image-encrypted"]);
        assert_eq!(with(|top| top.data_file = Some("/x".to_owned())), ["data-file"]);
        assert_eq!(with(|top| top.format = "vmdk".to_owned()), ["format-unsupported"]);
        assert_eq!(with(|top| top.protocol.driver = "rbd".to_owned()), ["protocol-unsupported"]);
        assert_eq!(
            with(|top| top.qcow2 = Some(Qcow2 { compat: "0.10".to_owned(), ..Qcow2::default() })),
            ["image-upgraded"]
        );
        assert_eq!(codes(&requirements(vec![disk("d", chain())], &settings(None, &[]))), ["place-unknown"]);
        let mut unknown = SourceLayout { disks: vec![disk("d", chain())], directory: None, local: false };
        assert_eq!(codes(&read(&unknown, &to)), ["path-unknown"]);
        unknown.disks[0].chain.layers.clear();
        assert_eq!(codes(&read(&unknown, &to)), ["chain-unknown"]);
        let mut remote = chain();
        remote[2].protocol.driver = "nbd".to_owned();
        remote[2].file = "nbd://h/x".to_owned();
        let found = requirements(vec![disk("d", remote)], &to);
        assert_eq!((codes(&found), paths(&found).len()), (vec!["layer-remote".to_owned()], 2));
    }

    #[test]
    fn one_place_is_for_one_file() {
        let two = |base: &str| {
            let over = |name: &str, top: &str| disk(name, vec![layer(top, "qcow2"), layer(base, "raw")]);
            vec![over("a", "/s/a"), over("b", "/s/b")]
        };
        let found = requirements(two("/s/base"), &settings(Some("/d"), &[]));
        assert_eq!((paths(&found), codes(&found)), (vec!["/s/base".into(), "/d/a".into(), "/d/b".into()], vec![]));
        let same = vec![disk("a", vec![layer("/s/a/x", "raw")]), disk("b", vec![layer("/s/b/x", "raw")])];
        assert_eq!(codes(&requirements(same, &settings(Some("/d"), &[]))), ["place-taken"]);
    }

    #[test]
    fn the_users_choice_is_followed() {
        let choose = |disks: &[&str], skip: &[&str]| {
            let named = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
            let disks = named(disks).into_iter().map(|name| (name, None)).collect();
            let settings = PrepareSettings {
                selection: DiskSelection { disks, skip: named(skip), ..DiskSelection::default() },
                ..settings(Some("/d"), &[])
            };
            let mut cd = disk("cd", vec![layer("/s/cd.iso", "raw")]);
            cd.read_only = true;
            let all = vec![disk("a", vec![layer("/s/a", "raw")]), disk("b", vec![layer("/s/b", "raw")]), cd];
            let found = requirements(all, &settings);
            (paths(&found).join(" "), codes(&found).join(" "))
        };
        for (disks, skip, paths, codes) in [
            (&[][..], &[][..], "/d/a /d/b /s/cd.iso", ""),
            (&["a"], &[], "/d/a /s/cd.iso", "disk-left-out"),
            (&["a"], &["b", "cd"], "/d/a", ""),
            (&["x"], &["n-a", "b"], "/s/cd.iso", "disk-unknown"),
        ] {
            assert_eq!(choose(disks, skip), (paths.to_owned(), codes.to_owned()), "{disks:?} {skip:?}");
        }
    }

    #[test]
    fn a_job_in_the_chain_is_noticed() {
        let mut busy = disk("d", chain());
        busy.chain.filters.push(FilterNode { node: "f".to_owned(), driver: "commit_top".to_owned(), above: 1 });
        let found = requirements(vec![busy], &settings(Some("/d"), &[]));
        assert!(matches!(&found.files[0].role, Role::Backing(lower) if lower.in_a_job));
    }
}
