//! What a user can ask of a preparation.

use crate::{
    endpoint::Address,
    migration::Settings,
    quantity::Rate,
    storage::model::{layout::DiskSelection, path_map::PathMap},
};
use std::path::PathBuf;

/// What becomes of backing files that the destination does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PopulateMode {
    /// They are named, and nothing is made.
    #[default]
    Never,
    /// They are copied from the source while the guest runs.
    Missing,
}

/// What a user can ask of a preparation.
#[derive(Debug, Clone)]
pub struct PrepareSettings {
    /// Which disks, and whether their images stand on the source's backing files; a destination's name is passed over.
    pub selection: DiskSelection,
    /// Where files go.
    pub places: PathMap,
    /// What becomes of missing backing files.
    pub populate: PopulateMode,
    /// A ceiling for what is copied.
    pub bandwidth: Option<Rate>,
    /// Where the source listens while backing files are copied; a unix socket in `runtime_dir` by default, if the source
    /// is a process of this host.
    pub nbd_address: Option<Address>,
    /// Allow that to be an address that is not a loopback one.
    pub allow_plaintext: bool,
    /// `qemu-img`: a path, or a name to be looked for in `PATH`.
    pub qemu_img: PathBuf,
    /// Where the socket is made. The source must be able to reach it.
    pub runtime_dir: PathBuf,
}

impl Default for PrepareSettings {
    fn default() -> Self {
        Self {
            selection: DiskSelection::default(),
            places: PathMap::default(),
            populate: PopulateMode::default(),
            bandwidth: None,
            nbd_address: None,
            allow_plaintext: false,
            qemu_img: PathBuf::from("qemu-img"),
            runtime_dir: Settings::default().runtime_dir,
        }
    }
}
