//! The totals of one connection. Plain numbers: the module judges nothing.

/// Totals of one connection since it was made. No number here ends a connection; each tells what was survived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounters {
    /// Events received, whether or not anyone subscribed.
    pub events: u64,
    /// Replies handed to a waiting caller.
    pub replies: u64,
    /// Replies whose caller had already given up.
    pub late_replies: u64,
    /// Replies whose id belongs to no command of this client, or to a forgotten one.
    pub unknown_ids: u64,
    /// Error replies without an id: QEMU could not parse something it was sent.
    pub unidentified_errors: u64,
    /// Lines that are not JSON, or no QMP.
    pub unparsable: u64,
    /// Lines over the length bound, thrown away.
    pub oversized: u64,
    /// Events too long to be kept for subscribers, passed on without their data.
    pub stripped_events: u64,
    /// Greetings after the first.
    pub repeated_greetings: u64,
    /// Bytes of an unfinished line at the end of the stream.
    pub torn_bytes: u64,
    /// Commands written, or begun to be written.
    pub commands: u64,
    /// Commands withdrawn before they reached the wire.
    pub withdrawn: u64,
    /// Abandoned commands whose late reply is no longer expected, dropped to bound memory.
    pub forgotten: u64,
}
