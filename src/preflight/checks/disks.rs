//! The disks: their pairs, the shared ones, and those that are left behind.
//!
//! Pure.

use super::{finding::Finding, subject::CheckSubject};
use crate::{
    codes::FindingCode,
    quantity::Bytes,
    storage::model::{
        bitmaps::BitmapPlan,
        layout::{DiskPair, PairingProblem},
    },
};
use serde_json::json;

pub(super) fn run(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = subject.problems.iter().map(pairing).collect();
    findings.extend(subject.shared.iter().map(|disk| shared(disk)));
    findings.extend(lost(subject.bitmaps));
    findings.extend(subject.left_out.iter().map(|disk| left_out(disk)));
    findings
}

fn pairing(problem: &PairingProblem) -> Finding {
    match problem {
        PairingProblem::Unknown { name, on_source } => {
            let side = if *on_source { "source" } else { "destination" };
            Finding::new(FindingCode::DiskUnknown, name, format!("the {side} has no disk of this name"))
        }
        PairingProblem::Missing(disk) => {
            Finding::new(FindingCode::DiskMissing, disk.name(), "the destination has no disk that matches")
        }
        PairingProblem::Ambiguous(disk) => {
            Finding::new(FindingCode::DiskAmbiguous, disk.name(), "more than one disk matches")
        }
        PairingProblem::ReadOnly(pair) => {
            let message = format!("the destination's {} is read-only", pair.destination.name());
            Finding::new(FindingCode::DiskReadOnly, pair.source.name(), message)
        }
        PairingProblem::Size(pair) => {
            let (source, destination) = (Bytes(pair.source.virtual_size), Bytes(pair.destination.virtual_size));
            let message = format!(
                "it has {}, the destination's {} has {}",
                source.exactly(),
                pair.destination.name(),
                destination.exactly()
            );
            let finding = Finding::new(FindingCode::DiskSize, pair.source.name(), message);
            match fitting(pair) {
                Some(remedy) => finding.with_remedy(remedy),
                None => finding,
            }
        }
    }
}

/// The way out of a difference of sizes; `None` where the destination's image is not a plain file or device.
fn fitting(pair: &DiskPair) -> Option<String> {
    let (size, top) = (pair.source.virtual_size, pair.destination.chain.top()?);
    if top.file.starts_with("json:") || !["file", "host_device"].contains(&top.protocol.driver.as_str()) {
        return None;
    }
    if pair.destination.virtual_size < size {
        let how = match top.protocol.driver.as_str() {
            "host_device" => format!("extend {} to {size} bytes", top.file),
            _ => format!("make {} as large: qemu-img resize -f {} {} {size}", top.file, top.format, top.file),
        };
        return Some(format!("{how}, and start the destination anew"));
    }
    let plain = |name: &&str| !name.starts_with('#');
    let name = Some(top.node.as_str()).filter(plain).unwrap_or("sized");
    let file = json!({ "driver": top.protocol.driver, "filename": top.protocol.file });
    let image = if top.format == "raw" { file } else { json!({ "driver": top.format, "file": file }) };
    let node = json!({ "driver": "raw", "node-name": name, "size": size, "file": image });
    let user = if pair.destination.is_flash() { "the machine's pflash" } else { "the device's drive" };
    Some(format!(
        "make an image of exactly {size} bytes, or start the destination with a node that shows the first {size} bytes \
         alone, -blockdev '{node}', and {name} as {user}"
    ))
}

fn shared(disk: &str) -> Finding {
    Finding::new(FindingCode::DiskShared, disk, "both sides have the same file open: it is not copied")
}

fn left_out(disk: &str) -> Finding {
    let message = "it is writable and is not moved: the guest will find whatever the destination has in its place";
    Finding::new(FindingCode::DiskLeftOut, disk, message)
}

fn lost(bitmaps: &BitmapPlan) -> Vec<Finding> {
    let told = bitmaps.lost.iter().map(|(disk, name, why)| {
        let message = format!("the dirty bitmap {name} does not arrive: {why}");
        Finding::new(FindingCode::BitmapLost, disk, message)
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::model::{
        chain::{BackingChain, Layer, ProtocolNode},
        layout::{CopyMode, Disk, PairNames},
    };

    fn disk(size: u64, path: Option<&str>, layer: Layer) -> Disk {
        Disk {
            qdev: Some("disk0".to_owned()),
            device: None,
            node: layer.node.clone(),
            path: path.map(str::to_owned),
            file: layer.file.clone(),
            read_only: false,
            virtual_size: size,
            chain: BackingChain { layers: vec![layer], filters: Vec::new() },
        }
    }

    fn layer(node: &str, format: &str, driver: &str, file: &str) -> Layer {
        let protocol = ProtocolNode { node: String::new(), driver: driver.to_owned(), file: "/dev/vg/a".to_owned() };
        Layer { node: node.to_owned(), format: format.to_owned(), file: file.to_owned(), protocol, ..Layer::default() }
    }

    #[test]
    fn another_size_has_a_way_out() {
        let flash = Some("/machine/system.flash1");
        let plain = |node, format, driver| layer(node, format, driver, "/dev/vg/a");
        let described = layer("n", "raw", "file", "json:{}");
        let sized = r#"-blockdev '{"driver":"raw","file":{"driver":"host_device","filename":"/dev/vg/a"},"node-name":"n","size":1000}', and n as the device's drive"#;
        let below = r#""file":{"driver":"qcow2","file":{"driver":"file","filename":"/dev/vg/a"}},"node-name":"sized","size":1000}'"#;
        for (what, size, path, layer, told) in [
            ("a larger device", 1512, None, plain("n", "raw", "host_device"), sized),
            ("a larger image", 1512, None, plain("#block7", "qcow2", "file"), below),
            ("EFI variables", 1512, flash, plain("n", "raw", "file"), "n as the machine's pflash"),
            ("a smaller device", 512, None, plain("n", "raw", "host_device"), "extend /dev/vg/a to 1000 bytes"),
            ("a smaller image", 512, None, plain("n", "qcow2", "file"), "qemu-img resize -f qcow2 /dev/vg/a 1000"),
            ("over a network", 1512, None, plain("n", "raw", "nbd"), "exactly the source's virtual size"),
            ("with options", 1512, None, described, "exactly the source's virtual size"),
        ] {
            let destination = disk(size, path, layer);
            let names = PairNames::new(&crate::run_id::RunId::default(), 0);
            let source = disk(1000, path, Layer::default());
            let pair = DiskPair { source, destination, mode: CopyMode::Full, names };
            let found = pairing(&PairingProblem::Size(pair));
            assert_eq!(found.code, "disk-size", "{what}");
            assert!(found.remedy.contains(told), "{what}: {}", found.remedy);
        }
    }
}
