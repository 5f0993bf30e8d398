//! Digests that are stored beside images, and used for as long as no file of the image has changed.
//!
//! A digest must never be used if a file of the image has another size, another inode or other times than when the
//! digest was computed, or if another user than root or this one may have written the digest: the folder of an image is
//! often QEMU's user's. For the same reason no file in the folder may be followed, overwritten or taken for the
//! engine's own.

use super::identity;
use crate::trust;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// The kind of digest that a digest file holds.
const ALGORITHM: &str = "blake3-of-1MiB-blake3";
/// The most bytes of a digest file.
const LIMIT: u64 = 1 << 20;
/// How many names are tried for a new file before it gets its own.
const ATTEMPTS: u32 = 16;
/// The kernel counts the time of a change in ticks of at most 10 ms: a file that was changed twice within a tick looks
/// as if it was changed once.
const SETTLED: Duration = Duration::from_millis(20);

/// An image on this host, with the files of all its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLocation {
    /// The file of the image itself; the digest file is beside that file.
    pub path: PathBuf,
    /// The files of the layers, the image itself first, each with the device and inode that QEMU has open.
    pub files: Vec<(PathBuf, (u64, u64))>,
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
    let stamp = |(path, id): &(PathBuf, (u64, u64))| {
        let data = fs::metadata(path)?;
        if (data.dev(), data.ino()) != *id {
            return Err(io::Error::other("another file has its name by now"));
        }
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

/// Whether the files had been left alone for a while when these stamps were taken, a moment ago.
fn are_settled(stamps: &[FileStamp]) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let changed = |stamp: &FileStamp| {
        let seconds = Duration::from_secs(u64::try_from(stamp.changed_s).unwrap_or(0));
        seconds + Duration::from_nanos(u64::try_from(stamp.changed_ns).unwrap_or(0))
    };
    stamps.iter().all(|stamp| changed(stamp) + SETTLED <= now)
}

/// The stamps under which a digest can be kept once the image has been read.
pub(super) fn stamps_to_keep(place: &ImageLocation) -> io::Result<Vec<FileStamp>> {
    let stamps = stamps(place)?;
    match are_settled(&stamps) {
        true => Ok(stamps),
        false => Err(io::Error::other("a file of the image was changed a moment ago")),
    }
}

/// The digest beside an image, if no file of the image has changed since, and root or this user has written the digest.
pub(super) fn trusted(place: &ImageLocation) -> Option<String> {
    let path = beside(&place.path);
    let file = match trust::open_file(&path) {
        Ok(file) => file,
        Err(trust::TrustError::Io(_)) => return None,
        Err(error) => {
            tracing::warn!(digest = %path.display(), %error, "the kept digest is not used");
            return None;
        }
    };
    let mut text = String::new();
    file.take(LIMIT).read_to_string(&mut text).ok()?;
    let kept: CachedDigest = serde_json::from_str(&text).ok()?;
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
    let (temporary, mut file) = new_file(&path)?;
    let written = file.write_all(&serde_json::to_vec(&kept)?).and_then(|()| file.sync_all());
    // A link that has the name is replaced, and the file that it leads to stays as it is.
    let renamed = written.and_then(|()| fs::rename(&temporary, &path));
    renamed.inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Makes a file that nobody had before, beside the file that it is to become.
fn new_file(path: &Path) -> io::Result<(PathBuf, fs::File)> {
    let mut made = Err(io::ErrorKind::AlreadyExists.into());
    for attempt in 0..ATTEMPTS {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}-{attempt}.tmp", std::process::id()));
        let temporary = PathBuf::from(name);
        // A new file: neither a file that exists nor a link is opened.
        made =
            OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary).map(|file| (temporary, file));
        if !made.as_ref().is_err_and(|error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists) {
            break;
        }
    }
    made
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
        let id = |path: &Path| fs::metadata(path).map(|data| (data.dev(), data.ino())).unwrap();
        let place = || {
            let files = vec![(top.clone(), id(&top)), (base.clone(), id(&base))];
            ImageLocation { path: top.clone(), files, kind: "raw 1".to_owned() }
        };
        assert_eq!(trusted(&place()), None);
        let now = || stamps(&place()).unwrap();
        keep(&place(), now(), "d1").unwrap();
        assert_eq!(trusted(&place()).as_deref(), Some("d1"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "no temporary file is left");
        fs::write(&base, "bb").unwrap();
        assert_eq!(trusted(&place()), None, "a layer grew");
        let before = now();
        fs::write(&base, "bbb").unwrap();
        keep(&place(), before, "d2").unwrap();
        assert_eq!(trusted(&place()), None, "the file changed while the image was read");
        keep(&place(), now(), "d2").unwrap();
        assert_eq!(trusted(&place()).as_deref(), Some("d2"));
        let modified = fs::metadata(&base).unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&base, "ccc").unwrap();
        fs::File::options().write(true).open(&base).unwrap().set_modified(modified).unwrap();
        assert_eq!(trusted(&place()), None, "written in place, with its time set back");
        keep(&place(), now(), "d2").unwrap();
        let copy = folder.path().join("copy");
        fs::copy(&base, &copy).unwrap();
        fs::rename(&copy, &base).unwrap();
        assert_eq!(trusted(&place()), None, "another file of the same name");
        let elsewhere = ImageLocation { files: vec![(top.clone(), (1, 1))], ..place() };
        assert!(stamps(&elsewhere).is_err(), "QEMU has another file open");
        fs::write(beside(&top), "{").unwrap();
        assert_eq!(trusted(&place()), None, "nonsense");
    }

    /// An image in a folder that another user can write to.
    fn image_in_anybodys_folder() -> (tempfile::TempDir, ImageLocation) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, "a").unwrap();
        let data = fs::metadata(&path).unwrap();
        let files = vec![(path.clone(), (data.dev(), data.ino()))];
        (folder, ImageLocation { path, files, kind: "raw 1".to_owned() })
    }

    #[test]
    fn a_file_that_others_put_beside_an_image_is_neither_followed_nor_overwritten() {
        let (folder, place) = image_in_anybodys_folder();
        let precious = folder.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        let now = || stamps(&place).unwrap();
        std::os::unix::fs::symlink(&precious, beside(&place.path)).unwrap();
        // Every name that the new file could have, but for the last.
        for attempt in 0..ATTEMPTS - 1 {
            let name = format!("{}.{}-{attempt}.tmp", beside(&place.path).display(), std::process::id());
            std::os::unix::fs::symlink(&precious, name).unwrap();
        }
        assert_eq!(trusted(&place), None);
        keep(&place, now(), "d").unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        assert!(fs::symlink_metadata(beside(&place.path)).unwrap().is_file());
        assert_eq!(trusted(&place).as_deref(), Some("d"));
        let last = format!("{}.{}-{}.tmp", beside(&place.path).display(), std::process::id(), ATTEMPTS - 1);
        std::os::unix::fs::symlink(&precious, &last).unwrap();
        assert_eq!(keep(&place, now(), "e").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    }

    /// Promise: trusted-files.
    #[test]
    fn a_digest_that_others_may_have_written_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, place) = image_in_anybodys_folder();
        let digest = beside(&place.path);
        keep(&place, stamps(&place).unwrap(), "d").unwrap();
        assert_eq!(trusted(&place).as_deref(), Some("d"));
        let set = |mode| fs::set_permissions(&digest, PermissionsExt::from_mode(mode)).unwrap();
        for mode in [0o666, 0o664] {
            set(mode);
            assert_eq!(trusted(&place), None, "{mode:o}");
        }
        set(0o644);
        let link = folder.path().join("elsewhere");
        fs::rename(&digest, &link).unwrap();
        std::os::unix::fs::symlink(&link, &digest).unwrap();
        assert_eq!(trusted(&place), None, "a link");
        fs::rename(&link, &digest).unwrap();
        // Tests run as root or as a user; only root can give a file away.
        if trust::user() == 0 {
            std::os::unix::fs::chown(&digest, Some(65534), None).unwrap();
            assert_eq!(trusted(&place), None, "another user's");
        }
    }

    #[test]
    fn an_image_that_has_just_changed_gets_no_digest() {
        let (_folder, place) = image_in_anybodys_folder();
        let stamp = stamps(&place).unwrap().remove(0);
        let later = |seconds: i64| [FileStamp { changed_s: stamp.changed_s + seconds, ..stamp.clone() }];
        assert!(are_settled(&later(-1)) && !are_settled(&later(60)));
    }
}
