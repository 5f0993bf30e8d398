//! What a connection to a QEMU was when it was made.

/// What the connection to a QEMU was when it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionOrigin {
    /// The first one.
    First,
    /// One that took the place of a connection that had closed: events in between were missed.
    Again,
    /// None: the QEMU could not be reached.
    None,
    /// None: another QEMU answers at the address.
    Another,
}
