//! Sizes and rates with their units, so that bytes, bits and pages are never mistaken for each other.
//!
//! Owns parsing and printing of [`Bytes`] and [`Rate`], and of durations as text. A unit must never be guessed: a bare
//! number is bytes where a size is meant, and no rate at all.

pub mod duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};
use std::{fmt, marker::PhantomData, str::FromStr};
use thiserror::Error;

/// Why a quantity could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum QuantityError {
    /// No number at the start.
    #[error("'{0}' does not start with a number")]
    Number(String),
    /// The unit is none that a quantity can have.
    #[error("'{text}' has the unknown unit '{unit}': use {expected}")]
    Unit {
        /// The whole text.
        text: String,
        /// What stood behind the number.
        unit: String,
        /// Some units that would do.
        expected: &'static str,
    },
    /// A number alone, where bytes and bits would both be meant by somebody.
    #[error("'{0}' has no unit: use {units}", units = RATE_UNITS)]
    Bare(String),
    /// The value does not fit into 64 bits.
    #[error("'{0}' is too large")]
    Range(String),
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

/// A number of bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Rate(pub u64);

const BINARY: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const SIZE_UNITS: &str = "B, KiB, MiB, GiB or TiB (or KB, MB, GB, TB for powers of 1000)";
const RATE_UNITS: &str = "MiB/s, MB/s, Mbit/s, Gbit/s and the like";

impl FromStr for Bytes {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = split(text)?;
        let factor = size_factor(unit).ok_or_else(|| unknown_unit(text, unit, SIZE_UNITS))?;
        scaled(text, number, factor).map(Bytes)
    }
}

impl FromStr for Rate {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = split(text)?;
        let unknown = || unknown_unit(text, unit, RATE_UNITS);
        let per_second = unit.strip_suffix("/s").unwrap_or(unit);
        if per_second.is_empty() {
            return Err(QuantityError::Bare(text.to_owned()));
        }
        let factor = match per_second.strip_suffix("bit") {
            Some(prefix) => decimal_prefix(prefix).ok_or_else(unknown)? / 8.0,
            None => size_factor(per_second).ok_or_else(unknown)?,
        };
        scaled(text, number, factor).map(Rate)
    }
}

impl Bytes {
    /// The size as it must not be rounded: `16 MiB`, or `8.0 MiB (8389120 bytes)` where it is no whole number of its
    /// unit.
    pub fn exactly(self) -> String {
        let whole = |unit: &usize| self.0 >> (10 * unit) < 1024 && self.0.trailing_zeros() as usize >= 10 * unit;
        match (0..BINARY.len()).find(whole) {
            Some(unit) => format!("{} {}", self.0 >> (10 * unit), BINARY[unit]),
            None => format!("{self} ({} bytes)", self.0),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = 0;
        // 1023.95 would print as "1024.0 KiB"
        while value >= 1023.95 && unit + 1 < BINARY.len() {
            value /= 1024.0;
            unit += 1;
        }
        let text = match unit {
            0 => format!("{} B", self.0),
            _ => format!("{value:.1} {}", BINARY[unit]),
        };
        f.pad(&text)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/s", Bytes(self.0)))
    }
}

/// Text that reads back as the same number: `100MiB`, `1000B`.
impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&exact(self.0))
    }
}

/// The text of a size with its unit.
impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(QuantityText("a size as text, such as \"64MiB\"", PhantomData))
    }
}

/// Text that reads back as the same number: `100MiB/s`.
impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}/s", exact(self.0)))
    }
}

/// The text of a rate with its unit.
impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(QuantityText("a rate as text, such as \"100MiB/s\" or \"1Gbit/s\"", PhantomData))
    }
}

/// The number in the largest unit that leaves it whole. Sizes beyond 2^53 bytes may be read back rounded.
fn exact(bytes: u64) -> String {
    let power = BINARY.len() - 1;
    let power = (0..=power).rev().find(|power| bytes % (1 << (10 * power)) == 0 && bytes > 0).unwrap_or(0);
    format!("{}{}", bytes >> (10 * power), BINARY[power])
}

/// Reads a quantity from its text, and says what would be right in place of anything else.
struct QuantityText<T>(&'static str, PhantomData<T>);

impl<T: FromStr<Err = QuantityError>> Visitor<'_> for QuantityText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

fn split(text: &str) -> Result<(f64, &str), QuantityError> {
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let number = number.parse().map_err(|_| QuantityError::Number(text.to_owned()))?;
    Ok((number, unit.trim()))
}

fn size_factor(unit: &str) -> Option<f64> {
    let binary = BINARY.iter().position(|&name| name == unit || (name.len() == 3 && name[..2] == *unit));
    match (binary, unit) {
        (Some(power), _) => Some(1024f64.powi(i32::try_from(power).ok()?)),
        (None, "") => Some(1.0),
        (None, _) => decimal_prefix(unit.strip_suffix('B')?),
    }
}

fn decimal_prefix(prefix: &str) -> Option<f64> {
    Some(match prefix {
        "" => 1.0,
        "k" | "K" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        _ => return None,
    })
}

fn scaled(text: &str, number: f64, factor: f64) -> Result<u64, QuantityError> {
    let value = (number * factor).round();
    // 2^63 is far beyond any disk, link or guest, and exact in an f64
    if value.is_finite() && value < 9_223_372_036_854_775_808.0 {
        Ok(value as u64)
    } else {
        Err(QuantityError::Range(text.to_owned()))
    }
}

fn unknown_unit(text: &str, unit: &str, expected: &'static str) -> QuantityError {
    QuantityError::Unit { text: text.to_owned(), unit: unit.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("1 KiB", 1024),
            ("1Ki", 1024),
            ("1.5MiB", 1_572_864),
            ("2GB", 2_000_000_000),
            ("1k", 0),
        ] {
            match text.parse::<Bytes>() {
                Ok(parsed) => assert_eq!(parsed, Bytes(bytes), "{text}"),
                Err(error) => assert_eq!((text, error.to_string().contains("'k'")), ("1k", true)),
            }
        }
    }

    #[test]
    fn exact_sizes_are_not_rounded() {
        for (bytes, told) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1025, "1.0 KiB (1025 bytes)"),
            (16 << 20, "16 MiB"),
            ((8 << 20) + 512, "8.0 MiB (8389120 bytes)"),
            (1536 << 10, "1.5 MiB (1572864 bytes)"),
            (1 << 30, "1 GiB"),
            (u64::MAX, "16.0 EiB (18446744073709551615 bytes)"),
        ] {
            assert_eq!(Bytes(bytes).exactly(), told);
        }
    }

    #[test]
    fn rates() {
        for (text, rate) in
            [("100MiB/s", 104_857_600), ("1Gbit/s", 125_000_000), ("8kbit/s", 1000), ("10MB/s", 10_000_000)]
        {
            assert_eq!(text.parse(), Ok(Rate(rate)), "{text}");
        }
    }

    #[test]
    fn a_rate_has_a_unit() {
        for text in ["100", " 0 ", "100M", "1G", "100mbit", "100/s"] {
            let error = text.parse::<Rate>().unwrap_err().to_string();
            assert!(error.contains("MiB/s") && error.contains("Gbit/s"), "{text}: {error}");
        }
    }

    #[test]
    fn serde_writes_what_it_reads() {
        for (number, size) in [(0, "0B"), (1000, "1000B"), (1 << 26, "64MiB"), (3 << 40, "3TiB")] {
            assert_eq!(serde_json::to_string(&Bytes(number)).unwrap(), format!("\"{size}\""));
            assert_eq!(serde_json::to_string(&Rate(number)).unwrap(), format!("\"{size}/s\""));
        }
        assert_eq!(serde_json::from_str::<Bytes>("\"64MiB\"").unwrap(), Bytes(1 << 26));
        assert_eq!(serde_json::from_str::<Rate>("\"1Gbit/s\"").unwrap(), Rate(125_000_000));
        for wrong in ["100", "\"100\"", "\"fast\""] {
            let error = serde_json::from_str::<Rate>(wrong).unwrap_err().to_string();
            assert!(error.contains("/s") || error.contains("number"), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!("fast".parse::<Rate>(), Err(QuantityError::Number("fast".to_owned())));
        assert!("1 furlong/s".parse::<Rate>().is_err_and(|e| e.to_string().contains("furlong")));
        assert_eq!("99999999TiB".parse::<Bytes>(), Err(QuantityError::Range("99999999TiB".to_owned())));
    }

    #[test]
    fn printed() {
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes(1024 * 1024 - 1).to_string(), "1.0 MiB");
        assert_eq!(Rate(104_857_600).to_string(), "100.0 MiB/s");
        assert_eq!(format!("{:>8}|", Bytes(7)), "     7 B|");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again_within_its_precision(value in 0u64..1 << 60) {
            let read: Bytes = Bytes(value).to_string().parse().expect("our own output");
            prop_assert!(read.0.abs_diff(value) as f64 <= value as f64 * 0.051);
        }

        #[test]
        fn no_text_panics(text in ".{0,24}") {
            // either outcome is right: the point is that neither panics
            prop_assert!(text.parse::<Bytes>().map(|b| b.0 < u64::MAX).unwrap_or(true));
            prop_assert!(text.parse::<Rate>().map(|r| r.0 < u64::MAX).unwrap_or(true));
        }
    }
}
