//! Why the process of a QEMU is not known, for people. Pure.

/// Why the process behind a connection is not known to be a QEMU of this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnseenProcess {
    /// The connection is over TCP.
    #[error("is reached over TCP, so that its host may be another one")]
    OverNetwork,
    /// The embedder's connector came without a process.
    #[error("is reached by a connector that came without a process")]
    NotGiven,
    /// The kernel names no process.
    #[error("is a process of another pid namespace, such as a container's")]
    OtherNamespace,
    /// The program of the process may not be read.
    #[error("is process {pid}, whose program qferry's user may not look at: another user's, by its socket")]
    Hidden {
        /// The process.
        pid: u32,
    },
    /// Another program has made the socket.
    #[error("is behind a socket that {program} (pid {pid}) has made, which is no QEMU")]
    OtherProgram {
        /// The process.
        pid: u32,
        /// Its executable.
        program: String,
    },
    /// Another QEMU has made the socket.
    #[error("is behind a socket that another QEMU (pid {pid}) has made")]
    OtherQemu {
        /// The process.
        pid: u32,
    },
}
