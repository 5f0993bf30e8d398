//! Trace events of a QEMU: which of those are on that tell how long devices take, and the switching of them.
//!
//! A trace event that somebody else has switched on must be left on. No answer is waited for longer than two seconds.

use super::{Process, ProcessError, reply::TraceEventInfo};
use qapi::qmp;
use std::time::Duration;
use tokio::time::timeout;

/// The names of the events, for QEMU's own match of patterns.
pub const DEVICE_EVENTS: &str = "vmstate_downtime_*";
/// How long QEMU is waited for: what the events tell is not worth more.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks for the events that a build has, with their states.
///
/// # Errors
/// QEMU refuses, or does not answer in time.
pub async fn device_events(process: &Process) -> Result<Vec<TraceEventInfo>, ProcessError> {
    let question = qmp::trace_event_get_state { name: DEVICE_EVENTS.to_owned() };
    let what = "answer to trace-event-get-state";
    in_time(process, what, process.ask(&question)).await.map(|known| known.0)
}

/// Switches events on or off.
///
/// # Errors
/// The first error of those that QEMU refuses or does not answer in time.
pub async fn switch(process: &Process, names: &[String], enable: bool) -> Result<(), ProcessError> {
    let sent: Vec<_> = names
        .iter()
        .map(|name| process.act(&qmp::trace_event_set_state { name: name.clone(), enable, ignore_unavailable: None }))
        .collect();
    let all = async {
        let mut result = Ok(());
        for one in sent {
            result = result.and(one.await);
        }
        result
    };
    in_time(process, "answer to trace-event-set-state", all).await
}

async fn in_time<T>(
    process: &Process,
    what: &'static str,
    answer: impl Future<Output = Result<T, ProcessError>>,
) -> Result<T, ProcessError> {
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(ProcessError::Late { at: process.name().clone(), what, waited: PATIENCE }),
    }
}
