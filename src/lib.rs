//! qferry: a live-migration engine for QEMU that needs no management daemon.
//!
//! - [`endpoint`] reaches a QMP socket and watches the process behind it.
//! - [`qmp`] turns the bytes of such a socket into commands, replies and events.

pub mod endpoint;
pub mod qmp;
