//! A process that an embedder names as that of a QEMU.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process that is held by a pidfd, so that its number cannot come to mean another one.
#[derive(Debug, Clone)]
pub struct ProcessHandle {
    pid: Pid,
    fd: Arc<OwnedFd>,
}

impl ProcessHandle {
    /// Holds the process of this number, which must live until the call returns.
    ///
    /// # Errors
    /// When no process has the number, or the kernel has no pidfds.
    pub fn from_pid(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, fd: Arc::new(pidfd_open(pid, PidfdFlags::NONBLOCK)?) })
    }

    /// Holds the process of a pidfd, such as `pidfd_open` and `clone3` give.
    ///
    /// # Errors
    /// When `fd` is no pidfd, its process has been waited for, or is of another pid namespace.
    pub fn from_pidfd(fd: OwnedFd) -> io::Result<Self> {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
        let number = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok());
        let number = number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is no pidfd"))?;
        // the kernel writes -1 for a process that has been waited for, and 0 for one of another namespace
        let pid = Some(number).filter(|number| *number > 0).and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, fd: Arc::new(fd) })
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub(super) fn raw_pid(&self) -> Pid {
        self.pid
    }

    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.as_fd().try_clone_to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::PeerPid;
    use super::*;

    #[tokio::test]
    async fn a_process_is_held_by_its_descriptor() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let handle = ProcessHandle::from_pid(child.id()).unwrap();
        let same = ProcessHandle::from_pidfd(handle.duplicate().unwrap()).unwrap();
        assert_eq!((handle.pid(), same.pid()), (child.id(), child.id()));
        let peer = PeerPid::watch(&same).unwrap();
        assert!(!peer.has_died());
        peer.kill().unwrap();
        child.wait().unwrap();
        assert!(peer.has_died());
        assert!(ProcessHandle::from_pidfd(same.duplicate().unwrap()).is_err(), "the process has been waited for");
        assert!(ProcessHandle::from_pid(0).is_err());
        assert!(ProcessHandle::from_pidfd(std::fs::File::open("/dev/null").unwrap().into()).is_err());
    }
}
