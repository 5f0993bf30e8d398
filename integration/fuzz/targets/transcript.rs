//! The reader of transcripts and the removal of secrets, with arbitrary bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qferry::internals::qmp::transcript::{EntryBody, Transcript, redact};

fuzz_target!(|bytes: &[u8]| {
    let mut transcript = Transcript::read(bytes, "fuzz");
    let mut read = 0;
    for entry in transcript.by_ref() {
        read += 1;
        // Reading from memory cannot fail, and lines that are no entries are skipped.
        if let EntryBody::Line(line) = entry.expect("an entry").body {
            let clean = redact(&line);
            assert_eq!(redact(&clean), clean, "a clean line must not change");
        }
    }
    let lines = bytes.split(|byte| *byte == b'\n').count() as u64;
    assert!(read + transcript.skipped() <= lines);
    if let Ok(line) = serde_json::from_slice(bytes) {
        drop(redact(&line));
    }
});
