//! What a plot shows, taken from what a transcript tells: the words, the charts in their units, and what is missing.
//!
//! Pure. Nothing is invented: where a transcript has no samples of a thing, the chart says so.

use super::{
    blackout::EnlargedBlackout,
    chart::{ChartLine, LINE_STYLES, TimeBand, TimeChart, axis_number},
    devices,
    ink::PlotColour,
};
use crate::{
    cli::{history::began, plain_text, recorded},
    progress::{Outcome, RunsOn},
    recording::{BoundedSeries, ReadFaults, RecordedSpan, RecordedTimeline, ReportedFact, SeriesPoint},
};
use std::path::Path;

/// The unit of sizes.
const MIB: f64 = 1048576.0;
/// A limit so high that it is none: QEMU's own parameter knows no other way to say that.
const NO_LIMIT: f64 = (1u64 << 40) as f64;
/// A limit that is above so many times of what it limits is told in words, or nothing else could be seen.
const FAR_ABOVE: f64 = 3.0;
/// Most disks that have lines of their own: as many as there are styles.
const DISKS: usize = LINE_STYLES.len();
/// Most characters of a disk's name.
const NAME: usize = 32;
/// The times of a chart that can be pointed at.
const HINTS: usize = 80;

/// A row of the strip above the charts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StripRow {
    pub(super) name: String,
    pub(super) colour: PlotColour,
    pub(super) spans: Vec<StripSpan>,
}

/// One time in a row, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StripSpan {
    pub(super) began: f64,
    pub(super) ended: f64,
    /// The length, for the picture; and begin, end and length, for who points at it.
    pub(super) length: String,
    pub(super) words: String,
    /// The dashes of the edge: an end that is not recorded has some.
    pub(super) edge: &'static str,
}

/// A decision or a warning of the engine.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NumberedDecision {
    pub(super) number: usize,
    pub(super) at: f64,
    pub(super) words: String,
}

/// Everything that a plot shows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PlotContent {
    pub(super) title: String,
    pub(super) facts: Vec<String>,
    /// What the transcript does not have.
    pub(super) missing: Vec<String>,
    /// The first and the last second.
    pub(super) span: (f64, f64),
    pub(super) phases: Vec<StripRow>,
    pub(super) pauses: StripRow,
    pub(super) decisions: Vec<NumberedDecision>,
    pub(super) bands: Vec<TimeBand>,
    pub(super) charts: Vec<TimeChart>,
    pub(super) blackout: Option<EnlargedBlackout>,
    /// The spans of the ledger, in milliseconds.
    pub(super) ledger: Vec<(String, f64)>,
    /// The devices within the blackout, the longest of each side first, in milliseconds.
    pub(super) devices: Vec<(String, f64)>,
}

impl PlotContent {
    /// What a transcript tells. `faults` is what is wrong with its lines.
    pub(super) fn of(path: &Path, timeline: &RecordedTimeline, faults: ReadFaults) -> Self {
        let report = &timeline.report;
        let last = report.last.as_secs_f64();
        let span = (0.0, if last > 0.0 { last } else { 0.001 });
        let bands = |colour: PlotColour, spans: &[RecordedSpan]| {
            let band = |span: &RecordedSpan| {
                let began = span.began.as_secs_f64();
                TimeBand { began, ended: span.ended.map_or(last, |end| end.as_secs_f64()).max(began), colour }
            };
            spans.iter().map(band).collect::<Vec<_>>().into_iter()
        };
        let outcome = report.outcome.as_deref();
        let run = report.header.as_ref().and_then(|header| header.run.as_deref());
        let end = outcome.map_or("no end recorded".to_owned(), |outcome| outcome.outcome.to_string());
        Self {
            title: format!("qferry {}: {end}", run.map_or("transcript".to_owned(), |run| format!("run {run}"))),
            facts: facts(path, timeline),
            missing: missing(timeline, faults),
            span,
            phases: phases(timeline, last),
            pauses: StripRow {
                name: "guest stops".to_owned(),
                colour: PlotColour::Stopped,
                spans: timeline.pauses.iter().map(|span| strip_span(span, last)).collect(),
            },
            decisions: decisions(timeline),
            bands: bands(PlotColour::Missing, &timeline.gaps)
                .chain(bands(PlotColour::Stopped, &timeline.pauses))
                .collect(),
            charts: charts(timeline, span),
            blackout: EnlargedBlackout::of(report),
            ledger: outcome.map_or_else(Vec::new, |outcome| {
                outcome.ledger.iter().map(|span| (span.span.clone(), span.ms)).collect()
            }),
            devices: outcome.map(devices::table).unwrap_or_default(),
        }
    }
}

fn facts(path: &Path, timeline: &RecordedTimeline) -> Vec<String> {
    let report = &timeline.report;
    let mut facts = Vec::new();
    if let Some(header) = &report.header {
        let address = |address: &Option<String>| address.clone().unwrap_or_else(|| "?".to_owned());
        if header.source.is_some() || header.destination.is_some() {
            facts.push(format!("{} -> {}", address(&header.source), address(&header.destination)));
        }
        facts.push(format!("began {}, qferry {}", began(Some(header.began_ms)).trim_end(), header.qferry));
    }
    match report.outcome.as_deref() {
        Some(outcome) => facts.push(end(outcome)),
        None => facts.push(format!("the last of {} entries is of {:.3} s", report.entries, report.last.as_secs_f64())),
    }
    facts.push(path.display().to_string());
    facts
}

/// The end of a run in a line.
fn end(outcome: &Outcome) -> String {
    let place = match outcome.runs_on {
        RunsOn::Source => "the guest is on the source",
        RunsOn::Destination => "the guest is on the destination",
        RunsOn::None => "the guest runs nowhere",
        RunsOn::Unknown => "it is not proved where the guest runs",
    };
    let mut words = format!("{}: {place}, total {:.3} s", outcome.outcome, outcome.total_ms as f64 / 1000.0);
    words.extend(outcome.blackout_ms.map(|ms| format!(", blackout {ms:.3} ms")));
    words.extend(outcome.reason.as_ref().map(|reason| format!("; {}: {}", reason.code, reason.message)));
    plain_text::plain(&words)
}

/// What the transcript does not have, in sentences.
fn missing(timeline: &RecordedTimeline, faults: ReadFaults) -> Vec<String> {
    let report = &timeline.report;
    let mut missing = Vec::new();
    let mut say = |is_so: bool, words: String| missing.extend(is_so.then_some(words));
    say(report.header.is_none(), "the file has no header: run and addresses are not known".to_owned());
    say(
        report.outcome.is_none(),
        "no end is recorded: the run goes on, its qferry died, or the file is torn; what follows the last entry is not \
         known"
            .to_owned(),
    );
    let skipped = faults.skipped;
    say(skipped > 0, format!("{skipped} lines are none of a transcript, torn or too long, and are left out"));
    say(faults.turned_back > 0, recorded::turned_back(faults).unwrap_or_default());
    say(
        timeline.left_out > 0,
        format!("{} entries were left out of the middle to keep the file short: the shaded time", timeline.left_out),
    );
    say(timeline.dropped > 0, format!("{} entries came faster than the disk took them", timeline.dropped));
    let rows = timeline.decisions.left_out;
    say(rows > 0, format!("{rows} decisions and warnings of the middle are not shown: there are too many"));
    let open = report.blackout.as_ref().is_some_and(|blackout| blackout.ended.is_none());
    say(open, "the guest was stopped, and no RESUME is recorded".to_owned());
    let unknown = report.outcome.as_ref().and_then(|outcome| outcome.devices_unknown.as_ref());
    missing.extend(unknown.map(|why| plain_text::plain(&format!("devices in the blackout: {why}"))));
    missing
}

fn strip_span(span: &RecordedSpan, last: f64) -> StripSpan {
    let began = span.began.as_secs_f64();
    match span.ended {
        Some(end) => {
            let ended = end.as_secs_f64();
            let ms = (ended - began).max(0.0) * 1000.0;
            let length = if ms >= 10_000.0 { format!("{:.1} s", ms / 1000.0) } else { format!("{ms:.0} ms") };
            let length = if ms < 100.0 { format!("{ms:.1} ms") } else { length };
            let words = format!("{began:.6} s to {ended:.6} s, {ms:.3} ms");
            StripSpan { began, ended, length, words, edge: "" }
        }
        None => StripSpan {
            began,
            ended: last,
            length: "no end".to_owned(),
            words: format!("from {began:.6} s on, no end is recorded"),
            edge: "3 3",
        },
    }
}

fn phases(timeline: &RecordedTimeline, last: f64) -> Vec<StripRow> {
    let mut rows: Vec<StripRow> = Vec::new();
    for (phase, span) in &timeline.phases {
        let (name, span) = (phase.to_string(), strip_span(span, last));
        match rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.spans.push(span),
            None => rows.push(StripRow { name, colour: PlotColour::Phase, spans: vec![span] }),
        }
    }
    rows
}

fn decisions(timeline: &RecordedTimeline) -> Vec<NumberedDecision> {
    let (first, last) = timeline.decisions.parts();
    let count = first.len();
    let left_out = timeline.decisions.left_out;
    let numbered = first.iter().chain(last).enumerate().map(|(at, row)| {
        let words = match &row.what {
            ReportedFact::Action { action, because } => format!("{action}: {because}"),
            ReportedFact::Warning { code, message } => format!("warning {code}: {message}"),
            _ => String::new(),
        };
        let number = at + 1 + if at < count { 0 } else { left_out };
        NumberedDecision { number, at: row.at.as_secs_f64(), words: plain_text::plain(&words) }
    });
    numbered.collect()
}

fn charts(timeline: &RecordedTimeline, span: (f64, f64)) -> Vec<TimeChart> {
    let memory_missing = match timeline.has_memory() {
        true => "",
        false => "nothing: RAM was never sampled, so the run did not come so far, or this file does not tell",
    };
    let line = |name: &str, style: usize, series: &BoundedSeries, unit: f64| ChartLine {
        name: name.to_owned(),
        style: LINE_STYLES[style % LINE_STYLES.len()],
        parts: scaled(series, unit),
    };
    let chart = |title: &str, lines: Vec<ChartLine>| TimeChart {
        title: title.to_owned(),
        lines: lines.into_iter().filter(|line| !line.parts.is_empty()).collect(),
        missing: memory_missing.to_owned(),
        ..TimeChart::default()
    };
    let remaining = chart("Remaining RAM, MiB", vec![line("remaining", 0, &timeline.remaining, MIB)]);
    let rates =
        vec![line("bandwidth of RAM", 0, &timeline.bandwidth, MIB), line("dirty rate", 1, &timeline.dirty_rate, MIB)];
    let rates =
        limited(chart("RAM sent and dirtied, MiB/s", rates), "max-bandwidth", &timeline.bandwidth_limit, span, MIB);
    let pauses = vec![line("blackout if stopped now", 0, &timeline.predicted_blackout, 1.0)];
    let pauses = chart("Blackout foreseen, ms in powers of ten", pauses);
    let mut pauses = limited(pauses, "downtime-limit", &timeline.downtime_limit, span, 1.0);
    // RAM that is not sent yet would take a thousand times the limit
    pauses.has_powers = true;
    let mut throttle = chart("Throttle of the vCPUs, %", vec![line("throttle", 0, &timeline.throttle, 1.0)]);
    if timeline.throttle.greatest() == Some(0.0) {
        throttle.lines.clear();
        throttle.missing = "never: every sample has 0 %".to_owned();
    }
    throttle.top = Some(100.0);
    let mut charts = vec![remaining, rates, pauses, throttle, mirrors(timeline)];
    charts.iter_mut().for_each(|chart| chart.hints = hints(chart, span));
    charts
}

fn scaled(series: &BoundedSeries, unit: f64) -> Vec<Vec<(f64, f64)>> {
    let part = |part: Vec<SeriesPoint>| part.iter().map(|point| (point.at, point.value / unit)).collect();
    series.parts().into_iter().map(part).collect()
}

/// The chart with a limit: as a line of steps, or in words where the limit is far above.
fn limited(mut chart: TimeChart, name: &str, limit: &BoundedSeries, span: (f64, f64), unit: f64) -> TimeChart {
    if chart.lines.is_empty() {
        return chart;
    }
    let values = chart.lines.iter().flat_map(|line| line.parts.iter().flatten()).map(|point| point.1);
    let most = (values.fold(0.0, f64::max) * FAR_ABOVE).max(f64::MIN_POSITIVE);
    let points: Vec<(f64, f64)> = scaled(limit, unit).into_iter().flatten().collect();
    let mut parts: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut is_above = false;
    for (at, (began, value)) in points.iter().enumerate() {
        let ended = points.get(at + 1).map_or(span.1, |next| next.0);
        // QEMU takes 0 for no limit
        if *value * unit >= NO_LIMIT || *value > most || *value == 0.0 {
            is_above = true;
            continue;
        }
        let steps = [(*began, *value), (ended, *value)];
        match parts.last_mut().filter(|part| part.last().is_some_and(|last| last.0 == *began)) {
            Some(part) => part.extend(steps),
            None => parts.push(steps.into()),
        }
    }
    match points.last() {
        None => chart.remarks.push(format!("{name}: no command of this file sets it")),
        Some((_, newest)) if parts.is_empty() => {
            let scale = if *newest * unit < NO_LIMIT && *newest != 0.0 { ", above the scale" } else { "" };
            chart.remarks.push(format!("{name}: {}{scale}", limit_words(*newest, unit)));
        }
        Some(_) if is_above => chart.remarks.push(format!("{name} is above the scale where its line ends")),
        Some(_) => {}
    }
    if let (false, Some((_, newest))) = (parts.is_empty(), points.last()) {
        let name = format!("{name}, at last {}", limit_words(*newest, unit));
        chart.lines.push(ChartLine { name, style: LINE_STYLES[3], parts });
    }
    chart
}

/// A limit in the unit of its chart. QEMU takes 0 for no limit.
fn limit_words(limit: f64, unit: f64) -> String {
    match limit * unit {
        bytes if bytes >= NO_LIMIT || bytes == 0.0 => "no limit".to_owned(),
        _ => axis_number(limit, limit),
    }
}

fn mirrors(timeline: &RecordedTimeline) -> TimeChart {
    let mut chart = TimeChart {
        title: "Mirrors, % copied".to_owned(),
        missing: "nothing: no mirror was sampled".to_owned(),
        top: Some(100.0),
        ..TimeChart::default()
    };
    for (number, (name, disk)) in timeline.disks.iter().take(DISKS).enumerate() {
        let name: String = name.chars().take(NAME).collect();
        let (copied, total) = (disk.newest.0 as f64 / MIB, disk.newest.1 as f64 / MIB);
        let ready = if disk.ready { ", ready" } else { "" };
        chart.lines.push(ChartLine {
            name: format!("{name}: {copied:.1} of {total:.1} MiB{ready}"),
            style: LINE_STYLES[number],
            parts: scaled(&disk.progress, 1.0),
        });
    }
    let more = timeline.disks.len().saturating_sub(DISKS);
    if more > 0 || timeline.disk_samples_left_out > 0 {
        let at_least = if timeline.disk_samples_left_out > 0 { "at least " } else { "" };
        chart.remarks.push(format!("{at_least}{more} more disks are not shown"));
    }
    chart
}

/// What is said of times of a chart.
fn hints(chart: &TimeChart, (began, ended): (f64, f64)) -> Vec<(f64, String)> {
    if chart.lines.is_empty() {
        return Vec::new();
    }
    let times = (0..=HINTS).map(|number| began + (ended - began) * number as f64 / HINTS as f64);
    let middle = (ended - began) / HINTS as f64 / 2.0;
    let value = |line: &ChartLine, at: f64| {
        let part = line.parts.iter().rev().find(|part| part.first().is_some_and(|first| first.0 <= at))?;
        let behind = part.partition_point(|point| point.0 <= at);
        Some(part.get(behind.checked_sub(1)?)?.1)
    };
    times
        .map(|from| {
            let at = from + middle;
            let told = chart.lines.iter().filter_map(|line| Some(format!("{} {:.1}", line.name, value(line, at)?)));
            let told: Vec<String> = told.collect();
            let told = if told.is_empty() { "no sample yet".to_owned() } else { told.join(" | ") };
            (from, format!("{at:.3} s: {told} ({})", chart.title))
        })
        .collect()
}
