//! What this host tells of the process of a QEMU: the user it runs as, its command line, its network.

use super::shared_memory::{self, SharedMappings};
use crate::{
    endpoint::{ProcessCredentials, UnseenProcess, seen_by},
    qemu::Process,
    trust,
};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The facts of one process; a fact that the host does not tell is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Why the process is not known.
    pub unseen: Option<UnseenProcess>,
    /// Whether its command line has `-S`.
    pub starts_stopped: Option<bool>,
    /// Whether it may use files that are there for the engine's user alone.
    pub uses_private_files: Option<bool>,
    /// Whether it may catch accesses of the guest to pages that are not there yet, as postcopy must.
    pub catches_faults: Option<bool>,
    /// Whether it is in the engine's network, so that the engine reaches what the process reaches.
    pub shares_network: bool,
    /// The memory that others may share with it.
    pub shared_memory: SharedMappings,
}

/// Looks at the process of a QEMU.
pub(super) fn look(process: &Process) -> ProcessFacts {
    let unseen = process.unseen().cloned();
    let Some(peer) = process.peer() else { return ProcessFacts { unseen, ..ProcessFacts::default() } };
    let pid = peer.pid();
    let network = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/net")).map(|data| (data.dev(), data.ino())).ok();
    // the engine may be on a thread that has entered another network
    let engines = network("thread-self");
    let who = ProcessCredentials::of(pid);
    let found = ProcessFacts {
        unseen,
        starts_stopped: fs::read(format!("/proc/{pid}/cmdline")).ok().and_then(|words| starts_stopped(&words)),
        uses_private_files: who.as_ref().map(|who| who.acts_for(trust::user())),
        catches_faults: who.as_ref().and_then(ProcessCredentials::catches_faults),
        shared_memory: shared_memory::look(pid),
        shares_network: engines.is_some() && network(&pid.to_string()) == engines,
    };
    // the process was alive after the look, so the facts are not those of a later process with its pid
    if peer.has_died() { ProcessFacts::default() } else { found }
}

/// Whether a command line, with a NUL behind each word, has `-S`. A word after another option may be that option's
/// value, and then the answer is too kind. `None` for the empty command line of a process that is ending.
fn starts_stopped(command_line: &[u8]) -> Option<bool> {
    let has = |wanted: &[u8]| command_line.split(|byte| *byte == 0).any(|word| word == wanted);
    (!command_line.is_empty()).then(|| has(b"-S") || has(b"--S"))
}

/// The reason why a process could make no socket at a path; `None` where it can, or where this host does not tell.
pub fn no_socket_at(pid: u32, path: &Path) -> Option<String> {
    let folder = path.parent()?.to_str()?;
    let seen = seen_by(pid, folder);
    if !seen.exists() {
        return Some(format!("there is no folder {folder}"));
    }
    let who = ProcessCredentials::of(pid)?;
    let user = who.user;
    let enters = |folder: &PathBuf| fs::metadata(folder).map_or(true, |data| who.may(&data, 0o1));
    let mut above = seen.ancestors().map(PathBuf::from);
    if let Some(closed) = above.find(|folder| !enters(folder)) {
        return Some(format!("user {user}, as which this QEMU runs, may not enter the folder {}", closed.display()));
    }
    let may_write = fs::metadata(&seen).map_or(true, |data| who.may(&data, 0o2));
    (!may_write).then(|| format!("user {user}, as which this QEMU runs, may make no socket in {folder}"))
}

/// The reason why a process could not connect to a socket that another one makes at a path; `None` where it can, or
/// where this host does not tell.
pub fn no_way_to(path: &Path, listener: u32, connector: u32) -> Option<String> {
    let maker = fs::read_to_string(format!("/proc/{listener}/status")).ok()?;
    let who = ProcessCredentials::of(connector)?;
    let folder = fs::metadata(seen_by(connector, path.parent()?.to_str()?)).ok()?;
    let inherited = (folder.mode() & 0o2000 != 0).then(|| folder.gid());
    let socket = SocketOwner::new(&maker, inherited)?;
    (!who.may_use(socket.mode, socket.user, socket.group, 0o2)).then(|| {
        let (user, owner, mode) = (who.user, socket.user, socket.mode);
        format!(
            "user {user}, as which the other QEMU runs, may not connect to the socket that this QEMU makes there \
             (owner {owner}, mode {mode:o} by its umask)"
        )
    })
}

/// The owner and the mode of a socket that a process makes.
struct SocketOwner {
    user: u32,
    group: u32,
    mode: u32,
}

impl SocketOwner {
    /// Reads the `/proc/PID/status` of a process. A folder may give its group to what is made there.
    fn new(status: &str, inherited: Option<u32>) -> Option<Self> {
        let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
        let mode = 0o777 & !u32::from_str_radix(umask.trim(), 8).ok()?;
        let maker = ProcessCredentials::read(status);
        Some(Self { user: maker.user, group: inherited.or(maker.group())?, mode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_command_line_tells_whether_the_guest_waits() {
        for (words, waits) in [
            ("", None),
            ("qemu\0-incoming\0defer\0", Some(false)),
            ("qemu\0-incoming\0defer\0-S\0", Some(true)),
            ("qemu\0--S\0-nodefaults\0", Some(true)),
            ("qemu\0-Snapshot\0-s\0", Some(false)),
        ] {
            assert_eq!(starts_stopped(words.as_bytes()), waits, "{words:?}");
        }
    }

    #[test]
    fn a_socket_is_for_those_whom_its_maker_lets_in() {
        let status = |user: u32, group: u32, umask: &str, capabilities: &str| {
            let ids = |id: u32| [id.to_string(), id.to_string(), id.to_string(), id.to_string()].join("\t");
            format!("Umask:\t{umask}\nUid:\t{}\nGid:\t{}\nCapEff:\t{capabilities}\n", ids(user), ids(group))
        };
        for (maker, inherited, who, enters) in [
            (status(0, 0, "0022", "0"), None, status(107, 36, "0022", "0"), false),
            (status(0, 0, "0000", "0"), None, status(107, 36, "0022", "0"), true),
            (status(107, 36, "0022", "0"), None, status(107, 36, "0022", "0"), true),
            (status(107, 36, "0022", "0"), None, status(0, 0, "0022", "1ffffffffff"), true),
            (status(0, 36, "0002", "0"), None, status(107, 36, "0022", "0"), true),
            (status(0, 0, "0002", "0"), Some(36), status(107, 36, "0022", "0"), true),
            (status(0, 36, "0077", "0"), None, status(107, 36, "0022", "0"), false),
        ] {
            let socket = SocketOwner::new(&maker, inherited).unwrap();
            let may = ProcessCredentials::read(&who).may_use(socket.mode, socket.user, socket.group, 0o2);
            assert_eq!(may, enters, "{maker} {inherited:?} {who}");
        }
        assert!(SocketOwner::new("Uid:\t0\t0\t0\t0\n", None).is_none(), "an old kernel tells no umask");
    }

    #[test]
    fn a_folder_that_is_not_there_takes_no_socket() {
        let folder = tempfile::tempdir().unwrap();
        let pid = std::process::id();
        assert_eq!(no_socket_at(pid, &folder.path().join("nbd")), None);
        let told = no_socket_at(pid, &folder.path().join("none/nbd")).unwrap();
        assert!(told.contains("there is no folder") && told.contains("/none"), "{told}");
        // Permissions do not bind root.
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o500)).unwrap();
        let told = no_socket_at(pid, &folder.path().join("nbd"));
        assert!(trust::user() == 0 || told.is_some_and(|told| told.contains("may make no socket")));
    }
}
