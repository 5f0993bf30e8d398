//! What an image file is like, by `qemu-img`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Context, Result};
use crate::qemu_build::Build;

/// What a test may want to know of an image.
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
/// It cannot be read.
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
