//! The NBD wire: a read-only client for the exports of QEMU.
//!
//! Owns the protocol and nothing above it: the fixed newstyle handshake, structured replies with their holes, block
//! status, pipelining, deadlines, and the end of the connection. It never writes to an export, never retries or
//! reconnects, knows nothing of disks or layers, and believes no peer: whatever a reply claims is checked against its
//! request before it takes memory or reaches a caller.
//!
//! ```text
//!   NbdClient --TaskMessage--> connection task --requests--> server
//!      read, extents, depths <--one buffer per request--
//! ```
//!
//! One task owns the socket; replies come in any order and are matched by cookie. How many requests are in flight, and
//! so how much memory they take, is up to the caller: each read holds at most its own length. A connection keeps up to
//! 32 MiB of buffers to use again.

mod assembly;
mod buffers;
mod client;
mod connection;
mod error;
mod extents;
mod handshake;
mod waiters;
mod wire;

pub use client::{MAX_READ, MetaContexts, NbdClient, NbdOptions};
pub use error::NbdError;
pub use extents::{AllocationExtent, DepthExtent, MAX_DESCRIPTORS};
