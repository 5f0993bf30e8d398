//! How the guest stands.

use qferry::internals::qemu::reply::RunState;

/// How the guest stands by its own and its owner's doing, QEMU's stop for a migration aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum GuestStand {
    Runs,
    Paused,
    /// Reset while the guest stood still.
    Prelaunch,
    Shutdown,
    Panicked,
    IoError,
    Suspended,
}

impl GuestStand {
    pub(crate) fn run_state(self) -> RunState {
        match self {
            Self::Runs => RunState::Running,
            Self::Paused => RunState::Paused,
            Self::Prelaunch => RunState::Prelaunch,
            Self::Shutdown => RunState::Shutdown,
            Self::Panicked => RunState::GuestPanicked,
            Self::IoError => RunState::IoError,
            Self::Suspended => RunState::Suspended,
        }
    }

    /// The guest has stopped by its own doing, and an event has told why.
    pub(crate) fn is_halted(self) -> bool {
        matches!(self, Self::Shutdown | Self::Panicked | Self::IoError)
    }

    /// QEMU stops such a guest for a migration, and resumes it where the migration fails.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Self::Runs | Self::Suspended)
    }
}
