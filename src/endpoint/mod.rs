//! How to reach a QMP socket, and who is behind it.
//!
//! Owns addresses, connecting and the watch on the peer's process. It speaks no QMP and never signals a process.

mod address;
mod dial;
mod peer;

pub use address::{Address, AddressError};
pub use dial::{DialError, Dialed, Socket, dial};
pub use peer::{Found, Identity, PeerPid};
