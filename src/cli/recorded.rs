//! The transcript of a command: in a file that the user named, or in the ring.

use super::{exit::misused, render};
use crate::{
    migration::journal_directory,
    progress::{Event, EventKind, JsonLines, describe},
    qmp::{
        Recorder,
        transcript::{TranscriptError, TranscriptHeader},
    },
    recording::{self, ReadFaults, RecordingReader, RingError, TranscriptRing},
    run_id::RunId,
};
use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tokio::{task::spawn_blocking, time::timeout};

/// Time in which a disk must let the transcript be made. A migration does not wait for longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The word for the newest transcript that is kept.
const LAST: &str = "last";

/// The place of a transcript.
pub(super) enum TranscriptPlace {
    /// A file that the user named: the command does not begin without it.
    File(PathBuf),
    /// The folder of the last transcripts: what goes wrong there is a warning.
    Ring,
    /// None is kept.
    Nowhere,
}

/// The ring of the state directory.
pub(super) fn ring() -> TranscriptRing {
    TranscriptRing::new(journal_directory().join("transcripts"))
}

/// The file that is meant: a path, or the newest of the ring.
pub(super) fn find(file: &Path) -> Result<PathBuf, String> {
    if file != Path::new(LAST) {
        return Ok(file.to_owned());
    }
    let ring = ring();
    let files = ring.files().map_err(|error| format!("cannot read {}: {error}", ring.folder().display()))?;
    let newest = files.into_iter().next();
    newest.map(|newest| newest.path).ok_or_else(|| format!("no run is recorded in {}", ring.folder().display()))
}

/// What is to be said of times that go back; `None` where all go forward.
pub(super) fn turned_back(faults: ReadFaults) -> Option<String> {
    let words = match faults.turned_back {
        0 => return None,
        1 => "1 entry has a time before that of an earlier one, and is".to_owned(),
        more => format!("{more} entries have times before that of an earlier one, and are"),
    };
    Some(format!("{words} told as if at its time: what lies between two times is not to be trusted there"))
}

/// Why a file is none of qferry's transcripts; `None` where it has a line of one.
pub(super) fn no_transcript(path: &Path, source: impl Read) -> io::Result<Option<String>> {
    let mut reader = RecordingReader::new(source);
    if reader.next().transpose()?.is_some() {
        return Ok(None);
    }
    let words = match reader.faults().skipped {
        0 => "it is empty".to_owned(),
        1 => "its only line is none of one".to_owned(),
        more => format!("none of its {more} lines is one of a transcript"),
    };
    Ok(Some(format!("{} is no transcript of qferry: {words}", path.display())))
}

/// Does the work with a transcript. The run and the addresses of its two sides are written where they are known.
pub(super) async fn recorded(
    place: TranscriptPlace,
    run: Option<(RunId, [String; 2])>,
    json: bool,
    work: impl AsyncFnOnce(Option<Recorder>) -> ExitCode,
) -> ExitCode {
    let is_named = matches!(place, TranscriptPlace::File(_));
    let recorder = match (place, run) {
        (TranscriptPlace::Nowhere, _) | (TranscriptPlace::Ring, None) => None,
        (TranscriptPlace::File(file), run) => match in_file(file, run) {
            Ok(recorder) => Some(recorder),
            Err(error) => return misused(&describe(&error), json),
        },
        (TranscriptPlace::Ring, Some((run, addresses))) => {
            in_ring(run, addresses).await.inspect_err(|why| warn_of_none(why, json)).ok()
        }
    };
    let code = work(recorder.clone()).await;
    let finished = recorder.map(|recorder| if is_named { recorder.finish() } else { recording::finish(&recorder) });
    if let Some(Err(error)) = finished {
        render::say(&format!("qferry: {}", describe(&error)));
    }
    code
}

fn in_file(file: PathBuf, run: Option<(RunId, [String; 2])>) -> Result<Recorder, TranscriptError> {
    match run {
        Some((run, addresses)) => Recorder::create_with(file, header(&run, addresses), None),
        None => Recorder::create(file),
    }
}

/// Begins a transcript in the ring, or tells why there is none.
async fn in_ring(run: RunId, addresses: [String; 2]) -> Result<Recorder, String> {
    let begun = spawn_blocking(move || ring().begin(&run.to_string(), header(&run, addresses)));
    match timeout(PATIENCE, begun).await {
        Ok(Ok(begun)) => begun.map_err(|error: RingError| describe(&error)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("its disk is slow, or hangs".to_owned()),
    }
}

fn header(run: &RunId, [source, destination]: [String; 2]) -> TranscriptHeader {
    TranscriptHeader::of_run(run.to_string(), source, destination)
}

/// Tells that the run is not recorded, which is no reason not to run.
fn warn_of_none(why: &str, json: bool) {
    let message = format!("no transcript of this run is kept in {}: {why}", ring().folder().display());
    render::say(&format!("qferry: warning: {message}"));
    if json {
        let warning = EventKind::Warning { code: "no-transcript".to_owned(), message };
        // A reader of stdout that went away is no reason to stop.
        JsonLines::new(io::stdout()).write(&Event::new(0, warning)).ok();
    }
}
