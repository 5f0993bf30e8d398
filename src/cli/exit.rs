//! The ends of the command that are none of the outcomes.

use super::{flags, render};
use std::process::ExitCode;

/// The exit code of a diagnosis that has found causes.
pub(super) const FOUND: u8 = 10;

/// Reports wrong use: exit code 2.
pub(super) fn misused(message: &str, json: bool) -> ExitCode {
    ended(message, json, "usage");
    ExitCode::from(2)
}

/// Reports an error that is none of the outcomes: exit code 1.
pub(super) fn failed(message: &str, json: bool) -> ExitCode {
    ended(message, json, "internal");
    ExitCode::from(1)
}

fn ended(message: &str, json: bool, code: &str) {
    render::say(&format!("qferry: {message}"));
    if json {
        tell(message, code);
    }
}

/// The last object on stdout of a command that comes to no outcome.
fn tell(message: &str, code: &str) {
    let message = flags::flags_in(message);
    let object = serde_json::json!({ "v": 1, "type": "error", "t_ms": 0, "code": code, "message": message });
    // the exit code says what the reader of stdout misses
    render::object(&object).ok();
}

/// What is wrong with words, without the usage.
pub(super) fn words_alone(error: &clap::Error) -> String {
    let said = error.to_string();
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    said.split("\n\nUsage").next().unwrap_or(said).trim_end().to_owned()
}

/// Reports what is wrong with the words of the command line, and gives the exit code: 2, or 0 where help was asked for.
pub(super) fn refused_words(error: &clap::Error, words: &[std::ffi::OsString]) -> ExitCode {
    // the text for people, with colours on a terminal; help goes to stdout
    error.print().ok();
    let asks_for_json = words.iter().any(|word| word == "--json");
    if error.use_stderr() && asks_for_json {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        tell(text.split("\n\nFor more information").next().unwrap_or(text).trim_end(), "usage");
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
