//! Records `qmp-fixtures/` from real QEMUs: `record-fixtures VERSION...`, with the names of the versions in
//! `target/qemu`.
//!
//! A small guest of each version migrates three times: to the end, cancelled in the switchover, and to a destination
//! that cannot load the state. The files have what was on the wire, without the parts that `qmp-fixtures/README.md`
//! names. No recording is ever written whose migration did not end as its name says.

use qferry::internals::{
    endpoint::Address,
    migration::Migration,
    progress::{Ending, EventKind, Outcome, Phase, PhaseState},
    qmp::{
        frame::{self, QmpFrame},
        transcript::{ENGINE, EntryBody, LineDirection, Recorder, Transcript, TranscriptEntry},
    },
    quantity::Rate,
};
use qferry_bed::{DiskSpec, Pair, Spec, Workload};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    io::{BufRead, BufReader},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MIB: u64 = 1 << 20;
/// The name of a pair's folder in a recording.
const STABLE_FOLDER: &str = "/run/vm";
/// The queries that the engine repeats. Only the first and the last of a run of them stay in a recording.
const SAMPLES: [&str; 3] = ["query-migrate", "query-block-jobs", "query-named-block-nodes"];
/// The bandwidth ceiling, so low that the engine samples disks and RAM while they are copied.
const CEILING: Rate = Rate(32 * MIB);
const SCHEMA: &str = "query-qmp-schema";

/// One of the three migrations.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    Succeeds,
    Cancelled,
    Fails,
}

impl Course {
    fn name(self) -> &'static str {
        match self {
            Self::Succeeds => "succeeds",
            Self::Cancelled => "cancelled",
            Self::Fails => "fails",
        }
    }

    fn ending(self) -> Ending {
        match self {
            Self::Succeeds => Ending::Moved,
            Self::Cancelled => Ending::Cancelled,
            Self::Fails => Ending::RolledBack,
        }
    }
}

fn main() -> Result<()> {
    let versions: Vec<String> = std::env::args().skip(1).collect();
    if versions.is_empty() {
        return Err(
            "usage: record-fixtures VERSION... (scripts/record-fixtures brings the versions and runs this)".into()
        );
    }
    let scratch = tempfile::tempdir()?;
    for version in &versions {
        let mut files = BTreeMap::new();
        let mut exact = version.clone();
        for course in [Course::Succeeds, Course::Cancelled, Course::Fails] {
            let pair = Pair::start(&spec(version))?;
            if course == Course::Succeeds {
                let greeting = greeting(&pair.source.qmp_path())?;
                exact = version_of(&greeting)?;
                files.insert("greeting.json", pretty(&greeting)?);
                let schema = pair.source.qmp(SCHEMA, &json!({}))?;
                files.insert("schema.json", one_a_line(&schema)?);
                let capabilities = pair.source.qmp("query-migrate-capabilities", &json!({}))?;
                files.insert("capabilities.json", one_a_line(&capabilities)?);
            }
            let path = scratch.path().join(format!("{version}-{}", course.name()));
            let outcome = migrate(&pair, course, &path)?;
            if outcome.outcome != course.ending() {
                return Err(format!("{version}, {}: {outcome:#?}", course.name()).into());
            }
            let entries: Vec<TranscriptEntry> = Transcript::open(&path)?.collect::<std::result::Result<_, _>>()?;
            let folder = pair.run_dir().parent().map(|folder| folder.display().to_string()).unwrap_or_default();
            let name = match course {
                Course::Succeeds => "succeeds.jsonl",
                Course::Cancelled => "cancelled.jsonl",
                Course::Fails => "fails.jsonl",
            };
            files.insert(name, render(thin(entries), &folder)?);
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("qmp-fixtures").join(&exact);
        fs::create_dir_all(&folder)?;
        for (name, text) in files {
            fs::write(folder.join(name), text)?;
        }
        eprintln!("recorded QEMU {exact}");
    }
    Ok(())
}

/// A small and nearly idle guest, so that transcripts are short. The empty CD drive must be seen and left alone.
fn spec(version: &str) -> Spec {
    let disk = DiskSpec {
        size: 32 * MIB,
        backing: 32 * MIB,
        backing_data: 4 * MIB,
        overlay_data: 4 * MIB,
        ..DiskSpec::default()
    };
    let drive = ["-drive", "if=none,id=cd0,media=cdrom", "-device", "ide-cd,drive=cd0,id=cd0"];
    Spec {
        version: version.to_owned(),
        workload: Workload { dirty: MIB, write: 0, read: 0, ..Workload::default() },
        disks: vec![disk],
        extra: drive.map(str::to_owned).into(),
        ..Spec::default()
    }
}

/// The greeting on the engine's monitor, read before the engine connects.
fn greeting(monitor: &Path) -> Result<Value> {
    let mut line = String::new();
    BufReader::new(UnixStream::connect(monitor)?).read_line(&mut line)?;
    Ok(frame::parse(line.as_bytes())?)
}

fn version_of(greeting: &Value) -> Result<String> {
    match QmpFrame::classify(greeting.clone())? {
        QmpFrame::Greeting(greeting) => {
            greeting.version.map(|version| version.to_string()).ok_or_else(|| "the greeting has no version".into())
        }
        _ => Err("the first line is no greeting".into()),
    }
}

fn migrate(pair: &Pair, course: Course, transcript: &Path) -> Result<Outcome> {
    if course == Course::Fails {
        // The destination meets the state of this device last, after `migrate-continue`.
        pair.source.qmp("device_add", &json!({"driver": "virtio-rng-pci", "id": "only-here"}))?;
    }
    let address = |path: PathBuf| Address::unix(path);
    let recorder = Recorder::create(transcript)?;
    // The engine's own names for these sockets hold a process id.
    let [nbd, ram, at_source] = ["nbd.sock", "ram.sock", "here.sock"].map(|name| pair.run_dir().join(name));
    let builder = Migration::builder(address(pair.source.qmp_path())?, address(pair.destination.qmp_path())?)
        .runtime_dir(pair.run_dir())
        .addresses(address(nbd)?, address(ram)?)
        .source_nbd_address(address(at_source)?)
        .bandwidth(CEILING)
        .keep_source()
        // With a ceiling no probe is sent; everything else is measured.
        .predict()
        // The preflight sees the device that one destination lacks.
        .force("device-missing")
        .transcript(recorder.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut migration = {
        let _within = runtime.enter();
        builder.start_here()?
    };
    let outcome = runtime.block_on(async {
        let mut events = migration.events();
        while let Some(event) = events.next().await {
            let switches =
                matches!(event.kind, EventKind::Phase { phase: Phase::Switchover, state: PhaseState::Begin, .. });
            if course == Course::Cancelled && switches {
                migration.control().cancel();
            }
        }
        migration.wait().await
    });
    drop(runtime);
    match recorder.finish()?.dropped {
        0 => Ok(outcome),
        dropped => Err(format!("the transcript lacks {dropped} entries").into()),
    }
}

/// Removes the schema, which has its own file, and repeated queries.
fn thin(entries: Vec<TranscriptEntry>) -> Vec<TranscriptEntry> {
    let mut dropped: BTreeSet<String> = BTreeSet::new();
    // The notes by the index of the entry that each follows.
    let mut notes: BTreeMap<usize, Value> = BTreeMap::new();
    for side in ["source", "destination"] {
        let mut run: Vec<(usize, String)> = Vec::new();
        let of_side = entries.iter().enumerate().filter(|(_, entry)| entry.side == side);
        for (index, entry) in of_side {
            let (LineDirection::Send, EntryBody::Line(line)) = (entry.direction, &entry.body) else { continue };
            let Some(id) = line["id"].as_str() else { continue };
            if SAMPLES.contains(&command_of(id)) {
                run.push((index, id.to_owned()));
            } else {
                notes.extend(thin_run(side, &std::mem::take(&mut run), &mut dropped));
            }
        }
        notes.extend(thin_run(side, &run, &mut dropped));
    }
    let mut kept = Vec::new();
    for (index, mut entry) in entries.into_iter().enumerate() {
        if entry.side == ENGINE {
            continue;
        }
        let id = match &entry.body {
            EntryBody::Line(line) => line["id"].as_str().unwrap_or_default().to_owned(),
            EntryBody::Raw(_) => String::new(),
        };
        let (at, side) = (entry.at, entry.side.clone());
        if command_of(&id) == SCHEMA && entry.direction == LineDirection::Receive {
            entry.direction = LineDirection::Note;
            entry.body = EntryBody::Line(json!({"left-out": format!("the reply to {id}: it is in schema.json")}));
        }
        if !dropped.contains(&format!("{side} {id}")) {
            kept.push(entry);
        }
        if let Some(note) = notes.remove(&index) {
            kept.push(TranscriptEntry {
                at,
                side,
                direction: LineDirection::Note,
                body: EntryBody::Line(json!({"left-out": note})),
            });
        }
    }
    kept
}

/// Keeps the first and the last exchange of each command in a run of samples. The note has the number of the others.
fn thin_run(side: &str, run: &[(usize, String)], dropped: &mut BTreeSet<String>) -> Option<(usize, Value)> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut place = None;
    for command in SAMPLES {
        let same: Vec<_> = run.iter().filter(|(_, id)| command_of(id) == command).collect();
        if let [_, middle @ .., _] = same.as_slice() {
            for (index, id) in middle {
                dropped.insert(format!("{side} {id}"));
                *counts.entry(command).or_default() += 1;
                place = Some(place.map_or(*index, |place: usize| place.min(*index)));
            }
        }
    }
    place.map(|place| (place, json!({"exchanges": counts})))
}

/// The engine's ids are `command#number`.
fn command_of(id: &str) -> &str {
    id.split('#').next().unwrap_or_default()
}

fn render(entries: Vec<TranscriptEntry>, folder: &str) -> Result<String> {
    let mut text = String::new();
    for TranscriptEntry { at, side, direction, body } in entries {
        let (key, value) = match &body {
            EntryBody::Line(line) => ("line", line.to_string()),
            EntryBody::Raw(raw) => ("raw", json!(raw).to_string()),
        };
        let (at, direction) = (at.as_micros(), serde_json::to_string(&direction)?);
        let value = value.replace(folder, STABLE_FOLDER);
        text += &format!("{{\"v\":1,\"t_us\":{at},\"side\":\"{side}\",\"dir\":{direction},\"{key}\":{value}}}\n");
    }
    Ok(text)
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// A list with one element per line, so that its differences can be read.
fn one_a_line(list: &Value) -> Result<String> {
    let elements = list.as_array().ok_or("not a list")?;
    let lines: Vec<String> = elements.iter().map(Value::to_string).collect();
    Ok(format!("[\n{}\n]\n", lines.join(",\n")))
}
