//! Digests that are stored beside images, and used for as long as no file of the image has changed.
//!
//! A digest must never be used if a file of the image has another size, another inode or other times than when the
//! digest was computed.

use super::identity;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The kind of digest that a digest file holds.
const ALGORITHM: &str = "blake3-of-1MiB-blake3";

/// An image on this host, with the files of all its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLocation {
    /// The file of the image itself; the digest file is beside that file.
    pub path: PathBuf,
    /// The files of the layers, the image itself first.
    pub files: Vec<PathBuf>,
    /// The sizes and formats with which the files are read: the same files read in other formats have other contents.
    pub kind: String,
}

/// The contents of a digest file.
#[derive(Debug, Serialize, Deserialize)]
struct CachedDigest {
    v: u32,
    algorithm: String,
    digest: String,
    kind: String,
    files: Vec<FileStamp>,
}

/// The metadata of a file that changes whenever the contents change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileStamp {
    size: u64,
    modified_s: i64,
    modified_ns: i64,
    /// The inode's change time, which no program can set. The modification time alone proves nothing: tools that copy
    /// in place restore it, and reproducibly built images share it.
    changed_s: i64,
    changed_ns: i64,
    inode: u64,
    device: u64,
}

/// The stamps of the files now. The caller must take them before reading the files, as a file may change meanwhile.
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

/// The digest beside an image, if no file of the image has changed since.
pub(super) fn trusted(place: &ImageLocation) -> Option<String> {
    let kept: CachedDigest = serde_json::from_str(&fs::read_to_string(beside(&place.path)).ok()?).ok()?;
    let fits =
        kept.v == 1 && kept.algorithm == ALGORITHM && kept.kind == place.kind && kept.files == stamps(place).ok()?;
    fits.then_some(kept.digest)
}

/// Stores the digest beside an image, with the stamps from before the image was read; replaces an older digest.
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
        assert_eq!(trusted(&place), None, "the file changed while the image was read");
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
