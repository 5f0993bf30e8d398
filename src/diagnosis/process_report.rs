//! A process in the result of a diagnosis.
//!
//! Pure.

use super::process::{
    ConnectionState, OpenFileLook, ProcessLook, SocketPeer, TcpTimer, ThreadLook, UnixConnectionLook,
};
use serde::Serialize;
use std::time::Duration;

/// The ticks of the kernel in a second, as `/proc` counts for every program.
const TICKS: f64 = 100.0;

/// A process, as the kernel tells of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ProcessReport {
    /// The pid.
    pub pid: u32,
    /// Its command line, without secrets.
    pub command: Vec<String>,
    /// The threads, the busiest first.
    pub threads: Vec<ThreadReport>,
    /// Its connections over TCP and unix sockets.
    pub sockets: Vec<SocketReport>,
    /// The files and block devices that it has open.
    pub images: Vec<OpenFileReport>,
    /// Bytes that it may lock; absent without a limit.
    pub memlock_limit: Option<u64>,
    /// Descriptors that it may have; absent without a limit.
    pub descriptor_limit: Option<u64>,
    /// Descriptors that it has.
    pub descriptors: Option<usize>,
}

/// A thread.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ThreadReport {
    /// Its name, such as `CPU 0/KVM` or `mig/src/main`.
    pub name: String,
    /// Its state, as `ps` writes it.
    pub state: char,
    /// The part of the time between two looks that it was on a CPU, per cent; absent for one that was seen once.
    pub cpu_pct: Option<f64>,
    /// The function of the kernel, or the call to it, in which it waits.
    pub waits_in: Option<String>,
}

/// A connection.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SocketReport {
    /// `tcp` or `unix`.
    pub kind: &'static str,
    /// The own address, or the path.
    pub local: String,
    /// The other end's address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remote: String,
    /// The state of the connection.
    pub state: String,
    /// Bytes that the other end has not taken.
    pub unsent: u64,
    /// Bytes that the process has not read.
    pub unread: u64,
    /// How often the oldest of these bytes were sent again without an answer.
    pub retransmits: u64,
    /// What the kernel waits for on the connection: `acknowledgement`, `room`, `keep-alive`, or absent.
    pub timer: Option<&'static str>,
    /// Who has the other end.
    pub peer: String,
    /// The process at the other end, where it is one of this host.
    pub peer_pid: Option<u32>,
}

/// An open file or block device.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OpenFileReport {
    /// The path, as the kernel has it.
    pub path: String,
    /// Whether it was opened for writing.
    pub writable: bool,
}

impl ProcessReport {
    pub(super) fn of(process: &ProcessLook, earlier: Option<&(ProcessLook, Duration)>) -> Self {
        let mut threads: Vec<ThreadReport> = process.threads.iter().map(|thread| of_thread(thread, earlier)).collect();
        // the sort is stable: threads that are as busy stay in the order of their ids
        threads.sort_by(|one, other| other.cpu_pct.unwrap_or_default().total_cmp(&one.cpu_pct.unwrap_or_default()));
        let tcp = process.connections.iter().map(|row| {
            let (peer, peer_pid) = of_peer(&row.peer);
            SocketReport {
                kind: "tcp",
                local: row.local.clone(),
                remote: if row.state == ConnectionState::Listening { String::new() } else { row.remote.clone() },
                state: row.state.to_string(),
                unsent: row.unsent,
                unread: row.unread,
                retransmits: row.retransmits,
                timer: of_timer(row.timer),
                peer,
                peer_pid,
            }
        });
        let unix = process.unix_connections.iter().map(of_unix);
        let image = |file: &OpenFileLook| OpenFileReport { path: file.path.clone(), writable: file.writable };
        Self {
            pid: process.pid,
            command: process.command.clone(),
            threads,
            sockets: tcp.chain(unix).collect(),
            images: process.files.iter().map(image).collect(),
            memlock_limit: process.memlock,
            descriptor_limit: process.most_descriptors,
            descriptors: process.descriptors,
        }
    }
}

fn of_thread(thread: &ThreadLook, earlier: Option<&(ProcessLook, Duration)>) -> ThreadReport {
    let share = earlier.and_then(|(before, span)| {
        let then = before.threads.iter().find(|then| then.id == thread.id)?;
        let seconds = span.as_secs_f64();
        let ticks = thread.ticks.saturating_sub(then.ticks) as f64;
        (seconds > 0.0).then(|| (ticks / TICKS / seconds * 1000.0).round() / 10.0)
    });
    let (name, waits_in) = (thread.name.clone(), thread.waits_in.clone());
    ThreadReport { name, state: thread.state, cpu_pct: share, waits_in }
}

fn of_unix(row: &UnixConnectionLook) -> SocketReport {
    let (peer, peer_pid) = of_peer(&row.peer);
    SocketReport {
        kind: "unix",
        local: row.path.clone().unwrap_or_default(),
        state: ConnectionState::Established.to_string(),
        unsent: row.unsent,
        unread: row.unread,
        peer,
        peer_pid,
        ..SocketReport::default()
    }
}

fn of_timer(timer: TcpTimer) -> Option<&'static str> {
    match timer {
        TcpTimer::Acknowledgement => Some("acknowledgement"),
        TcpTimer::Room => Some("room"),
        TcpTimer::KeepAlive => Some("keep-alive"),
        TcpTimer::Off | TcpTimer::Other => None,
    }
}

fn of_peer(peer: &SocketPeer) -> (String, Option<u32>) {
    match peer {
        SocketPeer::Unknown => (String::new(), None),
        SocketPeer::Elsewhere => ("not of this host, or of another network namespace".to_owned(), None),
        SocketPeer::Nobody => ("no process has the other end".to_owned(), None),
        SocketPeer::Hidden => ("a process of another user: root is told which".to_owned(), None),
        SocketPeer::Process { program, held: None } => (program.to_string(), Some(program.pid)),
        SocketPeer::Process { program, held: Some(held) } => (format!("{program}, {held}"), Some(program.pid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_with_their_part_of_the_time_between_two_looks() {
        let thread = |id, ticks| ThreadLook { id, name: format!("t{id}"), state: 'S', ticks, waits_in: None };
        let look = |threads| ProcessLook { pid: 7, threads, ..ProcessLook::default() };
        let before = look(vec![thread(1, 10), thread(2, 100)]);
        let now = look(vec![thread(1, 10), thread(2, 250), thread(3, 50)]);
        let report = ProcessReport::of(&now, Some(&(before, Duration::from_secs(3))));
        let told: Vec<(&str, Option<f64>)> =
            report.threads.iter().map(|thread| (thread.name.as_str(), thread.cpu_pct)).collect();
        assert_eq!(told, [("t2", Some(50.0)), ("t1", Some(0.0)), ("t3", None)]);
        assert!(ProcessReport::of(&now, None).threads.iter().all(|thread| thread.cpu_pct.is_none()));
    }
}
