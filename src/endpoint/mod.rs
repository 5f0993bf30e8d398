//! Connections to QMP sockets, and the processes behind them.
//!
//! Owns addresses, connections to them, the permissions of sockets, and the watch on the peer's process. This room
//! speaks no QMP, and it ends a process only where its caller has decided so.

mod address;
mod connector;
mod dial;
mod peer;
mod private;
mod process_credentials;
mod process_handle;
mod process_stat;
mod unseen;

pub use address::{Address, AddressError};
pub use connector::{Connect, Connecting, Endpoint};
pub use dial::{DialError, Dialed, Socket, dial};
pub use peer::{PeerPid, ProcessFate, ProcessIdentity, id_in_namespace, seen_by};
pub use private::keep_private;
pub(crate) use process_credentials::ProcessCredentials;
pub use process_handle::ProcessHandle;
pub use process_stat::ProcessStat;
pub use unseen::UnseenProcess;
