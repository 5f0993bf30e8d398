//! Where the destination has what the source has in a file.
//!
//! Pure. Paths are compared component by component and never looked up.

use std::path::{Path, PathBuf};

/// The user's word on where files go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathMap {
    /// A file or folder of the source, and what it is at the destination. The longest that fits counts.
    pub maps: Vec<(PathBuf, PathBuf)>,
    /// The folder for the images that guests write, where no map says otherwise.
    pub to: Option<PathBuf>,
}

impl PathMap {
    /// Where a map puts a file.
    pub fn mapped(&self, file: &Path) -> Option<PathBuf> {
        let fitting = self.maps.iter().filter_map(|(from, to)| Some((from, to, file.strip_prefix(from).ok()?)));
        let (_, to, rest) = fitting.max_by_key(|(from, ..)| from.components().count())?;
        // joining nothing would leave a slash behind the name
        Some(if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) })
    }

    /// Where an image that the guest writes goes, if that was said.
    pub fn of_top(&self, file: &Path) -> Option<PathBuf> {
        self.mapped(file).or_else(|| Some(self.to.as_ref()?.join(file.file_name()?)))
    }

    /// Where an image that is only read is: unless a map says otherwise, under the path it has on the source.
    pub fn of_read_only(&self, file: &Path) -> PathBuf {
        self.mapped(file).unwrap_or_else(|| file.to_owned())
    }
}

/// The path in a file name of QEMU's, made absolute; none where it is something else than a file, or relative to a
/// directory that is not known.
pub fn path_of(name: &str, directory: Option<&Path>) -> Option<PathBuf> {
    let path = match name.strip_prefix("file:") {
        Some(path) => path,
        // QEMU takes what is before a colon for a protocol, unless a slash comes first
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
