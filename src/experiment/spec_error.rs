//! What is wrong with a spec, in one sentence with the line, the field and the remedy.
//!
//! Pure.

use std::fmt;
use thiserror::Error;

/// Why a spec cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum SpecError {
    /// The text is not TOML, or a field or a type is wrong; the message shows the line.
    #[error("{0}")]
    Unreadable(String),
    /// A value that cannot be used.
    #[error("{}{field} is {value}: {expected}", line.map_or(String::new(), |line| format!("line {line}: ")))]
    Value {
        /// The line of the file, where the field is written there.
        line: Option<usize>,
        /// The field, with dots between the names of its tables.
        field: String,
        /// Its value, as it is written.
        value: String,
        /// What would be right.
        expected: String,
    },
}

/// An error of a value.
pub(super) fn wrong(field: &str, value: impl fmt::Display, expected: &str) -> SpecError {
    SpecError::Value { line: None, field: field.into(), value: value.to_string(), expected: expected.into() }
}

impl SpecError {
    /// The error with the line in which its field is written.
    pub(super) fn in_line_of(self, text: &str) -> Self {
        match self {
            Self::Value { field, value, expected, .. } => {
                Self::Value { line: line_of(text, &field), field, value, expected }
            }
            other => other,
        }
    }
}

/// The number of the line that has a field, counted from 1.
fn line_of(text: &str, field: &str) -> Option<usize> {
    let (wanted, leaf) = field.rsplit_once('.').unwrap_or(("", field));
    let mut table = "";
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.starts_with('[') {
            table = line.trim_matches(['[', ']', ' ']);
        } else if let Some((key, _)) = line.split_once('=') {
            let key = key.trim();
            if (table == wanted && key == leaf) || (table.is_empty() && key == field) {
                return Some(number);
            }
        }
    }
    None
}
