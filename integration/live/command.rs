//! The command `qferry`, as seen by its user.

mod embedding;
mod mistakes;
mod recorded;

use super::support::{self, MIB, WAIT, busy, idle, spec, start};
use qferry::internals::{
    codes::FindingCode,
    qmp::transcript::{EntryBody, LineDirection, Transcript},
};
use qferry_bed::{DiskSpec, Pair, Side, Spec};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Output, Stdio},
};

pub(crate) fn qferry(pair: &Pair, more: &[&str]) -> Command {
    let mut command = support::qferry(pair, "migrate");
    command.arg("--source").arg(pair.source.qmp_path());
    command.arg("--destination").arg(pair.destination.qmp_path()).args(more);
    command
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn json_lines_and_text_are_kept_apart() {
    // The guest writes nothing, so no mirror is started again; the disk is small, so RAM is sent after the copy.
    let disk = DiskSpec { overlay_data: 64 << 10, ..DiskSpec::small() };
    let pair = start(&Spec { disks: vec![disk], ..spec("10.0.13", idle()) });
    let plan = qferry(&pair, &["--plan", "--json"]).output().unwrap();
    assert_eq!(plan.status.code(), Some(0), "{}", text(&plan.stderr));
    let planned = &lines(&plan).pop().unwrap();
    assert_eq!((&planned["type"], &planned["disks"][0]["source"]), (&"plan".into(), &"disk0".into()));
    assert_eq!(pair.source.leftovers().unwrap(), Vec::<String>::new());

    let transcript = pair.run_dir().join("transcript");
    let output = qferry(&pair, &["--json", "--transcript", transcript.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines = lines(&output);
    assert!(lines.iter().all(|line| line["v"] == 1 && line["t_ms"].is_u64() && line["type"].is_string()), "{lines:#?}");
    let outcome = lines.last().unwrap();
    assert_eq!((&outcome["type"], &outcome["outcome"]), (&"outcome".into(), &"moved".into()));
    assert!(outcome["reason"].is_null() && outcome["blackout_ms"].is_f64() && outcome["qemu_downtime_ms"].is_u64());
    let phases: Vec<&str> =
        lines.iter().filter(|line| line["state"] == "begin").filter_map(|line| line["phase"].as_str()).collect();
    assert_eq!(phases, ["connect", "preflight", "prepare", "storage", "memory", "switchover", "handover", "cleanup"]);
    assert!(text(&output.stderr).contains("moved: the guest is on the destination"));
    let details = |action: &str| &lines.iter().find(|line| line["action"] == action).unwrap()["details"];
    assert!(details("journal")["journal"].as_str().is_some_and(|path| path.ends_with(".journal")), "{lines:#?}");
    assert!(details("verified")["seed"].is_u64() && details("verified")["bytes"].is_u64(), "{lines:#?}");
    // On a slow host the engine may act on RAM.
    let is_step = |line: &&Value| ["downtime-limit", "throttle"].iter().any(|action| line["action"] == *action);
    commands_are_in_order(Transcript::open(&transcript).unwrap(), lines.iter().filter(is_step).count());
}

/// The golden order: the commands to each side without samples and queries. `steps` is the number of actions that the
/// engine took while RAM was sent.
fn commands_are_in_order(transcript: Transcript<impl Read>, steps: usize) {
    let mut sent = Vec::new();
    // The guest stands still while QEMU puts its schema together, and both sides run the same program.
    let mut asked_for_schema = Vec::new();
    for entry in transcript {
        let entry = entry.unwrap();
        if let (LineDirection::Send, EntryBody::Line(line)) = (entry.direction, &entry.body) {
            let command = line["execute"].as_str().or_else(|| line["exec-oob"].as_str()).unwrap();
            if command == "query-qmp-schema" {
                asked_for_schema.push(entry.side.clone());
            }
            let seldom = ["query-jobs", "query-block-exports"].contains(&command);
            if seldom || !command.starts_with("query-") {
                sent.push(format!("{}: {command}", entry.side));
            }
        }
    }
    assert_eq!(asked_for_schema, ["destination"]);
    // The number of `query-jobs` depends on the host, but one follows the end of the mirrors.
    let last = |line| sent.iter().rposition(|sent| sent == line).unwrap();
    let looked = last("source: query-jobs");
    assert!(last("source: block-job-cancel") < looked && looked < last("source: migrate-continue"), "{sent:#?}");
    sent.retain(|line| line != "source: query-jobs");
    // The destination is asked for its network cards beside the end of the source.
    let asks = [": qom-", ": x-debug-query-", ": human-monitor-command", ": trace-event-get-state"];
    sent.retain(|line| !asks.iter().any(|asks| line.contains(asks)));
    let begin = sent.iter().position(|line| line == "destination: stop").unwrap();
    let mut golden = vec![
        "destination: stop",
        "destination: nbd-server-start",
        "destination: block-export-add",
        "source: block-latency-histogram-set",
        "source: block-dirty-bitmap-add",
        "source: drive-mirror",
        "source: block-dirty-bitmap-remove",
        "source: block-job-change",
        "source: block-job-set-speed",
        // the times of devices, of which QEMU has an event for each of checkpoint, save and load
        "source: trace-event-set-state",
        "source: trace-event-set-state",
        "source: trace-event-set-state",
        "destination: trace-event-set-state",
        "destination: trace-event-set-state",
        "destination: trace-event-set-state",
        // the look at both machines before RAM is sent
        "source: query-block-exports",
        "destination: query-block-exports",
        "destination: migrate-set-capabilities",
        "destination: migrate-incoming",
        "source: migrate-set-capabilities",
        "source: migrate-set-parameters",
        // `dirty-limit`, which needs KVM and is refused, and then `auto-converge`
        "source: migrate-set-capabilities",
        "source: migrate-set-capabilities",
        "source: migrate",
        "source: calc-dirty-rate",
        // the look behind `migrate`
        "source: query-block-exports",
        "destination: query-block-exports",
        "source: block-job-cancel",
        "destination: stop",
        "destination: nbd-server-stop",
        "destination: query-block-exports",
        "source: migrate-continue",
        "destination: cont",
        "source: quit",
        "destination: migrate-set-capabilities",
        "destination: trace-event-set-state",
        "destination: trace-event-set-state",
        "destination: trace-event-set-state",
    ];
    let switchover = golden.iter().position(|line| *line == "source: block-job-cancel").unwrap();
    golden.splice(switchover..switchover, vec!["source: migrate-set-parameters"; steps]);
    assert_eq!(sent[begin..], golden);
}

#[test]
fn wrong_use_and_unreachable_sockets_have_their_codes() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
        command.args(arguments).env("XDG_STATE_HOME", folder.path()).output().unwrap()
    };
    let usage = run(&["migrate", "--source", "/x"]);
    assert_eq!(usage.status.code(), Some(2), "{}", text(&usage.stderr));
    let unforced = run(&["migrate", "--source", "/x", "--destination", "/y", "--force", "ram-size"]);
    assert_eq!(unforced.status.code(), Some(2));
    for code in FindingCode::forcible() {
        assert!(text(&unforced.stderr).contains(code), "{code}: {}", text(&unforced.stderr));
    }
    let help = run(&["migrate", "--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("Examples:"));
    let refused = run(&["migrate", "--source", "/nowhere/a.qmp", "--destination", "/nowhere/b.qmp", "--json"]);
    assert_eq!(refused.status.code(), Some(3));
    let outcome = lines(&refused).pop().unwrap();
    assert_eq!((&outcome["outcome"], &outcome["reason"]["code"]), (&"refused".into(), &"unreachable".into()));
    assert_eq!(outcome["findings"], serde_json::json!([]));
    let message = outcome["reason"]["message"].as_str().unwrap();
    assert!(message.contains("/nowhere/a.qmp") && message.contains("is QEMU running"), "{message}");
}

#[test]
fn a_held_monitor_is_explained() {
    let pair = start(&spec("10.0.13", idle()));
    // QEMU serves one client per monitor.
    let held = std::os::unix::net::UnixStream::connect(pair.source.qmp_path()).unwrap();
    let output = qferry(&pair, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stdout).contains("another client"), "{}", text(&output.stdout));
    drop(held);
}

#[test]
fn an_interrupt_rolls_back() {
    rolls_back_on(Signal::INT);
}

#[test]
fn a_terminal_that_closes_rolls_back() {
    rolls_back_on(Signal::HUP);
}

fn rolls_back_on(signal: Signal) {
    let disk = DiskSpec { overlay_data: 32 * MIB, ..DiskSpec::default() };
    let pair = start(&Spec { disks: vec![disk], ..spec("10.0.13", busy()) });
    let mut command = qferry(&pair, &["--json", "--bandwidth", "4MiB/s"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut outcome = None;
    let pid = rustix::process::Pid::from_child(&child);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        // A second interrupt on the way back must not do harm.
        if line["type"] == "disk" || line["action"] == "roll-back" {
            rustix::process::kill_process(pid, signal).unwrap();
        }
        if line["type"] == "outcome" {
            outcome = Some(line);
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(5));
    let outcome = outcome.expect("the last line");
    assert_eq!((&outcome["outcome"], &outcome["runs_on"]), (&"cancelled".into(), &"source".into()));
    assert_eq!(pair.source.status().unwrap(), "running");
    assert_eq!(pair.source.leftovers().unwrap(), Vec::<String>::new());
    pair.wait_for_beats(Side::Source, 20, WAIT).unwrap();
}

#[test]
fn no_terminal_stops_the_command_while_ram_is_sent() {
    let pair = start(&spec("10.0.13", busy()));
    let mut command = qferry(&pair, &["--json", "--bandwidth", "16MiB/s"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("\"memory\""))).unwrap().unwrap();
    for signal in [Signal::TSTP, Signal::TTOU, Signal::TTIN] {
        rustix::process::kill_process(pid, signal).unwrap();
    }
    let outcome = lines.map(Result::unwrap).find(|line| line.contains("\"outcome\""));
    assert!(outcome.is_some_and(|line| line.contains("\"moved\"")));
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    let said = text(&ended.stderr);
    assert!(said.contains("not suspended"), "{said}");
}

#[test]
fn from_the_handover_on_no_signal_and_no_closed_pipe_ends_it() {
    let pair = start(&spec("10.0.13", busy()));
    let mut child = qferry(&pair, &["--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("\"handover\""))).unwrap().unwrap();
    for signal in [Signal::HUP, Signal::TERM, Signal::INT] {
        rustix::process::kill_process(pid, signal).unwrap();
    }
    drop((lines, child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(pair.runners().unwrap(), [Side::Destination]);
    pair.wait_for_beats(Side::Destination, 20, WAIT).unwrap();
}

#[test]
fn a_reader_that_goes_away_does_not_stop_a_migration() {
    let pair = start(&spec("10.0.13", busy()));
    let mut command = qferry(&pair, &["--json", "-vvv"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(pair.destination.status().unwrap(), "running");
}
