//! The QMP wire: bytes in, commands, replies and events out.
//!
//! The room owns the protocol and nothing above it: framing, ids, deadlines, out-of-band execution, the event stream,
//! the end of the connection and the transcript. The only command it knows is `qmp_capabilities`. A reply is decoded no
//! further than "returned" or "refused". A silent QEMU is never judged here: callers learn whether their command left
//! this process and how long they have waited.
//!
//! ```text
//!   QmpClient --QueuedCommand--> connection task --bytes--> QEMU
//!      PendingReply <--reply--   |   <--lines--
//!      EventStream  <--QmpEvent--+----> Recorder
//! ```
//!
//! One task owns the socket. Replies are matched by id and never wait for a subscriber to consume events. A command is
//! *indeterminate* once its bytes may be on the wire without an answer, see [`ExecuteError::NoReply`].

mod claim;
mod client;
mod connection;
mod counters;
mod event;
mod event_stream;
pub mod frame;
mod link;
mod options;
mod pending;
mod redact;
mod request;
pub mod transcript;
mod transcript_format;
mod transcript_writer;
mod waiters;

pub use client::{ConnectError, QmpClient};
pub use counters::ConnectionCounters;
pub use event::QmpEvent;
pub use event_stream::{EventStream, StreamItem};
pub use frame::{ErrorClass, Greeting, QemuVersion};
pub use link::CloseCause;
pub use options::QmpOptions;
pub use pending::{ExecuteError, PendingReply};
pub(crate) use redact::redact;
pub use request::{EncodeError, QmpRequest};
pub use transcript::Recorder;
