//! Sets migration capabilities and parameters, and puts them back.

use super::tuning::{self, Before, Setup, Throttling};
use crate::{
    qemu::{Process, ProcessError},
    qmp::QmpRequest,
};
use qapi::{Command, qmp};
use serde_json::{Map, Value, json};

/// Ends a dirty limit. QEMU does so itself when a migration is cancelled, and not when it fails.
const CANCEL_DIRTY_LIMIT: &str = "cancel-vcpu-dirty-limit";

/// Reads the settings that are about to change, or may on the way.
///
/// # Errors
/// What QEMU says.
pub async fn read(process: &Process, setup: &Setup) -> Result<Before, ProcessError> {
    let found = process.ask(&qmp::query_migrate_capabilities {}).await?.0;
    let is_ours = |name: &str| setup.capabilities.iter().any(|(ours, _)| *ours == name) || setup.one_of.contains(&name);
    let before = found.into_iter().filter(|c| is_ours(&c.capability)).map(|c| (c.capability, c.state));
    let capabilities = before.collect();
    let mut now = process.ask(&qmp::query_migrate_parameters {}).await?;
    now.retain(|name, _| setup.parameters.contains_key(name) || setup.later.contains(&name.as_str()));
    Ok(Before { capabilities, parameters: now })
}

/// Sets one side up, and tells with what its guest can be slowed down.
///
/// # Errors
/// What QEMU says: above all that a migration is under way, or that two capabilities do not go together.
pub async fn set_up(process: &Process, setup: &Setup) -> Result<Throttling, ProcessError> {
    set_capabilities(process, setup.capabilities.iter().copied()).await?;
    set_parameters(process, &setup.parameters).await?;
    for (at, &name) in setup.one_of.iter().enumerate() {
        match set_capabilities(process, [(name, true)].into_iter()).await {
            Ok(()) if name == "dirty-limit" => {
                set_parameters(process, &tuning::no_dirty_limit()).await?;
                return Ok(Throttling::DirtyLimit);
            }
            Ok(()) => return Ok(Throttling::AutoConverge),
            // what it needs of the accelerator no schema tells, only the refusal
            Err(error) if error.is_refusal() && at + 1 < setup.one_of.len() => {}
            Err(error) => return Err(error),
        }
    }
    let own = setup.capabilities.contains(&("auto-converge", true));
    Ok(if own { Throttling::AutoConverge } else { Throttling::None })
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
    process.act_with(name, QmpRequest::named(name).with("capabilities", list)).await
}

/// Sets parameters; also while the migration is under way.
///
/// # Errors
/// What QEMU says: above all that a value is out of range.
pub async fn set_parameters(process: &Process, parameters: &Map<String, Value>) -> Result<(), ProcessError> {
    if parameters.is_empty() {
        return Ok(());
    }
    let name = qmp::migrate_set_parameters::NAME;
    let request =
        parameters.iter().fold(QmpRequest::named(name), |request, (key, value)| request.with(key, value.clone()));
    process.act_with(name, request).await
}

/// Puts settings back, once no migration is under way.
///
/// # Errors
/// What QEMU says.
pub async fn restore(process: &Process, before: &Before) -> Result<(), ProcessError> {
    if before.parameters.contains_key("vcpu-dirty-limit") {
        match process.act_with(CANCEL_DIRTY_LIMIT, QmpRequest::named(CANCEL_DIRTY_LIMIT)).await {
            // the rest must not wait for a limit that cannot be there
            Err(error) if !error.is_refusal() => return Err(error),
            _ => {}
        }
    }
    set_capabilities(process, before.capabilities.iter().map(|(name, state)| (name.as_str(), *state))).await?;
    set_parameters(process, &before.parameters).await
}
