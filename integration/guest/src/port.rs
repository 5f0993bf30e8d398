//! The debug port, on which lines of several threads stay whole.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use qferry_guest::PORT;
use qferry_guest::line::Line;

use crate::sys;

static PORT_OWNER: Mutex<()> = Mutex::new(());

/// Writes one line.
pub(crate) fn say(line: &Line) {
    let mut text = String::with_capacity(32);
    if writeln!(text, "{line}").is_ok() {
        let _owner = PORT_OWNER.lock().unwrap_or_else(PoisonError::into_inner);
        sys::write_port(PORT, text.as_bytes());
    }
}

/// Writes an error line.
pub(crate) fn complain(text: impl Into<String>) {
    say(&Line::Error(text.into()));
}
