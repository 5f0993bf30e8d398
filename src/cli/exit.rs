//! The ends of the command that are none of the outcomes.

use super::render;
use std::process::ExitCode;

/// Reports wrong use: exit code 2.
pub(super) fn misused(message: &str) -> ExitCode {
    render::say(&format!("qferry: {message}"));
    ExitCode::from(2)
}

/// Reports an error that is none of the outcomes: exit code 1.
pub(super) fn failed(message: &str) -> ExitCode {
    render::say(&format!("qferry: {message}"));
    ExitCode::from(1)
}
