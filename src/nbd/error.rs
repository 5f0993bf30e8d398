//! The errors between this client and an NBD server.
//!
//! The module owns the one error type of the room. Whether an error is worth a second attempt is decided by the caller.

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Reason why a connection could not be made, or a request has no result.
///
/// Every variant but the first group ([`NbdError::NameTooLong`] to [`NbdError::Server`]) ends the connection, and then
/// all requests in flight fail with the same error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NbdError {
    /// The export's name is longer than the protocol allows. Nothing was sent.
    #[error("the name of an NBD export may have 4096 bytes, and this name has {length}")]
    NameTooLong {
        /// Length of the name in bytes.
        length: usize,
    },
    /// The range does not lie inside the export. Nothing was sent.
    #[error("{length} bytes at {offset} do not lie inside the export of {size} bytes")]
    OutOfRange {
        /// First byte of the range.
        offset: u64,
        /// Length of the range in bytes.
        length: u64,
        /// Size of the export in bytes.
        size: u64,
    },
    /// One read of more than [`MAX_READ`](super::MAX_READ). Nothing was sent.
    #[error("one read of {length} bytes is more than a server has to answer; read at most 32 MiB at once")]
    ReadTooLong {
        /// Length of the read in bytes.
        length: u32,
    },
    /// This metadata context was not asked for, or the server does not have it. Nothing was sent.
    #[error("the server does not offer the metadata context {context}")]
    NotOffered {
        /// Name of the context.
        context: &'static str,
    },
    /// The range is in too many pieces to be described at once; query smaller ranges.
    #[error("the range is in more than {limit} pieces: query a smaller range")]
    TooManyExtents {
        /// [`MAX_DESCRIPTORS`](super::MAX_DESCRIPTORS).
        limit: usize,
    },
    /// The server answered this request with an error; the connection goes on.
    #[error("the server failed the request with {}{}", errno_name(*code), message_suffix(message))]
    Server {
        /// The protocol's error number, mostly Linux's errno.
        code: u32,
        /// Message of the server; may be empty.
        message: String,
    },

    /// The server knows no export of this name.
    #[error("the server has no export named {name:?}{}", message_suffix(message))]
    NoSuchExport {
        /// Name of the export.
        name: String,
        /// Message of the server; may be empty.
        message: String,
    },
    /// The server refused a required step of the handshake.
    #[error("the server refused {option} with {reason}{}", message_suffix(message))]
    Declined {
        /// The protocol's name of the step.
        option: &'static str,
        /// The protocol's name of the error, or its number.
        reason: String,
        /// Message of the server; may be empty.
        message: String,
    },
    /// The peer did not begin with an NBD greeting.
    #[error("the peer does not speak NBD: its first bytes are {began:#018x}")]
    NotNbd {
        /// The first eight bytes, or the second eight if the first eight were correct.
        began: u64,
    },
    /// The server speaks only the NBD handshake from before 2011.
    #[error("the server speaks only a form of NBD that is too old for options (no fixed newstyle)")]
    TooOld,
    /// The server broke the protocol of the handshake.
    #[error("the server broke the NBD handshake: {what}")]
    Handshake {
        /// Description of the fault.
        what: &'static str,
    },

    /// A reply began with a wrong magic: the stream is out of step.
    #[error("a reply began with the wrong magic {magic:#010x}")]
    Magic {
        /// Magic that the reply began with.
        magic: u32,
    },
    /// The server answered a request that is not in flight.
    #[error("the server answered a request that is not in flight (cookie {cookie})")]
    UnknownCookie {
        /// Cookie of the reply.
        cookie: u64,
    },
    /// A reply does not fit its request, or does not fit the negotiated form.
    #[error("the server sent a reply that does not fit the request: {what}")]
    Unexpected {
        /// Description of the misfit.
        what: &'static str,
    },
    /// A chunk of data or a hole lies outside of the requested range.
    #[error("the server sent {length} bytes at {offset}, which were not requested")]
    Outside {
        /// First byte of the chunk.
        offset: u64,
        /// Length of the chunk in bytes.
        length: u64,
    },
    /// A chunk covers bytes that an earlier chunk had covered.
    #[error("the server sent the bytes at {offset} twice")]
    Overlap {
        /// First byte of the later chunk.
        offset: u64,
    },
    /// A read ended as successful, with bytes missing.
    #[error("the server ended a read of {length} bytes at {offset} with bytes missing")]
    Missing {
        /// First byte of the read.
        offset: u64,
        /// Length of the read in bytes.
        length: u32,
    },
    /// The data of a read came in more separate pieces than any server has reason to send.
    #[error("the server scattered one read over more than {limit} separate pieces")]
    Scattered {
        /// Most pieces accepted.
        limit: usize,
    },
    /// The server announced a longer payload than such a reply may have.
    #[error("the server announced {length} bytes of {what}")]
    TooLong {
        /// Kind of payload.
        what: &'static str,
        /// Announced length in bytes.
        length: u64,
    },
    /// A block status reply has an extent of length 0.
    #[error("the server described an extent of length 0")]
    EmptyExtent,

    /// No answer came in time.
    #[error("the server did not answer {what} within {waited:?}")]
    TimedOut {
        /// Name of the missing answer.
        what: &'static str,
        /// Time that the client waited.
        waited: Duration,
    },
    /// The server closed the connection, or died.
    #[error("the NBD server closed the connection")]
    Ended,
    /// Reading or writing failed.
    #[error("the connection to the NBD server failed")]
    Io(#[source] Arc<io::Error>),
    /// This client closed the connection, see [`NbdClient::close`](super::NbdClient::close).
    #[error("the NBD connection was closed by this client")]
    Closed,
    /// The task that served the connection is dead, because its runtime shut down.
    #[error("the runtime that served the NBD connection has shut down")]
    Runtime,
}

impl From<io::Error> for NbdError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A dying server shows as any of these kinds, depending on the operation under way.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Ended,
            _ => Self::Io(Arc::new(error)),
        }
    }
}

fn message_suffix(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// The protocol's name of an error number.
fn errno_name(code: u32) -> String {
    let name = match code {
        1 => "EPERM",
        5 => "EIO",
        12 => "ENOMEM",
        22 => "EINVAL",
        28 => "ENOSPC",
        75 => "EOVERFLOW",
        95 => "ENOTSUP",
        108 => "ESHUTDOWN",
        other => return format!("error {other}"),
    };
    name.to_owned()
}
