//! What stands in a journal's file. Pure.
//!
//! Owns the format: a first line `{"qferry-journal":1}`, then a line of JSON for each record,
//! `{"n":1,"at":1764000000000,"record":...}`, with `n` counting from 1 and `at` in milliseconds since the Unix epoch.
//! It tells a line that was torn while it was written, which can only be the last, from damage. It must never take
//! damage for a torn line: what is taken for torn is taken for never having been recorded.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// The version of the format that is written, and the only one that is read.
pub const VERSION: u64 = 1;

/// Longest journal, in bytes. That of a migration has some dozens of lines; what is longer is not read into memory.
pub const LIMIT: usize = 16 << 20;

/// A record with its number and its time: one line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry<R> {
    /// Its number, from 1, without gaps.
    pub n: u64,
    /// When it was written, in milliseconds since the Unix epoch, by the writer's wall clock. For people: nothing may be
    /// decided by it.
    pub at: u64,
    /// What was recorded.
    pub record: R,
}

/// What the bytes of a journal hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedJournal<R> {
    /// Every whole entry, in order.
    pub entries: Vec<JournalEntry<R>>,
    /// Where the last whole line ends. What follows was torn while it was written, and is to be cut off before anything
    /// is appended. 0 where even the first line is torn.
    pub whole: usize,
}

/// Why bytes are no journal.
#[derive(Debug, Error)]
pub enum FormatError {
    /// The first line is not a journal's.
    #[error("its first line is not that of a qferry journal")]
    Foreign,
    /// Written by another version.
    #[error(
        "its format is version {found}, and this qferry reads version {VERSION} alone: use the qferry that wrote it"
    )]
    Version {
        /// The version that it has.
        found: u64,
    },
    /// A line that is whole cannot be understood.
    #[error("line {line} is no record that this qferry knows: the file is damaged, or another version wrote it")]
    Line {
        /// Its number in the file, from 1.
        line: u64,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The numbers do not follow each other.
    #[error("line {line} has the record number {found} where {expected} must be: records are missing or were added")]
    Gap {
        /// Its number in the file, from 1.
        line: u64,
        /// The number that follows the one before.
        expected: u64,
        /// The number that stands there.
        found: u64,
    },
    /// Longer than any journal.
    #[error("it is longer than {LIMIT} bytes, and no journal is")]
    TooLong,
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct HeaderLine {
    #[serde(rename = "qferry-journal")]
    version: u64,
}

/// The first line of what is written.
pub(super) fn header() -> String {
    // a number always serialises
    serde_json::to_string(&HeaderLine { version: VERSION }).unwrap_or_default() + "\n"
}

/// The line of an entry.
pub(super) fn line<R: Serialize>(entry: &JournalEntry<R>) -> Result<String, serde_json::Error> {
    // JSON escapes line ends inside of texts, so this is one line
    Ok(serde_json::to_string(entry)? + "\n")
}

/// Reads the bytes of a journal. Takes memory in proportion to them, so the caller bounds them, by [`LIMIT`].
///
/// # Errors
/// See [`FormatError`]. A last line that was torn is none: [`ParsedJournal::whole`] tells.
pub fn parse<R: DeserializeOwned>(bytes: &[u8]) -> Result<ParsedJournal<R>, FormatError> {
    let header = header();
    let mut parsed = ParsedJournal { entries: Vec::new(), whole: 0 };
    if header.len() > bytes.len() && header.as_bytes().starts_with(bytes) {
        return Ok(parsed);
    }
    let mut lines = (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n'));
    parsed.whole = check_header(lines.next().map(|(_, text)| text).unwrap_or_default())?;
    for (line, text) in lines {
        // An append ends with the line end, and before it has ended nothing was done about the record.
        let Some(text) = text.strip_suffix(b"\n") else { break };
        let end = parsed.whole + text.len() + 1;
        match serde_json::from_slice(text) {
            Ok(entry) => parsed.push(line, entry)?,
            // After a power cut a file may have its new length without all of its new bytes, which then read as zeros.
            // None is ever written, so a line without one is not torn: it was recorded, and has been damaged since.
            Err(_) if end == bytes.len() && text.contains(&0) => break,
            Err(source) => return Err(FormatError::Line { line, source }),
        }
        parsed.whole = end;
    }
    Ok(parsed)
}

impl<R> ParsedJournal<R> {
    fn push(&mut self, line: u64, entry: JournalEntry<R>) -> Result<(), FormatError> {
        let (expected, found) = (self.next(), entry.n);
        if found != expected {
            return Err(FormatError::Gap { line, expected, found });
        }
        self.entries.push(entry);
        Ok(())
    }

    /// The number of the entry after the last.
    pub(super) fn next(&self) -> u64 {
        self.entries.len() as u64 + 1
    }
}

/// Returns the length of the first line.
fn check_header(line: &[u8]) -> Result<usize, FormatError> {
    let text = line.strip_suffix(b"\n").ok_or(FormatError::Foreign)?;
    match serde_json::from_slice(text) {
        Ok(HeaderLine { version: VERSION }) => Ok(line.len()),
        Ok(HeaderLine { version: found }) => Err(FormatError::Version { found }),
        Err(_) => Err(FormatError::Foreign),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum TestRecord {
        Begun { source: String },
        Given,
    }

    fn bytes_of(records: &[TestRecord]) -> Vec<u8> {
        let mut bytes = header().into_bytes();
        for (n, record) in (1..).zip(records) {
            bytes.extend(line(&JournalEntry { n, at: 1000 + n, record }).unwrap().into_bytes());
        }
        bytes
    }

    fn records(bytes: &[u8]) -> Result<Vec<TestRecord>, FormatError> {
        Ok(parse(bytes)?.entries.into_iter().map(|entry| entry.record).collect())
    }

    #[test]
    fn a_journal_can_be_read_by_people() {
        let text =
            String::from_utf8(bytes_of(&[TestRecord::Begun { source: "a\nb".into() }, TestRecord::Given])).unwrap();
        let expected = concat!(
            "{\"qferry-journal\":1}\n",
            "{\"n\":1,\"at\":1001,\"record\":{\"begun\":{\"source\":\"a\\nb\"}}}\n",
            "{\"n\":2,\"at\":1002,\"record\":\"given\"}\n",
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told() {
        const FIRST: &str = "{\"qferry-journal\":1}\n";
        const GIVEN: &str = "{\"n\":1,\"at\":5,\"record\":\"given\"}\n";
        type ErrorCheck = fn(&FormatError) -> bool;
        let cases: &[(&[&str], ErrorCheck)] = &[
            (&["\n"], |e| matches!(e, FormatError::Foreign)),
            (&["#!/bin/sh\n"], |e| matches!(e, FormatError::Foreign)),
            (&["#!/bin/sh"], |e| matches!(e, FormatError::Foreign)),
            (&["{\"qferry-journal\":\"1\"}\n"], |e| matches!(e, FormatError::Foreign)),
            (&["{\"qferry-journal\":2}\n", GIVEN], |e| matches!(e, FormatError::Version { found: 2 })),
            (&["{\"qferry-journal\":2,\"since\":3}\n"], |e| matches!(e, FormatError::Version { found: 2 })),
            // damage in the middle, at the end of a whole line, and a record of a later qferry
            (&[FIRST, "{\"n\":1,\n", GIVEN], |e| matches!(e, FormatError::Line { line: 2, .. })),
            (&[FIRST, "{\"n\":1,\0\n", GIVEN], |e| matches!(e, FormatError::Line { line: 2, .. })),
            (&[FIRST, GIVEN, "\n"], |e| matches!(e, FormatError::Line { line: 3, .. })),
            (&[FIRST, GIVEN, "{\"n\":2,\"at\":5,\"rec\n"], |e| matches!(e, FormatError::Line { line: 3, .. })),
            (&[FIRST, GIVEN, "\n", GIVEN], |e| matches!(e, FormatError::Line { line: 3, .. })),
            (&[FIRST, "{\"n\":1,\"at\":5,\"record\":\"taken\"}\n"], |e| matches!(e, FormatError::Line { line: 2, .. })),
            (&[FIRST, "{\"n\":1,\"at\":5}\n"], |e| matches!(e, FormatError::Line { line: 2, .. })),
            (&[FIRST, "{\"n\":1,\"n\":1,\"at\":5,\"record\":\"given\"}\n"], |e| {
                matches!(e, FormatError::Line { line: 2, .. })
            }),
            (&[FIRST, GIVEN, GIVEN], |e| matches!(e, FormatError::Gap { line: 3, expected: 2, found: 1 })),
            (&[FIRST, "{\"n\":7,\"at\":5,\"record\":\"given\"}\n"], |e| {
                matches!(e, FormatError::Gap { line: 2, expected: 1, found: 7 })
            }),
        ];
        for (lines, is_right) in cases {
            let error = records(lines.concat().as_bytes()).unwrap_err();
            assert!(is_right(&error), "{lines:?}: {error:?}");
        }
    }

    #[test]
    fn a_torn_end_is_dropped() {
        let whole = bytes_of(&[TestRecord::Given]);
        for torn in ["{\"n\":2", "\0\0\0", "\0\0\0\n", "{\"n\":2,\"at\":5,\"record\":\"given\"}", "{\"n\":2\0\0}\n"] {
            let parsed = parse::<TestRecord>(&[&whole, torn.as_bytes()].concat()).unwrap();
            assert_eq!((parsed.entries.len(), parsed.whole), (1, whole.len()), "{torn:?}");
        }
    }

    #[test]
    fn deep_and_huge_values_are_errors() {
        let deep = "[".repeat(1 << 20) + &"]".repeat(1 << 20);
        let entries = ["1e999", "-1", "18446744073709551616"].map(|n| format!("{{\"n\":{n},\"at\":5,\"record\":1}}"));
        for entry in [format!("{{\"n\":1,\"at\":5,\"record\":{deep}}}"), deep].iter().chain(&entries) {
            let text = format!("{}{entry}\n", header());
            let error = parse::<Value>(text.as_bytes()).unwrap_err();
            assert!(matches!(error, FormatError::Line { line: 2, .. }), "{error:?}");
        }
    }

    fn any_records() -> impl Strategy<Value = Vec<TestRecord>> {
        let record = prop_oneof![Just(TestRecord::Given), ".{0,12}".prop_map(|source| TestRecord::Begun { source })];
        proptest::collection::vec(record, 0..6)
    }

    proptest! {
        #[test]
        fn every_prefix_is_a_prefix_of_the_records(written in any_records()) {
            let bytes = bytes_of(&written);
            for end in 0..=bytes.len() {
                let parsed = parse::<TestRecord>(&bytes[..end]).unwrap();
                prop_assert!(parsed.whole <= end);
                let read: Vec<TestRecord> = parsed.entries.into_iter().map(|entry| entry.record).collect();
                prop_assert_eq!(&read[..], &written[..read.len()]);
                let lines = bytes[..end].iter().filter(|byte| **byte == b'\n').count();
                prop_assert_eq!(read.len(), lines.saturating_sub(1), "no whole record is lost");
            }
        }

        /// Damage is told from a torn end, but for the last record's own line end (or its only space, made a zero).
        #[test]
        fn a_flipped_bit_loses_the_last_record_at_most(
            written in any_records(), at in any::<prop::sample::Index>(), bit in 0..8,
        ) {
            let mut bytes = bytes_of(&written);
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            if let Ok(parsed) = parse::<TestRecord>(&bytes) {
                prop_assert!(parsed.entries.len() + 1 >= written.len());
                prop_assert!(parsed.whole <= bytes.len());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            lines in proptest::collection::vec(
                "\\{\"n\":[0-9]{1,3},\"at\":-?[0-9]{0,20},\"record\":[\"\\[{}a-z\\]]{0,9}\\}?|.{0,20}", 0..5),
        ) {
            let text = lines.join("\n").into_bytes();
            for bytes in [bytes.clone(), text.clone(), [header().into_bytes(), text, bytes].concat()] {
                if let Ok(parsed) = parse::<Value>(&bytes) {
                    let whole = parse::<Value>(&bytes[..parsed.whole]).unwrap();
                    prop_assert_eq!(whole.entries, parsed.entries, "what is cut off is not missed");
                }
            }
        }
    }
}
