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

/// Everything the checks look at.
#[derive(Debug)]
pub struct CheckSubject<'a> {
    /// The source.
    pub source: &'a SideFacts,
    /// The destination.
    pub destination: &'a SideFacts,
    /// The disks that would move.
    pub pairs: &'a [DiskPair],
    /// What pairing them met.
    pub problems: &'a [PairingProblem],
    /// Disks that both sides have open, which are left alone.
    pub shared: &'a [String],
    /// Writable disks that the user's choice leaves behind without saying so.
    pub left_out: &'a [String],
    /// Disks that are only read, each with what the destination has in its place.
    pub standing: &'a [(&'a Disk, Option<&'a Disk>)],
    /// Disks that are said to be shared, likewise.
    pub unshared: &'a [(&'a Disk, Option<&'a Disk>)],
    /// The destination's disks that nothing goes to.
    pub spare: &'a [&'a Disk],
    /// Bitmaps that do not arrive.
    pub bitmaps: &'a BitmapPlan,
    /// What is wanted of QEMU's migration.
    pub tuning: &'a MigrationTuning,
    /// How storage gets there.
    pub storage: StorageMode,
    /// Room is needed only for what is copied now.
    pub overcommit: bool,
    /// What an earlier try left is removed first.
    pub clean: bool,
    /// The listening addresses, with the setting of each; `None` where none could be chosen.
    pub addresses: &'a [(Setting, Option<Address>)],
    /// The ports among them, and what a connection to each came to.
    pub ports: &'a [(Setting, Address, PortState)],
    /// The user allows plain text on the network.
    pub allow_plaintext: bool,
}
