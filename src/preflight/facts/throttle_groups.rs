//! The limits of the objects `throttle-group` that throttle nodes belong to. A client can change them while QEMU runs.

use super::qom::property;
use crate::qemu::{Process, ProcessError, reply::BlockNode};
use serde_json::Value;
use std::collections::BTreeMap;

/// The limits by group; those that are not set are left out.
pub type ThrottleGroups = BTreeMap<String, ThrottleLimits>;

/// The limits of one group, by QEMU's names.
pub type ThrottleLimits = BTreeMap<String, u64>;

/// Asks for the limits of every group that one of the nodes belongs to. Nothing is asked where there is no such node.
///
/// # Errors
/// QEMU does not answer.
pub(super) async fn gather(process: &Process, nodes: &[BlockNode]) -> Result<ThrottleGroups, ProcessError> {
    let names: Vec<String> = nodes.iter().filter_map(group_of).collect();
    let asked = |name: String| (property(process, &format!("/objects/{name}"), "limits"), name);
    let asked: Vec<_> = names.into_iter().map(asked).collect();
    let mut found = ThrottleGroups::new();
    for (limits, name) in asked {
        if let Some(limits) = limits.await? {
            found.insert(name, set(&limits));
        }
    }
    Ok(found)
}

/// The group of a throttle node: QEMU tells it in the description of the node's file.
pub fn group_of(node: &BlockNode) -> Option<String> {
    let described = node.file.strip_prefix("json:").filter(|_| node.drv == "throttle")?;
    let described: Value = serde_json::from_str(described).ok()?;
    described["throttle-group"].as_str().map(str::to_owned)
}

/// The limits that are set. The length of a burst is 1 where no burst is allowed.
fn set(limits: &Value) -> ThrottleLimits {
    let all = limits.as_object().into_iter().flatten().filter_map(|(name, value)| Some((name, value.as_u64()?)));
    let counts = |(name, value): &(&String, u64)| *value > u64::from(name.ends_with("-length"));
    all.filter(counts).map(|(name, value)| (name.clone(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn groups_and_limits_are_read() {
        let node = |driver: &str, file: &str| -> BlockNode {
            let node =
                json!({ "node-name": "n", "drv": driver, "file": file, "ro": false, "image": { "virtual-size": 1 } });
            serde_json::from_value(node).unwrap()
        };
        let described = r#"json:{"throttle-group": "tg", "driver": "throttle", "file": {"driver": "null-co"}}"#;
        for (driver, file, group) in [
            ("throttle", described, Some("tg")),
            ("qcow2", described, None),
            ("throttle", "/vm/a", None),
            ("throttle", "json:{", None),
        ] {
            assert_eq!(group_of(&node(driver, file)).as_deref(), group, "{driver} {file}");
        }
        let told = json!({ "bps-total": 0, "iops-total": 100, "iops-total-max-length": 1, "bps-read-max-length": 3 });
        let wanted = [("iops-total", 100), ("bps-read-max-length", 3)];
        assert_eq!(set(&told), wanted.map(|(name, value)| (name.to_owned(), value)).into());
    }
}
