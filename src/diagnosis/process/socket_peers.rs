//! The connections of one process, and the processes at their other ends.

use super::{
    socket_owners::{SocketOwners, SocketPeer},
    tcp_table::{ConnectionLook, ConnectionState, tcp_connections},
    threads::{held, thread},
    unix_table::{UnixSocket, unix_sockets},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The most connections that are told of one process.
const MOST: usize = 1024;

/// A unix socket of a process, connected with another one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::diagnosis) struct UnixConnectionLook {
    /// The path of the end that has one.
    pub(in crate::diagnosis) path: Option<String>,
    /// Bytes that the other end has not read.
    pub(in crate::diagnosis) unsent: u64,
    /// Bytes that the process has not read.
    pub(in crate::diagnosis) unread: u64,
    pub(in crate::diagnosis) peer: SocketPeer,
}

/// The TCP connections of a process, without their peers.
pub(super) fn own_connections(root: &Path, inodes: &BTreeSet<u64>) -> Vec<ConnectionLook> {
    tcp_connections(root).into_iter().filter(|row| inodes.contains(&row.inode)).take(MOST).collect()
}

/// The connections of a process, each with its peer, and what stood in the way.
pub(super) fn with_peers(
    root: &Path,
    inodes: &BTreeSet<u64>,
) -> (Vec<ConnectionLook>, Vec<UnixConnectionLook>, Option<String>) {
    let table = tcp_connections(root);
    // the socket at the other end of each connection, where it is in the same table
    let by_ends: BTreeMap<(&str, &str), u64> =
        table.iter().map(|row| ((row.local.as_str(), row.remote.as_str()), row.inode)).collect();
    let mut connections: Vec<ConnectionLook> =
        table.iter().filter(|row| inodes.contains(&row.inode)).take(MOST).cloned().collect();
    let far_ends: Vec<Option<u64>> =
        connections.iter().map(|row| by_ends.get(&(row.remote.as_str(), row.local.as_str())).copied()).collect();

    // the kernel lists the unix sockets of the namespace of the one who asks
    let (sockets, hidden) = match is_of_this_network(root) {
        true => match unix_sockets() {
            Ok(sockets) => (sockets, None),
            Err(error) => (Vec::new(), Some(format!("its unix sockets: {error}"))),
        },
        false => (Vec::new(), Some("its unix sockets: they are in another network namespace".to_owned())),
    };
    let by_inode: BTreeMap<u64, &UnixSocket> = sockets.iter().map(|socket| (socket.inode, socket)).collect();
    let own = sockets.iter().filter(|socket| socket.connected && inodes.contains(&socket.inode)).take(MOST);
    let own: Vec<&UnixSocket> = own.collect();

    let wanted = far_ends.iter().flatten().copied().chain(own.iter().filter_map(|socket| socket.peer));
    let owners = SocketOwners::find(&wanted.filter(|inode| *inode != 0).collect());
    let peer = |inode: u64| match owners.of(inode).next() {
        Some(program) => SocketPeer::Process { program: program.clone(), held: state(program.pid) },
        None if owners.hidden => SocketPeer::Hidden,
        None => SocketPeer::Nobody,
    };
    for (row, far) in connections.iter_mut().zip(&far_ends) {
        row.peer = match far {
            _ if row.state == ConnectionState::Listening => SocketPeer::Unknown,
            Some(0) => SocketPeer::Nobody,
            Some(inode) => peer(*inode),
            None => SocketPeer::Elsewhere,
        };
    }
    let unix = own.into_iter().map(|socket| UnixConnectionLook {
        path: socket.path.clone().or_else(|| by_inode.get(&socket.peer?)?.path.clone()),
        unsent: socket.unsent,
        unread: socket.unread,
        peer: socket.peer.map_or(SocketPeer::Nobody, peer),
    });
    (connections, unix.collect(), hidden)
}

/// What holds a process of this host; `None` where it runs.
fn state(pid: u32) -> Option<&'static str> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    held(&folder, thread(&folder)?.state)
}

/// Whether a process is in the network namespace of this one; taken for granted where that may not be read.
fn is_of_this_network(root: &Path) -> bool {
    match (fs::read_link(root.join("ns/net")), fs::read_link("/proc/self/ns/net")) {
        (Ok(theirs), Ok(own)) => theirs == own,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
        os::unix::net::UnixStream,
    };

    #[test]
    fn both_ends_of_a_connection_are_found_with_their_queues() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a client");
        let (mut accepted, _) = listener.accept().expect("a connection");
        accepted.write_all(b"seven b").expect("room");
        let (near, mut far) = UnixStream::pair().expect("a pair");
        far.write_all(b"five!").expect("room");
        let root = Path::new("/proc/self");
        let inodes = super::super::socket_owners::sockets_of(root).expect("descriptors");
        let (tcp, unix, hidden) = with_peers(root, &inodes);
        let port = client.local_addr().expect("an address").port();
        let row = tcp.iter().find(|row| row.local_port == port && row.state == ConnectionState::Established);
        let row = row.expect("a connection");
        let is_own = |peer: &SocketPeer| matches!(peer, SocketPeer::Process { program, held: None } if program.pid == std::process::id());
        assert!(is_own(&row.peer) && row.unread == 7, "{row:?}");
        assert!(unix.iter().any(|row| is_own(&row.peer) && row.unread == 5), "{unix:?}");
        assert_eq!(hidden, None);
        // the other end is gone
        drop(accepted);
        let (tcp, _, _) = with_peers(root, &inodes);
        let row = tcp.iter().find(|row| row.local_port == port);
        assert!(row.is_none_or(|row| !is_own(&row.peer)), "{row:?}");
        drop(near);
    }
}
