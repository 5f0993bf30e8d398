//! The TCP connections of a network namespace, by `/proc/PID/net`.

use super::socket_owners::SocketPeer;
use std::{fs::File, io::Read, path::Path};

/// The most bytes of a table that are read, and the most connections.
const BYTES: u64 = 32 << 20;
const ROWS: usize = 65_536;

/// A TCP connection.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::diagnosis) struct ConnectionLook {
    pub(in crate::diagnosis) local: String,
    pub(in crate::diagnosis) local_port: u16,
    pub(in crate::diagnosis) remote: String,
    /// The remote port, which tells NBD from RAM.
    pub(in crate::diagnosis) remote_port: u16,
    pub(in crate::diagnosis) state: ConnectionState,
    /// Bytes that the peer has not acknowledged.
    pub(in crate::diagnosis) unsent: u64,
    /// Bytes that the process has not read.
    pub(in crate::diagnosis) unread: u64,
    /// Segments that were sent again without an answer.
    pub(in crate::diagnosis) retransmits: u64,
    pub(in crate::diagnosis) timer: TcpTimer,
    /// The socket's inode; 0 where no process has it.
    pub(in crate::diagnosis) inode: u64,
    /// Who has the other end, where that was looked for.
    pub(in crate::diagnosis) peer: SocketPeer,
}

/// The state of a TCP connection, as far as a rule asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::diagnosis) enum ConnectionState {
    Established,
    /// The other side has not answered the first segment.
    SynSent,
    Listening,
    #[default]
    Other,
}

/// What the kernel waits for on a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::diagnosis) enum TcpTimer {
    #[default]
    Off,
    /// What was sent is to be acknowledged, and is sent again otherwise.
    Acknowledgement,
    /// The next probe of a connection that is silent.
    KeepAlive,
    /// The peer has no room, and is asked for it: the process there does not read.
    Room,
    Other,
}

impl std::fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Established => "established",
            Self::SynSent => "no answer yet",
            Self::Listening => "listening",
            Self::Other => "closing",
        })
    }
}

/// The connections of the network namespace of the process whose folder this is.
pub(super) fn tcp_connections(root: &Path) -> Vec<ConnectionLook> {
    let mut found = Vec::new();
    for (file, wide) in [("net/tcp", false), ("net/tcp6", true)] {
        let mut table = String::new();
        // a table that is cut off in the middle of a line loses that line
        if let Ok(file) = File::open(root.join(file)) {
            file.take(BYTES).read_to_string(&mut table).ok();
        }
        found.extend(connections(&table, wide).take(ROWS));
    }
    found
}

fn connections(table: &str, wide: bool) -> impl Iterator<Item = ConnectionLook> {
    table.lines().skip(1).filter_map(move |line| connection(line, wide))
}

fn connection(line: &str, wide: bool) -> Option<ConnectionLook> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let (unsent, unread) = fields.get(4)?.split_once(':')?;
    let state = match *fields.get(3)? {
        "01" => ConnectionState::Established,
        "02" => ConnectionState::SynSent,
        "0A" => ConnectionState::Listening,
        _ => ConnectionState::Other,
    };
    let timer = match fields.get(5)?.split_once(':')?.0 {
        "00" => TcpTimer::Off,
        "01" => TcpTimer::Acknowledgement,
        "02" => TcpTimer::KeepAlive,
        "04" => TcpTimer::Room,
        _ => TcpTimer::Other,
    };
    let (local, local_port) = address(fields.get(1)?, wide)?;
    let (remote, remote_port) = address(fields.get(2)?, wide)?;
    Some(ConnectionLook {
        local,
        local_port,
        remote,
        remote_port,
        state,
        unsent: hexadecimal(unsent)?,
        unread: hexadecimal(unread)?,
        retransmits: hexadecimal(fields.get(6)?)?,
        timer,
        inode: fields.get(9)?.parse().ok()?,
        peer: SocketPeer::default(),
    })
}

/// An address of the table, as `HOST:PORT`, and its port. The kernel writes each 32 bits in the host's byte order.
fn address(text: &str, wide: bool) -> Option<(String, u16)> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if host.len() != if wide { 32 } else { 8 } || !host.is_ascii() {
        return None;
    }
    let words: Option<Vec<[u8; 4]>> = (0..host.len() / 8)
        .map(|word| u32::from_str_radix(&host[word * 8..word * 8 + 8], 16).ok().map(u32::to_ne_bytes))
        .collect();
    let bytes = words?.concat();
    let host = match <[u8; 16]>::try_from(bytes.as_slice()) {
        Ok(bytes) => {
            let host = std::net::Ipv6Addr::from(bytes);
            host.to_ipv4_mapped().map_or_else(|| format!("[{host}]"), |host| host.to_string())
        }
        Err(_) => std::net::Ipv4Addr::from(<[u8; 4]>::try_from(bytes.as_slice()).ok()?).to_string(),
    };
    Some((format!("{host}:{port}"), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_connections_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 0200007F:2A38 01 0000A000:00000007 04:00000014 00000003  0  0 77 1 0 20 4 30 10 -1\n\
             1: 0100007F:1F91 0200007F:2A39 02 00000001:00000000 01:00000014 00000003  0  0 78 1 0 20 4 30 10 -1\n\
             2: torn\n";
        let found: Vec<ConnectionLook> = connections(table, false).collect();
        let expected = ConnectionLook {
            local: "127.0.0.1:8080".to_owned(),
            local_port: 8080,
            remote: "127.0.0.2:10808".to_owned(),
            remote_port: 10808,
            state: ConnectionState::Established,
            unsent: 0xa000,
            unread: 7,
            retransmits: 3,
            timer: TcpTimer::Room,
            inode: 77,
            peer: SocketPeer::Unknown,
        };
        assert_eq!((found.len(), &found[0]), (2, &expected));
        assert_eq!((found[1].state, found[1].timer), (ConnectionState::SynSent, TcpTimer::Acknowledgement));
        let wide = "0000000000000000FFFF00000100007F:1F90";
        assert_eq!(address(wide, true), Some(("127.0.0.1:8080".to_owned(), 8080)));
        assert_eq!(address("00000000000000000000000001000000:0001", true), Some(("[::1]:1".to_owned(), 1)));
        assert_eq!(address("0100007F:1F90", true), None);
    }
}
