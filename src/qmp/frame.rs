//! One line of QMP, and how bytes become lines. Pure.
//!
//! The module owns the split into lines and the sorting of a line into greeting, event or reply. It works on raw JSON
//! only: an event, an enum value or an error class that this crate does not know must pass through, so no function may
//! decode into a closed type, and no input may panic.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde_json::{Map, Value};

/// One line from QEMU, by kind.
#[derive(Clone, Debug, PartialEq)]
pub enum QmpFrame {
    /// The first line that QEMU sends.
    Greeting(Greeting),
    /// An event.
    Event(EventFrame),
    /// The answer to a command.
    Reply(ReplyFrame),
}

/// Reason why a line is not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Not JSON, or nested too deeply to be read safely.
    #[error("the line is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// JSON, but neither greeting, event nor reply.
    #[error("the line is neither a greeting, an event nor a reply")]
    Unrecognised,
}

/// QEMU's greeting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Greeting {
    /// QEMU's version, if the greeting carried one. For people and logs: features are read from the schema.
    pub version: Option<QemuVersion>,
    /// The distribution's package string, such as `Debian 1:10.0.13+ds-0+deb13u1`; may be empty.
    pub package: String,
    /// Capabilities that QEMU offers, such as `oob`.
    pub capabilities: Vec<String>,
}

impl Greeting {
    /// Whether out-of-band execution is offered.
    pub fn offers_oob(&self) -> bool {
        self.capabilities.iter().any(|name| name == "oob")
    }
}

/// A QEMU version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
pub struct QemuVersion {
    /// The `10` of 10.0.13.
    pub major: u64,
    /// The `0` of 10.0.13.
    pub minor: u64,
    /// The `13` of 10.0.13.
    pub micro: u64,
}

impl QemuVersion {
    /// Whether a suspended guest is awake where it arrives. Later releases send with the guest that it is suspended,
    /// and no schema tells which do.
    pub fn wakes_migrated_guests(&self) -> bool {
        (self.major, self.minor, self.micro) < (8, 2, 50)
    }
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// An event as QEMU sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct EventFrame {
    /// QEMU's name of the event, such as `STOP`.
    pub name: String,
    /// QEMU's clock when the event was emitted, since the Unix epoch. `None` when QEMU could not read its clock (QEMU
    /// then sends -1) or sent something impossible.
    pub timestamp: Option<Duration>,
    /// Data of the event; `Null` where QEMU sent none.
    pub data: Value,
}

/// A reply as QEMU sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplyFrame {
    /// Id of the command; `None` where QEMU could not parse the line it was sent.
    pub id: Option<Value>,
    /// Return value of the command, or QEMU's refusal.
    pub result: Result<Value, ErrorReply>,
}

/// An error reply of QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorReply {
    /// Class of the error.
    pub class: ErrorClass,
    /// QEMU's text for people.
    pub desc: String,
}

/// The class of a QEMU error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Any error that QEMU gives no class of its own; most errors.
    GenericError,
    /// No such command, or not allowed in this state of the monitor.
    CommandNotFound,
    /// A device is not active.
    DeviceNotActive,
    /// No such device.
    DeviceNotFound,
    /// The host's KVM lacks a capability.
    KvmMissingCap,
    /// A class that this crate does not know; empty when QEMU gave none.
    Other(String),
}

impl From<&str> for ErrorClass {
    fn from(name: &str) -> Self {
        match name {
            "GenericError" => Self::GenericError,
            "CommandNotFound" => Self::CommandNotFound,
            "DeviceNotActive" => Self::DeviceNotActive,
            "DeviceNotFound" => Self::DeviceNotFound,
            "KVMMissingCap" => Self::KvmMissingCap,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// Parses a line as JSON.
///
/// # Errors
/// [`FrameError::NotJson`] for bytes that are not one JSON value, and for values nested deeper than 127 levels.
pub fn parse(line: &[u8]) -> Result<Value, FrameError> {
    serde_json::from_slice(line).map_err(FrameError::NotJson)
}

/// Reads no more of a line than its two ends, which tell whether the line answers a command well, and which: QEMU puts
/// `return` first and the id last. The result is the line itself, as a JSON string; whoever reads the answer finds out
/// whether all in between is JSON.
pub fn unread_reply(line: &[u8]) -> Option<ReplyFrame> {
    let line = std::str::from_utf8(line).ok()?;
    let members = line.strip_prefix("{\"return\":")?.strip_suffix('}')?;
    let (answer, id) = members.rsplit_once("\"id\":")?;
    let id: String = serde_json::from_str(id).ok()?;
    let result = Ok(Value::String(line.to_owned()));
    answer.trim_end().ends_with(',').then_some(ReplyFrame { id: Some(Value::String(id)), result })
}

impl QmpFrame {
    /// Sorts a JSON value into one of the three kinds.
    ///
    /// # Errors
    /// [`FrameError::Unrecognised`] when the value is of no kind.
    pub fn classify(value: Value) -> Result<Self, FrameError> {
        let Value::Object(mut members) = value else {
            return Err(FrameError::Unrecognised);
        };
        if let Some(Value::Object(greeting)) = members.get("QMP") {
            return Ok(Self::Greeting(greeting_of(greeting)));
        }
        if let Some(Value::String(name)) = members.get("event") {
            return Ok(Self::Event(EventFrame {
                name: name.clone(),
                timestamp: members.get("timestamp").and_then(timestamp_of),
                data: members.remove("data").unwrap_or_default(),
            }));
        }
        // An error wins over a result, because taking a refusal for a success is the worse mistake.
        let result = match (members.remove("error"), members.remove("return")) {
            (Some(error), _) => Err(error_reply_of(&error)),
            (None, Some(value)) => Ok(value),
            (None, None) => return Err(FrameError::Unrecognised),
        };
        let id = members.remove("id");
        Ok(Self::Reply(ReplyFrame { id, result }))
    }
}

fn greeting_of(greeting: &Map<String, Value>) -> Greeting {
    let version = greeting.get("version");
    let number = |part: &str| version?.get("qemu")?.get(part)?.as_u64();
    let package = version.and_then(|version| version.get("package")).and_then(Value::as_str);
    let capabilities = greeting.get("capabilities").and_then(Value::as_array);
    Greeting {
        version: (|| Some(QemuVersion { major: number("major")?, minor: number("minor")?, micro: number("micro")? }))(),
        package: package.unwrap_or_default().trim().to_owned(),
        capabilities: capabilities.into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect(),
    }
}

fn timestamp_of(timestamp: &Value) -> Option<Duration> {
    let seconds = timestamp.get("seconds")?.as_u64()?;
    let micros = u32::try_from(timestamp.get("microseconds")?.as_u64()?).ok()?;
    (micros < 1_000_000).then(|| Duration::new(seconds, micros * 1000))
}

fn error_reply_of(error: &Value) -> ErrorReply {
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    ErrorReply { class: ErrorClass::from(text("class")), desc: text("desc").to_owned() }
}

/// Cuts a byte stream into lines of bounded length.
///
/// The caller reads into [`LineCutter::reserve_space`] and then takes lines until there are no more. A line over the
/// limit is thrown away up to its newline and the stream goes on, so memory stays bounded whatever the peer sends.
#[derive(Debug)]
pub struct LineCutter {
    buffer: BytesMut,
    /// Number of leading bytes of `buffer` that are known to hold no newline.
    scanned: usize,
    /// Number of bytes of the current overlong line thrown away so far; 0 when the line is within bounds.
    discarded: usize,
    limit: usize,
}

/// A piece that [`LineCutter`] cut off the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineCut {
    /// Content of a line, without its line end.
    Line(BytesMut),
    /// Length in bytes of a line over the limit, which was thrown away.
    Oversized(usize),
}

impl LineCutter {
    /// A cutter for lines of at most `limit` bytes, the line end not counted.
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, discarded: 0, limit }
    }

    /// Reserves room in the buffer and returns the buffer, to read more bytes into. The caller must only append.
    pub fn reserve_space(&mut self) -> &mut BytesMut {
        self.buffer.reserve(READ_SIZE);
        &mut self.buffer
    }

    /// The next cut, or `None` until more bytes arrive.
    pub fn next_cut(&mut self) -> Option<LineCut> {
        let unscanned = &self.buffer[self.scanned..];
        // `contains` is several times as fast as `position`, and most pieces of a long line hold no newline
        let found = unscanned.contains(&b'\n').then(|| unscanned.iter().position(|byte| *byte == b'\n')).flatten();
        let Some(newline) = found.map(|at| at + self.scanned) else {
            self.scanned = self.buffer.len();
            if self.discarded > 0 || self.buffer.len() > self.limit + 1 {
                self.discarded += self.buffer.len();
                self.buffer.clear();
                self.scanned = 0;
            }
            return None;
        };
        self.scanned = 0;
        let mut line = self.buffer.split_to(newline);
        self.buffer.advance(1);
        let discarded = std::mem::take(&mut self.discarded);
        if discarded == 0 && line.last() == Some(&b'\r') {
            line.truncate(newline - 1);
        }
        let length = discarded + line.len();
        Some(if discarded > 0 || length > self.limit { LineCut::Oversized(length) } else { LineCut::Line(line) })
    }

    /// Number of bytes of an unfinished line, which are left over at the end of the stream.
    pub fn torn(&self) -> usize {
        self.discarded + self.buffer.len()
    }
}

/// Every connection keeps room for so much at least, and a process may have two thousand of them.
const READ_SIZE: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn frame(line: &str) -> QmpFrame {
        QmpFrame::classify(parse(line.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn greeting_of_a_distribution_build() {
        let line = r#"{"QMP": {"version": {"qemu": {"micro": 13, "minor": 0, "major": 10},
            "package": "Debian 1:10.0.13"}, "capabilities": ["oob", 7]}}"#;
        let QmpFrame::Greeting(greeting) = frame(line) else { panic!("not a greeting") };
        assert_eq!(greeting.version.unwrap().to_string(), "10.0.13");
        assert_eq!(greeting.package, "Debian 1:10.0.13");
        assert_eq!(greeting.capabilities, ["oob"]);
        assert!(greeting.offers_oob());
    }

    #[test]
    fn a_greeting_without_members_is_recognised() {
        assert_eq!(frame(r#"{"QMP": {}}"#), QmpFrame::Greeting(Greeting::default()));
    }

    #[test]
    fn a_line_is_left_unread_only_where_its_ends_are_those_of_an_answer() {
        let line = r#"{"return": [{"name": "a\n"}], "id": "x#1"}"#;
        let expected = ReplyFrame { id: Some(json!("x#1")), result: Ok(json!(line)) };
        assert_eq!(unread_reply(line.as_bytes()), Some(expected));
        for other in [
            r#"{"id": "x#1", "return": []}"#,
            r#"{"return": []}"#,
            r#"{"return": [], "id": 5}"#,
            r#"{"return": {"a": 1, "id": "x#1"}}"#,
            r#"{"return": "id": "x#1"}"#,
            r#"{"error": {"class": "GenericError"}, "id": "x#1"}"#,
            r#"{"event": "STOP", "return": {}}"#,
            r#"{"QMP": {}, "return": {}}"#,
            r#"{"return": [], "id": "x#1"} {}"#,
            "[]",
        ] {
            assert_eq!(unread_reply(other.as_bytes()), None, "{other}");
        }
        assert_eq!(unread_reply(b"{\"return\": \"\xff\"}"), None);
    }

    #[test]
    fn unknown_event_with_a_failed_clock() {
        let line = r#"{"event": "NEW", "timestamp": {"seconds": -1, "microseconds": -1}}"#;
        let expected = EventFrame { name: "NEW".into(), timestamp: None, data: Value::Null };
        assert_eq!(frame(line), QmpFrame::Event(expected));
    }

    #[test]
    fn timestamps_become_durations_or_nothing() {
        let cases = [
            (json!({"seconds": 3, "microseconds": 5}), Some(Duration::new(3, 5000))),
            (json!({"seconds": u64::MAX, "microseconds": 999_999}), Some(Duration::new(u64::MAX, 999_999_000))),
            (json!({"seconds": 3, "microseconds": 1_000_000}), None),
            (json!({"seconds": 3}), None),
            (json!(null), None),
        ];
        for (timestamp, expected) in cases {
            assert_eq!(timestamp_of(&timestamp), expected, "{timestamp}");
        }
    }

    #[test]
    fn replies_carry_a_result_or_an_error() {
        assert_eq!(
            frame(r#"{"return": {}, "id": "a#1"}"#),
            QmpFrame::Reply(ReplyFrame { id: Some(json!("a#1")), result: Ok(json!({})) })
        );
        let refusal = ErrorReply { class: ErrorClass::Other("Newer".into()), desc: "no".into() };
        assert_eq!(
            frame(r#"{"return": {}, "error": {"class": "Newer", "desc": "no"}}"#),
            QmpFrame::Reply(ReplyFrame { id: None, result: Err(refusal) })
        );
        let bare = ErrorReply { class: ErrorClass::Other(String::new()), desc: String::new() };
        assert_eq!(frame(r#"{"error": 1}"#), QmpFrame::Reply(ReplyFrame { id: None, result: Err(bare) }));
    }

    #[test]
    fn lines_of_no_kind_are_errors() {
        for line in ["{}", "[]", "1", r#"{"event": 1}"#, r#"{"QMP": 1}"#, r#"{"id": "x"}"#] {
            let value = parse(line.as_bytes()).unwrap();
            assert!(matches!(QmpFrame::classify(value), Err(FrameError::Unrecognised)), "{line}");
        }
        let deep = "[".repeat(100_000);
        for line in ["", "{", "\u{0}", &deep] {
            assert!(matches!(parse(line.as_bytes()), Err(FrameError::NotJson(_))));
        }
    }

    #[test]
    fn every_named_class_is_known() {
        for name in ["GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound", "KVMMissingCap"] {
            assert!(!matches!(ErrorClass::from(name), ErrorClass::Other(_)));
        }
    }

    fn cut(limit: usize, chunks: &[&[u8]]) -> (Vec<LineCut>, usize) {
        let mut lines = LineCutter::new(limit);
        let mut cuts = Vec::new();
        for chunk in chunks {
            lines.reserve_space().extend_from_slice(chunk);
            while let Some(cut) = lines.next_cut() {
                cuts.push(cut);
            }
        }
        (cuts, lines.torn())
    }

    #[test]
    fn an_overlong_line_is_discarded_and_the_stream_goes_on() {
        let (cuts, torn) = cut(4, &[b"1234\r\n12345\nab", b"cdefgh", b"ijk\nok\nrest"]);
        let line = |text: &str| LineCut::Line(text.as_bytes().into());
        assert_eq!(cuts, [line("1234"), LineCut::Oversized(5), LineCut::Oversized(11), line("ok")]);
        assert_eq!(torn, 4);
    }

    #[test]
    fn an_endless_line_costs_no_more_than_the_limit() {
        let (limit, chunk) = (64 * 1024, [b'x'; READ_SIZE]);
        let mut lines = LineCutter::new(limit);
        let mut most = 0;
        let mut feed = |bytes: &[u8], lines: &mut LineCutter| {
            lines.reserve_space().extend_from_slice(bytes);
            most = most.max(lines.buffer.capacity());
            lines.next_cut()
        };
        for _ in 0..4096 {
            assert_eq!(feed(&chunk, &mut lines), None);
        }
        assert_eq!(feed(b"\n", &mut lines), Some(LineCut::Oversized(4096 * READ_SIZE)));
        // Many lines that are just within bounds, one after the other, must not cost more either.
        for _ in 0..512 {
            for _ in 0..limit / READ_SIZE {
                assert_eq!(feed(&chunk, &mut lines), None);
            }
            assert!(matches!(feed(b"\n", &mut lines), Some(LineCut::Line(line)) if line.len() == limit));
        }
        // The buffer grows by doubling.
        assert!(most <= 2 * (limit + 2 * READ_SIZE), "{most}");
    }

    #[test]
    fn huge_numbers_are_numbers_or_errors() {
        for number in ["18446744073709551616", "-9223372036854775809", "1e308", "1e-999999999", &"9".repeat(300)] {
            let line = format!(
                r#"{{"event": "X", "data": {number}, "timestamp": {{"seconds": {number}, "microseconds": {number}}}}}"#
            );
            let QmpFrame::Event(event) = frame(&line) else { panic!("{number}") };
            assert!(event.data.is_f64() && event.timestamp.is_none(), "{number}");
        }
        for number in ["1e309", "-1e999999999999", &"9".repeat(1 << 20)] {
            assert!(matches!(parse(number.as_bytes()), Err(FrameError::NotJson(_))), "{}", &number[..9]);
        }
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_chunking(
            bytes in proptest::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n'), 1 => Just(b'\r')], 0..200),
            cuts in proptest::collection::vec(0usize..200, 0..20),
            limit in 0usize..30,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut from = 0;
            let chunks: Vec<&[u8]> =
                cuts.iter().map(|to| &bytes[std::mem::replace(&mut from, *to)..*to]).collect();
            let (whole, torn) = cut(limit, &[&bytes]);
            let (pieces, torn_pieces) = cut(limit, &chunks);
            // The length reported for an overlong line may count its carriage return, whichever way it was cut.
            let kinds = |cuts: &[LineCut]| cuts.iter().map(|cut| match cut {
                LineCut::Line(line) => Some(line.clone()),
                LineCut::Oversized(_) => None,
            }).collect::<Vec<_>>();
            prop_assert_eq!(kinds(&whole), kinds(&pieces));
            prop_assert_eq!(torn, torn_pieces);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(value) = parse(&bytes) {
                drop(QmpFrame::classify(value));
            }
        }

        #[test]
        fn no_json_makes_it_panic(
            key in "QMP|event|return|error|id|timestamp|data",
            inner in "[a-z]{0,9}|version|capabilities|qemu|seconds|microseconds|class|desc",
            number in any::<i64>(),
            text in ".{0,9}",
        ) {
            for value in [json!(number), json!(text), json!([number]), json!(null), json!({(&inner): number})] {
                let values = [json!({(&key): value}), json!({"event": "x", (&key): {(&inner): value}})];
                for value in values {
                    drop(QmpFrame::classify(value));
                }
            }
        }
    }
}
