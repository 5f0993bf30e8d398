//! The part of QEMU's QMP schema that the engine reads.

use std::collections::BTreeSet;

use serde_json::{Value, json};

const NEEDED: [&str; 13] = [
    "block-dirty-bitmap-add",
    "block-dirty-bitmap-remove",
    "block-export-add",
    "block-export-del",
    "block-job-cancel",
    "drive-mirror",
    "job-dismiss",
    "migrate-continue",
    "migrate-incoming",
    "nbd-server-start",
    "nbd-server-stop",
    "query-block-exports",
    "query-named-block-nodes",
];

/// The schema of a QEMU that has `block-job-change` and `exit-on-error`, or lacks them.
pub fn schema(block_job_change: bool, exit_on_error: bool) -> Value {
    let mut commands: BTreeSet<&str> = NEEDED.into();
    if block_job_change {
        commands.insert("block-job-change");
    }
    let list = |names: &[&str], kind: &str| -> Value {
        names.iter().map(|name| json!({"name": name, "type": kind})).collect()
    };
    let capabilities = ["events", "late-block-activate", "pause-before-switchover", "return-path"];
    let incoming: &[&str] = if exit_on_error { &["uri", "exit-on-error"] } else { &["uri"] };
    let mut entities = vec![
        json!({"name": "migrate-set-capabilities", "meta-type": "command", "arg-type": "1"}),
        json!({"name": "1", "meta-type": "object", "members": [{"name": "capabilities", "type": "[2]"}]}),
        json!({"name": "[2]", "meta-type": "array", "element-type": "2"}),
        json!({"name": "2", "meta-type": "object", "members": [{"name": "capability", "type": "3"}]}),
        json!({"name": "3", "meta-type": "enum", "members": list(&capabilities, "")}),
        json!({"name": "4", "meta-type": "object", "members": list(&["auto-dismiss"], "bool")}),
        json!({"name": "5", "meta-type": "object", "members": list(incoming, "str")}),
    ];
    entities.extend(commands.iter().map(|name| {
        let argument = match *name {
            "drive-mirror" => "4",
            "migrate-incoming" => "5",
            _ => "0",
        };
        json!({"name": name, "meta-type": "command", "arg-type": argument})
    }));
    json!(entities)
}

/// Adds a command without arguments to a schema.
pub fn add_command(schema: &mut Value, name: &str) {
    schema.as_array_mut().unwrap().push(json!({"name": name, "meta-type": "command", "arg-type": "0"}));
}

/// Gives a schema the histograms of how long requests take.
pub fn add_histograms(schema: &mut Value) {
    let entities = schema.as_array_mut().unwrap();
    entities.push(json!({"name": "block-latency-histogram-set", "meta-type": "command", "arg-type": "8"}));
    let members = json!([{"name": "id", "type": "str"}, {"name": "boundaries-write", "type": "[int]"}]);
    entities.push(json!({"name": "8", "meta-type": "object", "members": members}));
}

/// Gives a schema socket addresses with the times of keep-alive.
pub fn add_keep_alive_times(schema: &mut Value) {
    let members = json!([{"name": "host", "type": "str"}, {"name": "keep-alive-idle", "type": "int"}]);
    schema.as_array_mut().unwrap().push(json!({"name": "7", "meta-type": "object", "members": members}));
}

/// Adds migration capabilities to a schema.
pub fn add_capabilities(schema: &mut Value, names: &[&str]) {
    let entities = schema.as_array_mut().unwrap();
    let members = &mut entities.iter_mut().find(|entity| entity["name"] == "3").unwrap()["members"];
    members.as_array_mut().unwrap().extend(names.iter().map(|name| json!({ "name": name, "type": "" })));
}

/// Adds the parameter `avail-switchover-bandwidth` to a schema.
pub fn add_switchover_bandwidth(schema: &mut Value) {
    let entities = schema.as_array_mut().unwrap();
    entities.push(json!({"name": "migrate-set-parameters", "meta-type": "command", "arg-type": "6"}));
    let member = json!([{"name": "avail-switchover-bandwidth", "type": "int"}]);
    entities.push(json!({"name": "6", "meta-type": "object", "members": member}));
}

/// Adds the parameter `zero-page-detection` to a schema that has `avail-switchover-bandwidth`.
pub fn add_zero_page_detection(schema: &mut Value) {
    let entities = schema.as_array_mut().unwrap();
    let members = &mut entities.iter_mut().find(|entity| entity["name"] == "6").unwrap()["members"];
    members.as_array_mut().unwrap().push(json!({"name": "zero-page-detection", "type": "str"}));
}

pub(super) fn has_block_job_change(schema: &Value) -> bool {
    schema.to_string().contains("block-job-change")
}

pub(super) fn has_exit_on_error(schema: &Value) -> bool {
    schema.to_string().contains("exit-on-error")
}
