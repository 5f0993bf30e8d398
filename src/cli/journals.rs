//! `qferry recover` without a journal: the journals of the state directory.

use super::{exit::failed, render};
use crate::migration::{JournalInfo, journal_directory, journals};
use std::{
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

/// Lists the journals: for people, or as one JSON object a line.
pub(super) fn list(json: bool) -> ExitCode {
    let directory = journal_directory();
    let found = match journals(&directory) {
        Ok(found) => found,
        Err(error) => return failed(&format!("cannot read {}: {error}", directory.display()), json),
    };
    if json {
        for journal in &found {
            let mut line = serde_json::json!({ "v": 1, "type": "journal", "t_ms": 0 });
            if let (Some(line), Ok(serde_json::Value::Object(fields))) =
                (line.as_object_mut(), serde_json::to_value(journal))
            {
                line.extend(fields);
            }
            if let Err(error) = render::object(&line) {
                return failed(&format!("the journals cannot be listed: {error}"), false);
            }
        }
    } else if found.is_empty() {
        render::say(&format!("qferry: no journal in {}: no migration was left by its engine", directory.display()));
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        found.iter().for_each(|journal| render::print(&describe(journal, now)));
    }
    ExitCode::SUCCESS
}

fn describe(journal: &JournalInfo, now: u64) -> String {
    let mut lines = vec![journal.path.display().to_string()];
    let mut add = |name: &str, what: String| lines.push(format!("  {name:<8} {what}"));
    if let Some(error) = &journal.error {
        add("error", error.clone());
    }
    if let Some(begun) = journal.begun_ms {
        add("begun", ago(now.saturating_sub(begun) / 1000));
    }
    if let (Some(source), Some(destination)) = (&journal.source, &journal.destination) {
        add("moves", format!("{source} -> {destination}"));
    }
    match (journal.ended, journal.phase) {
        (Some(ended), _) => add("ended", ended.to_string()),
        (None, Some(phase)) => add("phase", phase.to_string()),
        (None, None) => {}
    }
    let engine = match (journal.engine_lives, journal.engine_pid) {
        (true, Some(pid)) => format!("lives, pid {pid}"),
        (true, None) => "lives".to_owned(),
        (false, _) => "is dead".to_owned(),
    };
    add("engine", engine);
    add("recover", journal.recovery.to_string());
    lines.join("\n") + "\n"
}

/// How long ago something was, in seconds, for people.
fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_their_order() {
        assert_eq!(
            [1, 119, 120, 7199, 7200, 172_800].map(ago),
            ["1 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "2 days ago"]
        );
    }
}
