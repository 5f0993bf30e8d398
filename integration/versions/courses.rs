//! The events of the three recorded migrations, folded as the engine folds them.

use super::recording::{Version, versions};
use qferry::internals::{
    qemu::{
        Observed,
        reply::{JobStatus, MigrationStatus},
    },
    qmp::{
        QmpEvent,
        frame::QmpFrame,
        transcript::{EntryBody, LineDirection},
    },
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

/// The mirror of the only disk.
const MIRROR: &str = "qferry-mirror-0";
/// Statuses that every job passes through and the engine ignores. (`null` is the status of a dismissed job.)
const UNNAMED: [&str; 4] = ["null", "pending", "standby", "waiting"];

/// The events of both sides, folded, and the statuses of each in their order.
pub(crate) struct Told {
    pub(crate) source: Observed,
    pub(crate) destination: Observed,
    pub(crate) statuses: BTreeMap<String, Vec<String>>,
}

pub(crate) fn told(version: &Version, course: &str) -> Told {
    let base = Instant::now();
    let mut sides: BTreeMap<String, Observed> = BTreeMap::new();
    let mut statuses: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (entry, sequence) in version.transcript(course).into_iter().zip(0..) {
        let (LineDirection::Receive, EntryBody::Line(line)) = (entry.direction, entry.body) else { continue };
        let QmpFrame::Event(frame) = QmpFrame::classify(line).unwrap() else { continue };
        let status = frame.data["status"].as_str().unwrap_or_default().to_owned();
        match frame.name.as_str() {
            "MIGRATION" => statuses.entry(entry.side.clone()).or_default().push(status),
            "JOB_STATUS_CHANGE" => {
                let known = !matches!(JobStatus::from(status.as_str()), JobStatus::Other(_));
                assert!(known || UNNAMED.contains(&status.as_str()), "{} {course}: job {status}", version.name);
            }
            _ => {}
        }
        sides.entry(entry.side).or_default().apply(&QmpEvent {
            sequence,
            received: base + entry.at,
            received_wall: SystemTime::now(),
            emitted: frame.timestamp,
            unanswered: None,
            answered: None,
            name: frame.name,
            data: frame.data,
        });
    }
    let mut take = |side| sides.remove(side).unwrap_or_default();
    Told { source: take("source"), destination: take("destination"), statuses }
}

fn at(seen: &Observed, status: &MigrationStatus) -> Duration {
    seen.entered(status).unwrap_or_else(|| panic!("never {status}: {seen:?}")).wall
}

fn entered(seen: &Observed, status: &MigrationStatus) -> bool {
    seen.entered(status).is_some()
}

/// Common to all three: the guest stopped, then the source waited, and then the mirror ended well.
fn settled(seen: &Observed) {
    let stopped = seen.stopped.expect("STOP").wall;
    let waited = at(seen, &MigrationStatus::PreSwitchover);
    let mirror = &seen.jobs[MIRROR];
    assert!(stopped <= waited && waited <= mirror.concluded.expect("it concluded").wall, "{seen:?}");
    assert_eq!((mirror.aborted, mirror.error.as_deref()), (false, None));
    assert_eq!(mirror.status, Some(JobStatus::Other("null".to_owned())), "it was not dismissed");
    assert_eq!(seen.jobs.len(), 1);
}

/// The source has the guest again, and the destination never had it.
fn went_back(told: &Told) {
    let source = &told.source;
    assert!(source.resumed.expect("RESUME").wall >= source.stopped.expect("STOP").wall);
    assert!(!entered(source, &MigrationStatus::Completed) && !entered(&told.destination, &MigrationStatus::Completed));
    assert_eq!(told.destination.resumed, None);
}

#[test]
fn one_succeeds() {
    for version in versions() {
        let told = told(&version, "succeeds");
        let Told { source, destination, .. } = &told;
        settled(source);
        let [source_completed, destination_completed] =
            [source, destination].map(|side| at(side, &MigrationStatus::Completed));
        assert!(at(source, &MigrationStatus::Device) <= source_completed);
        assert!(source.jobs[MIRROR].concluded.unwrap().wall <= destination_completed.min(source_completed));
        assert!(
            destination.resumed.expect("RESUME").wall >= destination_completed.max(source_completed),
            "{}",
            version.name
        );
        assert_eq!(source.resumed, None);
        for bad in [MigrationStatus::Failed, MigrationStatus::Failing, MigrationStatus::Cancelled] {
            assert!(!entered(source, &bad) && !entered(destination, &bad), "{}: {bad}", version.name);
        }
    }
}

#[test]
fn one_is_cancelled() {
    for version in versions() {
        let told = told(&version, "cancelled");
        settled(&told.source);
        went_back(&told);
        assert!(at(&told.source, &MigrationStatus::Cancelled) >= at(&told.source, &MigrationStatus::PreSwitchover));
        assert!(!entered(&told.source, &MigrationStatus::Device) && !entered(&told.source, &MigrationStatus::Failed));
    }
}

#[test]
fn one_fails() {
    for version in versions() {
        let told = told(&version, "fails");
        settled(&told.source);
        went_back(&told);
        assert!(at(&told.source, &MigrationStatus::Failed) >= at(&told.source, &MigrationStatus::Device));
        assert!(entered(&told.destination, &MigrationStatus::Failed), "{}", version.name);
        let has_failing = version.schema().argument_values("migrate-continue", "state").contains(&"failing");
        assert_eq!(entered(&told.source, &MigrationStatus::Failing), has_failing, "{}", version.name);
    }
}
