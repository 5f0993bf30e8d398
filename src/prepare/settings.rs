//! The settings of a preparation.

use crate::{
    endpoint::Address,
    migration::{Invalid, Settings, validate::Problems},
    quantity::Rate,
    storage::model::{layout::DiskSelection, path_map::PathMap},
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a preparation does about backing files that the destination does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PopulateMode {
    /// The preparation reports missing backing files and is refused.
    #[default]
    Never,
    /// The preparation copies missing backing files from the source while the guest runs.
    Missing,
}

/// The settings of a preparation.
///
/// With serde each field is read and written under its own name, and may be left out. More fields may be added: take
/// the default and set what differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PrepareSettings {
    /// Which disks to prepare, and whether their images need the source's backing files. Names of destination disks are
    /// ignored: the destination has no disks yet.
    pub selection: DiskSelection,
    /// The paths of the files on the destination.
    pub places: PathMap,
    /// What to do about missing backing files.
    pub populate: PopulateMode,
    /// Whether images are made anew that a migration of qferry has written a part of a disk to before it was called
    /// off. Only its record in the state directory proves that, and only while nobody has touched the image since.
    pub again: bool,
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
            again: false,
            bandwidth: None,
            nbd_address: None,
            allow_plaintext: false,
            qemu_img: PathBuf::from("qemu-img"),
            runtime_dir: Settings::default().runtime_dir,
        }
    }
}

impl PrepareSettings {
    /// Whether every setting can be used. Whatever starts asks this first.
    ///
    /// # Errors
    /// Every setting that cannot, with what would be right.
    pub fn validate(&self) -> Result<(), Invalid> {
        let mut problems = Problems::default();
        problems.require_rate("bandwidth", self.bandwidth);
        problems.require_absolute("runtime_dir", &self.runtime_dir);
        if let Some(folder) = &self.places.to {
            problems.require_absolute("to", folder);
        }
        for (source, destination) in &self.places.maps {
            problems.require_absolute("map", source);
            problems.require_absolute("map", destination);
        }
        let is_named = self.qemu_img.file_name().is_some();
        problems.require(is_named, "qemu_img", format!("`{}`", self.qemu_img.display()), "give a program");
        let named = self.selection.disks.iter().flat_map(|(source, destination)| [Some(source), destination.as_ref()]);
        problems.require_names("disks", named.flatten().map(String::as_str));
        problems.require_names("skip", self.selection.skip.iter().map(String::as_str));
        problems.into_result()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_used_are_refused() {
        assert_eq!(PrepareSettings::default().validate(), Ok(()));
        let refused = |change: fn(&mut PrepareSettings)| {
            let mut settings = PrepareSettings::default();
            change(&mut settings);
            let problems = settings.validate().unwrap_err().problems;
            problems.into_iter().map(|problem| problem.field).collect::<Vec<_>>()
        };
        assert_eq!(refused(|settings| settings.bandwidth = Some(Rate(0))), ["bandwidth"]);
        assert_eq!(refused(|settings| settings.runtime_dir = "run".into()), ["runtime_dir"]);
        assert_eq!(refused(|settings| settings.places.to = Some("there".into())), ["to"]);
        assert_eq!(refused(|settings| settings.places.maps = vec![("a".into(), "/b".into())]), ["map"]);
        assert_eq!(refused(|settings| settings.qemu_img = "".into()), ["qemu_img"]);
        assert_eq!(refused(|settings| settings.selection.skip = vec![String::new()]), ["skip"]);
    }
}
