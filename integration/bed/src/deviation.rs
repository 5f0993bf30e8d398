//! Deviations of a destination: wrong files, or files that QEMU opens wrongly.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::disk::{DiskFiles, Format, content_below, create, create_top};
use crate::error::{Context, Error, Result};
use crate::qemu_build::Build;
use crate::record::Side;
use crate::spec::{Spec, Style};

/// One thing that is wrong with the destination. Disks are counted from 0, layers from 0 at the bottom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// A byte in a layer below the overlay differs.
    FlipByte {
        /// The disk.
        disk: usize,
        /// The layer.
        layer: usize,
        /// The offset in the layer, as a guest would see it.
        offset: u64,
    },
    /// The images below are gone, and the overlay is opened with `backing: null`. Needs `-blockdev`.
    NoBacking {
        /// The disk.
        disk: usize,
    },
    /// The overlay has another virtual size.
    Size {
        /// The disk.
        disk: usize,
        /// The size in bytes.
        size: u64,
    },
    /// The overlay has data in it.
    Data {
        /// The disk.
        disk: usize,
        /// The offset.
        offset: u64,
        /// The number of bytes.
        length: u64,
    },
    /// Each of two disks is opened on the other's image.
    Swapped {
        /// The first disk.
        one: usize,
        /// The second disk.
        other: usize,
    },
    /// The disk is opened on the source's own image.
    SourcesImage {
        /// The disk.
        disk: usize,
    },
    /// The overlay stands on the source's own images.
    SourcesBacking {
        /// The disk.
        disk: usize,
        /// The way in which the files are the same.
        sharing: Sharing,
    },
    /// `discard` is not `unmap`, although the spec has it so.
    NoDiscard {
        /// The disk.
        disk: usize,
    },
    /// The device's id is `otherN`.
    OtherId {
        /// The disk.
        disk: usize,
    },
    /// Writing the overlay's data fails with EIO. Needs `-blockdev`.
    WriteError {
        /// The disk.
        disk: usize,
    },
    /// The device cannot do what the guest's driver has agreed on with the source's, so that its state is refused.
    LesserDevice {
        /// The disk.
        disk: usize,
    },
    /// The device has room for rings of 1024 entries.
    LargerRings {
        /// The disk.
        disk: usize,
    },
    /// All overlays are on a file system of that size. Needs root.
    SmallFileSystem {
        /// The size in bytes.
        bytes: u64,
    },
    /// QEMU runs as `nobody`, who may read the overlays and not write them. Needs root.
    OtherUser,
}

/// A way in which two paths lead to one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// The paths are equal.
    SamePath,
    /// The paths are hard links to one file.
    HardLink,
    /// The destination's path is a symbolic link to the source's.
    Symlink,
}

/// A mounted file system, unmounted on drop.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn tmpfs(at: PathBuf, bytes: u64) -> Result<Self> {
        fs::create_dir_all(&at).context(|| format!("creating {}", at.display()))?;
        let options = std::ffi::CString::new(format!("size={bytes},mode=755")).context(|| "mount options")?;
        let mounted = mount("tmpfs", &at, "tmpfs", MountFlags::NODEV, Some(options.as_c_str()));
        mounted.context(|| format!("mounting a tmpfs at {} (only root may)", at.display()))?;
        Ok(Self(at))
    }
}

impl Mounted {
    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The mount is detached, because a process that is about to be killed may have files open on it.
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.0.display());
        }
    }
}

/// The id of a disk's device on a side.
pub(crate) fn id_of(spec: &Spec, side: Side, disk: usize) -> String {
    let other = spec.deviates(side, &Deviation::OtherId { disk });
    if other { format!("other{disk}") } else { format!("disk{disk}") }
}

/// Makes the destination's files, with the deviations of the spec.
pub(crate) fn create_destination(
    build: &Build,
    spec: &Spec,
    home: &Path,
    source: &[DiskFiles],
) -> Result<(Vec<DiskFiles>, Option<Mounted>)> {
    let small = spec.destination.iter().find_map(|deviation| match deviation {
        Deviation::SmallFileSystem { bytes } => Some(*bytes),
        _ => None,
    });
    let mounted = small.map(|bytes| Mounted::tmpfs(home.join("small"), bytes)).transpose()?;
    let tops = mounted.as_ref().map_or(home, |mounted| mounted.0.as_path());
    let mut disks = create(build, &spec.disks, Side::Destination, home, tops)?;
    for deviation in &spec.destination {
        apply(deviation, build, spec, home, source, &mut disks).context(|| format!("{deviation:?}"))?;
    }
    Ok((disks, mounted))
}

fn apply(
    deviation: &Deviation,
    build: &Build,
    spec: &Spec,
    home: &Path,
    source: &[DiskFiles],
    disks: &mut [DiskFiles],
) -> Result<()> {
    let unknown = || Error::new("there is no such disk");
    match *deviation {
        Deviation::FlipByte { disk, layer, offset } => {
            let files = disks.get(disk).ok_or_else(unknown)?;
            let path = files.layers.get(layer).ok_or_else(|| Error::new("there is no such layer"))?;
            let byte = !content_below(&spec.disks, disk, layer + 1).at(offset);
            let raw = path.extension().is_some_and(|end| end == "raw");
            let format = if raw { Format::Raw } else { Format::Qcow2 };
            build.io_on(path, format, [format!("write -q -P {byte} {offset} 1").as_str()]).map(drop)
        }
        Deviation::NoBacking { disk } => {
            if spec.style != Style::Blockdev {
                return Err(Error::new("needs -blockdev"));
            }
            let files = disks.get_mut(disk).ok_or_else(unknown)?;
            let remove = |path: PathBuf| fs::remove_file(&path).context(|| format!("removing {}", path.display()));
            std::mem::take(&mut files.layers).into_iter().try_for_each(remove)
        }
        Deviation::Size { disk, size } => {
            let files = disks.get(disk).ok_or_else(unknown)?;
            create_top(build, &spec.disks, disk, files, size)
        }
        Deviation::Data { disk, offset, length } => {
            let files = disks.get(disk).ok_or_else(unknown)?;
            let command = format!("write -q -P 0xd5 {offset} {length}");
            build.io_on(&files.overlay, files.format, [command.as_str()]).map(drop)
        }
        Deviation::Swapped { one, other } => {
            if one.max(other) >= disks.len() {
                return Err(unknown());
            }
            disks.swap(one, other);
            Ok(())
        }
        Deviation::SourcesImage { disk } => {
            *disks.get_mut(disk).ok_or_else(unknown)? = source.get(disk).ok_or_else(unknown)?.clone();
            Ok(())
        }
        Deviation::SourcesBacking { disk, sharing } => {
            let files = disks.get_mut(disk).ok_or_else(unknown)?;
            let source_layers = &source.get(disk).ok_or_else(unknown)?.layers;
            if sharing == Sharing::SamePath {
                files.layers.clone_from(source_layers);
                let size = spec.disks.get(disk).map_or(0, |disk| disk.size);
                return create_top(build, &spec.disks, disk, files, size);
            }
            for (own, sources) in files.layers.iter().zip(source_layers) {
                fs::remove_file(own).context(|| format!("removing {}", own.display()))?;
                let linked =
                    if sharing == Sharing::HardLink { fs::hard_link(sources, own) } else { symlink(sources, own) };
                linked.context(|| format!("linking {}", own.display()))?;
            }
            Ok(())
        }
        Deviation::OtherUser => {
            let root = home.parent().ok_or_else(|| Error::new("a folder without a parent"))?;
            // QEMU makes its sockets in the run folder, and has to reach its images.
            open_to_all(root, 0o755)?;
            open_to_all(&root.join("run"), 0o777)
        }
        // These deviations are part of the command line.
        Deviation::NoDiscard { .. }
        | Deviation::OtherId { .. }
        | Deviation::WriteError { .. }
        | Deviation::LesserDevice { .. }
        | Deviation::LargerRings { .. }
        | Deviation::SmallFileSystem { .. } => Ok(()),
    }
}

fn open_to_all(folder: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(mode)).context(|| format!("opening {}", folder.display()))
}
