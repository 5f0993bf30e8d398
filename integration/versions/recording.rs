//! The recordings, and the checks that they are complete.

use qferry::internals::{
    qemu::{Features, Schema},
    qmp::{
        frame::{self, QmpFrame},
        transcript::{EntryBody, LineDirection, Transcript, TranscriptEntry},
    },
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The three migrations that every version was recorded with.
pub(crate) const COURSES: [&str; 3] = ["succeeds", "cancelled", "fails"];

/// The recordings of one version.
pub(crate) struct Version {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) greeting: Value,
    pub(crate) schema: Value,
    /// The line with which QEMU sent the schema.
    schema_line: String,
    pub(crate) capabilities: Value,
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    frame::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All versions, the oldest first.
pub(crate) fn versions() -> Vec<Version> {
    let folders = fs::read_dir(root().join("qmp-fixtures")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<Version> = folders
        .filter(|folder| folder.is_dir() && !folder.ends_with("faults"))
        .map(|folder| {
            let schema = read(&folder.join("schema.json"));
            Version {
                name: folder.file_name().unwrap().to_str().unwrap().to_owned(),
                greeting: read(&folder.join("greeting.json")),
                schema_line: json!({"return": schema}).to_string(),
                schema,
                capabilities: read(&folder.join("capabilities.json")),
                folder,
            }
        })
        .collect();
    found.sort_by_key(|version| version.name.split('.').map(|part| part.parse::<u64>().unwrap()).collect::<Vec<_>>());
    assert!(found.len() >= 4, "a recording is gone");
    found
}

impl Version {
    pub(crate) fn schema(&self) -> Schema<'_> {
        Schema::read(&self.schema_line).unwrap()
    }

    pub(crate) fn features(&self) -> Features {
        Features::read(&self.schema())
    }

    pub(crate) fn transcript(&self, course: &str) -> Vec<TranscriptEntry> {
        let mut transcript = Transcript::open(self.folder.join(format!("{course}.jsonl"))).unwrap();
        let entries = transcript.by_ref().map(Result::unwrap).collect();
        assert_eq!(transcript.skipped(), 0, "{} {course}", self.name);
        entries
    }

    /// The JSON lines of all transcripts in one direction: course, side and line.
    pub(crate) fn lines(&self, wanted: LineDirection) -> Vec<(&'static str, String, Value)> {
        let entries = COURSES.iter().flat_map(|course| self.transcript(course).into_iter().map(move |e| (*course, e)));
        entries
            .filter(|(_, entry)| entry.direction == wanted)
            .map(|(course, entry)| match entry.body {
                EntryBody::Line(line) => (course, entry.side, line),
                EntryBody::Raw(raw) => panic!("{} {course}: not JSON: {raw}", self.name),
            })
            .collect()
    }
}

/// The command of a line by its id: the engine's ids begin with the command, as in `query-migrate#41`.
pub(crate) fn command_of(line: &Value) -> &str {
    line["id"].as_str().unwrap().split('#').next().unwrap()
}

/// Compares a text with its file, or writes it if `QFERRY_BLESS` is set.
pub(crate) fn golden(path: &Path, text: &str) {
    if std::env::var_os("QFERRY_BLESS").is_some() {
        return fs::write(path, text).unwrap();
    }
    let shown = path.strip_prefix(root()).unwrap().display();
    assert!(
        fs::read_to_string(path).unwrap_or_default() == text,
        "{shown} is not what the recordings say. If that is right, run 'QFERRY_BLESS=1 cargo test -p qferry --test \
         versions' and commit what git shows. It would be:\n{text}"
    );
}

#[test]
fn folders_are_named_as_their_qemu_greets() {
    for version in versions() {
        let QmpFrame::Greeting(greeting) = QmpFrame::classify(version.greeting.clone()).unwrap() else {
            panic!("{}: no greeting", version.name);
        };
        assert_eq!(greeting.version.unwrap().to_string(), version.name);
        assert!(greeting.offers_oob(), "{}", version.name);
        // Both sides of every recording have this version.
        let received = version.lines(LineDirection::Receive);
        let greetings: Vec<&Value> =
            received.iter().map(|(_, _, line)| line).filter(|line| line.get("QMP").is_some()).collect();
        assert_eq!(greetings.len(), COURSES.len() * 2, "{}", version.name);
        assert!(greetings.iter().all(|greeting| **greeting == version.greeting), "{}", version.name);
    }
}

#[test]
fn every_line_is_a_frame_and_every_command_has_its_answer() {
    for version in versions() {
        for course in COURSES {
            // By side: the commands that wait for an answer, and whether the connection failed meanwhile.
            let mut waiting: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            let mut failed = BTreeSet::new();
            for entry in version.transcript(course) {
                let at = format!("{} {course} {:?}", version.name, entry.at);
                let EntryBody::Line(line) = entry.body else { panic!("{at}: not JSON") };
                let waiting = waiting.entry(entry.side.clone()).or_default();
                let id = line["id"].as_str().unwrap_or_default();
                match entry.direction {
                    LineDirection::Send => assert!(waiting.insert(id.to_owned()), "{at}: {id} again"),
                    LineDirection::Receive => match QmpFrame::classify(line.clone()).unwrap() {
                        QmpFrame::Reply(_) => assert!(waiting.remove(id), "{at}: nobody asked for {id}"),
                        QmpFrame::Event(event) => assert!(event.timestamp.is_some(), "{at}: {}", event.name),
                        QmpFrame::Greeting(_) => {}
                    },
                    LineDirection::Note => {
                        if let Some(note) = line["left-out"].as_str() {
                            waiting.retain(|id| !note.contains(id.as_str()));
                        }
                        if line["closed"].as_str().is_some_and(|how| how != "no longer needed") {
                            failed.insert(entry.side);
                        }
                    }
                }
            }
            for (side, ids) in waiting {
                assert!(ids.is_empty() || failed.contains(&side), "{} {course} {side}: {ids:?}", version.name);
            }
        }
    }
}

/// The beginnings of all paths in a recording: the pair's folder, QOM, an export in an NBD URI, a RAM block. Any other
/// path would tell where the recording was made.
const STABLE: [&str; 4] = ["/run/vm/", "/machine", "///qferry-export-", "/rom@etc/"];

#[test]
fn nothing_tells_of_the_machine_it_was_recorded_on() {
    fn strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::String(text) => found.push(text),
            Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
            Value::Object(members) => members.values().for_each(|member| strings(member, found)),
            _ => {}
        }
    }
    for version in versions() {
        let lines = [LineDirection::Send, LineDirection::Receive, LineDirection::Note]
            .into_iter()
            .flat_map(|way| version.lines(way));
        for (course, _, line) in lines {
            let mut found = Vec::new();
            strings(&line, &mut found);
            for text in found {
                // A path begins the text, or follows a separator.
                for (at, _) in text.match_indices('/') {
                    let begins = text[..at].chars().last().is_none_or(|before| " \"'=:,(".contains(before));
                    let stable = STABLE.iter().any(|stable| text[at..].starts_with(stable));
                    assert!(!begins || stable, "{} {course}: {text}", version.name);
                }
            }
            assert!(line.get("pid").is_none(), "{} {course}: {line}", version.name);
        }
    }
}
