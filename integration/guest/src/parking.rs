//! A guest whose state is kept, to be resumed any number of times, each time with another workload.
//!
//! The guest waits before it has looked at a disk, so that any disks may be in the same places when it resumes. The
//! kernel knows only the command line of its boot, so the guest reads the new workload from the machine.

use std::time::Duration;

use qferry_guest::PARK;
use qferry_guest::line::Line;

use crate::port::say;
use crate::sys;

/// Items of the `fw_cfg` device: the command line's length in four bytes, its end included, and the command line.
const LENGTH: u16 = 0x14;
const TEXT: u16 = 0x15;
/// The time between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The command line of the workload: that of the boot, unless the guest must park; then the machine's first one without
/// that word.
pub(crate) fn wait_for_another(booted_with: String) -> String {
    if !parks(&booted_with) {
        return booted_with;
    }
    say(&Line::Parked);
    loop {
        std::thread::sleep(LOOK_AGAIN);
        let words = machines();
        // The state may have been kept in the middle of a look, whose rest then comes from another machine. Two equal
        // looks rule that out.
        if !parks(&words) && machines() == words {
            return words;
        }
    }
}

fn parks(words: &str) -> bool {
    words.split_whitespace().any(|word| word == PARK)
}

fn machines() -> String {
    let length = sys::firmware_item(LENGTH, 4).iter().rev().fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
    let text = sys::firmware_item(TEXT, length);
    String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned()
}
