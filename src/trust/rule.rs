//! The rule by owner and mode.
//!
//! Pure. A path is judged from the root directory to its end: whoever may rename a folder on the way decides what is
//! found behind it. The group counts as others: nothing tells who is in a group. An access control list that lets
//! another user write shows as the group's right to write.

use std::path::PathBuf;
use thiserror::Error;

/// The right to write, of the group and of everybody.
const WRITTEN_BY_OTHERS: u32 = 0o022;
/// In a folder with the sticky bit, only the owner of a file may rename or remove the file.
const STICKY: u32 = 0o1000;

/// What one part of a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepKind {
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A file of another kind, where the path ends.
    File,
}

/// One part of a path, with its owner and its mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStep {
    /// The path up to this part.
    pub path: PathBuf,
    /// The kind.
    pub kind: StepKind,
    /// The user that owns the part.
    pub owner: u32,
    /// The permission bits with the sticky bit.
    pub mode: u32,
}

/// Who may own the file at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileOwner {
    /// The user of this process alone.
    User,
    /// The user of this process, or root.
    UserOrRoot,
}

/// Why a path is not used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Distrust {
    /// Another user owns a part of the path.
    #[error(
        "{} belongs to user {owner}, who can change it at any time, and qferry runs as user {user}: use a path of this \
         user's own, or run qferry as user {owner}",
        path.display()
    )]
    Owner {
        /// The part.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// Other users may write to a part of the path.
    #[error(
        "other users may write to {} (mode {mode:04o}): look whether it is as it should be, then `chmod go-w` it",
        path.display()
    )]
    WrittenByOthers {
        /// The part.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// The user that a file counts as belonging to: a file of a user without a number in this user namespace shows as
/// `overflow`'s, and is root's where whoever has started this process says so, who has seen the real owners.
pub(super) fn owner_of(shown: u32, overflow: Option<u32>) -> u32 {
    if overflow == Some(shown) { 0 } else { shown }
}

/// Whether a process with this `/proc/self/uid_map` is in the host's own user namespace, in which every user has a
/// number.
pub(super) fn knows_all_users(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Judges a path by all its parts, the root directory first.
///
/// # Errors
/// The first part that another user than root and `user` owns, or may write to.
pub fn judge(steps: &[PathStep], user: u32, file: FileOwner) -> Result<(), Distrust> {
    steps.iter().try_for_each(|step| judge_step(step, user, file))
}

/// Judges one part of a path, or a file that is open already.
///
/// # Errors
/// As [`judge`].
pub(super) fn judge_step(step: &PathStep, user: u32, file: FileOwner) -> Result<(), Distrust> {
    let PathStep { ref path, kind, owner, mode } = *step;
    let path = || path.clone();
    let root_may = kind != StepKind::File || file == FileOwner::UserOrRoot;
    if owner != user && !(root_may && owner == 0) {
        return Err(Distrust::Owner { path: path(), owner, user });
    }
    let open_to_others = match kind {
        StepKind::Folder => mode & WRITTEN_BY_OTHERS != 0 && mode & STICKY == 0,
        StepKind::File => mode & WRITTEN_BY_OTHERS != 0,
        // the mode of a link says nothing
        StepKind::Link => false,
    };
    match open_to_others {
        true => Err(Distrust::WrittenByOthers { path: path(), mode }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    //! Promise: trusted-files.

    use super::*;
    use FileOwner::{User, UserOrRoot};
    use StepKind::{File, Folder, Link};

    #[test]
    fn an_owner_without_a_number_is_root_only_where_that_was_said() {
        for (shown, overflow, owner) in [(65534, None, 65534), (65534, Some(65534), 0), (7, Some(65534), 7)] {
            assert_eq!(owner_of(shown, overflow), owner);
        }
        for (map, knows) in [
            ("         0          0 4294967295\n", true),
            ("         0       1000          1\n", false),
            ("0 0 1\n1 1 4294967294\n", false),
            ("", false),
        ] {
            assert_eq!(knows_all_users(map), knows, "{map}");
        }
    }

    #[test]
    fn a_part_is_judged_by_owner_and_mode() {
        const ME: u32 = 7;
        const OTHER: u32 = 8;
        for (kind, owner, mode, file, trusted) in [
            (File, ME, 0o600, User, true),
            (File, ME, 0o644, User, true),
            (File, ME, 0o620, User, false),
            (File, ME, 0o602, UserOrRoot, false),
            (File, ME, 0o1602, UserOrRoot, false),
            (File, OTHER, 0o600, UserOrRoot, false),
            (File, 0, 0o600, User, false),
            (File, 0, 0o755, UserOrRoot, true),
            (File, 0, 0o775, UserOrRoot, false),
            (Folder, ME, 0o700, User, true),
            (Folder, ME, 0o755, User, true),
            (Folder, ME, 0o770, User, false),
            (Folder, ME, 0o777, User, false),
            (Folder, 0, 0o755, User, true),
            (Folder, 0, 0o1777, User, true),
            (Folder, 0, 0o777, User, false),
            (Folder, OTHER, 0o700, User, false),
            (Folder, OTHER, 0o1777, UserOrRoot, false),
            (Link, ME, 0o777, User, true),
            (Link, 0, 0o777, User, true),
            (Link, OTHER, 0o777, User, false),
        ] {
            let step = PathStep { path: "/x".into(), kind, owner, mode };
            let judged = judge(std::slice::from_ref(&step), ME, file);
            assert_eq!(judged.is_ok(), trusted, "{step:?}: {judged:?}");
        }
    }

    #[test]
    fn every_part_of_a_path_counts() {
        let step = |path: &str, kind, owner, mode| PathStep { path: path.into(), kind, owner, mode };
        let path = |folder| [step("/", Folder, 0, 0o755), folder, step("/a/b", File, 0, 0o600)];
        assert_eq!(judge(&path(step("/a", Folder, 0, 0o755)), 0, User), Ok(()));
        let error = judge(&path(step("/a", Folder, 0, 0o757)), 0, User).unwrap_err();
        assert_eq!(error, Distrust::WrittenByOthers { path: "/a".into(), mode: 0o757 });
        assert!(error.to_string().contains("/a (mode 0757)") && error.to_string().contains("chmod go-w"), "{error}");
        let error = judge(&path(step("/a", Folder, 9, 0o700)), 0, User).unwrap_err();
        assert!(error.to_string().contains("/a belongs to user 9"), "{error}");
    }
}
