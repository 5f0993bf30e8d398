//! The process at the other end of a unix socket.
//!
//! Owns a pidfd, by which the process is watched and can be killed. A pid alone is never trusted, since the kernel may
//! have given it to another process meanwhile.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::process_handle::ProcessHandle;
use super::process_stat::ProcessStat;
use super::unseen::UnseenProcess;

/// The marks that tell one process from every other, also across a restart of the engine: its pid and start time, and
/// the boot and pid namespace in which these two mean anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The pid.
    pub pid: i32,
    /// The start time of the process, in the kernel's clock ticks since the host booted.
    pub began: u64,
    /// The kernel's boot id.
    pub boot: String,
    /// The pid namespace of the pid.
    pub namespace: u64,
}

/// The fate of a process that was known before.
#[derive(Debug)]
pub enum ProcessFate {
    /// The process lives.
    Alive(PeerPid),
    /// The process is proved to have ended.
    Ended,
    /// Nothing is proved: this is another host or another pid namespace, or the host was rebooted.
    Unknown,
}

impl ProcessIdentity {
    fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let began = ProcessStat::read(&stat).and_then(|stat| stat.began).ok_or(io::ErrorKind::InvalidData)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { pid, began, boot, namespace: fs::metadata("/proc/self/ns/pid")?.ino() })
    }

    /// Looks for the process, within a tokio runtime.
    pub fn find(&self) -> ProcessFate {
        let Ok(engine) = i32::try_from(std::process::id()).map_err(io::Error::other).and_then(Self::of) else {
            return ProcessFate::Unknown;
        };
        if (&engine.boot, engine.namespace) != (&self.boot, self.namespace) {
            return ProcessFate::Unknown;
        }
        // The pidfd is opened before `/proc` is read: an open pidfd whose process lives proves that the pid was not
        // given to another process in between.
        match PeerPid::open(self.pid) {
            Ok(peer) => match Self::of(self.pid) {
                Ok(now) if now.began != self.began => ProcessFate::Ended,
                Ok(_) if peer.has_died() => ProcessFate::Ended,
                Ok(_) => ProcessFate::Alive(peer),
                Err(error) if error.kind() == io::ErrorKind::NotFound => ProcessFate::Ended,
                Err(_) => ProcessFate::Unknown,
            },
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => ProcessFate::Ended,
            Err(_) => ProcessFate::Unknown,
        }
    }
}

/// A process under watch.
///
/// The kernel names the process that called `listen` on the socket last. QEMU calls `listen` also on a socket that a
/// launcher has made and passed on, so such a socket names QEMU itself. A forwarder's socket names the process that
/// made the socket, which may run anything by now, another QEMU too: [`PeerPid::has_threads`] tells.
#[derive(Debug)]
pub struct PeerPid {
    pid: Pid,
    fd: AsyncFd<OwnedFd>,
}

impl PeerPid {
    /// Starts to watch a process, within a tokio runtime.
    ///
    /// # Errors
    /// `pid` names no process: it has ended, or the pid is 0 because the process is in another pid namespace. Or the
    /// kernel has no pidfds.
    pub fn open(pid: i32) -> io::Result<Self> {
        Self::watch(&ProcessHandle::from_pid(u32::try_from(pid).map_err(|_| io::ErrorKind::NotFound)?)?)
    }

    /// Starts to watch the process of a handle, within a tokio runtime.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated or watched.
    #[allow(
        deprecated,
        reason = "its replacement is unsafe because of types that lie about their fd, and an `OwnedFd` does not"
    )]
    pub fn watch(handle: &ProcessHandle) -> io::Result<Self> {
        let fd = AsyncFd::with_interest(handle.duplicate()?, Interest::READABLE)?;
        Ok(Self { pid: handle.raw_pid(), fd })
    }

    /// The pid, for people.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether the process runs QEMU's system emulator, by its executable; `false` where that may not be read.
    ///
    /// Only a QEMU takes the guest with it: a forwarder or a manager that made the socket dies without harm to the
    /// guest.
    pub fn is_qemu(&self) -> bool {
        let executable = fs::read_link(format!("/proc/{}/exe", self.pid())).unwrap_or_default();
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap_or_default();
        // The process was alive after the read, so the files are not those of a later process with the same pid.
        runs_qemu(&executable.to_string_lossy(), &maps) && !self.has_died()
    }

    /// The reason why the process is not taken for QEMU itself; `None` where it is QEMU.
    pub(super) fn other_program(&self) -> Option<UnseenProcess> {
        if self.is_qemu() {
            return None;
        }
        let pid = self.pid();
        Some(match fs::read_link(format!("/proc/{pid}/exe")) {
            Ok(program) => {
                UnseenProcess::OtherProgram { pid, program: file_name(&program.to_string_lossy()).to_owned() }
            }
            Err(_) => UnseenProcess::Hidden { pid },
        })
    }

    /// The file that the process runs as QEMU's system emulator: the device and the inode of the file, which stays this
    /// one however its name is used again. `None` where `/proc` does not tell.
    pub fn emulator(&self) -> Option<String> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).ok()?;
        emulator_file(&maps).filter(|_| !self.has_died())
    }

    /// Whether threads with all of these ids are the process's, by the ids that they have in its own pid namespace;
    /// `None` where `/proc` does not tell.
    pub fn has_threads(&self, ids: &[i64]) -> Option<bool> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).ok()?;
        let mut found = Vec::new();
        for task in tasks {
            // A thread that ends meanwhile has no status any more.
            let status = fs::read_to_string(task.ok()?.path().join("status")).unwrap_or_default();
            found.extend(innermost_id(&status));
        }
        // The process was alive after the read, so the threads are not those of a later process with the same pid.
        Some(ids.iter().all(|id| found.contains(id))).filter(|_| !self.has_died() && !found.is_empty())
    }

    /// The marks by which the process can be found again; none where `/proc` does not tell, or the process has died.
    pub fn identity(&self) -> Option<ProcessIdentity> {
        // The process was alive after the read, so the marks are not those of a later process with the same pid.
        ProcessIdentity::of(self.pid.as_raw_nonzero().get()).ok().filter(|_| !self.has_died())
    }

    /// Whether the process is stopped, by SIGSTOP or a debugger; `false` where `/proc` does not tell.
    pub fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let state = ProcessStat::read(&stat).map(|stat| stat.state);
        matches!(state, Some('T' | 't')) && !self.has_died()
    }

    /// Kills the process with SIGKILL, which also ends a stopped one. No error where the process has died already.
    ///
    /// # Errors
    /// No permission.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, Signal::KILL) {
            Err(error) if error != rustix::io::Errno::SRCH => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether the process has died. A process counts as dead from its exit on, before its parent has collected it.
    pub fn has_died(&self) -> bool {
        let fd = self.fd.as_fd();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..)) && fds[0].revents().contains(PollFlags::IN)
    }

    /// Waits for the death of the process. Cancel-safe. Where the watch itself fails the wait never ends, since no
    /// death was seen.
    pub async fn died(&self) {
        // A pidfd stays readable once its process is dead. Its readiness is not cleared, so later calls return at once.
        if let Err(error) = self.fd.readable().await {
            tracing::warn!(pid = self.pid(), %error, "cannot watch the process any more");
            std::future::pending::<()>().await;
        }
    }
}

/// The id of a thread in the innermost pid namespace, by its `status` in `/proc`: the last of `NSpid`, which holds one
/// id for each namespace, or `Pid` where the kernel has no `NSpid`.
fn innermost_id(status: &str) -> Option<i64> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    field("NSpid:").or_else(|| field("Pid:"))?.split_whitespace().last()?.parse().ok()
}

/// The path of a file that another process knows under a name.
pub fn seen_by(pid: u32, name: &str) -> PathBuf {
    let path = Path::new(name);
    let beneath = match path.strip_prefix("/") {
        Ok(below) => PathBuf::from(format!("/proc/{pid}/root")).join(below),
        Err(_) => PathBuf::from(format!("/proc/{pid}/cwd")).join(path),
    };
    // the root of another user's process cannot be entered: then it most likely sees the same files as this process
    if beneath.exists() { beneath } else { path.to_owned() }
}

/// The id of a process or a thread in its innermost pid namespace; `None` where `/proc` does not tell.
pub fn id_in_namespace(pid: u32) -> Option<i64> {
    innermost_id(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// Whether the executable of a process is QEMU's system emulator. A dynamic linker that was started by its own name is
/// the executable itself, and has mapped the program with the right to execute it. Any other program may have mapped
/// a file with whatever name.
fn runs_qemu(executable: &str, maps: &str) -> bool {
    let linked = file_name(executable).starts_with("ld-");
    is_emulator(executable) || (linked && maps.lines().any(is_executed_emulator))
}

/// Whether a line of `/proc/PID/maps` is that of a system emulator, mapped with the right to execute it.
fn is_executed_emulator(line: &str) -> bool {
    // address, rights, offset, device, inode, path
    is_emulator(line) && line.split_whitespace().nth(1).is_some_and(|rights| rights.contains('x'))
}

/// The device and the inode of the one system emulator that a process executes.
fn emulator_file(maps: &str) -> Option<String> {
    let words = |line: &str| line.split_whitespace().skip(3).take(2).collect::<Vec<_>>().join(" ");
    let mut files: Vec<String> = maps.lines().filter(|line| is_executed_emulator(line)).map(words).collect();
    files.dedup();
    files.pop().filter(|_| files.is_empty())
}

/// Whether a path leads to a system emulator: `qemu-system-*`, or `qemu-kvm`, as some distributions call it. An upgrade
/// that removes the file of a running program leaves a mark at the end of the path.
fn is_emulator(path: &str) -> bool {
    let name = file_name(path.trim_end().trim_end_matches(" (deleted)"));
    // Nix hides a program behind a script of its name.
    let name = name.strip_prefix('.').unwrap_or(name);
    name.starts_with("qemu-system-") || name == "qemu-kvm"
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
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
        assert!(!peer.is_stopped());
        pidfd_send_signal(&peer.fd, Signal::STOP).unwrap();
        while !peer.is_stopped() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        child.start_kill().unwrap();
        peer.died().await;
        peer.died().await;
        assert!(peer.has_died() && !peer.is_stopped());
        child.wait().await.unwrap();
        assert!(peer.has_died());
    }

    #[tokio::test]
    async fn a_process_is_found_again_until_it_has_ended() {
        let mut child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let peer = PeerPid::open(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        let identity = peer.identity().unwrap();
        assert!(matches!(identity.find(), ProcessFate::Alive(found) if found.pid() == peer.pid()));
        // Another process with the same pid.
        assert!(matches!(ProcessIdentity { began: identity.began + 1, ..identity.clone() }.find(), ProcessFate::Ended));
        // Another host, or this one after a reboot.
        assert!(matches!(ProcessIdentity { boot: "x".to_owned(), ..identity.clone() }.find(), ProcessFate::Unknown));
        assert!(matches!(ProcessIdentity { namespace: 1, ..identity.clone() }.find(), ProcessFate::Unknown));
        peer.kill().unwrap();
        peer.died().await;
        assert!(matches!(identity.find(), ProcessFate::Ended), "before its parent has collected it");
        child.wait().await.unwrap();
        assert!(matches!(identity.find(), ProcessFate::Ended));
        peer.kill().unwrap();
        assert_eq!(peer.identity(), None);
    }

    #[tokio::test]
    async fn only_a_qemu_is_one() {
        let this_test = PeerPid::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(!this_test.is_qemu());
        // Another program has mapped a file of such a name.
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("qemu-system-x86_64");
        fs::copy("/bin/sleep", &image).unwrap();
        let mut child = tokio::process::Command::new(&image).arg("1000").kill_on_drop(true).spawn().unwrap();
        let peer = PeerPid::open(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        while fs::read_link(format!("/proc/{}/exe", peer.pid())).unwrap() != image {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(peer.is_qemu());
        fs::remove_file(&image).unwrap();
        assert!(peer.is_qemu(), "an upgrade has removed its file");
        child.kill().await.unwrap();
        assert!(!peer.is_qemu());
    }

    #[test]
    fn an_emulator_is_known_by_its_executable() {
        let map = |rights: &str, path: &str| format!("7f00-7f01 {rights} 00000000 fe:00 12 {path}\n");
        let linker = "/opt/qemu/lib64/ld-linux-x86-64.so.2";
        for (executable, maps, expected) in [
            ("/usr/bin/qemu-system-x86_64", String::new(), true),
            ("/usr/bin/qemu-system-x86_64 (deleted)", String::new(), true),
            ("/usr/libexec/qemu-kvm", String::new(), true),
            ("/nix/store/x/bin/.qemu-system-aarch64-wrapped", String::new(), true),
            ("/usr/bin/qemu-img", String::new(), false),
            ("/usr/bin/qemu-x86_64", String::new(), false),
            ("/usr/bin/vi", map("r--s", "/srv/qemu-system-x86_64"), false),
            ("/usr/bin/vi", map("r-xp", "/srv/qemu-system-x86_64"), false),
            (linker, map("r-xp", "/opt/qemu/usr/bin/qemu-system-x86_64"), true),
            (linker, map("r-xp", "/opt/a b/qemu-system-x86_64 (deleted)"), true),
            (linker, map("r--p", "/opt/qemu/usr/bin/qemu-system-x86_64"), false),
            (linker, map("r-xp", "/opt/qemu/usr/bin/qemu-img") + &map("rw-s", "/srv/qemu-system.img"), false),
            ("", String::new(), false),
        ] {
            assert_eq!(runs_qemu(executable, &maps), expected, "{executable} {maps}");
        }
    }

    #[test]
    fn a_thread_is_known_by_the_id_that_its_own_process_sees() {
        let status = |ids: &str| format!("Name:\tCPU 0/TCG\nTgid:\t4000\nPid:\t4003\n{ids}Threads:\t4\n");
        assert_eq!(innermost_id(&status("NSpid:\t4003\t10\n")), Some(10));
        assert_eq!(innermost_id(&status("NSpid:\t4003\n")), Some(4003));
        assert_eq!(innermost_id(&status("")), Some(4003));
        assert_eq!(innermost_id(""), None);
    }

    #[tokio::test]
    async fn threads_are_those_of_a_process_or_they_are_not() {
        let this_test = PeerPid::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        let own = i64::from(std::process::id());
        let mut child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let childs = i64::from(child.id().unwrap());
        assert_eq!(this_test.has_threads(&[own]), Some(true));
        assert_eq!(this_test.has_threads(&[own, childs]), Some(false));
        let peer = PeerPid::open(i32::try_from(childs).unwrap()).unwrap();
        assert_eq!((peer.has_threads(&[childs]), peer.has_threads(&[own])), (Some(true), Some(false)));
        child.kill().await.unwrap();
        assert_eq!(peer.has_threads(&[childs]), None);
    }

    #[test]
    fn the_file_of_an_emulator_is_that_of_one_inode() {
        let map = |rights: &str, inode: u64, name: &str| format!("7f00-7f01 {rights} 00000000 fe:00 {inode} /{name}\n");
        let (text, data) = (map("r-xp", 12, "qemu-system-x86_64"), map("rw-p", 13, "qemu-system-x86_64"));
        let (libc, other) = (map("r-xp", 14, "libc.so.6"), map("r-xp", 15, "qemu-system-x86_64 (deleted)"));
        assert_eq!(emulator_file(&[&*data, &*text, &*text, &*libc].concat()).as_deref(), Some("fe:00 12"));
        assert_eq!(emulator_file(&[&*text, &*other].concat()), None);
        assert_eq!(emulator_file(&[data, libc].concat()), None);
    }

    #[tokio::test]
    async fn numbers_that_name_no_process_are_refused() {
        for pid in [0, -1, i32::MIN, i32::MAX] {
            assert!(PeerPid::open(pid).is_err());
        }
    }
}
