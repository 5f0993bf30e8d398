//! The NBD client against a scripted server that breaks the protocol, and against the real server of QEMU.

#![cfg(test)] // clippy then counts helper functions as tests, too
#![allow(clippy::unwrap_used, reason = "a test says all it has to say by panicking")]

mod hostile;
mod qemu;
mod server;
