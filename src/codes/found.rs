//! A finding: a code with the subject that it is about, the reason why it matters, and a remedy.
//!
//! Pure.

use super::{FindingCode, Severity};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The result of a check that found a reason to speak. Texts name settings by marks: see [`crate::codes::worded`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finding {
    /// A stable word for programs.
    pub code: FindingCode,
    /// The consequence for the migration.
    pub severity: Severity,
    /// The subject: a side, a disk, an address or a setting.
    pub subject: String,
    /// The observation, for people.
    pub message: String,
    /// The remedy, for people; empty where nothing is to be done.
    pub remedy: String,
}

impl Finding {
    /// A finding with the severity and the remedy of its code.
    pub(crate) fn new(code: FindingCode, subject: &str, message: impl Into<String>) -> Self {
        let (severity, remedy) = (code.severity(), code.remedy().to_owned());
        Self { code, severity, subject: subject.to_owned(), message: message.into(), remedy }
    }

    /// The finding with a more precise remedy than its code's.
    pub(crate) fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: remedy.into(), ..self }
    }

    /// The finding as a warning, where it forbids nothing.
    pub(crate) fn into_warning(self) -> Self {
        debug_assert!(self.code.severities().contains(&Severity::Warning), "{}", self.code);
        Self { severity: Severity::Warning, ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)?;
        match self.remedy.as_str() {
            "" => Ok(()),
            remedy => write!(f, " ({remedy})"),
        }
    }
}
