//! What a transcript tells, folded in bounded memory.
//!
//! Pure. Rows beyond the bound are left out of the middle and counted; the times of commands are folded from all of
//! them.

use super::reader::{RecordedContent, RecordedEntry, RecordedLine, is_question};
use crate::{
    progress::{Event, EventKind, Outcome, Phase, PhaseState},
    qmp::transcript::{ENGINE, TranscriptHeader},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

/// Most rows at the beginning, and at the end, of the whole and of the blackout.
const ROWS: usize = 2000;
/// Most characters of a text.
const TEXT: usize = 400;
/// Most commands whose times are told, and most commands that wait for their answers.
const NAMES: usize = 500;
const WAITING: usize = 1000;

/// What happened at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct ReportRow {
    /// Time since the recorder was made.
    pub at: Duration,
    /// Side: `source`, `destination`, or `engine`.
    pub side: String,
    /// What happened.
    pub what: ReportedFact,
}

/// What a row tells.
#[derive(Debug, Clone, PartialEq)]
pub enum ReportedFact {
    /// A phase begins.
    Begin(Phase),
    /// A phase ended, after this time.
    End(Phase, Option<Duration>),
    /// The engine decided something.
    Action {
        /// The action.
        action: String,
        /// The reason.
        because: String,
    },
    /// The engine warned.
    Warning {
        /// The warning's word for programs.
        code: String,
        /// The warning for people.
        message: String,
    },
    /// A command was sent.
    Command {
        /// QEMU's name of the command.
        name: String,
        /// Arguments as JSON.
        arguments: String,
        /// Time until the answer came, if one came.
        took: Option<Duration>,
        /// QEMU's words, where QEMU refused.
        refusal: Option<String>,
    },
    /// An event of QEMU.
    Event {
        /// QEMU's name of the event.
        name: String,
        /// Data as JSON.
        data: String,
    },
    /// A remark of the recorder or a connection.
    Note(String),
}

/// The times of one command at one side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandTimes {
    /// Times that the command was sent.
    pub sent: u64,
    /// Times that an answer came.
    pub answered: u64,
    /// Times that QEMU refused.
    pub refused: u64,
    /// The sum of the times until the answers.
    pub sum: Duration,
    /// The longest time until an answer.
    pub longest: Duration,
}

/// Rows with a bound: the first and the last are kept.
#[derive(Debug, Default)]
pub struct BoundedRows {
    first: Vec<ReportRow>,
    last: VecDeque<ReportRow>,
    /// Number of rows that were left out between the two.
    pub left_out: usize,
}

impl BoundedRows {
    /// Adds a row and returns its number.
    pub(super) fn push(&mut self, row: ReportRow) -> usize {
        if self.first.len() < ROWS {
            self.first.push(row);
            return self.first.len() - 1;
        }
        if self.last.len() == ROWS {
            self.last.pop_front();
            self.left_out += 1;
        }
        self.last.push_back(row);
        ROWS + self.left_out + self.last.len() - 1
    }

    fn row_mut(&mut self, number: usize) -> Option<&mut ReportRow> {
        match number.checked_sub(ROWS) {
            None => self.first.get_mut(number),
            Some(beyond) => self.last.get_mut(beyond.checked_sub(self.left_out)?),
        }
    }

    /// The rows in their order, the first and the last apart.
    pub fn parts(&self) -> (&[ReportRow], impl Iterator<Item = &ReportRow>) {
        (&self.first, self.last.iter())
    }
}

/// The time for which the guest stood still, by QEMU's events as they were received.
#[derive(Debug, Default)]
pub struct RecordedBlackout {
    /// STOP of the source.
    pub began: Duration,
    /// RESUME, and the side of that.
    pub ended: Option<(Duration, String)>,
    /// Every line between the two, also queries.
    pub rows: BoundedRows,
}

/// A command that waits for its answer.
#[derive(Debug)]
struct WaitingCommand {
    name: String,
    at: Duration,
    row: Option<usize>,
    blackout_row: Option<usize>,
}

/// What a transcript tells.
#[derive(Debug, Default)]
pub struct TranscriptReport {
    /// The header, if the file has one.
    pub header: Option<TranscriptHeader>,
    /// Phases, decisions, commands that change something, and events, in their order.
    pub rows: BoundedRows,
    /// The times of each command, by side and name.
    pub commands: BTreeMap<(String, String), CommandTimes>,
    /// The last time for which the guest stood still.
    pub blackout: Option<RecordedBlackout>,
    /// The outcome, if the run came to one.
    pub outcome: Option<Box<Outcome>>,
    /// Time of the last line.
    pub last: Duration,
    /// Number of entries.
    pub entries: u64,
    waiting: HashMap<(String, String), WaitingCommand>,
    begun: BTreeMap<Phase, Duration>,
}

impl TranscriptReport {
    /// Adds a line.
    pub fn add(&mut self, line: RecordedLine) {
        match line {
            RecordedLine::Header(header) => {
                self.header.get_or_insert(header);
            }
            RecordedLine::Entry(entry) => self.add_entry(entry),
        }
    }

    fn add_entry(&mut self, entry: RecordedEntry) {
        let RecordedEntry { at, side, content } = entry;
        (self.last, self.entries) = (self.last.max(at), self.entries + 1);
        let side = clip(side);
        match content {
            RecordedContent::Engine(event) => self.add_event(at, *event),
            RecordedContent::Command { name, id, arguments } => self.send(at, side, clip(name), id, &arguments),
            RecordedContent::Answer { id, refusal, .. } => self.answer(at, side, id, refusal),
            RecordedContent::Qmp { name, data } => self.add_qemu_event(at, side, clip(name), &data),
            RecordedContent::Note(note) => self.push(at, side, ReportedFact::Note(short_json(&note))),
            RecordedContent::Controller(_) | RecordedContent::Greeting | RecordedContent::Other => {}
        }
    }

    fn add_event(&mut self, at: Duration, event: Event) {
        let fact = match event.kind {
            EventKind::Phase { phase, state: PhaseState::Begin } => {
                self.begun.insert(phase, at);
                ReportedFact::Begin(phase)
            }
            EventKind::Phase { phase, state: PhaseState::End } => {
                let begun = self.begun.remove(&phase);
                ReportedFact::End(phase, begun.map(|begun| at.saturating_sub(begun)))
            }
            EventKind::Action { action, because, .. } => {
                ReportedFact::Action { action: clip(action), because: clip(because) }
            }
            EventKind::Warning { code, message } => ReportedFact::Warning { code: clip(code), message: clip(message) },
            EventKind::Outcome(outcome) => {
                self.outcome = Some(outcome);
                return;
            }
            _ => return,
        };
        self.push(at, ENGINE.to_owned(), fact);
    }

    fn add_qemu_event(&mut self, at: Duration, side: String, name: String, data: &Value) {
        let (stops, resumes) = (name == "STOP" && side == "source", name == "RESUME");
        // A stop behind a handover is that of a source that has no guest any more.
        let handed_over =
            self.blackout.as_ref().and_then(|blackout| blackout.ended.as_ref()).is_some_and(|(_, at)| at != "source");
        if stops && self.open_blackout().is_none() && !handed_over {
            self.blackout = Some(RecordedBlackout { began: at, ..RecordedBlackout::default() });
        }
        self.push(at, side.clone(), ReportedFact::Event { name, data: short_json(data) });
        if let Some(blackout) = self.open_blackout().filter(|_| resumes) {
            blackout.ended = Some((at, side));
        }
    }

    fn send(&mut self, at: Duration, side: String, name: String, id: Option<String>, arguments: &Value) {
        let is_row = !is_question(&name);
        let fact =
            ReportedFact::Command { name: name.clone(), arguments: short_json(arguments), took: None, refusal: None };
        let row = ReportRow { at, side: side.clone(), what: fact };
        let blackout_row = self.open_blackout().map(|blackout| blackout.rows.push(row.clone()));
        let row = is_row.then(|| self.rows.push(row));
        let key = (side, name);
        if self.commands.len() < NAMES || self.commands.contains_key(&key) {
            self.commands.entry(key.clone()).or_default().sent += 1;
        }
        let (side, name) = key;
        if let Some(id) = id.filter(|id| id.len() <= TEXT && self.waiting.len() < WAITING) {
            self.waiting.insert((side, id), WaitingCommand { name, at, row, blackout_row });
        }
    }

    fn answer(&mut self, at: Duration, side: String, id: Option<String>, refusal: Option<String>) {
        let key = (side, id.unwrap_or_default());
        let Some(WaitingCommand { name, at: sent, row, blackout_row }) = self.waiting.remove(&key) else { return };
        let took = at.saturating_sub(sent);
        let refusal = refusal.map(clip);
        if let Some(times) = self.commands.get_mut(&(key.0, name)) {
            times.answered += 1;
            times.refused += u64::from(refusal.is_some());
            times.sum = times.sum.saturating_add(took);
            times.longest = times.longest.max(took);
        }
        let blackout = self.blackout.as_mut().map(|blackout| &mut blackout.rows);
        let in_blackout = blackout.zip(blackout_row).and_then(|(rows, number)| rows.row_mut(number));
        let in_rows = row.and_then(|number| self.rows.row_mut(number));
        for row in in_rows.into_iter().chain(in_blackout) {
            if let ReportedFact::Command { took: known, refusal: words, .. } = &mut row.what {
                (*known, *words) = (Some(took), refusal.clone());
            }
        }
    }

    /// The blackout that has begun and has not ended.
    fn open_blackout(&mut self) -> Option<&mut RecordedBlackout> {
        self.blackout.as_mut().filter(|blackout| blackout.ended.is_none())
    }

    fn push(&mut self, at: Duration, side: String, what: ReportedFact) {
        let row = ReportRow { at, side, what };
        if let Some(blackout) = self.open_blackout() {
            blackout.rows.push(row.clone());
        }
        self.rows.push(row);
    }
}

/// A text of bounded length.
pub(super) fn clip(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(TEXT) {
        text.truncate(end);
        text.push_str("...");
    }
    text.shrink_to_fit();
    text
}

/// JSON of bounded length; nothing for `null`.
fn short_json(value: &Value) -> String {
    if value.is_null() { String::new() } else { clip(value.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::super::reader::{LINE_LIMIT, RecordingReader};
    use super::*;
    use std::fmt::Write as _;

    fn fold(text: &str) -> (TranscriptReport, u64) {
        let (mut report, mut reader) = (TranscriptReport::default(), RecordingReader::new(text.as_bytes()));
        reader.by_ref().for_each(|line| report.add(line.unwrap()));
        (report, reader.faults().skipped)
    }

    fn entry(at: u64, dir: &str, line: &str) -> String {
        format!("{{\"v\":1,\"t_us\":{at},\"side\":\"source\",\"dir\":\"{dir}\",\"line\":{line}}}\n")
    }

    /// Every number of a kind: the rows, the table and what waits for answers stay within their bounds.
    #[test]
    fn a_flood_of_each_kind_is_folded_within_bounds() {
        let numbers = 0..3 * ROWS as u64;
        let flood = |line: &dyn Fn(u64) -> (&'static str, String)| -> String {
            numbers
                .clone()
                .map(|number| {
                    let (dir, line) = line(number);
                    entry(number, dir, &line)
                })
                .collect()
        };
        let stop = entry(0, "receive", r#"{"event":"STOP"}"#);
        let floods = [
            flood(&|_| ("receive", r#"{"event":"RESET","data":{"a":"b"}}"#.into())),
            flood(&|number| ("send", format!(r#"{{"execute":"x-{number}","id":"x#{number}"}}"#))),
            flood(&|number| ("send", format!(r#"{{"execute":"query-{number}","id":"x#{number}"}}"#))),
            flood(&|number| ("receive", format!(r#"{{"return":{{}},"id":"x#{number}"}}"#))),
            flood(&|_| ("note", r#"{"closed":"x"}"#.into())),
            flood(&|_| ("receive", r#"{"event":"STOP"}"#.into())),
        ];
        for text in floods {
            let (report, skipped) = fold(&(stop.clone() + &text));
            assert_eq!((skipped, report.entries), (0, 1 + 3 * ROWS as u64));
            let blackout = report.blackout.unwrap();
            for rows in [&report.rows, &blackout.rows] {
                let (first, last) = rows.parts();
                let kept = first.len() + last.count();
                assert!(kept <= 2 * ROWS, "{kept}");
                assert!(rows.left_out == 0 || kept == 2 * ROWS, "{kept} {}", rows.left_out);
            }
            assert!(report.commands.len() <= NAMES && report.waiting.len() <= WAITING);
        }
    }

    #[test]
    fn an_answer_finds_its_command_also_beyond_the_first_rows() {
        let mut text = String::new();
        for number in 0..3 * ROWS as u64 {
            text += &entry(number * 10, "send", &format!(r#"{{"execute":"x","id":"x#{number}"}}"#));
            text += &entry(number * 10 + number % 7, "receive", &format!(r#"{{"return":{{}},"id":"x#{number}"}}"#));
        }
        let (report, _) = fold(&text);
        let (first, last) = report.rows.parts();
        for row in first.iter().chain(last) {
            let number = row.at.as_micros() as u64 / 10;
            let ReportedFact::Command { took, .. } = &row.what else { panic!("{row:?}") };
            assert_eq!(*took, Some(Duration::from_micros(number % 7)), "{row:?}");
        }
        let times = &report.commands[&("source".to_owned(), "x".to_owned())];
        assert_eq!((times.sent, times.answered, times.longest), (6000, 6000, Duration::from_micros(6)));
    }

    #[test]
    fn hostile_lines_are_counted_and_passed_over() {
        let nested = |open: &str, close: &str| entry(1, "receive", &(open.repeat(9000) + &close.repeat(9000)));
        let mut wide = String::new();
        (0..9000).for_each(|number| write!(wide, "\"k{number}\":[],").unwrap());
        for (line, skipped) in [
            ("not JSON\n".to_owned(), 1),
            ("\0\u{fffd}\n\n\r\n".to_owned(), 1),
            ("{}\n[]\n7\nnull\n".to_owned(), 4),
            (format!("{}\n", "x".repeat(LINE_LIMIT + 2)), 1),
            (format!("{}\n", "[".repeat(LINE_LIMIT)), 1),
            (nested("[", "]"), 1),
            (nested("{\"a\":", "}"), 1),
            (entry(1, "receive", &format!("{{{wide}\"event\":\"X\"}}")), 0),
            (entry(1, "receive", r#"{"event":7}"#), 1),
            (entry(1, "sideways", "{}"), 1),
            (entry(u64::MAX, "send", r#"{"execute":"x","id":"x"}"#), 0),
            (entry(1, "receive", r#"{"return":{},"id":"unknown"}"#), 0),
            (entry(9, "send", r#"{"execute":"x","id":"x"}"#) + &entry(1, "receive", r#"{"return":1,"id":"x"}"#), 0),
            (entry(1, "note", "{}").replace("source", "engine"), 1),
            (entry(1, "note", &format!(r#"{{"v":1,"t_ms":1,"type":"x","a":[{}0]}}"#, "0,".repeat(LINE_LIMIT / 4))), 0),
            (
                entry(1, "note", &format!(r#"{{"v":1,"t_ms":1,"type":"x","a":[{}0]}}"#, "0,".repeat(LINE_LIMIT / 4)))
                    .replace("source", "engine"),
                1,
            ),
            (entry(1, "note", r#"{"v":1,"t_ms":1,"type":"of-tomorrow"}"#).replace("source", "engine"), 0),
            (entry(1, "note", r#"{"v":1,"t_ms":1,"type":"outcome"}"#).replace("source", "engine"), 1),
            (entry(1, "send", r#"{"execute":"x"}"#).replace("\"v\":1", "\"v\":2"), 1),
            ("{\"v\":1,\"t_us\":5,\"side\":\"a\",\"dir\":\"receive\",\"raw\":\"x\"}\n".to_owned(), 0),
            ("{\"v\":1,\"t_us\":5,\"si".to_owned(), 1),
        ] {
            let around = entry(0, "receive", r#"{"event":"BEFORE"}"#) + &line;
            let (report, counted) = fold(&around);
            let shown = &line[..line.len().min(80)];
            assert_eq!(counted, skipped, "{shown}");
            assert!(report.rows.parts().0.len() <= 2 && report.entries <= 3, "{shown}");
        }
    }

    #[test]
    fn long_texts_are_clipped() {
        let long = "\u{e4}".repeat(9000);
        let (report, _) = fold(&entry(1, "receive", &format!(r#"{{"event":"{long}","data":{{"a":"{long}"}}}}"#)));
        let ReportedFact::Event { name, data } = &report.rows.parts().0[0].what else { panic!() };
        assert_eq!((name.chars().count(), data.chars().count()), (TEXT + 3, TEXT + 3));
    }
}
