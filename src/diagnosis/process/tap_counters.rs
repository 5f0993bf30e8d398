//! The tap interfaces of a process, and how many packets its guest has sent through each.
//!
//! Reads alone. The kernel counts from the making of an interface on, in the network namespace of the process.

use super::socket_owners::DESCRIPTORS;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    path::Path,
};

/// The device that a process opens for a tap interface.
const TUN: &str = "/dev/net/tun";
/// The most bytes of the table of interfaces that are read, and the most interfaces that are told.
const BYTES: u64 = 1 << 20;
const MOST: usize = 64;

/// A tap interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::diagnosis) struct TapLook {
    pub(in crate::diagnosis) name: String,
    /// The packets that have come out of the process: its guest's own, and QEMU's announcements.
    pub(in crate::diagnosis) sent: u64,
}

/// The tap interfaces of the process whose folder this is.
pub(super) fn taps(root: &Path) -> Vec<TapLook> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(root.join("fd")).into_iter().flatten().flatten().take(DESCRIPTORS) {
        if fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(TUN)) {
            let info = fs::read_to_string(root.join("fdinfo").join(entry.file_name())).unwrap_or_default();
            names.extend(interface(&info).map(str::to_owned));
        }
    }
    if names.is_empty() {
        return Vec::new();
    }
    let mut table = String::new();
    if let Ok(file) = File::open(root.join("net/dev")) {
        file.take(BYTES).read_to_string(&mut table).ok();
    }
    let tap = |name: String| Some(TapLook { sent: received(&table, &name)?, name });
    names.into_iter().take(MOST).filter_map(tap).collect()
}

/// The interface of a descriptor, by its `fdinfo`.
fn interface(info: &str) -> Option<&str> {
    let name = info.lines().find_map(|line| line.strip_prefix("iff:"))?.trim();
    Some(name).filter(|name| !name.is_empty() && !name.contains(char::is_control))
}

/// The packets that the host has received from an interface, by `/proc/net/dev`.
fn received(table: &str, interface: &str) -> Option<u64> {
    let row = table.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    row.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_named_and_its_packets_are_counted() {
        let info = "pos:\t100\nflags:\t0104002\nmnt_id:\t24\nino:\t105\niff:\tvnet1\n\n";
        assert_eq!(interface(info), Some("vnet1"));
        assert_eq!(interface("pos:\t0\nflags:\t02\n"), None);
        // the table as Linux 6 writes it
        let table = "Inter-|   Receive                            |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n    \
            lo: 1296       8    0    0    0     0          0         0     1296       8    0\n \
            vnet1:     300       5    0    5    0     0          0         0      180       2    0\n\
            vnet10:0 0 0 0 0 0 0 0 0 0 0\n";
        assert_eq!(received(table, "vnet1"), Some(5));
        assert_eq!(received(table, "vnet10"), Some(0));
        assert_eq!((received(table, "vnet"), received(table, "vnet2")), (None, None));
        assert_eq!(taps(Path::new("/proc/self")), []);
    }
}
