//! The watchdog, which frees a side that hangs, and the journal of the engine.
//!
//! Promise: no-endless-wait.

use super::*;
use qferry::internals::{
    journal,
    migration::{
        JournalPlace,
        record::{GuestClaim, JournalStatus, Record},
    },
    run_id::RunId,
};

/// A source whose main loop hangs from this command on until one of these instances is yanked.
fn hangs(command: &'static str, instances: &'static [&'static str]) -> ModelPair {
    let model = ModelPair::new(&PairShape::default());
    model.when(Source, command, model.source.freezer());
    let thaw = model.source.thawer();
    model.source.on("yank", move |seen| {
        let instance = &seen.arguments["instances"][0];
        let name = instance["node-name"].as_str().or(instance["type"].as_str()).unwrap_or_default();
        if !instances.iter().any(|instance| name.ends_with(instance)) {
            return vec![AnswerStep::error("Instance not found")];
        }
        thaw();
        vec![AnswerStep::Return(json!({}))]
    });
    model
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_in_the_switchover_is_freed() {
    for instances in [&["-nbd-0"][..], &["migration"]] {
        for command in ["block-job-cancel", "migrate"] {
            let mut model = hangs(command, instances);
            let run = model.migrate().await;
            // The destination answers, so the source is given the time that its disks may take.
            back(&model, &run, Ending::RolledBack, "switchover-timeout");
            assert!(run.outcome.reason.as_ref().unwrap().message.contains("flushing its disks"), "{command}: {run:?}");
            assert_eq!(run.actions("yank"), 1, "{command}: {run:?}");
            let stood = run.outcome.blackout_ms.unwrap();
            assert!(stood < 10_000.0, "{command}: {stood}");
        }
    }
}

/// QEMU drains its disks before it says that the guest stands: nothing but its silence is known then, and the time of
/// the switchover bounds the silence, not the usual time for an answer.
#[tokio::test(start_paused = true)]
async fn a_source_that_drains_its_disks_is_waited_for() {
    let mut model = model();
    model.state().ram_takes = Duration::from_secs(45);
    let (freeze, mut thaw) = (model.source.freezer(), Some(model.source.thawer()));
    model.when(Source, "migrate", move || {
        freeze();
        if let Some(thaw) = thaw.take() {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(40)).await;
                thaw();
            });
        }
    });
    let builder = model.builder().switchover_timeout(Duration::from_secs(120));
    let run = model.follow(builder.start_here().unwrap()).await;
    moved(&model, &run);
    assert_eq!(run.actions("yank"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn only_instances_of_the_engine_are_yanked() {
    let mut model = hangs("block-job-cancel", &["another"]);
    let run = model.migrate().await;
    // No yank frees the source, so the outcome is undetermined.
    undetermined(&run);
    let yanked = run.log.iter().filter(|(_, seen)| seen.name == "yank");
    for (side, seen) in yanked {
        let instances = seen.arguments["instances"].as_array().unwrap();
        let of_the_engine = |instance: &Value| match instance["node-name"].as_str() {
            Some(node) => {
                let made = RunId::of_name(node);
                let own = made.is_some_and(|(run, what)| !run.is_of_earlier_version() && what == "nbd-0");
                instance["type"] == "block-node" && own
            }
            None => *instance == json!({"type": "migration"}),
        };
        assert!(side == "source" && instances.iter().all(of_the_engine) && seen.oob, "{seen:?}");
    }
}

/// Migrates with a journal, and reads that journal.
pub(super) async fn journaled(model: &mut ModelPair) -> (MigrationRun, Vec<Record>, std::path::PathBuf) {
    let path = model.directory.path().join("journal");
    let builder = model.builder().journal(JournalPlace::File(path.clone()));
    let run = model.follow(builder.start_here().unwrap()).await;
    // The lock of the journal is free at once for the next engine.
    drop(journal::Journal::<Record>::open(&path).unwrap());
    let records = journal::read::<Record>(&path).unwrap().into_iter().map(|entry| entry.record).collect();
    (run, records, path)
}

#[tokio::test(start_paused = true)]
async fn the_journal_says_what_was_done_in_its_order() {
    let mut model = model();
    let (run, records, path) = journaled(&mut model).await;
    moved(&model, &run);
    let words: Vec<String> = records.iter().map(word).collect();
    let expected = [
        "begun",
        "socket-file nbd-server",
        "mirror",
        "tuned socket-file incoming",
        "tuned migrate",
        "given",
        "starting",
        "ended",
    ];
    assert_eq!(words, expected);
    let entries = journal::read::<Record>(&path).unwrap();
    let status: JournalStatus = journal::fold(&entries).unwrap();
    assert_eq!(status.claim, GuestClaim::Given);
    assert!(status.ended.is_some_and(|ended| ended.is_settled() && ended.outcome == Ending::Moved));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(start_paused = true)]
async fn the_journal_of_a_way_back_leaves_nothing_to_be_undone() {
    let mut model = model();
    model.refused(Source, "migrate-continue");
    let (run, records, _) = journaled(&mut model).await;
    back(&model, &run, Ending::RolledBack, "command-refused");
    assert!(records.contains(&Record::Given) && records.contains(&Record::Kept), "{records:?}");
    let mut status = JournalStatus::default();
    for record in &records {
        journal::Fold::apply(&mut status, record).unwrap();
    }
    assert_eq!((status.effects, status.claim), (Vec::new(), GuestClaim::Source), "{records:?}");
}

/// A migration without a journal is not begun, and a file that is no journal is left alone.
#[tokio::test(start_paused = true)]
async fn a_journal_that_cannot_be_begun_refuses_and_one_that_is_there_is_left() {
    let mut model = model();
    let path = model.directory.path().join("journal");
    std::fs::write(&path, "of another").unwrap();
    let builder = model.builder().journal(JournalPlace::File(path.clone()));
    let run = model.follow(builder.start_here().unwrap()).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, "journal"), "{run:?}");
    assert_eq!(run.told(), Vec::<String>::new());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "of another");
}

fn word(record: &Record) -> String {
    let value = serde_json::to_value(record).unwrap();
    match (record, value) {
        (Record::Effects(_), Value::Object(object)) => {
            let effects = object["effects"].as_array().unwrap();
            let name = |effect: &Value| match effect {
                Value::String(name) => name.clone(),
                other => other.as_object().unwrap().keys().next().unwrap().clone(),
            };
            effects.iter().map(name).collect::<Vec<_>>().join(" ")
        }
        (_, Value::String(name)) => name,
        (_, other) => other.as_object().unwrap().keys().next().unwrap().clone(),
    }
}

#[tokio::test(start_paused = true)]
async fn the_switchover_has_its_time() {
    // The mirrors never conclude, and the guest resumes well within the time for the switchover.
    let mut model = model();
    model.state().mirror_ends = vec![MirrorEnd::Never];
    let builder = model.builder().switchover_timeout(Duration::from_secs(4));
    let run = model.follow(builder.start_here().unwrap()).await;
    back(&model, &run, Ending::RolledBack, "no-answer");
    assert!(run.outcome.blackout_ms.unwrap() < 4000.0, "{run:?}");
}
