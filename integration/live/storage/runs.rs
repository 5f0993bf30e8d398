//! Runs whose engines died or are at work: their journals are found, and what they left is put back.
//!
//! Promise: one-engine.

use super::{
    super::support::{MIB, WAIT, migrate_when, qferry, start},
    engine, quick,
};
use qferry::internals::progress::{Ending, EventKind};
use qferry_bed::{DiskSpec, Pair, Side, free_port};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, ErrorKind, Read},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A disk whose copy takes seconds under a ceiling of 1 MiB/s.
fn slow_disk() -> DiskSpec {
    DiskSpec { size: 64 * MIB, overlay_data: 8 * MIB, ..DiskSpec::default() }
}

fn verb(pair: &Pair, verb: &str, more: &[&str]) -> Command {
    let mut command = qferry(pair, verb);
    command.arg("--json").arg("--source").arg(pair.source.qmp_path());
    command.arg("--destination").arg(pair.destination.qmp_path()).args(more);
    command
}

/// The exit code and the lines of a command.
fn run(command: &mut Command) -> (i32, Vec<Value>) {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Starts a slow migration with its journal in the state directory, and waits until the disk is copied.
fn copying(pair: &Pair, more: &[&str]) -> Child {
    let slow = ["--disk-bandwidth", "1MiB/s", "--verify-backing", "off"];
    let mut command = verb(pair, "migrate", &slow);
    let mut child = command.args(more).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let is_copied = |line: &Value| line["type"] == "disk" && line["copied"].as_u64() > Some(0);
    assert!(lines.any(|line| is_copied(&serde_json::from_str(&line.unwrap()).unwrap())), "it never copied");
    // A pipe without a reader would hold nothing up, and a reader that is gone neither.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

fn journals(pair: &Pair) -> Vec<Value> {
    let (code, lines) = run(qferry(pair, "recover").arg("--json"));
    assert_eq!(code, 0);
    lines
}

#[test]
fn the_journal_of_a_dead_engine_is_named_and_clean_does_what_recover_would() {
    for version in ["7.2", "10.0.13"] {
        let pair = start(&qferry_bed::Spec { version: version.to_owned(), ..quick([slow_disk()]) });
        let mut child = copying(&pair, &[]);
        let [live] = &journals(&pair)[..] else { panic!("one journal") };
        assert_eq!(
            (&live["type"], &live["engine_lives"], &live["engine_pid"]),
            (&json!("journal"), &json!(true), &json!(child.id()))
        );
        child.kill().unwrap();
        child.wait().unwrap();

        let [dead] = &journals(&pair)[..] else { panic!("one journal") };
        let told = ["engine_lives", "phase", "recovery"].map(|field| dead[field].clone());
        assert_eq!(told, [json!(false), json!("storage"), json!("go-back")], "{dead}");
        let path = dead["path"].as_str().unwrap();
        let (code, plan) = run(&mut verb(&pair, "check", &["--no-measure"]));
        let remedy = format!("qferry recover {path}");
        let findings = plan.last().unwrap()["findings"].as_array().unwrap().clone();
        let leftovers: Vec<&Value> = findings.iter().filter(|finding| finding["code"] == "leftover").collect();
        assert!(code == 3 && leftovers.len() >= 3, "{findings:#?}");
        assert!(leftovers.iter().all(|one| one["remedy"].as_str().unwrap().contains(&remedy)), "{leftovers:#?}");

        // The recovery knows which images the dead engine wrote to, so the migration that follows copies over them.
        let (code, lines) = run(&mut verb(&pair, "migrate", &["--clean"]));
        let outcome = lines.last().unwrap();
        assert_eq!(
            (code, &outcome["outcome"], &outcome["runs_on"]),
            (0, &json!("moved"), &json!("destination")),
            "{outcome:#}"
        );
        let recovered = lines.iter().any(|line| {
            let text = line.to_string();
            text.contains(path) && text.contains("recovered")
        });
        assert!(recovered, "{lines:#?}");
        let destination = &pair.destination;
        assert_eq!(destination.leftovers().unwrap(), Vec::<String>::new(), "{version}");
        assert_eq!(journals(&pair), Vec::<Value>::new(), "a journal that is settled goes");
        destination.wait_for_status("running", WAIT).unwrap();
        pair.source.wait_for_end(WAIT).unwrap();
        destination.finish().unwrap();
        pair.guest_visible_equal(0).unwrap_or_else(|error| panic!("{version}: {error}"));
    }
}

#[test]
fn a_run_under_way_is_touched_by_no_recovery_and_by_no_other_engine() {
    let pair = start(&quick([slow_disk()]));
    let mut first = copying(&pair, &[]);
    first.kill().unwrap();
    first.wait().unwrap();
    let old = PathBuf::from(journals(&pair)[0]["path"].as_str().unwrap());
    let copy = pair.run_dir().join("old.journal");
    std::fs::copy(&old, &copy).unwrap();
    assert_eq!(run(qferry(&pair, "recover").arg("--json").arg(&old)).0, 4);

    let mut second = copying(&pair, &[]);
    let (code, lines) = run(qferry(&pair, "recover").arg("--json").arg(&copy));
    let reason = &lines.last().unwrap()["reason"];
    assert_eq!((code, &reason["code"]), (3, &json!("qemu-in-use")), "{reason}");
    assert!(reason["message"].as_str().unwrap().contains(&format!("pid {}", second.id())), "{reason}");
    // The second run still copies: its mirror was neither cancelled nor paused.
    assert!(second.try_wait().unwrap().is_none());
    second.kill().unwrap();
    second.wait().unwrap();
    let jobs = pair.source.qmp("query-jobs", &json!({})).unwrap();
    assert!(matches!(jobs[0]["status"].as_str(), Some("running" | "ready")), "{jobs}");
    let own = PathBuf::from(journals(&pair)[0]["path"].as_str().unwrap());
    // With the second engine dead, too, its names in the QEMU tell that the old journal's run is not the last.
    let (code, lines) = run(qferry(&pair, "recover").arg("--json").arg(&copy));
    assert_eq!((code, &lines.last().unwrap()["reason"]["code"]), (3, &json!("qemu-in-use")), "{lines:?}");
    assert_eq!(run(qferry(&pair, "recover").arg("--json").arg(&own)).0, 4);
    for side in [Side::Source, Side::Destination] {
        assert_eq!(pair.machine(side).leftovers().unwrap(), Vec::<String>::new(), "{side}");
    }
}

/// Promise: no-other-writer.
#[test]
fn the_nbd_server_serves_nobody_beside_the_mirrors() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let pair = start(&qferry_bed::Spec { version: version.to_owned(), ..quick([slow_disk()]) });
        let port = free_port().unwrap();
        let slow = engine(&pair, |settings| {
            settings.nbd_address = Some(format!("tcp:127.0.0.1:{port}").parse().unwrap());
            settings.disk_bandwidth = Some(qferry::internals::quantity::Rate(MIB));
        });
        let copies = |kind: &EventKind| matches!(kind, EventKind::Disk { copied, .. } if *copied > 0);
        let (outcome, _) = migrate_when(slow, copies, |running| {
            let mut foreign = TcpStream::connect(("127.0.0.1", port)).unwrap();
            foreign.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let refused = foreign.read(&mut [0; 8]).unwrap_err();
            assert!(matches!(refused.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{version}: {refused}");
            running.control().cancel();
        });
        assert_eq!(outcome.outcome, Ending::Cancelled, "{version}: {outcome:#?}");
        pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_CANCELLED").unwrap();
    }
}
