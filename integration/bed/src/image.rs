//! Facts on image files, by `qemu-img`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::disk::DiskFiles;
use crate::error::{Context, Error, Result};
use crate::qemu_build::Build;

/// The facts on an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// Its virtual size in bytes.
    pub virtual_size: u64,
    /// Bytes of the host's disk it takes.
    pub disk_size: u64,
    /// Bytes that its own top layer has data for.
    pub allocated: u64,
    /// Its cluster size.
    pub cluster: u64,
    /// Its backing file, if it has one.
    pub backing: Option<PathBuf>,
}

/// Looks at an image, which may be in use.
///
/// # Errors
/// The image cannot be read.
pub fn image_facts(build: &Build, path: &Path) -> Result<ImageFacts> {
    let ask = |verb: &str| -> Result<Value> {
        let words = [verb, "-U", "--output=json"].map(AsRef::as_ref);
        let printed = build.img(words.into_iter().chain([path.as_os_str()]))?;
        serde_json::from_str(&printed).context(|| format!("what qemu-img {verb} printed"))
    };
    let (info, map) = (ask("info")?, ask("map")?);
    let number = |key: &str| info[key].as_u64().unwrap_or_default();
    let own = |extent: &&Value| extent["depth"] == 0 && extent["data"] == true;
    let extents = map.as_array().into_iter().flatten().filter(own);
    Ok(ImageFacts {
        virtual_size: number("virtual-size"),
        disk_size: number("actual-size"),
        allocated: extents.filter_map(|extent| extent["length"].as_u64()).sum(),
        cluster: number("cluster-size"),
        backing: info["backing-filename"].as_str().map(PathBuf::from),
    })
}

/// One image of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainLink {
    /// The image's file.
    pub file: PathBuf,
    /// Its format.
    pub format: String,
    /// The format that it says its backing file has.
    pub backing_format: Option<String>,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
    /// Its cluster size, where it has clusters.
    pub cluster: Option<u64>,
    /// Bytes of the host's disk that the file takes: how sparse it is.
    pub taken: u64,
}

/// An image and all below it, the top first. They may be in use.
///
/// # Errors
/// One of them cannot be read.
pub fn chain(build: &Build, top: &DiskFiles) -> Result<Vec<ChainLink>> {
    let words = ["info", "-U", "--backing-chain", "--output=json", "-f", top.format.name()].map(AsRef::as_ref);
    let printed = build.img(words.into_iter().chain([top.overlay.as_os_str()]))?;
    let list: Vec<Value> = serde_json::from_str(&printed).context(|| "what qemu-img info printed")?;
    let text = |info: &Value, key: &str| info[key].as_str().map(str::to_owned);
    let link = |info: &Value| {
        let file = PathBuf::from(text(info, "filename").unwrap_or_default());
        let metadata = fs::metadata(&file).context(|| format!("looking at {}", file.display()))?;
        Ok(ChainLink {
            file,
            format: text(info, "format").unwrap_or_default(),
            backing_format: text(info, "backing-filename-format"),
            virtual_size: info["virtual-size"].as_u64().unwrap_or_default(),
            cluster: info["cluster-size"].as_u64(),
            taken: metadata.blocks() * 512,
        })
    };
    list.iter().map(link).collect()
}

/// Whether a guest would see the same on both: the same size, and the same bytes through the whole chain. They may be
/// in use, but nobody should write to them.
///
/// # Errors
/// The images differ, or one cannot be read; the error has the words of `qemu-img`.
pub fn guest_visible_equal(build: &Build, a: &DiskFiles, b: &DiskFiles) -> Result<()> {
    let size = |files| chain(build, files).map(|chain| chain.first().map(|link| link.virtual_size));
    let (a_size, b_size) = (size(a)?, size(b)?);
    if a_size != b_size {
        return Err(Error::new(format!("virtual sizes differ: {a_size:?} and {b_size:?}")));
    }
    // Not with -s, which wants the same allocation too.
    let words = ["compare", "-U", "-f", a.format.name(), "-F", b.format.name()].map(AsRef::as_ref);
    build.img(words.into_iter().chain([a.overlay.as_os_str(), b.overlay.as_os_str()])).map(drop)
}
