//! The memory that a process shares with whoever maps the same file: `memory-backend-file` with `share=on`, memfd,
//! ivshmem.

use std::{collections::BTreeMap, fs};

/// The names of the mapped files by device and inode.
pub type SharedMappings = BTreeMap<(String, u64), String>;

/// Looks at the mappings of a process; empty where this process may not look.
pub(super) fn look(pid: u32) -> SharedMappings {
    read(&fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default())
}

/// Reads `/proc/PID/maps`: the mappings through which a write reaches others. A device that two processes have mapped
/// is not memory that they share.
fn read(maps: &str) -> SharedMappings {
    let mapping = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (_, access, _) = (words.next()?, words.next()?, words.next()?);
        let (device, inode) = (words.next()?, words.next()?.parse().ok()?);
        let name = words.collect::<Vec<_>>().join(" ");
        let is_device = name.starts_with("/dev/") && !name.starts_with("/dev/shm/") && !name.starts_with("/dev/huge");
        let is_shared = access.contains('w') && access.ends_with('s') && inode != 0;
        (is_shared && name.starts_with('/') && !is_device).then(|| ((device.to_owned(), inode), name))
    };
    maps.lines().filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_and_written_is_read() {
        let maps = "\
7f0000000000-7f0004000000 rw-s 00000000 00:1a 77                         /dev/shm/vm ram
7f0004000000-7f0008000000 rw-p 00000000 00:1a 78                         /dev/shm/private
7f0008000000-7f0008001000 r--s 00000000 08:01 79                         /usr/lib/gconv-modules.cache
7f0008001000-7f0008002000 rw-s 00000000 00:0e 80                         anon_inode:[io_uring]
7f0008002000-7f0008003000 rw-s 00000000 00:05 81                         /dev/vfio/1
7f0008003000-7f0008004000 rw-s 00000000 00:01 82                         /memfd:ram (deleted)
7f0008004000-7f0008005000 rw-s 00000000 00:2f 83                         /dev/hugepages/ram
7f0008005000-7f0008006000 rw-p 00000000 00:00 0                          [heap]
7f0008006000-7f0008007000 rw-s 00000000 00:01
";
        let wanted = [
            ("00:01", 82, "/memfd:ram (deleted)"),
            ("00:1a", 77, "/dev/shm/vm ram"),
            ("00:2f", 83, "/dev/hugepages/ram"),
        ];
        let wanted = wanted.map(|(device, inode, name)| ((device.to_owned(), inode), name.to_owned()));
        assert_eq!(read(maps), wanted.into());
    }
}
