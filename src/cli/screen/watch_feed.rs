//! The view as a watch feeds it: looks at both sides, and QEMU's events.
//!
//! Pure.

use super::{
    super::plain_text::one_line,
    live_view::{LiveView, ROWS, SideRow, TransferRow, time_left},
};
use crate::{
    diagnosis::{SideReport, WatchSnapshot, WatchedEvent},
    progress::Side,
    quantity::{Bytes, Rate},
};
use std::time::Duration;

/// What a watch has shown so far.
#[derive(Debug, Default)]
pub(crate) struct WatchFeed {
    view: LiveView,
    /// What the view said of the causes when it last changed.
    told: Vec<String>,
    moved: bool,
}

impl WatchFeed {
    /// The view as it is now.
    pub(crate) fn view(&self) -> &LiveView {
        &self.view
    }

    /// A line of the command's own.
    pub(crate) fn note(&mut self, text: &str) {
        self.view.log(String::new(), "qferry", text);
    }

    /// Whether anything was looked at.
    pub(crate) fn has_seen(&self) -> bool {
        self.view.sides.iter().any(|side| !side.state.starts_with("being dialled"))
    }

    /// The last sentence.
    pub(crate) fn verdict(&self) -> &str {
        &self.view.verdict
    }

    /// Takes in what is seen now.
    pub(crate) fn take(&mut self, snapshot: &WatchSnapshot) {
        let WatchSnapshot { at, diagnosis, events, lost_events, .. } = snapshot;
        let view = &mut self.view;
        view.elapsed = *at;
        view.verdict = one_line(&diagnosis.verdict);
        view.blame(&diagnosis.causes);
        if *lost_events > 0 {
            view.log(String::new(), "qferry", &format!("{lost_events} events came too fast to be shown"));
        }
        for event in events {
            view.log(clock(event), event.side.as_str(), &format!("{} {}", event.event, event.details()));
        }
        let told: Vec<String> = diagnosis.causes.iter().map(|cause| cause.code.to_string()).collect();
        for code in told.iter().filter(|code| !self.told.contains(code)) {
            view.log(ago(*at), "qferry", &format!("found: {code}"));
        }
        for code in self.told.iter().filter(|code| !told.contains(code)) {
            view.log(ago(*at), "qferry", &format!("no longer found: {code}"));
        }
        self.told = told;
        if snapshot.moved && !self.moved {
            view.log(ago(*at), "qferry", "the guest has moved: it runs on the destination");
        }
        self.moved = snapshot.moved;
        let sides = [(Side::Source, &diagnosis.source), (Side::Destination, &diagnosis.destination)];
        view.sides = sides.into_iter().filter_map(|(side, report)| Some(row(side, report.as_ref()?))).collect();
        view.transfers.clear();
        view.facts.clear();
        if let Some(source) = &diagnosis.source {
            transfers(view, source);
            facts(view, source);
        }
        if let Some(pause) = snapshot.blackout {
            let told =
                format!("{:.1} ms from STOP to RESUME, by the clocks of the two hosts", pause.as_secs_f64() * 1000.0);
            view.facts.push(("blackout", told));
        }
        let exports = |side: &Option<SideReport>| side.as_ref().map(|side| side.exports.join(", ")).unwrap_or_default();
        let exports = exports(&diagnosis.destination);
        if !exports.is_empty() {
            view.facts.push(("exports", one_line(&exports)));
        }
        for unseen in diagnosis.unseen.iter().take(ROWS) {
            view.facts.push(("not seen", one_line(unseen)));
        }
    }
}

fn row(side: Side, report: &SideReport) -> SideRow {
    let run = report.run_state.as_deref();
    let migration = report.migration.as_deref().filter(|status| *status != "none");
    let state = match &*report.monitor {
        "answers" => {
            let migration = migration.map_or_else(|| "no migration".to_owned(), |status| format!("migration {status}"));
            format!("{}, {migration}", run.unwrap_or("unknown"))
        }
        "not-asked" => "being dialled".to_owned(),
        "silent" => "does not greet; dialled anew".to_owned(),
        "greets" => "greets, answers nothing; dialled anew".to_owned(),
        "hangs" => "main loop hangs".to_owned(),
        _ => "gone; dialled anew".to_owned(),
    };
    let version = report.version.as_ref().map(|version| format!("QEMU {version}"));
    let pid = report.pid.map(|pid| match report.process_state.as_deref() {
        Some(state) if state.len() > 1 => format!("process {pid}: {state}"),
        _ => format!("process {pid}"),
    });
    let process: Vec<String> = [version, pid].into_iter().flatten().collect();
    let lost = !matches!(&*report.monitor, "answers" | "not-asked");
    SideRow {
        state: one_line(&state),
        lost,
        process: one_line(&process.join(", ")),
        ..SideRow::new(side, &report.address)
    }
}

fn transfers(view: &mut LiveView, source: &SideReport) {
    for mirror in source.mirrors.iter().take(ROWS) {
        let left = mirror.total.saturating_sub(mirror.copied);
        let note = match &*mirror.status {
            "running" => time_left(left, mirror.rate).unwrap_or_else(|| "running".to_owned()),
            status => status.to_owned(),
        };
        view.plot(&format!("{} left", mirror.id), false, left);
        let (name, note) = (one_line(&mirror.id), one_line(&note));
        view.transfers.push(TransferRow { name, left, total: mirror.total, rate: mirror.rate, note });
    }
    let (Some(total), Some(left)) = (source.ram_total, source.remaining.last().copied()) else { return };
    let sent = source.bandwidth.unwrap_or_default();
    let note = match (source.migration.as_deref(), source.dirty_rate) {
        (Some("active"), Some(dirtied)) => {
            time_left(left, sent.saturating_sub(dirtied)).unwrap_or_else(|| "no end in sight".to_owned())
        }
        (Some("active"), None) => "first pass".to_owned(),
        (other, _) => other.unwrap_or_default().to_owned(),
    };
    if source.migration.as_deref() != Some("completed") {
        view.plot("RAM left", false, left);
        view.plot("RAM sent", true, sent);
        source.dirty_rate.into_iter().for_each(|dirtied| view.plot("RAM dirtied", true, dirtied));
    }
    view.transfers.push(TransferRow { name: "RAM".to_owned(), left, total, rate: sent, note: one_line(&note) });
}

fn facts(view: &mut LiveView, source: &SideReport) {
    if source.ram_total.is_some() {
        let mut ram = vec![match source.dirty_rate {
            Some(dirtied) => format!("dirtied {}", Rate(dirtied)),
            None => "dirtied: not known before the first pass is over".to_owned(),
        }];
        ram.extend(source.transferred.map(|sent| format!("{} sent", Bytes(sent))));
        ram.extend(source.passes.map(|passes| format!("pass {passes}")));
        ram.extend(source.throttle_pct.filter(|pct| *pct > 0).map(|pct| format!("guest throttled by {pct} %")));
        view.facts.push(("RAM", ram.join(", ")));
    }
    let mut pause = Vec::new();
    match source.downtime_ms {
        Some(ms) => pause.push(format!("{ms} ms by QEMU's count")),
        None => pause.extend(source.expected_downtime_ms.map(|ms| format!("expected {ms} ms"))),
    }
    pause.extend(source.downtime_limit_ms.map(|ms| format!("limit {ms} ms")));
    if !pause.is_empty() {
        view.facts.push(("downtime", pause.join(", ")));
    }
    let ram = source.bandwidth_limit.map(|limit| format!("RAM {}", Rate(limit)));
    let mirrors = source.mirrors.iter().filter_map(|mirror| Some((&mirror.id, mirror.limit?))).take(ROWS);
    let mirrors = mirrors.map(|(id, limit)| format!("{id} {}", Rate(limit)));
    let limits: Vec<String> = ram.into_iter().chain(mirrors).collect();
    if !limits.is_empty() {
        view.facts.push(("limits", one_line(&limits.join(", "))));
    }
}

/// QEMU's own time of an event, in universal time.
fn clock(event: &WatchedEvent) -> String {
    let Some(us) = event.qemu_us else { return ago(event.at) };
    let (ms, seconds) = (us / 1000 % 1000, us / 1_000_000);
    format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// A time since the beginning.
fn ago(at: Duration) -> String {
    format!("+{:.3}s", at.as_secs_f64())
}
