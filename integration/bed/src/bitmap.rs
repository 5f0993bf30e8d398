//! Dirty bitmaps: made before a QEMU starts, seen while it runs, and read from the image after.

use std::fs;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::disk::DiskFiles;
use crate::error::{Context, Error, Result};
use crate::machine::Machine;
use crate::qemu_build::Build;

/// A named dirty bitmap of a disk's node, as a running QEMU tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Bytes that one bit stands for.
    pub granularity: u64,
    /// Whether writes are recorded now.
    pub recording: bool,
    /// Whether the bitmap is stored in the image when that is closed.
    pub persistent: bool,
    /// Whether the bitmap was not stored the last time, so that its bits mean nothing.
    pub inconsistent: bool,
    /// Bytes that are dirty.
    pub dirty: u64,
    /// A hash of the bits; none of an inconsistent bitmap.
    pub sha256: Option<String>,
}

/// A dirty bitmap in a qcow2 image that nobody has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBitmap {
    /// Its name.
    pub name: String,
    /// Bytes that one bit stands for.
    pub granularity: u64,
    /// `auto` marks a bitmap that records, `in-use` one that was not stored the last time.
    pub flags: Vec<String>,
}

/// The time within which `qemu-nbd` must listen.
const LISTENS: Duration = Duration::from_secs(10);

impl Machine {
    /// The named dirty bitmaps of a disk's node.
    ///
    /// # Errors
    /// There is no such disk, or QEMU does not answer.
    pub fn bitmaps(&self, disk: usize) -> Result<Vec<Bitmap>> {
        let node = self.node(disk)?;
        let nodes = self.qmp("query-named-block-nodes", &json!({}))?;
        let found = nodes.as_array().into_iter().flatten().find(|found| found["node-name"] == node.as_str());
        let listed = found.and_then(|found| found["dirty-bitmaps"].as_array());
        let named = listed.into_iter().flatten().filter(|bitmap| bitmap["name"].is_string());
        named.map(|bitmap| self.bitmap(&node, bitmap)).collect()
    }

    fn bitmap(&self, node: &str, listed: &Value) -> Result<Bitmap> {
        let name = listed["name"].as_str().unwrap_or_default().to_owned();
        let hash = self.ask("x-debug-block-dirty-bitmap-sha256", &json!({"node": node, "name": name}))?;
        Ok(Bitmap {
            granularity: listed["granularity"].as_u64().unwrap_or_default(),
            recording: listed["recording"] == true,
            persistent: listed["persistent"] == true,
            inconsistent: listed["inconsistent"] == true,
            dirty: listed["count"].as_u64().unwrap_or_default(),
            sha256: hash.ok().and_then(|hash| hash["sha256"].as_str().map(str::to_owned)),
            name,
        })
    }
}

/// Adds a persistent, recording bitmap of default granularity to a qcow2 image that nobody has open.
///
/// # Errors
/// `qemu-img` refuses.
pub fn add_bitmap(build: &Build, files: &DiskFiles, name: &str) -> Result<()> {
    let words = ["bitmap", "--add", "-f", "qcow2"].map(AsRef::as_ref);
    build.img(words.into_iter().chain([files.overlay.as_os_str(), name.as_ref()])).map(drop)
}

/// The bitmaps in a qcow2 image.
///
/// # Errors
/// The image cannot be read.
pub fn stored_bitmaps(build: &Build, files: &DiskFiles) -> Result<Vec<StoredBitmap>> {
    let words = ["info", "-U", "-f", "qcow2", "--output=json"].map(AsRef::as_ref);
    let printed = build.img(words.into_iter().chain([files.overlay.as_os_str()]))?;
    let info: Value = serde_json::from_str(&printed).context(|| "what qemu-img info printed")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let bitmap = |found: &Value| StoredBitmap {
        name: text(&found["name"]),
        granularity: found["granularity"].as_u64().unwrap_or_default(),
        flags: found["flags"].as_array().into_iter().flatten().map(text).collect(),
    };
    Ok(info["format-specific"]["data"]["bitmaps"].as_array().into_iter().flatten().map(bitmap).collect())
}

/// The dirty ranges of a bitmap in a qcow2 image that nobody has open, in order.
///
/// # Errors
/// There is no such bitmap, or it is inconsistent.
pub fn dirty_ranges(build: &Build, files: &DiskFiles, name: &str) -> Result<Vec<Range<u64>>> {
    let socket = files.overlay.with_extension("nbd");
    let mut child = Command::new(build.program("qemu-nbd"))
        .args(["--read-only", "--persistent", "-f", "qcow2", "-B", name, "-k"])
        .args([&socket, &files.overlay])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context(|| "starting qemu-nbd")?;
    let deadline = Instant::now() + LISTENS;
    while !socket.exists() && Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        thread::sleep(Duration::from_millis(2));
    }
    let options =
        format!("driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{name}", socket.display());
    let mapped = build.img(["map", "--output=json", "--image-opts", &options]);
    let killed = child.kill();
    let output = child.wait_with_output().context(|| "waiting for qemu-nbd")?;
    if socket.exists() {
        fs::remove_file(&socket).context(|| format!("removing {}", socket.display()))?;
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let printed = mapped.context(|| format!("qemu-nbd ({killed:?}) said {said:?}"))?;
    let extents: Value = serde_json::from_str(&printed).context(|| "what qemu-img map printed")?;
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for extent in extents.as_array().into_iter().flatten() {
        let (Some(start), Some(length)) = (extent["start"].as_u64(), extent["length"].as_u64()) else {
            return Err(Error::new(format!("an extent without a place: {extent}")));
        };
        // The map shows the bitmap in place of the allocation: dirty ranges are those without data.
        if extent["data"] == false {
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end += length,
                None => ranges.push(start..start + length),
            }
        }
    }
    Ok(ranges)
}
