//! How to reach a QMP socket, and who is behind it.
//!
//! Owns addresses, connecting, who else may connect, and the watch on the peer's process. It speaks no QMP and never
//! signals a process.

mod address;
mod dial;
mod peer;
mod private;

pub use address::{Address, AddressError};
pub use dial::{DialError, Dialed, Socket, dial};
pub use peer::{Found, Identity, PeerPid};
pub use private::keep_private;
