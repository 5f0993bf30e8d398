//! Reads owners and modes, and opens files that pass the rule.

use super::rule::{Distrust, FileOwner, PathStep, StepKind, judge, judge_step, knows_all_users, owner_of};
use rustix::fs::{Mode, OFlags, open};
use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    sync::LazyLock,
};
use thiserror::Error;

/// The number of symbolic links in one path that the kernel follows.
const LINKS: usize = 40;

/// Why a file or folder is not used.
#[derive(Debug, Error)]
pub enum TrustError {
    /// Somebody else may have written it.
    #[error(transparent)]
    Distrusted(#[from] Distrust),
    /// Its owner and mode cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The variable that `qferry sweep` sets for an engine in a user namespace of the sweep's own, after a look at the real
/// owners from outside.
pub const UNMAPPED_OWNERS: &str = "QFERRY_UNMAPPED_OWNERS";

/// The user that files of users without a number here show as, where these are root's by [`UNMAPPED_OWNERS`]. In the
/// host's own user namespace the variable means nothing.
static UNMAPPED_ROOT: LazyLock<Option<u32>> = LazyLock::new(|| {
    if std::env::var_os(UNMAPPED_OWNERS).is_none_or(|said| said != "root") {
        return None;
    }
    let map = fs::read_to_string("/proc/self/uid_map").ok().filter(|map| !knows_all_users(map))?;
    let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?.trim().parse().ok()?;
    // a user that has a number here keeps it
    map.lines().all(|line| !covers(line, overflow)).then_some(overflow)
});

/// Whether a line of a `uid_map` gives a number of this namespace to a user.
fn covers(line: &str, user: u32) -> bool {
    let mut fields = line.split_whitespace().map_while(|field| field.parse::<u64>().ok());
    let (Some(first), Some(_), Some(count)) = (fields.next(), fields.next(), fields.next()) else { return true };
    (first..first.saturating_add(count)).contains(&u64::from(user))
}

/// The user that this process acts as.
pub fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Follows a path to a file that nobody else could have written or exchanged; the returned path has no links.
///
/// # Errors
/// A part of the path that another user than root and this one may change, or that cannot be read.
pub fn locate(path: &Path, owner: FileOwner) -> Result<PathBuf, TrustError> {
    let (steps, end) = follow(path)?;
    judge(&steps, user(), owner)?;
    Ok(end)
}

/// Requires a folder in which nobody but this user and root may make, rename or remove anything.
///
/// # Errors
/// As [`locate`]; also a folder that is everybody's, in which the sticky bit protects the files of each alone.
pub fn folder(path: &Path) -> Result<(), TrustError> {
    let (steps, end) = follow(path)?;
    judge(&steps, user(), FileOwner::UserOrRoot)?;
    match steps.last() {
        Some(last) if last.kind == StepKind::Folder => {
            // without the sticky bit's exception
            Ok(judge_step(&PathStep { kind: StepKind::File, ..last.clone() }, user(), FileOwner::UserOrRoot)?)
        }
        _ => Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is no folder", end.display())).into()),
    }
}

/// Opens a file for reading that only root or this user has written. The folder may be anybody's, so the caller must
/// prove in another way that the file is the one that belongs there. No link is followed.
///
/// # Errors
/// Another user owns the file or may write to it, the file is no plain file, or it cannot be opened.
pub fn open_file(path: &Path) -> Result<File, TrustError> {
    // A pipe without a writer would block an open without the flag.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(open(path, flags, Mode::empty()).map_err(io::Error::from)?);
    let found = file.metadata()?;
    judge_step(&step(path, &found), user(), FileOwner::UserOrRoot)?;
    match found.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "the path does not lead to a plain file").into()),
    }
}

fn step(path: &Path, found: &Metadata) -> PathStep {
    let kind = match found.file_type() {
        kind if kind.is_dir() => StepKind::Folder,
        kind if kind.is_symlink() => StepKind::Link,
        _ => StepKind::File,
    };
    PathStep { path: path.to_owned(), kind, owner: owner_of(found.uid(), *UNMAPPED_ROOT), mode: found.mode() & 0o7777 }
}

/// Every part that the kernel passes on the way along a path, links and the parts of their targets among them, and the
/// path without links.
fn follow(path: &Path) -> io::Result<(Vec<PathStep>, PathBuf)> {
    let path = std::path::absolute(path)?;
    let mut at = PathBuf::from("/");
    let mut steps = vec![step(&at, &fs::symlink_metadata(&at)?)];
    let mut ahead = parts(&path);
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(part);
        let found = step(&next, &fs::symlink_metadata(&next)?);
        let kind = found.kind;
        steps.push(found);
        if kind != StepKind::Link {
            at = next;
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let target = fs::read_link(&next)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        let mut rest = parts(&target);
        rest.append(&mut ahead);
        ahead = rest;
    }
    Ok((steps, at))
}

/// The names in a path, and the steps up.
fn parts(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    fn written_by_others(error: &TrustError) -> Option<&Path> {
        match error {
            TrustError::Distrusted(Distrust::WrittenByOthers { path, .. }) => Some(path),
            _ => None,
        }
    }

    #[test]
    fn a_path_is_followed_through_its_links() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let at = |name: &str| root.join(name);
        fs::create_dir_all(at("open/private")).unwrap();
        fs::write(at("open/private/file"), "").unwrap();
        symlink("open/private/../private", at("way")).unwrap();
        symlink(at("way/file"), at("link")).unwrap();
        symlink("loop", at("loop")).unwrap();
        set(&at("open"), 0o755);
        for path in ["link", "way/file", "open/private/file", "way/../../open/private/file"] {
            assert_eq!(locate(&at(path), FileOwner::User).unwrap(), at("open/private/file"), "{path}");
        }
        assert!(matches!(locate(&at("loop"), FileOwner::User), Err(TrustError::Io(_))));
        assert!(matches!(locate(&at("none"), FileOwner::User), Err(TrustError::Io(_))));
        set(&at("open"), 0o777);
        for path in ["link", "way/file", "open/private/file"] {
            let error = locate(&at(path), FileOwner::User).unwrap_err();
            assert_eq!(written_by_others(&error), Some(at("open").as_path()), "{path}: {error}");
        }
    }

    #[test]
    fn a_folder_is_this_users_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        folder(root).unwrap();
        for (mode, trusted) in [(0o700, true), (0o755, true), (0o770, false), (0o777, false), (0o1777, false)] {
            set(root, mode);
            assert_eq!(folder(root).is_ok(), trusted, "{mode:o}");
        }
        set(root, 0o700);
        fs::write(root.join("file"), "").unwrap();
        assert!(matches!(folder(&root.join("file")), Err(TrustError::Io(_))));
    }

    #[test]
    fn a_file_in_anybodys_folder_is_judged_by_itself() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        set(temporary.path(), 0o777);
        fs::write(at("file"), "").unwrap();
        symlink(at("file"), at("link")).unwrap();
        open_file(&at("file")).unwrap();
        assert!(matches!(open_file(&at("link")), Err(TrustError::Io(_))), "a link");
        assert!(matches!(open_file(temporary.path()), Err(TrustError::Distrusted(_) | TrustError::Io(_))));
        set(&at("file"), 0o666);
        assert!(written_by_others(&open_file(&at("file")).unwrap_err()).is_some());
    }
}
