//! Looks at the source and at the files of this host. It changes nothing.

use super::{
    requirements::{RequiredFile, Requirements, Role, SourceLayout},
    steps::{PathContent, PathContents},
};
use crate::{
    preflight::facts::Facts,
    qemu::Process,
    storage::files::{filesystem::FileSystem, image::ExistingImage, qemu_img::QemuImg},
};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// What the source told of its disks.
pub(super) fn told(facts: &Facts, process: &Process) -> SourceLayout {
    let directory = process.peer().and_then(|peer| fs::read_link(format!("/proc/{}/cwd", peer.pid())).ok());
    SourceLayout { disks: facts.disks(), directory, local: process.peer().is_some() }
}

/// The source's command line, where its process is one of this host and may be read.
pub(super) fn command_line(process: &Process) -> Option<Vec<String>> {
    let peer = process.peer()?;
    let bytes = fs::read(format!("/proc/{}/cmdline", peer.pid())).ok()?;
    let text = bytes.strip_suffix(b"\0").filter(|text| !text.is_empty())?;
    let words = text.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    // read while it lived, so it is the process that is watched and not a later one of the same number
    Some(words.collect()).filter(|_| !peer.has_died())
}

/// What is at the destination's paths.
pub(super) async fn looks(wish: &Requirements, local: bool, img: &QemuImg) -> PathContents {
    let mut looks = PathContents::new();
    for wanted in &wish.wanted {
        let seen = look(wanted, local, img).await;
        looks.insert(wanted.path.clone(), seen);
    }
    looks
}

async fn look(wanted: &RequiredFile, local: bool, img: &QemuImg) -> PathContent {
    let path = &wanted.path;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            return PathContent::Absent(FileSystem::of(directory).map_err(|error| error.to_string()));
        }
        Err(error) => return PathContent::Other(error.to_string()),
        Ok(_) => {}
    }
    // a link that leads nowhere is something, too
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) => return PathContent::Other(error.to_string()),
    };
    let same = |other: &PathBuf| fs::metadata(other).is_ok_and(|other| identity(&other) == identity(&found));
    if local && (wanted.source == *path || same(&wanted.source)) {
        return PathContent::Same;
    }
    let is_device = std::os::unix::fs::FileTypeExt::is_block_device(&found.file_type());
    let image = match &wanted.what {
        Role::Medium => Ok(ExistingImage::default()),
        Role::Backing(_) if found.is_file() || is_device => {
            img.info(path).await.map(|info| ExistingImage { info, data: 0 })
        }
        Role::Top(_) if found.is_file() => img.look(path).await,
        _ => return PathContent::Other("it is no file, and may hold data".to_owned()),
    };
    match image {
        Ok(image) => PathContent::Image(Box::new(image)),
        Err(error) => PathContent::Other(crate::progress::describe(&error)),
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
