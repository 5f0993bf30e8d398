//! Migration capabilities and parameters: what the engine sets, and how to set them back.

use crate::{
    progress::Side,
    qemu::{Process, ProcessError},
    qmp::Request,
    quantity::Rate,
};
use qapi::{Command, qmp};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// QEMU has no word for "no limit" that all versions know, and defaults to 128 MiB/s: this is far above any link.
const UNLIMITED: Rate = Rate(1 << 40);

/// How multifd channels compress what they send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// zstd: much faster.
    Zstd,
    /// zlib.
    Zlib,
}

/// Settings of one side as they were, so that they can be put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Before {
    /// Capabilities by name.
    pub capabilities: Vec<(String, bool)>,
    /// Parameters by name.
    pub parameters: Map<String, Value>,
}

/// The capabilities the engine needs on, by side, and those that this migration needs besides.
pub fn capabilities(side: Side, more: &[&'static str]) -> Vec<&'static str> {
    let needed: [&str; 3] = match side {
        Side::Source => ["events", "return-path", "pause-before-switchover"],
        // without return-path here too, 7.2 would not report that the load failed
        Side::Destination => ["events", "return-path", "late-block-activate"],
    };
    needed.iter().chain(more).copied().collect()
}

/// The parameters the engine sets on the source.
pub fn parameters(downtime: Duration, bandwidth: Option<Rate>) -> Map<String, Value> {
    let millis = u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX);
    let rate = bandwidth.unwrap_or(UNLIMITED);
    Map::from_iter([("downtime-limit".to_owned(), json!(millis)), ("max-bandwidth".to_owned(), json!(rate.0))])
}

/// Reads the settings that are about to change: capabilities by name, and parameters.
///
/// # Errors
/// What QEMU says.
pub async fn read(
    process: &Process,
    wanted: &[&'static str],
    parameters: &Map<String, Value>,
) -> Result<Before, ProcessError> {
    let found = process.ask(&qmp::query_migrate_capabilities {}).await?.0;
    let before = found.into_iter().filter(|c| wanted.contains(&c.capability.as_str())).map(|c| (c.capability, c.state));
    let capabilities = before.collect();
    let mut now = process.ask(&qmp::query_migrate_parameters {}).await?;
    now.retain(|name, _| parameters.contains_key(name));
    Ok(Before { capabilities, parameters: now })
}

/// Sets capabilities.
///
/// # Errors
/// What QEMU says: above all that a migration is under way.
pub async fn set_capabilities(
    process: &Process,
    wanted: impl Iterator<Item = (&str, bool)>,
) -> Result<(), ProcessError> {
    let list: Vec<Value> = wanted.map(|(name, state)| json!({ "capability": name, "state": state })).collect();
    // by name, so that what was read can be put back whatever the build calls it
    let name = qmp::migrate_set_capabilities::NAME;
    process.act_with(name, Request::named(name).with("capabilities", list)).await
}

/// Sets parameters.
///
/// # Errors
/// What QEMU says: above all that a value is out of range.
pub async fn set_parameters(process: &Process, parameters: &Map<String, Value>) -> Result<(), ProcessError> {
    if parameters.is_empty() {
        return Ok(());
    }
    let name = qmp::migrate_set_parameters::NAME;
    let request =
        parameters.iter().fold(Request::named(name), |request, (key, value)| request.with(key, value.clone()));
    process.act_with(name, request).await
}

/// Puts settings back.
///
/// # Errors
/// What QEMU says.
pub async fn restore(process: &Process, before: &Before) -> Result<(), ProcessError> {
    set_capabilities(process, before.capabilities.iter().map(|(name, state)| (name.as_str(), *state))).await?;
    set_parameters(process, &before.parameters).await
}
