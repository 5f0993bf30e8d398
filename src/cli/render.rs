//! What people see: bars on a terminal, plain lines elsewhere, a summary at the end; and JSON lines for programs.
//!
//! A reader that went away is no reason to stop: write errors are passed over.

use super::{
    flags,
    plain_text::{in_line, plain},
    screen,
};
use crate::{
    codes::FailureCode,
    migration::{Events, Plan},
    progress::{
        DeviceTime, Ending, Estimate, EstimatedRung, Event, EventKind, JsonLines, Outcome, Phase, PhaseState, Reason,
        RunsOn, Side, describe_devices,
    },
    quantity::{Bytes, Rate},
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    time::Duration,
};

/// The most devices of a side that are told by name.
const NAMED: usize = 4;
/// How often a plain line tells of the same disk or of RAM.
const PLAIN: Duration = Duration::from_secs(2);

/// A line for people.
pub(super) fn say(line: &str) {
    let line = plain(line);
    if !screen::take_note(&line) {
        drop(writeln!(io::stderr(), "{line}"));
    }
}

/// A text on stdout. A reader that went away is no reason to stop.
pub(super) fn print(text: &str) {
    drop(io::stdout().write_all(plain(text).as_bytes()));
}

/// Shows events until the last: the outcome, or the end of what sends them.
pub(super) fn follow(mut events: Events, json: bool) {
    follow_from(|| events.blocking_next(), json);
}

/// The same, for events from elsewhere.
pub(super) fn follow_from(mut next: impl FnMut() -> Option<Event>, json: bool) {
    let lines = json.then(|| JsonLines::new(io::stdout()));
    let mut screen = Screen::new();
    while let Some(event) = next() {
        if let Some(lines) = &lines {
            drop(lines.write(&flags::worded_event(event.clone())));
        }
        match &event.kind {
            EventKind::Outcome(outcome) => {
                screen.clear();
                let text = plain(&summary(outcome));
                if json {
                    drop(io::stderr().write_all(text.as_bytes()));
                } else {
                    drop(io::stdout().write_all(text.as_bytes()));
                }
                return;
            }
            _ => screen.show(&event),
        }
    }
    screen.clear();
}

/// Writes one object for a program.
///
/// # Errors
/// Stdout takes no more, as a file on a full disk does.
pub(super) fn object(object: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{object}")?;
    stdout.flush()
}

/// Writes the result of a command for a program, with settings named by flags.
///
/// # Errors
/// As [`object`].
pub(super) fn result(kind: &str, t_ms: u64, fields: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::json!({ "v": 1, "type": kind, "t_ms": t_ms });
    if let (Some(line), Ok(Value::Object(fields))) = (line.as_object_mut(), serde_json::to_value(fields)) {
        line.extend(fields);
    }
    flags::word_json(&mut line);
    object(&line)
}

/// Shows a plan.
///
/// # Errors
/// As [`object`].
pub(super) fn plan(plan: &Plan, json: bool, t_ms: u64) -> io::Result<()> {
    if json {
        return result("plan", t_ms, plan);
    }
    let mut text = String::new();
    for finding in &plan.findings {
        text.push_str(&format!("{:<8} {}: {finding}\n", finding.severity, finding.code));
    }
    text.push_str(&super::tree::tree(plan));
    let ram = plan.estimate.ram_bytes.map_or_else(String::new, |bytes| Bytes(bytes).to_string());
    text.push_str(&format!("ram      {ram}\n"));
    if plan.estimate.converges.is_some() {
        text.push_str(&format!("estimate {}\n", estimate_words(&plan.estimate)));
    }
    text.push_str(match plan.blockers().next() {
        Some(_) => REFUSED,
        None => "ready    the migration can start\n",
    });
    written(&text)
}

/// The last line of a plan with which the migration would be refused.
const REFUSED: &str = "refused  nothing would be changed\n";

/// Writes a text for people on stdout.
///
/// # Errors
/// As [`object`].
pub(super) fn written(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(plain(text).as_bytes())?;
    stdout.flush()
}

/// Shows why there is no plan, in the layout of one.
///
/// # Errors
/// As [`object`].
pub(super) fn unplanned(reason: &Reason, json: bool, t_ms: u64) -> io::Result<()> {
    if json {
        say(&format!("qferry: {} ({})", reason.message, reason.code));
        let finding = serde_json::json!({
            "code": reason.code, "severity": "blocker", "subject": "", "message": reason.message, "remedy": "",
        });
        let mut plan = serde_json::json!({
            "v": 1, "type": "plan", "t_ms": t_ms, "findings": [finding], "disks": [], "estimate": Estimate::default(),
        });
        flags::word_json(&mut plan);
        return object(&plan);
    }
    match reason.code {
        FailureCode::Cancelled | FailureCode::Internal => {
            say(&format!("qferry: {} ({})", reason.message, reason.code));
            Ok(())
        }
        _ => written(&format!("blocker  {}: {}\n{REFUSED}", reason.code, reason.message)),
    }
}

struct Screen {
    bars: Option<MultiProgress>,
    shown: BTreeMap<String, ProgressBar>,
    begun: BTreeMap<Phase, u64>,
    told: BTreeMap<String, u64>,
}

impl Screen {
    fn new() -> Self {
        let bars =
            io::stderr().is_terminal().then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Self { bars, shown: BTreeMap::new(), begun: BTreeMap::new(), told: BTreeMap::new() }
    }

    fn clear(&self) {
        for bar in self.shown.values() {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(plain(text))),
            None => say(text),
        }
    }

    fn show(&mut self, event: &Event) {
        let at = format!("[{:>8.3}s]", event.t_ms as f64 / 1000.0);
        match &event.kind {
            EventKind::Phase { phase, state: PhaseState::Begin } => {
                self.begun.insert(*phase, event.t_ms);
                if self.bars.is_none() {
                    self.line(&format!("{at} {phase} ..."));
                }
            }
            EventKind::Phase { phase, state: PhaseState::End } => {
                let took = event.t_ms.saturating_sub(self.begun.get(phase).copied().unwrap_or(event.t_ms));
                self.clear();
                self.shown.clear();
                self.line(&format!("{at} {phase:<11} {took:>7} ms"));
            }
            EventKind::Disk { disk, copied, total, ready, rate, .. } => {
                let note = if *ready { "ready".to_owned() } else { Rate(*rate).to_string() };
                self.sample(&format!("disk {disk}"), *copied, *total, &note, event.t_ms);
            }
            EventKind::Memory { transferred, remaining, dirty_rate, bandwidth, .. } => {
                let note = format!("{}, dirty {}", Rate(*bandwidth), Rate(*dirty_rate));
                self.sample("memory", *transferred, transferred.saturating_add(*remaining), &note, event.t_ms);
            }
            EventKind::Step { step, image, state: PhaseState::Begin } => {
                if self.bars.is_none() {
                    self.line(&format!("{at} {step} {image} ..."));
                }
            }
            EventKind::Step { step, image, state: PhaseState::End } => {
                self.clear();
                self.shown.clear();
                self.line(&format!("{at} {step} {image} ended"));
            }
            EventKind::Image { image, doing, done, total, rate } => {
                let name = image.rsplit('/').next().unwrap_or(image);
                let rate = rate.map_or_else(String::new, |rate| Rate(rate).to_string());
                self.sample(&format!("{doing} {name}"), *done, *total, &rate, event.t_ms);
            }
            EventKind::Action { action, because, .. } => self.line(&format!("{at} {action}: {because}")),
            EventKind::Warning { message, .. } => self.line(&format!("{at} warning: {message}")),
            EventKind::Outcome(_) | EventKind::Unknown => {}
        }
    }

    fn sample(&mut self, what: &str, done: u64, all: u64, note: &str, t_ms: u64) {
        let Some(bars) = &self.bars else {
            let due = self.told.get(what).is_none_or(|&last| Duration::from_millis(t_ms.saturating_sub(last)) >= PLAIN);
            if due || (done == all && note == "ready") {
                self.told.insert(what.to_owned(), t_ms);
                let note = if note.is_empty() { String::new() } else { format!(", {note}") };
                say(&format!("[{:>8.3}s] {what}: {} of {}{note}", t_ms as f64 / 1000.0, Bytes(done), Bytes(all)));
            }
            return;
        };
        let bar = self.shown.entry(what.to_owned()).or_insert_with(|| {
            // a line that is longer than the terminal is wide would be drawn again and again: only the bar gives way
            let style = ProgressStyle::with_template("  {prefix:<12!} [{wide_bar}] {msg:<52!}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
            bars.add(ProgressBar::new(all).with_style(style).with_prefix(plain(what)))
        });
        bar.set_length(all);
        bar.set_position(done);
        bar.set_message(format!("{:>10} / {:<10} {note}", Bytes(done), Bytes(all)));
    }
}

/// The estimate, for people.
fn estimate_words(estimate: &Estimate) -> String {
    let time = estimate.total_ms.map_or_else(String::new, |ms| format!("{:.1} s", ms as f64 / 1000.0));
    let rung = match estimate.rung {
        None | Some(EstimatedRung::None | EstimatedRung::GiveUp) => "",
        Some(EstimatedRung::Downtime) => ", with a raised downtime limit",
        Some(EstimatedRung::Throttle) => "; will throttle the guest",
        Some(EstimatedRung::Postcopy) => "; will use postcopy",
        Some(EstimatedRung::StopAndCopy) => "; will stop the guest for the rest of its RAM",
    };
    match estimate.blackout_ms {
        Some(ms) => format!("{time}, blackout {ms} ms{rung}"),
        None => format!("will be given up after {time}: disks and RAM do not converge"),
    }
}

/// How long devices took, the longest by name. The times of both sides overlap within one span.
fn devices(outcome: &Outcome) -> impl Iterator<Item = String> {
    let of_side = |side: Side| outcome.devices.iter().filter(move |device| device.side == side);
    let told = [(Side::Source, "save"), (Side::Destination, "load")].into_iter().filter_map(move |(side, verb)| {
        of_side(side).next()?;
        Some(format!("    {verb} at the {side:<11} {}", describe_devices(of_side(side), NAMED)))
    });
    let head = (!outcome.devices.is_empty())
        .then(|| format!("  devices  within {}, save and load at the same time", DeviceTime::SPAN));
    let unknown = outcome.devices_unknown.iter().map(|why| format!("  devices  {why}"));
    head.into_iter().chain(told).chain(unknown)
}

/// The end, for people.
pub(super) fn summary(outcome: &Outcome) -> String {
    let mut lines = Vec::new();
    let where_to = match (outcome.outcome, &outcome.runs_on) {
        (Ending::Moved, RunsOn::None) => "the guest moved, and was shut down on the destination".to_owned(),
        (Ending::Moved, _) => "the guest is on the destination".to_owned(),
        (Ending::Refused, _) => "nothing was changed".to_owned(),
        (Ending::Undetermined, _) => "the guest is not proved to run on one side".to_owned(),
        (Ending::Ended, _) => "the guest runs nowhere: it has ended on the source".to_owned(),
        (_, side) => format!("the guest is on the {}, as before", format!("{side:?}").to_lowercase()),
    };
    let mut add = |line: String| lines.push(line);
    add(format!("{}: {where_to}", outcome.outcome));
    match &outcome.reason {
        // in the layout of a check
        Some(_) if !outcome.findings.is_empty() => {
            for finding in &outcome.findings {
                add(format!("  {:<8} {}: {finding}", finding.severity, finding.code));
            }
        }
        Some(reason) if outcome.outcome == Ending::Refused => {
            add(format!("  blocker  {}: {}", reason.code, reason.message));
        }
        Some(reason) => add(format!("  reason   {} ({})", in_line(&reason.message), reason.code)),
        None => {}
    }
    for left in &outcome.leftovers {
        add(format!("  left     {}", in_line(left)));
    }
    for disk in &outcome.disks {
        let (copied, size) = (Bytes(disk.bytes_copied), Bytes(disk.virtual_size));
        let (source, destination) = (in_line(&disk.source), in_line(&disk.destination));
        add(format!("  disk     {source} -> {destination}: {copied} copied of {size}"));
        if let Some(blocking) = disk.write_blocking_latency_us {
            let before = disk.write_latency_us.map_or_else(String::new, |before| format!(" (before: {before} us)"));
            add(format!(
                "           its guest's writes took {blocking} us while they waited for the destination{before}"
            ));
        }
        let writes = disk.guest_writes.as_ref();
        if let Some(waited) = writes.and_then(|writes| writes.write_blocking.as_ref()) {
            let before = writes.and_then(|writes| writes.copying.as_ref());
            let before = before.map_or_else(String::new, |before| format!(" (before: {before})"));
            add(format!("           of {} writes that waited {waited}{before}", waited.writes));
        }
    }
    if outcome.ram.bytes > 0 {
        add(format!("  ram      {} sent", Bytes(outcome.ram.bytes)));
    }
    if let Some(waited) = &outcome.ram.postcopy_blocktime {
        let most = waited.vcpu_ms.iter().max().copied().unwrap_or(waited.all_vcpus_ms);
        let faults =
            waited.p99_fault_at_most_us.map_or_else(String::new, |us| format!("; 99 % of its faults at most {us} us"));
        add(format!(
            "           then it waited for pages: {} ms all of its CPUs at once, {most} ms one of them{faults}",
            waited.all_vcpus_ms
        ));
    }
    if let Some(estimate) = outcome.predicted.as_ref().filter(|estimate| estimate.converges.is_some()) {
        add(format!("  estimate {}", estimate_words(estimate)));
    }
    add(format!("  total    {:.3} s", outcome.total_ms as f64 / 1000.0));
    if let Some(blackout) = outcome.blackout_ms {
        let qemu = outcome.qemu_downtime_ms.map_or_else(String::new, |ms| format!(" (QEMU's own downtime: {ms} ms)"));
        add(format!("  blackout {blackout:.3} ms{qemu}"));
        for span in &outcome.ledger {
            add(format!("    {:<20} {:>9.3} ms", span.span, span.ms));
        }
        devices(outcome).for_each(&mut add);
    }
    if outcome.pauses.len() > 1 {
        let words: Vec<String> =
            outcome.pauses.iter().map(|pause| format!("{} {:.3} ms", pause.why, pause.ms)).collect();
        add(format!("  paused   {:.3} ms in all: {}", outcome.paused_ms, words.join(", ")));
    }
    lines.join("\n") + "\n"
}
