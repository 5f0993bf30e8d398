//! The directory for the sockets of a run.
//!
//! The directory is made for its owner alone. A directory that exists must be one in which nobody but this user and
//! root can make, rename or remove a file: another user could take the place of a socket, and read or change the
//! guest's memory. A socket elsewhere is the user's, and nothing here touches it.

use super::{Effect, Failure};
use crate::{
    endpoint::{self, Address},
    trust::{self, TrustError},
};
use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// The path of a socket in the runtime directory; `None` for any other address.
pub(crate) fn socket_path<'a>(runtime_dir: &Path, address: &'a Address) -> Option<&'a Path> {
    match address {
        Address::Unix(path) => Some(path.as_path()).filter(|path| path.parent() == Some(runtime_dir)),
        _ => None,
    }
}

/// The effect of listening at an address: the file of a socket in the runtime directory.
pub(crate) fn socket_effect(runtime_dir: &Path, address: &Address) -> Option<Effect> {
    socket_path(runtime_dir, address).map(|path| Effect::SocketFile(path.to_owned()))
}

/// Where the destination listens for a channel after the first: a socket in the runtime directory gets another path, so
/// that the old listener cannot be in the way. Any other address stays, being the one that is open between two hosts.
pub(crate) fn another_socket(runtime_dir: &Path, first: &Address, number: u32) -> Address {
    let other = socket_path(runtime_dir, first).and_then(|path| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("{number}"));
        Address::unix(PathBuf::from(name)).ok()
    });
    other.unwrap_or_else(|| first.clone())
}

/// Takes a socket that QEMU has just made in the runtime directory from everyone but its owner. A directory that this
/// run made lets nobody else in; a directory that was there before may.
pub(crate) fn keep_private(runtime_dir: &Path, address: &Address) {
    if socket_path(runtime_dir, address).is_some() {
        if let Err(error) = endpoint::keep_private(address) {
            tracing::debug!(%address, %error, "who may connect is left to the directory of the socket");
        }
    }
}

/// Makes the runtime directory, for its owner alone, where one of the sockets will be in it.
pub(crate) fn make<'a>(runtime_dir: &Path, sockets: impl IntoIterator<Item = &'a Address>) -> Result<(), Failure> {
    if sockets.into_iter().all(|address| socket_path(runtime_dir, address).is_none()) {
        return Ok(());
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(runtime_dir).map_err(TrustError::Io);
    let trusted = made.and_then(|()| trust::folder(runtime_dir));
    trusted.map_err(|source| Failure::RuntimeDir { path: runtime_dir.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::describe;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// Promise: trusted-files.
    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (new, link) = (folder.path().join("a/run"), folder.path().join("link"));
        let socket = |runtime_dir: &Path| Address::unix(runtime_dir.join("nbd")).unwrap();
        make(&new, [&socket(&new)]).unwrap();
        make(&new, [&socket(&new)]).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&new), mode(&folder.path().join("a"))), (0o700, 0o700));
        symlink(&new, &link).unwrap();
        make(&link, [&socket(&link)]).unwrap();

        let set = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        for (loose, mode) in [(&new, 0o777), (&new, 0o1777), (&new, 0o770), (&folder.path().join("a"), 0o757)] {
            set(loose, mode);
            for path in [&new, &link] {
                let error = make(path, [&socket(path)]).unwrap_err();
                assert!(matches!(error, Failure::RuntimeDir { .. }), "{error:?}");
                let told = describe(&error);
                assert!(told.contains(&format!("{} (mode {mode:04o})", loose.display())), "{told}");
            }
            // A run that has its sockets elsewhere does not use the directory.
            make(&new, [&"unix:/elsewhere/nbd".parse().unwrap()]).unwrap();
            set(loose, 0o700);
        }
        // Tests run as root or as a user; only root can give a directory away.
        if trust::user() == 0 {
            std::os::unix::fs::chown(&new, Some(65534), None).unwrap();
            let told = describe(&make(&new, [&socket(&new)]).unwrap_err());
            assert!(told.contains("belongs to user 65534"), "{told}");
        }
    }
}
