//! The fence command. The engine knows this destination only as a monitor, so the command alone can prove that the
//! guest cannot run on it.
//!
//! Promise: fenced-by-command.

use crate::support::{WAIT, busy, judge_disks, qferry, qferry_within, spec, start};
use qferry_bed::{Deed, MonitorProxy, Pair, Side, Tape, nth};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command, time::Duration};

/// The limit for a switchover. The engine waits nearly half of that for a guest that does not arrive.
const SWITCHOVER: Duration = Duration::from_secs(30);

/// The fate of the destination when the source is told to hand the guest over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// The process is stopped before it has all of the guest, so the source cannot complete.
    Frozen,
    /// The monitor is unreachable. The destination receives the whole guest, and the source is stopped for good.
    CutOff,
}

/// A pair whose monitors are reached through proxies in this process, so that the engine knows no process of either
/// QEMU.
struct Scene {
    pair: Pair,
    tape: Tape,
    source: MonitorProxy,
    /// The socket of the destination's proxy.
    destination: PathBuf,
    folder: PathBuf,
    /// The destination's proxy, if the destination stays reachable.
    open: Option<MonitorProxy>,
}

impl Scene {
    fn set(lost: Lost) -> Self {
        let pair = start(&spec("10.0.13", busy()));
        pair.wait_for_writes(Side::Source, 5, WAIT).unwrap();
        let (folder, tape) = (pair.run_dir().with_file_name("fence"), Tape::default());
        fs::create_dir(&folder).unwrap();
        let source = MonitorProxy::start(Side::Source, folder.join("source"), pair.source.qmp_path(), &tape).unwrap();
        let mut scene = Self { destination: folder.join("destination"), pair, tape, source, folder, open: None };
        let (destination, pid) = (scene.reach_destination(), scene.pair.destination.pid());
        let closed = match lost {
            Lost::Frozen => scene.open.replace(destination),
            Lost::CutOff => Some(destination),
        };
        let lose = move || match closed {
            Some(closed) => drop(closed),
            None => kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::STOP).unwrap(),
        };
        scene.source.rule(nth(Side::Source, "migrate-continue", 1), lose, Deed::Pass);
        scene
    }

    fn reach_destination(&self) -> MonitorProxy {
        let qemu = self.pair.destination.qmp_path();
        MonitorProxy::start(Side::Destination, self.destination.clone(), qemu, &self.tape).unwrap()
    }

    /// Migrates with a fence command that notes its environment, and then runs this shell command.
    fn migrate(&self, fence: &str) -> (i32, Vec<Value>) {
        self.migrate_within(fence, SWITCHOVER)
    }

    /// The same with another limit for the switchover.
    fn migrate_within(&self, fence: &str, limit: Duration) -> (i32, Vec<Value>) {
        let script = self.script("command", fence);
        let mut command = qferry_within(&self.pair, "migrate", limit);
        command.arg("--json").arg("--source").arg(self.source.path()).arg("--destination").arg(&self.destination);
        command.arg("--journal").arg(self.journal()).arg("--fence-command").arg(script);
        // The engine cannot find out the host of these QEMUs, so the addresses are given.
        for channel in ["nbd", "migrate", "source-nbd"] {
            let path = self.folder.join(channel).display().to_string();
            command.args([format!("--{channel}-address"), format!("unix:{path}")]);
        }
        run(&mut command)
    }

    /// A fence command that notes its arguments, and then runs this shell command.
    fn script(&self, name: &str, fence: &str) -> PathBuf {
        let script = self.folder.join(name);
        let calls = self.calls_file().display().to_string();
        fs::write(&script, format!("#!/bin/sh\nprintf '%s\\n' \"$#\" \"$@\" >>'{calls}'\n{fence}\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
        script
    }

    fn journal(&self) -> PathBuf {
        self.folder.join("journal")
    }

    fn calls_file(&self) -> PathBuf {
        self.folder.join("calls")
    }

    /// The fence command was called once, for the destination, with a reason.
    fn judge_call(&self) {
        let calls = fs::read_to_string(self.calls_file()).unwrap();
        let why = "it does not answer, and must not run the guest that the source takes back";
        let address = format!("unix:{}", self.destination.display());
        assert_eq!(calls.lines().collect::<Vec<_>>(), ["3", "destination", &address, why]);
    }
}

/// The exit code and all lines of output; the outcome is the last.
fn run(command: &mut Command) -> (i32, Vec<Value>) {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!lines.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), lines)
}

/// A shell command that kills a process, and ends once that process is dead. (The bed collects the process.)
fn kills(pid: u32) -> String {
    format!(
        "kill -KILL {pid}\nwhile grep -qs '^State:[[:space:]]*[^ZX[:space:]]' /proc/{pid}/status; do sleep 0.02; done"
    )
}

/// Whether the guest resumed on a side after its last STOP there.
fn has_resumed(pair: &Pair, side: Side) -> bool {
    let events = pair.machine(side).events().unwrap();
    let last = events.iter().rfind(|event| ["STOP", "RESUME"].contains(&event.name.as_str()));
    last.is_some_and(|event| event.name == "RESUME")
}

#[test]
fn a_destination_that_the_fence_command_ended_gives_the_guest_back() {
    for lost in [Lost::Frozen, Lost::CutOff] {
        let scene = Scene::set(lost);
        let pair = &scene.pair;
        let (code, lines) = scene.migrate(&kills(pair.destination.pid()));
        let outcome = lines.last().unwrap();
        assert_eq!(
            (code, outcome["outcome"].as_str(), outcome["runs_on"].as_str()),
            (4, Some("rolled-back"), Some("source")),
            "{lost:?}: {lines:#?}"
        );
        scene.judge_call();
        pair.destination.wait_for_end(WAIT).unwrap();
        assert_eq!(pair.runners().unwrap(), [Side::Source], "{lost:?}");
        assert_eq!(pair.source.leftovers().unwrap(), Vec::<String>::new(), "{lost:?}: {outcome:#}");
        pair.wait_for_writes(Side::Source, 5, WAIT).unwrap();
        pair.wait_until_verified(WAIT).unwrap();
        judge_disks(pair, Side::Source);
    }
}

#[test]
fn a_fence_command_that_fails_resumes_nobody() {
    for lost in [Lost::Frozen, Lost::CutOff] {
        let scene = Scene::set(lost);
        let pair = &scene.pair;
        let (code, lines) = scene.migrate("exit 1");
        let outcome = lines.last().unwrap();
        assert_eq!(
            (code, outcome["outcome"].as_str(), outcome["runs_on"].as_str()),
            (7, Some("undetermined"), Some("unknown")),
            "{lost:?}: {lines:#?}"
        );
        scene.judge_call();
        let find_out = "make sure that its process is gone, then resume the source with migrate_cancel or cont";
        assert!(outcome["reason"]["message"].as_str().unwrap().contains(find_out), "{lost:?}: {outcome:#}");
        assert!(lines.iter().any(|line| line["code"] == "not-fenced"), "{lost:?}: {lines:#?}");
        // No guest resumes by itself either when the destination answers again.
        if lost == Lost::Frozen {
            assert!(!has_resumed(pair, Side::Source));
            pair.destination.continue_process().unwrap();
        }
        pair.source.wait_for_status("postmigrate", WAIT).unwrap();
        pair.destination.wait_for_status("paused", WAIT).unwrap();
        assert_eq!([Side::Source, Side::Destination].map(|side| has_resumed(pair, side)), [false; 2], "{lost:?}");
        // The destination can be asked again, and has the guest.
        let again = (lost == Lost::CutOff).then(|| scene.reach_destination());
        let (code, lines) = run(qferry(pair, "recover").arg("--json").arg(scene.journal()));
        drop(again);
        assert_eq!((code, lines.last().unwrap()["runs_on"].as_str()), (0, Some("destination")), "{lost:?}: {lines:#?}");
        scene.judge_call();
        pair.source.wait_for_end(WAIT).unwrap();
        assert_eq!(pair.runners().unwrap(), [Side::Destination], "{lost:?}");
        pair.wait_for_writes(Side::Destination, 5, WAIT).unwrap();
        pair.wait_until_verified(WAIT).unwrap();
        judge_disks(pair, Side::Destination);
    }
}

#[test]
fn a_fence_command_has_a_time_of_its_own() {
    // Three tenths of the switchover's limit were less than the command takes.
    let scene = Scene::set(Lost::Frozen);
    let pair = &scene.pair;
    let fence = format!("sleep 5\n{}", kills(pair.destination.pid()));
    let (code, lines) = scene.migrate_within(&fence, Duration::from_secs(12));
    let outcome = lines.last().unwrap();
    assert_eq!((code, outcome["runs_on"].as_str()), (4, Some("source")), "{lines:#?}");
    scene.judge_call();
    pair.destination.wait_for_end(WAIT).unwrap();
    assert_eq!(pair.runners().unwrap(), [Side::Source]);
}

#[test]
fn a_recovery_fences_a_destination_that_was_never_started() {
    let scene = Scene::set(Lost::CutOff);
    let pair = &scene.pair;
    let (code, lines) = scene.migrate_within("exit 1", Duration::from_secs(12));
    assert_eq!((code, lines.last().unwrap()["runs_on"].as_str()), (7, Some("unknown")), "{lines:#?}");
    let script = scene.script("another", &kills(pair.destination.pid()));
    let mut command = qferry(pair, "recover");
    command.arg("--json").arg(scene.journal()).arg("--fence-command").arg(script);
    let (code, lines) = run(&mut command);
    assert_eq!((code, lines.last().unwrap()["runs_on"].as_str()), (4, Some("source")), "{lines:#?}");
    pair.destination.wait_for_end(WAIT).unwrap();
    assert_eq!(pair.runners().unwrap(), [Side::Source]);
    assert_eq!(pair.source.leftovers().unwrap(), Vec::<String>::new());
}

/// The requests of the guest's devices that QEMU has counted on the destination.
fn requests(pair: &Pair) -> u64 {
    let devices = pair.destination.qmp("query-blockstats", &json!({})).unwrap();
    let count = |device: &Value| {
        let kinds = ["rd_operations", "wr_operations", "flush_operations"];
        kinds.iter().map(|kind| device["stats"][kind].as_u64().unwrap()).sum::<u64>()
    };
    devices.as_array().unwrap().iter().map(count).sum()
}

/// A person finishes a handover, and the guest's owner pauses the guest then.
#[test]
fn a_guest_that_its_owner_paused_on_the_destination_stays_paused() {
    let scene = Scene::set(Lost::CutOff);
    let pair = &scene.pair;
    let (code, lines) = scene.migrate_within("exit 1", Duration::from_secs(12));
    assert_eq!((code, lines.last().unwrap()["runs_on"].as_str()), (7, Some("unknown")), "{lines:#?}");
    pair.destination.wait_for_status("paused", WAIT).unwrap();
    assert_eq!(requests(pair), 0, "neither the mirror nor the load counts as a request of the guest");
    pair.destination.qmp("cont", &json!({})).unwrap();
    pair.wait_for_writes(Side::Destination, 5, WAIT).unwrap();
    pair.destination.qmp("stop", &json!({})).unwrap();
    assert!(requests(pair) > 0);
    let again = scene.reach_destination();
    let (code, lines) = run(qferry(pair, "recover").arg("--json").arg(scene.journal()));
    drop(again);
    assert_eq!((code, lines.last().unwrap()["runs_on"].as_str()), (0, Some("destination")), "{lines:#?}");
    pair.source.wait_for_end(WAIT).unwrap();
    assert_eq!(pair.destination.status().unwrap(), "paused", "{lines:#?}");
    assert!(!has_resumed(pair, Side::Destination), "{lines:#?}");
    pair.destination.qmp("cont", &json!({})).unwrap();
    pair.wait_for_writes(Side::Destination, 5, WAIT).unwrap();
    judge_disks(pair, Side::Destination);
}
