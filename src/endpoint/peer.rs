//! The process at the other end of a unix socket.
//!
//! Owns a pidfd and only watches it: this module must never signal a process, and a number alone is never trusted,
//! since it may name another process by now.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process being watched.
///
/// The kernel names whoever called `listen` on the socket. That is QEMU, unless a manager made the socket and passed
/// it on: then it is the manager. So its death is news, but its life proves nothing about QEMU.
#[derive(Debug)]
pub struct PeerPid {
    pid: Pid,
    fd: AsyncFd<OwnedFd>,
}

impl PeerPid {
    /// Starts to watch a process, within a tokio runtime.
    ///
    /// # Errors
    /// When `pid` names no process: 0, as for one in another pid namespace, or one that has gone. Also on kernels
    /// without pidfds.
    #[allow(
        deprecated,
        reason = "what took its place is unsafe for the sake of types that lie about their fd; an `OwnedFd` does not"
    )]
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok(Self { pid, fd: AsyncFd::with_interest(fd, Interest::READABLE)? })
    }

    /// Its number, for people.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether it runs a QEMU program. Only then is its death QEMU's: a forwarder or a manager that made the socket dies
    /// without harm to the guest. Told by the files it has mapped; where they may not be read, it is not known to be one.
    pub fn is_qemu(&self) -> bool {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap_or_default();
        let programs = maps.lines().filter_map(|line| line.rsplit_once('/'));
        // read while it lived, so it is the process that is watched and not a later one of the same number
        programs.into_iter().any(|(_, name)| name.starts_with("qemu-")) && !self.has_died()
    }

    /// Whether it has died. A process counts as dead from its exit on, before its parent has collected it.
    pub fn has_died(&self) -> bool {
        let fd = self.fd.as_fd();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..)) && fds[0].revents().contains(PollFlags::IN)
    }

    /// Waits for its death. Cancel-safe. Should the watch itself fail, it never returns: no death was seen.
    pub async fn died(&self) {
        // The readiness of a dead process never goes away, so it is not cleared and later calls return at once.
        if let Err(error) = self.fd.readable().await {
            tracing::warn!(pid = self.pid(), %error, "cannot watch the process any more");
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn death_is_seen_by_both() {
        let mut child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let peer = PeerPid::open(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        assert!(!peer.has_died());
        assert!(tokio::time::timeout(Duration::from_millis(20), peer.died()).await.is_err());
        child.start_kill().unwrap();
        peer.died().await;
        peer.died().await;
        assert!(peer.has_died());
        child.wait().await.unwrap();
        assert!(peer.has_died());
    }

    #[tokio::test]
    async fn only_a_qemu_is_one() {
        let ours = PeerPid::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(!ours.is_qemu());
    }

    #[tokio::test]
    async fn numbers_that_name_no_process_are_refused() {
        for pid in [0, -1, i32::MIN, i32::MAX] {
            assert!(PeerPid::open(pid).is_err());
        }
    }
}
