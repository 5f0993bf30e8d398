//! Leftovers in a QEMU or in its folder: a comparison of everything with a name, before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Context, Result};
use crate::qmp::Qmp;

/// The nameable things of one QEMU at one time.
pub(crate) struct Snapshot {
    things: BTreeSet<String>,
    settings: BTreeMap<String, String>,
}

impl Snapshot {
    pub(crate) fn take(qmp: &mut Qmp, pid: u32, folder: &Path) -> Result<Self> {
        let mut things = BTreeSet::new();
        for (command, kind, key) in [
            ("query-block-jobs", "block job", "device"),
            ("query-jobs", "job", "id"),
            ("query-block-exports", "export", "id"),
            ("query-named-block-nodes", "node", "node-name"),
        ] {
            let list = qmp.execute(command, &json!({}))?;
            for item in list.as_array().into_iter().flatten() {
                let name = item[key].as_str().unwrap_or_default();
                things.insert(format!("{kind} {name}"));
                for bitmap in item["dirty-bitmaps"].as_array().into_iter().flatten() {
                    // A bitmap without a name belongs to a job, and that job is listed.
                    if let Some(bitmap) = bitmap["name"].as_str() {
                        things.insert(format!("dirty bitmap {bitmap} on node {name}"));
                    }
                }
            }
        }
        for instance in qmp.execute("query-yank", &json!({}))?.as_array().into_iter().flatten() {
            // The yank instance of a monitor comes and goes with its client, and is no leftover.
            if instance["type"] != "chardev" {
                things.insert(format!("yank instance {instance}"));
            }
        }
        things.extend(listeners(pid)?);
        let entries = fs::read_dir(folder).context(|| format!("listing {}", folder.display()))?;
        things.extend(entries.flatten().map(|entry| format!("file {}", entry.file_name().to_string_lossy())));

        let mut settings = BTreeMap::new();
        for device in qmp.execute("query-blockstats", &json!({}))?.as_array().into_iter().flatten() {
            let histograms = device["stats"].as_object().into_iter().flatten();
            for (name, histogram) in histograms.filter(|(name, _)| name.ends_with("_latency_histogram")) {
                settings.insert(format!("{name} of {}", device["qdev"]), histogram["boundaries"].to_string());
            }
        }
        for capability in qmp.execute("query-migrate-capabilities", &json!({}))?.as_array().into_iter().flatten() {
            settings.insert(
                format!("capability {}", capability["capability"].as_str().unwrap_or_default()),
                capability["state"].to_string(),
            );
        }
        if let Value::Object(parameters) = qmp.execute("query-migrate-parameters", &json!({}))? {
            settings.extend(parameters.iter().map(|(name, value)| (format!("parameter {name}"), value.to_string())));
        }
        Ok(Self { things, settings })
    }

    /// The things in `now` that are new, and the settings that differ.
    pub(crate) fn differences(&self, now: &Self) -> Vec<String> {
        let mut all: Vec<String> = now.things.difference(&self.things).cloned().collect();
        for (name, value) in &now.settings {
            let before = self.settings.get(name);
            if before != Some(value) {
                all.push(format!("{name}: {} -> {value}", before.map_or("unset", String::as_str)));
            }
        }
        all
    }
}

/// The sockets a process listens on. QMP cannot say whether an NBD server runs, the operating system can.
fn listeners(pid: u32) -> Result<Vec<String>> {
    let process = Path::new("/proc").join(pid.to_string());
    let mut inodes = BTreeSet::new();
    for entry in fs::read_dir(process.join("fd")).context(|| format!("the descriptors of {pid}"))?.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        inodes.extend(inode.map(str::to_owned));
    }
    let table = |name: &str| fs::read_to_string(process.join("net").join(name)).unwrap_or_default();
    let mut found = Vec::new();
    for row in table("unix").lines().skip(1) {
        let words: Vec<_> = row.split_whitespace().collect();
        // Num RefCount Protocol Flags Type St Inode Path; the flag is that of a socket that accepts.
        if let [_, _, _, "00010000", _, _, inode, path @ ..] = words.as_slice() {
            if inodes.contains(*inode) {
                found.push(format!("listener {}", path.join(" ")));
            }
        }
    }
    for row in
        ["tcp", "tcp6"].iter().flat_map(|name| table(name).lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
    {
        let words: Vec<_> = row.split_whitespace().collect();
        // sl local remote st tx:rx tr:when retrnsmt uid timeout inode; state 0A is LISTEN.
        if let [_, local, _, "0A", _, _, _, _, _, inode, ..] = words.as_slice() {
            if inodes.contains(*inode) {
                found.push(format!("listener tcp {local}"));
            }
        }
    }
    Ok(found)
}
