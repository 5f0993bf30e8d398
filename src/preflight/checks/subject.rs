//! The facts and choices that the checks look at.

use crate::{
    codes::Setting,
    endpoint::Address,
    memory::tuning::MigrationTuning,
    preflight::facts::{SideFacts, ports::PortState},
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
    /// The listening addresses with the setting of each; `None` where no address could be chosen.
    pub addresses: &'a [(Setting, Option<Address>)],
    /// The ports among them, with the result of a connection to each.
    pub ports: &'a [(Setting, Address, PortState)],
    /// Whether the guest's owner allows plain text on the network.
    pub allow_plaintext: bool,
}
