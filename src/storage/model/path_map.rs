//! Maps the source's file paths to the destination's.
//!
//! Pure. Paths are compared component by component; the file system is never asked.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where the user wants the files to be on the destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PathMap {
    /// Files or folders of the source, each with its path on the destination. The longest match wins.
    pub maps: Vec<(PathBuf, PathBuf)>,
    /// The folder for images that the guest writes to, where no entry of `maps` matches.
    pub to: Option<PathBuf>,
}

impl PathMap {
    /// The path that `maps` gives to a file of the source, if an entry matches.
    pub fn mapped(&self, file: &Path) -> Option<PathBuf> {
        let fitting = self.maps.iter().filter_map(|(from, to)| Some((from, to, file.strip_prefix(from).ok()?)));
        let (_, to, rest) = fitting.max_by_key(|(from, ..)| from.components().count())?;
        // `join` with an empty path would add a trailing slash.
        Some(if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) })
    }

    /// The destination path of an image that the guest writes to; `None` if the user gave neither a map nor a folder.
    pub fn of_top(&self, file: &Path) -> Option<PathBuf> {
        self.mapped(file).or_else(|| Some(self.to.as_ref()?.join(file.file_name()?)))
    }

    /// The destination path of an image that the guest only reads: the same path as on the source, unless a map
    /// matches.
    pub fn of_read_only(&self, file: &Path) -> PathBuf {
        self.mapped(file).unwrap_or_else(|| file.to_owned())
    }
}

/// The absolute path in QEMU's name for a file. `None` if the name is no path (a URL, a `json:` description), or is
/// relative to an unknown directory.
pub fn path_of(name: &str, directory: Option<&Path>) -> Option<PathBuf> {
    let path = match name.strip_prefix("file:") {
        Some(path) => path,
        // QEMU reads a word before a colon as a protocol, unless a slash comes first.
        None if name.find([':', '/']).is_some_and(|at| name[at..].starts_with(':')) => return None,
        None => name,
    };
    let path = Path::new(path);
    match path.is_absolute() {
        true => Some(path.components().collect()),
        false if path.as_os_str().is_empty() => None,
        false => Some(directory?.join(path).components().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(maps: &[(&str, &str)], to: Option<&str>) -> PathMap {
        let maps = maps.iter().map(|(from, to)| (from.into(), to.into())).collect();
        PathMap { maps, to: to.map(PathBuf::from) }
    }

    #[test]
    fn the_longest_map_wins_by_components() {
        let maps = places(
            &[("/a", "/x"), ("/a/b", "/y"), ("/a/b/disk.qcow2", "/z/other.qcow2"), ("/", "/all"), ("/s/", "/t/")],
            Some("/to"),
        );
        for (file, expected) in [
            ("/a/disk.qcow2", "/x/disk.qcow2"),
            ("/a/b/c/disk.qcow2", "/y/c/disk.qcow2"),
            ("/a/b/disk.qcow2", "/z/other.qcow2"),
            ("/a/bc", "/x/bc"),
            ("/ab", "/all/ab"),
            ("/s/d", "/t/d"),
        ] {
            assert_eq!(maps.mapped(Path::new(file)), Some(expected.into()), "{file}");
            assert_eq!(maps.of_top(Path::new(file)), Some(expected.into()), "{file}");
        }
    }

    #[test]
    fn without_a_map_only_what_the_guest_writes_moves() {
        let (both, none) = (places(&[], Some("/to")), places(&[], None));
        assert_eq!(both.of_top(Path::new("/a/disk")), Some("/to/disk".into()));
        assert_eq!(both.of_read_only(Path::new("/a/base")), PathBuf::from("/a/base"));
        assert_eq!(none.of_top(Path::new("/a/disk")), None);
    }

    #[test]
    fn names_of_qemus_become_paths() {
        for (name, expected) in [
            ("/a/b", Some("/a/b")),
            ("/a:b", Some("/a:b")),
            ("file:/a//b", Some("/a/b")),
            ("file:a:b", Some("/d/a:b")),
            ("a,b", Some("/d/a,b")),
            ("./a:b", Some("/d/a:b")),
            ("nbd://h/x", None),
            ("json:{}", None),
            ("", None),
        ] {
            assert_eq!(path_of(name, Some(Path::new("/d"))), expected.map(PathBuf::from), "{name}");
        }
        assert_eq!(path_of("a", None), None);
    }
}
