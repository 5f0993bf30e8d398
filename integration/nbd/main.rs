//! The NBD client: against a scripted server that lies, and against the real one of QEMU.

#![cfg(test)] // tells clippy that this is all test, helpers too
#![allow(clippy::unwrap_used, reason = "a test says all it has to say by panicking")]

mod hostile;
mod qemu;
mod server;
