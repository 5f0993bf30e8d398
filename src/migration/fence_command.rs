//! What the fence command is on this host, which the validation of settings asks for.

use super::{
    Settings,
    validate::{self, CommandFile, Invalid},
};
use crate::trust::{self, FileOwner};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

impl Settings {
    /// Whether every setting can be used. Whatever starts asks this first.
    ///
    /// # Errors
    /// Every setting that cannot, with what would be right.
    pub fn validate(&self) -> Result<(), Invalid> {
        let fence = self.fence_command.as_deref().map_or(CommandFile::Missing, command_file);
        validate::check(self, fence)
    }
}

/// What a path leads to that is to be executed.
pub(crate) fn command_file(path: &Path) -> CommandFile {
    match fs::metadata(path) {
        Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => {
            match trust::locate(path, FileOwner::UserOrRoot) {
                Ok(_) => CommandFile::Executable,
                Err(error) => CommandFile::Distrusted(error.to_string()),
            }
        }
        Ok(_) => CommandFile::NotExecutable,
        Err(_) => CommandFile::Missing,
    }
}
