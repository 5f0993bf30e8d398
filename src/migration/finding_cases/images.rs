//! Images of a healthy machine, and what happens to the first of the source.

use crate::{
    preflight::facts::{SideFacts, files::FileFacts, reopening::ReopenHindrance},
    qemu::reply::{BlockChild, BlockNode},
    storage::files::filesystem::FileSystem,
};
use serde_json::json;

pub(super) fn node(name: &str, driver: &str, file: &str, read_only: bool, children: &[(&str, &str)]) -> BlockNode {
    let answer = json!({
        "node-name": name, "drv": driver, "file": file, "ro": read_only,
        "image": { "virtual-size": 1 << 20, "actual-size": 1 << 16 },
    });
    let mut node: BlockNode = serde_json::from_value(answer).expect("a node");
    let child = |(child, node): &(&str, &str)| BlockChild { child: (*child).to_owned(), node_name: (*node).to_owned() };
    node.children = children.iter().map(child).collect();
    node
}

pub(super) fn file(inode: u64) -> FileFacts {
    let file_system = FileSystem { device: 1, free: 1 << 40, read_only: false, name: "/d (xfs)".to_owned() };
    let id = (1, inode);
    FileFacts { path: "/x".into(), id, allocated: 0, modified: (0, 0), is_device: false, writable: true, file_system }
}

const IMAGE: &str = "/s/top";

pub(super) fn lose_name(side: &mut SideFacts) {
    side.reopening.hindered.insert(IMAGE.to_owned(), ReopenHindrance::NameGone);
    side.reopening.kept_open.insert(IMAGE.to_owned());
}

pub(super) fn replace(side: &mut SideFacts) {
    side.reopening.hindered.insert(IMAGE.to_owned(), ReopenHindrance::NameTaken);
}

pub(super) fn deny(side: &mut SideFacts) {
    let denied = ReopenHindrance::Denied { user: 107, what: "may not open it".to_owned(), reads: false };
    side.reopening.hindered.insert(IMAGE.to_owned(), denied);
}
