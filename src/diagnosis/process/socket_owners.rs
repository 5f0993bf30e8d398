//! Which processes have sockets, by the descriptors that `/proc` shows.
//!
//! Reads alone. Without root the kernel shows the descriptors of the user's own processes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

/// The most processes that are looked at, and the most descriptors of each.
const PROCESSES: usize = 65_536;
pub(super) const DESCRIPTORS: usize = 4096;

/// Interpreters, by the begins of their names.
const INTERPRETERS: [&str; 3] = ["perl", "python", "ruby"];
/// The most bytes of a command line in which a program is looked for.
const WORDS: u64 = 4096;

/// A process, and its program by the name of its executable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::diagnosis) struct ProgramLook {
    pub(in crate::diagnosis) pid: u32,
    pub(in crate::diagnosis) program: String,
}

/// Who has the other end of a connection.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::diagnosis) enum SocketPeer {
    /// Nobody has looked.
    #[default]
    Unknown,
    /// The other end is not on this host, or in another network namespace.
    Elsewhere,
    /// The other end is on this host, and no process has it: what had it is gone, or has not accepted the connection.
    Nobody,
    /// A process that this user may not look at has it.
    Hidden,
    /// A process that lives.
    Process {
        program: ProgramLook,
        /// What holds that process, where it does not run.
        held: Option<&'static str>,
    },
}

/// The processes that have some sockets.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct SocketOwners {
    /// By the socket's inode.
    pub(super) owners: BTreeMap<u64, BTreeSet<ProgramLook>>,
    /// Whether there are processes whose descriptors may not be read.
    pub(super) hidden: bool,
}

impl SocketOwners {
    /// Looks through the processes of this host.
    pub(super) fn find(wanted: &BTreeSet<u64>) -> Self {
        let mut found = Self::default();
        if wanted.is_empty() {
            return found;
        }
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten().take(PROCESSES) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match sockets_of(&entry.path()) {
                Ok(inodes) => {
                    for inode in inodes.intersection(wanted) {
                        found.owners.entry(*inode).or_default().insert(ProgramLook::read(pid));
                    }
                }
                Err(error) => found.hidden |= error.kind() == io::ErrorKind::PermissionDenied,
            }
        }
        found
    }

    /// The processes that have a socket.
    pub(super) fn of(&self, inode: u64) -> impl Iterator<Item = &ProgramLook> {
        self.owners.get(&inode).into_iter().flatten()
    }
}

impl ProgramLook {
    /// Looks up the program of a process: its executable, or the name of its main thread where that is hidden.
    pub(super) fn read(pid: u32) -> Self {
        let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let executable = executable.to_string_lossy();
        let name = executable.trim_end_matches(" (deleted)").rsplit('/').next().unwrap_or_default();
        // what an interpreter runs is known by its thread, and what a dynamic linker was asked to run by its first word
        let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = match name {
            _ if name.starts_with("ld-") => linked(pid).unwrap_or_else(comm),
            _ if name.is_empty() || INTERPRETERS.iter().any(|program| name.starts_with(program)) => comm(),
            _ => name.to_owned(),
        };
        Self { pid, program: name.trim().chars().filter(|c| !c.is_control()).take(64).collect() }
    }
}

/// The program that a dynamic linker was asked to run: the name that it was given for it, or the first file.
fn linked(pid: u32) -> Option<String> {
    let mut words = Vec::new();
    File::open(format!("/proc/{pid}/cmdline")).ok()?.take(WORDS).read_to_end(&mut words).ok()?;
    linked_by(&String::from_utf8_lossy(&words))
}

fn linked_by(words: &str) -> Option<String> {
    let mut words = words.split('\0').skip(1);
    let mut program = None;
    while let Some(word) = words.next() {
        match word.strip_prefix('-') {
            Some("-argv0") => return words.next().map(|name| name.rsplit('/').next().unwrap_or(name).to_owned()),
            Some("-library-path" | "-preload" | "-audit" | "-inhibit-rpath") => drop(words.next()),
            Some(_) => {}
            None => {
                program = word.rsplit('/').next();
                break;
            }
        }
    }
    program.map(str::to_owned).filter(|program| !program.is_empty())
}

impl std::fmt::Display for ProgramLook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.program, self.pid)
    }
}

/// The inodes of the sockets of the process whose folder this is.
pub(super) fn sockets_of(folder: &Path) -> io::Result<BTreeSet<u64>> {
    let links = fs::read_dir(folder.join("fd"))?.flatten().take(DESCRIPTORS);
    let targets = links.filter_map(|link| fs::read_link(link.path()).ok());
    Ok(targets
        .filter_map(|target| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_behind_a_dynamic_linker_is_known_by_the_linkers_words() {
        for (words, expected) in [
            (
                "/l/ld-linux-x86-64.so.2\0--argv0\0qemu-system-x86_64\0--library-path\0/l\0/x/q\0-S",
                "qemu-system-x86_64",
            ),
            ("/l/ld-linux-x86-64.so.2\0--library-path\0/l\0/usr/bin/qemu-system-arm\0-S", "qemu-system-arm"),
            ("/l/ld-linux-x86-64.so.2", ""),
            ("/l/ld-linux-x86-64.so.2\0--argv0", ""),
        ] {
            assert_eq!(linked_by(words).unwrap_or_default(), expected, "{words}");
        }
    }

    #[test]
    fn the_owner_of_a_socket_is_found() {
        let (near, far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let own = sockets_of(Path::new("/proc/self")).expect("descriptors");
        assert!(own.len() >= 2);
        let found = SocketOwners::find(&own);
        let owner = own.iter().flat_map(|inode| found.of(*inode)).next().expect("an owner");
        assert_eq!(owner.pid, std::process::id());
        assert!(owner.program.starts_with("qferry"), "{owner}");
        assert_eq!(SocketOwners::find(&BTreeSet::new()), SocketOwners::default());
        drop((near, far));
    }
}
