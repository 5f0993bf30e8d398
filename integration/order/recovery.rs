//! Recovery of a migration in postcopy where one side cannot be asked, and of a guest that a person may have handed
//! over since the engine died.

use super::{
    fake::{AnswerStep, FakeMonitor, MonitorScript},
    model::once,
    other_run::{begun, party},
};
use qferry::internals::{
    endpoint::{Endpoint, ProcessIdentity},
    journal::{Journal, LIMIT},
    memory::tuning::PreviousTuning,
    migration::{
        Effect, Migration,
        record::{MigrationBegin, Party, Record},
    },
    progress::{Ending, Outcome, RunsOn, Side},
};
use serde_json::json;
use std::{
    fs::{Permissions, set_permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::io::DuplexStream;

/// The journal of an engine that died in postcopy, with the identity of the source's process if that is known.
fn journal(folder: &Path, source: Option<ProcessIdentity>) -> std::path::PathBuf {
    journal_of(folder, &folder.join("source").display().to_string(), source)
}

/// The same journal with this address of the source, or name of a connector.
fn journal_of(folder: &Path, at_source: &str, source: Option<ProcessIdentity>) -> std::path::PathBuf {
    let destination = party(&folder.join("destination").display().to_string(), None);
    let begun =
        MigrationBegin { postcopy: true, tells_start: false, ..begun(folder, party(at_source, source), destination) };
    write_journal(folder, begun, &[Record::Effects(vec![Effect::Migrate]), Record::Given])
}

/// The journal of an engine that died behind these records.
fn write_journal(folder: &Path, begun: MigrationBegin, records: &[Record]) -> std::path::PathBuf {
    let path = folder.join("journal");
    let mut journal = Journal::create(&path).unwrap();
    for record in [&[Record::Begun(Box::new(begun))], records].concat() {
        journal.append(&record).unwrap();
    }
    path
}

/// The identity of a process that has ended.
fn ended_process() -> ProcessIdentity {
    let mut process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = i32::try_from(process.id()).unwrap();
    let identity = qferry::internals::endpoint::PeerPid::open(pid).unwrap().identity().unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    identity
}

/// The journal of an engine that died behind `Given`, and behind what follows here. The processes of the sides that are
/// named have ended.
fn journal_of_given(folder: &Path, ended: [bool; 2], fence: Option<&str>, more: &[Record]) -> std::path::PathBuf {
    let identity = ended_process();
    let [source, destination] = ["source", "destination"].map(|name| folder.join(name).display().to_string());
    let identity_of = |side: usize| ended[side].then(|| identity.clone());
    let begun = begun(folder, party(&source, identity_of(0)), party(&destination, identity_of(1)));
    let begun = MigrationBegin { fence_command: fence.map(Into::into), ..begun };
    write_journal(folder, begun, &[&[Record::Effects(vec![Effect::Migrate]), Record::Given], more].concat())
}

/// A side that has completed the migration and stands.
fn completed(run: &str) -> MonitorScript {
    MonitorScript::new()
        .answer("query-qmp-schema", json!([]))
        .answer("query-status", json!({"running": false, "status": run}))
        .answer("query-migrate", json!({"status": "completed"}))
}

fn count(fake: &FakeMonitor, command: &str) -> usize {
    fake.seen().into_iter().filter(|seen| seen.name == command).count()
}

/// An engine that never sent `cont` says nothing of what happened after its end.
#[tokio::test(start_paused = true)]
async fn a_guest_that_a_person_may_have_started_is_not_taken_back() {
    for (ended, because) in [([false, true], "may have run the guest"), ([false, false], "somebody else may have")] {
        let folder = tempfile::tempdir().unwrap();
        let path = journal_of_given(folder.path(), ended, None, &[]);
        let (source, reached) = completed("postmigrate").duplex();
        let outcome = Migration::recover(&path).source(stream("source", reached)).start_here().unwrap().wait().await;
        let reason = outcome.reason.as_ref().map(|reason| reason.message.clone()).unwrap_or_default();
        assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Undetermined, RunsOn::Unknown), "{outcome:#?}");
        assert!(reason.contains(because), "{reason}");
        assert_eq!((count(&source, "cont"), count(&source, "quit")), (0, 0), "{:#?}", source.seen());
    }
    // What the person had started may have run for long before both ended.
    let folder = tempfile::tempdir().unwrap();
    let path = journal_of_given(folder.path(), [true, true], None, &[]);
    let outcome = Migration::recover(&path).start_here().unwrap().wait().await;
    assert_eq!(outcome.outcome, Ending::Undetermined, "{outcome:#?}");
}

/// What comes of a guest that stands so on a destination that has counted so many requests; with the `cont`s to it.
async fn recover_standing(more: &[Record], run: &str, requests: u64) -> (usize, Outcome) {
    let folder = tempfile::tempdir().unwrap();
    let path = journal_of_given(folder.path(), [false, false], None, more);
    let (_source, at_source) = completed("postmigrate").duplex();
    let stats = json!({"rd_operations": requests, "wr_bytes": 0, "wr_operations": 0, "wr_total_time_ns": 0});
    let (destination, reached) =
        completed(run).answer("query-blockstats", json!([{"device": "", "stats": stats}])).duplex();
    destination.on("cont", |_| vec![AnswerStep::Return(json!({}))]);
    let outcome = recover(&path, Some(at_source), reached).await;
    (count(&destination, "cont"), outcome)
}

/// What a recovery does with the fence command of a journal, where no engine has started the destination; and whether
/// the source's guest is resumed. The command is a real process, so the clock must not be paused.
async fn recover_fenced(folder: &Path, fence: &str, has_ended: bool) -> (bool, Outcome) {
    let path = journal_of_given(folder, [false, has_ended], Some(fence), &[]);
    let (source, reached) = completed("postmigrate").duplex();
    let resumed = Arc::new(AtomicBool::new(false));
    let resumes = resumed.clone();
    source.on("cont", move |_| {
        resumes.store(true, Ordering::Relaxed);
        vec![AnswerStep::Return(json!({}))]
    });
    let runs = resumed.clone();
    source.on("query-status", move |_| {
        let runs = runs.load(Ordering::Relaxed);
        let run = if runs { "running" } else { "postmigrate" };
        vec![AnswerStep::Return(json!({"running": runs, "status": run}))]
    });
    let outcome = Migration::recover(&path).source(stream("source", reached)).start_here().unwrap().wait().await;
    (resumed.load(Ordering::Relaxed), outcome)
}

/// Who recovers with a fence command vouches that nobody else has started the guest. That does not bring back what ran
/// on a destination that has ended.
#[tokio::test]
async fn a_destination_that_no_engine_started_is_fenced_with_the_journals_command() {
    for (has_ended, expected) in [(false, RunsOn::Source), (true, RunsOn::Unknown)] {
        let folder = tempfile::tempdir().unwrap();
        let (resumed, outcome) = recover_fenced(folder.path(), "/bin/true", has_ended).await;
        assert_eq!(outcome.runs_on, expected, "{outcome:#?}");
        assert_eq!(resumed, !has_ended, "{outcome:#?}");
    }
}

/// The command may have been changed since the engine that died has looked at it.
/// Promise: trusted-files.
#[tokio::test]
async fn a_fence_command_that_others_may_have_written_is_not_run() {
    for (mode, is_run) in [("755", true), ("757", false)] {
        let folder = tempfile::tempdir().unwrap();
        let (command, called) = (folder.path().join("fence"), folder.path().join("called"));
        // A child of this process has the file open for writing then, and no fork of another thread inherits that.
        let write = format!("printf '#!/bin/sh\n: >%s\n' \"$1\" >\"$0\" && chmod {mode} \"$0\"");
        let written = std::process::Command::new("sh").args(["-c", &write]).arg(&command).arg(&called).status();
        assert!(written.unwrap().success());
        let (resumed, outcome) = recover_fenced(folder.path(), command.to_str().unwrap(), false).await;
        assert_eq!((called.exists(), resumed), (is_run, is_run), "{mode}: {outcome:#?}");
        assert_eq!(outcome.runs_on, if is_run { RunsOn::Source } else { RunsOn::Unknown }, "{mode}: {outcome:#?}");
    }
}

/// A later recovery would not know that the guest may run on the destination. The journal here is one that takes a
/// single record more, which is the recovery's own.
#[tokio::test(start_paused = true)]
async fn a_journal_that_takes_no_record_is_named_and_the_guest_is_not_started() {
    let folder = tempfile::tempdir().unwrap();
    let path = journal_of_given(folder.path(), [false, false], None, &[]);
    let length = |path: &Path| usize::try_from(std::fs::metadata(path).unwrap().len()).unwrap();
    let probe = folder.path().join("probe");
    std::fs::copy(&path, &probe).unwrap();
    let append = |path: &Path, record: &Record| Journal::open(path).unwrap().0.append(record).unwrap();
    let socket = |name: usize| Record::Effects(vec![Effect::SocketFile("s".repeat(name).into())]);
    append(&probe, &socket(0));
    append(&probe, &Record::Recovering);
    append(&path, &socket(LIMIT - length(&probe)));
    let (_source, at_source) = completed("postmigrate").duplex();
    let (destination, reached) = completed("paused").answer("query-blockstats", json!([])).duplex();
    let outcome = recover(&path, Some(at_source), reached).await;
    let reason = outcome.reason.as_ref().map(|reason| reason.message.clone()).unwrap_or_default();
    assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Undetermined, RunsOn::Unknown), "{outcome:#?}");
    let told = [path.to_str().unwrap(), "would become longer", "copy the journal", "qferry recover"];
    assert!(told.iter().all(|word| reason.contains(word)), "{reason}");
    assert_eq!(count(&destination, "cont"), 0, "{:#?}", destination.seen());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_its_owner_paused_on_the_destination_is_not_started() {
    for more in [vec![], vec![Record::Starting]] {
        let (conts, outcome) = recover_standing(&more, "paused", 0).await;
        assert!(conts > 0, "nobody has started it: {outcome:#?}");
        let (conts, outcome) = recover_standing(&more, "paused", 1).await;
        assert_eq!((conts, outcome.outcome), (0, Ending::Moved), "{outcome:#?}");
    }
}

/// A guest that stood so on the source arrives so, too.
#[tokio::test(start_paused = true)]
async fn a_guest_that_stopped_on_the_destination_has_moved_if_it_ran_there() {
    for more in [vec![], vec![Record::Starting]] {
        for run in ["io-error", "guest-panicked", "shutdown"] {
            for (requests, ending) in [(0, Ending::Undetermined), (1, Ending::Moved)] {
                let (conts, outcome) = recover_standing(&more, run, requests).await;
                assert_eq!((conts, outcome.outcome), (0, ending), "{run}: {outcome:#?}");
            }
        }
    }
}

/// A destination that runs the guest, with this status of its incoming migration.
fn destination(status: &str) -> (FakeMonitor, DuplexStream) {
    MonitorScript::new()
        .answer("query-qmp-schema", json!([]))
        .answer("query-migrate", json!({ "status": status }))
        .duplex()
}

fn stream(name: &str, stream: DuplexStream) -> Endpoint {
    once(name, stream)
}

async fn recover(journal: &Path, source: Option<DuplexStream>, destination: DuplexStream) -> Outcome {
    let recovery = Migration::recover(journal).destination(stream("destination", destination));
    match source {
        Some(source) => recovery.source(stream("source", source)),
        None => recovery,
    }
    .start_here()
    .unwrap()
    .wait()
    .await
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_is_not_told_to_quit_while_the_destination_lacks_pages() {
    let folder = tempfile::tempdir().unwrap();
    let (source, reached) = MonitorScript::new().duplex();
    let freeze = source.freezer();
    source.on("query-qmp-schema", move |_| {
        freeze();
        vec![AnswerStep::Return(json!([]))]
    });
    let (_destination, other) = destination("postcopy-active");
    let outcome = recover(&journal(folder.path(), None), Some(reached), other).await;
    assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Undetermined, RunsOn::Destination), "{outcome:#?}");
    let told: Vec<String> = source.seen().into_iter().map(|seen| seen.name).collect();
    assert!(!told.contains(&"quit".to_owned()), "it does so when it goes on: {told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_whose_pages_died_with_the_source_has_not_moved() {
    let folder = tempfile::tempdir().unwrap();
    let path = journal(folder.path(), Some(ended_process()));
    for _ in 0..2 {
        let (_destination, reached) = destination("postcopy-paused");
        let outcome = recover(&path, None, reached).await;
        assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Undetermined, RunsOn::Destination), "{outcome:#?}");
        let reason = outcome.reason.unwrap();
        assert_eq!(reason.code, "source-gone");
        assert!(reason.message.contains("start it anew"), "{}", reason.message);
    }
}

/// A journal that another user could have written may name any process and any command.
/// Promise: trusted-files.
#[tokio::test(start_paused = true)]
async fn a_journal_that_others_may_have_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = journal(folder.path(), None);
    set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let (asked, reached) = destination("postcopy-active");
    let outcome = recover(&path, None, reached).await;
    let reason = outcome.reason.expect("a reason");
    assert_eq!((outcome.outcome, reason.code.as_str()), (Ending::Refused, "journal"), "{reason:?}");
    for word in ["somebody else may have written it", "(mode 0666)", "chmod go-w"] {
        assert!(reason.message.contains(word), "{word}: {}", reason.message);
    }
    assert_eq!(asked.seen().len(), 0, "nobody is asked anything");
}

/// The name of a connector is written to the journal in the place of an address.
#[tokio::test(start_paused = true)]
async fn a_side_that_only_a_connector_reaches_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = journal_of(folder.path(), "the VM's own tunnel", None);
    let (asked, reached) = destination("postcopy-active");
    let outcome = recover(&path, None, reached).await;
    let reason = outcome.reason.expect("a reason");
    for word in ["the VM's own tunnel", "name of a connector", "Recovery::source"] {
        assert!(reason.message.contains(word), "{word}: {}", reason.message);
    }
    assert_eq!((outcome.outcome, reason.code.as_str()), (Ending::Refused, "unreachable"), "{reason:?}");
    let sent = asked.seen().into_iter().filter(|seen| !seen.name.starts_with("q")).count();
    assert_eq!(sent, 0, "nothing is changed");
    let (source, at_source) = MonitorScript::new()
        .answer("query-qmp-schema", json!([]))
        .answer("query-migrate", json!({"status": "postcopy-active"}))
        .duplex();
    let (_destination, reached) = destination("postcopy-active");
    let outcome =
        tokio::time::timeout(Duration::from_secs(300), recover(&path, Some(at_source), reached)).await.unwrap();
    assert!(!source.seen().is_empty() && outcome.reason.is_none_or(|reason| reason.code != "unreachable"));
}

#[tokio::test(start_paused = true)]
async fn the_rest_is_waited_for_where_only_the_destination_can_be_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = journal(folder.path(), None);
    let (fake, reached) = destination("postcopy-active");
    let mut asked = 0;
    fake.on("query-migrate", move |_| {
        asked += 1;
        vec![AnswerStep::Return(json!({"status": if asked < 20 { "postcopy-active" } else { "completed" }}))]
    });
    let outcome = recover(&path, None, reached).await;
    assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Moved, RunsOn::Destination), "{outcome:#?}");
    assert!(outcome.ram.postcopy, "{outcome:#?}");
    let asked = fake.seen().into_iter().filter(|seen| seen.name == "query-migrate").count();
    assert_eq!(asked, 20, "until it had all, and no longer");
}

#[tokio::test(start_paused = true)]
async fn pages_that_nobody_can_be_asked_about_are_not_waited_for_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let (_destination, reached) = destination("postcopy-active");
    let path = journal(folder.path(), None);
    let outcome = tokio::time::timeout(Duration::from_secs(300), recover(&path, None, reached)).await.unwrap();
    assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Undetermined, RunsOn::Destination), "{outcome:#?}");
}

/// A guest that was moved before: its source still tells of the migration by which the guest came, and the engine died
/// before QEMU had the next one.
#[tokio::test(start_paused = true)]
async fn a_source_that_completed_an_earlier_migration_has_passed_nothing_on() {
    for run in ["running", "paused"] {
        let folder = tempfile::tempdir().unwrap();
        let [source, destination] =
            ["source", "destination"].map(|name| folder.path().join(name).display().to_string());
        let begun = begun(folder.path(), party(&source, None), party(&destination, None));
        let begun = MigrationBegin { was_running: run == "running", ..begun };
        let effects = vec![Effect::NbdServer, Effect::Incoming, Effect::Migrate];
        let path = write_journal(folder.path(), begun, &[Record::Effects(effects)]);
        let (source, at_source) = MonitorScript::new()
            .answer("query-qmp-schema", json!([]))
            .answer("query-status", json!({"running": run == "running", "status": run}))
            .answer("query-migrate", json!({"status": "completed"}))
            .duplex();
        let (_destination, reached) = MonitorScript::new()
            .answer("query-qmp-schema", json!([]))
            .answer("query-status", json!({"running": false, "status": "inmigrate"}))
            .answer("query-migrate", json!({"status": "setup"}))
            .duplex();
        let outcome = recover(&path, Some(at_source), reached).await;
        // the fake destination does not end when it is told to
        assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Stuck, RunsOn::Source), "{run}: {outcome:#?}");
        let told = ["stop", "cont", "migrate_cancel"].map(|command| count(&source, command));
        assert_eq!(told, [0; 3], "{run}: {:#?}", source.seen());
    }
}

/// Where nothing proves which side has the guest, nothing is undone, and what is left is named.
#[tokio::test(start_paused = true)]
async fn settings_that_are_left_are_named_where_nothing_is_proved() {
    let folder = tempfile::tempdir().unwrap();
    let [source, destination] = ["source", "destination"].map(|name| folder.path().join(name).display().to_string());
    let begun = begun(folder.path(), party(&source, None), party(&destination, None));
    let before =
        PreviousTuning { capabilities: vec![("events".to_owned(), false)], parameters: serde_json::Map::new() };
    let tuned = Effect::Tuned { side: Side::Destination, before };
    let records = [Record::Effects(vec![tuned, Effect::Incoming, Effect::Migrate]), Record::Given];
    let path = write_journal(folder.path(), begun, &records);
    let (_destination, reached) = MonitorScript::new()
        .answer("query-qmp-schema", json!([]))
        .answer("query-status", json!({"running": false, "status": "inmigrate"}))
        .answer("query-migrate", json!({"status": "failed"}))
        .duplex();
    let outcome = recover(&path, None, reached).await;
    assert_eq!(outcome.outcome, Ending::Undetermined, "{outcome:#?}");
    for what in ["migration capabilities and parameters", "an incoming migration"] {
        assert!(outcome.leftovers.iter().any(|left| left.contains(what)), "{what}: {outcome:#?}");
    }
}

/// Trace events that an engine had switched on are switched off by the recovery, and no others.
#[tokio::test(start_paused = true)]
async fn trace_events_of_a_dead_engine_are_switched_off() {
    let folder = tempfile::tempdir().unwrap();
    let side = |name: &str| {
        let at = folder.path().join(name).display().to_string();
        Party { threads: vec![7], ..party(&at, None) }
    };
    let begun = begun(folder.path(), side("source"), side("destination"));
    let traced = |side: Side, event: &str| Effect::Traced { side, events: vec![event.to_owned()] };
    let effects =
        vec![traced(Side::Source, "vmstate_downtime_save"), traced(Side::Destination, "vmstate_downtime_load")];
    let path = write_journal(folder.path(), begun, &[Record::Effects(effects)]);
    let monitor = |run: &str| {
        MonitorScript::new()
            .answer("query-qmp-schema", json!([]))
            .answer("query-status", json!({"running": run == "running", "status": run}))
            .answer("query-migrate", json!({}))
            .answer("query-cpus-fast", json!([{"cpu-index": 0, "qom-path": "/c", "thread-id": 7, "target": "x86_64"}]))
            .answer("query-block", json!([]))
            .answer("query-named-block-nodes", json!([]))
            .answer("trace-event-set-state", json!({}))
            .duplex()
    };
    let ((source, at_source), (destination, reached)) = (monitor("running"), monitor("inmigrate"));
    let outcome = recover(&path, Some(at_source), reached).await;
    assert_eq!((outcome.outcome, outcome.runs_on), (Ending::RolledBack, RunsOn::Source), "{outcome:#?}");
    for (fake, event) in [(source, "vmstate_downtime_save"), (destination, "vmstate_downtime_load")] {
        let set: Vec<_> = fake.seen().into_iter().filter(|seen| seen.name == "trace-event-set-state").collect();
        let arguments: Vec<_> = set.into_iter().map(|seen| seen.arguments).collect();
        assert_eq!(arguments, [json!({"name": event, "enable": false})], "{outcome:#?}");
    }
}

/// Both hosts have lost power, say. What the engine had not begun, nobody has finished.
#[tokio::test(start_paused = true)]
async fn the_end_of_both_qemus_leaves_nothing_and_is_told_apart() {
    let whole = [Effect::NbdServer, Effect::Incoming, Effect::Migrate];
    for (effects, ending, words) in [
        (&whole[..1], Ending::Ended, "the guest has ended on the source"),
        (&whole, Ending::Undetermined, "if the destination's log says that the guest ran there"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let identity = ended_process();
        let [source, destination] =
            ["source", "destination"].map(|name| folder.path().join(name).display().to_string());
        let begun = begun(folder.path(), party(&source, Some(identity.clone())), party(&destination, Some(identity)));
        let path = write_journal(folder.path(), begun, &[Record::Effects(effects.to_vec())]);
        let outcome = Migration::recover(&path).start_here().unwrap().wait().await;
        assert_eq!((outcome.outcome, &outcome.leftovers), (ending, &Vec::new()), "{outcome:#?}");
        assert!(outcome.reason.is_some_and(|reason| reason.message.contains(words)), "{ending:?}");
    }
}
