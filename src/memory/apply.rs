//! Sets migration capabilities and parameters, and puts them back.

use super::tuning::{self, PreviousTuning, SideTuning, ThrottleMethod};
use crate::{
    qemu::{Process, ProcessError, SentCommand},
    qmp::QmpRequest,
};
use qapi::{Command, qmp};
use serde_json::{Map, Value, json};
use tokio::{join, try_join};

/// Ends a dirty limit. QEMU ends the limit itself when a migration is cancelled, but not when a migration fails.
const CANCEL_DIRTY_LIMIT: &str = "cancel-vcpu-dirty-limit";

/// Reads the settings that `tuning` changes now or lets the engine change later, and adds to `tuning` the parameters
/// that a former user left at a value that a run cannot use.
///
/// # Errors
/// QEMU refuses or does not answer.
pub async fn read(process: &Process, tuning: &mut SideTuning) -> Result<PreviousTuning, ProcessError> {
    let parameters = process.ask(&qmp::query_migrate_parameters {});
    let before = read_capabilities(process, tuning).await?;
    let mut parameters = parameters.await?;
    tuning.clear_stray(&parameters);
    parameters.retain(|name, _| tuning.parameters.contains_key(name) || tuning.later.contains(&name.as_str()));
    Ok(PreviousTuning { parameters, ..before })
}

/// Reads the capabilities that `tuning` changes.
///
/// # Errors
/// QEMU refuses or does not answer.
pub async fn read_capabilities(process: &Process, tuning: &SideTuning) -> Result<PreviousTuning, ProcessError> {
    let found = process.ask(&qmp::query_migrate_capabilities {}).await?.0;
    let changes =
        |name: &str| tuning.capabilities.iter().any(|(changed, _)| *changed == name) || tuning.one_of.contains(&name);
    let before = found.into_iter().filter(|c| changes(&c.capability)).map(|c| (c.capability, c.state));
    Ok(PreviousTuning { capabilities: before.collect(), parameters: Map::new() })
}

/// Has QEMU take the capabilities for a moment, and puts them back at once: an accelerator or a host that does not
/// support one tells so by a refusal alone, and after hours of copying disks a refusal would come late.
///
/// `pause-before-switchover` is left out. Every QEMU takes it, and it would stop the guest of a migration that somebody
/// else starts in that moment.
///
/// # Errors
/// QEMU refuses, or does not answer.
pub async fn rehearse(process: &Process, wanted: &SideTuning, before: &PreviousTuning) -> Result<(), ProcessError> {
    let rehearsed = wanted.capabilities.iter().copied().filter(|(name, _)| *name != "pause-before-switchover");
    let set = set_capabilities(process, rehearsed);
    let back = restore_capabilities(process, before);
    let (set, back) = join!(set, back);
    set.and(back)
}

/// Sets one side up, its capabilities aside; returns the method by which its guest can be throttled. `wanted` gets the
/// capability that QEMU took of those of which it was to take one.
///
/// # Errors
/// QEMU refuses, above all because two capabilities do not go together; or does not answer.
pub async fn set_up(process: &Process, wanted: &mut SideTuning) -> Result<ThrottleMethod, ProcessError> {
    set_parameters(process, &wanted.parameters).await?;
    let candidates = wanted.one_of.clone();
    for (at, &name) in candidates.iter().enumerate() {
        match set_capabilities(process, [(name, true)].into_iter()).await {
            Ok(()) => {
                wanted.take_one(name);
                if name != "dirty-limit" {
                    return Ok(ThrottleMethod::AutoConverge);
                }
                set_parameters(process, &tuning::no_dirty_limit()).await?;
                return Ok(ThrottleMethod::DirtyLimit);
            }
            // No schema tells whether the accelerator supports the capability: only the refusal does.
            Err(error) if error.is_refusal() && at + 1 < candidates.len() => {}
            Err(error) => return Err(error),
        }
    }
    let by_itself = wanted.capabilities.contains(&("auto-converge", true));
    Ok(if by_itself { ThrottleMethod::AutoConverge } else { ThrottleMethod::None })
}

/// Asks whether everything is still as it was set; gives the first difference in words. The questions are sent when the
/// function is called, before the future is awaited.
pub fn changed_setting<'a>(
    process: &Process,
    wanted: &'a SideTuning,
) -> impl Future<Output = Result<Option<String>, ProcessError>> + use<'a> {
    let capabilities = changed_capability(process, wanted);
    let parameters = process.ask(&qmp::query_migrate_parameters {});
    async {
        let (capability, parameters) = try_join!(capabilities, parameters)?;
        Ok(capability.or_else(|| wanted.changed_parameter(&parameters)))
    }
}

/// The same for capabilities alone. While a migration runs QEMU refuses to change them, so the answer from then is
/// final.
pub fn changed_capability<'a>(
    process: &Process,
    wanted: &'a SideTuning,
) -> impl Future<Output = Result<Option<String>, ProcessError>> + use<'a> {
    let asked = process.ask(&qmp::query_migrate_capabilities {});
    async { Ok(wanted.changed_capability(&asked.await?.0)) }
}

/// Sets capabilities; the command is sent when the function is called. Where QEMU refuses, none is set.
///
/// # Errors
/// QEMU refuses, above all because a migration is under way; or does not answer.
pub fn set_capabilities<'a>(process: &Process, wanted: impl Iterator<Item = (&'a str, bool)>) -> SentCommand<()> {
    let list: Vec<Value> = wanted.map(|(name, state)| json!({ "capability": name, "state": state })).collect();
    // The qapi crate has an enum of the names it knows; settings that were read are put back under any name.
    let name = qmp::migrate_set_capabilities::NAME;
    process.act_with(name, QmpRequest::named(name).with("capabilities", list))
}

fn restore_capabilities(process: &Process, before: &PreviousTuning) -> SentCommand<()> {
    set_capabilities(process, before.capabilities.iter().map(|(name, state)| (name.as_str(), *state)))
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
    restore_capabilities(process, before).await?;
    set_parameters(process, &before.parameters).await
}
