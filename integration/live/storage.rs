//! Storage before and during a migration: proofs, refusals, and the images on the destination.
//!
//! Most pairs have no guest system, because a preflight needs none, and start in half a second. A preflight must have
//! the expected findings, and must not change any export, job, node, file or byte.

mod bitmaps;
mod contents;
mod faults;
mod images;
mod kept;
mod leftovers;
mod media;
mod pairing;
mod runs;
mod servers;
mod shapes;
mod shared;
mod untouched;
mod view;
mod write_times;

use super::support::{builder, judge_moved, migrate, settings};
use qferry::internals::{
    migration::{Builder, Plan, Settings},
    preflight::checks::{Finding, Severity},
    progress::Outcome,
};
use qferry_bed::{Device, DiskSpec, Machine, Pair, Side, Spec, image_facts};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt::Display,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

const KIB: u64 = 1 << 10;

fn quick(disks: impl Into<Vec<DiskSpec>>) -> Spec {
    Spec { disks: disks.into(), ..Spec::quick() }
}

/// A migration of a pair, with changed settings.
fn engine(pair: &Pair, change: impl FnOnce(&mut Settings)) -> Builder {
    let mut settings = settings(pair);
    change(&mut settings);
    builder(pair).settings(settings)
}

/// Plans a migration, which must change nothing.
#[track_caller]
fn look(pair: &Pair, change: impl FnOnce(&mut Settings)) -> Plan {
    let before = State::of(pair);
    let plan = engine(pair, change).check().unwrap().wait_blocking().unwrap_or_else(|failure| panic!("{failure:?}"));
    before.is_still(pair);
    plan
}

/// Migrates, and compares every disk of both sides. The guest writes nothing, so nothing may differ.
#[track_caller]
fn moves(pair: &Pair, change: impl FnOnce(&mut Settings)) -> Outcome {
    let outcome = migrate(engine(pair, change));
    arrived(pair, &outcome);
    outcome
}

/// Compares every disk after a migration that has succeeded.
#[track_caller]
fn arrived(pair: &Pair, outcome: &Outcome) {
    judge_moved(pair, outcome);
    pair.destination.finish().unwrap();
    for disk in 0..pair.spec().disks.len() {
        pair.guest_visible_equal(disk).unwrap_or_else(|error| panic!("disk {disk}: {error}"));
        if pair.spec().disks[disk].device == Device::Pflash {
            continue; // QEMU writes all of it out when the guest starts
        }
        let data = |side| image_facts(pair.build(side), &pair.machine(side).disks()[disk].overlay).unwrap().allocated;
        let (at_source, at_destination) = (data(Side::Source), data(Side::Destination));
        assert!(
            at_destination <= at_source,
            "disk {disk} has {at_destination} bytes where the source's has {at_source}"
        );
    }
}

/// An expected finding: severity, code, subject, and words of the message.
struct Expected(Severity, &'static str, &'static str, Vec<String>);

fn expected<const N: usize>(
    severity: Severity,
    code: &'static str,
    subject: &'static str,
    words: [&dyn Display; N],
) -> Expected {
    Expected(severity, code, subject, words.iter().map(ToString::to_string).collect())
}

fn blocker<const N: usize>(code: &'static str, subject: &'static str, words: [&dyn Display; N]) -> Expected {
    expected(Severity::Blocker, code, subject, words)
}

fn warning<const N: usize>(code: &'static str, subject: &'static str, words: [&dyn Display; N]) -> Expected {
    expected(Severity::Warning, code, subject, words)
}

fn note<const N: usize>(code: &'static str, subject: &'static str, words: [&dyn Display; N]) -> Expected {
    expected(Severity::Note, code, subject, words)
}

/// The plan has exactly these findings, each with a remedy.
#[track_caller]
fn found(plan: &Plan, all: impl IntoIterator<Item = Expected>) {
    let mut rest: Vec<&Finding> = plan.findings.iter().collect();
    for Expected(severity, code, subject, words) in all {
        // The subject of a finding about a side has the side's address, too.
        let about = |finding: &Finding| finding.subject.split(" (").next() == Some(subject);
        let is_it = |finding: &Finding| {
            let said = words.iter().all(|word| finding.message.contains(word));
            finding.severity == severity && finding.code == code && about(finding) && said
        };
        let Some(at) = rest.iter().position(|finding| is_it(finding)) else {
            panic!("no {severity} {code} about {subject} with {words:?} in {:#?}", plan.findings);
        };
        let finding = rest.remove(at);
        let bare = severity == Severity::Note || finding.message.starts_with("forced");
        assert!(bare || !finding.remedy.is_empty(), "no remedy: {finding:?}");
    }
    assert!(rest.is_empty(), "found besides: {rest:#?}");
}

/// Starts the destination again, after a change to its files.
fn anew(pair: &mut Pair, act: impl FnOnce(&Pair)) {
    pair.destination.kill().unwrap();
    act(pair);
    pair.restart_destination(false).unwrap_or_else(|error| panic!("{error}"));
}

/// Runs `qemu-img` of the destination's build on words that may be paths.
fn img(pair: &Pair, words: &[&dyn Display]) {
    pair.build(Side::Destination).img(words.iter().map(ToString::to_string)).unwrap_or_else(|error| panic!("{error}"));
}

fn overlay(pair: &Pair, side: Side, disk: usize) -> std::path::Display<'_> {
    pair.machine(side).disks()[disk].overlay.display()
}

fn layer(pair: &Pair, side: Side, disk: usize, layer: usize) -> std::path::Display<'_> {
    pair.machine(side).disks()[disk].layers[layer].display()
}

/// Starts an NBD server that is not the engine's.
fn serve(machine: &Machine, at: &Path) {
    machine.qmp("nbd-server-start", &json!({"addr": {"type": "unix", "data": {"path": at}}})).unwrap();
}

/// The visible state of both sides and of their files.
#[derive(Debug, PartialEq)]
struct State {
    sides: [BTreeMap<String, Value>; 2],
    files: BTreeMap<PathBuf, (u64, u64, i64, i64)>,
}

impl State {
    #[track_caller]
    fn of(pair: &Pair) -> Self {
        let mut files = BTreeMap::new();
        walk(pair.run_dir().parent().unwrap(), &mut files);
        Self { sides: [&pair.source, &pair.destination].map(side), files }
    }

    #[track_caller]
    fn is_still(&self, pair: &Pair) {
        let now = Self::of(pair);
        assert_eq!(now.sides, self.sides);
        assert_eq!(now.files, self.files);
    }
}

/// The part of a QEMU's state that must not change.
fn side(machine: &Machine) -> BTreeMap<String, Value> {
    let ask = |command: &str| machine.qmp(command, &json!({})).unwrap();
    let nodes = ask("query-named-block-nodes");
    let nodes = nodes.as_array().unwrap().iter();
    let nodes: BTreeMap<String, Value> = nodes
        .map(|node| {
            let name = node["node-name"].as_str().unwrap().to_owned();
            (name, json!([node["active"], node["ro"], node["dirty-bitmaps"].as_array().map(Vec::len)]))
        })
        .collect();
    [
        ("status", ask("query-status")),
        ("exports", ask("query-block-exports")),
        ("jobs", ids(&ask("query-jobs"))),
        ("nodes", json!(nodes)),
        ("more", json!(machine.leftovers().unwrap())),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The ids of a list, without fields that change by themselves.
fn ids(list: &Value) -> Value {
    list.as_array().unwrap().iter().map(|item| item["id"].clone()).collect()
}

/// Size, inode and time of change of every file but QEMU's stderr.
fn walk(folder: &Path, files: &mut BTreeMap<PathBuf, (u64, u64, i64, i64)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let facts = fs::symlink_metadata(&path).unwrap();
        if facts.is_dir() {
            walk(&path, files);
        } else if path.file_name().is_none_or(|name| name != "stderr") {
            files.insert(path, (facts.len(), facts.ino(), facts.mtime(), facts.mtime_nsec()));
        }
    }
}

#[test]
fn a_pair_that_is_as_it_should_be_has_nothing_against_it() {
    for version in ["7.2", "10.0.2", "10.0.13", "11.1"] {
        let pair = super::support::start(&Spec { version: version.to_owned(), ..Spec::quick() });
        let plan = look(&pair, |_| ());
        found(&plan, []);
        assert_eq!(plan.verified.len(), 1);
        assert_eq!((plan.disks.len(), plan.disks[0].mode), (1, "incremental"));
    }
}
