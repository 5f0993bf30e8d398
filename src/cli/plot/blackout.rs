//! The blackout, enlarged: the ledger's spans, and every command and event from STOP to RESUME, each on its own row.
//!
//! Pure. Rows are as recorded; the ledger's spans are laid end to end up to RESUME, which is where the ledger ends.

use super::{
    chart::SMALL,
    devices,
    ink::{BOLD, PlotColour, SvgOverlay, TextSide, fitted, text_width, wrapped},
};
use crate::{
    progress::{DeviceTime, Outcome},
    recording::{RecordedBlackout, ReportRow, ReportedFact, TranscriptReport, is_question},
};
use serde_json::Value;
use std::time::Duration;

/// Most rows for what was recorded; the ledger's own come before them.
const ROWS: usize = 64;
/// Most spans of a ledger.
const SPANS: usize = 16;
/// The height of a row: beside its bar, and above its bar.
const BESIDE: f64 = 17.0;
const ABOVE: f64 = 30.0;
/// The room for the words beside the bars.
const WORDS: f64 = 430.0;
/// Narrower plots have the words above the bars.
const NARROW: f64 = 800.0;

/// A row of the blackout: from when to when, in milliseconds behind STOP.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BlackoutRow {
    pub(super) words: String,
    pub(super) began: f64,
    pub(super) kind: BlackoutMark,
}

/// The mark of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum BlackoutMark {
    /// A span of the ledger, up to this time.
    Span(f64),
    /// A length without a time of its own, from where it can have begun at the earliest.
    Length(f64),
    /// A command, up to its answer.
    Command(f64),
    /// A command without an answer.
    Unanswered,
    /// A moment.
    Moment,
}

/// The last time for which the guest stood still, as rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EnlargedBlackout {
    pub(super) title: String,
    pub(super) rows: Vec<BlackoutRow>,
    /// What is to be known of the rows, and how many there is no room for.
    notes: Vec<String>,
    /// The first and the last millisecond behind STOP.
    span: (f64, f64),
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl EnlargedBlackout {
    /// What a report tells of the blackout; `None` where the guest was never stopped.
    pub(super) fn of(report: &TranscriptReport) -> Option<Self> {
        let blackout = report.blackout.as_ref()?;
        let length = match &blackout.ended {
            Some((ended, _)) => millis(ended.saturating_sub(blackout.began)),
            None => millis(report.last.saturating_sub(blackout.began)),
        };
        let title = match &blackout.ended {
            Some((_, side)) => {
                format!("Blackout, enlarged: STOP to RESUME on the {side}, {length:.3} ms as received")
            }
            None => format!("Guest stopped, enlarged: no RESUME within the {length:.3} ms that are recorded"),
        };
        let mut rows = match &blackout.ended {
            Some((_, side)) if side != "source" => spans(report.outcome.as_deref(), length),
            _ => Vec::new(),
        };
        let mut notes = Vec::new();
        let outcome = report.outcome.as_deref().filter(|_| !rows.is_empty());
        let lengths = outcome.map(|outcome| lengths(outcome, &rows)).unwrap_or_default();
        notes.extend((!lengths.is_empty()).then(|| devices::NOTE.to_owned()));
        rows.extend(lengths);
        let (recorded, left_out) = recorded(blackout, report.last);
        rows.extend(recorded);
        notes.extend((left_out > 0).then(|| format!("{left_out} more lines: the text of the transcript has them")));
        let ends = rows.iter().map(|row| match row.kind {
            BlackoutMark::Span(end) | BlackoutMark::Length(end) | BlackoutMark::Command(end) => end,
            BlackoutMark::Unanswered | BlackoutMark::Moment => row.began,
        });
        let last = ends.fold(length, f64::max).min(length.max(0.001) * 1.5);
        let first = rows.iter().map(|row| row.began).fold(0.0, f64::min);
        Some(Self { title, rows, notes, span: (first, last.max(first + 0.001)) })
    }

    /// The title in lines.
    fn title(&self, width: f64) -> Vec<String> {
        wrapped(&self.title, (SMALL + 1.0) * BOLD, width - 16.0)
    }

    /// The notes in lines.
    fn notes(&self, width: f64) -> Vec<String> {
        self.notes.iter().flat_map(|note| wrapped(note, SMALL, width - 16.0)).collect()
    }

    fn row_height(width: f64) -> f64 {
        if width < NARROW { ABOVE } else { BESIDE }
    }

    /// The height of the whole.
    pub(super) fn height(&self, width: f64) -> f64 {
        let note = self.notes(width).len() as f64 * BESIDE;
        let title = self.title(width).len() as f64 * BESIDE;
        title + 9.0 + self.rows.len() as f64 * Self::row_height(width) + note + 34.0
    }

    pub(super) fn draw(&self, overlay: &mut SvgOverlay, top: f64, width: f64) {
        let (is_narrow, height) = (width < NARROW, Self::row_height(width));
        let (left, right) = (if is_narrow { 16.0 } else { WORDS }, width - 40.0);
        let (first, last) = self.span;
        let x = |at: f64| left + ((at - first) / (last - first)).clamp(0.0, 1.0) * (right - left);
        let title = self.title(width);
        for (number, line) in title.iter().enumerate() {
            overlay.heading((8.0, top + 12.0 + number as f64 * BESIDE), SMALL + 1.0, line);
        }
        let ground = top + title.len() as f64 * BESIDE + 7.0;
        let bottom = ground + self.rows.len() as f64 * height + 4.0;
        self.draw_axis(overlay, (ground, bottom), (left, right));
        for (number, row) in self.rows.iter().enumerate() {
            let y = ground + number as f64 * height;
            let room = if is_narrow { width - 16.0 } else { WORDS - 16.0 };
            let bar = if is_narrow { y + 15.0 } else { y + 3.0 };
            overlay.titled("blackout-row", &row.words, |overlay| {
                let words = fitted(&row.words, SMALL, room);
                overlay.text((8.0, y + 12.0), SMALL, TextSide::After, PlotColour::Ink, &words);
                let from = x(row.began);
                match row.kind {
                    BlackoutMark::Span(end) => overlay.block((from, bar), (x(end) - from, 10.0), PlotColour::Blue),
                    BlackoutMark::Length(end) => {
                        overlay.outline((from, bar + 1.0), (x(end) - from, 8.0), PlotColour::Blue, "");
                    }
                    BlackoutMark::Command(end) => {
                        overlay.outline((from, bar + 1.0), (x(end) - from, 8.0), PlotColour::Orange, "");
                    }
                    BlackoutMark::Unanswered => {
                        overlay.outline((from, bar + 1.0), (right - from, 8.0), PlotColour::Orange, "3 3");
                    }
                    BlackoutMark::Moment => overlay.rhombus((from, bar + 5.0), 5.0, PlotColour::Green),
                }
            });
        }
        for (number, words) in self.notes(width).iter().enumerate() {
            let y = bottom + 28.0 + number as f64 * BESIDE;
            overlay.text((8.0, y), SMALL, TextSide::After, PlotColour::Soft, words);
        }
    }

    fn draw_axis(&self, overlay: &mut SvgOverlay, (top, bottom): (f64, f64), (left, right): (f64, f64)) {
        let (first, last) = self.span;
        let labels = ((right - left) / 110.0).max(2.0).floor();
        let step = nice_step((last - first) / labels);
        let mut tick = (first / step).ceil() * step;
        let mut free = f64::MIN;
        while tick <= last {
            let x = left + (tick - first) / (last - first) * (right - left);
            let words = format!("{} ms", (tick * 1e6).round() / 1e6 + 0.0);
            let half = text_width(&words, SMALL) / 2.0;
            overlay.line((x, top), (x, bottom), 1.0, PlotColour::Grid, "");
            if x - half >= free {
                overlay.text((x, bottom + 14.0), SMALL, TextSide::Around, PlotColour::Soft, &words);
                free = x + half + 6.0;
            }
            tick += step;
        }
        let stop = left + (0.0 - first) / (last - first) * (right - left);
        overlay.line((stop, top), (stop, bottom), 1.0, PlotColour::Soft, "2 2");
        overlay.line((left, bottom), (right, bottom), 1.0, PlotColour::Soft, "");
    }
}

/// A round step that is not below `least`.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-6).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|step| *step >= least).unwrap_or(10.0 * power)
}

/// The spans of the ledger, laid end to end so that the last ends with the blackout.
fn spans(outcome: Option<&Outcome>, length: f64) -> Vec<BlackoutRow> {
    let ledger = outcome.map(|outcome| outcome.ledger.as_slice()).unwrap_or_default();
    let ledger = &ledger[..ledger.len().min(SPANS)];
    let total: f64 = ledger.iter().map(|span| span.ms).sum();
    let mut began = length - total;
    let mut rows = Vec::new();
    for span in ledger.iter().filter(|span| total.is_finite() && span.ms >= 0.0) {
        let words = format!("ledger: {}, {:.3} ms", span.span, span.ms);
        rows.push(BlackoutRow { words, began, kind: BlackoutMark::Span(began + span.ms) });
        began += span.ms;
    }
    rows
}

/// The devices, each from the beginning of the ledger's span in which all of them lie.
fn lengths(outcome: &Outcome, ledger: &[BlackoutRow]) -> Vec<BlackoutRow> {
    let name = format!("ledger: {},", DeviceTime::SPAN);
    let began = ledger.iter().find(|row| row.words.starts_with(&name)).map_or(0.0, |row| row.began);
    let rows = devices::rows(outcome).into_iter();
    rows.map(|(words, ms)| BlackoutRow { words, began, kind: BlackoutMark::Length(began + ms) }).collect()
}

/// The rows for what was recorded, and how many there is no room for. Questions are the first that are left out.
fn recorded(blackout: &RecordedBlackout, last: Duration) -> (Vec<BlackoutRow>, usize) {
    let (first, rest) = blackout.rows.parts();
    let all: Vec<&ReportRow> = first.iter().chain(rest).collect();
    let is_asked = |row: &&&ReportRow| matches!(&row.what, ReportedFact::Command { name, .. } if is_question(name));
    let told = all.iter().filter(|row| !is_asked(row)).count();
    let mut questions = ROWS.saturating_sub(told);
    let mut rows = Vec::new();
    for row in &all {
        if is_asked(&row) {
            let Some(left) = questions.checked_sub(1) else { continue };
            questions = left;
        }
        if rows.len() == ROWS {
            break;
        }
        rows.push(of_row(row, blackout.began, last));
    }
    let left_out = all.len() - rows.len() + blackout.rows.left_out;
    (rows, left_out)
}

fn of_row(row: &ReportRow, stop: Duration, last: Duration) -> BlackoutRow {
    let began = millis(row.at.min(last).saturating_sub(stop));
    let (what, kind) = match &row.what {
        ReportedFact::Begin(phase) => (format!("{phase} begins"), BlackoutMark::Moment),
        ReportedFact::End(phase, _) => (format!("{phase} ends"), BlackoutMark::Moment),
        ReportedFact::Action { action, because } => (format!("{action}: {because}"), BlackoutMark::Moment),
        ReportedFact::Warning { code, message } => (format!("warning {code}: {message}"), BlackoutMark::Moment),
        ReportedFact::Event { name, data } => (format!("* {name} {}", in_short(data)), BlackoutMark::Moment),
        ReportedFact::Note(note) => (note.clone(), BlackoutMark::Moment),
        ReportedFact::Command { name, took: None, .. } => (format!("{name}, no answer"), BlackoutMark::Unanswered),
        ReportedFact::Command { name, took: Some(took), refusal, .. } => {
            let refused = if refusal.is_some() { ", refused" } else { "" };
            let took = millis(*took);
            (format!("{name}, {took:.3} ms{refused}"), BlackoutMark::Command(began + took))
        }
    };
    BlackoutRow { words: format!("{began:+.3} ms  {}  {what}", row.side).trim_end().to_owned(), began, kind }
}

/// The data of an event with what tells most at the beginning: the names of jobs are long.
fn in_short(data: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str(data) else { return data.to_owned() };
    let told = ["status", "pass", "type", "error", "device", "id"].into_iter().filter_map(|name| fields.get(name));
    let words: Vec<String> =
        told.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).collect();
    if words.is_empty() { data.to_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_of_an_axis_are_round() {
        for (least, step) in [(0.9, 1.0), (1.1, 2.0), (3.0, 5.0), (51.0, 100.0), (0.0003, 0.0005), (0.0, 1e-6)] {
            assert!((nice_step(least) / step - 1.0).abs() < 1e-9, "{least}: {}", nice_step(least));
        }
    }
}
