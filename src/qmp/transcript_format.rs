//! The format of a transcript: one JSON object a line.
//!
//! The first line is a header with the wall clock in milliseconds since the Unix epoch:
//! `{"v":1,"type":"transcript","began_ms":1700000000000,"qferry":"0.1.0"}`. Each other line is an entry:
//! `{"v":1,"t_us":1234,"side":"source","dir":"send","line":{...}}`, with `t_us` in microseconds since the recorder was
//! made and `dir` one of `send`, `receive`, `note`. An entry for a line that was not JSON has `raw`, the escaped first
//! bytes of the line, in place of `line`. An event of the engine is a note of the side `engine`, whose line is the
//! event as in the JSON of the contract. A note of the side `controller` has what the controller of convergence was
//! given, so that another policy can decide on the same. A brief transcript has `{"return_bytes":N,"id":"..."}` in
//! place of a long answer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the format that this crate writes, and the only one it reads.
pub(super) const VERSION: u64 = 1;
/// Side of the engine's own entries.
pub const ENGINE: &str = "engine";
/// Side of what the controller of convergence is given.
pub const CONTROLLER: &str = "controller";

/// Direction of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LineDirection {
    /// Sent to QEMU.
    Send,
    /// Received from QEMU.
    Receive,
    /// Not on the wire: a remark of this program.
    Note,
}

/// The first line of a transcript. Later versions add fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TranscriptHeader {
    /// Version of the format.
    pub v: u64,
    /// The kind of line: `transcript`.
    pub r#type: String,
    /// Wall clock at the beginning, in milliseconds since the Unix epoch.
    pub began_ms: u64,
    /// Version of the qferry that writes the file.
    pub qferry: String,
    /// Whether long answers are left out.
    pub brief: bool,
    /// Id of the run, where the writer knew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Address of the source's monitor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Address of the destination's monitor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
}

impl TranscriptHeader {
    /// The header of a run that begins now.
    pub fn of_run(run: String, source: String, destination: String) -> Self {
        Self { run: Some(run), source: Some(source), destination: Some(destination), ..Self::now() }
    }

    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            v: VERSION,
            r#type: "transcript".to_owned(),
            began_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            qferry: env!("CARGO_PKG_VERSION").to_owned(),
            ..Self::default()
        }
    }

    /// The header in a line; `None` for any other line.
    pub fn of_line(line: &[u8]) -> Option<Self> {
        let header: Self = serde_json::from_slice(line).ok()?;
        (header.v == VERSION && header.r#type == "transcript").then_some(header)
    }
}

/// Form of an entry in the file.
#[derive(Deserialize)]
struct StoredEntry<S> {
    v: u64,
    t_us: u64,
    side: S,
    dir: LineDirection,
    #[serde(flatten)]
    body: EntryBody,
}

/// Content of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryBody {
    /// JSON of the line, without its secrets.
    Line(Value),
    /// Beginning of a line that was not JSON, escaped.
    Raw(String),
}

/// One entry of a transcript.
#[derive(Clone, Debug, PartialEq)]
pub struct TranscriptEntry {
    /// Time since the recorder was made.
    pub at: Duration,
    /// Label of the connection, such as `source`.
    pub side: String,
    /// Direction of the line.
    pub direction: LineDirection,
    /// Content of the line.
    pub body: EntryBody,
}

/// Whether a line is one of many of its kind: a query, or the answer to one. A refusal is none.
pub(super) fn is_sample(line: &Value) -> bool {
    let command = line.get("execute").or_else(|| line.get("exec-oob"));
    let answered = line.get("id").filter(|_| command.is_none() && line.get("error").is_none());
    let name = command.or(answered).and_then(Value::as_str).unwrap_or_default();
    name.starts_with("query-") || name.starts_with("qom-")
}

/// The line of the file for an entry with the JSON of a line, in one line.
pub(super) fn render_line(at: Duration, side: &str, dir: LineDirection, json: &str) -> String {
    render(at, side, dir, "line", json)
}

/// The line of the file for an entry with the beginning of a line that was not JSON.
pub(super) fn render_raw(at: Duration, side: &str, dir: LineDirection, text: &str) -> String {
    render(at, side, dir, "raw", &quoted(text))
}

/// The line, made of its parts: a serialiser would have to be given the whole line as a tree.
fn render(at: Duration, side: &str, dir: LineDirection, body: &str, json: &str) -> String {
    let (t_us, side) = (at.as_micros(), quoted(side));
    let dir = match dir {
        LineDirection::Send => "send",
        LineDirection::Receive => "receive",
        LineDirection::Note => "note",
    };
    format!("{{\"v\":{VERSION},\"t_us\":{t_us},\"side\":{side},\"dir\":\"{dir}\",\"{body}\":{json}}}\n")
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The entry in a line; `None` for a line that is none of this version.
pub(super) fn entry_of(line: &[u8]) -> Option<TranscriptEntry> {
    let read: StoredEntry<String> = serde_json::from_slice(line).ok()?;
    let at = Duration::from_micros(read.t_us);
    (read.v == VERSION).then_some(TranscriptEntry { at, side: read.side, direction: read.dir, body: read.body })
}
