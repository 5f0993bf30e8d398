//! Errors between the engine and one QEMU, and the name by which they call that QEMU.

use crate::{
    progress::Side,
    qmp::{ConnectError, EncodeError, ExecuteError},
};
use std::{fmt, time::Duration};
use thiserror::Error;

/// An error between the engine and one QEMU.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The connection could not be set up.
    #[error("{at}: cannot speak QMP")]
    Connect {
        /// The QEMU.
        at: QemuName,
        /// The cause.
        #[source]
        source: ConnectError,
    },
    /// A command was refused or got no answer.
    #[error("{at}")]
    Execute {
        /// The QEMU.
        at: QemuName,
        /// The command.
        command: &'static str,
        /// The cause.
        #[source]
        source: ExecuteError,
    },
    /// A reply does not have the shape that every supported version gives it.
    #[error("{at}: cannot read the answer to {command}")]
    Answer {
        /// The QEMU.
        at: QemuName,
        /// The command.
        command: &'static str,
        /// The part that does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// A command could not be put into JSON.
    #[error("{at}: cannot encode {command}")]
    Encode {
        /// The QEMU.
        at: QemuName,
        /// The command.
        command: &'static str,
        /// The cause.
        #[source]
        source: EncodeError,
    },
    /// An event or an answer did not come in time.
    #[error("{at}: no {what} within {waited:?}")]
    Late {
        /// The QEMU.
        at: QemuName,
        /// The event or answer, as it reads after "no".
        what: &'static str,
        /// The time for which the engine waited.
        waited: Duration,
    },
    /// QEMU answered, and is not in the state that was expected of it.
    #[error("{at}: {found}, expected {expected}")]
    State {
        /// The QEMU.
        at: QemuName,
        /// The state that was expected.
        expected: &'static str,
        /// The state that QEMU reported.
        found: String,
    },
    /// QEMU refused a command because another user holds what the command needs.
    #[error("{at}: {what}")]
    InUse {
        /// The QEMU.
        at: QemuName,
        /// The thing in use, and the remedy.
        what: String,
    },
    /// The process has ended, or its monitor has closed.
    #[error(transparent)]
    Gone(#[from] Gone),
}

impl ProcessError {
    /// Whether QEMU refused the command, which certainly had no effect then.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Execute { source: ExecuteError::Refused { .. }, .. } | Self::InUse { .. })
    }

    /// QEMU's words for its refusal.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Execute { source: ExecuteError::Refused { desc, .. }, .. } => Some(desc),
            _ => None,
        }
    }

    /// Whether QEMU may hang: an answer or an event did not come in time. A QEMU that answered, with whatever state or
    /// refusal, is not silent.
    pub fn is_silence(&self) -> bool {
        match self {
            Self::Late { .. } => true,
            Self::Execute { source, .. } => matches!(source, ExecuteError::NoReply { .. }),
            _ => false,
        }
    }

    /// Whether the command certainly had no effect: QEMU refused it, or it never left this process.
    pub fn is_without_effect(&self) -> bool {
        let unsent = matches!(
            self,
            Self::Encode { .. }
                | Self::Execute {
                    source: ExecuteError::NoReply { sent: false, .. } | ExecuteError::Closed { sent: false, .. },
                    ..
                }
        );
        unsent || self.is_refusal()
    }
}

/// A QEMU whose process has ended or whose monitor has closed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{at}: gone ({how})")]
pub struct Gone {
    /// The QEMU.
    pub at: QemuName,
    /// The sign of it: the process ended, or only its monitor closed.
    pub how: String,
}

/// The name of a QEMU in errors and leftovers: its side and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuName {
    /// The side.
    pub side: Side,
    /// The address as it was given.
    pub address: String,
}

impl fmt::Display for QemuName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.side, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qmp::ErrorClass;

    fn source() -> QemuName {
        QemuName { side: Side::Source, address: "unix:/s".to_owned() }
    }

    fn refused() -> ExecuteError {
        ExecuteError::Refused { command: "cont".into(), class: ErrorClass::GenericError, desc: "no".to_owned() }
    }

    fn unanswered() -> ExecuteError {
        ExecuteError::NoReply { command: "cont".into(), sent: true, waited: Duration::from_secs(1) }
    }

    #[test]
    fn a_qemu_that_answered_is_not_silent() {
        let state = ProcessError::State { at: source(), expected: "running after cont", found: "paused".to_owned() };
        assert_eq!(state.to_string(), "source (unix:/s): paused, expected running after cont");
        let gone = ProcessError::Gone(Gone { at: source(), how: "its process ended".to_owned() });
        let busy = ProcessError::InUse { at: source(), what: "the NBD server is in use".to_owned() };
        let refused = ProcessError::Execute { at: source(), command: "cont", source: refused() };
        for error in [state, gone, busy, refused] {
            assert!(!error.is_silence(), "{error}");
        }
    }

    #[test]
    fn an_answer_or_an_event_that_is_overdue_is_silence() {
        let late = ProcessError::Late { at: source(), what: "RESUME", waited: Duration::from_secs(5) };
        assert_eq!(late.to_string(), "source (unix:/s): no RESUME within 5s");
        let unanswered = ProcessError::Execute { at: source(), command: "cont", source: unanswered() };
        for error in [late, unanswered] {
            assert!(error.is_silence() && !error.is_without_effect(), "{error}");
        }
    }
}
