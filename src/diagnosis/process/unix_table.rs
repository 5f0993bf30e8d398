//! The unix sockets of this network namespace, each with the socket at its other end, as the kernel tells by netlink.
//!
//! `/proc/net/unix` has no peers. The kernel tells any user; whose sockets they are, `/proc` tells.

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt::ReceiveTimeout},
    time::TimeVal,
};
use std::{
    fs::File,
    io::{self, Read, Write},
};

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`, and the kinds of a message of netlink that end a list.
const BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// A question for a whole list.
const NLM_F_REQUEST_DUMP: u16 = 0x301;
/// What is shown of each socket: its name, its file, its peer, its queues (`UDIAG_SHOW_*` of `linux/unix_diag.h`).
const SHOWN: u32 = 0x1 | 0x2 | 0x4 | 0x10;
/// The attributes that are read (`UNIX_DIAG_*`).
const NAME: u16 = 0;
const FILE: u16 = 1;
const PEER: u16 = 2;
const QUEUES: u16 = 4;
/// The sizes of the headers of netlink, of a socket, and of an attribute.
const HEADER: usize = 16;
const SOCKET: usize = 16;
const ATTRIBUTE: usize = 4;
/// The state of a socket that is connected.
const CONNECTED: u8 = 1;
/// The most bytes of a list that are read.
const MOST: usize = 16 << 20;

/// A unix socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UnixSocket {
    pub(super) inode: u64,
    pub(super) connected: bool,
    /// The path that it is bound to; of an accepted connection, that of its listener.
    pub(super) path: Option<String>,
    /// The inode of the file of that path.
    pub(super) file: Option<u64>,
    /// The inode of the socket at the other end; `None` where no process has accepted it.
    pub(super) peer: Option<u64>,
    /// Bytes that its process has not read.
    pub(super) unread: u64,
    /// Bytes of its process that the other end has not read.
    pub(super) unsent: u64,
    /// Clients that wait to be accepted, of a socket that listens.
    pub(super) waiting: u64,
}

/// Asks the kernel for all unix sockets of this network namespace.
pub(super) fn unix_sockets() -> io::Result<Vec<UnixSocket>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let netlink = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&netlink, ReceiveTimeout, &TimeVal::new(1, 0))?;
    let mut netlink = File::from(netlink);
    netlink.write_all(&question())?;
    let (mut found, mut buffer, mut read) = (Vec::new(), vec![0; 256 << 10], 0);
    while read < MOST {
        let length = netlink.read(&mut buffer)?;
        read += length.max(1);
        if take(buffer.get(..length).unwrap_or_default(), &mut found)? {
            break;
        }
    }
    Ok(found)
}

fn question() -> Vec<u8> {
    let mut bytes = Vec::new();
    // the header of netlink: length, kind, flags, a number, the sender
    bytes.extend(40u32.to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    // unix_diag_req: AF_UNIX, padding, all states, any inode, what is shown, any cookie
    bytes.extend([1, 0, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(SHOWN.to_ne_bytes());
    bytes.extend([0xff; 8]);
    bytes
}

/// Takes the sockets of some messages in; `true` at the end of the list.
fn take(mut bytes: &[u8], found: &mut Vec<UnixSocket>) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let Some(message) = bytes.get(HEADER..length as usize) else { break };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = message.get(..4).and_then(|bytes| Some(i32::from_ne_bytes(bytes.try_into().ok()?)));
                return Err(io::Error::from_raw_os_error(errno.unwrap_or_default().saturating_neg()));
            }
            BY_FAMILY => found.extend(unix_socket(message)),
            _ => {}
        }
        bytes = bytes.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(bytes.is_empty() && found.is_empty())
}

fn unix_socket(message: &[u8]) -> Option<UnixSocket> {
    let mut found = UnixSocket {
        connected: message.get(2) == Some(&CONNECTED),
        inode: u64::from(u32_at(message, 4)?),
        ..UnixSocket::default()
    };
    let mut rest = message.get(SOCKET..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let Some(value) = rest.get(ATTRIBUTE..usize::from(length)) else { break };
        let word = |at| u32_at(value, at).map(u64::from);
        match kind {
            NAME => found.path = path(value),
            FILE => found.file = word(0),
            PEER => found.peer = word(0).filter(|peer| *peer != 0),
            QUEUES if found.connected => {
                (found.unread, found.unsent) = (word(0).unwrap_or_default(), word(4).unwrap_or_default());
            }
            QUEUES => found.waiting = word(0).unwrap_or_default(),
            _ => {}
        }
        rest = rest.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    Some(found)
}

/// A path; an abstract name, which begins with a NUL, is shown with an `@` as other programs do.
fn path(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches('\0');
    let text = text.strip_prefix('\0').map_or_else(|| text.to_owned(), |name| format!("@{name}"));
    Some(text.chars().filter(|c| !c.is_control()).collect::<String>()).filter(|text| !text.is_empty())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    };

    fn inode(fd: &impl AsRawFd) -> u64 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("a link");
        let text = link.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')).expect("a socket");
        text.parse().expect("a number")
    }

    #[test]
    fn a_connection_has_two_ends_and_one_that_waits_has_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("a listener");
        let mut client = UnixStream::connect(&path).expect("a client");
        let waiting = UnixStream::connect(&path).expect("a client");
        let (accepted, _) = listener.accept().expect("a connection");
        client.write_all(b"seven b").expect("room");
        let all = unix_sockets().expect("a list");
        let of = |inode: u64| all.iter().find(|socket| socket.inode == inode).cloned().expect("a socket");
        let (near, far) = (of(inode(&client)), of(inode(&accepted)));
        assert_eq!((near.peer, far.peer), (Some(far.inode), Some(near.inode)));
        assert!(near.connected && far.connected && near.unsent > 0, "{near:?}");
        assert_eq!((far.unread, far.path.as_deref()), (7, path.to_str()));
        assert_eq!(of(inode(&waiting)).peer, None);
        let listens = of(inode(&listener));
        assert!(!listens.connected && listens.waiting == 1, "{listens:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..200), length in 0u32..64) {
            let mut found = Vec::new();
            take(&bytes, &mut found).ok();
            let message = [&length.to_ne_bytes()[..], &BY_FAMILY.to_ne_bytes(), &[0; 10], &bytes].concat();
            take(&message, &mut found).ok();
        }
    }
}
