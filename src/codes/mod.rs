//! The words that programs rely on, each with its meaning and a remedy: codes of findings and of failures, and the
//! settings that their texts name.
//!
//! Pure. A leaf, and data alone: the checks decide when a code is fired. `docs/findings.md` is made from these tables.

mod diagnosis_code;
#[cfg(test)]
mod document;
mod failure;
mod finding;
mod found;
mod setting;

pub use diagnosis_code::DiagnosisCode;
pub use failure::FailureCode;
pub use finding::{FindingCode, Severity};
pub use found::Finding;
pub use setting::{Setting, worded};

/// Gives a code the traits of its word: serialisation both ways, comparison with texts, display.
macro_rules! word {
    ($code:ident) => {
        impl std::fmt::Display for $code {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl PartialEq for $code {
            fn eq(&self, other: &Self) -> bool {
                self.as_str() == other.as_str()
            }
        }

        impl Eq for $code {}

        impl PartialEq<str> for $code {
            fn eq(&self, other: &str) -> bool {
                self.as_str() == other
            }
        }

        impl PartialEq<&str> for $code {
            fn eq(&self, other: &&str) -> bool {
                self.as_str() == *other
            }
        }

        impl serde::Serialize for $code {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $code {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                Ok(Self::from(&*word))
            }
        }
    };
}
use word;
