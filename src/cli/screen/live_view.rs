//! What the live view shows, whoever feeds it.
//!
//! Every text in here is one line and fit for a terminal. Memory is bounded.
//!
//! Pure.

use super::super::plain_text::one_line;
use crate::{diagnosis::Cause, progress::Side};
use std::{collections::VecDeque, time::Duration};

/// The values of a curve that are kept: four minutes of looks.
const VALUES: usize = 600;
/// The events that are kept.
const EVENTS: usize = 500;
/// The most mirrors, causes and notes.
pub(super) const ROWS: usize = 64;

/// The view at a moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct LiveView {
    /// The time since the beginning.
    pub(super) elapsed: Duration,
    /// What goes on, or what is wrong, in one sentence.
    pub(super) verdict: String,
    pub(super) causes: Vec<ShownCause>,
    pub(super) sides: Vec<SideRow>,
    pub(super) transfers: Vec<TransferRow>,
    pub(super) facts: Vec<(&'static str, String)>,
    pub(super) curves: Vec<ValueCurve>,
    pub(super) events: VecDeque<LoggedEvent>,
}

/// A cause in words.
#[derive(Debug, Clone)]
pub(super) struct ShownCause {
    pub(super) title: String,
    /// Each with its name: evidence, remedy, the commands, risk.
    pub(super) lines: Vec<(&'static str, String)>,
}

/// A side.
#[derive(Debug, Clone, Default)]
pub(super) struct SideRow {
    pub(super) name: &'static str,
    pub(super) state: String,
    /// Whether something is wrong with the side.
    pub(super) lost: bool,
    pub(super) process: String,
    pub(super) address: String,
}

/// A mirror, or RAM.
#[derive(Debug, Clone, Default)]
pub(super) struct TransferRow {
    pub(super) name: String,
    pub(super) left: u64,
    pub(super) total: u64,
    /// Bytes per second.
    pub(super) rate: u64,
    /// The time left, or the state.
    pub(super) note: String,
}

/// A number over time.
#[derive(Debug, Clone, Default)]
pub(super) struct ValueCurve {
    pub(super) name: String,
    pub(super) is_rate: bool,
    pub(super) values: VecDeque<u64>,
}

/// An event in the list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LoggedEvent {
    pub(super) time: String,
    pub(super) whose: &'static str,
    pub(super) text: String,
    /// How often it came in a row.
    pub(super) count: u64,
}

impl LiveView {
    /// Adds an event. The same one again is counted.
    pub(super) fn log(&mut self, time: String, whose: &'static str, text: &str) {
        let text = one_line(text);
        match self.events.back_mut() {
            Some(last) if last.whose == whose && last.text == text => {
                last.time = time;
                last.count = last.count.saturating_add(1);
            }
            _ => {
                if self.events.len() == EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back(LoggedEvent { time, whose, text, count: 1 });
            }
        }
    }

    /// Adds a value to a curve.
    pub(super) fn plot(&mut self, name: &str, is_rate: bool, value: u64) {
        let name = one_line(name);
        let at = self.curves.iter().position(|curve| curve.name == name).or_else(|| {
            let is_room = self.curves.len() < ROWS;
            is_room.then(|| {
                self.curves.push(ValueCurve { name: name.clone(), is_rate, values: VecDeque::new() });
                self.curves.len() - 1
            })
        });
        let Some(curve) = at.and_then(|at| self.curves.get_mut(at)) else { return };
        if curve.values.len() == VALUES {
            curve.values.pop_front();
        }
        curve.values.push_back(value);
    }

    /// Shows these causes.
    pub(super) fn blame(&mut self, causes: &[Cause]) {
        self.causes = causes.iter().take(ROWS).map(ShownCause::of).collect();
    }
}

impl ShownCause {
    fn of(cause: &Cause) -> Self {
        let confidence = format!("{:?}", cause.confidence).to_lowercase();
        let evidence = cause.evidence.iter().take(ROWS).map(|fact| ("evidence", one_line(fact)));
        let commands = cause.commands.iter().take(ROWS).map(|command| ("command", one_line(&command.to_string())));
        let remedy = ("remedy", one_line(&cause.remedy));
        let risk = ("risk", one_line(&cause.risk));
        let fixable = cause.fixable.then(|| ("by qferry", format!("qferry diagnose ... --fix {}", cause.code)));
        let lines = evidence.chain([remedy]).chain(commands).chain([risk]).chain(fixable);
        Self { title: format!("{} ({confidence})", cause.code), lines: lines.collect() }
    }
}

impl SideRow {
    pub(super) fn new(side: Side, address: &str) -> Self {
        Self { name: side.as_str(), address: one_line(address), ..Self::default() }
    }
}

impl TransferRow {
    /// The part that is done, from 0 to 1.
    pub(super) fn done(&self) -> f64 {
        match self.total {
            0 => 1.0,
            total => total.saturating_sub(self.left) as f64 / total as f64,
        }
    }
}

/// The time that so many bytes take, in words; nothing where the rate says nothing.
pub(super) fn time_left(bytes: u64, rate: u64) -> Option<String> {
    let seconds = bytes.checked_div(rate)?;
    Some(match seconds {
        0..120 => format!("{seconds} s left"),
        120..7200 => format!("{} min left", seconds / 60),
        7200..360_000 => format!("{} h left", seconds / 3600),
        _ => "days left".to_owned(),
    })
}
