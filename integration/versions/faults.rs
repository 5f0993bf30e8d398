//! The hand-made faults of `qmp-fixtures/faults`, which no real QEMU sends at will. The client survives all of them.

use super::{
    recording::{command_of, root},
    replies::readers,
};
use crate::fake::MonitorScript;
use qapi::qmp;
use qferry::internals::{
    qemu::{
        Observed,
        reply::{
            BlockExport, BlockNode, JobInfo, JobStatus, MigrationInfo, MigrationStatus, RunState, StatusInfo,
            TolerantList,
        },
    },
    qmp::{
        CloseCause, ErrorClass, QmpClient, QmpEvent, QmpOptions, StreamItem,
        frame::{self, QmpFrame},
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant, SystemTime},
};

const MIRROR: &str = "qferry-mirror-0";
const LONG: Duration = Duration::from_secs(60);

fn bytes(file: &str) -> Vec<u8> {
    fs::read(root().join("qmp-fixtures/faults").join(file)).unwrap()
}

/// The frames of a file of lines that are all JSON, with the lines themselves.
fn frames(file: &str) -> Vec<(Value, QmpFrame)> {
    let lines: Vec<Value> = bytes(file)
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| frame::parse(line).unwrap())
        .collect();
    lines.into_iter().map(|line| (line.clone(), QmpFrame::classify(line).unwrap())).collect()
}

/// The events of a file, folded.
fn folded(file: &str) -> Observed {
    let mut observed = Observed::default();
    for (sequence, (_, frame)) in (0..).zip(frames(file)) {
        if let QmpFrame::Event(frame) = frame {
            observed.apply(&QmpEvent {
                sequence,
                received: Instant::now(),
                received_wall: SystemTime::now(),
                emitted: frame.timestamp,
                unanswered: None,
                answered: None,
                name: frame.name,
                data: frame.data,
            });
        }
    }
    observed
}

/// The answer with this number in a file.
fn answer<T: DeserializeOwned>(file: &str, number: u32) -> Result<T, serde_json::Error> {
    let frames = frames(file);
    let wanted = |line: &Value| line["id"].as_str().is_some_and(|id| id.ends_with(&format!("#{number}")));
    let (line, _) = frames.iter().find(|(line, _)| wanted(line)).unwrap();
    serde_json::from_value(line["return"].clone())
}

#[test]
fn unknown_values_mean_keep_waiting() {
    let file = "unknown-values.jsonl";
    let seen = folded(file);
    let other = |text: &str| MigrationStatus::Other(text.to_owned());
    for status in [MigrationStatus::Failing, MigrationStatus::PostcopyDevice, other("dreaming")] {
        assert!(seen.entered(&status).is_some() && !status.is_over(), "{status}");
    }
    assert_eq!(seen.jobs[MIRROR].status, Some(JobStatus::Other("dreaming".to_owned())));
    assert_eq!(answer::<StatusInfo>(file, 901).unwrap().status, RunState::Other("dreaming".to_owned()));
    assert_eq!(answer::<MigrationInfo>(file, 902).unwrap().status, Some(other("dreaming")));
    assert_eq!(
        answer::<TolerantList<JobInfo>>(file, 903).unwrap().0[0].status,
        JobStatus::Other("dreaming".to_owned())
    );
}

#[test]
fn an_unknown_event_changes_nothing() {
    assert_eq!(folded("unknown-event.jsonl"), Observed::default());
}

#[test]
fn members_that_may_be_missing_may_be_missing() {
    let file = "missing-members.jsonl";
    assert_eq!(folded(file), Observed::default());
    let readers = readers();
    for (line, frame) in frames(file) {
        if let QmpFrame::Reply(reply) = frame {
            readers[command_of(&line)](&reply.result.unwrap()).unwrap_or_else(|error| panic!("{error}: {line}"));
        }
    }
    let ram = answer::<MigrationInfo>(file, 902).unwrap().ram.unwrap();
    assert_eq!((ram.mbps, ram.dirty_pages_rate, ram.page_size), (0.0, 0, 4096));
}

#[test]
fn a_mirror_that_completes_with_an_error_has_failed() {
    let job = &folded("mirror-error.jsonl").jobs[MIRROR];
    assert!(job.concluded.is_some());
    assert_eq!((job.error.as_deref(), job.aborted), (Some("Input/output error"), false));
    let job = answer::<TolerantList<JobInfo>>("mirror-error.jsonl", 901).unwrap().0.remove(0);
    assert_eq!(job.error.as_deref(), Some("Input/output error"));
}

#[test]
fn without_qemus_clock_our_own_is_used() {
    let before = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let seen = folded("clock-failed.jsonl");
    assert!(seen.stopped.unwrap().wall >= before && seen.resumed.unwrap().wall >= before);
}

#[test]
fn huge_numbers_are_read_or_refused_but_never_wrapped() {
    let file = "huge-numbers.jsonl";
    assert_eq!(folded(file).stopped.unwrap().wall.as_secs(), u64::MAX);
    let ram = answer::<MigrationInfo>(file, 901).unwrap().ram.unwrap();
    assert_eq!((ram.remaining, ram.dirty_pages_rate), (u64::MAX, u64::MAX));
    assert!(
        qferry::internals::memory::sample::event(&answer(file, 901).unwrap()).is_some(),
        "what is made of it does not overflow"
    );
    assert!(answer::<MigrationInfo>(file, 902).is_err(), "larger than anything QEMU can mean");
    let jobs = answer::<TolerantList<qferry::internals::qemu::reply::BlockJobInfo>>(file, 903).unwrap().0;
    assert_eq!(jobs.iter().map(|job| job.device.as_str()).collect::<Vec<_>>(), ["k"]);
}

#[test]
fn an_error_is_an_error_whatever_its_class() {
    let refusals: Vec<_> = frames("unknown-error-class.jsonl")
        .into_iter()
        .map(|(_, frame)| match frame {
            QmpFrame::Reply(reply) => reply.result.unwrap_err(),
            other => panic!("{other:?}"),
        })
        .collect();
    let classes: Vec<_> = refusals.iter().map(|refusal| refusal.class.clone()).collect();
    assert_eq!(classes[0], ErrorClass::Other("SomethingNew".to_owned()));
    assert_eq!((classes.len(), refusals[1].desc.as_str()), (3, "without a class"));
}

#[test]
fn one_strange_element_leaves_the_others() {
    let file = "strange-element.jsonl";
    let jobs = answer::<TolerantList<JobInfo>>(file, 901).unwrap().0;
    assert_eq!(jobs.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(answer::<TolerantList<BlockExport>>(file, 902).unwrap().0.len(), 1);
    let nodes = answer::<TolerantList<BlockNode>>(file, 903).unwrap().0;
    assert_eq!((nodes.len(), nodes[0].dirty_bitmaps.len()), (1, 1));
}

/// All faults on one connection: lines that are no QMP are counted, the others arrive, and the next command works.
#[tokio::test]
async fn the_connection_survives_all_of_it() {
    let folder = fs::read_dir(root().join("qmp-fixtures/faults")).unwrap();
    let files: BTreeSet<String> = folder.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    let (fake, stream) = MonitorScript::new().duplex();
    let client = QmpClient::connect(stream, QmpOptions::default()).await.unwrap();
    let mut events = client.subscribe();
    let (mut expected, mut replies, mut garbage) = (Vec::new(), 0, 0);
    for file in files.iter().filter(|file| *file != "torn-line.txt") {
        fake.raw(bytes(file));
        if file.ends_with(".txt") {
            garbage += bytes(file).split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count() as u64;
            continue;
        }
        for (_, frame) in frames(file) {
            match frame {
                QmpFrame::Event(event) => expected.push(event.name),
                _ => replies += 1,
            }
        }
    }
    client.execute(&qmp::query_status {}, LONG).await.unwrap();
    for name in expected {
        match events.next().await {
            StreamItem::Event(event) => assert_eq!(event.name, name),
            other => panic!("{other:?} in place of {name}"),
        }
    }
    let counters = client.counters();
    assert_eq!((counters.unknown_ids, counters.unparsable), (replies, garbage));

    let torn = bytes("torn-line.txt");
    fake.raw(torn.clone());
    fake.close();
    assert!(matches!(client.wait_closed().await, CloseCause::EndOfStream));
    assert_eq!(client.counters().torn_bytes, torn.len() as u64);
}

/// Every file has its test above, and a new file needs one.
#[test]
fn every_file_is_tested() {
    let source = include_str!("faults.rs");
    for file in fs::read_dir(root().join("qmp-fixtures/faults")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(name.ends_with(".txt") || source.contains(&format!("\"{name}\"")), "{name}");
    }
}
