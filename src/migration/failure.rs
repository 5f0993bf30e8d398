//! Why a migration did not move the guest.

use crate::{
    handover::{exchange::ExchangeError, ownership::NotDisengaged},
    journal::JournalError,
    memory::{postcopy::PostcopyError, precopy::PrecopyError},
    progress::{Reason, describe},
    qemu::{Gone, Name, ProcessError},
    qmp::ExecuteError,
    storage::{
        files::{layer_copy::LayerCopyError, qemu_img::QemuImgError, unpublished_file::UnpublishedFileError},
        mirror::mirror_job::MirrorError,
    },
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
    /// The controller gave up.
    #[error("{because}: {needed}")]
    GaveUp {
        /// A stable word.
        code: &'static str,
        /// Why, with numbers.
        because: String,
        /// What would have been needed.
        needed: String,
    },
    /// The user's `--timeout` is over.
    #[error("not ready to switch over after {0:?}")]
    Timeout(Duration),
    /// The guest stood still for so long that it had to go on where it was.
    #[error("the guest was not passed on within {0:?} of its stop")]
    SwitchoverTimeout(Duration),
    /// A QEMU leaves its monitor unanswered: its main loop hangs, or it was frozen.
    #[error("{at}: it has answered nothing for {waited:?}")]
    Hangs {
        /// Which side and where.
        at: Name,
        /// For how long.
        waited: Duration,
    },
    /// The engine itself failed: a panic, or no runtime to run on.
    #[error("{0}")]
    Internal(String),
    /// The engine that began the migration died.
    #[error("the engine that began this died")]
    EngineDied,
    /// The journal could not be written or read.
    #[error(transparent)]
    Journal(#[from] JournalError),
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
    #[error("{message}")]
    Refused {
        /// The code of the gravest finding.
        code: &'static str,
        /// Every blocker.
        message: String,
        /// The guest was seen on the source, running or paused.
        on_source: bool,
    },
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
    /// The guest runs on the destination, and lacks pages that the source has.
    #[error(transparent)]
    Postcopy(#[from] PostcopyError),
    /// The disks are not proved to be whole on the destination.
    #[error("the switchover was stopped")]
    NotDisengaged(#[from] NotDisengaged),
    /// The guest could not be passed on.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// QEMU refused something or did not answer.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// `qemu-img` did not do what was asked.
    #[error(transparent)]
    Img(#[from] QemuImgError),
    /// A file could not be made.
    #[error(transparent)]
    Partial(#[from] UnpublishedFileError),
    /// A backing file could not be copied.
    #[error("a backing file could not be copied")]
    Populate(#[from] LayerCopyError),
    /// The source's export could not be reached.
    #[error("cannot reach the source's NBD server at {address}")]
    Export {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A backing file was written to while it was copied.
    #[error("the source's {layer} was written to while it was copied: wait for the block job that does it")]
    LayerChanged {
        /// Its file on the source.
        layer: String,
    },
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
            Self::GaveUp { code, .. } => code,
            Self::Timeout(_) => "timeout",
            Self::SwitchoverTimeout(_) => "switchover-timeout",
            Self::Hangs { .. } => "monitor-blocked",
            Self::Internal(_) => "internal",
            Self::EngineDied => "engine-died",
            Self::Journal(JournalError::Locked { .. }) => "journal-locked",
            Self::Journal(_) => "journal",
            Self::Connect { .. } => "unreachable",
            Self::Refused { code, .. } => code,
            Self::SourceGone(_) => "source-gone",
            Self::DestinationGone(_) => "destination-gone",
            Self::Mirror(MirrorError::Failed { .. }) => "mirror-failed",
            Self::Precopy(PrecopyError::Failed(_)) => "migration-failed",
            Self::Postcopy(PostcopyError::SourceGone(_)) => "source-gone",
            Self::Postcopy(PostcopyError::DestinationGone(_)) => "destination-gone",
            Self::Postcopy(_) => "postcopy-paused",
            Self::NotDisengaged(_) => "not-disengaged",
            Self::Exchange(ExchangeError::Ended { .. }) => "handover-failed",
            Self::RuntimeDir { .. } => "runtime-dir",
            Self::LayerChanged { .. } => "layer-changed",
            Self::Img(_) => "qemu-img",
            Self::Partial(UnpublishedFileError::Locked { .. }) => "in-use",
            Self::Partial(UnpublishedFileError::Exists { .. }) => "image-exists",
            Self::Partial(_) => "file-failed",
            Self::Populate(error) if error.is_full() => "no-space",
            Self::Populate(LayerCopyError::Differs { .. }) => "copy-differs",
            Self::Populate(_) => "copy-failed",
            Self::Export { .. } => "export-unreachable",
            Self::Mirror(_) | Self::Precopy(_) | Self::Exchange(_) | Self::Process(_) => match self.process() {
                Some(
                    ProcessError::Late { .. } | ProcessError::Execute { source: ExecuteError::NoReply { .. }, .. },
                ) => "no-answer",
                Some(ProcessError::Gone(_) | ProcessError::Execute { source: ExecuteError::Closed { .. }, .. }) => {
                    "gone"
                }
                Some(error) if error.is_refusal() => "command-refused",
                _ => "command-failed",
            },
        }
    }

    /// Whether something was waited for that did not come.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self, Self::Hangs { .. } | Self::SwitchoverTimeout(_)) || self.code() == "no-answer"
    }

    /// The reason for the outcome: the whole chain of causes, and what to do.
    pub fn reason(&self) -> Reason {
        Reason { code: self.code().to_owned(), message: format!("{}{}", describe(self), self.remedy()) }
    }

    /// The error of a command, where that is what failed.
    fn process(&self) -> Option<&ProcessError> {
        match self {
            Self::Mirror(MirrorError::Process(error))
            | Self::Precopy(PrecopyError::Process(error))
            | Self::Postcopy(PostcopyError::Process(error))
            | Self::Exchange(ExchangeError::Process(error))
            | Self::Process(error) => Some(error),
            _ => None,
        }
    }

    fn remedy(&self) -> &'static str {
        let command = match self.process() {
            Some(ProcessError::Execute { command, .. }) => *command,
            _ => "",
        };
        match (self, command) {
            (Self::Timeout(_), _) => "; allow more time with --timeout, more --bandwidth or more --downtime",
            (Self::SwitchoverTimeout(_), _) => "; allow more time with --switchover-timeout",
            (Self::Hangs { .. }, _) => "; what it waited for, the destination's NBD server as a rule, does not answer",
            (Self::DestinationGone(_), _) => "; its stderr may say why",
            (Self::Postcopy(PostcopyError::SourceGone(_)), _) => {
                "; the guest stands still as soon as it needs one of them; if the source's process has ended, nothing brings \
                 them back: start it anew, from the destination's disks"
            }
            (Self::Postcopy(PostcopyError::DestinationGone(_)), _) => {
                "; if its process has ended, start the guest anew, from the destination's disks; never send cont to the source"
            }
            (Self::Postcopy(PostcopyError::Ended { .. }), _) => {
                "; the guest is on the destination: never send cont to the source"
            }
            (Self::Postcopy(_), _) => {
                "; the guest is on the destination and waits for pages that only the source has: leave both running, send \
                 migrate-recover with a new uri to the destination and then migrate with resume=true and the same uri to the \
                 source (migrate-pause on both first, if one says postcopy-active), and quit the source once both say \
                 completed; the destination may take these only as exec-oob, on a monitor where oob was on before"
            }
            (Self::Populate(error), _) if error.is_full() => "; make room there, and run it again",
            (_, "nbd-server-start") => "; the destination's QEMU must be able to listen there: see --nbd-address",
            // from 9.1 on a QEMU that could not listen stays in `setup` and takes no second command
            (_, "migrate-incoming") => {
                "; the destination's QEMU must be able to listen there: see --migrate-address, and start it anew"
            }
            (_, "drive-mirror") => "; the source's QEMU must reach the destination at --nbd-address",
            _ => "",
        }
    }
}
