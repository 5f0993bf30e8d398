//! `qferry diagnose`: what is wrong with a migration, on one screen, and the remedy on the user's word.

use super::{
    diagnose_options::Diagnose,
    exit::{FOUND, failed, misused},
    fix,
    plain_text::{folded, in_line, plain, sparkline},
    process_screen::{describe_process, line},
    recorded, render,
};
use crate::{
    codes::DiagnosisCode,
    diagnosis::{
        Cause, Confidence, DiagnoseSettings, Diagnosis, ForeignLooks, MirrorReport, READ_ANSWERS, RecordedLooks,
        SideReport, diagnose,
    },
    progress::describe,
    qmp::frame::LineCut,
    quantity::{Bytes, Rate},
    recording::{BoundedLines, RecordingReader, has_writer, open_plain, read_foreign, read_line},
};
use ratatui::crossterm::terminal::size;
use std::{
    collections::BTreeMap,
    fmt::Write,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

/// The part of a file that tells what kind of recording the file is: bytes and lines.
const HEAD: u64 = 1 << 20;
const HEAD_LINES: usize = 8;
/// The most columns of a sparkline.
const COLUMNS: usize = 24;
/// The most facts, commands, mirrors and exports that are shown of one thing, and the most causes of one code; the rest
/// is counted, and in --json.
const SHOWN: usize = 8;
const ALIKE: usize = 4;
/// The columns in which lines are folded on a terminal: words must fit, and be read with ease.
const LEAST_COLUMNS: usize = 40;
const MOST_COLUMNS: usize = 120;

/// Looks, and tells.
pub(super) async fn run(options: &Diagnose) -> ExitCode {
    let began = Instant::now();
    if !options.transcript.is_empty() {
        return match afterwards(&options.transcript) {
            Ok(diagnosis) => tell(options, &diagnosis, began).unwrap_or_else(|| end(&diagnosis)),
            Err(message) => failed(&message, options.json),
        };
    }
    let mut settings = DiagnoseSettings::new(options.sides.clone());
    (settings.pid, settings.lasting) = (options.pid, options.lasting);
    let diagnosis = match diagnose(&settings).await {
        Ok(diagnosis) => diagnosis,
        Err(error) if error.is_misuse() => return misused(&describe(&error), options.json),
        Err(error) => return failed(&describe(&error), options.json),
    };
    match (tell(options, &diagnosis, began), options.fix) {
        (Some(code), _) => code,
        (None, Some(code)) => fix::run(options, &settings, &diagnosis, code).await,
        (None, None) => end(&diagnosis),
    }
}

/// The exit code of a diagnosis.
fn end(diagnosis: &Diagnosis) -> ExitCode {
    if diagnosis.is_healthy() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) }
}

/// What recordings tell afterwards: a transcript, or the logs of another program from one end or both.
fn afterwards(files: &[PathBuf]) -> Result<Diagnosis, String> {
    let mut foreign = ForeignLooks::default();
    for (number, file) in files.iter().enumerate() {
        let path = recorded::find(file)?;
        let cannot = |error: io::Error| format!("cannot read {}: {error}", path.display());
        if is_transcript(&path).map_err(cannot)? {
            if files.len() > 1 {
                return Err(format!("{} is a transcript, which has both ends: give it alone", path.display()));
            }
            // before the file is read: an engine that ends meanwhile is taken for one that lives
            let writer_lives = has_writer(&path).ok();
            let mut looks = RecordedLooks::default();
            let mut reader = RecordingReader::new(open_plain(&path).map_err(cannot)?).reading_answers(READ_ANSWERS);
            for line in reader.by_ref() {
                looks.add(line.map_err(cannot)?);
            }
            let mut diagnosis = looks.diagnose(writer_lives);
            diagnosis.unseen.extend(recorded::turned_back(reader.faults()));
            return Ok(diagnosis);
        }
        let (name, before) = (path.display().to_string(), foreign.read());
        for line in BoundedLines::new(open_plain(&path).map_err(cannot)?) {
            if let LineCut::Line(line) = line.map_err(cannot)? {
                let line = String::from_utf8_lossy(&line);
                read_foreign(&line).into_iter().for_each(|line| foreign.add(number, &name, line));
            }
        }
        if foreign.read() == before {
            return Err(format!(
                "{name} is neither a transcript nor a recording that is known: libvirt's debug log with \
                 log_filters=\"1:qemu.qemu_monitor\", lines of QMP, or QEMU's log"
            ));
        }
    }
    Ok(foreign.diagnose())
}

/// Whether a file is a transcript: one of its first lines is that of one.
fn is_transcript(path: &Path) -> io::Result<bool> {
    let first = open_plain(path)?.take(HEAD);
    let mut lines = BoundedLines::new(first).take(HEAD_LINES);
    lines.try_fold(false, |is_found, line| {
        Ok(is_found || matches!(line?, LineCut::Line(line) if read_line(&line).is_some()))
    })
}

/// Shows a diagnosis; gives an exit code where that is not possible.
fn tell(options: &Diagnose, diagnosis: &Diagnosis, began: Instant) -> Option<ExitCode> {
    let text = screen(diagnosis, terminal_columns());
    if options.json {
        let t_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Err(error) = render::result("diagnosis", t_ms, diagnosis) {
            return Some(failed(&format!("the diagnosis cannot be written: {error}"), false));
        }
        render::say(text.trim_end());
    } else {
        render::print(&text);
    }
    None
}

/// The screen: the verdict, evidence and remedies, and the sides in numbers.
fn screen(diagnosis: &Diagnosis, columns: Option<usize>) -> String {
    let mut text = format!("{}\n", in_line(&diagnosis.verdict));
    describe_causes(&mut text, &diagnosis.causes);
    let sides = [("source", &diagnosis.source), ("destination", &diagnosis.destination)];
    for (name, side) in sides.into_iter().filter_map(|(name, side)| Some((name, side.as_ref()?))) {
        describe_side(&mut text, name, side);
    }
    if !diagnosis.unseen.is_empty() || !diagnosis.notes.is_empty() {
        text.push('\n');
    }
    for unseen in &diagnosis.unseen {
        line(&mut text, "not seen", unseen);
    }
    for note in &diagnosis.notes {
        line(&mut text, "note", note);
    }
    match columns {
        Some(columns) => folded(&plain(&text), columns),
        None => text,
    }
}

/// The width of the terminal that the screen goes to; `None` where that is none, and lines stay whole.
fn terminal_columns() -> Option<usize> {
    let (columns, _) = io::stdout().is_terminal().then(|| size().ok())??;
    Some(usize::from(columns).clamp(LEAST_COLUMNS, MOST_COLUMNS))
}

/// The causes, the first of each code in full: of a thousand mirrors each may have its own.
fn describe_causes(text: &mut String, causes: &[Cause]) {
    let mut counts: BTreeMap<DiagnosisCode, usize> = BTreeMap::new();
    for (number, cause) in causes.iter().enumerate() {
        let count = counts.entry(cause.code).or_default();
        *count += 1;
        if *count <= ALIKE {
            describe_cause(text, number + 1, cause);
        }
    }
    for (code, count) in counts.into_iter().filter(|(_, count)| *count > ALIKE) {
        writeln!(text, "\n{} more of {code}: --json has them all", count - ALIKE).ok();
    }
}

fn describe_cause(text: &mut String, number: usize, cause: &Cause) {
    let confidence = match cause.confidence {
        Confidence::Certain => "certain",
        Confidence::Likely => "likely",
        Confidence::Possible => "possible",
    };
    writeln!(text, "\n{number}. {} ({confidence})", cause.code).ok();
    for evidence in cause.evidence.iter().take(SHOWN) {
        line(text, "evidence", evidence);
    }
    more(text, "evidence", cause.evidence.len(), "fact");
    line(text, "remedy", &cause.remedy);
    for command in cause.commands.iter().take(SHOWN) {
        line(text, "", &command.to_string());
    }
    more(text, "", cause.commands.len(), "command");
    line(text, "risk", &cause.risk);
    if cause.fixable {
        line(text, "by qferry", &format!("the same call with --fix {}", cause.code));
    }
}

/// How many there are beyond those that are shown.
fn more(text: &mut String, name: &str, count: usize, what: &str) {
    match count.saturating_sub(SHOWN) {
        0 => {}
        1 => line(text, name, &format!("1 more {what}")),
        hidden => line(text, name, &format!("{hidden} more {what}s")),
    }
}

/// What there is to say of a monitor that does not answer, by the word for it.
fn monitor_words(word: &str) -> Option<&'static str> {
    Some(match word {
        "gone" => "nobody listens there",
        "hangs" => "leaves commands unanswered",
        "greets" => "greets, and answers nothing",
        "silent" => "does not greet",
        "withheld" => "libvirt does not pass the questions on",
        "no-way" => "cannot be reached, which says nothing about QEMU",
        _ => return None,
    })
}

fn describe_side(text: &mut String, name: &str, side: &SideReport) {
    writeln!(text, "\n{name}: {}", in_line(&side.address)).ok();
    let version = side.version.as_ref().map(|version| format!("QEMU {version}"));
    let pid = side.pid.map(|pid| format!("process {pid}"));
    let state = side.process_state.as_ref().map(|state| format!("state {state}"));
    let process: Vec<String> = [version, pid, state].into_iter().flatten().collect();
    if !process.is_empty() {
        line(text, "process", &process.join(", "));
    }
    if let Some(words) = monitor_words(&side.monitor) {
        line(text, "monitor", words);
    }
    if let Some(run) = &side.run_state {
        let migration = side.migration.as_deref().unwrap_or("none");
        line(text, "state", &format!("{run}, migration {migration}"));
    }
    if let (Some(sent), Some(left)) = (side.transferred, side.remaining.last()) {
        let rate = |rate: Option<u64>| rate.map_or("a rate not known yet".to_owned(), |rate| Rate(rate).to_string());
        let told = format!(
            "{} sent at {}, {} left, dirtied at {}  {}",
            Bytes(sent),
            rate(side.bandwidth),
            Bytes(*left),
            rate(side.dirty_rate),
            sparkline(&side.remaining, COLUMNS)
        );
        line(text, "ram", &told);
        let curves = [("sent", &side.bandwidths), ("dirtied", &side.dirty_rates)];
        let curves = curves.iter().filter(|(_, rates)| rates.len() > 1);
        let curves: Vec<String> = curves.map(|(name, rates)| format!("{name} {}", sparkline(rates, COLUMNS))).collect();
        if !curves.is_empty() {
            line(text, "rates", &curves.join("  "));
        }
        let limits = [
            side.bandwidth_limit.map(|limit| format!("bandwidth at most {}", Rate(limit))),
            side.downtime_limit_ms.map(|limit| format!("downtime at most {limit} ms")),
            side.expected_downtime_ms.map(|expected| format!("expected {expected} ms")),
            side.throttle_pct.map(|throttle| format!("throttled by {throttle} %")),
        ];
        line(text, "limits", &limits.into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    // those that are not ready are waited for, most of all those that do not run
    let mut mirrors: Vec<_> = side.mirrors.iter().collect();
    mirrors.sort_by_key(|mirror| (mirror.ready, mirror.status == "running"));
    for mirror in mirrors.iter().take(SHOWN) {
        let limit = mirror.limit.map(|limit| format!(", at most {}", Rate(limit))).unwrap_or_default();
        let told = format!(
            "{} {}: {} of {} at {}{limit}  {}",
            mirror.id,
            mirror.status,
            Bytes(mirror.copied),
            Bytes(mirror.total),
            Rate(mirror.rate),
            sparkline(&mirror.remaining, COLUMNS)
        );
        line(text, "mirror", &told);
    }
    if let Some(rest) = mirrors.get(SHOWN..).filter(|rest| !rest.is_empty()) {
        let ready = rest.iter().filter(|mirror| mirror.ready).count();
        let sum =
            |of: fn(&MirrorReport) -> u64| Bytes(rest.iter().fold(0, |sum, mirror| sum.saturating_add(of(mirror))));
        let (copied, total) = (sum(|mirror| mirror.copied), sum(|mirror| mirror.total));
        line(text, "mirror", &format!("{} more, {ready} of them ready: {copied} of {total}", rest.len()));
    }
    let (shown, hidden) = side.exports.split_at(side.exports.len().min(SHOWN));
    if !shown.is_empty() {
        let rest = if hidden.is_empty() { String::new() } else { format!(", and {} more", hidden.len()) };
        line(text, "exports", &format!("{}{rest}", shown.join(", ")));
    }
    // where QEMU answers, its own words say more
    if let Some(process) = side.process.as_ref().filter(|_| side.monitor != "answers") {
        describe_process(text, process);
    }
}

#[cfg(test)]
mod tests;
