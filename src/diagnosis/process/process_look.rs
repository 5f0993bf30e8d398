//! A process at one moment.

use super::{
    command_words::command_line,
    open_files::{OpenFileLook, open_files},
    socket_owners::{SocketPeer, sockets_of},
    socket_peers::{UnixConnectionLook, own_connections, with_peers},
    tap_counters::{TapLook, taps},
    tcp_table::ConnectionLook,
    threads::{ThreadLook, held_by, is_frozen, thread, threads},
};
use crate::endpoint::ProcessCredentials;
use std::{fs, path::PathBuf};

/// A process at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::diagnosis) struct ProcessLook {
    pub(in crate::diagnosis) pid: u32,
    /// The state of the main thread: `R`, `S`, `D`, `T`, `t`, `Z`.
    pub(in crate::diagnosis) state: char,
    /// Whether the freezer of its control group holds the process.
    pub(in crate::diagnosis) frozen: bool,
    /// The threads, the main thread first.
    pub(in crate::diagnosis) threads: Vec<ThreadLook>,
    pub(in crate::diagnosis) connections: Vec<ConnectionLook>,
    /// Its unix sockets that are connected.
    pub(in crate::diagnosis) unix_connections: Vec<UnixConnectionLook>,
    /// The files and block devices that it has open.
    pub(in crate::diagnosis) files: Vec<OpenFileLook>,
    /// The tap interfaces that it has open, which lead from the guest's network cards to the host's network.
    pub(in crate::diagnosis) taps: Vec<TapLook>,
    /// The number of its descriptors.
    pub(in crate::diagnosis) descriptors: Option<usize>,
    /// Its command line, without secrets.
    pub(in crate::diagnosis) command: Vec<String>,
    /// The bytes that the process may lock; `None` where there is no limit, or none was read.
    pub(in crate::diagnosis) memlock: Option<u64>,
    /// The descriptors that the process may have; `None` as above.
    pub(in crate::diagnosis) most_descriptors: Option<u64>,
    /// Whether it may catch page faults (userfaultfd), as the destination of postcopy must; `None` where none was read.
    pub(in crate::diagnosis) catches_faults: Option<bool>,
    /// What could not be read, in the system's words.
    pub(in crate::diagnosis) hidden: Vec<String>,
}

impl ProcessLook {
    /// Looks at what changes with time; `None` where there is no such process.
    pub(in crate::diagnosis) fn read(pid: u32) -> Option<Self> {
        let root = PathBuf::from(format!("/proc/{pid}"));
        let main = thread(&root)?;
        let mut look = Self { pid, state: main.state, ..Self::default() };
        match threads(&root) {
            Ok(threads) => look.threads = threads,
            Err(error) => look.hidden.push(format!("the threads of process {pid}: {error}")),
        }
        if let Ok(inodes) = sockets_of(&root) {
            look.connections = own_connections(&root, &inodes);
        }
        look.frozen = is_frozen(&root);
        Some(look)
    }

    /// Looks at all, also at who has the other ends of its connections.
    pub(in crate::diagnosis) fn read_whole(pid: u32) -> Option<Self> {
        let root = PathBuf::from(format!("/proc/{pid}"));
        let mut look = Self::read(pid)?;
        let root_is_told =
            |what: &str, error: std::io::Error| format!("{what} of process {pid}: {error}; root is told them");
        match sockets_of(&root) {
            Ok(inodes) => {
                let (connections, unix_connections, hidden) = with_peers(&root, &inodes);
                (look.connections, look.unix_connections) = (connections, unix_connections);
                look.hidden.extend(hidden.map(|hidden| format!("process {pid}: {hidden}")));
            }
            Err(error) => look.hidden.push(root_is_told("the connections", error)),
        }
        match open_files(&root) {
            Ok((files, count)) => (look.files, look.descriptors) = (files, Some(count)),
            Err(error) => look.hidden.push(root_is_told("the open images", error)),
        }
        look.taps = taps(&root);
        match command_line(&root) {
            Ok(words) => look.command = words,
            Err(error) => look.hidden.push(root_is_told("the words of the command line", error)),
        }
        let waits = |thread: &ThreadLook| thread.waits_in.is_some() || thread.state == 'R';
        if !look.threads.iter().any(waits) {
            look.hidden.push(format!("what the threads of process {pid} wait in: root is told"));
        }
        let main = look.threads.first().map(|main| main.name.clone());
        if look.threads.len() > 2 && look.threads.iter().all(|thread| Some(&thread.name) == main.as_ref()) {
            let names = "the threads have no names of their own: QEMU gives them with debug-threads=on";
            look.hidden.push(format!("process {pid}: {names}"));
        }
        if let Ok(limits) = fs::read_to_string(root.join("limits")) {
            look.memlock = limit(&limits, "Max locked memory");
            look.most_descriptors = limit(&limits, "Max open files");
        }
        look.catches_faults = ProcessCredentials::of(pid).and_then(|who| who.catches_faults());
        Some(look)
    }

    /// Whether the program is a QEMU, by its name. Distributions call it kvm and qemu-kvm as well.
    pub(in crate::diagnosis) fn is_emulator(&self) -> bool {
        let of_words = self.command.first().and_then(|word| word.rsplit('/').next());
        let names = of_words.into_iter().chain(self.threads.first().map(|main| main.name.as_str()));
        names.into_iter().any(|name| name.starts_with("qemu") || name == "kvm")
    }

    /// What is to be known of a process that is no QEMU.
    pub(in crate::diagnosis) fn stranger(&self) -> String {
        let name = self.threads.first().map_or("no name", |main| main.name.as_str());
        format!("process {} ({name}) is no QEMU by its name: nothing of this may concern a migration", self.pid)
    }

    /// The processes that it is connected with, where these are known.
    pub(in crate::diagnosis) fn peers(&self) -> impl Iterator<Item = u32> {
        let peers =
            self.connections.iter().map(|row| &row.peer).chain(self.unix_connections.iter().map(|row| &row.peer));
        peers.filter_map(|peer| match peer {
            SocketPeer::Process { program, .. } => Some(program.pid),
            _ => None,
        })
    }

    /// The process's main state, as a person would say it; `None` where the process runs or waits as processes do.
    pub(in crate::diagnosis) fn held(&self) -> Option<&'static str> {
        held_by(self.state, self.frozen)
    }
}

/// A soft limit.
fn limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let limits = "Max processes  1 2 p\nMax open files    1024   4096  files\nMax locked memory         65536      65536     bytes\n";
        assert_eq!(limit(limits, "Max locked memory"), Some(65536));
        assert_eq!(limit(limits, "Max open files"), Some(1024));
        assert_eq!(limit("Max locked memory         unlimited   unlimited     bytes\n", "Max locked memory"), None);
    }

    #[test]
    fn the_own_process_is_seen_to_run() {
        let look = ProcessLook::read_whole(std::process::id()).expect("a process");
        assert!(look.held().is_none() && !look.threads.is_empty() && !look.command.is_empty(), "{look:?}");
        assert!(look.descriptors.is_some_and(|count| count > 0), "{look:?}");
        assert_eq!(ProcessLook::read(u32::MAX), None);
    }
}
