//! What the supported QEMUs said when they were recorded (`qmp-fixtures/`), held against what this crate reads and
//! says.
//!
//! Nothing here starts a QEMU. What a test makes of the recordings, the features and `docs/compatibility.md`, is kept
//! in files; `QFERRY_BLESS=1 cargo test -p qferry --test versions` writes them anew, and git shows what changed.

#![allow(clippy::unwrap_used, reason = "a test says all it has to say by panicking")]

mod commands;
mod compatibility;
mod courses;
#[path = "../fake/mod.rs"]
mod fake;
mod faults;
mod recording;
mod replies;
