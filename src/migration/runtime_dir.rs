//! The directory for the sockets of a run.
//!
//! The directory is made for its owner alone. A socket elsewhere is the user's, and nothing here touches it.

use super::{Effect, Failure};
use crate::endpoint::{self, Address};
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
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(runtime_dir);
    made.map_err(|source| Failure::RuntimeDir { path: runtime_dir.display().to_string(), source })
}
