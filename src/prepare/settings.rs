//! The settings of a preparation.

use crate::{
    endpoint::Address,
    migration::Settings,
    quantity::Rate,
    storage::model::{layout::DiskSelection, path_map::PathMap},
};
use std::path::PathBuf;

/// What a preparation does about backing files that the destination does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PopulateMode {
    /// The preparation reports missing backing files and is refused.
    #[default]
    Never,
    /// The preparation copies missing backing files from the source while the guest runs.
    Missing,
}

/// The settings of a preparation.
#[derive(Debug, Clone)]
pub struct PrepareSettings {
    /// Which disks to prepare, and whether their images need the source's backing files. Names of destination disks are
    /// ignored: the destination has no disks yet.
    pub selection: DiskSelection,
    /// The paths of the files on the destination.
    pub places: PathMap,
    /// What to do about missing backing files.
    pub populate: PopulateMode,
    /// The limit for copies of backing files; none by default.
    pub bandwidth: Option<Rate>,
    /// The address at which the source listens while backing files are copied. By default a unix socket in
    /// `runtime_dir`, if the source is a process of this host.
    pub nbd_address: Option<Address>,
    /// Whether `nbd_address` may be another address than loopback, without encryption.
    pub allow_plaintext: bool,
    /// The program `qemu-img`: a path, or a name in `PATH`.
    pub qemu_img: PathBuf,
    /// The directory for the socket. The source must be able to create a socket there.
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
