//! The NBD wire: a read-only client for the exports of QEMU.
//!
//! The room owns the protocol and nothing above it: the fixed newstyle handshake, structured replies with their holes,
//! block status, pipelining, deadlines, and the end of the connection. The client never writes to an export, never
//! retries or reconnects, and knows nothing of disks or layers. No peer is trusted: every claim of a reply is checked
//! against its request before the reply takes memory or reaches a caller.
//!
//! ```text
//!   NbdClient --TaskMessage--> connection task --requests--> server
//!      read, query_extents, query_depths <--one buffer per request--
//! ```
//!
//! One task owns the socket; replies come in any order and are matched by cookie. Callers decide how many requests are
//! in flight, and so how much memory is used: each read holds at most its own length. A connection keeps up to 32 MiB
//! of buffers for later reads.

mod assembly;
mod buffers;
mod client;
mod connection;
mod error;
mod extents;
mod handshake;
mod options;
mod waiters;
mod wire;

pub use client::{MAX_READ, NbdClient};
pub use error::NbdError;
pub use extents::{AllocationExtent, DepthExtent, MAX_DESCRIPTORS};
pub use options::{MetaContexts, NbdOptions};
