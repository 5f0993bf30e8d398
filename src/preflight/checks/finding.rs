//! A finding: a code with the subject that it is about, the reason why it matters, and a remedy.

use crate::codes::{FindingCode, Severity};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Something a check found. Its texts name settings by their marks: see [`crate::codes::worded`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// A stable word for programs.
    pub code: FindingCode,
    /// How grave it is.
    pub severity: Severity,
    /// What it is about: a side, a disk, an address, a setting.
    pub subject: String,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    /// A finding as grave as its code is, with the code's remedy.
    pub(crate) fn new(code: FindingCode, subject: &str, message: impl Into<String>) -> Self {
        let (severity, remedy) = (code.severity(), code.remedy().to_owned());
        Self { code, severity, subject: subject.to_owned(), message: message.into(), remedy }
    }

    /// The finding with a remedy that says more than its code's.
    pub(crate) fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: remedy.into(), ..self }
    }

    /// The finding where it forbids nothing.
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
