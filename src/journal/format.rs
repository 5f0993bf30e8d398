//! The format of a journal's file. Pure.
//!
//! The module owns the format: a first line `{"qferry-journal":1}`, then a line of JSON for each record,
//! `{"n":1,"at":1764000000000,"record":...}`, with `n` counting from 1 and `at` in milliseconds since the Unix epoch.
//! The parser distinguishes a line that was torn while it was written, which can only be the last, from damage. Damage
//! must never be taken for a torn line, because a torn line counts as never recorded.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Version of the format that this crate writes, and the only one it reads.
pub const VERSION: u64 = 1;

/// Longest journal, in bytes. The journal of a migration has some dozens of lines; a longer file is not read.
pub const LIMIT: usize = 16 << 20;

/// A record with its number and its time: one line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry<R> {
    /// Number of the record, from 1, without gaps.
    pub n: u64,
    /// Time of writing, in milliseconds since the Unix epoch, by the writer's wall clock. For people: no decision may
    /// depend on the time.
    pub at: u64,
    /// The record.
    pub record: R,
}

/// Entries of a journal, and the length of its undamaged part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedJournal<R> {
    /// Every whole entry, in order.
    pub entries: Vec<JournalEntry<R>>,
    /// End of the last whole line, in bytes. Later bytes were torn while they were written, and must be cut off before
    /// the next append. 0 where even the first line is torn.
    pub whole: usize,
}

/// Reason why a file is not a journal.
#[derive(Debug, Error)]
pub enum FormatError {
    /// The first line is not that of a journal.
    #[error("the first line is not that of a qferry journal")]
    Foreign,
    /// The file has another version of the format.
    #[error(
        "the format has version {found}, and this qferry reads version {VERSION} alone: use the qferry that wrote the \
         file"
    )]
    Version {
        /// Version of the file.
        found: u64,
    },
    /// A whole line is not a record.
    #[error("line {line} is no record that this qferry knows: the file is damaged, or another version wrote it")]
    Line {
        /// Number of the line in the file, from 1.
        line: u64,
        /// Error of the JSON parser.
        #[source]
        source: serde_json::Error,
    },
    /// The record numbers are not consecutive.
    #[error("line {line} has the record number {found} where {expected} must be: records are missing or were added")]
    Gap {
        /// Number of the line in the file, from 1.
        line: u64,
        /// Number that must follow.
        expected: u64,
        /// Number in the line.
        found: u64,
    },
    /// The file is longer than any journal.
    #[error("the file is longer than {LIMIT} bytes, and no journal is")]
    TooLong,
}

/// The first line of a journal.
#[derive(Serialize, Deserialize)]
struct HeaderLine {
    #[serde(rename = "qferry-journal")]
    version: u64,
}

/// Encodes the first line.
pub(super) fn encode_header() -> String {
    // A number always serialises.
    serde_json::to_string(&HeaderLine { version: VERSION }).unwrap_or_default() + "\n"
}

/// Encodes an entry as a line.
pub(super) fn encode_entry<R: Serialize>(entry: &JournalEntry<R>) -> Result<String, serde_json::Error> {
    // JSON escapes line ends inside of texts, so the entry is one line.
    Ok(serde_json::to_string(entry)? + "\n")
}

/// Parses the bytes of a journal. The entries take memory in proportion to the bytes, so the caller must bound the
/// bytes by [`LIMIT`].
///
/// # Errors
/// See [`FormatError`]. A torn last line is no error: [`ParsedJournal::whole`] is less than the length then.
pub fn parse<R: DeserializeOwned>(bytes: &[u8]) -> Result<ParsedJournal<R>, FormatError> {
    let header = encode_header();
    let mut parsed = ParsedJournal { entries: Vec::new(), whole: 0 };
    if header.len() > bytes.len() && header.as_bytes().starts_with(bytes) {
        return Ok(parsed);
    }
    let mut lines = (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n'));
    parsed.whole = check_header(lines.next().map(|(_, text)| text).unwrap_or_default())?;
    for (line, text) in lines {
        // The line end is the last byte of an append. A record without it was never acted upon.
        let Some(text) = text.strip_suffix(b"\n") else { break };
        let end = parsed.whole + text.len() + 1;
        match serde_json::from_slice(text) {
            Ok(entry) => parsed.push(line, entry)?,
            // After a power cut a file may have its new length without all of its new bytes, which then read as zeros.
            // A zero byte is never written, so a line without one was recorded whole, and has been damaged since.
            Err(_) if end == bytes.len() && text.contains(&0) => break,
            Err(source) => return Err(FormatError::Line { line, source }),
        }
        parsed.whole = end;
    }
    Ok(parsed)
}

impl<R> ParsedJournal<R> {
    fn push(&mut self, line: u64, entry: JournalEntry<R>) -> Result<(), FormatError> {
        let (expected, found) = (self.next_number(), entry.n);
        if found != expected {
            return Err(FormatError::Gap { line, expected, found });
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Number of the entry after the last.
    pub(super) fn next_number(&self) -> u64 {
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
        let mut bytes = encode_header().into_bytes();
        for (n, record) in (1..).zip(records) {
            bytes.extend(encode_entry(&JournalEntry { n, at: 1000 + n, record }).unwrap().into_bytes());
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
    fn the_error_tells_why_a_file_is_no_journal() {
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
            // Damage in the middle, damage at the end of a whole line, and a record of a later qferry.
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
            let text = format!("{}{entry}\n", encode_header());
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

        /// Damage is distinguished from a torn end, except where the flipped bit makes the last record's line end
        /// something else, or its only space a zero.
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
            for bytes in [bytes.clone(), text.clone(), [encode_header().into_bytes(), text, bytes].concat()] {
                if let Ok(parsed) = parse::<Value>(&bytes) {
                    let whole = parse::<Value>(&bytes[..parsed.whole]).unwrap();
                    prop_assert_eq!(whole.entries, parsed.entries, "the torn part holds no entry");
                }
            }
        }
    }
}
