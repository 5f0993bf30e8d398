//! Whether the ports are free that a QEMU is going to listen at, and whether they can be reached.
//!
//! A connection is made to each port and dropped. The source's QEMU connects from its own host, which may be another
//! one, so a port that is reached from here need not be reachable from there.

use crate::endpoint::{Address, DialError, dial};
use std::{io::ErrorKind, time::Duration};

/// The time that a host has to say that nobody listens.
const PATIENCE: Duration = Duration::from_secs(1);

/// The result of a connection to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// The host answers, and no process listens.
    Free,
    /// A process listens already.
    Taken,
    /// The host does not answer, or its name is not known.
    Unreachable(String),
}

/// Connects to a port; `None` for a unix socket, which has no port.
pub async fn look(address: &Address) -> Option<PortState> {
    let Address::Tcp { .. } = address else { return None };
    Some(match dial(address, PATIENCE).await {
        Ok(_) => PortState::Taken,
        Err(DialError::Refused { .. }) => PortState::Free,
        // a reset is another way of a host to say that nobody listens
        Err(DialError::Io { source, .. }) if source.kind() == ErrorKind::ConnectionReset => PortState::Free,
        Err(error) => PortState::Unreachable(crate::progress::describe(&error)),
    })
}
