//! A transcript that anyone wrote, and lines that anyone sent and that are recorded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qferry::internals::qmp::transcript::{EntryBody, Transcript, redact};

fuzz_target!(|bytes: &[u8]| {
    let mut transcript = Transcript::read(bytes, "fuzz");
    let mut read = 0;
    for entry in transcript.by_ref() {
        read += 1;
        // reading from memory cannot fail, and what is no entry is skipped
        if let EntryBody::Line(line) = entry.expect("an entry").body {
            let clean = redact(&line);
            assert_eq!(redact(&clean), clean, "what was clean is left alone");
        }
    }
    let lines = bytes.split(|byte| *byte == b'\n').count() as u64;
    assert!(read + transcript.skipped() <= lines);
    if let Ok(line) = serde_json::from_slice(bytes) {
        drop(redact(&line));
    }
});
