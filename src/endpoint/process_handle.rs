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
        // The death is told by the handle itself, and no signal goes to whatever has the number then.
        assert!(PeerPid::watch(&handle).unwrap().has_died());
        assert!(ProcessHandle::from_pidfd(std::fs::File::open("/dev/null").unwrap().into()).is_err());
    }

    /// The kernel gives the number of a dead process to a new one. Only root can choose which number is next.
    #[tokio::test]
    async fn a_number_that_came_to_mean_another_process_is_not_taken_for_the_first() {
        let sleep = || std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let mut first = sleep();
        let (handle, pid) = (ProcessHandle::from_pid(first.id()).unwrap(), first.id());
        let identity = PeerPid::watch(&handle).unwrap().identity().unwrap();
        first.kill().unwrap();
        first.wait().unwrap();
        // A process that begins within the same tick of the kernel's clock has the same start time.
        std::thread::sleep(std::time::Duration::from_millis(20));
        // Other processes of a busy host may be given the number.
        let mut second = None;
        for _ in 0..1000 {
            if std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).is_err() {
                return;
            }
            let mut child = sleep();
            if child.id() == pid {
                second = Some(child);
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let mut second = second.expect("the number is given again");
        let peer = PeerPid::watch(&handle).unwrap();
        assert!(peer.has_died() && peer.identity().is_none() && !peer.is_qemu());
        peer.kill().unwrap();
        assert!(second.try_wait().unwrap().is_none(), "the signal went to another process");
        assert!(!PeerPid::open(i32::try_from(pid).unwrap()).unwrap().has_died());
        let found = identity.find();
        assert!(matches!(found, super::super::peer::ProcessFate::Ended), "{found:?}");
        second.kill().unwrap();
        second.wait().unwrap();
    }
}
