//! The disks of a guest, sealed on the running guest before it first moves: what it has filled stands still below a new
//! overlay, and both sides have it, as after `prepare --populate`.
//!
//! Owns the files of the sealed layers. Every further QEMU of the guest has an overlay over the same layer, so that no
//! migration adds one.

use super::started_qemu::{StartedQemu, TrialError};
use crate::qmp::QmpRequest;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The sealed layer of each disk; empty where the spec asks for none. The files go with it.
#[derive(Debug, Default)]
pub(super) struct SealedDisks {
    layers: Vec<PathBuf>,
}

impl SealedDisks {
    /// Seals every disk of a guest at one point of time.
    ///
    /// # Errors
    /// QEMU refuses, or a disk is not open in it as the sweep made it.
    pub(super) async fn seal(qemu: &mut StartedQemu) -> Result<Self, TrialError> {
        if qemu.files.disks.is_empty() {
            return Ok(Self::default());
        }
        let wrong = |error: &dyn std::fmt::Display| TrialError::Other(format!("the disks cannot be sealed: {error}"));
        let asked = QmpRequest::named("query-named-block-nodes").with("flat", true);
        let nodes = qemu.ask(asked).await.map_err(|error| wrong(&error))?;
        let (mut overlays, mut actions) = (Vec::new(), Vec::new());
        for (disk, image) in qemu.files.disks.iter().enumerate() {
            let node = node_of(&nodes, image)
                .ok_or_else(|| wrong(&format!("QEMU has not opened {} as qcow2", image.display())))?;
            let overlay = image.with_extension("written.qcow2");
            actions.push(json!({ "type": "blockdev-snapshot-sync", "data": {
                "node-name": node, "snapshot-file": overlay, "format": "qcow2",
                "snapshot-node-name": format!("sweep-written{disk}") } }));
            overlays.push(overlay);
        }
        let layers = std::mem::replace(&mut qemu.files.disks, overlays);
        let sealed = Self { layers };
        let asked = QmpRequest::named("transaction").with("actions", actions);
        qemu.ask(asked).await.map_err(|error| wrong(&error))?;
        Ok(sealed)
    }

    /// The layer that the next image of a disk is over.
    pub(super) fn layer(&self, disk: usize) -> Option<&Path> {
        self.layers.get(disk).map(PathBuf::as_path)
    }
}

impl Drop for SealedDisks {
    fn drop(&mut self) {
        for layer in &self.layers {
            // the folder of the images goes with the sweep, whatever is left in it
            fs::remove_file(layer).ok();
        }
    }
}

/// The name of the node that reads and writes an image's format; QEMU gives one also to a node that was given none.
fn node_of<'a>(nodes: &'a Value, image: &Path) -> Option<&'a str> {
    let is_it = |node: &&Value| node["drv"] == "qcow2" && node["file"].as_str().map(Path::new) == Some(image);
    nodes.as_array()?.iter().find(is_it)?["node-name"].as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_of_an_image_is_that_of_its_format() {
        let nodes = json!([
            { "drv": "throttle", "file": "/w/0-disk0.qcow2", "node-name": "slow" },
            { "drv": "file", "file": "/w/0-disk0.qcow2", "node-name": "#block011" },
            { "drv": "qcow2", "file": "/w/1-disk0.qcow2", "node-name": "other" },
            { "drv": "qcow2", "file": "/w/0-disk0.qcow2", "node-name": "#block123" },
        ]);
        assert_eq!(node_of(&nodes, Path::new("/w/0-disk0.qcow2")), Some("#block123"));
        assert_eq!(node_of(&nodes, Path::new("/w/base")), None);
        assert_eq!(node_of(&Value::Null, Path::new("/w/base")), None);
    }
}
