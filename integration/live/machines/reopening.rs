//! Images that a QEMU has open and could not open anew: renamed, removed, replaced, or of another user. QEMU would open
//! them anew at the handover, after everything was copied. The guests are paused, and have run nothing but firmware.

use super::left_behind::{Folder, ask, of, paused, waiting};
use super::{Bare, Severity, found};
use crate::support::migrate;
use qferry::internals::{
    endpoint::Address,
    migration::{Builder, JournalPlace, Migration},
    progress::{Ending, RunsOn},
};
use serde_json::json;
use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown},
};

const DRIVE: &str = "-drive if=none,id=d,format=qcow2,file=@ -device virtio-blk-pci,drive=d,id=disk0";
const BLOCKDEV: &str =
    "-blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=@ -device virtio-blk-pci,drive=n,id=disk0";
const REOPENED: &str = "-blockdev driver=qcow2,node-name=n,file.driver=file,file.auto-read-only=on,file.filename=@ -device virtio-blk-pci,drive=n,id=disk0";

/// The images of both sides, and the arguments of each machine.
fn images(version: &str, machine: &str) -> (Folder, [String; 2]) {
    let at = Folder::new(version);
    let arguments = ["source", "destination"].map(|side| {
        at.img(&["create", "-q", "-f", "qcow2", &format!("@{side}"), "4M"]);
        machine.replace('@', &at.path(side).display().to_string())
    });
    (at, arguments)
}

#[test]
fn an_image_that_lost_its_name_is_found_on_both_sides() {
    let rename = |at: &Folder, side: &str| fs::rename(at.path(side), at.path("elsewhere")).unwrap();
    let remove = |at: &Folder, side: &str| fs::remove_file(at.path(side)).unwrap();
    let replace = |at: &Folder, side: &str| {
        fs::copy(at.path(side), at.path("copy")).unwrap();
        fs::rename(at.path("copy"), at.path(side)).unwrap();
    };
    type Act<'a> = &'a dyn Fn(&Folder, &str);
    let rows: [(&str, &str, &str, Act<'_>, Severity, &str); 7] = [
        ("7.2", DRIVE, "source", &remove, Severity::Blocker, "no file has its name"),
        ("11.1", DRIVE, "source", &replace, Severity::Blocker, "another file has its name"),
        ("10.0.13", REOPENED, "source", &rename, Severity::Blocker, "no file has its name"),
        ("10.0.13", BLOCKDEV, "source", &remove, Severity::Warning, "no file has its name"),
        ("11.1", BLOCKDEV, "source", &replace, Severity::Warning, "another file has its name"),
        ("7.2", BLOCKDEV, "destination", &remove, Severity::Blocker, "no file has its name"),
        ("10.0.13", DRIVE, "destination", &replace, Severity::Blocker, "another file has its name"),
    ];
    for (version, machine, side, act, severity, words) in rows {
        let what = format!("{version} {machine}: {side}, {words}");
        let (at, arguments) = images(version, machine);
        let (source, destination) = (paused(version, &arguments[0]), waiting(version, &arguments[1]));
        let code = if severity == Severity::Blocker { "image-replaced" } else { "image-name-lost" };
        let before = found(&source, &destination, &[]);
        assert!(before.iter().all(|finding| !finding.code.as_str().starts_with("image-")), "{what}: {before:#?}");
        act(&at, side);
        let findings = found(&source, &destination, &[]);
        let told = of(&findings, code);
        assert_eq!(told.iter().map(|one| one.severity).collect::<Vec<_>>(), [severity], "{what}: {findings:#?}");
        assert!(told[0].message.contains(words) && told[0].message.contains(side), "{what}: {}", told[0]);
        let outcome = at.migrate(&source, &destination);
        let ending = if severity == Severity::Blocker { Ending::Refused } else { Ending::Moved };
        assert_eq!(outcome.outcome, ending, "{what}: {outcome:#?}");
        // The remedy: the image gets its name back.
        if at.path("elsewhere").exists() {
            fs::rename(at.path("elsewhere"), at.path(side)).unwrap();
            assert_eq!(at.migrate(&source, &destination).outcome, Ending::Moved, "{what}");
        }
    }
}

/// A QEMU that has given up root's rights may not open its image anew. Where the source opens images anew, that is
/// refused with a remedy that helps; by force the guest goes back, late and unharmed.
#[test]
fn an_image_of_another_user_is_found_before_anything() {
    const NOBODY: u32 = 65534;
    for (version, user) in
        [("7.2", "-runas nobody"), ("10.0.13", "-run-with user=nobody"), ("11.1", "-run-with user=nobody")]
    {
        let (at, arguments) = images(version, DRIVE);
        let [run, own] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for path in [at.path(""), run.path().to_owned(), at.path("destination")] {
            chown(path, Some(NOBODY), None).unwrap();
        }
        let between = |source: &Bare, destination: &Bare| -> Builder {
            let address = |bare: &Bare| Address::unix(bare.qmp_path()).unwrap();
            let socket = |name: &str| Address::unix(run.path().join(name)).unwrap();
            let builder = Migration::builder(address(source), address(destination)).journal(JournalPlace::Nowhere);
            builder.runtime_dir(own.path()).addresses(socket("nbd"), socket("ram"))
        };
        let is_readable = version == "7.2";
        let mode = if is_readable { 0o644 } else { 0o600 };
        fs::set_permissions(at.path("source"), Permissions::from_mode(mode)).unwrap();
        let source = paused(version, &format!("{} {user}", arguments[0]));
        let destination = waiting(version, &format!("{} {user}", arguments[1]));
        let refused = migrate(between(&source, &destination));
        let reason = refused.reason.as_ref().unwrap_or_else(|| panic!("{refused:#?}"));
        let image = at.path("source").display().to_string();
        let end = if is_readable { "could not take it back" } else { "after everything was copied" };
        let words = ["user 65534", &image, "owner 0", end, &format!("chown 65534 {image}")];
        assert_eq!((refused.outcome, reason.code.as_str()), (Ending::Refused, "reopen-denied"), "{version}");
        assert!(words.iter().all(|word| reason.message.contains(word)), "{version}: {}", reason.message);
        if version == "10.0.13" {
            let forced = migrate(between(&source, &destination).force("reopen-denied"));
            assert_eq!((forced.outcome, forced.runs_on), (Ending::RolledBack, RunsOn::Source), "{forced:#?}");
            assert_eq!(ask(&source, "query-status", &json!({}))["status"], "paused");
            continue;
        }
        chown(at.path("source"), Some(NOBODY), None).unwrap();
        let outcome = migrate(between(&source, &destination));
        assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Moved, RunsOn::Destination), "{version}: {outcome:#?}");
    }
}
