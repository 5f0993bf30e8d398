//! What the engine has changed, or is about to: each is noted before it is sent, so that the way back knows of it even
//! where the answer never came.

use crate::{memory::tuning::Before, progress::Side};
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
        before: Before,
    },
    /// A socket file may have been made.
    SocketFile(PathBuf),
    /// The destination runs an NBD server, with an export for each disk.
    NbdServer,
    /// The source has a guard bitmap and a mirror for the pair whose job this is.
    Mirror(String),
    /// The guest was stopped so that a mirror could start without a write.
    Stopped,
    /// The destination was told to listen for RAM: it can do so only once.
    Incoming,
    /// The source was told to migrate.
    Migrate,
}
