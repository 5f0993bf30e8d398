//! What a transcript tells over time, folded in bounded memory: samples, limits, phases, decisions, pauses, and what is
//! missing.
//!
//! Pure. Limits are those that QEMU has accepted, by the commands that set them.

use super::{
    reader::{RecordedContent, RecordedEntry, RecordedLine},
    report::{BoundedRows, ReportRow, ReportedFact, TranscriptReport, clip},
    series::BoundedSeries,
};
use crate::{
    progress::{EventKind, Phase, PhaseState},
    qmp::transcript::ENGINE,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

/// Most disks that have series, most phases, most pauses, most gaps, and most limits whose answers have not come.
const DISKS: usize = 64;
const PHASES: usize = 64;
const PAUSES: usize = 64;
const GAPS: usize = 16;
const WAITING: usize = 100;
/// The side of the recorder's own remarks.
const RECORDER: &str = "recorder";
/// The side that is asked how far it is.
const SOURCE: &str = "source";

/// A time with a begin and perhaps an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedSpan {
    /// The begin, since the recorder was made.
    pub began: Duration,
    /// The end, where one is recorded.
    pub ended: Option<Duration>,
}

/// One mirror over time.
#[derive(Debug, Clone, Default)]
pub struct DiskTimeline {
    /// Per cent of what is to be copied, as was known at each time.
    pub progress: BoundedSeries,
    /// Bytes copied, and bytes to copy in all, by the last sample.
    pub newest: (u64, u64),
    /// Whether the destination has caught up once.
    pub ready: bool,
}

/// What a transcript tells over time.
#[derive(Debug, Default)]
pub struct RecordedTimeline {
    /// The same transcript in rows: header, blackout, outcome.
    pub report: TranscriptReport,
    /// Bytes of RAM yet to send.
    pub remaining: BoundedSeries,
    /// Bytes per second that the guest dirties.
    pub dirty_rate: BoundedSeries,
    /// Bytes per second of RAM that are sent.
    pub bandwidth: BoundedSeries,
    /// Per cent by which the vCPUs are throttled.
    pub throttle: BoundedSeries,
    /// Milliseconds of blackout if the guest were stopped then.
    pub predicted_blackout: BoundedSeries,
    /// QEMU's `max-bandwidth` as accepted, bytes per second.
    pub bandwidth_limit: BoundedSeries,
    /// QEMU's `downtime-limit` as accepted, milliseconds.
    pub downtime_limit: BoundedSeries,
    /// Every mirror, by its disk on the source.
    pub disks: BTreeMap<String, DiskTimeline>,
    /// Samples of disks that have no series, since there are too many.
    pub disk_samples_left_out: u64,
    /// The phases in the order of their begins.
    pub phases: Vec<(Phase, RecordedSpan)>,
    /// Decisions and warnings with their reasons.
    pub decisions: BoundedRows,
    /// The times for which the guest stood still, by QEMU's events.
    pub pauses: Vec<RecordedSpan>,
    /// The times of which samples are left out.
    pub gaps: Vec<RecordedSpan>,
    /// Entries that the recorder left out of the middle, and entries that came faster than the disk took them.
    pub left_out: u64,
    /// The same of those that the disk did not take.
    pub dropped: u64,
    handed_over: bool,
    waiting: HashMap<String, [Option<f64>; 2]>,
}

impl RecordedTimeline {
    /// Adds a line.
    pub fn add(&mut self, line: RecordedLine) {
        if let RecordedLine::Entry(entry) = &line {
            self.look(entry);
        }
        self.report.add(line);
    }

    /// Whether RAM was sampled.
    pub fn has_memory(&self) -> bool {
        !self.remaining.is_empty()
    }

    fn look(&mut self, entry: &RecordedEntry) {
        let RecordedEntry { at, side, content } = entry;
        match content {
            RecordedContent::Engine(event) => self.take_event(*at, &event.kind),
            RecordedContent::Command { name, id: Some(id), arguments } if name == "migrate-set-parameters" => {
                let limits =
                    ["max-bandwidth", "downtime-limit"].map(|name| arguments.get(name).and_then(Value::as_f64));
                if side == SOURCE && self.waiting.len() < WAITING && limits.iter().any(Option::is_some) {
                    self.waiting.insert(clip(id.clone()), limits);
                }
            }
            RecordedContent::Answer { id: Some(id), refusal, .. } if side == SOURCE && !self.waiting.is_empty() => {
                let Some([bandwidth, downtime]) = self.waiting.remove(&clip(id.clone())) else { return };
                if refusal.is_none() {
                    bandwidth.into_iter().for_each(|limit| self.bandwidth_limit.push(*at, limit));
                    downtime.into_iter().for_each(|limit| self.downtime_limit.push(*at, limit));
                }
            }
            RecordedContent::Qmp { name, .. } => self.take_qemu_event(*at, side, name),
            RecordedContent::Note(note) if side == RECORDER => self.take_note(*at, note),
            _ => {}
        }
    }

    fn take_event(&mut self, at: Duration, kind: &EventKind) {
        match kind {
            EventKind::Phase { phase, state: PhaseState::Begin } if self.phases.len() < PHASES => {
                self.phases.push((*phase, RecordedSpan { began: at, ended: None }));
            }
            EventKind::Phase { phase, state: PhaseState::End } => {
                let open = |(begun, span): &&mut (Phase, RecordedSpan)| begun == phase && span.ended.is_none();
                if let Some((_, span)) = self.phases.iter_mut().rev().find(open) {
                    span.ended = Some(at);
                }
            }
            EventKind::Memory { remaining, dirty_rate, bandwidth, throttle_pct, predicted_blackout_ms, .. } => {
                self.end_gap(at);
                self.remaining.push(at, *remaining as f64);
                self.dirty_rate.push(at, *dirty_rate as f64);
                self.bandwidth.push(at, *bandwidth as f64);
                self.throttle.push(at, *throttle_pct as f64);
                predicted_blackout_ms.iter().for_each(|ms| self.predicted_blackout.push(at, *ms as f64));
            }
            EventKind::Disk { disk, copied, total, ready, .. } => {
                self.end_gap(at);
                let name = clip(disk.clone());
                if self.disks.len() == DISKS && !self.disks.contains_key(&name) {
                    self.disk_samples_left_out += 1;
                    return;
                }
                let track = self.disks.entry(name).or_default();
                // a disk with nothing to copy is done
                let part = if *total == 0 { 1.0 } else { *copied as f64 / *total as f64 };
                track.progress.push(at, part.clamp(0.0, 1.0) * 100.0);
                (track.newest, track.ready) = ((*copied, *total), *ready);
            }
            EventKind::Action { action, because, .. } => {
                let what = ReportedFact::Action { action: clip(action.clone()), because: clip(because.clone()) };
                self.decisions.push(ReportRow { at, side: ENGINE.to_owned(), what });
            }
            EventKind::Warning { code, message } => {
                let what = ReportedFact::Warning { code: clip(code.clone()), message: clip(message.clone()) };
                self.decisions.push(ReportRow { at, side: ENGINE.to_owned(), what });
            }
            _ => {}
        }
    }

    fn take_qemu_event(&mut self, at: Duration, side: &str, name: &str) {
        let may_begin = side == SOURCE && !self.handed_over && self.pauses.len() < PAUSES;
        let open = self.pauses.last_mut().filter(|pause| pause.ended.is_none());
        match (name, open) {
            // a source whose guest was passed on stops without one
            ("STOP", None) if may_begin => {
                self.pauses.push(RecordedSpan { began: at, ended: None });
            }
            ("RESUME", Some(pause)) => {
                pause.ended = Some(at);
                self.handed_over = side != SOURCE;
            }
            _ => {}
        }
    }

    fn take_note(&mut self, at: Duration, note: &Value) {
        let count = |name: &str| note.get(name).and_then(Value::as_u64);
        self.dropped = self.dropped.saturating_add(count("dropped").unwrap_or(0));
        let Some(left_out) = count("left_out") else { return };
        self.left_out = self.left_out.saturating_add(left_out);
        if self.gaps.len() < GAPS {
            self.gaps.push(RecordedSpan { began: at, ended: None });
        }
        let disks = self.disks.values_mut().map(|disk| &mut disk.progress);
        let memory = [&mut self.remaining, &mut self.dirty_rate, &mut self.bandwidth, &mut self.throttle];
        disks.chain(memory).chain([&mut self.predicted_blackout]).for_each(BoundedSeries::interrupt);
    }

    fn end_gap(&mut self, at: Duration) {
        if let Some(gap) = self.gaps.last_mut().filter(|gap| gap.ended.is_none()) {
            gap.ended = Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reader::RecordingReader;
    use super::*;
    use std::fmt::Write as _;

    fn fold(text: &str) -> RecordedTimeline {
        let mut timeline = RecordedTimeline::default();
        RecordingReader::new(text.as_bytes()).for_each(|line| timeline.add(line.unwrap()));
        timeline
    }

    fn line(ms: u64, side: &str, dir: &str, line: &str) -> String {
        format!("{{\"v\":1,\"t_us\":{},\"side\":\"{side}\",\"dir\":\"{dir}\",\"line\":{line}}}\n", ms * 1000)
    }

    fn memory(ms: u64, remaining: u64) -> String {
        let event = format!(
            r#"{{"v":1,"t_ms":{ms},"type":"memory","status":"active","transferred":1,"remaining":{remaining},"total":9,"dirty_rate":4,"bandwidth":5,"working_set":6,"throttle_pct":20,"predicted_blackout_ms":null,"eta_ms":null}}"#
        );
        line(ms, "engine", "note", &event)
    }

    fn disk(ms: u64, name: &str, copied: u64, total: u64) -> String {
        let event = format!(
            r#"{{"v":1,"t_ms":{ms},"type":"disk","disk":"{name}","status":"running","copied":{copied},"total":{total},"ready":false,"rate":1,"growth":0,"write_rate":0,"write_latency_us":null,"eta_ms":null}}"#
        );
        line(ms, "engine", "note", &event)
    }

    #[test]
    fn limits_are_those_that_qemu_accepted() {
        let set = |ms, id: u8, arguments: &str| {
            let command = format!(r#"{{"execute":"migrate-set-parameters","arguments":{arguments},"id":"m#{id}"}}"#);
            line(ms, "source", "send", &command)
        };
        let answer = |ms, id: u8, body: &str| line(ms, "source", "receive", &format!(r#"{{{body},"id":"m#{id}"}}"#));
        let told = fold(
            &(set(1, 1, r#"{"downtime-limit":10,"max-bandwidth":1000}"#)
                + &answer(2, 1, r#""return":{}"#)
                + &set(3, 2, r#"{"downtime-limit":40}"#)
                + &answer(4, 2, r#""error":{"class":"G","desc":"no"}"#)
                + &set(5, 3, r#"{"downtime-limit":20}"#)
                + &answer(6, 3, r#""return":{}"#)
                + &set(7, 4, r#"{"downtime-limit":30}"#)),
        );
        let points = |series: &BoundedSeries| -> Vec<(f64, f64)> {
            series.parts().into_iter().flatten().map(|point| (point.at, point.value)).collect()
        };
        assert_eq!(points(&told.downtime_limit), [(0.002, 10.0), (0.006, 20.0)]);
        assert_eq!(points(&told.bandwidth_limit), [(0.002, 1000.0)]);
    }

    #[test]
    fn a_gap_interrupts_what_is_sampled() {
        let note = |ms| line(ms, "recorder", "note", r#"{"left_out":7,"bytes":70}"#);
        let told = fold(&(memory(1, 9) + &disk(1, "a", 1, 2) + &note(2) + &memory(9, 5) + &disk(10, "a", 2, 2)));
        assert_eq!((told.remaining.parts().len(), told.disks["a"].progress.parts().len()), (2, 2));
        let span = RecordedSpan { began: Duration::from_millis(2), ended: Some(Duration::from_millis(9)) };
        assert_eq!((&told.gaps[..], told.left_out), (&[span][..], 7));
    }

    #[test]
    fn pauses_end_with_the_handover() {
        let event = |ms, side: &str, name: &str| line(ms, side, "receive", &format!(r#"{{"event":"{name}"}}"#));
        let told = fold(
            &(event(1, "source", "STOP")
                + &event(2, "source", "RESUME")
                + &event(3, "source", "STOP")
                + &event(4, "destination", "RESUME")
                + &event(5, "source", "STOP")),
        );
        let pauses: Vec<_> = told.pauses.iter().map(|pause| (pause.began.as_millis(), pause.ended)).collect();
        assert_eq!(pauses, [(1, Some(Duration::from_millis(2))), (3, Some(Duration::from_millis(4)))]);
    }

    #[test]
    fn a_flood_of_each_kind_is_folded_within_bounds() {
        let mut flood = String::new();
        for number in 0..3000u64 {
            flood += &memory(number, number);
            flood += &disk(number, &format!("disk{number}"), 1, 0);
            for (side, dir, body) in [
                ("engine", "note", r#"{"v":1,"t_ms":1,"type":"phase","phase":"memory","state":"begin"}"#.to_owned()),
                ("engine", "note", r#"{"v":1,"t_ms":1,"type":"action","action":"x","because":"y"}"#.to_owned()),
                ("recorder", "note", r#"{"left_out":18446744073709551615}"#.to_owned()),
                ("source", "receive", format!(r#"{{"event":"{}"}}"#, if number % 2 == 0 { "STOP" } else { "RESUME" })),
                ("source", "send", {
                    let mut command = String::new();
                    write!(command, r#"{{"execute":"migrate-set-parameters","id":"x#{number}",""#).unwrap();
                    command + r#"arguments":{"downtime-limit":1}}"#
                }),
            ] {
                flood += &line(number, side, dir, &body);
            }
        }
        let told = fold(&flood);
        assert_eq!((told.disks.len(), told.disk_samples_left_out), (DISKS, 3000 - DISKS as u64));
        assert!(told.phases.len() <= PHASES && told.pauses.len() <= PAUSES && told.gaps.len() <= GAPS);
        assert!(told.waiting.len() <= WAITING && told.left_out == u64::MAX);
        assert!(told.remaining.parts().len() <= 17, "{}", told.remaining.parts().len());
    }
}
