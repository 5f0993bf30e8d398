//! Whether a QEMU could listen at the addresses that the user gave, and whether they can be reached.
//!
//! A connection is made to each port and dropped. The source's QEMU connects from its own host, which may be another
//! one, so a port that is reached from here need not be reachable from there.

use super::{SideFacts, process};
use crate::endpoint::{Address, DialError, dial};
use std::{io::ErrorKind, time::Duration};

/// The time that a host has to say that nobody listens.
const PATIENCE: Duration = Duration::from_secs(1);

/// The result of a look at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// The host answers, and no process listens.
    Free,
    /// A process listens already.
    Taken,
    /// The host does not answer.
    Silent(Duration),
    /// The host cannot be reached, or its name is not known.
    Unreachable(String),
    /// The QEMU that would listen can make no socket there.
    Forbidden(String),
    /// The QEMU that would connect may not connect to the socket that the other makes there.
    Closed(String),
}

/// Connects to a port, or looks at the folder of a socket. `listener` is the side whose QEMU would listen; `connector`
/// is the other one, unless the engine itself connects. `None` for a socket of which nothing is found that speaks
/// against it.
pub async fn look(address: &Address, listener: &SideFacts, connector: Option<&SideFacts>) -> Option<PortState> {
    if let Address::Unix(path) = address {
        let listener = listener.pid?;
        let closed = || process::no_way_to(path, listener, connector?.pid?).map(PortState::Closed);
        return process::no_socket_at(listener, path).map(PortState::Forbidden).or_else(closed);
    }
    Some(match dial(address, PATIENCE).await {
        Ok(_) => PortState::Taken,
        Err(DialError::Refused { .. }) => PortState::Free,
        // a reset is another way of a host to say that nobody listens
        Err(DialError::Io { source, .. }) if source.kind() == ErrorKind::ConnectionReset => PortState::Free,
        Err(DialError::TimedOut { waited, .. }) => PortState::Silent(waited),
        Err(error) => PortState::Unreachable(crate::progress::describe(&error)),
    })
}
