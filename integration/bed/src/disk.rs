//! Disks: their shapes, and the files of one side, which are a chain of images with known content and the image on top.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::bitmap::add_bitmap;
use crate::content::{Content, GRAIN, PIECES, Piece, spread};
use crate::error::{Context, Error, Result};
use crate::qemu_build::Build;
use crate::record::Side;

const MIB: u64 = 1 << 20;

/// An image's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `raw`
    Raw,
    /// `qcow2`
    #[default]
    Qcow2,
}

impl Format {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// The device of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A `virtio-blk-pci` that the guest writes to. These come first among the disks of a spec.
    #[default]
    Virtio,
    /// A read-only `virtio-blk-pci`, with the same content on both sides.
    ReadOnly,
    /// An `ide-cd` on a raw image, with the same content on both sides.
    Cdrom,
    /// The second flash, raw, such as firmware keeps its variables in. The first one is SeaBIOS, which boots as ever.
    Pflash,
}

/// The images below the top image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Below {
    /// One raw file of [`DiskSpec::backing`] bytes, with [`DiskSpec::backing_data`] in it.
    #[default]
    File,
    /// These images, the bottom first.
    Layers(Vec<Layer>),
    /// The very files that are below that other disk, which comes before.
    Same(usize),
    /// Nothing.
    Nothing,
}

/// One image of a chain below the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The format. Only the bottom may be raw.
    pub format: Format,
    /// The virtual size, a multiple of 64 KiB, which may differ from the disk's.
    pub size: u64,
    /// The bytes of the layer's own data, which partly cover those of other layers.
    pub data: u64,
    /// The cluster size, if the format has clusters.
    pub cluster: u64,
    /// The most pieces into which the data is cut.
    pub pieces: u64,
}

impl Layer {
    /// A raw layer.
    pub fn raw(size: u64, data: u64) -> Self {
        Self { format: Format::Raw, size, data, cluster: GRAIN, pieces: PIECES }
    }

    /// A qcow2 layer with clusters of 64 KiB.
    pub fn qcow2(size: u64, data: u64) -> Self {
        Self { format: Format::Qcow2, ..Self::raw(size, data) }
    }
}

/// QEMU's `detect-zeroes` of a disk's format node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// Zeroes are written as any data.
    #[default]
    Off,
    /// Zeroes become zero clusters.
    On,
    /// Zeroes become holes. Needs `discard`.
    Unmap,
}

/// A filter node on the source. A throttle has no limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// `throttle`
    Throttle,
    /// `copy-on-read`: what is read from below comes into the overlay.
    CopyOnRead,
    /// `blkdebug`: reading the overlay's own data fails with EIO. Only below, and not for a guest that reads.
    ReadError,
    /// `blkdebug`: writing the overlay's own data fails with ENOSPC, as where the file system is full. Only below, and
    /// for a guest that stops upon it, as a virtio disk does by default.
    Full,
}

/// The shape of one disk, the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Virtual size in bytes, a multiple of 512.
    pub size: u64,
    /// Size of the backing file, a multiple of 64 KiB; it may be smaller.
    pub backing: u64,
    /// Bytes of data in the backing file, spread evenly over it.
    pub backing_data: u64,
    /// Bytes of data in the source's overlay before the guest boots, spread evenly over it.
    pub overlay_data: u64,
    /// The overlays' cluster size.
    pub cluster: u64,
    /// Read operations a second that the source's overlay file may do once the guest has booted. Needs `-blockdev`.
    pub throttled_reads: Option<u64>,
    /// The images below the overlay.
    pub below: Below,
    /// The overlay's own format; raw stands on nothing.
    pub top: Format,
    /// The device.
    pub device: Device,
    /// Whether discarded ranges are given back to the host: `discard: unmap`.
    pub discard: bool,
    /// The treatment of zeroes that are written.
    pub detect_zeroes: DetectZeroes,
    /// Whether the overlay is read and written past the page cache.
    pub direct: bool,
    /// A filter on the source between device and overlay. Needs `-blockdev`.
    pub filter_above: Option<Filter>,
    /// A filter on the source between overlay and its file. Needs `-blockdev`.
    pub filter_below: Option<Filter>,
    /// Persistent dirty bitmaps in the source's overlay, older than the data in it.
    pub bitmaps: Vec<String>,
    /// Whether a thread of its own serves the device, on both sides.
    pub iothread: bool,
}

impl Default for DiskSpec {
    fn default() -> Self {
        Self {
            size: 128 * MIB,
            backing: 128 * MIB,
            backing_data: 32 * MIB,
            overlay_data: 16 * MIB,
            cluster: GRAIN,
            throttled_reads: None,
            below: Below::File,
            top: Format::Qcow2,
            device: Device::Virtio,
            discard: false,
            detect_zeroes: DetectZeroes::Off,
            direct: false,
            filter_above: None,
            filter_below: None,
            bitmaps: Vec::new(),
            iothread: false,
        }
    }
}

/// The files of one disk on one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskFiles {
    /// The images below, the bottom first; this side's own copies.
    pub layers: Vec<PathBuf>,
    /// The image on top, to which QEMU writes.
    pub overlay: PathBuf,
    /// The format of the image on top.
    pub format: Format,
}

impl DiskFiles {
    /// The image directly below the top, if there is one.
    pub fn backing(&self) -> Option<&PathBuf> {
        self.layers.last()
    }
}

impl DiskSpec {
    /// 16 MiB with a little data: made in a moment.
    pub fn small() -> Self {
        Self { size: 16 * MIB, backing: 16 * MIB, backing_data: MIB, overlay_data: MIB, ..Self::default() }
    }

    /// An overlay on these images, the bottom first.
    pub fn chain(layers: impl Into<Vec<Layer>>) -> Self {
        Self { below: Below::Layers(layers.into()), ..Self::small() }
    }

    /// An image that stands alone, as large as that.
    pub fn alone(top: Format, size: u64) -> Self {
        Self { size, top, below: Below::Nothing, ..Self::small() }
    }

    /// An overlay on what is below another disk.
    pub fn beside(disk: usize) -> Self {
        Self { below: Below::Same(disk), ..Self::small() }
    }

    /// A CD-ROM.
    pub fn cdrom(size: u64) -> Self {
        Self { device: Device::Cdrom, ..Self::alone(Format::Raw, size) }
    }

    /// A flash of that size, a multiple of 4 KiB, with 64 KiB of data in it.
    pub fn pflash(size: u64) -> Self {
        Self { device: Device::Pflash, overlay_data: GRAIN, ..Self::alone(Format::Raw, size) }
    }

    /// Whether the content changes while the guest runs, so that a migration has to copy it.
    pub fn is_written(&self) -> bool {
        matches!(self.device, Device::Virtio | Device::Pflash)
    }

    fn check(&self) -> Result<()> {
        let whole = [self.backing, self.backing_data, self.overlay_data].iter().all(|bytes| bytes % GRAIN == 0);
        if !whole || self.size == 0 || self.size % 512 != 0 {
            return Err(Error::new(format!("sizes must be multiples of 64 KiB, the disk's of 512: {self:?}")));
        }
        if self.backing_data > self.backing || self.overlay_data > self.size {
            return Err(Error::new(format!("data must fit: {self:?}")));
        }
        if self.top == Format::Raw && (self.below != Below::Nothing || !self.bitmaps.is_empty()) {
            return Err(Error::new(format!("a raw image stands on nothing and has no bitmaps: {self:?}")));
        }
        if matches!(self.device, Device::Cdrom | Device::Pflash) && self.top != Format::Raw {
            return Err(Error::new(format!("a CD-ROM or a flash is raw: {self:?}")));
        }
        if self.detect_zeroes == DetectZeroes::Unmap && !self.discard {
            return Err(Error::new(format!("detect-zeroes=unmap needs discard: {self:?}")));
        }
        if let Below::Layers(layers) = &self.below {
            let fits = |layer: &Layer| layer.size % GRAIN == 0 && layer.data % GRAIN == 0 && layer.data <= layer.size;
            if !layers.iter().all(fits) || layers.iter().skip(1).any(|layer| layer.format == Format::Raw) {
                return Err(Error::new(format!("layers in multiples of 64 KiB, raw at the bottom alone: {layers:?}")));
            }
        }
        Ok(())
    }

    /// The content of the source's top image at the start.
    fn own_pieces(&self, number: usize) -> Vec<Piece> {
        spread(self.size, self.overlay_data, PIECES, number as u64 * 2, 0)
    }
}

impl Layer {
    /// The own content of layer `index` of disk `number`.
    fn pieces(&self, number: usize, index: usize) -> Vec<Piece> {
        let (number, index) = (number as u64, index as u64);
        // Each layer is shifted by half a piece, so that it covers the layers below in part only.
        spread(self.size, self.data, self.pieces, number * 2 + 1 + index * 17, index * GRAIN / 2)
    }
}

/// Whether all disks of a spec are possible, by themselves and together.
pub(crate) fn check_disk_specs(specs: &[DiskSpec]) -> Result<()> {
    for (number, spec) in specs.iter().enumerate() {
        spec.check()?;
        if let Below::Same(other) = spec.below {
            if other >= number || matches!(specs.get(other), None | Some(DiskSpec { below: Below::Same(_), .. })) {
                return Err(Error::new(format!("disk {number} cannot stand on what is below disk {other}")));
            }
        }
    }
    let is_virtio = |spec: &&DiskSpec| spec.device == Device::Virtio;
    if specs.iter().skip_while(is_virtio).any(|spec| is_virtio(&spec)) {
        return Err(Error::new("disks that the guest writes come first"));
    }
    let count = |device| specs.iter().filter(|spec| spec.device == device).count();
    if count(Device::Pflash) > 1 || count(Device::Cdrom) > 2 {
        return Err(Error::new("at most one flash and two CD-ROMs"));
    }
    Ok(())
}

/// The disk whose files are below disk `number`, and the shapes of those files.
fn layers(specs: &[DiskSpec], number: usize) -> (usize, Vec<Layer>) {
    match specs.get(number).map(|spec| (spec, &spec.below)) {
        Some((spec, Below::File)) => (number, vec![Layer::raw(spec.backing, spec.backing_data)]),
        Some((_, Below::Layers(layers))) => (number, layers.clone()),
        Some((_, Below::Same(other))) if *other < number => layers(specs, *other),
        _ => (number, Vec::new()),
    }
}

/// The content of the lowest `count` images below disk `number`.
pub(crate) fn content_below(specs: &[DiskSpec], number: usize, count: usize) -> Content {
    let mut content = Content::default();
    let (owner, layers) = layers(specs, number);
    for (index, layer) in layers.iter().enumerate().take(count) {
        content.push(layer.size, layer.pieces(owner, index));
    }
    content
}

/// The content of disk `number` at the start of the source.
pub(crate) fn content(specs: &[DiskSpec], number: usize) -> Content {
    let mut content = content_below(specs, number, usize::MAX);
    if let Some(spec) = specs.get(number) {
        content.push(spec.size, spec.own_pieces(number));
    }
    content
}

/// Makes all files of a side: the layers in `home`, the images on top of them in `tops`.
pub(crate) fn create(
    build: &Build,
    specs: &[DiskSpec],
    side: Side,
    home: &Path,
    tops: &Path,
) -> Result<Vec<DiskFiles>> {
    let mut all: Vec<DiskFiles> = Vec::new();
    for (number, spec) in specs.iter().enumerate() {
        let (owner, below) = layers(specs, number);
        let layers = match all.get(owner) {
            Some(other) => other.layers.clone(),
            None => create_layers(build, spec, &below, home, number)?,
        };
        let overlay = tops.join(format!("disk{number}.{}", spec.top.name()));
        let files = DiskFiles { layers, overlay, format: spec.top };
        create_top(build, specs, number, &files, spec.size)?;
        if side == Side::Source {
            spec.bitmaps.iter().try_for_each(|name| add_bitmap(build, &files, name))?;
        }
        if side == Side::Source || !spec.is_written() {
            write_pieces(build, &files.overlay, spec.top, &spec.own_pieces(number))?;
        }
        all.push(files);
    }
    Ok(all)
}

fn create_layers(build: &Build, spec: &DiskSpec, below: &[Layer], home: &Path, number: usize) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut format = Format::Raw;
    for (index, layer) in below.iter().enumerate() {
        let name = match spec.below {
            Below::File => format!("backing{number}.raw"),
            _ => format!("disk{number}-layer{index}.{}", layer.format.name()),
        };
        let path = home.join(name);
        let backing = paths.last().map(|path| (path.as_path(), format));
        create_image(build, &path, layer.format, layer.size, layer.cluster, backing)?;
        write_pieces(build, &path, layer.format, &layer.pieces(number, index))?;
        format = layer.format;
        paths.push(path);
    }
    Ok(paths)
}

/// Makes the image on top, of that size, or makes it empty again.
pub(crate) fn create_top(build: &Build, specs: &[DiskSpec], number: usize, files: &DiskFiles, size: u64) -> Result<()> {
    let cluster = specs.get(number).map_or(GRAIN, |spec| spec.cluster);
    let format = layers(specs, number).1.last().map(|layer| layer.format);
    let backing = files.backing().map(PathBuf::as_path).zip(format);
    create_image(build, &files.overlay, files.format, size, cluster, backing)
}

fn create_image(
    build: &Build,
    path: &Path,
    format: Format,
    size: u64,
    cluster: u64,
    backing: Option<(&Path, Format)>,
) -> Result<()> {
    // The path may be a link to a file of the source.
    if path.symlink_metadata().is_ok() {
        fs::remove_file(path).context(|| format!("removing {}", path.display()))?;
    }
    if format == Format::Raw {
        let file = File::create(path).context(|| format!("creating {}", path.display()))?;
        return file.set_len(size).context(|| format!("sizing {}", path.display()));
    }
    let (cluster, size) = (format!("cluster_size={cluster}"), size.to_string());
    let mut words = ["create", "-q", "-f", "qcow2", "-o", &cluster].map(AsRef::as_ref).to_vec();
    if let Some((backing, format)) = backing {
        words.extend(["-F".as_ref(), format.name().as_ref(), "-b".as_ref(), backing.as_os_str()]);
    }
    words.extend([path.as_os_str(), size.as_ref()]);
    build.img(words).map(drop)
}

fn write_pieces(build: &Build, path: &Path, format: Format, pieces: &[Piece]) -> Result<()> {
    if pieces.is_empty() {
        return Ok(());
    }
    if format == Format::Raw {
        let file = File::options().write(true).open(path).context(|| format!("opening {}", path.display()))?;
        for piece in pieces {
            let content = vec![piece.byte; usize::try_from(piece.length).context(|| "a piece of content")?];
            file.write_all_at(&content, piece.start).context(|| format!("filling {}", path.display()))?;
        }
        return Ok(());
    }
    let write = |piece: &Piece| format!("write -q -P {} {} {}", piece.byte, piece.start, piece.length);
    let commands: Vec<_> = pieces.iter().map(write).collect();
    build.io(path, commands.iter().map(String::as_str)).map(drop)
}
