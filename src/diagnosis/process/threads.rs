//! The threads of a process: their names, states, CPU time, and what they wait in.

use crate::endpoint::ProcessStat;
use std::{fs, path::Path};

/// The most threads that are looked at of one process.
const MOST: usize = 4096;
/// The calls to the kernel in which threads of QEMU wait, by their numbers on x86-64.
const CALLS: [(u64, &str); 16] = [
    (0, "read"),
    (1, "write"),
    (7, "poll"),
    (16, "ioctl"),
    (17, "pread64"),
    (18, "pwrite64"),
    (46, "sendmsg"),
    (47, "recvmsg"),
    (74, "fsync"),
    (75, "fdatasync"),
    (128, "rt_sigtimedwait"),
    (202, "futex"),
    (232, "epoll_wait"),
    (271, "ppoll"),
    (295, "preadv"),
    (426, "io_uring_enter"),
];

/// A thread.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::diagnosis) struct ThreadLook {
    pub(in crate::diagnosis) id: u32,
    pub(in crate::diagnosis) name: String,
    pub(in crate::diagnosis) state: char,
    /// The time on a CPU so far, in ticks of the kernel, of which a second has 100.
    pub(in crate::diagnosis) ticks: u64,
    /// The function of the kernel, or the call to it, in which the thread waits.
    pub(in crate::diagnosis) waits_in: Option<String>,
}

/// The threads of the process whose folder this is, the main thread first.
pub(super) fn threads(root: &Path) -> std::io::Result<Vec<ThreadLook>> {
    let tasks = fs::read_dir(root.join("task"))?;
    let mut threads: Vec<ThreadLook> = tasks.flatten().take(MOST).filter_map(|task| thread(&task.path())).collect();
    threads.sort_by_key(|thread| thread.id);
    Ok(threads)
}

/// The thread, or the main thread, whose folder this is.
pub(super) fn thread(folder: &Path) -> Option<ThreadLook> {
    let mut thread = thread_of(&fs::read_to_string(folder.join("stat")).ok()?)?;
    let waits = fs::read_to_string(folder.join("wchan")).unwrap_or_default();
    let function = Some(waits).filter(|function| !matches!(function.as_str(), "" | "0"));
    // the kernel tells the call, where it tells no function, to those who may debug the process
    let call = || call_of(&fs::read_to_string(folder.join("syscall")).ok()?);
    thread.waits_in = function.or_else(call).filter(|_| thread.state != 'R');
    Some(thread)
}

/// The thread that a `stat` file tells of.
fn thread_of(stat: &str) -> Option<ThreadLook> {
    let ProcessStat { id, name, state, ticks, .. } = ProcessStat::read(stat)?;
    let name = name.chars().filter(|c| !c.is_control()).collect();
    Some(ThreadLook { id, name, state, ticks, waits_in: None })
}

/// The name of a call to the kernel, by the first word of a `syscall` file.
fn call_of(text: &str) -> Option<String> {
    let number: u64 = text.split_whitespace().next()?.parse().ok()?;
    let known = CALLS.iter().find(|(call, _)| *call == number && cfg!(target_arch = "x86_64"));
    Some(known.map_or_else(|| format!("call {number}"), |(_, name)| (*name).to_owned()))
}

/// What holds a process by the state of its main thread and its freezer, as a person would say it; `None` where the
/// process runs or waits as processes do.
pub(super) fn held_by(state: char, frozen: bool) -> Option<&'static str> {
    match state {
        'T' => Some("stopped by a signal (state T)"),
        't' => Some("stopped by a debugger (state t)"),
        'Z' => Some("dead, and not yet waited for (state Z)"),
        _ if frozen => Some("frozen by its control group"),
        _ => None,
    }
}

/// What holds the process whose folder this is, whose main thread is in this state.
pub(super) fn held(root: &Path, state: char) -> Option<&'static str> {
    held_by(state, is_frozen(root))
}

/// Whether the freezer holds the group of the unified hierarchy that the process is in.
pub(super) fn is_frozen(root: &Path) -> bool {
    let groups = fs::read_to_string(root.join("cgroup")).unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let events = group.map(|group| Path::new("/sys/fs/cgroup").join(group).join("cgroup.events"));
    let events = events.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    events.lines().any(|line| line == "frozen 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_name_may_hold_anything() {
        let stat = "12 (CPU 0/TCG) x) S 1 12 12 0 -1 4194560 1 2 3 4 50 7 0 0 20 0 3 0 99";
        let thread = thread_of(stat).expect("a thread");
        assert_eq!((thread.id, thread.name.as_str(), thread.state, thread.ticks), (12, "CPU 0/TCG) x", 'S', 57));
        for torn in ["", "12", "12 (x", "12 (x)", "12 )x( S", "x (y) S"] {
            assert_eq!(thread_of(torn), None, "{torn}");
        }
    }

    #[test]
    fn a_call_is_known_by_its_number() {
        assert_eq!(call_of("running\n"), None);
        assert_eq!(call_of("99999 0x0\n").as_deref(), Some("call 99999"));
        if cfg!(target_arch = "x86_64") {
            assert_eq!(call_of("271 0x7f 0x1\n").as_deref(), Some("ppoll"));
        }
    }
}
