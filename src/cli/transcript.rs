//! `qferry transcript`: a transcript for people.

use super::{
    exit::{failed, misused},
    history,
    plot::PlotPlace,
    recorded, render,
};
use crate::{
    progress::describe,
    recording::{BoundedRows, ReadFaults, RecordingReader, ReportRow, ReportedFact, TranscriptReport, open_plain},
};
use std::{
    fmt::Write,
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    time::Duration,
};

const EXAMPLES: &str = "\
Examples:
  What happened in the last migration?
    qferry transcript last

  The same as a picture for a browser, on a screen, a telephone or paper:
    qferry transcript last --plot migration.html

Exit codes: 0 printed or drawn, 1 the file cannot be read or the plot cannot be written, 2 usage, or no transcript";

/// Print a transcript for people: phases, decisions with reasons, commands and their times, the blackout
///
/// Commands that only ask are told in the table of all commands, and one by one between the guest's stop and its
/// resume.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct TranscriptArguments {
    /// The file, or the word last for the newest that is kept
    pub(super) file: PathBuf,
    /// Draw the transcript instead, in a file whose name ends in .svg or .html: remaining RAM, rates, limits and
    /// mirrors over time, with phases and decisions, and the blackout enlarged. An earlier plot is overwritten, and no
    /// other file is
    #[arg(long, value_name = "FILE", value_parser = PlotPlace::from_str)]
    plot: Option<PlotPlace>,
}

/// Prints a transcript, or draws it.
pub(super) fn run(arguments: &TranscriptArguments) -> ExitCode {
    let path = match recorded::find(&arguments.file) {
        Ok(path) => path,
        Err(message) => return failed(&message, false),
    };
    let unreadable = |error: &std::io::Error| format!("cannot read {}: {}", path.display(), describe(error));
    match open_plain(&path).and_then(|opened| recorded::no_transcript(&path, opened)) {
        Err(error) => return failed(&unreadable(&error), false),
        Ok(Some(why)) => return misused(&why, false),
        Ok(None) => {}
    }
    if let Some(place) = &arguments.plot {
        let drawn = place.check().map_err(|error| describe(&error)).and_then(|()| {
            let drawn = open_plain(&path).and_then(|opened| place.draw(&path, opened));
            let plot = drawn.map_err(|error| unreadable(&error))?;
            place.write(&plot).map_err(|error| describe(&error))
        });
        return match drawn {
            Ok(()) => {
                render::say(&format!("qferry: the plot is in {}", place.path.display()));
                ExitCode::SUCCESS
            }
            Err(message) => failed(&message, false),
        };
    }
    let read = open_plain(&path).and_then(|opened| report(&path, opened));
    match read {
        Err(error) => failed(&unreadable(&error), false),
        Ok(text) => match render::written(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&format!("the transcript cannot be shown: {error}"), false),
        },
    }
}

/// The text for a transcript.
fn report(path: &Path, source: impl Read) -> std::io::Result<String> {
    let mut reader = RecordingReader::new(source);
    let mut report = TranscriptReport::default();
    for line in reader.by_ref() {
        report.add(line?);
    }
    Ok(words(path, &report, reader.faults()))
}

fn words(path: &Path, report: &TranscriptReport, faults: ReadFaults) -> String {
    let mut text = String::new();
    // what a recording says cannot begin a line of its own
    let mut line = |words: &str| {
        text.push_str(&words.trim_end().replace('\n', "?"));
        text.push('\n');
    };
    match &report.header {
        Some(header) => {
            let run = header.run.as_deref().unwrap_or("of unknown id");
            line(&format!("run {run}, {}, qferry {}", history::began(Some(header.began_ms)), header.qferry));
            if let (Some(source), Some(destination)) = (&header.source, &header.destination) {
                line(&format!("{source} -> {destination}"));
            }
        }
        None => line("a transcript without a header"),
    }
    line(&path.display().to_string());
    let skipped = faults.skipped;
    if skipped > 0 {
        line(&format!("{skipped} lines are none of a transcript, or too long, and are left out"));
    }
    recorded::turned_back(faults).into_iter().for_each(|words| line(&words));
    line("");
    line("      time s  side         what");
    rows(&mut line, &report.rows, |row| format!("{:>12.6}", row.at.as_secs_f64()));
    commands(&mut line, report);
    if let Some(blackout) = &report.blackout {
        line("");
        match &blackout.ended {
            Some((ended, side)) => {
                let took = millis(ended.saturating_sub(blackout.began));
                line(&format!("from STOP to RESUME on the {side}, as received: {took} ms"));
            }
            None => line("from STOP on, without a RESUME"),
        }
        rows(&mut line, &blackout.rows, |row| {
            format!("{:>+9.3} ms", row.at.saturating_sub(blackout.began).as_secs_f64() * 1000.0)
        });
    }
    line("");
    match &report.outcome {
        Some(outcome) => render::summary(outcome).lines().for_each(line),
        None => {
            line(&format!("no end: the last of {} entries is of {:.6} s", report.entries, report.last.as_secs_f64()))
        }
    }
    text
}

fn rows(line: &mut impl FnMut(&str), rows: &BoundedRows, time: impl Fn(&ReportRow) -> String) {
    let tell = |row: &ReportRow| format!("{}  {:<11}  {}", time(row), row.side, fact(&row.what));
    let (first, last) = rows.parts();
    first.iter().for_each(|row| line(&tell(row)));
    if rows.left_out > 0 {
        line(&format!("              ... {} rows are left out here ...", rows.left_out));
    }
    last.for_each(|row| line(&tell(row)));
}

fn fact(what: &ReportedFact) -> String {
    match what {
        ReportedFact::Begin(phase) => format!("{phase} begins"),
        ReportedFact::End(phase, took) => {
            let took = took.map_or_else(String::new, |took| format!(" after {} ms", millis(took)));
            format!("{phase} ends{took}")
        }
        ReportedFact::Action { action, because } => format!("{action}: {because}"),
        ReportedFact::Warning { code, message } => format!("warning {code}: {message}"),
        ReportedFact::Command { name, arguments, took, refusal } => {
            let mut words = name.clone();
            // A String takes everything.
            match took {
                Some(took) => write!(words, " ({} ms)", millis(*took)).ok(),
                None => write!(words, " (no answer)").ok(),
            };
            words.extend(refusal.iter().map(|refusal| format!(" refused: {refusal}")));
            if !arguments.is_empty() {
                write!(words, " {arguments}").ok();
            }
            words
        }
        ReportedFact::Event { name, data } => format!("* {name} {data}"),
        ReportedFact::Note(note) => note.clone(),
    }
}

/// The table of commands.
fn commands(line: &mut impl FnMut(&str), report: &TranscriptReport) {
    if report.commands.is_empty() {
        return;
    }
    line("");
    line("side         command                           sent  answered  refused    mean ms  longest ms");
    for ((side, name), times) in &report.commands {
        let mean = times.sum.checked_div(u32::try_from(times.answered).unwrap_or(u32::MAX)).unwrap_or_default();
        let (mean, longest) = (millis(mean), millis(times.longest));
        line(&format!(
            "{side:<11}  {name:<30}  {:>6}  {:>8}  {:>7}  {mean:>9}  {longest:>10}",
            times.sent, times.answered, times.refused
        ));
    }
}

fn millis(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A transcript with lines of each kind.
    const RECORDED: &str = r#"{"v":1,"type":"transcript","began_ms":1700000000123,"qferry":"0.1.0","brief":true,"run":"0abcdefghijk","source":"unix:/s","destination":"tcp:d:1"}
{"v":1,"t_us":10,"side":"engine","dir":"note","line":{"v":1,"t_ms":0,"type":"phase","phase":"connect","state":"begin"}}
{"v":1,"t_us":500,"side":"source","dir":"receive","line":{"QMP":{"version":{}}}}
{"v":1,"t_us":700,"side":"source","dir":"send","line":{"execute":"query-status","id":"query-status#1"}}
{"v":1,"t_us":900,"side":"source","dir":"receive","line":{"return":{"status":"running"},"id":"query-status#1"}}
{"v":1,"t_us":1510,"side":"engine","dir":"note","line":{"v":1,"t_ms":1,"type":"phase","phase":"connect","state":"end"}}
{"v":1,"t_us":2000,"side":"source","dir":"send","line":{"execute":"drive-mirror","arguments":{"device":"disk0"},"id":"drive-mirror#2"}}
{"v":1,"t_us":2250,"side":"destination","dir":"send","line":{"exec-oob":"yank","id":"yank#1"}}
{"v":1,"t_us":3000,"side":"source","dir":"receive","line":{"error":{"class":"GenericError","desc":"no \u001b[2J"},"id":"drive-mirror#2"}}
{"v":1,"t_us":4000,"side":"engine","dir":"note","line":{"v":1,"t_ms":4,"type":"memory","status":"active","transferred":1,"remaining":2,"total":3,"dirty_rate":4,"bandwidth":5,"working_set":6,"throttle_pct":0,"predicted_blackout_ms":null,"eta_ms":null}}
{"v":1,"t_us":5000,"side":"engine","dir":"note","line":{"v":1,"t_ms":5,"type":"action","action":"downtime-limit","because":"RAM needs 80 ms"}}
{"v":1,"t_us":6000,"side":"engine","dir":"note","line":{"v":1,"t_ms":6,"type":"warning","code":"bitmap-lost","message":"b is lost"}}
{"v":1,"t_us":7000,"side":"source","dir":"receive","line":{"event":"STOP","timestamp":{"seconds":1,"microseconds":2}}}
{"v":1,"t_us":7100,"side":"source","dir":"send","line":{"execute":"query-status","id":"query-status#3"}}
{"v":1,"t_us":7350,"side":"source","dir":"receive","line":{"return":{},"id":"query-status#3"}}
{"v":1,"t_us":9001,"side":"destination","dir":"receive","line":{"event":"RESUME"}}
{"v":1,"t_us":9500,"side":"recorder","dir":"note","line":{"left_out":7,"bytes":70}}
{"v":1,"t_us":9600,"side":"source","dir":"receive","line":{"event":"STOP"}}
{"v":1,"t_us":9700,"side":"engine","dir":"note","line":{"v":1,"t_ms":9,"type":"outcome","outcome":"moved","runs_on":"destination","reason":null,"total_ms":9,"blackout_ms":2.001,"qemu_downtime_ms":1,"ledger":[{"span":"quiesce","ms":2.001}],"devices":[{"side":"source","phase":"save","device":"ram","instance":0,"iterable":true,"us":1200},{"side":"source","phase":"save","device":"cpu","instance":1,"iterable":false,"us":90},{"side":"destination","phase":"load","device":"cpu","instance":0,"iterable":false,"us":7}],"devices_unknown":"how long","disks":[],"ram":{"bytes":0,"iterations":2,"throttle_max_pct":0,"postcopy":false},"predicted":null,"leftovers":[]}}
not JSON
{"v":1,"t_us":97"#;

    #[test]
    fn a_transcript_is_told_from_its_beginning_to_its_end() {
        let told = report(Path::new("/t.jsonl"), RECORDED.as_bytes()).unwrap();
        let golden = "\
run 0abcdefghijk, 2023-11-14T22:13:20Z, qferry 0.1.0
unix:/s -> tcp:d:1
/t.jsonl
2 lines are none of a transcript, or too long, and are left out

      time s  side         what
    0.000010  engine       connect begins
    0.001510  engine       connect ends after 1.500 ms
    0.002000  source       drive-mirror (1.000 ms) refused: no \u{1b}[2J {\"device\":\"disk0\"}
    0.002250  destination  yank (no answer)
    0.005000  engine       downtime-limit: RAM needs 80 ms
    0.006000  engine       warning bitmap-lost: b is lost
    0.007000  source       * STOP
    0.009001  destination  * RESUME
    0.009500  recorder     {\"bytes\":70,\"left_out\":7}
    0.009600  source       * STOP

side         command                           sent  answered  refused    mean ms  longest ms
destination  yank                                 1         0        0      0.000       0.000
source       drive-mirror                         1         1        1      1.000       1.000
source       query-status                         2         2        0      0.225       0.250

from STOP to RESUME on the destination, as received: 2.001 ms
   +0.000 ms  source       * STOP
   +0.100 ms  source       query-status (0.250 ms)
   +2.001 ms  destination  * RESUME

moved: the guest is on the destination
  total    0.009 s
  blackout 2.001 ms (QEMU's own downtime: 1 ms)
    quiesce                  2.001 ms
  devices  within ram-and-devices, save and load at the same time
    save at the source      1.290 ms: ram 1.200, cpu 1 0.090
    load at the destination 0.007 ms: cpu 0.007
  devices  how long
";
        assert_eq!(told, golden);
        // What QEMU said cannot command a terminal.
        assert!(!super::super::plain_text::plain(&told).contains('\u{1b}'));
    }

    #[test]
    fn a_run_that_died_is_told_up_to_its_last_line() {
        let died: String = RECORDED.lines().skip(1).take(12).map(|line| format!("{line}\n")).collect();
        let told = report(Path::new("t"), died.as_bytes()).unwrap();
        assert!(told.starts_with("a transcript without a header\nt\n\n"), "{told}");
        assert!(told.contains("from STOP on, without a RESUME\n   +0.000 ms  source       * STOP\n"), "{told}");
        assert!(told.ends_with("\nno end: the last of 12 entries is of 0.007000 s\n"), "{told}");
        let nothing = report(Path::new("t"), &b""[..]).unwrap();
        assert!(nothing.ends_with("no end: the last of 0 entries is of 0.000000 s\n"), "{nothing}");
    }

    #[test]
    fn a_file_that_is_no_transcript_is_not_told_as_one() {
        let told = |text: &str| recorded::no_transcript(Path::new("t"), text.as_bytes()).unwrap();
        assert_eq!(told(RECORDED), None);
        // a file of which the beginning is lost
        let torn = &RECORDED[RECORDED.len() / 2..];
        assert_eq!(told(torn), None);
        for (text, words) in [
            ("", "t is no transcript of qferry: it is empty"),
            ("hello\n", "its only line is none of one"),
            ("a\n{\"QMP\":{}}\n{\"v\":2,\"type\":\"transcript\"}\n", "none of its 3 lines is one of a transcript"),
        ] {
            assert!(told(text).unwrap().ends_with(words), "{:?}", told(text));
        }
        // nor is its plot made
        let folder = tempfile::tempdir().unwrap();
        let [file, plot] = ["t", "t.svg"].map(|name| folder.path().join(name));
        std::fs::write(&file, "hello\n").unwrap();
        for place in [None, Some(PlotPlace::from_str(plot.to_str().unwrap()).unwrap())] {
            let code = run(&TranscriptArguments { file: file.clone(), plot: place });
            assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(2)));
        }
        assert!(!plot.exists());
    }

    #[test]
    fn times_that_go_back_are_said_and_make_no_figures() {
        // the answer to drive-mirror, and what follows, an hour before the question; and then a jump to the end of time
        let back = RECORDED.replace("\"t_us\":2000,", "\"t_us\":3600000000,");
        let told = report(Path::new("t"), back.as_bytes()).unwrap();
        let said = "12 entries have times before that of an earlier one, and are told as if at its time";
        assert!(told.contains(said), "{told}");
        assert!(told.contains("3600.000000  source       drive-mirror (0.000 ms) refused"), "{told}");
        assert!(told.contains("from STOP to RESUME on the destination, as received: 0.000 ms"), "{told}");
        let end = RECORDED.replace("\"t_us\":7000,", &format!("\"t_us\":{},", u64::MAX));
        let told = report(Path::new("t"), end.as_bytes()).unwrap();
        assert!(told.contains("6 entries have times before"), "{told}");
        // tasks that record at the same time come in any order, and the recorder's notes before what waits for it
        for (from, to) in
            [("\"t_us\":9001,", "\"t_us\":8001,"), ("9500,\"side\":\"recorder", "9500000,\"side\":\"recorder")]
        {
            let told = report(Path::new("t"), RECORDED.replace(from, to).as_bytes()).unwrap();
            assert!(!told.contains("have times before"), "{told}");
        }
    }
}
