//! What the engine has changed, or is about to change. Each effect is noted before its command is sent, so that the
//! way back knows of it even where the answer never came.

use crate::{memory::tuning::PreviousTuning, progress::Side};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A change to one of the two QEMUs, or to this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Effect {
    /// Capabilities and parameters were set; these were the values.
    Tuned {
        /// On this side.
        side: Side,
        /// What to put back.
        before: PreviousTuning,
    },
    /// A socket file may have been made.
    SocketFile(PathBuf),
    /// The destination runs an NBD server, with an export for each disk.
    NbdServer,
    /// The source has a guard bitmap and a mirror for the pair whose job this is.
    Mirror(String),
    /// The guest was stopped so that a mirror could start without a write.
    Stopped,
    /// The destination was told to listen for RAM: QEMU listens only once.
    Incoming,
    /// The source was told to migrate.
    Migrate,
    /// Trace events were switched on that were off before.
    Traced {
        /// On this side.
        side: Side,
        /// QEMU's names of the events.
        events: Vec<String>,
    },
    /// The source counts how long the guest's writes to the device at this path take.
    WriteTimes(String),
}

/// What is known of an effect beside how it is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EffectTraits {
    /// The side whose QEMU has it. The file of a socket is this host's, but of no use without the destination.
    pub(crate) side: Side,
    /// What is left where the effect cannot be undone, and neither jobs, block nodes nor exports show it.
    pub(crate) hidden_leftover: Option<&'static str>,
    /// Whether the effect is still there after the guest has moved. All others end with the migration.
    pub(crate) outlives_the_move: bool,
}

impl Effect {
    /// The one table of what each effect is.
    pub(crate) fn traits(&self) -> EffectTraits {
        let (side, hidden_leftover, outlives_the_move) = match self {
            Self::Tuned { side, .. } => (*side, Some("migration capabilities and parameters"), true),
            Self::SocketFile(_) => (Side::Destination, None, true),
            Self::NbdServer => (Side::Destination, None, false),
            Self::Mirror(_) => (Side::Source, None, false),
            Self::Stopped => (Side::Source, None, false),
            Self::Incoming => (Side::Destination, Some("an incoming migration"), false),
            Self::Migrate => (Side::Source, None, false),
            Self::Traced { side, .. } => (*side, Some("trace events vmstate_downtime_*, switched on"), true),
            Self::WriteTimes(_) => (Side::Source, Some("a histogram of the guest's writes"), true),
        };
        EffectTraits { side, hidden_leftover, outlives_the_move }
    }
}
