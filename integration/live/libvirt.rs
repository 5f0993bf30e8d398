//! `qferry diagnose` through the command `virsh`.

mod stalls;

use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A `virsh` that does what a shell script says, in a folder of its own.
fn stand_in(script: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let virsh = folder.path().join("virsh");
    fs::write(&virsh, format!("#!/bin/sh\nhere=$(dirname \"$0\")\n{script}\n")).unwrap();
    fs::set_permissions(&virsh, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// What `qferry diagnose` says with the `virsh` of a folder: the exit code and the last object on stdout.
fn diagnosed(virsh: &Path, arguments: &[&str]) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
    let path = format!("{}:/usr/bin:/bin", virsh.display());
    let output =
        command.args(["diagnose", "--json", "--for", "3s"]).args(arguments).env("PATH", path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), serde_json::from_str(last).unwrap())
}

#[test]
fn each_way_that_is_barred_is_one_sentence_with_its_remedy() {
    let refusing = |words: &str| stand_in(&format!("echo 'error: {words}' >&2; exit 1"));
    let empty = tempfile::tempdir().unwrap();
    let (exit, told) = diagnosed(empty.path(), &["virsh:no-such-domain"]);
    // a machine of a developer may have the command
    let installed = ["/usr/bin/virsh", "/bin/virsh"].iter().any(|path| Path::new(path).exists());
    assert!(exit == 1 && (installed || told["message"].as_str().unwrap().contains("libvirt-clients")), "{told}");
    for (words, part) in [
        ("failed to get domain 'no-such-domain'", "virsh -c qemu:///system list"),
        ("failed to connect to the hypervisor", "see that its daemon runs"),
    ] {
        let (exit, told) = diagnosed(refusing(words).path(), &["virsh:qemu:///system/no-such-domain"]);
        assert_eq!((exit, told["type"].as_str()), (1, Some("error")), "{told}");
        assert!(told["message"].as_str().unwrap().contains(part), "{told}");
    }
    let locked = "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatch)";
    let (exit, told) = diagnosed(refusing(locked).path(), &["virsh:qemu:///system/no-such-domain"]);
    assert_eq!((exit, told["causes"][0]["code"].as_str()), (10, Some("monitor-unresponsive")), "{told:#}");
    assert!(told["causes"][0]["evidence"].to_string().contains("held by monitor=remoteDispatch"), "{told:#}");
    assert!(told["notes"].to_string().contains("custom-monitor"), "{told:#}");
}

#[test]
fn a_virsh_that_hangs_is_killed_and_the_name_of_a_domain_is_no_command() {
    let hangs = stand_in("printf '%s\\n' \"$@\" >> \"$here/words\"; echo $$ >> \"$here/pids\"; exec sleep 1000");
    let begun = Instant::now();
    let (exit, told) = diagnosed(hangs.path(), &["virsh:qemu:///system/--help; touch x'y"]);
    assert_eq!((exit, told["causes"][0]["code"].as_str()), (10, Some("monitor-unresponsive")), "{told:#}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let words = fs::read_to_string(hangs.path().join("words")).unwrap();
    let asked = "-q\n-c\nqemu:///system\n--\nqemu-monitor-command --domain '--help; touch x'\\''y' '{";
    assert!(words.starts_with(asked), "{words}");
    let pids = fs::read_to_string(hangs.path().join("pids")).unwrap();
    assert!(pids.lines().count() >= 2, "{pids}");
    for pid in pids.lines() {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!command.contains("sleep"), "{pid} still runs {command}");
    }
}
