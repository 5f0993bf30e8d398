//! What goes wrong between the engine and one QEMU, and how that QEMU is called.

use crate::{
    progress::Side,
    qmp::{ConnectError, EncodeError, ExecuteError},
};
use std::{fmt, time::Duration};
use thiserror::Error;

/// What went wrong between the engine and one QEMU.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The connection could not be set up.
    #[error("{at}: cannot speak QMP")]
    Connect {
        /// Which side and where.
        at: Name,
        /// What happened.
        #[source]
        source: ConnectError,
    },
    /// A command was refused or got no answer.
    #[error("{at}")]
    Execute {
        /// Which side and where.
        at: Name,
        /// The command.
        command: &'static str,
        /// What happened.
        #[source]
        source: ExecuteError,
    },
    /// An answer has not the shape that every supported version gives.
    #[error("{at}: cannot read the answer to {command}")]
    Answer {
        /// Which side and where.
        at: Name,
        /// The command.
        command: &'static str,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// A command could not be put into JSON.
    #[error("{at}: cannot encode {command}")]
    Encode {
        /// Which side and where.
        at: Name,
        /// The command.
        command: &'static str,
        /// Why.
        #[source]
        source: EncodeError,
    },
    /// Something that was waited for did not come.
    #[error("{at}: no {what} within {waited:?}")]
    Late {
        /// Which side and where.
        at: Name,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// QEMU answered, and is not in the state that was expected of it.
    #[error("{at}: {found}, expected {expected}")]
    State {
        /// Which side and where.
        at: Name,
        /// The state that was expected.
        expected: &'static str,
        /// The state that QEMU reported.
        found: String,
    },
    /// What a command wanted is in use by someone else: it was refused.
    #[error("{at}: {what}")]
    InUse {
        /// Which side and where.
        at: Name,
        /// What is in use, and what to do.
        what: String,
    },
    /// The process or its monitor is gone.
    #[error(transparent)]
    Gone(#[from] Gone),
}

impl ProcessError {
    /// Whether QEMU itself said no: the command certainly had no effect.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Execute { source: ExecuteError::Refused { .. }, .. } | Self::InUse { .. })
    }

    /// QEMU's words, where it said no.
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

    /// Whether the command certainly had no effect: it was refused, or never left this process.
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

/// A QEMU that went away.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{at}: gone ({how})")]
pub struct Gone {
    /// Which side and where.
    pub at: Name,
    /// What was seen: the process ended, or only its monitor closed.
    pub how: String,
}

/// Which side, and by which address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Source or destination.
    pub side: Side,
    /// The address as the user gave it.
    pub address: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.side, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qmp::ErrorClass;

    fn source() -> Name {
        Name { side: Side::Source, address: "unix:/s".to_owned() }
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
