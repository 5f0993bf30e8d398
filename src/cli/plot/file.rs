//! The file of a plot: whole or not there, and never in the place of anything but a plot.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process,
};

/// The words by which a plot is known to be one.
pub(super) const MARKER: &str = "a plot by qferry transcript";
/// Bytes of a file in which the marker of a plot is found.
const HEAD: usize = 1024;

/// Why a plot cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlotFileError {
    /// The folder is not there.
    #[error("{} cannot be written: there is no folder {}", path.display(), folder.display())]
    NoFolder {
        /// The file.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
    },
    /// Something else has the name.
    #[error("{} is {what}, and is not overwritten: give another name, or remove it first", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Another operation on the file failed.
    #[error("{} cannot be written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
}

/// Looks whether the file can be written.
pub(super) fn check(path: &Path) -> Result<(), PlotFileError> {
    let failed = |source| PlotFileError::Io { path: path.to_owned(), source };
    let folder = folder(path);
    if !folder.is_dir() {
        return Err(PlotFileError::NoFolder { path: path.to_owned(), folder: folder.to_owned() });
    }
    let taken = |what| Err(PlotFileError::Taken { path: path.to_owned(), what });
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) => found,
    };
    if found.is_dir() {
        return taken("a folder");
    }
    if !found.is_file() {
        return taken("no plain file");
    }
    let mut head = Vec::new();
    File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head)).map_err(failed)?;
    let is_plot = head.windows(MARKER.len()).any(|part| part == MARKER.as_bytes());
    if head.is_empty() || is_plot { Ok(()) } else { taken("no plot of qferry") }
}

/// Writes the file. Until all of it is on the disk the name keeps what it had.
pub(super) fn write(path: &Path, text: &str) -> Result<(), PlotFileError> {
    check(path)?;
    // a link stays a link, to the new plot
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = std::ffi::OsString::from(".");
    name.push(real.file_name().unwrap_or_default());
    name.push(format!(".qferry-partial-{}", process::id()));
    let partial = folder(&real).join(name);
    let written = put(&partial, text).and_then(|()| fs::rename(&partial, &real));
    written.map_err(|source| {
        // a file that cannot be removed either has its reason in the error that is told
        fs::remove_file(&partial).ok();
        PlotFileError::Io { path: path.to_owned(), source }
    })
}

fn put(partial: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::describe;

    #[test]
    fn a_plot_takes_the_place_of_a_plot_and_of_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let plot = format!("<svg>\n<!-- {MARKER} -->\n</svg>");
        write(&at("new.svg"), &plot).unwrap();
        write(&at("new.svg"), &format!("{plot}2")).unwrap();
        assert_eq!(fs::read_to_string(at("new.svg")).unwrap(), format!("{plot}2"));
        std::os::unix::fs::symlink(at("new.svg"), at("link.svg")).unwrap();
        write(&at("link.svg"), &plot).unwrap();
        assert!(fs::symlink_metadata(at("link.svg")).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(at("new.svg")).unwrap(), plot);
        fs::write(at("empty.svg"), "").unwrap();
        write(&at("empty.svg"), &plot).unwrap();

        fs::write(at("mine.svg"), "<svg>a drawing</svg>").unwrap();
        fs::create_dir(at("folder.svg")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("dangling.svg")).unwrap();
        for (name, words) in [
            ("mine.svg", "is no plot of qferry, and is not overwritten"),
            ("folder.svg", "is a folder"),
            ("absent/a.svg", "there is no folder"),
            ("new.svg/a.svg", "there is no folder"),
            ("dangling.svg", "cannot be written: No such file"),
        ] {
            let told = describe(&write(&at(name), &plot).unwrap_err());
            assert!(told.contains(words), "{name}: {told}");
        }
        assert_eq!(fs::read_to_string(at("mine.svg")).unwrap(), "<svg>a drawing</svg>");
        let left = fs::read_dir(folder.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("partial"));
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn a_disk_that_takes_nothing_leaves_the_old_plot() {
        // a name that is too long with the addition fails when the new file is made
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("{}.svg", "x".repeat(240)));
        fs::write(&path, format!("<!-- {MARKER} -->old")).unwrap();
        assert!(write(&path, "new").is_err());
        assert!(fs::read_to_string(&path).unwrap().ends_with("old"));
    }
}
