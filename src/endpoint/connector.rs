//! How an embedder says where a QMP monitor is: by its address, or by code of its own that connects.
//!
//! Owns [`Endpoint`] and the dialling of either kind. A connection that was made in advance is not taken: a monitor
//! that closed must be reached again, and a stream belongs to the runtime that made it.

use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::address::Address;
use super::dial::{DialError, Dialed, Socket, dial};
use super::peer::PeerPid;
use super::process_handle::ProcessHandle;
use super::unseen::UnseenProcess;

/// Where the QMP monitor of a QEMU is.
#[derive(Clone)]
#[non_exhaustive]
pub enum Endpoint {
    /// An address to dial.
    Address(Address),
    /// Code of the embedder that connects.
    Connector {
        /// Its name in messages and in the journal.
        name: String,
        /// Makes a connection, and another one where a monitor has closed.
        connect: Arc<dyn Connect>,
        /// The QEMU process itself, if the embedder knows it: its death is then proof that the guest does not run
        /// there, the two QEMUs are taken to be on this host, and it is killed where it must not run the guest and
        /// does not answer. Never a proxy's or a forwarder's process.
        process: Option<ProcessHandle>,
    },
}

/// A connection on its way.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Socket>>> + Send + 'a>>;

/// Connects to a QMP monitor.
///
/// Every `Fn() -> impl Future<Output = io::Result<impl Socket>>` is one.
pub trait Connect: Send + Sync {
    /// Makes a new connection, of which nothing has been read yet, not even QEMU's greeting.
    ///
    /// The engine's own runtime polls the future, so a stream of tokio's belongs to the engine. The call comes again
    /// whenever a monitor has closed in the middle of a migration, and must then lead to the same QEMU.
    fn connect(&self) -> Connecting<'_>;
}

impl<F, C, S> Connect for F
where
    F: Fn() -> C + Send + Sync,
    C: Future<Output = io::Result<S>> + Send + 'static,
    S: Socket + 'static,
{
    fn connect(&self) -> Connecting<'_> {
        let connecting = self();
        Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Socket>) })
    }
}

impl Endpoint {
    /// An endpoint whose connections `connect` makes.
    pub fn connector(name: impl Into<String>, connect: impl Connect + 'static) -> Self {
        Self::Connector { name: name.into(), connect: Arc::new(connect), process: None }
    }

    /// Whether both lead to one socket, by whatever names.
    pub(crate) fn is_same_socket(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address(Address::Unix(one)), Self::Address(Address::Unix(two))) => {
                let file = |path: &PathBuf| std::fs::metadata(path).map(|data| (data.dev(), data.ino())).ok();
                one == two || file(one).is_some_and(|found| file(two) == Some(found))
            }
            (Self::Address(one), Self::Address(two)) => one == two,
            _ => false,
        }
    }

    /// The same endpoint, whose QEMU is this process. An address finds its process by itself, and stays as it is.
    #[must_use]
    pub fn with_process(self, handle: ProcessHandle) -> Self {
        match self {
            Self::Connector { name, connect, .. } => Self::Connector { name, connect, process: Some(handle) },
            Self::Address(_) => self,
        }
    }

    /// Connects within `deadline`, within a tokio runtime. The peer is QEMU itself, and never a forwarder.
    pub(crate) async fn dial(&self, deadline: Duration) -> Result<Dialed, DialError> {
        match self {
            Self::Address(address) => {
                let Dialed { stream, peer, unseen } = dial(address, deadline).await?;
                // a forwarder's death would prove nothing
                let other = peer.as_ref().and_then(PeerPid::other_program);
                Ok(Dialed { stream, peer: peer.filter(|_| other.is_none()), unseen: unseen.or(other) })
            }
            Self::Connector { name, connect, process } => match timeout(deadline, connect.connect()).await {
                Ok(Ok(stream)) => {
                    let peer = process.as_ref().and_then(|handle| PeerPid::watch(handle).ok());
                    let unseen = peer.is_none().then_some(UnseenProcess::NotGiven);
                    Ok(Dialed { stream, peer, unseen })
                }
                Ok(Err(source)) => Err(DialError::Connector { name: name.clone(), source }),
                Err(_) => Err(DialError::ConnectorTimedOut { name: name.clone(), waited: deadline }),
            },
        }
    }
}

impl From<Address> for Endpoint {
    fn from(address: Address) -> Self {
        Self::Address(address)
    }
}

/// The address, or the connector's name.
impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Connector { name, .. } => f.write_str(name),
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => f.debug_tuple("Address").field(address).finish(),
            Self::Connector { name, process, .. } => {
                let mut shown = f.debug_struct("Connector");
                shown.field("name", name).field("process", process).finish_non_exhaustive()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn a_connector_is_called_for_each_connection() {
        let endpoint = Endpoint::connector("duplex", || async {
            let (near, mut far) = duplex(16);
            far.write_all(b"x").await?;
            Ok(near)
        });
        for _ in 0..2 {
            let mut dialed = endpoint.dial(Duration::from_secs(20)).await.unwrap();
            assert_eq!((dialed.stream.read_u8().await.unwrap(), dialed.peer.is_none()), (b'x', true));
        }
        assert_eq!(endpoint.to_string(), "duplex");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connector_that_fails_or_waits_is_named() {
        let refuses =
            Endpoint::connector("vm1", || async { Err::<tokio::io::DuplexStream, _>(io::Error::other("no tunnel")) });
        let error = refuses.dial(Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(&error, DialError::Connector { name, .. } if name == "vm1"), "{error:?}");
        let waits = Endpoint::connector("vm2", std::future::pending::<io::Result<tokio::io::DuplexStream>>);
        let error = waits.dial(Duration::from_secs(1)).await.unwrap_err();
        assert!(error.to_string().contains("vm2"), "{error}");
    }
}
