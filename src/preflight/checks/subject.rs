//! The facts and choices that the checks look at.

use crate::{
    codes::Setting,
    endpoint::Address,
    memory::tuning::MigrationTuning,
    preflight::facts::{SideFacts, ports::PortState},
    run_id::RunId,
    storage::model::{
        bitmaps::BitmapPlan,
        layout::{Disk, DiskPair, PairingProblem, StorageMode},
    },
};

/// All facts and choices that the checks judge.
#[derive(Debug)]
pub struct CheckSubject<'a> {
    /// The source.
    pub source: &'a SideFacts,
    /// The destination.
    pub destination: &'a SideFacts,
    /// The disks that would move.
    pub pairs: &'a [DiskPair],
    /// The problems that came up when they were paired.
    pub problems: &'a [PairingProblem],
    /// Disks that both sides have open, which are left alone.
    pub shared: &'a [String],
    /// Writable disks that the settings leave behind without naming them.
    pub left_out: &'a [String],
    /// Disks that the guest only reads, each with its counterpart on the destination.
    pub standing: &'a [(&'a Disk, Option<&'a Disk>)],
    /// Disks that are said to be shared, each with its counterpart on the destination.
    pub unshared: &'a [(&'a Disk, Option<&'a Disk>)],
    /// The destination's disks that nothing is copied to.
    pub spare: &'a [&'a Disk],
    /// The dirty bitmaps that move, and those that do not arrive.
    pub bitmaps: &'a BitmapPlan,
    /// The parameters and capabilities that QEMU's migration is going to have.
    pub tuning: &'a MigrationTuning,
    /// The way in which storage gets to the destination.
    pub storage: StorageMode,
    /// Whether room is needed for the data of today only, and not for the virtual sizes.
    pub overcommit: bool,
    /// Whether leftovers of an earlier migration are removed first.
    pub clean: bool,
    /// The other runs that journals tell of and that have to do with one of these two QEMUs.
    pub known_runs: &'a [KnownRun],
    /// The listening addresses with the setting of each.
    pub addresses: &'a [(Setting, ListeningAddress)],
    /// Those that were given, with the result of a look at each.
    pub ports: &'a [(Setting, Address, PortState)],
    /// Whether the guest's owner allows plain text on the network.
    pub allow_plaintext: bool,
}

/// The address at which a QEMU would listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListeningAddress {
    /// The address that a setting gives.
    Given(Address),
    /// A socket of this run, in a folder that only the engine's user may enter.
    Private(Address),
    /// No address could be chosen, for this reason.
    Missing(String),
}

impl ListeningAddress {
    /// The address, where there is one.
    pub fn address(&self) -> Option<&Address> {
        match self {
            Self::Given(address) | Self::Private(address) => Some(address),
            Self::Missing(_) => None,
        }
    }
}

/// Another run, of which a journal tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRun {
    /// The run.
    pub run: RunId,
    /// The path of its journal.
    pub journal: String,
    /// Whether the engine that writes the journal lives.
    pub engine_lives: bool,
    /// The process of that engine, where the kernel tells it.
    pub engine_pid: Option<u32>,
    /// Whether the source is one of its two QEMUs.
    pub has_source: bool,
    /// Whether the destination is one of its two QEMUs.
    pub has_destination: bool,
    /// Whether source and destination are its source and its destination.
    pub is_this_pair: bool,
}
