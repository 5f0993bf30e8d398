//! The steps of a preparation, decided from the files that the destination needs and those that exist.
//!
//! Pure. Nothing that holds data is ever replaced: a file in the way refuses the whole preparation.

use super::{
    requirements::{BackingLayer, RequiredFile, Requirements, Role},
    settings::{PopulateMode, PrepareSettings},
};
use crate::{
    codes::Setting,
    preflight::checks::{Finding, FindingCode},
    quantity::Bytes,
    storage::files::{
        filesystem::FileSystem,
        image::{self, ExistingImage, NewImage},
        spent_images::FileMark,
    },
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// One file of the destination, and what the preparation does about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PreparationStep {
    /// The action.
    pub action: PreparationAction,
    /// The state.
    pub state: StepState,
    /// The disk that needs the file; the first one of several.
    pub disk: String,
    /// The path on the source.
    pub source: String,
    /// The path on the destination.
    pub path: String,
    /// The bytes to copy, or the bytes that were copied.
    pub bytes: Option<u64>,
    /// The command that does the step by hand, one word per entry, not quoted; for a copy, the command that corrects
    /// the header afterwards.
    pub command: Option<Vec<String>>,
    #[serde(skip)]
    pub(super) work: StepWork,
}

impl PreparationStep {
    /// A planned step with a command, for tests of programs that show steps.
    pub fn planned(action: PreparationAction, disk: &str, source: &str, path: &str, command: &[&str]) -> Self {
        Self {
            action,
            state: StepState::Planned,
            disk: disk.to_owned(),
            source: source.to_owned(),
            path: path.to_owned(),
            bytes: None,
            command: Some(command.iter().map(|&word| word.to_owned()).collect()),
            work: StepWork::Nothing,
        }
    }
}

/// What the preparation does about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PreparationAction {
    /// Create an empty image.
    Create,
    /// Copy the file from the source.
    Copy,
    /// Keep the existing file, which fits.
    Keep,
    /// Make the image anew, which a migration that was called off has written.
    Remake,
    /// Make nothing; the user must provide the file before the destination's QEMU starts.
    MustExist,
}

/// The state of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StepState {
    /// The step has not begun.
    Planned,
    /// The step is done, or there was nothing to do.
    Done,
    /// The step failed and left nothing behind.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StepWork {
    Nothing,
    Create(PathBuf, NewImage),
    /// An empty image in place of the file that has this mark.
    Remake(PathBuf, NewImage, FileMark),
    Copy(PathBuf, BackingLayer),
}

/// What exists at a path of the destination.
#[derive(Debug, Clone)]
pub(super) enum PathContent {
    /// Nothing. `Ok` has the file system of the directory; `Err` tells why the directory cannot be used.
    Absent(Result<FileSystem, String>),
    /// The file that the source itself has open.
    Same,
    /// An image.
    Image(Box<ExistingImage>),
    /// An image that a migration that was called off has written, and nobody since.
    Spent(FileMark),
    /// Something else, described in words.
    Other(String),
}

/// What exists at each path.
pub(super) type PathContents = BTreeMap<PathBuf, PathContent>;

/// Decides the steps, with the findings about them. `program` is the name of `qemu-img` in commands.
pub(super) fn decide(
    requirements: &Requirements,
    contents: &PathContents,
    settings: &PrepareSettings,
    program: &str,
) -> (Vec<PreparationStep>, Vec<Finding>) {
    let mut planner = StepPlanner { steps: Vec::new(), findings: Vec::new(), program: program.to_owned() };
    for required in &requirements.files {
        let unknown = PathContent::Other("it was not looked at".to_owned());
        let content = contents.get(&required.path).unwrap_or(&unknown);
        match &required.role {
            Role::Top(image) => planner.top(required, image, content, settings),
            Role::Backing(layer) => planner.layer(required, layer, content, settings),
            Role::Medium => planner.medium(required, content),
        }
    }
    planner.room(contents);
    (planner.steps, planner.findings)
}

struct StepPlanner {
    steps: Vec<PreparationStep>,
    findings: Vec<Finding>,
    program: String,
}

impl StepPlanner {
    fn top(&mut self, required: &RequiredFile, image: &NewImage, content: &PathContent, settings: &PrepareSettings) {
        let path = required.path.display();
        match content {
            PathContent::Absent(Err(why)) => self.no_directory(required, why),
            PathContent::Absent(Ok(_)) => {
                let command = self.command(&image.create(&required.path));
                self.step(
                    required,
                    PreparationAction::Create,
                    None,
                    Some(command),
                    StepWork::Create(required.path.clone(), image.clone()),
                );
            }
            PathContent::Same => {
                let message = format!("{path} is the source's own image");
                self.found(required, FindingCode::ImageSame, message);
            }
            PathContent::Image(found) => match image.misfit(found) {
                None => self.step(required, PreparationAction::Keep, None, None, StepWork::Nothing),
                Some(why) => self.found(required, FindingCode::ImageExists, format!("{path} exists, and {why}")),
            },
            PathContent::Spent(mark) if settings.again => {
                let work = StepWork::Remake(required.path.clone(), image.clone(), mark.clone());
                self.step(required, PreparationAction::Remake, None, None, work);
            }
            PathContent::Spent(_) => {
                let message = format!("{path} holds a part of a disk, from a migration that was called off");
                let remedy = format!("make it anew with {}", Setting::Again);
                self.block(required, FindingCode::ImageExists, message, &remedy);
            }
            PathContent::Other(why) => self.found(required, FindingCode::ImageExists, format!("{path} exists: {why}")),
        }
    }

    fn layer(
        &mut self,
        required: &RequiredFile,
        layer: &BackingLayer,
        content: &PathContent,
        settings: &PrepareSettings,
    ) {
        let path = required.path.display();
        match content {
            PathContent::Same => self.step(required, PreparationAction::Keep, None, None, StepWork::Nothing),
            PathContent::Absent(directory) => match settings.populate {
                PopulateMode::Never => {
                    let size = Bytes(layer.virtual_size);
                    let message = format!("the backing file {path} ({size}) is not there");
                    let copied = Bytes(layer.actual_size.unwrap_or(layer.virtual_size));
                    let remedy = format!(
                        "put it there, or say with {} where it is; {} copies it from the source: {copied}",
                        Setting::Map,
                        Setting::Populate.set_to("missing")
                    );
                    self.block(required, FindingCode::BackingMissing, message, &remedy);
                }
                PopulateMode::Missing => self.copy(required, layer, directory),
            },
            PathContent::Image(found) => match differs(&required.path, layer, found) {
                None => self.step(required, PreparationAction::Keep, None, None, StepWork::Nothing),
                Some((why, remedy)) => {
                    self.block(
                        required,
                        FindingCode::BackingDiffers,
                        format!("the backing file {path} exists, but {why}"),
                        &remedy,
                    );
                }
            },
            // Only images that a guest writes to are looked up among the spent ones.
            PathContent::Spent(_) => {
                let message = format!("the backing file {path} holds a part of a disk");
                self.found(required, FindingCode::BackingUnreadable, message);
            }
            PathContent::Other(why) => {
                let message = format!("the backing file {path} exists: {why}");
                self.found(required, FindingCode::BackingUnreadable, message);
            }
        }
    }

    fn copy(&mut self, required: &RequiredFile, layer: &BackingLayer, directory: &Result<FileSystem, String>) {
        if let Err(why) = directory {
            self.no_directory(required, why);
            return;
        }
        if layer.on_device && required.path == required.source {
            let message = format!("{} is a device, and cannot be made", required.path.display());
            let remedy = format!("say with {} which file it becomes", Setting::Map);
            self.block(required, FindingCode::BackingMissing, message, &remedy);
            return;
        }
        if let Some(data) = &layer.data_file {
            let message = format!("{} keeps its data in another file, {data}", required.source.display());
            self.block(required, FindingCode::DataFile, message, "copy both by hand");
            return;
        }
        if layer.in_a_job {
            let message = "a block job is at work in its chain: its backing files may be written to right now";
            self.block(required, FindingCode::JobRunning, message.to_owned(), "wait for the job");
            return;
        }
        let rebase = layer.backing.as_ref().filter(|backing| {
            let (file, format) =
                layer.written.as_ref().map_or((None, None), |(file, format)| (Some(file), format.as_ref()));
            !image::names(&required.path, file.map(String::as_str), &backing.file) || format != Some(&backing.format)
        });
        if rebase.is_some() && layer.format != "qcow2" {
            let message = format!(
                "{} is of the format {}, whose header cannot be changed",
                required.source.display(),
                layer.format
            );
            self.block(required, FindingCode::FormatUnsupported, message, "keep the paths of its backing files");
            return;
        }
        let command = rebase.map(|backing| self.command(&image::rebase(&required.path, &layer.format, backing)));
        let work = StepWork::Copy(required.path.clone(), layer.clone());
        self.step(
            required,
            PreparationAction::Copy,
            Some(layer.actual_size.unwrap_or(layer.virtual_size)),
            command,
            work,
        );
    }

    fn medium(&mut self, required: &RequiredFile, content: &PathContent) {
        if matches!(content, PathContent::Absent(_)) {
            let message = format!("{} is only read, and is not there", required.path.display());
            let remedy =
                format!("put it there before the destination is started, or say with {} where it is", Setting::Map);
            let finding = Finding::new(FindingCode::MediumMissing, &required.disk, message);
            self.findings.push(finding.into_warning().with_remedy(remedy));
        }
        self.step(required, PreparationAction::MustExist, None, None, StepWork::Nothing);
    }

    /// Whether the file systems have room for the copies.
    fn room(&mut self, contents: &PathContents) {
        let mut needed: BTreeMap<u64, (&FileSystem, u64, &PreparationStep)> = BTreeMap::new();
        for step in &self.steps {
            let StepWork::Copy(path, _) = &step.work else { continue };
            let Some(PathContent::Absent(Ok(place))) = contents.get(path) else { continue };
            needed.entry(place.device).or_insert((place, 0, step)).1 += step.bytes.unwrap_or(0);
        }
        let full = needed.into_values().filter(|(place, bytes, _)| *bytes > place.free);
        let found: Vec<Finding> = full
            .map(|(place, bytes, step)| {
                let message = format!(
                    "{} of backing files do not fit onto {}, which has {} free",
                    Bytes(bytes),
                    place.name,
                    Bytes(place.free)
                );
                let remedy = format!("make room, or say another place with {}", Setting::Map);
                Finding::new(FindingCode::NoSpace, &step.disk, message).with_remedy(remedy)
            })
            .collect();
        self.findings.extend(found);
    }

    fn no_directory(&mut self, required: &RequiredFile, why: &str) {
        let message = format!("{} cannot be made: {why}", required.path.display());
        self.found(required, FindingCode::DirectoryMissing, message);
    }

    fn found(&mut self, required: &RequiredFile, code: FindingCode, message: String) {
        self.findings.push(Finding::new(code, &required.disk, message));
    }

    fn block(&mut self, required: &RequiredFile, code: FindingCode, message: String, remedy: &str) {
        self.findings.push(Finding::new(code, &required.disk, message).with_remedy(remedy));
    }

    fn step(
        &mut self,
        required: &RequiredFile,
        action: PreparationAction,
        bytes: Option<u64>,
        command: Option<Vec<String>>,
        work: StepWork,
    ) {
        let state = if action == PreparationAction::Keep { StepState::Done } else { StepState::Planned };
        let (source, path) = (required.source.display().to_string(), required.path.display().to_string());
        self.steps.push(PreparationStep {
            action,
            state,
            disk: required.disk.clone(),
            source,
            path,
            bytes,
            command,
            work,
        });
    }

    fn command(&self, arguments: &[std::ffi::OsString]) -> Vec<String> {
        let words = arguments.iter().map(|word| word.to_string_lossy().into_owned());
        [self.program.clone()].into_iter().chain(words).collect()
    }
}

/// How the header of an existing image differs from the required layer, and the remedy.
fn differs(path: &Path, layer: &BackingLayer, found: &ExistingImage) -> Option<(String, String)> {
    let info = &found.info;
    let remedy = || format!("put the right one there, or say with {} where it is", Setting::Map);
    // A raw image can have any contents, so `qemu-img` may detect another format.
    if info.format != layer.format && layer.format != "raw" {
        return Some((format!("its format is {}, not {}", info.format, layer.format), remedy()));
    }
    if info.format == layer.format && info.virtual_size != layer.virtual_size {
        let (found, needed) = (Bytes(info.virtual_size).exactly(), Bytes(layer.virtual_size).exactly());
        return Some((format!("it has {found}, not {needed}"), remedy()));
    }
    let backing = layer.backing.as_ref()?;
    if image::names(path, info.backing_filename.as_deref(), &backing.file) {
        return None;
    }
    let names = info.backing().map_or_else(|| "none".to_owned(), str::to_owned);
    let why = format!("its backing file is {names}, not {}", backing.file);
    let remedy = format!("say with {} where that is, or correct its header with qemu-img rebase -u", Setting::Map);
    Some((why, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::files::image::{BackingFile, ImageInfo};

    fn backing() -> BackingFile {
        BackingFile { file: "/d/base".to_owned(), format: "raw".to_owned() }
    }

    fn layer() -> BackingLayer {
        BackingLayer {
            node: "p".to_owned(),
            format: "qcow2".to_owned(),
            virtual_size: 1000,
            actual_size: Some(600),
            backing: Some(backing()),
            written: Some(("base".to_owned(), Some("raw".to_owned()))),
            data_file: None,
            in_a_job: false,
            on_device: false,
        }
    }

    fn decided(role: Role, content: PathContent, populate: PopulateMode) -> (Vec<PreparationStep>, Vec<Finding>) {
        let path = PathBuf::from("/d/x");
        let required = RequiredFile { disk: "disk0".to_owned(), source: "/s/x".into(), path: path.clone(), role };
        let requirements = Requirements { files: vec![required], ..Requirements::default() };
        let settings = PrepareSettings { populate, ..PrepareSettings::default() };
        decide(&requirements, &[(path, content)].into(), &settings, "qemu-img")
    }

    fn absent(free: u64) -> PathContent {
        PathContent::Absent(Ok(FileSystem { device: 1, free, read_only: false, name: "/d (xfs)".to_owned() }))
    }

    /// The actions, the codes of the findings, and the commands.
    fn short(role: Role, content: PathContent, populate: PopulateMode) -> String {
        let (steps, findings) = decided(role, content, populate);
        let mut said: Vec<String> = steps.iter().map(|step| format!("{:?}", step.action)).collect();
        said.extend(findings.iter().map(|finding| finding.code.to_string()));
        said.extend(steps.into_iter().filter_map(|step| step.command).map(|command| command.join(" ")));
        said.join(", ")
    }

    fn existing(change: impl FnOnce(&mut ImageInfo)) -> PathContent {
        let mut info = ImageInfo {
            format: "qcow2".to_owned(),
            virtual_size: 1000,
            backing_filename: Some("base".to_owned()),
            full_backing_filename: Some("/d/base".to_owned()),
            backing_filename_format: Some("raw".to_owned()),
            ..ImageInfo::default()
        };
        change(&mut info);
        PathContent::Image(Box::new(ExistingImage { info, data: 0 }))
    }

    #[test]
    fn what_is_there_is_kept_or_refuses_and_what_is_not_is_made() {
        use PopulateMode::{Missing, Never};
        let image = || NewImage {
            format: "qcow2".to_owned(),
            size: 1000,
            backing: Some(backing()),
            cluster_size: None,
            qcow2: None,
        };
        let top = |content| short(Role::Top(image()), content, Never);
        assert_eq!(top(absent(0)), "Create, qemu-img create -q -f qcow2 -F raw -b /d/base /d/x 1000");
        assert_eq!(top(PathContent::Absent(Err("no".to_owned()))), "directory-missing");
        assert_eq!(top(PathContent::Same), "image-same");
        assert_eq!(top(existing(|_| {})), "Keep");
        assert_eq!(top(existing(|info| info.virtual_size = 1)), "image-exists");
        assert_eq!(top(PathContent::Other("a socket".to_owned())), "image-exists");

        let layer = |content, populate| short(Role::Backing(layer()), content, populate);
        assert_eq!(layer(absent(600), Never), "backing-missing");
        assert_eq!(layer(absent(600), Missing), "Copy");
        assert_eq!(layer(absent(599), Missing), "Copy, no-space");
        assert_eq!(layer(PathContent::Same, Never), "Keep");
        assert_eq!(layer(existing(|_| {}), Never), "Keep");
        assert_eq!(layer(existing(|info| info.virtual_size = 1), Never), "backing-differs");
        assert_eq!(layer(existing(|info| info.format = "raw".to_owned()), Never), "backing-differs");
        assert_eq!(layer(existing(|info| info.backing_filename = Some("/e".to_owned())), Never), "backing-differs");
        assert_eq!(layer(PathContent::Other("no".to_owned()), Never), "backing-unreadable");

        assert_eq!(short(Role::Medium, absent(0), Never), "MustExist, medium-missing");
        assert_eq!(short(Role::Medium, existing(|_| {}), Never), "MustExist");
    }

    #[test]
    fn a_header_that_names_another_place_is_corrected() {
        let copied = |layer: BackingLayer| short(Role::Backing(layer), absent(1000), PopulateMode::Missing);
        let command = "Copy, qemu-img rebase -q -u -f qcow2 -F raw -b /d/base /d/x";
        let written = |file: &str, format: Option<&str>| Some((file.to_owned(), format.map(str::to_owned)));
        assert_eq!(copied(BackingLayer { written: written("/s/base", Some("raw")), ..layer() }), command);
        assert_eq!(copied(BackingLayer { written: written("base", None), ..layer() }), command, "its format is put in");
        assert_eq!(copied(BackingLayer { written: written("/d/base", Some("raw")), ..layer() }), "Copy");
        assert_eq!(copied(BackingLayer { backing: None, written: None, ..layer() }), "Copy");
        assert_eq!(
            copied(BackingLayer { written: written("/s/base", None), format: "vmdk".to_owned(), ..layer() }),
            "format-unsupported"
        );
        assert_eq!(copied(BackingLayer { data_file: Some("/x".to_owned()), ..layer() }), "data-file");
        assert_eq!(copied(BackingLayer { on_device: true, ..layer() }), "Copy", "into a file of another name");
        assert_eq!(copied(BackingLayer { in_a_job: true, ..layer() }), "job-running");
    }

    #[test]
    fn a_device_is_not_made() {
        let path = PathBuf::from("/dev/vg/base");
        let role = Role::Backing(BackingLayer { on_device: true, ..layer() });
        let required = RequiredFile { disk: "disk0".to_owned(), source: path.clone(), path: path.clone(), role };
        let requirements = Requirements { files: vec![required], ..Requirements::default() };
        let settings = PrepareSettings { populate: PopulateMode::Missing, ..PrepareSettings::default() };
        let (steps, findings) = decide(&requirements, &[(path, absent(1000))].into(), &settings, "qemu-img");
        assert_eq!((steps.len(), findings[0].code.clone()), (0, FindingCode::BackingMissing));
    }

    #[test]
    fn what_is_missing_is_told_with_its_size() {
        let (_, findings) = decided(Role::Backing(layer()), absent(0), PopulateMode::Never);
        assert!(findings[0].message.contains("/d/x (1000 B)"), "{findings:?}");
        assert!(findings[0].remedy.contains("`populate: missing` copies it from the source: 600 B"), "{findings:?}");
    }
}
