//! The records of images that hold a part of a disk, from a migration that was called off.
//!
//! Nobody needs such an image, and a preparation may make it anew. A record proves that only as long as nobody has
//! touched the file since: the kernel's time of the last change, the size and the inode are those of the end of that
//! migration. An image that a guest has used meanwhile has been written to.

use crate::trust;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The end of the name of a record.
const EXTENSION: &str = "spent";
/// More bytes than any record has.
const LONGEST: u64 = 1 << 20;

/// A file as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    device: u64,
    inode: u64,
    size: u64,
    /// The time of the last change of content or properties: seconds and nanoseconds since the epoch. No program can
    /// set it.
    changed: (i64, i64),
}

/// An image that holds a part of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpentImage {
    /// The path by which the destination's QEMU opened the image, for people.
    pub path: String,
    /// The file at the end of the migration.
    pub mark: FileMark,
}

impl FileMark {
    /// The file as it is now.
    pub fn of(file: &Metadata) -> Self {
        let (device, inode, size) = (file.dev(), file.ino(), file.size());
        Self { device, inode, size, changed: (file.ctime(), file.ctime_nsec()) }
    }
}

/// Keeps a record of the images of one run, readable by this user alone. Records that are of no use any more go.
///
/// # Errors
/// The folder or the file cannot be made.
pub fn keep(folder: &Path, run: &str, images: &[SpentImage]) -> io::Result<PathBuf> {
    for (path, images) in records(folder) {
        if !images.iter().any(is_untouched) {
            drop(fs::remove_file(path));
        }
    }
    let path = folder.join(format!("{run}.{EXTENSION}"));
    // An engine that died behind its record, or the first try of a recovery, has left one of the same run.
    drop(fs::remove_file(&path));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(&serde_json::to_vec(images)?)?;
    file.sync_all()?;
    Ok(path)
}

/// Whether a record tells of this file, and nobody has touched the file since.
pub fn is_spent(folder: &Path, file: &Metadata) -> bool {
    marks(folder).contains(&FileMark::of(file))
}

/// The marks of all images that records tell of.
pub fn marks(folder: &Path) -> Vec<FileMark> {
    records(folder).into_iter().flat_map(|(_, images)| images).map(|image| image.mark).collect()
}

fn is_untouched(image: &SpentImage) -> bool {
    fs::metadata(&image.path).is_ok_and(|file| FileMark::of(&file) == image.mark)
}

/// All records that nobody but this user or root has written.
fn records(folder: &Path) -> Vec<(PathBuf, Vec<SpentImage>)> {
    if trust::folder(folder).is_err() {
        return Vec::new();
    }
    let paths = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let records = paths.filter(|path| path.extension().is_some_and(|end| end == EXTENSION)).filter_map(|path| {
        let mut text = Vec::new();
        trust::open_file(&path).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
        Some((path, serde_json::from_slice(&text).ok()?))
    });
    records.collect()
}

/// An image that a migration is going to write to. The file is held without being opened, so its path may go.
#[derive(Debug)]
pub struct HeldImage {
    path: String,
    file: File,
}

impl HeldImage {
    /// Holds the file at `place`, which a QEMU knows as `path`; `None` where there is none.
    pub fn hold(path: &str, place: &Path) -> Option<Self> {
        let flags = rustix::fs::OFlags::PATH.bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(place).ok()?;
        Some(Self { path: path.to_owned(), file })
    }

    /// The path by which the QEMU knows the image.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The image as a spent one, as it is now.
    ///
    /// # Errors
    /// The file's properties cannot be read.
    pub fn spend(&self) -> io::Result<SpentImage> {
        Ok(SpentImage { path: self.path.clone(), mark: FileMark::of(&self.file.metadata()?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(folder: &Path, run: &str, image: &Path) -> PathBuf {
        let held = HeldImage::hold(image.to_str().unwrap(), image).unwrap();
        keep(folder, run, &[held.spend().unwrap()]).unwrap()
    }

    #[test]
    fn an_image_is_spent_until_somebody_touches_it() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::write(&image, "a part").unwrap();
        let is_spent = || is_spent(folder.path(), &fs::metadata(&image).unwrap());
        assert!(!is_spent(), "nobody has recorded it");
        record(folder.path(), "one", &image);
        assert!(is_spent());
        fs::rename(&image, folder.path().join("moved")).unwrap();
        fs::write(&image, "a part").unwrap();
        assert!(!is_spent(), "another file has the name");
        record(folder.path(), "two", &image);
        assert!(is_spent());
        OpenOptions::new().append(true).open(&image).unwrap().write_all(b"x").unwrap();
        assert!(!is_spent(), "somebody wrote to it");
    }

    #[test]
    fn records_that_others_may_have_written_count_for_nothing_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let (image, other) = (folder.path().join("image"), folder.path().join("other"));
        fs::write(&image, "a part").unwrap();
        fs::write(&other, "a part").unwrap();
        let first = record(folder.path(), "one", &image);
        fs::write(&image, "more").unwrap();
        let second = record(folder.path(), "two", &other);
        assert!(!first.exists() && second.exists(), "the record of a file that has changed goes");
        let is_spent = || is_spent(folder.path(), &fs::metadata(&other).unwrap());
        assert!(is_spent());
        let mode = |mode| fs::set_permissions(&second, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        mode(0o666);
        assert!(!is_spent(), "anybody may have written the record");
        mode(0o600);
        fs::write(&second, "[{\"path\":").unwrap();
        assert!(!is_spent(), "the record is torn");
    }
}
