//! qferry: a live-migration engine for QEMU that needs no management daemon.
//!
//! - [`endpoint`] reaches a QMP socket and watches the process behind it.

pub mod endpoint;
