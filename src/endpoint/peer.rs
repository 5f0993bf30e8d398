//! The process at the other end of a unix socket.
//!
//! Owns a pidfd: it watches the process, and can end it where someone else has decided so. A number alone is never
//! trusted, since it may name another process by now.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::process_handle::ProcessHandle;

/// What tells one process from every other, also for one who comes later: its number, when it began, and where that number
/// and that time mean anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub pid: i32,
    /// When it began, in the kernel's clock ticks since the host did.
    pub began: u64,
    /// The kernel's own name for this run of the host.
    pub boot: String,
    /// The namespace that the number belongs to.
    pub namespace: u64,
}

/// What became of a process that was known before.
#[derive(Debug)]
pub enum Found {
    /// It lives.
    Alive(PeerPid),
    /// It is proved to have ended.
    Ended,
    /// It cannot be told: this is another host or another namespace, or the host was started anew.
    Unknown,
}

impl Identity {
    fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // the name is in brackets and may hold anything; the time is the 20th word after it
        let began = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok());
        let began = began.ok_or(io::ErrorKind::InvalidData)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { pid, began, boot, namespace: fs::metadata("/proc/self/ns/pid")?.ino() })
    }

    /// Looks for the process, within a tokio runtime.
    pub fn find(&self) -> Found {
        let Ok(here) = i32::try_from(std::process::id()).map_err(io::Error::other).and_then(Self::of) else {
            return Found::Unknown;
        };
        if (&here.boot, here.namespace) != (&self.boot, self.namespace) {
            return Found::Unknown;
        }
        // opened first: what is read afterwards is of this process, or of none that lives
        match PeerPid::open(self.pid) {
            Ok(peer) => match Self::of(self.pid) {
                Ok(now) if now.began != self.began => Found::Ended,
                Ok(_) if peer.has_died() => Found::Ended,
                Ok(_) => Found::Alive(peer),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Ended,
                Err(_) => Found::Unknown,
            },
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Found::Ended,
            Err(_) => Found::Unknown,
        }
    }
}

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
    pub fn open(pid: i32) -> io::Result<Self> {
        Self::watch(&ProcessHandle::from_pid(u32::try_from(pid).map_err(|_| io::ErrorKind::NotFound)?)?)
    }

    /// Starts to watch the process of a handle, within a tokio runtime.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated or watched.
    #[allow(
        deprecated,
        reason = "what took its place is unsafe for the sake of types that lie about their fd; an `OwnedFd` does not"
    )]
    pub fn watch(handle: &ProcessHandle) -> io::Result<Self> {
        let fd = AsyncFd::with_interest(handle.duplicate()?, Interest::READABLE)?;
        Ok(Self { pid: handle.raw_pid(), fd })
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

    /// What it can be found again by; none where `/proc` does not tell, or it has died.
    pub fn identity(&self) -> Option<Identity> {
        // read while it lived, so it is this process's
        Identity::of(self.pid.as_raw_nonzero().get()).ok().filter(|_| !self.has_died())
    }

    /// Ends it at once, with SIGKILL: also one that is stopped.
    ///
    /// # Errors
    /// No permission. That it has died already is none.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, Signal::KILL) {
            Err(error) if error != rustix::io::Errno::SRCH => Err(error.into()),
            _ => Ok(()),
        }
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
    async fn a_process_is_found_again_until_it_has_ended() {
        let mut child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let peer = PeerPid::open(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        let identity = peer.identity().unwrap();
        assert!(matches!(identity.find(), Found::Alive(found) if found.pid() == peer.pid()));
        // another process of the same number
        assert!(matches!(Identity { began: identity.began + 1, ..identity.clone() }.find(), Found::Ended));
        // another host, or this one after it was started anew
        assert!(matches!(Identity { boot: "x".to_owned(), ..identity.clone() }.find(), Found::Unknown));
        assert!(matches!(Identity { namespace: 1, ..identity.clone() }.find(), Found::Unknown));
        peer.kill().unwrap();
        peer.died().await;
        assert!(matches!(identity.find(), Found::Ended), "before its parent has collected it");
        child.wait().await.unwrap();
        assert!(matches!(identity.find(), Found::Ended));
        peer.kill().unwrap();
        assert_eq!(peer.identity(), None);
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
