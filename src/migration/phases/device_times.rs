//! Has QEMU log how long the state of each device takes, where its log can be read, so that the blackout is told device
//! by device.
//!
//! Nothing here may end or delay a migration, or change where a QEMU logs. The events are switched on before RAM is
//! sent, and nothing is sent or read between the guest's stop and its resume.

use crate::{
    migration::{
        Effect, Failure,
        attempt::Attempt,
        context::Context,
        device_logs::{DeviceLogs, UnknownTimes},
        pair::QemuPair,
    },
    progress::describe,
    qemu::{
        Process, ProcessError,
        log_file::{LogFile, NoLogFile},
        trace_events,
    },
};
use std::time::Duration;
use tokio::{join, task::spawn_blocking, time::timeout};

/// How long the file system of a log is waited for.
const FILES: Duration = Duration::from_secs(2);
/// What is said where the file system took longer.
const SLOW: &str = "has a log that cannot be read in time";

/// The log of a side, and the events that are off there.
type FoundLog = (LogFile, Vec<String>);

/// Switches the events on whose lines can be read, and says once of which side they cannot.
///
/// # Errors
/// The journal cannot be written.
pub(super) async fn switch_on(context: &Context, pair: &QemuPair, attempt: &mut Attempt) -> Result<(), Failure> {
    if !context.settings.device_times {
        return Ok(());
    }
    let QemuPair { source, destination } = pair;
    let found = join!(find(source), find(destination));
    let effect = |process: &Process, found: &Result<FoundLog, UnknownTimes>| {
        let events = found.as_ref().map(|(_, off)| off.clone()).unwrap_or_default();
        (!events.is_empty()).then(|| Effect::Traced { side: process.name().side, events })
    };
    let effects = [effect(source, &found.0), effect(destination, &found.1)];
    attempt.log.note(effects.clone().into_iter().flatten()).await?;
    let switched = join!(switch(source, found.0), switch(destination, found.1));
    let mut logs = DeviceLogs::default();
    for ((process, switched), effect) in [(source, switched.0), (destination, switched.1)].into_iter().zip(effects) {
        match switched {
            Ok(log) => logs.open.push((process.name().clone(), log)),
            Err(NotSwitched { unknown, is_refused }) => {
                if let Some(effect) = effect.filter(|_| is_refused) {
                    attempt.log.undone(&effect, &context.report).await;
                }
                logs.unknown.push(unknown);
            }
        }
    }
    if let Some(words) = logs.describe_unknown() {
        context.report.action("no-device-times", words);
    }
    attempt.device_logs = logs;
    Ok(())
}

/// Finds the log of a side, and the events that are off there.
async fn find(process: &Process) -> Result<FoundLog, UnknownTimes> {
    let unknown = |words: &str, wants_file| UnknownTimes::new(process.name(), words, wants_file);
    if !process.features().trace_events {
        return Err(unknown("has no commands for trace events", false));
    }
    let Some(peer) = process.peer() else {
        let why = process.unseen().map_or_else(|| "is no process of this host".to_owned(), ToString::to_string);
        return Err(unknown(&why, false));
    };
    let pid = peer.pid();
    let log = match timeout(FILES, spawn_blocking(move || LogFile::find(pid))).await {
        Ok(Ok(Ok(log))) if !peer.has_died() => log,
        Ok(Ok(Err(why))) => {
            return Err(unknown(&why.to_string(), matches!(why, NoLogFile::NoFile(_))));
        }
        _ => return Err(unknown(SLOW, false)),
    };
    let known = trace_events::device_events(process).await.map_err(|error| failed(process, &error))?;
    if known.is_empty() {
        return Err(unknown("has no trace events that tell the times of devices, as QEMU before 8.2", false));
    }
    if known.iter().any(|event| event.state == "unavailable") {
        return Err(unknown("was built without trace events", false));
    }
    Ok((log, known.into_iter().filter(|event| event.state == "disabled").map(|event| event.name).collect()))
}

/// The events of a side were not switched on, as far as is known.
struct NotSwitched {
    unknown: UnknownTimes,
    /// QEMU has left its events as they were.
    is_refused: bool,
}

async fn switch(process: &Process, found: Result<FoundLog, UnknownTimes>) -> Result<LogFile, NotSwitched> {
    let (log, off) = found.map_err(|unknown| NotSwitched { unknown, is_refused: true })?;
    match trace_events::switch(process, &off, true).await {
        Ok(()) => Ok(log),
        Err(error) => {
            let is_refused = error.is_refusal();
            if is_refused {
                // QEMU may have switched another of them, and refuses the rest once more
                drop(trace_events::switch(process, &off, false).await);
            }
            Err(NotSwitched { unknown: failed(process, &error), is_refused })
        }
    }
}

fn failed(process: &Process, error: &ProcessError) -> UnknownTimes {
    UnknownTimes::new(process.name(), format!("did not switch its trace events on ({})", describe(error)), false)
}

/// Reads how long each device took, once the blackout is over. `moved` says that QEMU must have written it.
pub(crate) async fn take(attempt: &mut Attempt, moved: bool) {
    let logs = &mut attempt.device_logs;
    for (name, log) in std::mem::take(&mut logs.open) {
        let side = name.side;
        let why = match timeout(FILES, spawn_blocking(move || log.devices(side))).await {
            Ok(Ok(Ok(Some(told)))) if !told.is_empty() => {
                logs.told.extend(told);
                continue;
            }
            Ok(Ok(Ok(Some(_)))) if !moved => continue,
            Ok(Ok(Ok(Some(_)))) => "wrote no times of devices to its log: its trace events may go elsewhere".to_owned(),
            Ok(Ok(Ok(None))) => "shares its log with a QEMU whose lines cannot be told apart".to_owned(),
            Ok(Ok(Err(why))) => why.to_string(),
            Ok(Err(_)) | Err(_) => SLOW.to_owned(),
        };
        logs.unknown.push(UnknownTimes::new(&name, why, false));
    }
}
