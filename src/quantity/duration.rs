//! Durations as text, such as `50ms`, `2s` or `1m 30s`: in settings, in policies, and wherever serde reads or writes
//! one.
//!
//! Pure.

use serde::{Deserializer, Serializer, de::Visitor};
use std::{fmt, time::Duration};

/// Writes a duration as text that reads back as the same.
///
/// # Errors
/// The serializer's own.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// Reads a duration with its unit.
///
/// # Errors
/// Anything but a text with a number and a unit; the error says what would be right.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_str(DurationText)
}

struct DurationText;

impl Visitor<'_> for DurationText {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration as text, with its unit: \"50ms\", \"2s\" or \"1m\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
        humantime::parse_duration(text).map_err(|error| {
            E::custom(format!("\"{text}\" is no duration ({error}): write \"50ms\", \"2s\" or \"1m\""))
        })
    }
}

/// The same for a duration that may be left out.
pub mod option {
    use super::{Deserializer, Duration, Serializer};
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Given(#[serde(with = "super")] Duration);

    /// Writes a duration, or null.
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a duration with its unit, or null.
    ///
    /// # Errors
    /// See [`super::deserialize`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Given>::deserialize(deserializer)?.map(|Given(duration)| duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Both {
        #[serde(with = "super")]
        always: Duration,
        #[serde(with = "super::option")]
        perhaps: Option<Duration>,
    }

    impl Default for Both {
        fn default() -> Self {
            Self { always: Duration::ZERO, perhaps: None }
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (always, perhaps) in
            [(0, None), (50_000_000, Some(1)), (90_000_000_000, Some(u64::MAX)), (u64::MAX - 1, None)]
        {
            let both = Both { always: Duration::from_nanos(always), perhaps: perhaps.map(Duration::from_nanos) };
            let text = serde_json::to_string(&both).unwrap();
            assert_eq!(serde_json::from_str::<Both>(&text).unwrap(), both, "{text}");
        }
        assert_eq!(
            serde_json::to_string(&Both { always: Duration::from_millis(50), perhaps: None }).unwrap(),
            r#"{"always":"50ms","perhaps":null}"#
        );
        for wrong in [r#"{"always":5}"#, r#"{"always":"5"}"#, r#"{"perhaps":5}"#] {
            let error = serde_json::from_str::<Both>(wrong).unwrap_err().to_string();
            assert!(error.contains("\"50ms\""), "{error}");
        }
    }
}
