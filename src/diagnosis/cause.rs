//! The causes that a diagnosis can name.
//!
//! Pure.

use super::remedy::RemedyCommand;
use crate::codes::DiagnosisCode;
use serde::Serialize;

/// How sure a cause is, by its evidence alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Confidence {
    /// The evidence admits nothing else.
    Certain,
    /// Other causes would be rare.
    Likely,
    /// Another cause fits as well; the evidence says what would tell them apart.
    Possible,
}

/// A cause, why it is believed, and what gets the migration out.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Cause {
    /// The code.
    pub code: DiagnosisCode,
    /// How sure the cause is.
    pub confidence: Confidence,
    /// Numbers and QEMU's own words, one fact each.
    pub evidence: Vec<String>,
    /// What gets the migration out, for people.
    pub remedy: String,
    /// What the remedy can cost.
    pub risk: String,
    /// The commands of the remedy, where there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<RemedyCommand>,
    /// Whether these commands can be carried out without the risk of two runners or of a lost write.
    pub fixable: bool,
}

impl Cause {
    /// A cause without commands.
    pub(super) fn new(code: DiagnosisCode, confidence: Confidence, evidence: Vec<String>) -> Self {
        let (remedy, risk) = (String::new(), String::new());
        Self { code, confidence, evidence, remedy, risk, commands: Vec::new(), fixable: false }
    }

    /// The cause in one line, with its confidence where other causes fit as well.
    pub(super) fn verdict(&self) -> String {
        let perhaps = if self.confidence == Confidence::Possible { "Perhaps: " } else { "" };
        format!("{perhaps}{}", self.code.meaning())
    }

    /// The same cause with its remedy and what that can cost.
    pub(super) fn remedy(self, remedy: impl Into<String>, risk: impl Into<String>) -> Self {
        Self { remedy: remedy.into(), risk: risk.into(), ..self }
    }

    /// The same cause with a command of its remedy.
    pub(super) fn command(mut self, command: RemedyCommand) -> Self {
        self.commands.push(command);
        self
    }

    /// The same cause, whose commands can make neither two runners nor a lost write.
    pub(super) fn fixable(self) -> Self {
        Self { fixable: !self.commands.is_empty(), ..self }
    }
}
