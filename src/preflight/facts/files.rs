//! The files that a QEMU of this host has open, as this host's file systems describe them.
//!
//! Files are looked up as that process sees them, which may be in a container. No file may be opened here, and the
//! file that has a name today must never be taken for the one that QEMU opened under that name: an image may have
//! been replaced.

use crate::{
    endpoint::{ProcessCredentials, seen_by},
    qemu::reply::BlockNode,
    storage::{
        files::filesystem::{FileSystem, MountTable},
        model::chain::file_name,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Metadata},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// The properties of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    /// The path for this process.
    pub path: PathBuf,
    /// The device and inode, which are the same for all names of a file.
    pub id: (u64, u64),
    /// The space that the file takes, bytes.
    pub allocated: u64,
    /// The time of the last write: seconds and nanoseconds since the epoch.
    pub modified: (i64, i64),
    /// Whether the file is a block device, which has its space already.
    pub is_device: bool,
    /// Whether that QEMU may write to the file.
    pub writable: bool,
    /// The file system that the file is on.
    pub file_system: FileSystem,
}

/// Looks up the files of all nodes, by the names that QEMU has for them. A file that has such a name now and is not
/// `open` in that process is left out: it has replaced the one that QEMU opened.
pub(super) fn look_up(pid: u32, nodes: &[BlockNode], open: &OpenFiles) -> BTreeMap<String, FileFacts> {
    // of a process that this host does not tell of, no rights are known
    let credentials = ProcessCredentials::of(pid).unwrap_or_else(|| ProcessCredentials::read(""));
    let mounts = MountTable::read();
    let names = nodes.iter().map(|node| file_name(&node.file));
    // An image's format node and protocol node have the same name.
    let names: BTreeSet<String> = names.filter(|name| !name.is_empty() && !name.starts_with("json:")).collect();
    let look_at = |name: String| {
        let file = look(&seen_by(pid, &name), &credentials, &mounts)?;
        Some((name, file))
    };
    let files = names.into_iter().filter_map(look_at);
    // each node opens its file anew: all of them must have the present file open, and none a replaced one
    let opened = |name: &str| nodes.iter().filter(|node| is_protocol(node) && file_name(&node.file) == name).count();
    files.filter(|(name, file)| open.get(&file.id).is_some_and(|count| *count >= opened(name))).collect()
}

/// The files that QEMU has opened for writing and flushes, each once.
pub(super) fn flushed<'a>(nodes: &[BlockNode], files: &'a BTreeMap<String, FileFacts>) -> Vec<&'a FileFacts> {
    let passes_over = |node: &BlockNode| node.cache.as_ref().is_some_and(|cache| cache.no_flush);
    let written = nodes.iter().filter(|node| is_protocol(node) && !node.ro && !passes_over(node));
    let found = written.filter_map(|node| files.get(&file_name(&node.file)));
    // nodes may share a file, under one name or two
    found.map(|file| (file.id, file)).collect::<BTreeMap<_, _>>().into_values().collect()
}

pub(super) fn is_protocol(node: &BlockNode) -> bool {
    ["file", "host_device", "host_cdrom"].contains(&node.drv.as_str())
}

/// The number of times that a process has each file open, by the file's identity; empty where nobody may look.
pub(super) type OpenFiles = BTreeMap<(u64, u64), usize>;

/// The files that a process has open now.
pub(super) fn open_files(pid: u32) -> OpenFiles {
    let mut open = OpenFiles::new();
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        // these links lead to the open file itself, also when its name has been removed
        if let Ok(data) = fs::metadata(descriptor.path()) {
            *open.entry(id(&data)).or_default() += 1;
        }
    }
    open
}

/// The identity of a file. A block device keeps its own number, whatever file system its device node is on.
pub(super) fn id(data: &Metadata) -> (u64, u64) {
    if data.file_type().is_block_device() { (0, data.rdev()) } else { (data.dev(), data.ino()) }
}

/// The path for this process of the file that a process knows under a name and has open now; `None` for a device, and
/// where another file has that name by now.
pub fn open_under(pid: u32, name: &str) -> Option<PathBuf> {
    let path = seen_by(pid, name);
    let data = fs::metadata(&path).ok().filter(Metadata::is_file)?;
    open_files(pid).contains_key(&id(&data)).then_some(path)
}

fn look(path: &Path, credentials: &ProcessCredentials, mounts: &MountTable) -> Option<FileFacts> {
    let data = fs::metadata(path).ok()?;
    Some(FileFacts {
        path: path.to_owned(),
        id: id(&data),
        allocated: data.blocks().saturating_mul(512),
        modified: (data.mtime(), data.mtime_nsec()),
        is_device: data.file_type().is_block_device(),
        writable: may_write(data.mode(), data.uid(), data.gid(), credentials),
        file_system: FileSystem::among(mounts, path).ok()?,
    })
}

fn may_write(mode: u32, user: u32, group: u32, who: &ProcessCredentials) -> bool {
    who.may_use(mode, user, group, 0o2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_looked_up_as_its_process_sees_it() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&file, [1; 5000]).unwrap();
        fs::hard_link(&file, &link).unwrap();
        let look = |path: &Path| {
            look(
                &seen_by(std::process::id(), &path.to_string_lossy()),
                &ProcessCredentials::default(),
                &MountTable::read(),
            )
        };
        let (one, two) = (look(&file).unwrap(), look(&link).unwrap());
        assert_eq!(one.id, two.id);
        assert!(one.allocated >= 4096 && one.file_system.free > 0 && !one.is_device);
        assert_eq!(look(&folder.path().join("c")), None);
    }

    #[test]
    fn what_qemu_writes_and_flushes_is_flushed_once() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other, third] = ["a", "b", "c"].map(|name| folder.path().join(name));
        fs::write(&one, "1").unwrap();
        fs::hard_link(&one, &other).unwrap();
        fs::write(&third, "3").unwrap();
        let node = |driver: &str, file: &Path, read_only: bool, no_flush: bool| -> BlockNode {
            let cache = serde_json::json!({"writeback": true, "direct": false, "no-flush": no_flush});
            let image = serde_json::json!({"filename": "a", "virtual-size": 1});
            let node = serde_json::json!({"node-name": "n", "drv": driver, "file": file, "ro": read_only,
                "image": image, "cache": cache});
            serde_json::from_value(node).unwrap()
        };
        let known = |path: &PathBuf| {
            (path.display().to_string(), look(path, &ProcessCredentials::default(), &MountTable::read()).unwrap())
        };
        let files: BTreeMap<_, _> = [&one, &other, &third].map(known).into();
        let elsewhere = folder.path().join("elsewhere");
        for (nodes, count) in [
            (vec![node("file", &one, false, false)], 1),
            (vec![node("host_device", &one, false, false), node("file", &third, false, false)], 2),
            (vec![node("file", &one, false, false), node("file", &other, false, false)], 1),
            (vec![node("file", &one, true, false)], 0),
            (vec![node("file", &one, false, true)], 0),
            (vec![node("qcow2", &one, false, false)], 0),
            (vec![node("file", &elsewhere, false, false)], 0),
        ] {
            assert_eq!(flushed(&nodes, &files).len(), count, "{nodes:?}");
        }
    }

    #[test]
    fn only_what_is_open_is_a_file_of_its() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let image = serde_json::json!({"filename": "a", "virtual-size": 1});
        let node = serde_json::json!({"node-name": "n", "drv": "file", "file": path, "ro": true, "image": image});
        let node: BlockNode = serde_json::from_value(node).unwrap();
        let nodes = [node.clone(), node];
        let pid = std::process::id();
        let found = || look_up(pid, &nodes[..1], &open_files(pid)).into_values().next();
        fs::write(&path, "old").unwrap();
        assert_eq!(found(), None);
        let open = fs::File::open(&path).unwrap();
        assert_eq!(found().map(|file| file.id), Some(id(&open.metadata().unwrap())));
        fs::write(folder.path().join("new"), "new").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(found(), None, "another file has the name by now");
        let newer = fs::File::open(&path).unwrap();
        assert_eq!(found().map(|file| file.id), Some(id(&newer.metadata().unwrap())));
        let both = look_up(pid, &nodes, &open_files(pid));
        assert!(both.is_empty(), "one of the two nodes may have the older one: {both:?}");
    }
}
