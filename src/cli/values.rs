//! Values of options that several verbs take, read from the words of the command line.

use crate::convergence::{BUILT_IN, Policy};
use std::time::Duration;

/// A policy by its name, or from a file.
pub(super) fn policy(text: &str) -> Result<Policy, String> {
    if let Some(text) = Policy::built_in(text) {
        return Policy::from_toml(text).map_err(|error| error.to_string());
    }
    if !text.contains('/') && !text.ends_with(".toml") {
        let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no such policy: write {}, or the path of a TOML file", names.join(", ")));
    }
    let written = std::fs::read_to_string(text).map_err(|error| format!("it cannot be read: {error}"))?;
    Policy::from_toml(&written).map_err(|error| error.to_string())
}

/// A time with its unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write 50ms, 2s or 1m"))
}
