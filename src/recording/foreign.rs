//! Recordings that other programs made: libvirt's debug log, dumps of QMP lines, and QEMU's own log.
//!
//! Pure. Each line is read for itself, so a file may mix these forms, as a log of a test does:
//!
//! - libvirt with `log_filters="1:qemu.qemu_monitor"`: `TIME: PID: LEVEL : FUNCTION : QEMU_MONITOR_SEND_MSG: mon=ID
//!   msg=JSON`, and the same with `RECV_REPLY: ... reply=` and `RECV_EVENT: ... event=`;
//! - a line of QMP, after anything short: a time, an arrow, the name of a monitor;
//! - QEMU's log (`-D`, or its stderr): lines of trace events and QEMU's complaints, with a time where
//!   `-msg timestamp=on` or the trace backend writes one.

use crate::qemu::log_line::{DeviceLine, read_device_line};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use std::time::Duration;

/// The longest text before a line of QMP, in bytes.
const PREFIX: usize = 160;
/// The longest complaint of QEMU's that is kept, in bytes.
const COMPLAINT: usize = 512;
/// The longest name of a monitor.
const MONITOR: usize = 64;
/// Times before this many seconds since the Unix epoch (2001) are no wall clock.
const EARLIEST: f64 = 1e9;
/// The complaints of QEMU's that tell why a migration failed.
const COMPLAINTS: [&str; 10] = [
    "error while loading state",
    "load of migration failed",
    "unknown savevm section",
    "missing section footer",
    "unknown ramblock",
    "length mismatch",
    "machine type received",
    "permission conflict",
    "failed to get",
    "unable to",
];

/// The words with which QEMU marks a line as no error.
const REMARKS: [&str; 2] = [": warning: ", ": info: "];

/// A line of a recording that another program made.
#[derive(Debug, Clone, PartialEq)]
pub struct ForeignLine<'a> {
    /// The wall clock, since the Unix epoch, where the line has a time.
    pub at: Option<Duration>,
    /// The monitor, where the line names one; else nothing.
    pub monitor: &'a str,
    /// What happened.
    pub content: ForeignContent<'a>,
}

/// What a line tells.
#[derive(Debug, Clone, PartialEq)]
pub enum ForeignContent<'a> {
    /// A command was sent.
    Command {
        /// QEMU's name of the command.
        name: String,
        /// The id, as it was written.
        id: String,
        /// The arguments, as JSON; nothing where the command has none.
        arguments: Option<&'a str>,
    },
    /// An answer came.
    Answer {
        /// The id, as it was written.
        id: String,
        /// What QEMU returned, as JSON; nothing where QEMU refused.
        value: Option<&'a str>,
    },
    /// An event of QEMU.
    Event {
        /// QEMU's name of the event.
        name: String,
        /// The status that the event tells, where it tells one.
        status: Option<String>,
        /// The device or job that the event names, where it names one.
        device: Option<String>,
    },
    /// QEMU's log: the migration has this status.
    Status(String),
    /// QEMU's log: how long a device took.
    Device(DeviceLine<'a>),
    /// QEMU's log: a complaint that can tell why a migration failed.
    Complaint(String),
}

/// The members of a line of QMP that are read.
#[derive(Deserialize)]
struct QmpShape<'a> {
    execute: Option<String>,
    #[serde(rename = "exec-oob")]
    exec_oob: Option<String>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
    event: Option<String>,
    timestamp: Option<TimestampShape>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow, rename = "return")]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct TimestampShape {
    #[serde(default)]
    seconds: i64,
    #[serde(default)]
    microseconds: i64,
}

#[derive(Default, Deserialize)]
struct EventShape {
    status: Option<String>,
    device: Option<String>,
}

/// Reads a line; `None` where the line tells nothing of a migration.
pub fn read_foreign(line: &str) -> Option<ForeignLine<'_>> {
    let line = line.trim();
    match line.find("QEMU_MONITOR_") {
        Some(at) => libvirt(line, &line[at..]),
        // libvirt writes what came once more, without the name of the monitor
        None if line.contains(" : qemuMonitor") => None,
        None => qmp(line).or_else(|| log(line)),
    }
}

/// A line of libvirt's debug log. The part of a message that was written at once says nothing that the message as it
/// was sent does not.
fn libvirt<'a>(line: &'a str, marked: &'a str) -> Option<ForeignLine<'a>> {
    let (kind, rest) = marked.split_once(':')?;
    let member = match kind {
        "QEMU_MONITOR_SEND_MSG" => "msg=",
        "QEMU_MONITOR_RECV_REPLY" => "reply=",
        "QEMU_MONITOR_RECV_EVENT" => "event=",
        _ => return None,
    };
    let (names, json) = rest.split_once(member)?;
    let monitor = names.split_whitespace().find_map(|word| word.strip_prefix("mon=")).unwrap_or_default();
    let (content, stamp) = content(json)?;
    Some(ForeignLine { at: written_time(line).or(stamp), monitor: short(monitor, MONITOR), content })
}

/// A line of QMP. An event has QEMU's own time; what is written before the line is taken for the time of the others.
fn qmp(line: &str) -> Option<ForeignLine<'_>> {
    let begin = line.find('{').filter(|begin| *begin <= PREFIX)?;
    let (content, stamp) = content(&line[begin..])?;
    Some(ForeignLine { at: stamp.or_else(|| written_time(&line[..begin])), monitor: "", content })
}

/// The first JSON value of a text, as a line of QMP, and the time that an event has.
fn content(text: &str) -> Option<(ForeignContent<'_>, Option<Duration>)> {
    let shape: QmpShape<'_> = serde_json::Deserializer::from_str(text).into_iter().next()?.ok()?;
    let stamp = shape.timestamp.and_then(|stamp| {
        let (seconds, micros) = (u64::try_from(stamp.seconds).ok()?, u64::try_from(stamp.microseconds).ok()?);
        Some(Duration::from_secs(seconds).saturating_add(Duration::from_micros(micros)))
    });
    let id = shape.id.map(|id| short(id.get(), MONITOR).to_owned()).unwrap_or_default();
    let content = match (shape.event, shape.execute.or(shape.exec_oob)) {
        (Some(name), _) => {
            let data = shape.data.and_then(|data| serde_json::from_str::<EventShape>(data.get()).ok());
            let EventShape { status, device } = data.unwrap_or_default();
            let device = device.map(|device| short(&device, MONITOR).to_owned());
            ForeignContent::Event { name, status, device }
        }
        (None, Some(name)) => ForeignContent::Command { name, id, arguments: shape.arguments.map(RawValue::get) },
        (None, None) if shape.value.is_some() || shape.error.is_some() => {
            ForeignContent::Answer { id, value: shape.value.map(RawValue::get) }
        }
        (None, None) => return None,
    };
    Some((content, stamp))
}

/// A line of QEMU's log.
fn log(line: &str) -> Option<ForeignLine<'_>> {
    let at = written_time(line);
    if let Some(device) = read_device_line(line) {
        return Some(ForeignLine { at, monitor: "", content: ForeignContent::Device(device) });
    }
    let status = line.split_once("migrate_set_state").map(|(_, rest)| rest.trim_start_matches(" new state").trim());
    let content = match status.and_then(|rest| rest.split_whitespace().next()) {
        Some(status) => ForeignContent::Status(short(status, MONITOR).to_owned()),
        None => {
            let lower = line.to_lowercase();
            let begin = line.find("qemu-system-").or_else(|| line.find("qemu-kvm"))?;
            let is_failure = !REMARKS.iter().any(|remark| lower.contains(remark));
            (is_failure && COMPLAINTS.iter().any(|known| lower.contains(known))).then_some(())?;
            let words = line[begin..].split_once(": ").map_or(&line[begin..], |(_, words)| words);
            ForeignContent::Complaint(short(words, COMPLAINT).to_owned())
        }
    };
    Some(ForeignLine { at, monitor: "", content })
}

/// The time at the begin of a text: `2026-11-30 10:00:00.123+0000`, the same with `T` and `Z`, seconds since the epoch
/// with a fraction, or the same after the thread of a trace event (`1234@1796000000.123456:`).
fn written_time(text: &str) -> Option<Duration> {
    let text = text.trim_start_matches(['[', '(', ' ']);
    let date = text.get(..19).filter(|date| date.as_bytes()[4] == b'-' && date.as_bytes()[13] == b':');
    if let Some(date) = date {
        let fraction: String = text[19..].chars().take_while(|c| c.is_ascii_digit() || *c == '.').take(10).collect();
        let written = format!("{}T{}{fraction}Z", date.get(..10)?, date.get(11..)?);
        let time = humantime::parse_rfc3339(&written).ok()?;
        return time.duration_since(std::time::UNIX_EPOCH).ok();
    }
    let seconds = text.split_once('@').filter(|(thread, _)| thread.bytes().all(|b| b.is_ascii_digit()));
    let seconds = seconds.map_or(text, |(_, seconds)| seconds);
    let number: String = seconds.chars().take_while(|c| c.is_ascii_digit() || *c == '.').take(24).collect();
    let number = number.trim_end_matches('.').parse::<f64>().ok().filter(|number| *number >= EARLIEST)?;
    Duration::try_from_secs_f64(number).ok()
}

/// What returned to a command that a diagnosis reads, if it is not too long for that.
pub fn foreign_value(json: &str, limit: usize) -> Option<Value> {
    (json.len() <= limit).then(|| serde_json::from_str(json).ok())?
}

/// The begin of a text, at most so many bytes of it.
fn short(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: &str = r#"2026-11-30 10:00:00.250+0000: 4711: info : qemuMonitorSend:914 : QEMU_MONITOR_SEND_MSG: mon=0x7f3c msg={"execute":"query-migrate","id":"libvirt-382"}"#;
    const CAME: &str = r#"2026-11-30 10:00:00.251+0000: 4712: info : qemuMonitorJSONIOProcessLine:211 : QEMU_MONITOR_RECV_REPLY: mon=0x7f3c reply={"return": {"status": "active"}, "id": "libvirt-382"}"#;

    fn seconds(line: &str) -> Option<f64> {
        read_foreign(line)?.at.map(|at| at.as_secs_f64())
    }

    #[test]
    fn the_debug_log_of_libvirt_is_read() {
        let sent = read_foreign(SENT).unwrap();
        let (name, id) = ("query-migrate".to_owned(), "\"libvirt-382\"".to_owned());
        assert_eq!(
            (sent.monitor, &sent.content),
            ("0x7f3c", &ForeignContent::Command { name, id: id.clone(), arguments: None })
        );
        let came = read_foreign(CAME).unwrap();
        let ForeignContent::Answer { id: answered, value: Some(value) } = &came.content else { panic!("{came:?}") };
        assert_eq!((answered, foreign_value(value, 64)), (&id, Some(serde_json::json!({ "status": "active" }))));
        assert_eq!(foreign_value(value, 8), None);
        assert_eq!(came.at.unwrap() - sent.at.unwrap(), Duration::from_millis(1));
        let event = CAME.replace("REPLY", "EVENT").replace("reply=", "event=").replace(
            r#"{"return": {"status": "active"}, "id": "libvirt-382"}"#,
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION", "data": {"status": "setup"}}"#,
        );
        let (name, status) = ("MIGRATION".to_owned(), Some("setup".to_owned()));
        assert_eq!(read_foreign(&event).unwrap().content, ForeignContent::Event { name, status, device: None });
        assert_eq!(read_foreign(&SENT.replace("SEND_MSG", "IO_WRITE").replace("msg=", "buf=")), None);
        let again = CAME.replace("QEMU_MONITOR_RECV_REPLY: mon=0x7f3c reply=", "Line [");
        assert_eq!(read_foreign(&again), None);
    }

    #[test]
    fn lines_of_qmp_are_read_after_anything_short() {
        for (line, at) in [
            (r#"{"execute": "stop"}"#, None),
            (r#"-> {"execute": "stop"}"#, None),
            (r#"1796032800.5 vm1 < {"execute": "stop"}"#, Some(1_796_032_800.5)),
            (r#"[2026-11-30T10:00:00.5Z] > {"execute": "stop"}"#, Some(1_796_032_800.5)),
            (r#"2026-11-30 10:00:00,500 {"exec-oob": "stop", "id": 7}"#, Some(1_796_032_800.0)),
        ] {
            let read = read_foreign(line).unwrap_or_else(|| panic!("{line}"));
            assert!(matches!(&read.content, ForeignContent::Command { name, .. } if name == "stop"), "{read:?}");
            assert_eq!(read.at.map(|at| at.as_secs_f64()), at, "{line}");
        }
        let event = r#"x {"timestamp": {"seconds": 1796032800, "microseconds": 250000}, "event": "STOP"}"#;
        assert_eq!(seconds(event), Some(1_796_032_800.25));
        for line in ["", "{", "{}", r#"{"QMP": {}}"#, "[1]", r#"{"execute": 7}"#, r#"{"return""#, "libvirt: {x}"] {
            assert_eq!(read_foreign(line), None, "{line}");
        }
    }

    #[test]
    fn the_log_of_qemu_tells_statuses_and_complaints() {
        let traced = "4711@1796032800.123456:migrate_set_state new state active";
        assert_eq!(read_foreign(traced).unwrap().content, ForeignContent::Status("active".to_owned()));
        assert_eq!(seconds(traced), Some(1_796_032_800.123_456));
        assert_eq!(seconds("migrate_set_state new state active"), None);
        let words = "error while loading state for instance 0x0 of device '0000:00:03.0/virtio-blk'";
        let line = format!("2026-11-30T10:00:00.000000Z qemu-system-x86_64: {words}");
        let read = read_foreign(&line).unwrap();
        assert_eq!(
            (read.content, seconds(&line)),
            (ForeignContent::Complaint(words.to_owned()), Some(1_796_032_800.0))
        );
        let traced = "4711@1796032800.5:vmstate_downtime_load type=non-iterable idstr=cpu instance_id=1 downtime=27";
        let read = read_foreign(traced).unwrap();
        let ForeignContent::Device(device) = &read.content else { panic!("{read:?}") };
        assert_eq!((device.device, device.instance, device.us, seconds(traced)), ("cpu", 1, 27, Some(1_796_032_800.5)));
        assert_eq!(read_foreign("qemu-system-x86_64: warning: TCG doesn't support requested feature"), None);
    }

    #[test]
    fn a_warning_is_no_complaint() {
        let said = "qemu-system-x86_64: unable to find the thing";
        assert!(matches!(read_foreign(said).unwrap().content, ForeignContent::Complaint(_)));
        for mark in ["warning", "info"] {
            assert!(read_foreign(&said.replace(": ", &format!(": {mark}: "))).is_none(), "{mark}");
        }
    }

    #[test]
    fn no_line_is_kept_by_its_length() {
        let long = "ä".repeat(10_000);
        let line = format!("qemu-system-x86_64: load of migration failed {long}");
        assert!(
            matches!(read_foreign(&line).unwrap().content, ForeignContent::Complaint(words) if words.len() <= COMPLAINT)
        );
        let line = SENT.replace("0x7f3c", &long).replace("libvirt-382", &long);
        let read = read_foreign(&line).unwrap();
        assert!(read.monitor.len() <= MONITOR);
        assert!(matches!(read.content, ForeignContent::Command { id, .. } if id.len() <= MONITOR));
    }
}
