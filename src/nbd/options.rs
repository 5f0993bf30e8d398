//! The settings of an NBD connection.
//!
//! The module owns the defaults. It must never read a setting from anywhere but its caller.

use std::time::Duration;

/// Settings of one NBD connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NbdOptions {
    /// Deadline of each step of the handshake, and of each request from the call to the last byte of its reply. A
    /// missed deadline ends the connection, because a late reply cannot be distinguished from a missing one.
    pub deadline: Duration,
    /// Metadata contexts to ask for. A server computes the block status of every negotiated context for each request.
    pub contexts: MetaContexts,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), contexts: MetaContexts::default() }
    }
}

/// Metadata contexts to ask the server for. A missing context is an error only once it is queried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaContexts {
    /// `base:allocation`, for [`NbdClient::query_extents`](super::NbdClient::query_extents).
    pub allocation: bool,
    /// `qemu:allocation-depth`, for [`NbdClient::query_depths`](super::NbdClient::query_depths).
    pub depth: bool,
}

impl Default for MetaContexts {
    fn default() -> Self {
        Self { allocation: true, depth: true }
    }
}
