//! Digests kept beside images: trusted for as long as no file of the image has changed.
//!
//! It must never trust a digest whose files have another size, another inode or other times than when it was made.

use super::identity;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The version and the kind of digest that this file is about.
const ALGORITHM: &str = "blake3-of-1MiB-blake3";

/// Where an image is on this host, with all the layers it is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLocation {
    /// The image's own file: the digest is beside it.
    pub path: PathBuf,
    /// The files of its layers, itself first.
    pub files: Vec<PathBuf>,
    /// What they are read as: sizes and formats, for the same files read in another way have another content.
    pub kind: String,
}

/// What is beside an image.
#[derive(Debug, Serialize, Deserialize)]
struct CachedDigest {
    v: u32,
    algorithm: String,
    digest: String,
    kind: String,
    files: Vec<FileStamp>,
}

/// What tells a file's content from another's without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileStamp {
    size: u64,
    modified_s: i64,
    modified_ns: i64,
    /// When anything of it was changed, which nobody can set: tools that copy in place set the other time as it was, and
    /// images that are built to be the same have the same one.
    changed_s: i64,
    changed_ns: i64,
    inode: u64,
    device: u64,
}

/// What the files are like now: to be taken before they are read, for one may change meanwhile.
pub(super) fn stamps(place: &ImageLocation) -> io::Result<Vec<FileStamp>> {
    let stamp = |path: &PathBuf| {
        let data = fs::metadata(path)?;
        Ok(FileStamp {
            size: data.len(),
            modified_s: data.mtime(),
            modified_ns: data.mtime_nsec(),
            changed_s: data.ctime(),
            changed_ns: data.ctime_nsec(),
            inode: data.ino(),
            device: data.dev(),
        })
    };
    place.files.iter().map(stamp).collect()
}

fn beside(path: &Path) -> PathBuf {
    PathBuf::from(identity::kept_path(&path.to_string_lossy()))
}

/// The digest beside an image, if it is one of it as it is now.
pub(super) fn trusted(place: &ImageLocation) -> Option<String> {
    let kept: CachedDigest = serde_json::from_str(&fs::read_to_string(beside(&place.path)).ok()?).ok()?;
    let fits =
        kept.v == 1 && kept.algorithm == ALGORITHM && kept.kind == place.kind && kept.files == stamps(place).ok()?;
    fits.then_some(kept.digest)
}

/// Keeps the digest of what an image was when these stamps were taken beside it, in place of an older one.
pub(super) fn keep(place: &ImageLocation, files: Vec<FileStamp>, digest: &str) -> io::Result<()> {
    let kept = CachedDigest {
        v: 1,
        algorithm: ALGORITHM.to_owned(),
        digest: digest.to_owned(),
        kind: place.kind.clone(),
        files,
    };
    let path = beside(&place.path);
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, serde_json::to_vec(&kept)?)?;
    fs::rename(&temporary, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_trusted_until_a_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (top, base) = (folder.path().join("top"), folder.path().join("base"));
        fs::write(&top, "a").unwrap();
        fs::write(&base, "b").unwrap();
        let place =
            ImageLocation { path: top.clone(), files: vec![top.clone(), base.clone()], kind: "raw 1".to_owned() };
        assert_eq!(trusted(&place), None);
        let now = || stamps(&place).unwrap();
        keep(&place, now(), "d1").unwrap();
        assert_eq!(trusted(&place).as_deref(), Some("d1"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "no temporary file is left");
        fs::write(&base, "bb").unwrap();
        assert_eq!(trusted(&place), None, "a layer grew");
        let before = now();
        fs::write(&base, "bbb").unwrap();
        keep(&place, before, "d2").unwrap();
        assert_eq!(trusted(&place), None, "it changed while it was read");
        keep(&place, now(), "d2").unwrap();
        assert_eq!(trusted(&place).as_deref(), Some("d2"));
        let modified = fs::metadata(&base).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&base, "ccc").unwrap();
        fs::File::options().write(true).open(&base).unwrap().set_modified(modified).unwrap();
        assert_eq!(trusted(&place), None, "written in place, with its time set back");
        keep(&place, now(), "d2").unwrap();
        let copy = folder.path().join("copy");
        fs::copy(&base, &copy).unwrap();
        fs::rename(&copy, &base).unwrap();
        assert_eq!(trusted(&place), None, "another file of the same name");
        fs::write(beside(&top), "{").unwrap();
        assert_eq!(trusted(&place), None, "nonsense");
    }
}
