//! The process of a domain of libvirt's, found without asking libvirt, whose answer may hang with QEMU's.
//!
//! Reads libvirt's pid files and the command lines of processes, and takes part in nothing else.

use super::virsh_domain::VirshDomain;
use std::{
    env,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

/// The most processes whose command lines are read, and the most bytes of each.
const PROCESSES: usize = 65_536;
const COMMAND_LINE: u64 = 256 << 10;

/// The pid of the QEMU of a domain that a daemon of this host has.
pub(super) fn find(domain: &VirshDomain) -> Option<u32> {
    if !domain.is_local() {
        return None;
    }
    let named = |pid: &u32| command_line(*pid).is_some_and(|words| is_of(&words, domain.name()));
    let files = pid_files(domain, env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
    let by_file = files.iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).find(named);
    by_file.or_else(|| {
        let mut found = processes().filter(named);
        // two daemons may have a domain of one name, as both ends of a migration do
        found.next().filter(|_| found.next().is_none())
    })
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten().take(PROCESSES);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn command_line(pid: u32) -> Option<Vec<String>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/cmdline")).ok()?.take(COMMAND_LINE).read_to_end(&mut bytes).ok()?;
    Some(bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

/// Where a daemon of this host writes the pid of a domain's QEMU.
fn pid_files(domain: &VirshDomain, runtime: Option<PathBuf>) -> Vec<PathBuf> {
    let file = format!("{}.pid", domain.name());
    if let Some(root) = domain.parameter("root") {
        return vec![Path::new(root).join("run/qemu").join(file)];
    }
    // a daemon with a socket of its own has its files beside it
    let beside = domain.parameter("socket").and_then(|socket| Path::new(socket).parent());
    let beside = beside.map(Path::to_path_buf).into_iter();
    let session = runtime.map(|runtime| runtime.join("libvirt"));
    let daemons = beside.chain([PathBuf::from("/run/libvirt")]).chain(session);
    daemons.flat_map(|folder| ["qemu", "qemu/run"].map(|below| folder.join(below).join(&file))).collect()
}

/// Whether a command line is that of a domain's QEMU: `-name guest=NAME,...`, or `-uuid` where the domain is called so.
fn is_of(words: &[String], name: &str) -> bool {
    let value = |option: &str| words.iter().position(|word| word == option).and_then(|at| words.get(at + 1));
    // QEMU's options write a comma within a value twice
    let written = format!("guest={}", name.replace(',', ",,"));
    let guest = value("-name")
        .and_then(|value| value.strip_prefix(&written))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(',') && !rest.starts_with(",,"));
    guest || value("-uuid").is_some_and(|uuid| uuid.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_known_by_its_command_line() {
        let of = |name: &str, uuid: &str| ["qemu", "-name", name, "-uuid", uuid].map(str::to_owned);
        for (name, domain, expected) in [
            ("guest=vm1,debug-threads=on", "vm1", true),
            ("guest=vm1", "vm1", true),
            ("guest=vm10,debug-threads=on", "vm1", false),
            ("guest=a,,b,debug-threads=on", "a,b", true),
            ("guest=a,,b,debug-threads=on", "a", false),
            ("vm1", "vm1", false),
            ("guest=vm1", "6D6F0A6C", true),
        ] {
            assert_eq!(is_of(&of(name, "6d6f0a6c"), domain), expected, "{name} {domain}");
        }
        assert!(!is_of(&["-name".to_owned()], "vm1") && !is_of(&[], "vm1"));
    }

    #[test]
    fn pid_files_are_where_the_daemon_of_the_uri_has_them() {
        let files = |text: &str| {
            let domain = VirshDomain::parse(text).expect("a domain");
            let files = pid_files(&domain, Some("/run/user/7".into()));
            files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(files("qemu:///system/vm")[0], "/run/libvirt/qemu/vm.pid");
        assert!(files("vm").contains(&"/run/user/7/libvirt/qemu/run/vm.pid".to_owned()));
        assert_eq!(files("qemu:///session/vm?socket=/a/libvirt-sock")[1], "/a/qemu/run/vm.pid");
        assert_eq!(files("qemu:///embed/vm?root=/srv"), ["/srv/run/qemu/vm.pid"]);
        let elsewhere = VirshDomain::parse("qemu+ssh://host/system/vm").expect("a domain");
        assert_eq!(find(&elsewhere), None);
    }
}
