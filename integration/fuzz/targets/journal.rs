//! A journal that anyone wrote.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qferry::internals::{
    journal::{fold, parse},
    migration::record::{Record, Status},
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(parsed) = parse::<Record>(bytes) {
        assert!(parsed.whole <= bytes.len());
        assert!(parsed.entries.iter().zip(1..).all(|(entry, n)| entry.n == n));
        // what is cut off was no record, and what is left is a journal to go on with
        let whole = parse::<Record>(&bytes[..parsed.whole]).expect("a journal");
        drop(fold::<Status>(&whole.entries));
        assert_eq!((whole.entries, whole.whole), (parsed.entries, parsed.whole));
    }
});
