//! What is left alone: a QEMU that took no part, a guest that a person handed over, and a side whose monitor closed.

mod launchers;

use super::{
    bare::Bare,
    support::{WAIT, qferry, start},
};
use qferry_bed::{Build, Deed, MonitorProxy, Pair, Side, Spec, Tape, nth};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// So slow that RAM and disks take seconds, also where they are nearly empty.
const SLOW: [&str; 2] = ["--bandwidth", "200KiB/s"];

/// A pair without a guest system, and how the command reaches its monitors.
struct Scene {
    pair: Pair,
    folder: PathBuf,
    addresses: [String; 2],
}

impl Scene {
    fn new(addresses: impl FnOnce(&Pair, &PathBuf) -> [String; 2]) -> Self {
        let pair = start(&Spec { tcp: true, ..Spec::quick() });
        let folder = pair.run_dir().with_file_name("scene");
        fs::create_dir(&folder).unwrap();
        let addresses = addresses(&pair, &folder);
        Self { pair, folder, addresses }
    }

    /// Each QEMU is known by a TCP port alone, as one of another host is.
    fn of_ports() -> Self {
        Self::new(|pair, _| {
            [&pair.source, &pair.destination].map(|machine| format!("tcp:127.0.0.1:{}", machine.qmp_port().unwrap()))
        })
    }

    /// Each QEMU is a process of this host.
    fn of_processes() -> Self {
        Self::new(|pair, _| [&pair.source, &pair.destination].map(|machine| machine.qmp_path().display().to_string()))
    }

    fn migrate(&self, more: &[&str]) -> Command {
        let [source, destination] = &self.addresses;
        let mut command = qferry(&self.pair, "migrate");
        command.args(["--json", "--verify-backing", "off", "--source", source, "--destination", destination]);
        command.arg("--journal").arg(self.folder.join("journal")).args(more);
        for channel in ["nbd", "migrate"] {
            let path = self.folder.join(channel).display().to_string();
            command.args([format!("--{channel}-address"), format!("unix:{path}")]);
        }
        command
    }

    /// Kills the engine with SIGKILL when it begins a phase; in `memory` once RAM is sent.
    fn kill_engine_at(&self, phase: &str, more: &[&str]) {
        let mut child = self.migrate(more).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let begins = |line: &Value| match phase {
            "memory" => line["type"] == "memory",
            _ => line["phase"] == phase && line["state"] == "begin",
        };
        assert!(lines.any(|line| begins(&serde_json::from_str(&line.unwrap()).unwrap())), "{phase} never began");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn recover(&self) -> (i32, Value) {
        run(qferry(&self.pair, "recover").arg("--json").arg(self.folder.join("journal")))
    }

    /// Ends the QEMU of a side, and starts another one with a monitor at the same port.
    fn replace(&self, side: Side, more: &[&str]) -> Bare {
        let machine = self.pair.machine(side);
        let port = machine.qmp_port().unwrap();
        machine.kill().unwrap();
        machine.wait_for_end(WAIT).unwrap();
        let name = format!("other-{side}");
        let mut command = Command::new(Build::locate("10.0.13").unwrap().program("qemu-system-x86_64"));
        command.args(["-nodefaults", "-display", "none", "-machine", "pc,accel=tcg", "-m", "64M"]).args(more);
        command.stdin(Stdio::null()).arg("-qmp").arg(format!("tcp:127.0.0.1:{port},server=on,wait=off"));
        let watch = self.folder.join(format!("{name}.watch"));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", watch.display()));
        Bare::spawn(command, &self.folder, &name)
    }
}

/// The exit code and the outcome of a command.
fn run(command: &mut Command) -> (i32, Value) {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), serde_json::from_str(last).unwrap())
}

fn message(outcome: &Value) -> &str {
    outcome["reason"]["message"].as_str().unwrap()
}

fn leftovers(outcome: &Value) -> String {
    outcome["leftovers"].to_string()
}

/// Waits until a condition holds.
#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(20));
    }
}

fn migration(machine: &qferry_bed::Machine) -> String {
    let answer = machine.qmp("query-migrate", &json!({})).unwrap();
    answer["status"].as_str().unwrap_or("none").to_owned()
}

/// Promise: only-who-took-part.
#[test]
fn a_recovery_touches_no_other_qemu() {
    for phase in ["storage", "memory"] {
        let scene = Scene::of_ports();
        scene.kill_engine_at(phase, &SLOW);
        // One guest runs, by itself or after a migration that somebody else made; the other QEMU waits for a guest.
        let source = scene.replace(Side::Source, &[]);
        let destination = scene.replace(Side::Destination, &["-incoming", "defer", "-S"]);
        let run = if phase == "memory" {
            source.ask("migrate", &json!({"uri": format!("file:{}", scene.folder.join("saved").display())}));
            "postmigrate"
        } else {
            "running"
        };
        wait_until("the other guest", || source.status() == run);
        let (code, outcome) = scene.recover();
        let found = (code, outcome["outcome"].as_str(), outcome["runs_on"].as_str());
        assert_eq!(found, (7, Some("undetermined"), Some("unknown")), "{phase}: {outcome:#}");
        assert!(message(&outcome).contains("its vCPUs are the threads"), "{phase}: {outcome:#}");
        assert!(message(&outcome).contains("another QEMU answers at the source's address"), "{phase}: {outcome:#}");
        assert_eq!((source.status().as_str(), destination.status().as_str()), (run, "inmigrate"), "{phase}");
    }
}

#[test]
fn a_recovery_goes_back_beside_another_destination() {
    for phase in ["storage", "memory"] {
        let scene = Scene::of_ports();
        scene.kill_engine_at(phase, &SLOW);
        let other = scene.replace(Side::Destination, &["-incoming", "defer", "-S"]);
        let (code, outcome) = scene.recover();
        let found = (code, outcome["outcome"].as_str(), outcome["runs_on"].as_str());
        // What the engine made there went with the QEMU that is gone, but nothing proves that it is.
        assert_eq!(found, (6, Some("stuck"), Some("source")), "{phase}: {outcome:#}");
        assert!(leftovers(&outcome).contains("destination"), "{phase}: {outcome:#}");
        assert_eq!(scene.pair.source.status().unwrap(), "running", "{phase}");
        assert_eq!(scene.pair.source.leftovers().unwrap(), Vec::<String>::new(), "{phase}");
        assert_eq!(other.status(), "inmigrate", "{phase}");
    }
}

#[test]
fn a_recovery_leaves_the_destination_as_it_is_where_the_source_is_another() {
    let scene = Scene::of_ports();
    scene.kill_engine_at("storage", &SLOW);
    let other = scene.replace(Side::Source, &["-S"]);
    let (code, outcome) = scene.recover();
    assert_eq!((code, outcome["runs_on"].as_str()), (7, Some("unknown")), "{outcome:#}");
    assert!(leftovers(&outcome).contains("block export"), "{outcome:#}");
    assert_eq!(other.status(), "prelaunch");
    assert_eq!(scene.pair.destination.status().unwrap(), "inmigrate");
}

/// Finishes by hand what an engine had begun.
fn finish_by_hand(pair: &Pair) {
    let (source, destination) = (&pair.source, &pair.destination);
    source.qmp("migrate-set-parameters", &json!({"max-bandwidth": 1 << 30})).unwrap();
    source.wait_for_status("finish-migrate", WAIT).unwrap();
    wait_until("pre-switchover", || migration(source) == "pre-switchover");
    for job in source.qmp("query-block-jobs", &json!({})).unwrap().as_array().unwrap() {
        source.qmp("block-job-cancel", &json!({"device": job["device"]})).unwrap();
    }
    let is_settled = || {
        let jobs = source.qmp("query-jobs", &json!({})).unwrap();
        jobs.as_array().unwrap().iter().all(|job| job["status"] == "concluded")
    };
    wait_until("settled mirrors", is_settled);
    destination.qmp("nbd-server-stop", &json!({})).unwrap();
    source.qmp("migrate-continue", &json!({"state": "pre-switchover"})).unwrap();
    wait_until("completed", || migration(source) == "completed" && migration(destination) == "completed");
    destination.qmp("cont", &json!({})).unwrap();
    destination.wait_for_status("running", WAIT).unwrap();
}

/// Promise: ended-is-proved.
#[test]
fn a_guest_that_a_person_handed_over_is_not_ended() {
    for source_quits in [false, true] {
        let scene = Scene::of_processes();
        let pair = &scene.pair;
        scene.kill_engine_at("memory", &SLOW);
        finish_by_hand(pair);
        if source_quits {
            pair.source.qmp("quit", &json!({})).unwrap();
            pair.source.wait_for_end(WAIT).unwrap();
        }
        // Another client holds the monitor, so that the recovery can ask the destination nothing.
        let held = UnixStream::connect(pair.destination.qmp_path()).unwrap();
        let (code, outcome) = scene.recover();
        assert_eq!((code, outcome["outcome"].as_str()), (7, Some("undetermined")), "{source_quits}: {outcome:#}");
        assert!(pair.destination.alive().unwrap(), "{source_quits}: {outcome:#}");
        assert_eq!(pair.destination.status().unwrap(), "running", "{source_quits}: {outcome:#}");
        drop(held);
    }
}

/// A pair whose monitors are reached through proxies of this process, so that the engine knows no process.
fn behind_proxies() -> (Scene, MonitorProxy, MonitorProxy) {
    let scene = Scene::new(|_, folder| ["source", "destination"].map(|name| folder.join(name).display().to_string()));
    let tape = Tape::default();
    let proxy = |side: Side| {
        let path = scene.folder.join(side.to_string());
        MonitorProxy::start(side, path, scene.pair.machine(side).qmp_path(), &tape).unwrap()
    };
    let (source, destination) = (proxy(Side::Source), proxy(Side::Destination));
    (scene, source, destination)
}

/// Promise: closed-is-no-end.
#[test]
fn a_closed_monitor_of_the_destination_leaves_what_is_behind_it() {
    let (scene, source, destination) = behind_proxies();
    source.rule(nth(Side::Source, "drive-mirror", 1), move || drop(destination), Deed::Pass);
    let (code, outcome) = run(&mut scene.migrate(&SLOW));
    let found = (code, outcome["outcome"].as_str(), outcome["runs_on"].as_str());
    assert_eq!(found, (6, Some("stuck"), Some("source")), "{outcome:#}");
    assert!(leftovers(&outcome).contains("NBD server with a writable export"), "{outcome:#}");
    let exports = scene.pair.destination.qmp("query-block-exports", &json!({})).unwrap();
    assert_eq!(exports.as_array().unwrap().len(), 1, "it is open indeed");
    assert_eq!(scene.pair.source.status().unwrap(), "running");
}

/// Promise: closed-is-no-end.
#[test]
fn a_source_whose_monitor_closes_is_not_taken_for_gone() {
    let (scene, source, _destination) = behind_proxies();
    for time in [1, 2] {
        source.rule(nth(Side::Source, "quit", time), || (), Deed::CutBefore);
    }
    let (code, outcome) = run(&mut scene.migrate(&[]));
    assert_eq!((code, outcome["runs_on"].as_str()), (0, Some("destination")), "{outcome:#}");
    assert!(leftovers(&outcome).contains("its process, with the guest as it was"), "{outcome:#}");
    assert_eq!(scene.pair.source.status().unwrap(), "postmigrate");
    assert_eq!(scene.pair.destination.status().unwrap(), "running");
}

/// Promise: asked-before-ended.
#[test]
fn a_recovery_ends_no_destination_that_it_could_not_ask() {
    let scene = Scene::of_processes();
    let pair = &scene.pair;
    let pid = Pid::from_raw(i32::try_from(pair.destination.pid()).unwrap()).unwrap();
    scene.kill_engine_at("memory", &SLOW);
    kill_process(pid, Signal::STOP).unwrap();
    // RAM was still sent, so nothing was given: the way back ends no process that it could not ask.
    let (code, outcome) = scene.recover();
    assert_eq!((code, outcome["runs_on"].as_str()), (6, Some("source")), "{outcome:#}");
    assert!(pair.destination.alive().unwrap(), "{outcome:#}");
    assert_eq!(pair.source.status().unwrap(), "running");
    kill_process(pid, Signal::CONT).unwrap();
    let (code, outcome) = scene.recover();
    assert_eq!((code, outcome["runs_on"].as_str()), (4, Some("source")), "{outcome:#}");
    pair.destination.wait_for_end(WAIT).unwrap();
}
