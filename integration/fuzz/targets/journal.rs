//! The parser of journals, with arbitrary bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qferry::internals::{
    journal::{fold, parse},
    migration::record::{Record, JournalStatus},
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(parsed) = parse::<Record>(bytes) {
        assert!(parsed.whole <= bytes.len());
        assert!(parsed.entries.iter().zip(1..).all(|(entry, n)| entry.n == n));
        // The torn part that is cut off holds no record, and the rest is a journal that can be continued.
        let whole = parse::<Record>(&bytes[..parsed.whole]).expect("a journal");
        drop(fold::<JournalStatus>(&whole.entries));
        assert_eq!((whole.entries, whole.whole), (parsed.entries, parsed.whole));
    }
});
