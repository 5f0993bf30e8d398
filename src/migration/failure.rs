//! Why a migration did not move the guest.

use crate::{
    handover::{exchange::ExchangeError, ownership::NotDisengaged},
    memory::precopy::PrecopyError,
    progress::Reason,
    qemu::{Gone, ProcessError},
    qmp::ExecuteError,
    storage::mirror::MirrorError,
};
use std::{error::Error, time::Duration};
use thiserror::Error;

/// Why a migration did not move the guest.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Failure {
    /// The user asked, or the handle was dropped.
    #[error("cancelled")]
    Cancelled,
    /// The user's `--timeout` is over.
    #[error("not ready to switch over after {0:?}")]
    Timeout(Duration),
    /// A QEMU could not be reached, or spoken to.
    #[error("cannot reach the {side}")]
    Connect {
        /// Which side.
        side: crate::progress::Side,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The checks forbid it.
    #[error("{0}")]
    Refused(String),
    /// The source's QEMU is gone.
    #[error("the source is gone")]
    SourceGone(#[source] Gone),
    /// The destination's QEMU is gone.
    #[error("the destination is gone")]
    DestinationGone(#[source] Gone),
    /// The disks could not be carried over.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// RAM could not be carried over.
    #[error(transparent)]
    Precopy(#[from] PrecopyError),
    /// The disks are not proved to be whole on the destination.
    #[error("the switchover was stopped")]
    NotDisengaged(#[from] NotDisengaged),
    /// The guest could not be passed on.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// QEMU refused something or did not answer.
    #[error("QEMU did not do as told")]
    Process(#[from] ProcessError),
    /// A directory for the sockets could not be made.
    #[error("cannot make the directory {path} for the sockets of this run")]
    RuntimeDir {
        /// Which one.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Failure {
    /// The stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Timeout(_) => "timeout",
            Self::Connect { .. } => "unreachable",
            Self::Refused(_) => "refused",
            Self::SourceGone(_) => "source-gone",
            Self::DestinationGone(_) => "destination-gone",
            Self::Mirror(MirrorError::Failed { .. }) => "mirror-failed",
            Self::Precopy(PrecopyError::Failed(_)) => "migration-failed",
            Self::NotDisengaged(_) => "not-disengaged",
            Self::Exchange(ExchangeError::Ended { .. }) => "handover-failed",
            Self::RuntimeDir { .. } => "runtime-dir",
            Self::Mirror(MirrorError::Process(error))
            | Self::Precopy(PrecopyError::Process(error))
            | Self::Exchange(ExchangeError::Process(error))
            | Self::Process(error) => match error {
                ProcessError::Late { .. } | ProcessError::Execute { source: ExecuteError::NoReply { .. }, .. } => {
                    "no-answer"
                }
                ProcessError::Gone(_) | ProcessError::Execute { source: ExecuteError::Closed { .. }, .. } => "gone",
                _ if error.is_refusal() => "command-refused",
                _ => "command-failed",
            },
        }
    }

    /// The reason for the outcome: the whole chain of causes, and what to do.
    pub fn reason(&self) -> Reason {
        let remedy = match self {
            Self::Timeout(_) => "; allow more time with --timeout, more --bandwidth or more --downtime",
            Self::DestinationGone(_) => "; its stderr may say why",
            _ => "",
        };
        Reason { code: self.code().to_owned(), message: format!("{}{remedy}", describe(self)) }
    }
}

/// An error with its causes, `: ` between them.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        // a transparent error repeats its cause
        if !text.ends_with(&told) {
            text = format!("{text}: {told}");
        }
        next = cause.source();
    }
    text
}
