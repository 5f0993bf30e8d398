//! What can go wrong between this client and an NBD server.
//!
//! Owns the one error type of the room. It decides nothing: whether an error is worth a second try is the caller's.

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Why a connection could not be made, or a request has no result.
///
/// Every variant but the first group ([`NbdError::NameTooLong`] to [`NbdError::Server`]) ends the connection, and then
/// all requests in flight fail with the same error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NbdError {
    /// The export's name is longer than the protocol allows. Nothing was sent.
    #[error("an NBD export's name may have 4096 bytes, and this one has {length}")]
    NameTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// The range does not lie inside the export. Nothing was sent.
    #[error("{length} bytes at {offset} do not lie inside the export of {size} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// How many.
        length: u64,
        /// The size of the export.
        size: u64,
    },
    /// One read of more than [`MAX_READ`](super::MAX_READ). Nothing was sent.
    #[error("one read of {length} bytes is more than a server has to answer; read at most 32 MiB at once")]
    ReadTooLong {
        /// Its length.
        length: u32,
    },
    /// The server did not negotiate this metadata context, or was not asked to. Nothing was sent.
    #[error("the server does not offer the metadata context {context}")]
    NotOffered {
        /// Its name.
        context: &'static str,
    },
    /// The range is in too many pieces to be described at once; ask for smaller ranges.
    #[error("the range is in more than {limit} pieces: ask for a smaller one")]
    TooManyExtents {
        /// [`MAX_DESCRIPTORS`](super::MAX_DESCRIPTORS).
        limit: usize,
    },
    /// The server answered this request with an error; the connection goes on.
    #[error("the server failed the request with {}{}", errno(*code), said(message))]
    Server {
        /// The protocol's error number, mostly Linux's errno.
        code: u32,
        /// What the server said; may be empty.
        message: String,
    },

    /// The server knows no export of this name.
    #[error("the server has no export named {name:?}{}", said(message))]
    NoSuchExport {
        /// The name.
        name: String,
        /// What the server said; may be empty.
        message: String,
    },
    /// The server refused a step of the handshake that cannot be done without.
    #[error("the server refused {option} with {reason}{}", said(message))]
    Declined {
        /// The protocol's name of the step.
        option: &'static str,
        /// The protocol's name of the error, or its number.
        reason: String,
        /// What the server said; may be empty.
        message: String,
    },
    /// What was sent first is not an NBD greeting.
    #[error("the peer does not speak NBD: it began with {began:#018x}")]
    NotNbd {
        /// The first eight bytes, or the second eight if the first were right.
        began: u64,
    },
    /// An NBD server that speaks only the handshake from before 2011.
    #[error("the server speaks only a form of NBD that is too old for options (no fixed newstyle)")]
    TooOld,
    /// The handshake made no sense.
    #[error("the server broke the NBD handshake: {what}")]
    Handshake {
        /// What was wrong.
        what: &'static str,
    },

    /// A reply began with a wrong magic: the stream is out of step.
    #[error("a reply began with the wrong magic {magic:#010x}")]
    Magic {
        /// What it began with.
        magic: u32,
    },
    /// A reply to a request that is not in flight.
    #[error("the server answered a request that is not in flight (cookie {cookie})")]
    UnknownCookie {
        /// The cookie.
        cookie: u64,
    },
    /// A reply of a kind that does not fit the request or what was negotiated.
    #[error("the server sent a reply that does not fit the request: {what}")]
    Unexpected {
        /// What does not fit.
        what: &'static str,
    },
    /// A chunk of data or a hole outside of the range that was asked for.
    #[error("the server sent {length} bytes at {offset}, which were not asked for")]
    Outside {
        /// First byte.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// A chunk that covers bytes which an earlier chunk had covered.
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
        /// Its length.
        length: u32,
    },
    /// A read came in more separate pieces than anyone needs.
    #[error("the server scattered one read over more than {limit} separate pieces")]
    Scattered {
        /// The bound.
        limit: usize,
    },
    /// A length that is beyond what such a reply may have.
    #[error("the server announced {length} bytes of {what}")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// How many.
        length: u64,
    },
    /// A block status reply with an extent of length 0.
    #[error("the server described an extent of length 0")]
    EmptyExtent,

    /// No answer in time.
    #[error("the server did not answer {what} within {waited:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The server closed the connection, or died.
    #[error("the NBD server closed the connection")]
    Ended,
    /// Reading or writing failed.
    #[error("the connection to the NBD server failed")]
    Io(#[source] Arc<io::Error>),
    /// This side closed the connection, see [`NbdClient::close`](super::NbdClient::close).
    #[error("the NBD connection was closed by this side")]
    Closed,
    /// The task that served the connection is gone, because its runtime shut down.
    #[error("the runtime that served the NBD connection has shut down")]
    Runtime,
}

impl From<io::Error> for NbdError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // All that a death looks like, depending on what was under way.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Ended,
            _ => Self::Io(Arc::new(error)),
        }
    }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// The protocol's name of an error number.
fn errno(code: u32) -> String {
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
