//! What would be done, given what the destination needs and what it has.
//!
//! Pure. Nothing that holds data is ever replaced: what is in the way refuses the whole.

use super::{
    requirements::{BackingLayer, RequiredFile, Requirements, Role},
    settings::{PopulateMode, PrepareSettings},
};
use crate::{
    preflight::checks::{Finding, Severity, blocker, finding},
    quantity::Bytes,
    storage::files::{
        filesystem::FileSystem,
        image::{self, ExistingImage, NewImage},
    },
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// One file of the destination, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PreparationStep {
    /// What is done.
    pub action: PreparationAction,
    /// How far it is.
    pub state: StepState,
    /// The disk it is for; the first one, where several stand on it.
    pub disk: String,
    /// Where the source has it.
    pub source: String,
    /// Where the destination has it.
    pub path: String,
    /// Bytes to copy, or that were copied.
    pub bytes: Option<u64>,
    /// The command that does it by hand; for a copy, the one that corrects its header afterwards.
    pub command: Option<Vec<String>>,
    #[serde(skip)]
    pub(super) work: StepWork,
}

impl PreparationStep {
    /// A step that would run a command; for whoever shows one without having a source.
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

/// What is done for a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PreparationAction {
    /// An empty image is created.
    Create,
    /// It is copied from the source.
    Copy,
    /// It is there, and as it should be.
    Keep,
    /// It must be there when the destination's QEMU is started; nothing is made of it.
    MustExist,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// It would be done.
    Planned,
    /// It is done, or there was nothing to do.
    Done,
    /// It was begun and has left nothing.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StepWork {
    Nothing,
    Create(PathBuf, NewImage),
    Copy(PathBuf, BackingLayer),
}

/// What there is at a path of the destination.
#[derive(Debug, Clone)]
pub(super) enum PathContent {
    /// Nothing; where the file system of its directory is known, there is a directory.
    Absent(Result<FileSystem, String>),
    /// The source's own file.
    Same,
    /// Some image.
    Image(Box<ExistingImage>),
    /// Something of which only this is known.
    Other(String),
}

/// What was seen.
pub(super) type PathContents = BTreeMap<PathBuf, PathContent>;

/// Decides.
pub(super) fn decide(
    wish: &Requirements,
    looks: &PathContents,
    settings: &PrepareSettings,
    program: &str,
) -> (Vec<PreparationStep>, Vec<Finding>) {
    let mut made = StepPlanner { steps: Vec::new(), findings: Vec::new(), program: program.to_owned() };
    for wanted in &wish.wanted {
        let unseen = PathContent::Other("it was not looked at".to_owned());
        let seen = looks.get(&wanted.path).unwrap_or(&unseen);
        match &wanted.what {
            Role::Top(image) => made.top(wanted, image, seen),
            Role::Backing(below) => made.below(wanted, below, seen, settings),
            Role::Medium => made.medium(wanted, seen),
        }
    }
    made.room(looks);
    (made.steps, made.findings)
}

struct StepPlanner {
    steps: Vec<PreparationStep>,
    findings: Vec<Finding>,
    program: String,
}

impl StepPlanner {
    fn top(&mut self, wanted: &RequiredFile, image: &NewImage, seen: &PathContent) {
        let path = wanted.path.display();
        let leave = "move it away, or say another place with --to or --map: an image that exists is never overwritten";
        match seen {
            PathContent::Absent(Err(why)) => self.no_directory(wanted, why),
            PathContent::Absent(Ok(_)) => {
                let command = self.command(&image.create(&wanted.path));
                self.step(
                    wanted,
                    PreparationAction::Create,
                    None,
                    Some(command),
                    StepWork::Create(wanted.path.clone(), image.clone()),
                );
            }
            PathContent::Same => {
                let message = format!("{path} is the source's own image");
                self.block(wanted, "image-same", message, "say another place with --to or --map");
            }
            PathContent::Image(found) => match image.misfit(found) {
                None => self.step(wanted, PreparationAction::Keep, None, None, StepWork::Nothing),
                Some(why) => self.block(wanted, "image-exists", format!("{path} exists, and {why}"), leave),
            },
            PathContent::Other(why) => self.block(wanted, "image-exists", format!("{path} exists: {why}"), leave),
        }
    }

    fn below(&mut self, wanted: &RequiredFile, below: &BackingLayer, seen: &PathContent, settings: &PrepareSettings) {
        let path = wanted.path.display();
        match seen {
            PathContent::Same => self.step(wanted, PreparationAction::Keep, None, None, StepWork::Nothing),
            PathContent::Absent(directory) => match settings.populate {
                PopulateMode::Never => {
                    let size = Bytes(below.virtual_size);
                    let message = format!("the backing file {path} ({size}) is not there");
                    let copied = below.actual_size.unwrap_or(below.virtual_size);
                    let remedy = format!(
                        "put it there, or say with --map where it is; --populate missing copies it from the source: \
                         {copied} bytes"
                    );
                    self.block(wanted, "backing-missing", message, &remedy);
                }
                PopulateMode::Missing => self.copy(wanted, below, directory),
            },
            PathContent::Image(found) => match differs(&wanted.path, below, found) {
                None => self.step(wanted, PreparationAction::Keep, None, None, StepWork::Nothing),
                Some((why, remedy)) => {
                    self.block(
                        wanted,
                        "backing-differs",
                        format!("the backing file {path} exists, but {why}"),
                        &remedy,
                    );
                }
            },
            PathContent::Other(why) => {
                let remedy = "see to it that it is the image it should be";
                self.block(wanted, "backing-unreadable", format!("the backing file {path} exists: {why}"), remedy);
            }
        }
    }

    fn copy(&mut self, wanted: &RequiredFile, below: &BackingLayer, directory: &Result<FileSystem, String>) {
        if let Err(why) = directory {
            self.no_directory(wanted, why);
            return;
        }
        if below.on_device && wanted.path == wanted.source {
            let message = format!("{} is a device, and cannot be made", wanted.path.display());
            self.block(wanted, "backing-missing", message, "say with --map which file it becomes");
            return;
        }
        if let Some(data) = &below.data_file {
            let message = format!("{} keeps its data in another file, {data}", wanted.source.display());
            self.block(wanted, "data-file", message, "copy both by hand");
            return;
        }
        if below.in_a_job {
            let message = "a block job is at work in its chain: its backing files may be written to right now";
            self.block(wanted, "job-running", message.to_owned(), "wait for the job");
            return;
        }
        let rebase = below.backing.as_ref().filter(|backing| {
            let (file, format) =
                below.written.as_ref().map_or((None, None), |(file, format)| (Some(file), format.as_ref()));
            !image::names(&wanted.path, file.map(String::as_str), &backing.file) || format != Some(&backing.format)
        });
        if rebase.is_some() && below.format != "qcow2" {
            let message = format!(
                "{} is of the format {}, whose header cannot be changed",
                wanted.source.display(),
                below.format
            );
            self.block(wanted, "format-unsupported", message, "keep the paths of its backing files");
            return;
        }
        let command = rebase.map(|backing| self.command(&image::rebase(&wanted.path, &below.format, backing)));
        let work = StepWork::Copy(wanted.path.clone(), below.clone());
        self.step(
            wanted,
            PreparationAction::Copy,
            Some(below.actual_size.unwrap_or(below.virtual_size)),
            command,
            work,
        );
    }

    fn medium(&mut self, wanted: &RequiredFile, seen: &PathContent) {
        if matches!(seen, PathContent::Absent(_)) {
            let message = format!("{} is only read, and is not there", wanted.path.display());
            let remedy = "put it there before the destination is started, or say with --map where it is";
            self.findings.push(finding(Severity::Warning, "medium-missing", &wanted.disk, message, remedy));
        }
        self.step(wanted, PreparationAction::MustExist, None, None, StepWork::Nothing);
    }

    /// Whether what is copied has room.
    fn room(&mut self, looks: &PathContents) {
        let mut needed: BTreeMap<u64, (&FileSystem, u64, &PreparationStep)> = BTreeMap::new();
        for step in &self.steps {
            let StepWork::Copy(path, _) = &step.work else { continue };
            let Some(PathContent::Absent(Ok(place))) = looks.get(path) else { continue };
            needed.entry(place.device).or_insert((place, 0, step)).1 += step.bytes.unwrap_or(0);
        }
        let full = needed.into_values().filter(|(place, bytes, _)| *bytes > place.free);
        let found: Vec<Finding> = full
            .map(|(place, bytes, step)| {
                let message = format!(
                    "{bytes} bytes of backing files do not fit onto {}, which has {} free",
                    place.name, place.free
                );
                blocker("no-space", &step.disk, message, "make room, or say another place with --map")
            })
            .collect();
        self.findings.extend(found);
    }

    fn no_directory(&mut self, wanted: &RequiredFile, why: &str) {
        let message = format!("{} cannot be made: {why}", wanted.path.display());
        self.block(wanted, "directory-missing", message, "make its directory, or say another place");
    }

    fn block(&mut self, wanted: &RequiredFile, code: &'static str, message: String, remedy: &str) {
        self.findings.push(blocker(code, &wanted.disk, message, remedy));
    }

    fn step(
        &mut self,
        wanted: &RequiredFile,
        action: PreparationAction,
        bytes: Option<u64>,
        command: Option<Vec<String>>,
        work: StepWork,
    ) {
        let state = if action == PreparationAction::Keep { StepState::Done } else { StepState::Planned };
        let (source, path) = (wanted.source.display().to_string(), wanted.path.display().to_string());
        self.steps.push(PreparationStep {
            action,
            state,
            disk: wanted.disk.clone(),
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

/// How an image differs from the layer that it should be, as far as its header tells, and what to do.
fn differs(path: &Path, below: &BackingLayer, found: &ExistingImage) -> Option<(String, String)> {
    let info = &found.info;
    let remedy = || "put the right one there, or say with --map where it is".to_owned();
    // a raw image can look like anything
    if info.format != below.format && below.format != "raw" {
        return Some((format!("its format is {}, not {}", info.format, below.format), remedy()));
    }
    if info.format == below.format && info.virtual_size != below.virtual_size {
        return Some((format!("it has {} bytes, not {}", info.virtual_size, below.virtual_size), remedy()));
    }
    let backing = below.backing.as_ref()?;
    if image::names(path, info.backing_filename.as_deref(), &backing.file) {
        return None;
    }
    let names = info.backing().map_or_else(|| "none".to_owned(), str::to_owned);
    let why = format!("its backing file is {names}, not {}", backing.file);
    Some((why, "say with --map where that is, or correct its header with qemu-img rebase -u".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::files::image::{BackingFile, ImageInfo};

    fn backing() -> BackingFile {
        BackingFile { file: "/d/base".to_owned(), format: "raw".to_owned() }
    }

    fn below() -> BackingLayer {
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

    fn decided(what: Role, seen: PathContent, populate: PopulateMode) -> (Vec<PreparationStep>, Vec<Finding>) {
        let path = PathBuf::from("/d/x");
        let wanted = RequiredFile { disk: "disk0".to_owned(), source: "/s/x".into(), path: path.clone(), what };
        let wish = Requirements { wanted: vec![wanted], ..Requirements::default() };
        let settings = PrepareSettings { populate, ..PrepareSettings::default() };
        decide(&wish, &[(path, seen)].into(), &settings, "qemu-img")
    }

    fn absent(free: u64) -> PathContent {
        PathContent::Absent(Ok(FileSystem { device: 1, free, read_only: false, name: "/d (xfs)".to_owned() }))
    }

    /// What is done, the finding, and the words of the command.
    fn short(what: Role, seen: PathContent, populate: PopulateMode) -> String {
        let (steps, findings) = decided(what, seen, populate);
        let mut said: Vec<String> = steps.iter().map(|step| format!("{:?}", step.action)).collect();
        said.extend(findings.iter().map(|finding| finding.code.to_owned()));
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
        let top = |seen| short(Role::Top(image()), seen, Never);
        assert_eq!(top(absent(0)), "Create, qemu-img create -q -f qcow2 -F raw -b /d/base /d/x 1000");
        assert_eq!(top(PathContent::Absent(Err("no".to_owned()))), "directory-missing");
        assert_eq!(top(PathContent::Same), "image-same");
        assert_eq!(top(existing(|_| {})), "Keep");
        assert_eq!(top(existing(|info| info.virtual_size = 1)), "image-exists");
        assert_eq!(top(PathContent::Other("a socket".to_owned())), "image-exists");

        let layer = |seen, populate| short(Role::Backing(below()), seen, populate);
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
        let copied = |below: BackingLayer| short(Role::Backing(below), absent(1000), PopulateMode::Missing);
        let command = "Copy, qemu-img rebase -q -u -f qcow2 -F raw -b /d/base /d/x";
        let written = |file: &str, format: Option<&str>| Some((file.to_owned(), format.map(str::to_owned)));
        assert_eq!(copied(BackingLayer { written: written("/s/base", Some("raw")), ..below() }), command);
        assert_eq!(copied(BackingLayer { written: written("base", None), ..below() }), command, "its format is put in");
        assert_eq!(copied(BackingLayer { written: written("/d/base", Some("raw")), ..below() }), "Copy");
        assert_eq!(copied(BackingLayer { backing: None, written: None, ..below() }), "Copy");
        assert_eq!(
            copied(BackingLayer { written: written("/s/base", None), format: "vmdk".to_owned(), ..below() }),
            "format-unsupported"
        );
        assert_eq!(copied(BackingLayer { data_file: Some("/x".to_owned()), ..below() }), "data-file");
        assert_eq!(copied(BackingLayer { on_device: true, ..below() }), "Copy", "into a file of another name");
        assert_eq!(copied(BackingLayer { in_a_job: true, ..below() }), "job-running");
    }

    #[test]
    fn a_device_is_not_made() {
        let path = PathBuf::from("/dev/vg/base");
        let what = Role::Backing(BackingLayer { on_device: true, ..below() });
        let wanted = RequiredFile { disk: "disk0".to_owned(), source: path.clone(), path: path.clone(), what };
        let wish = Requirements { wanted: vec![wanted], ..Requirements::default() };
        let settings = PrepareSettings { populate: PopulateMode::Missing, ..PrepareSettings::default() };
        let (steps, findings) = decide(&wish, &[(path, absent(1000))].into(), &settings, "qemu-img");
        assert_eq!((steps.len(), findings[0].code), (0, "backing-missing"));
    }

    #[test]
    fn what_is_missing_is_told_with_its_size() {
        let (_, findings) = decided(Role::Backing(below()), absent(0), PopulateMode::Never);
        assert!(findings[0].message.contains("/d/x (1000 B)"), "{findings:?}");
        assert!(findings[0].remedy.contains("--populate missing copies it from the source: 600 bytes"), "{findings:?}");
    }
}
