//! What the kernel tells of a QEMU process at one moment, by `/proc`.
//!
//! Reads the files of one process; the file takes part in nothing else. Without root the kernel tells all of this of
//! the user's own processes alone.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The most threads, descriptors and connections that are looked at of one process.
const MOST: usize = 4096;

/// A process at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ProcessLook {
    pub(super) pid: u32,
    /// The state of the main thread: `R`, `S`, `D`, `T`, `t`, `Z`.
    pub(super) state: char,
    /// Whether the freezer of its control group holds the process.
    pub(super) frozen: bool,
    pub(super) threads: Vec<ThreadLook>,
    pub(super) connections: Vec<ConnectionLook>,
    /// The bytes that the process may lock; `None` where there is no limit, or none was read.
    pub(super) memlock: Option<u64>,
    /// What could not be read, in the system's words.
    pub(super) hidden: Vec<String>,
}

/// A thread.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ThreadLook {
    pub(super) name: String,
    pub(super) state: char,
    /// The time on a CPU so far, in ticks of the kernel.
    pub(super) ticks: u64,
    /// The function of the kernel in which the thread waits.
    pub(super) waits_in: Option<String>,
}

/// A TCP connection of the process.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ConnectionLook {
    pub(super) local: String,
    pub(super) remote: String,
    /// The remote port, which tells NBD from RAM.
    pub(super) remote_port: u16,
    pub(super) state: ConnectionState,
    /// Bytes that the peer has not acknowledged.
    pub(super) unsent: u64,
    /// Bytes that the process has not read.
    pub(super) unread: u64,
    /// Segments that were sent again without an answer.
    pub(super) retransmits: u64,
}

/// The state of a TCP connection, as far as a rule asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum ConnectionState {
    Established,
    /// The other side has not answered the first segment.
    SynSent,
    Listening,
    #[default]
    Other,
}

impl ProcessLook {
    /// Looks at a process; `None` where there is no such process.
    pub(super) fn read(pid: u32) -> Option<Self> {
        let root = PathBuf::from(format!("/proc/{pid}"));
        let main = thread(&root)?;
        let mut look = Self { pid, state: main.state, ..Self::default() };
        match fs::read_dir(root.join("task")) {
            Ok(tasks) => {
                look.threads = tasks.flatten().take(MOST).filter_map(|task| thread(&task.path())).collect();
            }
            Err(error) => look.hidden.push(format!("the threads of process {pid}: {error}")),
        }
        match sockets(&root) {
            Ok(inodes) => {
                for (file, wide) in [("net/tcp", false), ("net/tcp6", true)] {
                    let table = fs::read_to_string(root.join(file)).unwrap_or_default();
                    look.connections.extend(connections(&table, wide, &inodes).into_iter().take(MOST));
                }
            }
            Err(error) => look.hidden.push(format!("the connections of process {pid}: {error}; root is told them")),
        }
        look.memlock = fs::read_to_string(root.join("limits")).ok().and_then(|limits| memlock(&limits));
        look.frozen = fs::read_to_string(root.join("cgroup")).ok().is_some_and(|groups| is_frozen(&groups));
        Some(look)
    }

    /// The process's main state, as a person would say it; `None` where the process runs or waits as processes do.
    pub(super) fn held(&self) -> Option<&'static str> {
        match self.state {
            'T' => Some("stopped by a signal (state T)"),
            't' => Some("stopped by a debugger (state t)"),
            'Z' => Some("dead, and not yet waited for (state Z)"),
            _ if self.frozen => Some("frozen by its control group"),
            _ => None,
        }
    }
}

/// The thread, or the main thread, whose folder this is.
fn thread(folder: &Path) -> Option<ThreadLook> {
    let mut thread = thread_of(&fs::read_to_string(folder.join("stat")).ok()?)?;
    let waits = fs::read_to_string(folder.join("wchan")).unwrap_or_default();
    thread.waits_in = Some(waits).filter(|function| !matches!(function.as_str(), "" | "0"));
    Some(thread)
}

/// Takes a `stat` file apart: `PID (NAME) STATE ...`; a name may hold anything, parentheses too.
fn thread_of(stat: &str) -> Option<ThreadLook> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or_default();
    // fields 14 and 15 of proc_pid_stat(5), counted from the state, which is field 3
    let ticks = ticks(11).saturating_add(ticks(12));
    Some(ThreadLook { name, state: fields.first()?.chars().next()?, ticks, waits_in: None })
}

/// The inodes of the process's sockets.
fn sockets(root: &Path) -> std::io::Result<BTreeSet<u64>> {
    let links = fs::read_dir(root.join("fd"))?.flatten().take(MOST);
    let targets = links.filter_map(|link| fs::read_link(link.path()).ok());
    Ok(targets
        .filter_map(|target| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
        .collect())
}

/// The lines of `/proc/PID/net/tcp` that belong to these inodes.
fn connections(table: &str, wide: bool, inodes: &BTreeSet<u64>) -> Vec<ConnectionLook> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let inode: u64 = fields.get(9)?.parse().ok()?;
        if !inodes.contains(&inode) {
            return None;
        }
        let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
        let (unsent, unread) = fields.get(4)?.split_once(':')?;
        let state = match *fields.get(3)? {
            "01" => ConnectionState::Established,
            "02" => ConnectionState::SynSent,
            "0A" => ConnectionState::Listening,
            _ => ConnectionState::Other,
        };
        let (local, _) = address(fields.get(1)?, wide)?;
        let (remote, remote_port) = address(fields.get(2)?, wide)?;
        Some(ConnectionLook {
            local,
            remote,
            remote_port,
            state,
            unsent: hexadecimal(unsent)?,
            unread: hexadecimal(unread)?,
            retransmits: hexadecimal(fields.get(6)?)?,
        })
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

/// An address of the table, as `HOST:PORT`, and its port. The kernel writes each 32 bits in the host's byte order.
fn address(text: &str, wide: bool) -> Option<(String, u16)> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if host.len() != if wide { 32 } else { 8 } || !host.is_ascii() {
        return None;
    }
    let words: Option<Vec<[u8; 4]>> = (0..host.len() / 8)
        .map(|word| u32::from_str_radix(&host[word * 8..word * 8 + 8], 16).ok().map(u32::to_ne_bytes))
        .collect();
    let bytes = words?.concat();
    let host = match <[u8; 16]>::try_from(bytes.as_slice()) {
        Ok(bytes) => {
            let host = std::net::Ipv6Addr::from(bytes);
            host.to_ipv4_mapped().map_or_else(|| format!("[{host}]"), |host| host.to_string())
        }
        Err(_) => std::net::Ipv4Addr::from(<[u8; 4]>::try_from(bytes.as_slice()).ok()?).to_string(),
    };
    Some((format!("{host}:{port}"), port))
}

/// The soft limit of `Max locked memory`.
fn memlock(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether the freezer holds the group that the process is in, of the unified hierarchy.
fn is_frozen(groups: &str) -> bool {
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
        assert_eq!((thread.name.as_str(), thread.state, thread.ticks), ("CPU 0/TCG) x", 'S', 57));
        for torn in ["", "12", "12 (x", "12 (x)", "12 )x( S"] {
            assert_eq!(thread_of(torn), None, "{torn}");
        }
    }

    #[test]
    fn a_table_of_connections_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 0200007F:2A38 01 0000A000:00000007 01:00000014 00000003  0  0 77 1 0 20 4 30 10 -1\n\
             1: 0100007F:1F91 0200007F:2A39 02 00000001:00000000 01:00000014 00000003  0  0 78 1 0 20 4 30 10 -1\n\
             2: torn\n";
        let found = connections(table, false, &[77].into());
        let expected = ConnectionLook {
            local: "127.0.0.1:8080".to_owned(),
            remote: "127.0.0.2:10808".to_owned(),
            remote_port: 10808,
            state: ConnectionState::Established,
            unsent: 0xa000,
            unread: 7,
            retransmits: 3,
        };
        assert_eq!(found, [expected]);
        let wide = "0000000000000000FFFF00000100007F:1F90";
        assert_eq!(address(wide, true), Some(("127.0.0.1:8080".to_owned(), 8080)));
        assert_eq!(address("00000000000000000000000001000000:0001", true), Some(("[::1]:1".to_owned(), 1)));
        assert_eq!(address("0100007F:1F90", true), None);
    }

    #[test]
    fn a_limit_of_locked_memory_is_read() {
        assert_eq!(
            memlock("Max processes  1 2 p\nMax locked memory         65536      65536     bytes\n"),
            Some(65536)
        );
        assert_eq!(memlock("Max locked memory         unlimited   unlimited     bytes\n"), None);
    }

    #[test]
    fn the_own_process_is_seen_to_run() {
        let look = ProcessLook::read(std::process::id()).expect("a process");
        assert!(look.held().is_none() && !look.threads.is_empty(), "{look:?}");
        assert_eq!(ProcessLook::read(u32::MAX), None);
    }
}
