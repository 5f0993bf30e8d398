//! The look at the source and at the files of this host. Nothing is changed.

use super::{
    requirements::{RequiredFile, Requirements, Role, SourceLayout},
    steps::{PathContent, PathContents},
};
use crate::{
    migration::journal_directory,
    preflight::facts::SideFacts,
    qemu::Process,
    storage::files::{
        filesystem::FileSystem,
        image::ExistingImage,
        qemu_img::QemuImg,
        spent_images::{self, FileMark},
    },
};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The source's disks, with what is known of its process.
pub(super) fn source_layout(facts: &SideFacts, process: &Process) -> SourceLayout {
    let directory = process.peer().and_then(|peer| fs::read_link(format!("/proc/{}/cwd", peer.pid())).ok());
    SourceLayout { disks: facts.disks(), directory, local: process.peer().is_some() }
}

/// The source's command line, if the source is a process of this host and may be inspected.
pub(super) fn command_line(process: &Process) -> Option<Vec<String>> {
    let peer = process.peer()?;
    let bytes = fs::read(format!("/proc/{}/cmdline", peer.pid())).ok()?;
    let text = bytes.strip_suffix(b"\0").filter(|text| !text.is_empty())?;
    let words = text.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    // The watched process lived while the file was read, so the command line is not that of a later process with its
    // pid.
    Some(words.collect()).filter(|_| !peer.has_died())
}

/// What is at the paths of the required files.
pub(super) async fn contents(requirements: &Requirements, local: bool, img: &QemuImg) -> PathContents {
    let mut contents = PathContents::new();
    for required in &requirements.files {
        let content = look(required, local, img).await;
        contents.insert(required.path.clone(), content);
    }
    contents
}

async fn look(required: &RequiredFile, local: bool, img: &QemuImg) -> PathContent {
    let path = &required.path;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            return PathContent::Absent(FileSystem::of(directory).map_err(|error| error.to_string()));
        }
        Err(error) => return PathContent::Other(error.to_string()),
        Ok(_) => {}
    }
    // A dangling symbolic link counts as something that exists.
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) => return PathContent::Other(error.to_string()),
    };
    let same = |other: &PathBuf| fs::metadata(other).is_ok_and(|other| identity(&other) == identity(&found));
    if local && (required.source == *path || same(&required.source)) {
        return PathContent::Same;
    }
    let is_device = std::os::unix::fs::FileTypeExt::is_block_device(&found.file_type());
    let image = match &required.role {
        Role::Medium => Ok(ExistingImage::default()),
        Role::Backing(_) if found.is_file() || is_device => {
            img.info(path).await.map(|info| ExistingImage { info, data: 0 })
        }
        Role::Top(_) if found.is_file() => img.look(path).await,
        _ => return PathContent::Other("it is no file, and may hold data".to_owned()),
    };
    match (image, &required.role) {
        (Ok(image), Role::Top(wanted)) if wanted.misfit(&image).is_some() => spent(path, image, img).await,
        (Ok(image), _) => PathContent::Image(Box::new(image)),
        (Err(error), _) => PathContent::Other(crate::progress::describe(&error)),
    }
}

/// An image that cannot be used as it is, which may be one that a migration that was called off has written.
async fn spent(path: &Path, image: ExistingImage, img: &QemuImg) -> PathContent {
    let found = fs::symlink_metadata(path).ok().filter(|found| spent_images::is_spent(&journal_directory(), found));
    let Some(found) = found else { return PathContent::Image(Box::new(image)) };
    match img.is_free(path).await {
        Ok(()) => PathContent::Spent(FileMark::of(&found)),
        Err(error) => PathContent::Other(format!(
            "it holds a part of a disk, from a migration that was called off, and is in use: end that destination \
             first ({})",
            crate::progress::describe(&error)
        )),
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
