//! A QMP peer that sends anything, in pieces of any size.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qferry::internals::qmp::frame::{LineCut, QmpFrame, LineCutter, parse};

const LIMIT: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    // The last byte sets the size of the pieces, so that a recorded line of QEMU is a valid input without changes.
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
    // A carriage return at the end of a line is not counted, so the sum may be smaller than the input.
    assert!(cut + lines.torn() <= bytes.len());
});
