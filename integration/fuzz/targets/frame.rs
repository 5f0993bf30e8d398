//! A QMP peer that sends anything, in pieces of any size.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qferry::internals::qmp::frame::{LineCut, QmpFrame, LineCutter, parse};

const LIMIT: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    // the last byte says how large the pieces are, so that a line of QEMU's is an input as it stands
    let piece = usize::from(bytes.last().copied().unwrap_or_default()) + 1;
    let mut lines = LineCutter::new(LIMIT);
    let mut cut = 0;
    for piece in bytes.chunks(piece) {
        lines.reserve_space().extend_from_slice(piece);
        while let Some(line) = lines.next_cut() {
            match line {
                LineCut::Line(line) => {
                    assert!(line.len() <= LIMIT);
                    cut += line.len() + 1;
                    if let Ok(value) = parse(&line) {
                        drop(QmpFrame::classify(value));
                    }
                }
                LineCut::Oversized(length) => {
                    assert!(length > LIMIT);
                    cut += length + 1;
                }
            }
        }
    }
    // a carriage return before a line's end is not counted
    assert!(cut + lines.torn() <= bytes.len());
});
