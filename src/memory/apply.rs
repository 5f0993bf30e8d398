//! Sets migration capabilities and parameters, and puts them back.

use super::tuning::{self, PreviousTuning, SideTuning, ThrottleMethod};
use crate::{
    qemu::{Process, ProcessError},
    qmp::QmpRequest,
};
use qapi::{Command, qmp};
use serde_json::{Map, Value, json};

/// Ends a dirty limit. QEMU ends the limit itself when a migration is cancelled, but not when a migration fails.
const CANCEL_DIRTY_LIMIT: &str = "cancel-vcpu-dirty-limit";

/// Reads the settings that `tuning` changes now or lets the engine change later.
///
/// # Errors
/// QEMU refuses or does not answer.
pub async fn read(process: &Process, tuning: &SideTuning) -> Result<PreviousTuning, ProcessError> {
    let found = process.ask(&qmp::query_migrate_capabilities {}).await?.0;
    let changes =
        |name: &str| tuning.capabilities.iter().any(|(changed, _)| *changed == name) || tuning.one_of.contains(&name);
    let before = found.into_iter().filter(|c| changes(&c.capability)).map(|c| (c.capability, c.state));
    let capabilities = before.collect();
    let mut parameters = process.ask(&qmp::query_migrate_parameters {}).await?;
    parameters.retain(|name, _| tuning.parameters.contains_key(name) || tuning.later.contains(&name.as_str()));
    Ok(PreviousTuning { capabilities, parameters })
}

/// Sets one side up; returns the method by which its guest can be throttled.
///
/// # Errors
/// QEMU refuses, above all because a migration is under way or two capabilities do not go together; or does not answer.
pub async fn set_up(process: &Process, wanted: &SideTuning) -> Result<ThrottleMethod, ProcessError> {
    set_capabilities(process, wanted.capabilities.iter().copied()).await?;
    set_parameters(process, &wanted.parameters).await?;
    for (at, &name) in wanted.one_of.iter().enumerate() {
        match set_capabilities(process, [(name, true)].into_iter()).await {
            Ok(()) if name == "dirty-limit" => {
                set_parameters(process, &tuning::no_dirty_limit()).await?;
                return Ok(ThrottleMethod::DirtyLimit);
            }
            Ok(()) => return Ok(ThrottleMethod::AutoConverge),
            // No schema tells whether the accelerator supports the capability: only the refusal does.
            Err(error) if error.is_refusal() && at + 1 < wanted.one_of.len() => {}
            Err(error) => return Err(error),
        }
    }
    let by_itself = wanted.capabilities.contains(&("auto-converge", true));
    Ok(if by_itself { ThrottleMethod::AutoConverge } else { ThrottleMethod::None })
}

/// Sets capabilities.
///
/// # Errors
/// QEMU refuses, above all because a migration is under way; or does not answer.
pub async fn set_capabilities(
    process: &Process,
    wanted: impl Iterator<Item = (&str, bool)>,
) -> Result<(), ProcessError> {
    let list: Vec<Value> = wanted.map(|(name, state)| json!({ "capability": name, "state": state })).collect();
    // The qapi crate has an enum of the names it knows; settings that were read are put back under any name.
    let name = qmp::migrate_set_capabilities::NAME;
    process.act_with(name, QmpRequest::named(name).with("capabilities", list)).await
}

/// Sets parameters; also while the migration is under way.
///
/// # Errors
/// QEMU refuses, above all because a value is out of range; or does not answer.
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
/// QEMU refuses or does not answer.
pub async fn restore(process: &Process, before: &PreviousTuning) -> Result<(), ProcessError> {
    if before.parameters.contains_key("vcpu-dirty-limit") {
        match process.act_with(CANCEL_DIRTY_LIMIT, QmpRequest::named(CANCEL_DIRTY_LIMIT)).await {
            // A build that refuses has no limit to end; its other settings must be put back all the same.
            Err(error) if !error.is_refusal() => return Err(error),
            _ => {}
        }
    }
    set_capabilities(process, before.capabilities.iter().map(|(name, state)| (name.as_str(), *state))).await?;
    set_parameters(process, &before.parameters).await
}
