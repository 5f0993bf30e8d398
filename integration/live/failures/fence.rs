//! A destination that the engine knows only as a monitor: whether it can run the guest, the user's fence command alone
//! can say.

use crate::support::{WAIT, busy, judge_disks, qferry, qferry_within, spec, start};
use qferry_bed::{Deed, MonitorProxy, Pair, Side, Tape, nth};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command, time::Duration};

/// How long a switchover may take. Nearly half of it is waited for each guest that does not arrive.
const SWITCHOVER: Duration = Duration::from_secs(30);

/// What becomes of the destination as the source is told to pass the guest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// It is stopped, before it has all of the guest: the source cannot come to an end.
    Frozen,
    /// Its monitor is, and nobody listens there any more: it takes the whole guest, and the source stands for good.
    CutOff,
}

/// A pair whose monitors are reached through this process, which is no QEMU: so the engine can end neither.
struct Scene {
    pair: Pair,
    tape: Tape,
    source: MonitorProxy,
    /// Where the destination's proxy listens.
    destination: PathBuf,
    folder: PathBuf,
    /// That proxy, where the way to the destination stays open.
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

    /// Migrates with a fence command that does this after it has noted what it was told.
    fn migrate(&self, fence: &str) -> (i32, Vec<Value>) {
        let script = self.folder.join("command");
        let calls = self.calls_file().display().to_string();
        fs::write(&script, format!("#!/bin/sh\nprintf '%s\\n' \"$#\" \"$@\" >>'{calls}'\n{fence}\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
        let mut command = qferry_within(&self.pair, "migrate", SWITCHOVER);
        command.arg("--json").arg("--source").arg(self.source.path()).arg("--destination").arg(&self.destination);
        command.arg("--journal").arg(self.journal()).arg("--fence-command").arg(script);
        // what cannot be known to be of this host has its channels named
        for channel in ["nbd", "migrate", "source-nbd"] {
            let path = self.folder.join(channel).display().to_string();
            command.args([format!("--{channel}-address"), format!("unix:{path}")]);
        }
        run(&mut command)
    }

    fn journal(&self) -> PathBuf {
        self.folder.join("journal")
    }

    fn calls_file(&self) -> PathBuf {
        self.folder.join("calls")
    }

    /// The command was called once, for the destination, and told why.
    fn judge_call(&self) {
        let calls = fs::read_to_string(self.calls_file()).unwrap();
        let why = "it does not answer, and must not run the guest that the source takes back";
        let address = format!("unix:{}", self.destination.display());
        assert_eq!(calls.lines().collect::<Vec<_>>(), ["3", "destination", &address, why]);
    }
}

/// The exit code and all lines, the outcome last.
fn run(command: &mut Command) -> (i32, Vec<Value>) {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!lines.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), lines)
}

/// Kills a process, and ends when that runs nothing any more: it is the bed's to collect.
fn kills(pid: u32) -> String {
    format!(
        "kill -KILL {pid}\nwhile grep -qs '^State:[[:space:]]*[^ZX[:space:]]' /proc/{pid}/status; do sleep 0.02; done"
    )
}

/// Whether the guest was resumed on a side after it was last stopped there.
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
        let find_out = "make sure that its process is gone, then let the source go on with migrate_cancel or cont";
        assert!(outcome["reason"]["message"].as_str().unwrap().contains(find_out), "{lost:?}: {outcome:#}");
        assert!(lines.iter().any(|line| line["code"] == "not-fenced"), "{lost:?}: {lines:#?}");
        // nor does one go on by itself when the other one answers again
        if lost == Lost::Frozen {
            assert!(!has_resumed(pair, Side::Source));
            pair.destination.continue_process().unwrap();
        }
        pair.source.wait_for_status("postmigrate", WAIT).unwrap();
        pair.destination.wait_for_status("paused", WAIT).unwrap();
        assert_eq!([Side::Source, Side::Destination].map(|side| has_resumed(pair, side)), [false; 2], "{lost:?}");
        // now it can be known, and the guest was never lost
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
