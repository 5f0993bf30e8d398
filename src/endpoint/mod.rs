//! How to reach a QMP socket, and who is behind it.
//!
//! Owns addresses, connecting, who else may connect, and the watch on the peer's process, which it ends only where someone
//! else has decided so. It speaks no QMP.

mod address;
mod connector;
mod dial;
mod peer;
mod private;
mod process_handle;

pub use address::{Address, AddressError};
pub use connector::{Connect, Connecting, Endpoint};
pub use dial::{DialError, Dialed, Socket, dial};
pub use peer::{Found, Identity, PeerPid};
pub use private::keep_private;
pub use process_handle::ProcessHandle;
