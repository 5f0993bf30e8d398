//! The rights of a process of this host: over files, and over the page faults of its own memory.
//!
//! Owns the reading of `/proc/PID/status`, and the classic permission bits. The file must never open what it judges.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
};

/// The rights of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProcessCredentials {
    pub(crate) user: u32,
    groups: Vec<u32>,
    /// The capability `CAP_DAC_OVERRIDE`: permission bits do not count.
    overrides: bool,
    /// The capability `CAP_SYS_PTRACE`.
    traces: bool,
}

impl ProcessCredentials {
    /// The rights of a process; `None` where this host does not tell.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Some(Self::read(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?))
    }

    /// Reads `/proc/PID/status`: the last of each four ids is the one that counts for files.
    pub(crate) fn read(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().split_whitespace().collect::<Vec<_>>()
        };
        let number = |text: &&str| text.parse::<u32>().ok();
        let mut groups: Vec<u32> = field("Groups").iter().filter_map(number).collect();
        groups.extend(field("Gid").last().and_then(number));
        let capabilities = field("CapEff").first().and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
        Self {
            user: field("Uid").last().and_then(number).unwrap_or(u32::MAX),
            groups,
            overrides: capabilities & (1 << 1) != 0,
            traces: capabilities & (1 << 19) != 0,
        }
    }

    /// Whether the process may do what only this user may.
    pub(crate) fn acts_for(&self, user: u32) -> bool {
        self.overrides || self.user == user
    }

    /// The group that the process makes files with.
    pub(crate) fn group(&self) -> Option<u32> {
        // `read` puts the group itself behind the others
        self.groups.last().copied()
    }

    /// Whether the process may use a file of this mode and these owners so. The classic permission bits decide: the
    /// first of owner, group and others that fits counts.
    pub(crate) fn may_use(&self, mode: u32, user: u32, group: u32, right: u32) -> bool {
        let bit = match () {
            () if self.overrides => return true,
            () if self.user == user => right << 6,
            () if self.groups.contains(&group) => right << 3,
            () => right,
        };
        mode & bit == bit
    }

    /// Whether the process may use a file so: 2 to write, 1 to enter a folder, 6 to read and write.
    pub(crate) fn may(&self, file: &Metadata, right: u32) -> bool {
        self.may_use(file.mode(), file.uid(), file.gid(), right)
    }

    /// Whether the kernel lets the process catch the page faults of system calls, too, as postcopy must: for everybody,
    /// by a capability, or through a device file, which QEMU 8.0 and later opens.
    pub(crate) fn catches_faults(&self) -> Option<bool> {
        let unprivileged = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").ok()?;
        let opens = fs::metadata("/dev/userfaultfd").is_ok_and(|device| self.may(&device, 0o6));
        Some(may_catch_faults(&unprivileged, self.traces, opens))
    }
}

fn may_catch_faults(unprivileged: &str, traces: bool, opens: bool) -> bool {
    unprivileged.trim() == "1" || traces || opens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_write() {
        let status =
            "Name:\tqemu\nUid:\t107\t107\t107\t107\nGid:\t36\t36\t36\t36\nGroups:\t11 36 \nCapEff:\t0000000000000000\n";
        let qemu = ProcessCredentials::read(status);
        let read = ProcessCredentials { user: 107, groups: vec![11, 36, 36], overrides: false, traces: false };
        assert_eq!(qemu, read);
        let root = ProcessCredentials::read("Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n");
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
            assert_eq!(qemu.may_use(mode, user, group, 0o2), may, "{mode:o} {user} {group}");
            assert!(root.may_use(mode, user, group, 0o2));
        }
        assert!(!ProcessCredentials::read("").may_use(0o600, 107, 0, 0o2), "nothing is known of it");
    }

    #[test]
    fn page_faults_are_caught_by_any_of_three_rights() {
        for (unprivileged, traces, opens, may) in [
            ("0\n", false, false, false),
            ("1\n", false, false, true),
            ("0\n", true, false, true),
            ("0\n", false, true, true),
        ] {
            assert_eq!(may_catch_faults(unprivileged, traces, opens), may);
        }
    }
}
