//! What this host's file systems say of the files that a QEMU of this host has open.
//!
//! Files are looked up as that process sees them, which may be in a container. It must never open one.

use crate::{
    qemu::reply::BlockNode,
    storage::{chain::file_name, filesystem::FileSystem},
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// What is known of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path for this process.
    pub path: PathBuf,
    /// The device and inode: the same for the same file, whatever it is called.
    pub id: (u64, u64),
    /// What it takes, bytes.
    pub allocated: u64,
    /// Whether it is a block device: it has its space already.
    pub is_device: bool,
    /// Whether that QEMU may write to it.
    pub writable: bool,
    /// The file system it is on.
    pub file_system: FileSystem,
}

/// What a process may do with files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Credentials {
    user: u32,
    groups: Vec<u32>,
    /// `CAP_DAC_OVERRIDE`: no permission holds it up.
    overrides: bool,
}

/// Looks up the files of all nodes, by the name that QEMU has for them.
pub(super) fn look_up(pid: u32, nodes: &[BlockNode]) -> BTreeMap<String, File> {
    let credentials = credentials(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default());
    let names = nodes.iter().map(|node| file_name(&node.file));
    let names = names.filter(|name| !name.is_empty() && !name.starts_with("json:"));
    names.filter_map(|name| Some((name.clone(), look(&seen_by(pid, &name), &credentials)?))).collect()
}

/// The path of a file that another process knows under a name.
pub fn seen_by(pid: u32, name: &str) -> PathBuf {
    let path = Path::new(name);
    let beneath = match path.strip_prefix("/") {
        Ok(below) => PathBuf::from(format!("/proc/{pid}/root")).join(below),
        Err(_) => PathBuf::from(format!("/proc/{pid}/cwd")).join(path),
    };
    // another user's process does not let one look through its eyes; then it most likely sees what we see
    if beneath.exists() { beneath } else { path.to_owned() }
}

fn look(path: &Path, credentials: &Credentials) -> Option<File> {
    let data = fs::metadata(path).ok()?;
    Some(File {
        path: path.to_owned(),
        // a device is the same wherever its node is
        id: if data.file_type().is_block_device() { (0, data.rdev()) } else { (data.dev(), data.ino()) },
        allocated: data.blocks().saturating_mul(512),
        is_device: data.file_type().is_block_device(),
        writable: may_write(data.mode(), data.uid(), data.gid(), credentials),
        file_system: FileSystem::of(path).ok()?,
    })
}

/// By the classic permission bits: the first of owner, group and others that fits decides.
fn may_write(mode: u32, user: u32, group: u32, who: &Credentials) -> bool {
    let bit = match () {
        () if who.overrides => return true,
        () if who.user == user => 0o200,
        () if who.groups.contains(&group) => 0o020,
        () => 0o002,
    };
    mode & bit != 0
}

/// From `/proc/PID/status`: the ids that count for files are the last of each four.
fn credentials(status: &str) -> Credentials {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>()
    };
    let number = |text: &&str| text.parse::<u32>().ok();
    let mut groups: Vec<u32> = field("Groups").iter().filter_map(number).collect();
    groups.extend(field("Gid").last().and_then(number));
    let capabilities = field("CapEff").first().and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    Credentials {
        user: field("Uid").last().and_then(number).unwrap_or(u32::MAX),
        groups,
        overrides: capabilities & (1 << 1) != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_write() {
        let status =
            "Name:\tqemu\nUid:\t107\t107\t107\t107\nGid:\t36\t36\t36\t36\nGroups:\t11 36 \nCapEff:\t0000000000000000\n";
        let qemu = credentials(status);
        assert_eq!(qemu, Credentials { user: 107, groups: vec![11, 36, 36], overrides: false });
        let root = credentials("Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n");
        assert!(root.overrides);
        for (mode, user, group, may) in [
            (0o600, 107, 0, true),
            (0o400, 107, 0, false),
            (0o422, 107, 11, false),
            (0o420, 1, 11, true),
            (0o402, 1, 11, false),
            (0o602, 1, 1, true),
            (0o600, 1, 1, false),
        ] {
            assert_eq!(may_write(mode, user, group, &qemu), may, "{mode:o} {user} {group}");
            assert!(may_write(mode, user, group, &root));
        }
        assert!(!may_write(0o600, 107, 0, &credentials("")), "nothing is known of it");
    }

    #[test]
    fn a_file_is_looked_up_as_its_process_sees_it() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&file, [1; 5000]).unwrap();
        fs::hard_link(&file, &link).unwrap();
        let look = |path: &Path| look(&seen_by(std::process::id(), &path.to_string_lossy()), &Credentials::default());
        let (one, two) = (look(&file).unwrap(), look(&link).unwrap());
        assert_eq!(one.id, two.id);
        assert!(one.allocated >= 4096 && one.file_system.free > 0 && !one.is_device);
        assert_eq!(look(&folder.path().join("c")), None);
    }
}
