//! What was set of a disk while QEMU ran and is on no command line: limits of I/O, write thresholds, the detection of
//! zeros.
//!
//! Pure. A client sets them by `block_set_io_throttle`, by the limits of a `throttle-group`, by
//! `block-set-write-threshold` and by `blockdev-reopen`. No migration carries them.

use super::{
    disk_places::{counterpart, drive_name},
    finding::Finding,
    subject::CheckSubject,
};
use crate::{
    codes::{FindingCode, Severity},
    preflight::facts::{
        SideFacts,
        throttle_groups::{ThrottleLimits, group_of},
    },
    qemu::reply::{BlockDevice, BlockNode, IoLimits},
};
use serde_json::json;
use std::collections::BTreeSet;

pub(super) fn run(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let CheckSubject { source, destination, pairs, .. } = *subject;
    let mut findings = Vec::new();
    for drive in &source.devices {
        let Some(other) = counterpart(drive, pairs, &destination.devices) else { continue };
        let (Some(node), Some(other_node)) = (&drive.inserted, &other.inserted) else { continue };
        findings.extend(limits(drive, node, other, other_node));
        findings.extend(groups(drive, (source, node), (destination, other_node)));
        findings.extend(threshold(drive, (source, node), (destination, other_node)));
        findings.extend(zeros(drive, node, other_node));
    }
    findings
}

fn limits(drive: &BlockDevice, node: &BlockNode, other: &BlockDevice, other_node: &BlockNode) -> Option<Finding> {
    let (source, destination) = (&node.settings.limits, &other_node.settings.limits);
    if source == destination {
        return None;
    }
    let message = format!("its limits of I/O are {} on the source, and {} there", told(source), told(destination));
    let finding = Finding::new(FindingCode::DiskSettingsDiffer, &drive_name(drive), message);
    let mut arguments = json!(source);
    let id = other.qdev.as_deref().filter(|id| !id.is_empty());
    match id {
        Some(id) => arguments["id"] = json!(id),
        None => arguments["device"] = json!(other.device),
    }
    Some(finding.with_remedy(format!(
        "if the guest is to keep the source's limits, send the destination block_set_io_throttle with the arguments \
         {arguments}"
    )))
}

/// The limits that are set, in words.
fn told(limits: &IoLimits) -> String {
    let all = json!(limits);
    let set = all.as_object().into_iter().flatten().filter(|(_, value)| value.as_u64() != Some(0));
    let set: Vec<String> = set.map(|(name, value)| format!("{name}={value}")).collect();
    if set.is_empty() { "none".to_owned() } else { set.join(" ") }
}

/// A side with the node of a disk of that side.
type DiskRoot<'a> = (&'a SideFacts, &'a BlockNode);

/// Compares the limits of the throttle nodes of a disk.
fn groups(drive: &BlockDevice, source: DiskRoot<'_>, destination: DiskRoot<'_>) -> Option<Finding> {
    let (limits, others) = (throttles(source), throttles(destination));
    let all = |groups: &[(String, ThrottleLimits)]| {
        let mut limits: Vec<ThrottleLimits> = groups.iter().map(|(_, limits)| limits.clone()).collect();
        limits.retain(|limits| !limits.is_empty());
        limits.sort();
        limits
    };
    if all(&limits) == all(&others) {
        return None;
    }
    let words = |groups: &[(String, ThrottleLimits)]| {
        let group = |(name, limits): &(String, ThrottleLimits)| {
            let limits: Vec<String> = limits.iter().map(|(limit, value)| format!("{limit}={value}")).collect();
            format!("{name}: {}", if limits.is_empty() { "none".to_owned() } else { limits.join(" ") })
        };
        let groups: Vec<String> = groups.iter().map(group).collect();
        if groups.is_empty() { "no throttle group".to_owned() } else { groups.join("; ") }
    };
    let message = format!("its throttle groups are {} on the source, and {} there", words(&limits), words(&others));
    let finding = Finding::new(FindingCode::DiskSettingsDiffer, &drive_name(drive), message);
    Some(match (&limits[..], &others[..]) {
        ([(_, limits)], [(group, others)]) => {
            // QEMU leaves a limit that is not named as it is, and the shortest burst is of 1 s
            let unset = others.keys().map(|limit| (limit.clone(), u64::from(limit.ends_with("-length"))));
            let all: ThrottleLimits = unset.chain(limits.clone()).collect();
            finding.with_remedy(format!(
                "if the guest is to keep the source's limits, send the destination qom-set with the arguments {}",
                json!({ "path": format!("/objects/{group}"), "property": "limits", "value": all })
            ))
        }
        _ => finding,
    })
}

/// The nodes of a disk.
fn nodes<'a>((side, root): DiskRoot<'a>) -> impl Iterator<Item = &'a BlockNode> {
    let below = side.graph.below(&root.node_name);
    side.nodes.iter().filter(move |node| below.contains(node.node_name.as_str()))
}

fn throttles(disk: DiskRoot<'_>) -> Vec<(String, ThrottleLimits)> {
    let (side, _) = disk;
    let groups: BTreeSet<String> = nodes(disk).filter_map(group_of).collect();
    let known = groups.into_iter().filter_map(|group| Some((group.clone(), side.throttle_groups.get(&group)?.clone())));
    known.collect()
}

fn threshold(drive: &BlockDevice, source: DiskRoot<'_>, destination: DiskRoot<'_>) -> Option<Finding> {
    let wanted = thresholds(source);
    let (node, lost) =
        wanted.into_iter().find(|(_, wanted)| thresholds(destination).iter().all(|(_, set)| set != wanted))?;
    let message = format!(
        "an event is asked for once node {node} is written above {lost}, and the destination has no such threshold"
    );
    let finding = Finding::new(FindingCode::DiskSettingsDiffer, &drive_name(drive), message);
    Some(finding.with_remedy(
        "whoever waits for the event BLOCK_WRITE_THRESHOLD must send block-set-write-threshold to the destination, too",
    ))
}

/// The write thresholds of a disk's nodes, by node.
fn thresholds(disk: DiskRoot<'_>) -> Vec<(&str, u64)> {
    let set = nodes(disk).map(|node| (node.node_name.as_str(), node.settings.write_threshold));
    set.filter(|(_, threshold)| *threshold > 0).collect()
}

fn zeros(drive: &BlockDevice, node: &BlockNode, other_node: &BlockNode) -> Option<Finding> {
    let set = |node: &BlockNode| node.settings.detect_zeroes.clone().filter(|set| set != "off");
    let source = set(node)?;
    let other = set(other_node).unwrap_or_else(|| "off".to_owned());
    let message = format!("its detect-zeroes is {source} on the source, and {other} on the destination");
    let finding = Finding::new(FindingCode::DiskSettingsDiffer, &drive_name(drive), message);
    (source != other).then(|| Finding { severity: Severity::Note, remedy: String::new(), ..finding })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn node(settings: &Value) -> BlockNode {
        let mut node =
            json!({ "node-name": "n", "drv": "raw", "file": "/f", "ro": false, "image": { "virtual-size": 1 } });
        for (key, value) in settings.as_object().into_iter().flatten() {
            node[key] = value.clone();
        }
        serde_json::from_value(node).unwrap()
    }

    fn drive(qdev: &str, device: &str) -> BlockDevice {
        serde_json::from_value(json!({ "qdev": qdev, "device": device })).unwrap()
    }

    #[test]
    fn limits_that_differ_are_told_with_the_command_for_the_other_side() {
        let set = json!({ "bps": 0, "iops": 55, "iops_max": 99, "iops_max_length": 1, "group": "g" });
        let other_group = json!({ "bps": 0, "iops": 55, "iops_max": 99, "iops_max_length": 1, "group": "h" });
        for (source, destination, told) in [
            (json!({}), json!({}), None),
            (json!({ "iops": 0 }), json!({}), None),
            (set.clone(), other_group, None),
            (set, json!({}), Some("iops=55 iops_max=99 iops_max_length=1 on the source, and none there")),
            (json!({ "bps_wr": 7 }), json!({ "bps_wr": 8 }), Some("bps_wr=7 on the source, and bps_wr=8 there")),
            (json!({}), json!({ "iops_rd": 8 }), Some("none on the source, and iops_rd=8 there")),
        ] {
            let other = drive("/machine/peripheral/disk0/virtio-backend", "");
            let found = limits(&drive("disk0", ""), &node(&source), &other, &node(&destination));
            assert_eq!(found.is_some(), told.is_some(), "{source}: {found:?}");
            if let (Some(found), Some(told)) = (found, told) {
                assert_eq!((found.code.as_str(), found.severity), ("disk-settings-differ", Severity::Warning));
                assert!(found.message.contains(told), "{found}");
                let all =
                    ["\"bps\":", "\"bps_rd\":", "\"iops_wr\":", "\"id\":\"/machine/peripheral/disk0/virtio-backend\""];
                assert!(all.iter().all(|word| found.remedy.contains(word)), "{found}");
            }
        }
        let found = limits(&drive("", "drv"), &node(&json!({ "iops": 1 })), &drive("", "drv"), &node(&json!({})));
        assert!(found.unwrap().remedy.contains("\"device\":\"drv\""));
    }

    #[test]
    fn the_detection_of_zeros_is_a_note() {
        let set = |set: &str| node(&json!({ "detect_zeroes": set }));
        for (source, destination, noted) in [
            ("off", "off", false),
            ("unmap", "unmap", false),
            ("off", "on", false),
            ("on", "off", true),
            ("unmap", "on", true),
        ] {
            let found = zeros(&drive("disk0", ""), &set(source), &set(destination));
            assert_eq!(found.map(|found| found.severity), noted.then_some(Severity::Note), "{source} {destination}");
        }
    }
}
