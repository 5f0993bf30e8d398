//! The spec of a sweep, with arbitrary text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qferry::internals::experiment::read_spec;

fuzz_target!(|text: &str| {
    match read_spec(text) {
        Ok(combinations) => assert!(combinations >= 1, "a sweep has a trial"),
        Err(error) => assert!(!error.is_empty(), "it must be said what is wrong"),
    }
});
