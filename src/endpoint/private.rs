//! Closes a socket that QEMU made for the engine to everyone but the socket's owner.
//!
//! QEMU makes the socket with the permissions that its umask leaves. This module must never touch anything but a
//! socket: another user who may write to the directory can put something else there.

use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::{FileType, Mode, OFlags, chmod, fstat, open};

use super::address::Address;

/// Closes a unix socket's file to everyone but its owner. Addresses of other kinds are left as they are.
///
/// # Errors
/// There is no socket, or this user may not change its permissions.
pub fn keep_private(address: &Address) -> io::Result<()> {
    let Address::Unix(path) = address else { return Ok(()) };
    let found = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Socket {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is no socket"));
    }
    // The descriptor names the very file whose type was checked; its path could name another by now.
    Ok(chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), Mode::RUSR | Mode::WUSR)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_and_nothing_else_is_closed_to_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode() & 0o777;
        let keep = |name: &str| keep_private(&Address::unix(path(name)).unwrap());
        let _listener = UnixListener::bind(path("socket")).unwrap();
        fs::write(path("file"), "").unwrap();
        for name in ["socket", "file"] {
            fs::set_permissions(path(name), PermissionsExt::from_mode(0o777)).unwrap();
        }
        symlink(path("socket"), path("link")).unwrap();

        for name in ["file", "link", "missing"] {
            assert!(keep(name).is_err(), "{name}");
        }
        assert_eq!((mode("file"), mode("socket")), (0o777, 0o777));
        keep("socket").unwrap();
        assert_eq!(mode("socket"), 0o600);
        keep_private(&"tcp:127.0.0.1:1".parse().unwrap()).unwrap();
    }
}
