//! The recordings of the supported QEMUs (`qmp-fixtures/`), checked against what this crate reads and sends.
//!
//! No test starts a QEMU. The features and `docs/compatibility.md` are made from the recordings, and are kept in files;
//! `QFERRY_BLESS=1 cargo test -p qferry --test versions` writes them again, and git shows the changes.

#![allow(clippy::unwrap_used, reason = "a test says all it has to say by panicking")]

mod commands;
mod compatibility;
mod courses;
#[path = "../fake/mod.rs"]
mod fake;
mod faults;
mod misfits;
mod recording;
mod replies;
