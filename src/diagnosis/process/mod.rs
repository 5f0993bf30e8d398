//! What the kernel tells of a QEMU process and of those that it is connected with, by `/proc` and by netlink.
//!
//! Owns the reading of one host's tables; it takes part in nothing else, and needs no monitor. Without root the kernel
//! tells all of this of the user's own processes alone. Each table is read up to a bound.

mod command_words;
mod image_locks;
mod monitor_holders;
mod open_files;
mod process_look;
mod socket_owners;
mod socket_peers;
mod tap_counters;
mod tcp_table;
mod threads;
mod unix_table;

pub(super) use monitor_holders::MonitorHolders;
pub(super) use open_files::OpenFileLook;
pub(super) use process_look::ProcessLook;
pub(super) use socket_owners::{ProgramLook, SocketPeer};
pub(super) use socket_peers::UnixConnectionLook;
#[cfg(test)]
pub(super) use tap_counters::TapLook;
pub(super) use tcp_table::{ConnectionLook, ConnectionState, TcpTimer};
pub(super) use threads::ThreadLook;
