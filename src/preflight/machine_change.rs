//! What has changed in a machine since its facts were gathered: what was proved of the machine holds no longer.
//!
//! Pure. Block nodes that the engine adds change no device: a mirror's filter is above the node that `query-block`
//! names, and its target is below nobody's device.

use super::facts::{
    SideFacts,
    devices::{DeviceFacts, DeviceTable},
};
use crate::{
    qemu::reply::BlockDevice,
    quantity::Bytes,
    storage::model::chain::{BackingChain, Layer},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// One difference between a machine as it was and as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineChange {
    /// The device, by its id where it has one.
    pub device: String,
    /// The property that differs.
    pub what: &'static str,
    /// Its value when the facts were gathered.
    pub before: String,
    /// Its value now.
    pub now: String,
}

impl fmt::Display for MachineChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, what, before, now } = self;
        write!(f, "{device}: its {what} was {before} and is {now}")
    }
}

/// Every difference between the facts of one side and its present answers: devices, media, and the images below them.
pub fn changes(before: &SideFacts, now: &SideFacts) -> Vec<MachineChange> {
    let mut found = media(before, now);
    found.extend(devices(&before.machine.devices, &now.machine.devices));
    found
}

/// A drive as `query-block` tells of it.
struct Drive {
    /// The name for people.
    name: String,
    /// What is compared, with the value in words. A value that is not known is left out.
    properties: BTreeMap<&'static str, String>,
}

const NOTHING: &str = "not there";

fn media(before: &SideFacts, now: &SideFacts) -> Vec<MachineChange> {
    let (mut old, mut new) = (drives(before), drives(now));
    let keys: BTreeSet<String> = old.keys().chain(new.keys()).cloned().collect();
    let mut found = Vec::new();
    for key in keys {
        match (old.remove(&key), new.remove(&key)) {
            (Some(old), Some(new)) => {
                let other = old.properties.iter().find_map(|(what, before)| {
                    let now = new.properties.get(what).filter(|now| *now != before)?;
                    Some(MachineChange { device: old.name.clone(), what, before: before.clone(), now: now.clone() })
                });
                found.extend(other);
            }
            (Some(old), None) => found.push(drive_change(old.name, "drive", "there", NOTHING)),
            (None, Some(new)) => found.push(drive_change(new.name, "drive", NOTHING, "there")),
            (None, None) => {}
        }
    }
    found
}

fn drive_change(device: String, what: &'static str, before: &str, now: &str) -> MachineChange {
    MachineChange { device, what, before: before.to_owned(), now: now.to_owned() }
}

/// The drives by the one name that no two of them share.
fn drives(facts: &SideFacts) -> BTreeMap<String, Drive> {
    let drive = |device: &BlockDevice| {
        let path = device.qdev.clone().unwrap_or_default();
        let id = path.strip_prefix("/machine/peripheral/").and_then(|rest| rest.split('/').next());
        let names = [id.unwrap_or(&path), &device.device];
        let node = device.inserted.as_ref().map(|node| node.node_name.as_str());
        let name = names.into_iter().find(|name| !name.is_empty()).or(node)?.to_owned();
        let key = if path.is_empty() { name.clone() } else { path };
        Some((key, Drive { name, properties: properties(facts, device) }))
    };
    facts.devices.iter().filter_map(drive).collect()
}

fn properties(facts: &SideFacts, device: &BlockDevice) -> BTreeMap<&'static str, String> {
    let place = device.qdev.as_ref().and_then(|qdev| facts.places.get(qdev)?.as_ref().ok());
    let mut properties: BTreeMap<&str, String> = place.map(|place| ("place", place.to_string())).into_iter().collect();
    let Some(node) = &device.inserted else {
        properties.insert("medium", "none".to_owned());
        return properties;
    };
    let chain = facts.chain(&node.node_name);
    if let Some(top) = chain.top().filter(|top| !facts.reopening.kept_open.contains(&top.protocol.file)) {
        let hindrance = facts.reopening.hindered.get(&top.protocol.file);
        let way = hindrance.map_or_else(|| "open".to_owned(), ToString::to_string);
        properties.insert("way to its image", way);
    }
    properties.extend([
        ("medium", format!("the node {}", node.node_name)),
        ("size", Bytes(node.image.virtual_size).exactly()),
        ("access", if node.ro { "read-only" } else { "writable" }.to_owned()),
        ("chain of images", images(&chain)),
        ("chain of filters", filters(&chain)),
    ]);
    if let Some(written) = last_written(facts, &chain, node.ro) {
        properties.insert("last write to an image that is only read", written);
    }
    properties
}

fn images(chain: &BackingChain) -> String {
    let image = |layer: &Layer| {
        let access = if layer.read_only { "" } else { ", writable" };
        format!("{} ({}{access})", layer.node, layer.file)
    };
    let images: Vec<String> = chain.layers.iter().map(image).collect();
    if images.is_empty() { "not known".to_owned() } else { images.join(" over ") }
}

fn filters(chain: &BackingChain) -> String {
    let filters: Vec<&str> = chain.filters.iter().map(|filter| filter.node.as_str()).collect();
    if filters.is_empty() { "none".to_owned() } else { filters.join(", ") }
}

/// When the images were last written to that nobody should write to: all below the top, and the top of a disk that is
/// read-only. `None` where one of the files is not seen.
fn last_written(facts: &SideFacts, chain: &BackingChain, read_only: bool) -> Option<String> {
    let only_read = chain.layers.iter().skip(usize::from(!read_only));
    let written = only_read.map(|layer| facts.file(layer).map(|file| file.modified)).collect::<Option<Vec<_>>>()?;
    let (seconds, nanoseconds) = written.into_iter().max()?;
    Some(format!("at {seconds}.{nanoseconds:09} s"))
}

fn devices(before: &DeviceTable, now: &DeviceTable) -> Vec<MachineChange> {
    let named = differences(&before.named, &now.named, describe);
    let unnamed = differences(&before.unnamed, &now.unnamed, usize::to_string);
    let functions = differences(&before.functions, &now.functions, String::clone);
    let changes = |of: &str, what: &'static str, found: Vec<(String, String, String)>| {
        let change = |(name, before, now)| MachineChange { device: format!("{of}{name}"), what, before, now };
        found.into_iter().map(change).collect::<Vec<_>>()
    };
    let mut found = changes("", "device", named);
    found.extend(changes("", "number of devices without an id", unnamed));
    found.extend(changes("PCI ", "function", functions));
    found
}

fn describe(device: &DeviceFacts) -> String {
    match &device.place {
        Some(place) => format!("{} at {place}", device.kind),
        None => device.kind.clone(),
    }
}

/// The keys with other values, each with both in words.
fn differences<V: PartialEq>(
    before: &BTreeMap<String, V>,
    now: &BTreeMap<String, V>,
    words: impl Fn(&V) -> String,
) -> Vec<(String, String, String)> {
    let keys: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let told = |value: Option<&V>| value.map_or_else(|| NOTHING.to_owned(), &words);
    let changed = keys.into_iter().filter(|key| before.get(*key) != now.get(*key));
    changed.map(|key| (key.clone(), told(before.get(key)), told(now.get(key)))).collect()
}
