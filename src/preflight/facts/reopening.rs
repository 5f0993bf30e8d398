//! Whether a QEMU of this host could open anew an image that it has open for writing: by the image's name, and with
//! the rights that QEMU has now. Both may have changed since QEMU opened the image: files are renamed, removed and
//! replaced, and QEMU gives up rights once it has started (`-runas`, `-run-with user=`).
//!
//! QEMU opens an image anew when it gives up the guest or takes it, where the image's node has `auto-read-only`, as
//! every `-drive` has. No answer of QEMU tells of that option; only the command line does.

use super::files::{self, OpenFiles};
use crate::{endpoint::ProcessCredentials, qemu::reply::BlockNode, storage::model::chain::file_name};
use rustix::{fs::getxattr, io::Errno};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, Metadata},
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The facts of one side, by QEMU's names for its images. What this host does not tell is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReopenFacts {
    /// The images that QEMU could not open anew, with what is in the way.
    pub hindered: BTreeMap<String, ReopenHindrance>,
    /// The images that QEMU keeps open, by its command line.
    pub kept_open: BTreeSet<String>,
}

/// The reason why QEMU could not open an image anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReopenHindrance {
    /// No file has the image's name.
    NameGone,
    /// Another file has the image's name.
    NameTaken,
    /// The user that QEMU runs as may not open it.
    Denied {
        /// The user.
        user: u32,
        /// What that user may not do.
        what: String,
        /// Whether that user may open the image for reading.
        reads: bool,
    },
}

impl fmt::Display for ReopenHindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameGone => f.write_str("no file has its name any more"),
            Self::NameTaken => f.write_str("another file has its name"),
            Self::Denied { user, what, .. } => write!(f, "user {user}, as which QEMU runs, {what}"),
        }
    }
}

/// Looks at the images that a QEMU has open for writing, among all files that are `open` in it.
pub(super) fn look(pid: u32, nodes: &[BlockNode], open: &OpenFiles) -> ReopenFacts {
    let written = nodes.iter().filter(|node| files::is_protocol(node) && !node.ro).map(|node| file_name(&node.file));
    // a descriptor that QEMU was given has no name of its own to be opened by
    let names: BTreeSet<String> = written.filter(|name| !name.is_empty() && !name.starts_with("/dev/fd")).collect();
    if open.is_empty() || !sees_what_we_see(pid) {
        return ReopenFacts::default();
    }
    let credentials = ProcessCredentials::of(pid);
    let words = command_line(pid);
    let mut found = ReopenFacts::default();
    for name in names {
        let path = match name.starts_with('/') {
            true => PathBuf::from(&name),
            false => PathBuf::from(format!("/proc/{pid}/cwd")).join(&name),
        };
        let hindrance = match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // QEMU itself removes the name of the image that `snapshot=on` writes to, and keeps that image open
                (!is_temporary(&path)).then_some(ReopenHindrance::NameGone)
            }
            Err(_) => None,
            // a second look, for QEMU may be opening the file anew just now
            Ok(data) if !open.contains_key(&files::id(&data)) => {
                (!files::open_files(pid).contains_key(&files::id(&data))).then_some(ReopenHindrance::NameTaken)
            }
            Ok(data) => credentials.as_ref().and_then(|who| denial(&path, &data, who)),
        };
        if keeps_open(&words, &name) {
            found.kept_open.insert(name.clone());
        }
        found.hindered.extend(hindrance.map(|hindrance| (name, hindrance)));
    }
    found
}

/// Whether names mean the same files for a process as for this one: neither a container nor a chroot is between them.
fn sees_what_we_see(pid: u32) -> bool {
    let seen =
        |who: &str, what: &str| fs::metadata(format!("/proc/{who}/{what}")).map(|data| (data.dev(), data.ino())).ok();
    let is_same = |what| {
        let own = seen("thread-self", what);
        own.is_some() && own == seen(&pid.to_string(), what)
    };
    is_same("ns/mnt") && is_same("root")
}

/// Whether a name is one that QEMU makes up for the image of `snapshot=on`.
fn is_temporary(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("vl.") && name.len() == 9)
}

/// What a process may not do on its way to opening a file for reading and writing. An access control list says more
/// than the permission bits, so that nothing is known of a file that has one.
fn denial(path: &Path, file: &Metadata, who: &ProcessCredentials) -> Option<ReopenHindrance> {
    let denied = |what, reads| Some(ReopenHindrance::Denied { user: who.user, what, reads });
    let is_closed = |folder: &&Path| fs::metadata(folder).is_ok_and(|data| !who.may(&data, 0o1)) && !has_list(folder);
    if let Some(folder) = path.ancestors().skip(1).find(is_closed) {
        return denied(format!("may not enter the folder {}", folder.display()), false);
    }
    let (owner, group, mode) = (file.uid(), file.gid(), file.mode() & 0o7777);
    let what = format!("may not open it for reading and writing (owner {owner}, group {group}, mode {mode:o})");
    if who.may(file, 0o6) || has_list(path) { None } else { denied(what, who.may(file, 0o4)) }
}

/// Whether a file has an access control list.
fn has_list(path: &Path) -> bool {
    let mut list = [0; 512];
    match getxattr(path, "system.posix_acl_access", &mut list[..]) {
        Ok(length) => length > 0,
        Err(error) => error == Errno::RANGE,
    }
}

fn command_line(pid: u32) -> Vec<String> {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Whether a command line shows that QEMU keeps an image open: only `-blockdev` names it, and without `auto-read-only`.
fn keeps_open(words: &[String], image: &str) -> bool {
    let mut is_named = false;
    for pair in words.windows(2).filter(|pair| pair[1].contains(image)) {
        let plain = pair[1].replace(['"', ' '], "");
        let reopens = ["auto-read-only:true", "auto-read-only=on", "auto-read-only=yes", "auto-read-only=true"];
        if pair[0].trim_start_matches('-') != "blockdev" || reopens.iter().any(|word| plain.contains(word)) {
            return false;
        }
        is_named = true;
    }
    is_named
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(file: &Path) -> BlockNode {
        let image = json!({ "filename": file, "virtual-size": 1 });
        let node = json!({ "node-name": "n", "drv": "file", "file": file, "ro": false, "image": image });
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn names_that_lead_elsewhere_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let [path, temporary] = ["image", "vl.Ab12Cd"].map(|name| folder.path().join(name));
        let pid = std::process::id();
        let look = |path: &Path| look(pid, &[node(path)], &files::open_files(pid)).hindered.into_values().next();
        let open = fs::File::create(&path).unwrap();
        assert_eq!(look(&path), None);
        fs::rename(&path, folder.path().join("renamed")).unwrap();
        assert_eq!(look(&path), Some(ReopenHindrance::NameGone));
        fs::write(&path, "another").unwrap();
        assert_eq!(look(&path), Some(ReopenHindrance::NameTaken));
        fs::remove_file(&path).unwrap();
        fs::hard_link(folder.path().join("renamed"), &path).unwrap();
        assert_eq!(look(&path), None, "the name is back");
        let snapshot = fs::File::create(&temporary).unwrap();
        fs::remove_file(&temporary).unwrap();
        assert_eq!(look(&temporary), None, "QEMU has removed this name itself");
        assert_eq!(look(Path::new("/dev/fdset/1")), None);
        drop((open, snapshot));
    }

    #[test]
    fn rights_are_those_of_the_process() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, "").unwrap();
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let qemu = ProcessCredentials::read(
            "Uid:\t65534\t65534\t65534\t65534\nGid:\t65534\t65534\t65534\t65534\nCapEff:\t0\n",
        );
        let root = ProcessCredentials::read("Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n");
        for (inside, image, told) in [
            (0o755, 0o666, None),
            (0o755, 0o644, Some("mode 644")),
            (0o755, 0o600, Some("for reading and writing")),
            (0o700, 0o666, Some("may not enter the folder")),
        ] {
            chmod(folder.path(), inside);
            chmod(&path, image);
            let denied = denial(&path, &fs::metadata(&path).unwrap(), &qemu).map(|denied| denied.to_string());
            assert_eq!(denied.is_some(), told.is_some(), "{inside:o} {image:o}: {denied:?}");
            assert!(
                denied.zip(told).is_none_or(|(denied, told)| denied.contains("user 65534") && denied.contains(told))
            );
            assert_eq!(denial(&path, &fs::metadata(&path).unwrap(), &root), None);
        }
    }

    #[test]
    fn a_command_line_tells_what_is_kept_open() {
        for (line, kept) in [
            ("q -blockdev {\"driver\":\"file\",\"filename\":\"/a\"}", true),
            ("q -blockdev {\"driver\":\"file\",\"filename\":\"/a\",\"auto-read-only\":false}", true),
            ("q -blockdev {\"driver\":\"file\",\"filename\":\"/a\",\"auto-read-only\":true}", false),
            ("q -blockdev driver=file,node-name=n,filename=/a", true),
            ("q --blockdev driver=file,filename=/a,auto-read-only=on", false),
            ("q -drive if=none,file=/a", false),
            ("q -hda /a", false),
            ("q -blockdev {\"filename\":\"/a\"} -drive file=/a", false),
            ("q -S", false),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(keeps_open(&words, "/a"), kept, "{line}");
        }
    }
}
