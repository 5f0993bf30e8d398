//! Connections to addresses.
//!
//! Owns the connect, its deadline, and errors that name the remedy. This module never sends a byte and never retries.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::address::Address;
use super::peer::PeerPid;
use super::unseen::UnseenProcess;

/// A connected byte stream of any kind.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// A new connection.
pub struct Dialed {
    /// The stream.
    pub stream: Box<dyn Socket>,
    /// The process behind a unix socket, where the kernel names it.
    pub peer: Option<PeerPid>,
    /// Why there is no such process.
    pub unseen: Option<UnseenProcess>,
}

impl std::fmt::Debug for Dialed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialed").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Why an address could not be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// There is no such socket.
    #[error("there is no socket at {address}: is QEMU running, and was it started with this -qmp?")]
    Missing {
        /// The address.
        address: Address,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Nobody listens.
    #[error("nobody listens at {address}: QEMU has exited and left its socket behind, or is not up yet")]
    Refused {
        /// The address.
        address: Address,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Another kind of file is there.
    #[error(
        "{address} is {kind} and no socket: give the path of the socket in QEMU's -qmp unix:PATH,server=on,wait=off"
    )]
    NotASocket {
        /// The address.
        address: Address,
        /// The kind of file, with its article.
        kind: &'static str,
    },
    /// The caller may not connect.
    #[error("no permission to connect to {address}: run as QEMU's user, or as one who may write to its socket")]
    Permission {
        /// The address.
        address: Address,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The connection was not accepted in time.
    #[error("{address} did not accept a connection within {waited:?}: its queue is full or its host does not answer")]
    TimedOut {
        /// The address.
        address: Address,
        /// The deadline.
        waited: Duration,
    },
    /// The embedder's own connector failed.
    #[error("the connector of {name} failed")]
    Connector {
        /// The endpoint's name.
        name: String,
        /// The connector's error.
        #[source]
        source: io::Error,
    },
    /// A journal knows a side by the name of its connector alone.
    #[error(
        "`{name}` is no address but the name of a connector, which only the program that began the migration has: \
         recover with that program, which gives `Recovery::{side}` an endpoint"
    )]
    OnlyByConnector {
        /// The endpoint's name.
        name: String,
        /// The side, as the method of `Recovery` is called.
        side: &'static str,
    },
    /// The embedder's own connector took too long.
    #[error("the connector of {name} made no connection within {waited:?}")]
    ConnectorTimedOut {
        /// The endpoint's name.
        name: String,
        /// The deadline.
        waited: Duration,
    },
    /// Any other error.
    #[error("cannot connect to {address}")]
    Io {
        /// The address.
        address: Address,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Connects to `address` within `deadline`.
///
/// # Errors
/// See [`DialError`]; each names the address and what to do.
pub async fn dial(address: &Address, deadline: Duration) -> Result<Dialed, DialError> {
    let address = address.clone();
    match timeout(deadline, connect(&address)).await {
        Ok(Ok(dialed)) => Ok(dialed),
        Ok(Err(source)) => Err(match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => DialError::Missing { address, source },
            io::ErrorKind::ConnectionRefused => match other_kind(&address) {
                Some(kind) => DialError::NotASocket { address, kind },
                None => DialError::Refused { address, source },
            },
            io::ErrorKind::PermissionDenied => DialError::Permission { address, source },
            _ => DialError::Io { address, source },
        }),
        Err(_) => Err(DialError::TimedOut { address, waited: deadline }),
    }
}

async fn connect(address: &Address) -> io::Result<Dialed> {
    match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await?;
            let peer = peer_of(&stream);
            let unseen = peer.is_none().then_some(UnseenProcess::OtherNamespace);
            Ok(Dialed { stream: Box::new(stream), peer, unseen })
        }
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            // Commands are small and each reply is waited for: a delayed segment would lengthen the guest's pause.
            stream.set_nodelay(true)?;
            Ok(Dialed { stream: Box::new(stream), peer: None, unseen: Some(UnseenProcess::OverNetwork) })
        }
    }
}

/// The kind of file at the path of an address, where that is no socket.
fn other_kind(address: &Address) -> Option<&'static str> {
    let Address::Unix(path) = address else { return None };
    let kind = std::fs::metadata(path).ok()?.file_type();
    match () {
        () if kind.is_socket() => None,
        () if kind.is_dir() => Some("a folder"),
        () if kind.is_file() => Some("a plain file"),
        () => Some("a device or a pipe"),
    }
}

/// The process behind a socket. An unknown peer is no error: the end of its stream still tells of its death.
fn peer_of(stream: &UnixStream) -> Option<PeerPid> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials).ok()?;
    PeerPid::open(credentials.pid()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixListener};

    const LONG: Duration = Duration::from_secs(20);

    async fn error_of(address: &str) -> DialError {
        dial(&address.parse().unwrap(), LONG).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_unix_socket_names_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut dialed = dial(&Address::unix(&path).unwrap(), LONG).await.unwrap();
        let peer = dialed.peer.take().unwrap();
        assert_eq!(peer.pid(), std::process::id());
        assert!(!peer.has_died());
        let (mut accepted, _) = listener.accept().await.unwrap();
        accepted.write_all(b"x").await.unwrap();
        assert_eq!(dialed.stream.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_tcp_port_has_no_process() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dialed = dial(&format!("tcp:127.0.0.1:{port}").parse().unwrap(), LONG).await.unwrap();
        assert!(dialed.peer.is_none());
        drop(listener);
        let error = error_of(&format!("tcp:127.0.0.1:{port}")).await;
        assert!(matches!(error, DialError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(&port.to_string()));
    }

    #[tokio::test]
    async fn missing_stale_and_forbidden_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp.sock");
        let text = path.to_str().unwrap().to_owned();
        assert!(matches!(error_of(&text).await, DialError::Missing { .. }));
        let folder = error_of(directory.path().to_str().unwrap()).await;
        assert!(matches!(folder, DialError::NotASocket { kind: "a folder", .. }), "{folder:?}");
        std::fs::write(directory.path().join("file"), "").unwrap();
        let file = error_of(&format!("{}/file", directory.path().display())).await;
        assert!(matches!(file, DialError::NotASocket { kind: "a plain file", .. }), "{file:?}");
        assert!(matches!(error_of("/dev/null").await, DialError::NotASocket { .. }));
        let below = format!("{}/file/qmp.sock", directory.path().display());
        assert!(matches!(error_of(&below).await, DialError::Missing { .. }));
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(error_of(&text).await, DialError::Refused { .. }));
        // Permissions do not bind root, for whom the stale socket still refuses.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
        let error = error_of(&text).await;
        assert!(matches!(error, DialError::Permission { .. } | DialError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(&text));
    }
}
