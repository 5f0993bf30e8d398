//! Why a migration did not move the guest.

use crate::{
    codes::{FailureCode, Finding, FindingCode},
    endpoint::Address,
    handover::{exchange::ExchangeError, ownership::NotDisengaged},
    journal::JournalError,
    memory::{postcopy::PostcopyError, precopy::PrecopyError},
    progress::{Reason, describe},
    qemu::{Gone, ProcessError, QemuName, ShutdownSeen, reply::RunState},
    qmp::ExecuteError,
    storage::{
        files::{layer_copy::LayerCopyError, qemu_img::QemuImgError, unpublished_file::UnpublishedFileError},
        mirror::mirror_job::MirrorError,
    },
    trust::TrustError,
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
    /// QEMU kept a guest that stands still from its owner for so long that the owner had to get it back.
    #[error(
        "the guest stands still, so all of its RAM was sent before its disks were copied, and for {0:?} QEMU has taken \
         no `cont` from its owner"
    )]
    KeptFromOwner(Duration),
    /// A QEMU leaves its monitor unanswered: its main loop hangs, or it was frozen.
    #[error("{at}: it has answered nothing for {waited:?}")]
    Hangs {
        /// Which side and where.
        at: QemuName,
        /// For how long.
        waited: Duration,
    },
    /// The source leaves its monitor unanswered while the destination answers: QEMU drains and flushes disks.
    #[error(
        "{at}: it has answered nothing for {waited:?}, and the destination answers: QEMU was draining and flushing its \
         disks"
    )]
    Flushes {
        /// Which side and where.
        at: QemuName,
        /// For how long.
        waited: Duration,
    },
    /// The destination answers nothing at all while something waits for it.
    #[error("{at}: it has answered nothing for {waited:?}, not even out of band, and {waiting} for it")]
    Frozen {
        /// Which side and where.
        at: QemuName,
        /// For how long.
        waited: Duration,
        /// What waits for it, with its verb.
        waiting: &'static str,
    },
    /// The guest has stopped by itself, and stands on the source as it stopped.
    #[error("the guest has stopped by itself on the source, which says '{0}'")]
    GuestHalted(RunState),
    /// The guest has ended on the source, which has it no more.
    #[error("{}", end_words(.shutdown.as_ref()))]
    GuestEnded {
        /// How the source went.
        #[source]
        gone: Gone,
        /// QEMU's last word, if there was one.
        shutdown: Option<ShutdownSeen>,
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
    /// Source and destination are one monitor.
    #[error(
        "source and destination are one QMP socket, {}: give the socket of the QEMU that waits with -incoming defer -S \
         as the `destination`",
        one_socket(.named, .also)
    )]
    OneSocket {
        /// The source's address.
        named: String,
        /// The destination's address.
        also: String,
    },
    /// Nobody answers at an address to which the source's QEMU must connect.
    #[error("no answer from {address} within {waited:?}: its host is down, or a firewall drops what is sent there")]
    NoAnswerFrom {
        /// The address.
        address: Address,
        /// For how long an answer was waited for.
        waited: Duration,
    },
    /// The checks forbid it.
    #[error("{message}")]
    Refused {
        /// The code of the gravest finding.
        code: FailureCode,
        /// Every blocker, in one sentence.
        message: String,
        /// The blockers themselves; none where something else than the checks refuses.
        findings: Vec<Finding>,
        /// The guest was seen on the source: it runs, is paused, or stands after a disk error.
        on_source: bool,
    },
    /// Somebody else has changed a machine or its migration: what was proved before holds no longer.
    #[error("{message}")]
    Interfered {
        /// What was changed.
        code: FailureCode,
        /// Which thing, and both values where there are two.
        message: String,
    },
    /// The migration was not begun, but leftovers of an earlier one were removed.
    #[error("the migration was not begun, after leftovers of an earlier one had been removed ({removed})")]
    Cleaned {
        /// What was removed.
        removed: String,
        /// Why the migration was not begun.
        #[source]
        failure: Box<Failure>,
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
    /// The directory for the sockets could not be made, or other users may write to it.
    #[error("the directory {path} cannot be used for the sockets of this run, through which the guest's memory goes")]
    RuntimeDir {
        /// Which one.
        path: String,
        /// Why.
        #[source]
        source: TrustError,
    },
}

/// Whether QEMU's words for a refusal tell of the NBD connection that a mirror opens, and not of the disk.
fn is_about_nbd(refusal: &str) -> bool {
    let refusal = refusal.to_lowercase();
    let words = ["nbd", "connect", "export", "server", "tls", "handshake", "magic", "failed to read", "end-of-file"];
    words.iter().any(|word| refusal.contains(word))
}

/// The one socket by its names.
fn one_socket(named: &str, also: &str) -> String {
    if named == also { named.to_owned() } else { format!("{named} and {also}") }
}

/// How a guest has ended, in words.
fn end_words(shutdown: Option<&ShutdownSeen>) -> String {
    match shutdown {
        Some(ShutdownSeen { guest, reason }) => {
            let by = if *guest { "the guest itself" } else { "its QEMU or its owner" };
            format!("the guest has ended on the source, by {by}: QEMU says '{reason}'")
        }
        None => "the guest has ended on the source, whose QEMU crashed or was killed".to_owned(),
    }
}

impl Failure {
    /// The stable word for programs.
    pub fn code(&self) -> FailureCode {
        match self {
            Self::Cancelled => FailureCode::Cancelled,
            Self::GaveUp { code, .. } => FailureCode::from(*code),
            Self::Timeout(_) => FailureCode::Timeout,
            Self::SwitchoverTimeout(_) | Self::KeptFromOwner(_) | Self::Flushes { .. } => {
                FailureCode::SwitchoverTimeout
            }
            Self::Hangs { .. } => FailureCode::MonitorBlocked,
            Self::Frozen { .. } | Self::NoAnswerFrom { .. } => FailureCode::NoAnswer,
            Self::GuestHalted(_) => FailureCode::GuestHalted,
            Self::GuestEnded { shutdown: Some(shutdown), .. } if shutdown.reason != "none" => {
                FailureCode::from(shutdown.reason.as_str())
            }
            Self::GuestEnded { .. } => FailureCode::SourceGone,
            Self::Internal(_) => FailureCode::Internal,
            Self::EngineDied => FailureCode::EngineDied,
            Self::Journal(JournalError::Locked { .. }) => FailureCode::JournalLocked,
            Self::Journal(_) => FailureCode::Journal,
            Self::Connect { .. } => FailureCode::Unreachable,
            Self::OneSocket { .. } => FindingCode::SameProcess.into(),
            Self::Refused { code, .. } | Self::Interfered { code, .. } => code.clone(),
            Self::Cleaned { failure, .. } => failure.code(),
            Self::SourceGone(_) | Self::Postcopy(PostcopyError::SourceGone(_)) => FailureCode::SourceGone,
            Self::DestinationGone(_) | Self::Postcopy(PostcopyError::DestinationGone(_)) => {
                FailureCode::DestinationGone
            }
            Self::Mirror(MirrorError::Failed { .. }) => FailureCode::MirrorFailed,
            Self::Precopy(PrecopyError::Failed(_)) => FailureCode::MigrationFailed,
            Self::Postcopy(_) => FailureCode::PostcopyPaused,
            Self::NotDisengaged(_) => FailureCode::NotDisengaged,
            Self::Exchange(ExchangeError::Ended { .. }) => FailureCode::HandoverFailed,
            Self::RuntimeDir { .. } => FailureCode::RuntimeDir,
            Self::LayerChanged { .. } => FailureCode::LayerChanged,
            Self::Img(_) => FailureCode::QemuImg,
            Self::Partial(UnpublishedFileError::Locked { .. }) => FailureCode::InUse,
            Self::Partial(UnpublishedFileError::Exists { .. }) => FailureCode::ImageExists,
            Self::Partial(_) => FailureCode::FileFailed,
            Self::Populate(error) if error.is_full() => FailureCode::NoSpace,
            Self::Populate(LayerCopyError::Differs { .. }) => FailureCode::CopyDiffers,
            Self::Populate(_) => FailureCode::CopyFailed,
            Self::Export { .. } => FailureCode::ExportUnreachable,
            Self::Mirror(_) | Self::Precopy(_) | Self::Exchange(_) | Self::Process(_) => match self.process() {
                Some(error) if error.is_silence() => FailureCode::NoAnswer,
                Some(ProcessError::Gone(_) | ProcessError::Execute { source: ExecuteError::Closed { .. }, .. }) => {
                    FailureCode::Gone
                }
                Some(error) if error.is_refusal() => FailureCode::CommandRefused,
                _ => FailureCode::CommandFailed,
            },
        }
    }

    /// Whether something was waited for that did not come.
    pub(crate) fn is_silence(&self) -> bool {
        match self {
            Self::Hangs { .. } | Self::Frozen { .. } | Self::Flushes { .. } | Self::SwitchoverTimeout(_) => true,
            // Postcopy gives its RAM channel long enough itself, and nothing brings a yanked one back.
            Self::Postcopy(_) => false,
            _ => self.process().is_some_and(ProcessError::is_silence),
        }
    }

    /// The reason for the outcome: the whole chain of causes, and what to do.
    pub fn reason(&self) -> Reason {
        Reason { code: self.code(), message: format!("{}{}", describe(self), self.remedy()) }
    }

    /// The blockers of a refusal by the checks.
    pub(crate) fn findings(&self) -> &[Finding] {
        match self {
            Self::Refused { findings, .. } => findings,
            Self::Cleaned { failure, .. } => failure.findings(),
            _ => &[],
        }
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
            (Self::Cleaned { failure, .. }, _) => failure.remedy(),
            (Self::Timeout(_), _) => "; allow more time with `timeout`, more `bandwidth` or more `downtime`",
            (Self::SwitchoverTimeout(_), _) => "; allow more time with `switchover_timeout`",
            (Self::KeptFromOwner(_), _) => {
                "; allow more time with `switchover_timeout`, or have RAM wait for the disks with `overlap = false` in the \
                 `policy`"
            }
            (Self::Flushes { .. }, _) => "; make the disks flush faster, or allow more time with `switchover_timeout`",
            (Self::Frozen { .. }, _) => "; its process was stopped, or its host or the network to it is down",
            (Self::Hangs { .. }, _) => "; what it waited for, the destination's NBD server as a rule, does not answer",
            (Self::DestinationGone(_), _) => "; its stderr may say why",
            (Self::GuestEnded { shutdown: None, .. }, _) => {
                "; its stderr may say why, and its disks are as it left them"
            }
            (Self::GuestEnded { .. }, _) => "; its disks are whole: start it anew where you like",
            (Self::GuestHalted(_), _) => "; look at it there, and migrate again once it runs",
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
            (_, "nbd-server-start") => "; the destination's QEMU must be able to listen there: see `nbd_address`",
            // from 9.1 on a QEMU that could not listen stays in `setup` and takes no second command
            (_, "migrate-incoming") => {
                "; the destination's QEMU must be able to listen there: see `migrate_address`, and start it anew"
            }
            (_, "drive-mirror") => match self.process().and_then(ProcessError::refusal) {
                Some(why) if !is_about_nbd(why) => {
                    "; query-block-jobs and query-named-block-nodes show what uses the disk"
                }
                _ => "; the source's QEMU must reach the destination at `nbd_address`",
            },
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        progress::Side,
        qemu::reply::MigrationStatus,
        qmp::{CloseCause, ErrorClass},
    };
    use std::io;

    fn at() -> QemuName {
        QemuName { side: Side::Source, address: "/s.qmp".to_owned() }
    }

    fn gone() -> Gone {
        Gone { at: at(), how: "it exited".to_owned() }
    }

    fn execute(command: &'static str, source: ExecuteError) -> Failure {
        Failure::Process(ProcessError::Execute { at: at(), command, source })
    }

    fn refused(command: &'static str) -> Failure {
        let (class, desc) = (ErrorClass::GenericError, "no connection".to_owned());
        execute(command, ExecuteError::Refused { command: command.into(), class, desc })
    }

    fn no_reply() -> Failure {
        let waited = Duration::from_secs(1);
        execute("stop", ExecuteError::NoReply { command: "stop".into(), sent: true, waited })
    }

    fn gave_up(code: &'static str) -> Failure {
        Failure::GaveUp { code, because: "it is too slow".to_owned(), needed: "more".to_owned() }
    }

    fn text() -> String {
        "/x".to_owned()
    }

    fn write(kind: io::ErrorKind) -> Failure {
        Failure::Populate(LayerCopyError::Write { path: text(), file_system: text(), source: kind.into() })
    }

    /// A failure of each code. A new code does not compile without one.
    fn case(code: &FailureCode) -> Failure {
        let words = text;
        match code {
            FailureCode::Cancelled => Failure::Cancelled,
            FailureCode::CommandFailed => {
                let source = serde_json::from_str::<u8>("x").expect_err("no number");
                Failure::Process(ProcessError::Answer { at: at(), command: "query-jobs", source })
            }
            FailureCode::CommandRefused => refused("drive-mirror"),
            FailureCode::CopyDiffers => {
                Failure::Populate(LayerCopyError::Differs { path: text(), file_system: text(), offset: 0 })
            }
            FailureCode::CopyFailed => write(io::ErrorKind::PermissionDenied),
            FailureCode::DestinationGone => Failure::DestinationGone(gone()),
            FailureCode::DiskNotConverging => gave_up("disk-not-converging"),
            FailureCode::EngineDied => Failure::EngineDied,
            FailureCode::ExportUnreachable => {
                Failure::Export { address: text(), source: Box::new(io::Error::from(io::ErrorKind::NotFound)) }
            }
            FailureCode::FileFailed => {
                Failure::Partial(UnpublishedFileError::Unfit { path: text(), why: "it has no name" })
            }
            FailureCode::Gone => Failure::Process(ProcessError::Gone(gone())),
            FailureCode::GuestHalted => Failure::GuestHalted(RunState::GuestPanicked),
            FailureCode::GuestPanic
            | FailureCode::GuestReset
            | FailureCode::GuestShutdown
            | FailureCode::HostError
            | FailureCode::HostQmpQuit
            | FailureCode::HostSignal
            | FailureCode::HostUi => {
                let reason = code.as_str().to_owned();
                Failure::GuestEnded { gone: gone(), shutdown: Some(ShutdownSeen { guest: true, reason }) }
            }
            FailureCode::HandoverFailed => {
                let status = MigrationStatus::Failed;
                Failure::Exchange(ExchangeError::Ended { side: Side::Destination, status, words: words() })
            }
            FailureCode::ImageExists => Failure::Partial(UnpublishedFileError::Exists { path: text() }),
            FailureCode::InUse => Failure::Partial(UnpublishedFileError::Locked { path: text(), who: words() }),
            FailureCode::Internal => Failure::Internal(words()),
            FailureCode::Journal => Failure::Journal(JournalError::Exists { path: "/x".into() }),
            FailureCode::JournalLocked => Failure::Journal(JournalError::Locked { path: "/x".into() }),
            FailureCode::LayerChanged => Failure::LayerChanged { layer: text() },
            FailureCode::MachineChanged | FailureCode::SettingsChanged => {
                Failure::Interfered { code: code.clone(), message: words() }
            }
            FailureCode::MigrationFailed => Failure::Precopy(PrecopyError::Failed(words())),
            FailureCode::MirrorFailed => Failure::Mirror(MirrorError::Failed { disk: text(), error: words() }),
            FailureCode::MonitorBlocked => Failure::Hangs { at: at(), waited: Duration::from_secs(10) },
            FailureCode::NoAnswer => no_reply(),
            FailureCode::NoSpace => write(io::ErrorKind::StorageFull),
            FailureCode::NotDisengaged => Failure::NotDisengaged(NotDisengaged::Export(text())),
            FailureCode::NothingBegun | FailureCode::Finding(_) | FailureCode::Other(_) => {
                Failure::Refused { code: code.clone(), message: words(), findings: Vec::new(), on_source: true }
            }
            FailureCode::OverBudget => gave_up("over-budget"),
            FailureCode::PostcopyPaused => Failure::Postcopy(PostcopyError::Broken(words())),
            FailureCode::QemuImg => Failure::Img(QemuImgError::Failed { command: text(), said: words() }),
            FailureCode::RamNotConverging => gave_up("ram-not-converging"),
            FailureCode::RamStalled => gave_up("ram-stalled"),
            FailureCode::RuntimeDir => {
                Failure::RuntimeDir { path: text(), source: io::Error::from(io::ErrorKind::PermissionDenied).into() }
            }
            FailureCode::SourceGone => Failure::SourceGone(gone()),
            FailureCode::SwitchoverTimeout => Failure::SwitchoverTimeout(Duration::from_secs(10)),
            FailureCode::Timeout => Failure::Timeout(Duration::from_secs(10)),
            FailureCode::Unreachable => Failure::Connect {
                side: Side::Source,
                source: Box::new(io::Error::from(io::ErrorKind::ConnectionRefused)),
            },
        }
    }

    #[test]
    fn each_code_has_a_failure_and_a_reason() {
        for code in FailureCode::ALL {
            let failure = case(code);
            assert_eq!(failure.code(), *code, "{failure:?}");
            let reason = failure.reason();
            assert_eq!(reason.code, *code);
            assert!(!reason.message.is_empty() && !reason.message.contains("--"), "{reason:?}");
        }
        for code in FindingCode::ALL {
            assert_eq!(case(&code.clone().into()).code(), code.as_str());
        }
    }

    #[test]
    fn other_failures_of_a_code() {
        for (failure, code) in [
            (Failure::Postcopy(PostcopyError::SourceGone(gone())), FailureCode::SourceGone),
            (Failure::Postcopy(PostcopyError::DestinationGone(gone())), FailureCode::DestinationGone),
            (Failure::Mirror(MirrorError::Process(ProcessError::Gone(gone()))), FailureCode::Gone),
            (
                execute(
                    "stop",
                    ExecuteError::Closed { command: "stop".into(), sent: true, cause: CloseCause::EndOfStream },
                ),
                FailureCode::Gone,
            ),
            (gave_up("timeout"), FailureCode::Timeout),
            (
                Failure::Frozen { at: at(), waited: Duration::from_secs(1), waiting: "the guest's writes wait" },
                FailureCode::NoAnswer,
            ),
            (Failure::Flushes { at: at(), waited: Duration::from_secs(4) }, FailureCode::SwitchoverTimeout),
            (Failure::KeptFromOwner(Duration::from_secs(4)), FailureCode::SwitchoverTimeout),
            (Failure::GuestEnded { gone: gone(), shutdown: None }, FailureCode::SourceGone),
        ] {
            assert_eq!(failure.code(), code, "{failure:?}");
        }
    }

    #[test]
    fn a_refused_mirror_names_the_network_only_where_that_is_the_matter() {
        for (refusal, about) in [
            ("Failed to connect to '/run/x-nbd': No such file or directory", true),
            ("Requested export not available", true),
            ("Failed to read option reply", true),
            ("Need a root block node", false),
            ("Node 'top' is busy: block device is in use by block job: commit", false),
            ("Block device is in use", false),
            ("TLS handshake failed", true),
        ] {
            assert_eq!(is_about_nbd(refusal), about, "{refusal}");
        }
    }

    #[test]
    fn a_refused_command_says_which_setting_decides() {
        for (command, setting) in [
            ("nbd-server-start", "`nbd_address`"),
            ("drive-mirror", "`nbd_address`"),
            ("migrate-incoming", "`migrate_address`"),
        ] {
            let message = refused(command).reason().message;
            assert!(message.contains(setting), "{message}");
        }
        assert!(no_reply().is_silence() && !refused("stop").is_silence());
    }
}
