//! Whether the ports that the destination is to listen at are free, and can be reached.
//!
//! Told by a connection that is made and dropped. The source's QEMU connects from its own host, which need not be
//! this one.

use crate::endpoint::{Address, DialError, dial};
use std::{io::ErrorKind, time::Duration};

/// How long a host may take to say that nobody listens.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a connection to a port came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// The host is there, and nobody listens.
    Free,
    /// Someone listens already.
    Taken,
    /// The host does not answer, or is not known.
    Unreachable(String),
}

/// Looks at a port; a unix socket has none.
pub async fn look(address: &Address) -> Option<PortState> {
    let Address::Tcp { .. } = address else { return None };
    Some(match dial(address, PATIENCE).await {
        Ok(_) => PortState::Taken,
        Err(DialError::Refused { .. }) => PortState::Free,
        // the port is there, and its host says no in another way
        Err(DialError::Io { source, .. }) if source.kind() == ErrorKind::ConnectionReset => PortState::Free,
        Err(error) => PortState::Unreachable(crate::progress::describe(&error)),
    })
}
