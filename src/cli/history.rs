//! `qferry history`: the runs whose transcripts are kept.

use super::{exit::failed, recorded::ring, render};
use crate::{
    migration::{JournalInfo, RecoveryOutlook, journal_directory, journals},
    recording::{RunInfo, RunState, read_run},
};
use serde_json::{Value, json};
use std::{
    process::ExitCode,
    time::{Duration, UNIX_EPOCH},
};

/// List the runs whose transcripts are kept, the newest first
///
/// For each run the time at which it began, its id, what became of the guest and why, and the file of the transcript in
/// $XDG_STATE_HOME/qferry/transcripts.
#[derive(Debug, clap::Args)]
pub(super) struct HistoryArguments {
    /// One JSON object a line on stdout
    #[arg(long)]
    pub(super) json: bool,
}

/// Lists the runs, the newest first: for people, or as one JSON object a line.
pub(super) fn list(json: bool) -> ExitCode {
    let ring = ring();
    let files = match ring.files() {
        Ok(files) => files,
        Err(error) => return failed(&format!("cannot read {}: {error}", ring.folder().display()), json),
    };
    if files.is_empty() && !json {
        render::say(&format!("qferry: no run is recorded in {}", ring.folder().display()));
    }
    // Journals that cannot be listed are no reason to list no runs.
    let journals = journals(&journal_directory()).unwrap_or_default();
    for file in &files {
        let run = read_run(file);
        let journal = journals.iter().find(|journal| journal.run.as_ref() == Some(&run.run));
        let written = match json {
            true => render::object(&object(&run, journal)),
            false => render::written(&words(&run, journal)),
        };
        if let Err(error) = written {
            return failed(&format!("the runs cannot be listed: {error}"), false);
        }
    }
    ExitCode::SUCCESS
}

fn object(run: &RunInfo, journal: Option<&JournalInfo>) -> Value {
    let mut line = json!({ "v": 1, "type": "run", "t_ms": 0, "journal": journal.map(|journal| &journal.path) });
    if let (Some(line), Ok(Value::Object(fields))) = (line.as_object_mut(), serde_json::to_value(run)) {
        line.extend(fields);
    }
    line
}

/// A run for people: what became of the guest, and where that is told at length.
fn words(run: &RunInfo, journal: Option<&JournalInfo>) -> String {
    let mut lines = vec![format!("{}  {}  {}", began(run.began_ms), run.run, end(run))];
    if let (Some(source), Some(destination)) = (&run.source, &run.destination) {
        lines.push(format!("  {source} -> {destination}"));
    }
    lines.push(format!("  {}", run.file.display()));
    if let Some(journal) = journal.filter(|journal| journal.recovery != RecoveryOutlook::EngineLives) {
        lines.push(format!("  qferry recover {} would: {}", journal.path.display(), journal.recovery));
    }
    lines.join("\n") + "\n"
}

/// The time at which a run began, in universal time.
pub(super) fn began(ms: Option<u64>) -> String {
    // Years behind 9999 cannot be written.
    const LATEST_MS: u64 = 253_402_300_799_999;
    match ms.filter(|ms| *ms <= LATEST_MS) {
        Some(ms) => humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string(),
        None => "at an unknown time  ".to_owned(),
    }
}

fn end(run: &RunInfo) -> String {
    match (run.state, &run.outcome) {
        (RunState::Ended, Some(outcome)) => {
            let mut words = outcome.to_string();
            words.extend(run.total_ms.map(|ms| format!(" in {:.3} s", ms as f64 / 1000.0)));
            words.extend(run.blackout_ms.map(|ms| format!(", blackout {ms:.3} ms")));
            words.extend(run.reason.as_ref().map(|code| format!(": {code}")));
            words
        }
        (RunState::Running, _) => "still running".to_owned(),
        (RunState::Unreadable, _) => format!("unreadable: {}", run.error.as_deref().unwrap_or_default()),
        (RunState::Ended | RunState::NoEnd, _) => "no end: its qferry died".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Ending;

    fn run() -> RunInfo {
        RunInfo {
            file: "/state/0abc.jsonl".into(),
            bytes: 9,
            run: "0abcdefghijk".into(),
            began_ms: Some(1_700_000_000_123),
            source: Some("unix:/s".into()),
            destination: Some("tcp:d:4444".into()),
            state: RunState::Ended,
            outcome: Some(Ending::Moved),
            reason: None,
            total_ms: Some(2345),
            blackout_ms: Some(12.345),
            error: None,
        }
    }

    #[test]
    fn a_run_is_told_in_a_few_lines() {
        assert_eq!(
            words(&run(), None),
            "2023-11-14T22:13:20Z  0abcdefghijk  moved in 2.345 s, blackout 12.345 ms\n  unix:/s -> tcp:d:4444\n  \
             /state/0abc.jsonl\n"
        );
        let rolled_back = RunInfo {
            outcome: Some(Ending::RolledBack),
            blackout_ms: None,
            reason: Some("not-converging".into()),
            ..run()
        };
        let died = RunInfo { state: RunState::NoEnd, outcome: None, total_ms: None, blackout_ms: None, ..run() };
        let unreadable = RunInfo {
            state: RunState::Unreadable,
            began_ms: None,
            source: None,
            error: Some("a torn header".into()),
            ..died.clone()
        };
        let first = |run: &RunInfo| words(run, None).lines().next().unwrap_or_default().to_owned();
        assert_eq!(first(&rolled_back), "2023-11-14T22:13:20Z  0abcdefghijk  rolled-back in 2.345 s: not-converging");
        assert_eq!(first(&died), "2023-11-14T22:13:20Z  0abcdefghijk  no end: its qferry died");
        assert_eq!(first(&unreadable), "at an unknown time    0abcdefghijk  unreadable: a torn header");
        let of_no_year = RunInfo { began_ms: Some(u64::MAX), ..died };
        assert_eq!(first(&of_no_year), "at an unknown time    0abcdefghijk  no end: its qferry died");
    }

    #[test]
    fn a_run_for_programs_has_the_fields_of_the_contract() {
        let line = object(&run(), None);
        for (name, value) in [
            ("v", json!(1)),
            ("type", json!("run")),
            ("state", json!("ended")),
            ("outcome", json!("moved")),
            ("reason", Value::Null),
            ("blackout_ms", json!(12.345)),
            ("file", json!("/state/0abc.jsonl")),
            ("journal", Value::Null),
        ] {
            assert_eq!(line[name], value, "{name}");
        }
    }
}
