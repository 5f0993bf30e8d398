//! Recovery: the engine dies, and another one takes its migration up.

use super::support::{MIB, WAIT, busy, hurry, judge_disks, qferry, spec, start};
use qferry_bed::{DiskSpec, Pair, Side, Spec, Workload};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

fn journal(pair: &Pair) -> PathBuf {
    pair.run_dir().with_file_name("journal")
}

/// Starts the command, to be read line by line.
fn spawn(command: &mut Command) -> (Child, BufReader<ChildStdout>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

fn migrate(pair: &Pair, more: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut command = qferry(pair, "migrate");
    command.args(["--json", "--source"]).arg(pair.source.qmp_path());
    command.arg("--destination").arg(pair.destination.qmp_path()).arg("--journal").arg(journal(pair)).args(more);
    spawn(&mut command)
}

/// The exit code and the outcome of `qferry recover`.
fn recover(pair: &Pair) -> (i32, Value) {
    let output = qferry(pair, "recover").arg("--json").arg(journal(pair)).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), serde_json::from_str(text.lines().last().unwrap()).unwrap())
}

fn is_begin(line: &Value, phase: &str) -> bool {
    line["phase"] == phase && line["state"] == "begin"
}

/// Kills the engine at the first line that fits. False if the engine ended before.
fn kill_at(pair: &Pair, more: &[&str], fits: impl Fn(&Value) -> bool) -> bool {
    let (mut child, mut lines) = migrate(pair, more);
    let mut text = String::new();
    while lines.read_line(&mut text).unwrap() > 0 {
        if fits(&serde_json::from_str(&text).unwrap()) {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        text.clear();
    }
    child.wait().unwrap();
    false
}

/// Exactly one side runs, as the outcome says; nothing of the engine is left; and a second recovery changes nothing.
fn judge_recovered(pair: &Pair, at: &str) -> Side {
    let (code, outcome) = recover(pair);
    let (side, word) = match code {
        0 => (Side::Destination, "moved"),
        4 => (Side::Source, "rolled-back"),
        _ => panic!("{at}: {code} {outcome:#}"),
    };
    assert_eq!(
        (outcome["outcome"].as_str(), outcome["runs_on"].as_str()),
        (Some(word), Some(side.to_string().as_str())),
        "{at}"
    );
    assert_eq!(pair.runners().unwrap(), [side], "{at}: {outcome:#}");
    assert_eq!(pair.machine(side).leftovers().unwrap(), Vec::<String>::new(), "{at}: {outcome:#}");
    let again = recover(pair);
    assert_eq!((again.0, &again.1["outcome"], &again.1["runs_on"]), (code, &outcome["outcome"], &outcome["runs_on"]));
    assert_eq!(pair.runners().unwrap(), [side], "{at}: after the second");
    if side == Side::Source {
        let limit =
            pair.source.qmp("query-migrate-parameters", &serde_json::json!({})).unwrap()["downtime-limit"].clone();
        assert_eq!(limit, 300, "{at}: settings are as they were");
    }
    side
}

#[test]
fn an_engine_that_is_killed_is_taken_up_at_any_point() {
    let disk = DiskSpec { size: 64 * MIB, overlay_data: 8 * MIB, ..DiskSpec::default() };
    // The copy is so slow that the guest has not moved however late a busy host lets this process kill the engine.
    let slow: &[&str] = &["--disk-bandwidth", "1MiB/s", "--verify-backing", "off"];
    for (at, more, moved) in [
        ("prepare", slow, Some(false)),
        ("storage", slow, Some(false)),
        // The disk has to be copied first under the same ceiling.
        ("memory", &["--bandwidth", "4MiB/s", "--verify-backing", "off"], Some(false)),
        // The guest may be on either side by the time of the kill.
        ("switchover", &[], None),
        ("handover", &[], None),
        ("cleanup", &[], None),
    ] {
        let pair =
            start(&Spec { disks: vec![disk.clone()], workload: Workload { write: 20, ..busy() }, ..Spec::default() });
        pair.wait_for_writes(Side::Source, 5, WAIT).unwrap();
        if !kill_at(&pair, more, |line| is_begin(line, at)) {
            assert_eq!(moved, None, "{at}: it was through");
        }
        let side = judge_recovered(&pair, at);
        if let Some(moved) = moved {
            assert_eq!(side == Side::Destination, moved, "{at}");
        }
        pair.wait_for_writes(side, 5, WAIT).unwrap();
        judge_disks(&pair, side);
    }
}

#[test]
fn while_the_engine_lives_its_journal_is_its_own() {
    let pair = start(&Spec { quick: true, ..Spec::default() });
    let (mut child, mut lines) = migrate(&pair, &["--bandwidth", "1MiB/s"]);
    let mut text = String::new();
    while !is_begin(&serde_json::from_str(if text.is_empty() { "{}" } else { &text }).unwrap(), "storage") {
        text.clear();
        assert!(lines.read_line(&mut text).unwrap() > 0, "it ended too soon");
    }
    let (code, outcome) = recover(&pair);
    assert_eq!((code, outcome["reason"]["code"].as_str()), (3, Some("journal-locked")), "{outcome:#}");
    assert_eq!(pair.source.status().unwrap(), "running");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(judge_recovered(&pair, "storage"), Side::Source);
}

#[test]
fn what_died_meanwhile_is_said() {
    // The source dies together with the engine: the guest has crashed, and what was made for it is removed.
    let pair = start(&Spec { quick: true, ..Spec::default() });
    assert!(kill_at(&pair, &["--bandwidth", "1MiB/s"], |line| is_begin(line, "storage")));
    pair.source.kill().unwrap();
    pair.source.wait_for_end(Duration::from_secs(10)).unwrap();
    let (code, outcome) = recover(&pair);
    assert_eq!((code, outcome["runs_on"].as_str()), (8, Some("none")), "{outcome:#}");
    pair.destination.wait_for_end(WAIT).unwrap();
    // The destination dies together with the engine: the guest runs on, and nothing is left.
    let pair = start(&Spec { quick: true, ..Spec::default() });
    assert!(kill_at(&pair, &["--bandwidth", "1MiB/s"], |line| is_begin(line, "storage")));
    pair.destination.kill().unwrap();
    pair.destination.wait_for_end(Duration::from_secs(10)).unwrap();
    assert_eq!(judge_recovered(&pair, "storage"), Side::Source);
}

/// A guest in postcopy whose engine has been killed. Pages that the guest does not ask for come slowly.
fn left_in_postcopy() -> Pair {
    let workload = Workload { ram: 48 * MIB, dirty: 60 * MIB, write: 0, read: 0, ..Workload::default() };
    let pair = start(&Spec { disks: vec![DiskSpec::small()], ..spec("10.0.13", workload) });
    let policy = pair.run_dir().with_file_name("at-once.toml");
    let at_once = "name = \"at-once\"\nram = []\n[schedule]\npoll = \"100ms\"\ndowntime = \"300ms\"\nsteps = [{ then = \"postcopy\" }]";
    std::fs::write(&policy, at_once).unwrap();
    let more = ["--bandwidth", "1MiB/s", "--policy", policy.to_str().unwrap()];
    let in_postcopy = |line: &Value| {
        if line["type"] == "memory" {
            // The limit comes after the engine's own parameters, which replace any other, and before the postcopy.
            pair.source.qmp("migrate-set-parameters", &json!({"max-postcopy-bandwidth": MIB})).unwrap();
        }
        is_begin(line, "postcopy")
    };
    assert!(kill_at(&pair, &more, in_postcopy), "it was through before");
    assert!(has_pages_at_the_source(&pair));
    pair
}

/// Whether the destination lacks pages, by the source's answer.
fn has_pages_at_the_source(pair: &Pair) -> bool {
    let migration = pair.source.qmp("query-migrate", &json!({})).unwrap();
    migration["status"].as_str().unwrap().starts_with("postcopy-") && migration["ram"]["remaining"] != 0
}

/// Starts `qferry recover`, and reads its output up to the line that fits.
fn recover_until(pair: &Pair, fits: impl Fn(&Value) -> bool) -> (Child, BufReader<ChildStdout>) {
    let (child, mut lines) = spawn(qferry(pair, "recover").arg("--json").arg(journal(pair)));
    let mut text = String::new();
    while !fits(&serde_json::from_str(if text.is_empty() { "{}" } else { &text }).unwrap()) {
        text.clear();
        assert!(lines.read_line(&mut text).unwrap() > 0, "it ended too soon");
    }
    (child, lines)
}

/// The guest is on the destination, and had all of its memory before the source quit.
fn judge_fetched(pair: &Pair, at: &str) {
    assert_eq!(judge_recovered(pair, at), Side::Destination);
    pair.source.wait_for_end(WAIT).unwrap();
    let last = pair.source.events().unwrap().into_iter().rfind(|event| event.name == "MIGRATION").unwrap();
    assert_eq!(last.data["status"], "completed", "{at}: the source was given up before");
    pair.wait_for_beats(Side::Destination, 20, WAIT).unwrap();
    pair.wait_until_verified(WAIT).unwrap();
    judge_disks(pair, Side::Destination);
}

#[test]
fn pages_that_are_at_the_source_are_waited_for() {
    let pair = left_in_postcopy();
    // A recovery that dies while it waits does no harm.
    let (mut child, _) = recover_until(&pair, |line| line["type"] == "memory");
    assert!(has_pages_at_the_source(&pair));
    child.kill().unwrap();
    child.wait().unwrap();
    let (mut child, mut lines) = recover_until(&pair, |line| line["type"] == "memory");
    assert!(has_pages_at_the_source(&pair));
    hurry(&pair);
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest}");
    judge_fetched(&pair, "waits");
}

#[test]
fn pages_are_left_where_they_are_when_a_side_cannot_be_asked() {
    // No page comes through a cut channel, so the destination's main loop may hang on a missing page.
    let pair = left_in_postcopy();
    pair.source.qmp("yank", &json!({"instances": [{"type": "migration"}]})).unwrap();
    pair.source.wait_for_event(WAIT, |event| event.data["status"] == "postcopy-paused").unwrap();
    hurry(&pair);
    match recover(&pair) {
        (7, outcome) => {
            let message = outcome["reason"]["message"].as_str().unwrap();
            assert!(message.contains("leave the source alone"), "{message}");
            assert!(has_pages_at_the_source(&pair), "{outcome:#}");
        }
        // The destination did not hang, and the channel was made anew.
        _ => judge_fetched(&pair, "cut"),
    }
    drop(pair);
    // The pages are lost with the source.
    let pair = left_in_postcopy();
    pair.source.kill().unwrap();
    for _ in 0..2 {
        let (code, outcome) = recover(&pair);
        assert_eq!((code, outcome["outcome"].as_str()), (7, Some("undetermined")), "{outcome:#}");
        assert!(!outcome["reason"]["message"].as_str().unwrap().is_empty());
    }
    assert!(pair.destination.alive().unwrap(), "what is left of the guest is its owner's to end");
}
