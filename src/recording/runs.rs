//! What the transcripts of a folder tell of their runs, by the beginning and the end of each file alone.

use super::{
    reader::{RecordedContent, RecordedLine, read_line},
    ring::{RingFile, has_writer, open_plain},
};
use crate::{
    progress::{Ending, EventKind, Outcome, describe},
    qmp::transcript::TranscriptHeader,
};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Most bytes of the first line that are read.
const HEAD: u64 = 16 << 10;
/// Most bytes of the end that are read: the outcome of a migration of very many disks, and what follows the outcome.
const TAIL: u64 = 1 << 20;

/// How far a run came, by its transcript.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// The transcript has the outcome.
    Ended,
    /// The process that writes the transcript lives.
    Running,
    /// The transcript has no end, and nobody writes it.
    NoEnd,
    /// The file cannot be read as a transcript.
    Unreadable,
}

/// A run as its transcript tells. More fields may be added.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunInfo {
    /// The file.
    pub file: PathBuf,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Id of the run, which is the name of the file.
    pub run: String,
    /// Wall clock at the beginning, in milliseconds since the Unix epoch.
    pub began_ms: Option<u64>,
    /// Address of the source's monitor.
    pub source: Option<String>,
    /// Address of the destination's monitor.
    pub destination: Option<String>,
    /// How far the run came.
    pub state: RunState,
    /// The kind of end.
    pub outcome: Option<Ending>,
    /// The code of the reason.
    pub reason: Option<String>,
    /// Milliseconds from start to end.
    pub total_ms: Option<u64>,
    /// Milliseconds for which the guest stood still at the switchover.
    pub blackout_ms: Option<f64>,
    /// Why the file cannot be read.
    pub error: Option<String>,
}

/// Reads what a transcript tells of its run.
pub fn read_run(file: &RingFile) -> RunInfo {
    // An engine that ends while the file is read is taken for one that lives, not for one that died. The first line of
    // an engine that has just begun may be on its way.
    let lives = has_writer(&file.path).unwrap_or(false);
    let (header, outcome, error) = match read_ends(&file.path) {
        Ok((Some(header), outcome)) => (header, outcome, None),
        Ok((None, _)) if lives => (TranscriptHeader::default(), None, None),
        Ok((None, _)) => (TranscriptHeader::default(), None, Some("its first line is not that of a transcript".into())),
        Err(error) => (TranscriptHeader::default(), None, Some(describe(&error))),
    };
    let state = match (&error, &outcome, lives) {
        (Some(_), ..) => RunState::Unreadable,
        (None, Some(_), _) => RunState::Ended,
        (None, None, true) => RunState::Running,
        (None, None, false) => RunState::NoEnd,
    };
    let outcome = outcome.as_ref();
    RunInfo {
        file: file.path.clone(),
        bytes: file.length,
        run: file.run.clone(),
        began_ms: Some(header.began_ms).filter(|ms| *ms > 0),
        source: header.source,
        destination: header.destination,
        state,
        outcome: outcome.map(|outcome| outcome.outcome),
        reason: outcome.and_then(|outcome| Some(outcome.reason.as_ref()?.code.to_string())),
        total_ms: outcome.map(|outcome| outcome.total_ms),
        blackout_ms: outcome.and_then(|outcome| outcome.blackout_ms),
        error,
    }
}

fn read_ends(path: &Path) -> io::Result<(Option<TranscriptHeader>, Option<Outcome>)> {
    let mut file = open_plain(path)?;
    let mut head = Vec::new();
    (&file).take(HEAD).read_to_end(&mut head)?;
    let first = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let header = TranscriptHeader::of_line(first);
    Ok((header, last_outcome(&mut file)?))
}

fn last_outcome(file: &mut File) -> io::Result<Option<Outcome>> {
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    let outcome = |line: &[u8]| match read_line(line) {
        Some(RecordedLine::Entry(entry)) => match entry.content {
            RecordedContent::Engine(event) => match event.kind {
                EventKind::Outcome(outcome) => Some(*outcome),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    };
    Ok(tail.rsplit(|byte| *byte == b'\n').find_map(outcome))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::TranscriptRing;
    use rustix::fs::{FlockOperation, flock};
    use serde_json::{Value, json};
    use std::fs;

    /// The line of a transcript for an outcome.
    fn outcome_line(outcome: &Value) -> String {
        let mut line = json!({
            "v": 1, "t_ms": 2345, "type": "outcome", "outcome": "moved", "runs_on": "destination", "reason": null,
            "total_ms": 2345, "blackout_ms": 12.345, "qemu_downtime_ms": 11, "ledger": [], "disks": [],
            "ram": {"bytes": 5, "iterations": 2, "throttle_max_pct": 0, "postcopy": false}, "predicted": null,
            "leftovers": [],
        });
        line.as_object_mut().unwrap().extend(outcome.as_object().unwrap().clone());
        json!({"v": 1, "t_us": 2_345_678, "side": "engine", "dir": "note", "line": line}).to_string() + "\n"
    }

    #[test]
    fn runs_are_told_by_both_ends_of_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let ring = TranscriptRing::new(folder.path().to_owned());
        let header = |run: &str| TranscriptHeader::of_run(run.into(), "/s".into(), "tcp:d:1".into());
        let text = |run: &str| serde_json::to_string(&header(run)).unwrap() + "\n";
        let note = "{\"v\":1,\"t_us\":9,\"side\":\"source\",\"dir\":\"note\",\"line\":{\"closed\":\"x\"}}\n";
        let refused = json!({
            "outcome": "rolled-back", "runs_on": "source", "blackout_ms": null,
            "reason": {"code": "not-converging", "message": "m"},
        });
        let long = note.repeat(40_000);
        let files = [
            ("000000000001", text("1") + note + &outcome_line(&json!({})) + note),
            ("000000000002", text("2") + &long + &outcome_line(&refused) + "{\"v\":1,\"t_u"),
            ("000000000003", text("3") + &long + note),
            ("000000000004", text("4")),
            ("000000000005", "no transcript\n".to_owned() + &outcome_line(&json!({}))),
            ("000000000006", String::new()),
            ("000000000007", "[".repeat(3 << 20)),
            (
                "000000000008",
                text("8") + &"{\"v\":1,\"t_us\":1,\"side\":\"engine\",\"dir\":\"note\",\"line\":".repeat(40_000),
            ),
        ];
        for (run, text) in &files {
            fs::write(folder.path().join(format!("{run}.jsonl")), text).unwrap();
        }
        let living = ring.begin("000000000009", header("9")).unwrap();
        let begins = File::create(folder.path().join("00000000000a.jsonl")).unwrap();
        flock(&begins, FlockOperation::NonBlockingLockExclusive).unwrap();
        let runs: Vec<RunInfo> = ring.files().unwrap().iter().map(read_run).collect();
        use RunState::{Ended, NoEnd, Running, Unreadable};
        let states: Vec<(&str, RunState)> =
            runs.iter().map(|run| (run.run.trim_start_matches('0'), run.state)).collect();
        assert_eq!(
            states,
            [
                ("a", Running),
                ("9", Running),
                ("8", NoEnd),
                ("7", Unreadable),
                ("6", Unreadable),
                ("5", Unreadable),
                ("4", NoEnd),
                ("3", NoEnd),
                ("2", Ended),
                ("1", Ended),
            ]
        );
        living.finish().unwrap();
        flock(&begins, FlockOperation::Unlock).unwrap();
        let after: Vec<RunState> = ring.files().unwrap().iter().take(2).map(|file| read_run(file).state).collect();
        assert_eq!(after, [Unreadable, NoEnd]);

        let (rolled_back, moved) = (&runs[8], &runs[9]);
        assert_eq!((moved.outcome, moved.total_ms, moved.blackout_ms), (Some(Ending::Moved), Some(2345), Some(12.345)));
        assert_eq!((moved.source.as_deref(), moved.destination.as_deref()), (Some("/s"), Some("tcp:d:1")));
        assert!(moved.began_ms.is_some() && moved.reason.is_none() && moved.error.is_none());
        assert_eq!(rolled_back.outcome, Some(Ending::RolledBack));
        assert_eq!(rolled_back.reason.as_deref(), Some("not-converging"));
        assert!(runs[3].error.is_some() && runs[3].began_ms.is_none());
        let gone = RingFile { path: folder.path().join("gone"), run: "g".into(), length: 0 };
        assert_eq!(read_run(&gone).state, Unreadable);
    }
}
