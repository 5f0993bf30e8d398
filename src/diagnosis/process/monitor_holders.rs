//! Who holds a monitor that does not greet: the clients that QEMU has accepted at its socket.
//!
//! Looks alone, at this host. QEMU serves one client at a time, so a client that QEMU has accepted holds the monitor;
//! one that waits to be accepted has a socket at its own end only.

use super::{
    socket_owners::{ProgramLook, SocketOwners},
    tcp_table::{ConnectionLook, ConnectionState, tcp_connections},
    unix_table::{UnixSocket, unix_sockets},
};
use crate::endpoint::{Address, Endpoint};
use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt, path::Path};

/// What is known of the clients of a monitor.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::diagnosis) struct MonitorHolders {
    /// The processes of clients.
    pub(in crate::diagnosis) programs: Vec<ProgramLook>,
    /// The addresses of clients on other hosts, or in other network namespaces.
    pub(in crate::diagnosis) elsewhere: Vec<String>,
    /// How many clients QEMU has accepted, without this program's own; `None` where that could not be found out.
    pub(in crate::diagnosis) accepted: Option<usize>,
    /// Whether a connection of this program's own was accepted.
    pub(in crate::diagnosis) own: bool,
    /// Whether processes are hidden from this user among which the client may be.
    pub(in crate::diagnosis) hidden: bool,
}

impl MonitorHolders {
    /// Looks who is connected to a monitor of this host.
    pub(in crate::diagnosis) fn find(at: &Endpoint) -> Self {
        match at {
            Endpoint::Address(Address::Unix(path)) => match unix_sockets() {
                Ok(sockets) => {
                    let file = fs::metadata(path).map(|data| data.ino()).ok();
                    match sockets.iter().any(|socket| is_at(socket, path, file)) {
                        true => Self::of(&accepted_at(&sockets, path, file), Vec::new()),
                        // a listener that is not seen is of another network namespace
                        false => Self::default(),
                    }
                }
                Err(_) => Self::default(),
            },
            Endpoint::Address(Address::Tcp { host, port }) if is_local(host) => {
                let sockets = tcp_connections(Path::new("/proc/self"));
                let listens =
                    |socket: &&ConnectionLook| socket.state == ConnectionState::Listening && socket.local_port == *port;
                if !sockets.iter().any(|socket| listens(&socket)) {
                    return Self::default();
                }
                let clients = accepted_on(&sockets, *port);
                let elsewhere = clients.iter().filter(|(inode, _)| inode.is_none()).map(|(_, from)| from.clone());
                Self::of(&clients.iter().filter_map(|(inode, _)| *inode).collect(), elsewhere.collect())
            }
            _ => Self::default(),
        }
    }

    /// Whether a client waits to be accepted at a monitor of this host; `false` where that cannot be seen.
    pub(in crate::diagnosis) fn is_waited_for(at: &Endpoint) -> bool {
        match at {
            Endpoint::Address(Address::Unix(path)) => {
                let file = fs::metadata(path).map(|data| data.ino()).ok();
                let sockets = unix_sockets().unwrap_or_default();
                sockets.iter().any(|socket| !socket.connected && is_at(socket, path, file) && socket.waiting > 0)
            }
            Endpoint::Address(Address::Tcp { host, port }) if is_local(host) => {
                // the kernel counts the clients of a socket that listens where it counts the bytes of others
                tcp_connections(Path::new("/proc/self")).iter().any(|socket| {
                    socket.state == ConnectionState::Listening && socket.local_port == *port && socket.unread > 0
                })
            }
            _ => false,
        }
    }

    /// The processes of these sockets. This process's own connection may have been accepted by a QEMU that hangs later.
    fn of(clients: &BTreeSet<u64>, elsewhere: Vec<String>) -> Self {
        let owners = SocketOwners::find(clients);
        let own = std::process::id();
        let is_own = |inode: &u64| owners.of(*inode).any(|owner| owner.pid == own);
        let own_count = clients.iter().filter(|inode| is_own(inode)).count();
        let accepted = clients.len() - own_count + elsewhere.len();
        let programs: BTreeSet<ProgramLook> =
            clients.iter().flat_map(|inode| owners.of(*inode)).filter(|owner| owner.pid != own).cloned().collect();
        let hidden = owners.hidden && programs.is_empty();
        let programs = programs.into_iter().collect();
        Self { programs, elsewhere, accepted: Some(accepted), own: own_count > 0, hidden }
    }
}

/// The clients' ends of the connections that were accepted at a path.
fn accepted_at(sockets: &[UnixSocket], path: &Path, file: Option<u64>) -> BTreeSet<u64> {
    let accepted = sockets.iter().filter(|socket| socket.connected && is_at(socket, path, file));
    accepted.filter_map(|socket| socket.peer).collect()
}

/// Whether a socket is bound to a path. A QEMU may have bound it by another path that leads to the same file.
fn is_at(socket: &UnixSocket, path: &Path, file: Option<u64>) -> bool {
    let same_name = |bound: &Path| bound.file_name() == path.file_name();
    socket
        .path
        .as_deref()
        .map(Path::new)
        .is_some_and(|bound| bound == path || socket.file.is_some() && socket.file == file && same_name(bound))
}

/// The clients of the connections that were accepted on a port: the inode of the client's end, and its address.
fn accepted_on(sockets: &[ConnectionLook], port: u16) -> Vec<(Option<u64>, String)> {
    let accepted =
        sockets.iter().filter(|socket| socket.state == ConnectionState::Established && socket.local_port == port);
    accepted
        .filter(|socket| socket.inode != 0)
        .map(|server| {
            let client = sockets.iter().find(|other| other.local == server.remote && other.remote == server.local);
            (client.map(|client| client.inode).filter(|inode| *inode != 0), server.remote.clone())
        })
        .collect()
}

/// Whether a host's name can only mean this host.
fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::{TcpListener, TcpStream},
        os::unix::net::{UnixListener, UnixStream},
    };

    #[test]
    fn a_client_that_was_accepted_holds_the_monitor() {
        let row = |inode, path: Option<&str>, peer, connected| UnixSocket {
            inode,
            path: path.map(str::to_owned),
            file: path.map(|_| 7),
            peer,
            connected,
            ..UnixSocket::default()
        };
        let sockets = [
            row(1, Some("/run/qmp"), None, false),
            row(2, Some("/run/qmp"), Some(3), true),
            row(3, None, Some(2), true),
            row(4, None, None, true),
            row(5, Some("/run/other"), Some(6), true),
        ];
        assert_eq!(accepted_at(&sockets, Path::new("/run/qmp"), Some(7)), [3].into());
        // the same file by another path
        assert_eq!(accepted_at(&sockets, Path::new("/var/run/qmp"), Some(7)), [3].into());
        assert_eq!(accepted_at(&sockets, Path::new("/var/run/qmp"), Some(8)), BTreeSet::new());
        // a listener that is not seen is not spoken of
        let elsewhere = Endpoint::from(Address::unix("/run/no-such-qmp").expect("an address"));
        assert_eq!(MonitorHolders::find(&elsewhere), MonitorHolders::default());
    }

    #[test]
    fn the_own_connection_is_none_of_the_holders() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("a listener");
        let client = UnixStream::connect(&path).expect("a client");
        let at = Endpoint::from(Address::unix(&path).expect("an address"));
        let waits = MonitorHolders::find(&at);
        assert_eq!((waits.accepted, waits.own), (Some(0), false), "{waits:?}");
        assert!(MonitorHolders::is_waited_for(&at));
        let accepted = listener.accept().expect("a connection");
        assert!(!MonitorHolders::is_waited_for(&at));
        let found = MonitorHolders::find(&at);
        assert_eq!((found.accepted, found.own, found.programs.len()), (Some(0), true, 0), "{found:?}");
        drop((client, accepted));

        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let client = TcpStream::connect(("127.0.0.1", port)).expect("a client");
        let at = Endpoint::from(Address::Tcp { host: "127.0.0.1".to_owned(), port });
        assert!(MonitorHolders::is_waited_for(&at));
        let accepted = listener.accept().expect("a connection");
        let clients = accepted_on(&tcp_connections(Path::new("/proc/self")), port);
        assert_eq!(clients.len(), 1);
        assert_eq!(clients[0].1, client.local_addr().expect("an address").to_string());
        assert!(clients[0].0.is_some());
        drop(accepted);
    }
}
