//! The QMP wire: bytes in, commands, replies and events out.
//!
//! Owns the protocol and nothing above it: framing, ids, deadlines, the out-of-band lane, the event stream, the end of
//! the stream and the transcript. It knows no command but `qmp_capabilities`, decodes no reply beyond "returned" or
//! "refused", and never decides what a silent QEMU means: it reports whether a command left this process and how long
//! the caller waited.
//!
//! ```text
//!   QmpClient --QueuedCommand--> connection task --bytes--> QEMU
//!      PendingReply <--reply--   |   <--lines--
//!      EventStream  <--QmpEvent-----+----> Recorder
//! ```
//!
//! One task owns the socket. Replies are matched by id and never wait for whoever consumes events. A command is
//! *indeterminate* once it may be on the wire without an answer, see [`ExecuteError::NoReply`].

mod client;
mod connection;
mod counters;
mod events;
pub mod frame;
mod pending;
mod redact;
mod request;
pub mod transcript;
mod waiters;

pub use client::{ConnectError, QmpClient, QmpOptions};
pub use connection::CloseCause;
pub use counters::ConnectionCounters;
pub use events::{EventStream, QmpEvent, StreamItem};
pub use frame::{ErrorClass, Greeting, QemuVersion};
pub use pending::{ExecuteError, PendingReply};
pub use request::{EncodeError, QmpRequest};
pub use transcript::Recorder;
