//! What a recording tells of a migration that is over: the last looks of the engine at both sides before its end.
//!
//! Pure.

use super::{
    cause::{Cause, Confidence},
    look::{MonitorLook, list},
    pair::{MonitorReach, PairLooks, SideLooks},
    report::Diagnosis,
};
use crate::{
    codes::DiagnosisCode,
    progress::{Ending, EventKind, Outcome},
    qemu::reply::{MigrationCapabilityStatus, MigrationStatus, RunState},
    recording::{RecordedContent, RecordedEntry, RecordedLine},
};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// The commands whose answers a diagnosis reads.
pub(crate) const READ_ANSWERS: &[&str] = &[
    "query-status",
    "query-migrate",
    "query-block-jobs",
    "query-jobs",
    "query-block-exports",
    "query-migrate-parameters",
    "query-migrate-capabilities",
];
/// The time before the end of a migration that is looked at. The engine waits for longer before it gives up.
pub(super) const WINDOW: Duration = Duration::from_secs(5);
/// The most looks that are kept of a side.
const LOOKS: usize = 256;
/// The commands by which limits and capabilities change, that of the parameters first, and the most that wait for an
/// answer.
const SETTINGS: [&str; 2] = ["migrate-set-parameters", "migrate-set-capabilities"];
const WAITING: usize = 64;
/// The statuses in which a migration is over.
const ENDS: [&str; 3] = ["completed", "failed", "cancelled"];
/// The engine's actions with which it begins to go back: what is seen later is its own doing.
const GOES_BACK: [&str; 2] = ["roll-back", "give-up"];

/// A recording that is read line by line, in bounded memory.
#[derive(Debug)]
pub(crate) struct RecordedLooks {
    source: RecordedSide,
    destination: RecordedSide,
    outcome: Option<Box<Outcome>>,
    goes_back: Option<String>,
}

/// One side, with the answers that the next look begins with.
#[derive(Debug)]
pub(super) struct RecordedSide {
    pub(super) looks: SideLooks,
    pub(super) now: MonitorLook,
    /// Settings that were sent and not answered yet, by the ids of their commands.
    waiting: BTreeMap<String, (String, Value)>,
}

impl RecordedSide {
    pub(super) fn new(name: &str) -> Self {
        Self {
            looks: SideLooks::new(name.to_owned(), MonitorReach::Answers),
            now: MonitorLook::default(),
            waiting: BTreeMap::new(),
        }
    }

    /// Takes a command in. Settings hold once QEMU has accepted them.
    pub(super) fn command(&mut self, id: &str, name: &str, arguments: &Value) {
        if SETTINGS.contains(&name) && self.waiting.len() < WAITING {
            self.waiting.insert(id.to_owned(), (name.to_owned(), arguments.clone()));
        }
    }

    /// Takes in that QEMU has answered a command, and whether QEMU did what it was told.
    pub(super) fn answered(&mut self, id: &str, accepted: bool) {
        let Some((name, arguments)) = self.waiting.remove(id).filter(|_| accepted) else { return };
        let looks = &mut self.looks;
        match arguments {
            Value::Object(arguments) if name == SETTINGS[0] => looks.parameters.extend(arguments),
            Value::Object(arguments) => {
                let set: Vec<MigrationCapabilityStatus> = arguments.get("capabilities").map(list).unwrap_or_default();
                for MigrationCapabilityStatus { capability, state, .. } in set {
                    match state {
                        true => looks.capabilities.insert(capability),
                        false => looks.capabilities.remove(&capability),
                    };
                }
            }
            // what is not known any more is not judged by
            _ if name == SETTINGS[0] => looks.parameters.clear(),
            _ => looks.capabilities.clear(),
        }
    }

    /// Takes an answer in. A look is complete with the status of the migration, or with the jobs before there is one.
    pub(super) fn answer(&mut self, at: Duration, command: &str, value: &Value) {
        if !self.now.take(command, value) {
            self.looks.take(command, value);
        }
        if matches!(command, "query-migrate" | "query-block-jobs" | "query-status") {
            self.now.at = at;
            self.looks.looks.push(self.now.clone());
            let looks = &mut self.looks.looks;
            let old = looks.iter().take_while(|look| at.saturating_sub(look.at) > WINDOW).count();
            looks.drain(..old.max(looks.len().saturating_sub(LOOKS)));
        }
    }

    /// Takes in that a migration has come to its end, which nobody may have asked for since.
    fn status(&mut self, at: Duration, event: &str, data: &Value) {
        let status = data.get("status").and_then(Value::as_str).filter(|_| event == "MIGRATION");
        if let Some(status) = status.filter(|status| ENDS.contains(status)) {
            self.now.migration.status = Some(status.into());
            self.now.at = at;
            self.looks.looks.push(self.now.clone());
        }
    }

    /// Takes an event of QEMU in.
    pub(super) fn event(&mut self, name: &str, data: &Value) {
        self.looks.job_errors.event(name, data);
        match name {
            "STOP" => self.now.run = Some("paused".into()),
            "RESUME" => self.now.run = Some("running".into()),
            _ => {}
        }
    }
}

impl Default for RecordedLooks {
    fn default() -> Self {
        let (source, destination) = (RecordedSide::new("source"), RecordedSide::new("destination"));
        Self { source, destination, outcome: None, goes_back: None }
    }
}

impl RecordedLooks {
    /// Adds a line.
    pub(crate) fn add(&mut self, line: RecordedLine) {
        match line {
            RecordedLine::Header(header) => {
                let addresses = [(&mut self.source, header.source), (&mut self.destination, header.destination)];
                for (side, address) in addresses {
                    side.looks.name = address.unwrap_or_else(|| side.looks.name.clone());
                }
            }
            RecordedLine::Entry(entry) => self.entry(entry),
        }
    }

    fn entry(&mut self, RecordedEntry { at, side, content }: RecordedEntry) {
        let seen = match &*side {
            "source" => &mut self.source,
            "destination" => &mut self.destination,
            _ => {
                if let RecordedContent::Engine(event) = content {
                    self.engine(event.kind);
                }
                return;
            }
        };
        match content {
            _ if self.goes_back.is_some() => {}
            RecordedContent::Command { name, id: Some(id), arguments } => seen.command(&id, &name, &arguments),
            RecordedContent::Answer { id: Some(id), value, refusal } => {
                seen.answered(&id, refusal.is_none());
                if refusal.is_none() {
                    seen.answer(at, id.split('#').next().unwrap_or_default(), &value);
                }
            }
            RecordedContent::Qmp { name, data } => {
                seen.event(&name, &data);
                seen.status(at, &name, &data);
            }
            _ => {}
        }
    }

    fn engine(&mut self, event: EventKind) {
        match event {
            EventKind::Outcome(outcome) => self.outcome = Some(outcome),
            EventKind::Action { action, because, .. } if GOES_BACK.contains(&&*action) => {
                self.goes_back.get_or_insert(because);
            }
            _ => {}
        }
    }

    /// What was wrong, and how the migration ended. A migration that moved its guest has no cause, whatever it met.
    /// Where the recording has no end, it matters whether the engine that wrote it lives; `None` where nobody knows.
    pub(crate) fn diagnose(self, writer_lives: Option<bool>) -> Diagnosis {
        let Self { source, destination, outcome, goes_back } = self;
        let mut unseen = vec!["the processes and their connections are not in a recording".to_owned()];
        let sides = PairLooks { source: Some(source.looks), destination: Some(destination.looks) };
        let mut diagnosis = Diagnosis::of(&sides, Vec::new());
        let ended = match &outcome {
            Some(outcome) => {
                let reason = outcome.reason.as_ref().map(|reason| format!(": {} ({})", reason.message, reason.code));
                format!("{}{}", ended_as(outcome.outcome), reason.unwrap_or_default())
            }
            None => match writer_lives {
                Some(true) => "The recording has no end yet: the engine still runs".to_owned(),
                Some(false) => "The recording has no end, and no engine writes it any more".to_owned(),
                None => "The recording has no end: the engine died, or still runs".to_owned(),
            },
        };
        if outcome.is_none() && writer_lives == Some(false) {
            diagnosis.causes.extend(sides.source.as_ref().and_then(left_alone));
            diagnosis.causes.sort_by_key(|cause| cause.confidence);
        }
        let moved = outcome.is_some_and(|outcome| outcome.outcome == Ending::Moved);
        if moved {
            diagnosis.causes.clear();
        }
        unseen.extend(
            goes_back.map(|because| format!("what came after the engine went back ({because}) is its own doing")),
        );
        diagnosis.leave_remedies_to_people();
        diagnosis.moved = Some(moved);
        diagnosis.verdict = match diagnosis.causes.first() {
            Some(cause) => format!("{ended}. {}", cause.code.meaning()),
            None => format!("{ended}."),
        };
        diagnosis.unseen = unseen;
        diagnosis
    }
}

/// A migration that was under way when its engine died.
fn left_alone(source: &SideLooks) -> Option<Cause> {
    let status = source.status().unwrap_or(&MigrationStatus::None);
    let mirrors = source.mirrors().count();
    let is_under_way = !matches!(status, MigrationStatus::None | MigrationStatus::Failed | MigrationStatus::Cancelled);
    if !is_under_way && mirrors == 0 {
        return None;
    }
    let run = source.run().map_or("not known", RunState::as_str);
    let evidence = vec![
        "the recording has no end, and no process writes it: the qferry that ran the migration has died".to_owned(),
        format!("the last look at the source: run state {run}, migration {status}, jobs of disks: {mirrors}"),
        "a copy that was made of the recording while qferry ran looks the same".to_owned(),
    ];
    let cause = Cause::new(DiagnosisCode::Ownerless, Confidence::Likely, evidence);
    Some(cause.remedy(
        "qferry history names the journal of the run: qferry recover with it looks at both sides, and ends what was begun",
        "none: nothing is changed that is not proved to be the run's",
    ))
}

/// The end of a migration as a sentence.
fn ended_as(ending: Ending) -> &'static str {
    match ending {
        Ending::Moved => "The guest was moved",
        Ending::Refused => "The migration was refused",
        Ending::RolledBack => "The migration was rolled back",
        Ending::Cancelled => "The migration was cancelled",
        Ending::Stuck => "The guest runs on the source, and something could not be cleaned up",
        Ending::Undetermined => "It is not proved on which side the guest runs",
        Ending::Ended => "The guest ended by itself before it was moved",
        Ending::Unknown => "The migration ended in a way that this version does not know",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::RecordingReader;
    use serde_json::json;

    /// A recording of a mirror that is paused for 6 s, and what the engine said at last.
    fn recording(paused: bool, last: &Value) -> String {
        let mut lines =
            vec![json!({ "v": 1, "type": "transcript", "began_ms": 1, "qferry": "0", "source": "unix:/s" })];
        let entry = |at: u64, side: &str, dir: &str, line: Value| json!({ "v": 1, "t_us": at, "side": side, "dir": dir, "line": line });
        for look in 0..24u64 {
            let job = json!([{ "device": "m", "type": "mirror", "len": 1000, "offset": 10 + if paused { 0 } else { look * 10 },
                "ready": false, "paused": paused, "status": if paused { "paused" } else { "running" }, "io-status": "ok" }]);
            let answer = json!({ "return": job, "id": format!("query-block-jobs#{look}") });
            lines.push(entry(look * 250_000, "source", "receive", answer));
        }
        let because =
            json!({ "v": 1, "t_ms": 6000, "type": "action", "action": "give-up", "because": "it stands still" });
        lines.push(entry(6_000_000, "engine", "note", because));
        // the engine's own cancel leaves nothing to see
        lines.push(entry(6_100_000, "source", "receive", json!({ "return": [], "id": "query-block-jobs#99" })));
        lines.push(entry(6_200_000, "engine", "note", last.clone()));
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn outcome(ending: &str) -> Value {
        json!({ "v": 1, "t_ms": 6200, "type": "outcome", "outcome": ending, "runs_on": "source", "reason":
            { "code": "disk-not-converging", "message": "the mirror stands still" }, "total_ms": 6200, "blackout_ms": null,
            "qemu_downtime_ms": null, "ledger": [], "disks": [], "ram": { "bytes": 0, "iterations": 0, "throttle_max_pct": 0,
            "postcopy": false }, "predicted": null, "leftovers": [] })
    }

    fn diagnosed(text: &str) -> Diagnosis {
        written(text, None)
    }

    fn written(text: &str, writer_lives: Option<bool>) -> Diagnosis {
        let mut looks = RecordedLooks::default();
        RecordingReader::new(text.as_bytes()).reading_answers(READ_ANSWERS).for_each(|line| looks.add(line.unwrap()));
        looks.diagnose(writer_lives)
    }

    #[test]
    fn a_failure_is_explained_by_what_was_seen_before_the_engine_went_back() {
        let told = diagnosed(&recording(true, &outcome("rolled-back")));
        let codes: Vec<_> = told.causes.iter().map(|cause| cause.code.as_str()).collect();
        assert_eq!(codes, ["mirror-paused"], "{told:#?}");
        assert!(told.verdict.contains("rolled back") && told.verdict.contains("paused"), "{}", told.verdict);
        assert_eq!(told.source.map(|side| side.address), Some("unix:/s".to_owned()));
    }

    /// A recording of RAM that goes at 40 MiB/s, at first with a limit of as much, and what the engine sends in
    /// between.
    fn with_settings(sent: &Value, answer: &Value) -> Diagnosis {
        let mut lines = vec![json!({ "v": 1, "type": "transcript", "began_ms": 1, "qferry": "0" })];
        let entry =
            |at: u64, dir: &str, line: Value| json!({ "v": 1, "t_us": at, "side": "source", "dir": dir, "line": line });
        let (mib, fresh) = (1u64 << 20, json!({ "downtime-limit": 300, "max-bandwidth": 40 << 20 }));
        lines.push(entry(1, "receive", json!({ "return": fresh, "id": "query-migrate-parameters#1" })));
        lines.push(entry(2, "send", sent.clone()));
        lines.push(entry(3, "receive", answer.clone()));
        for look in 0..24u64 {
            let ram = json!({ "transferred": look * 10 * mib, "remaining": (60 - look % 3) * mib, "total": 1024 * mib,
                "dirty-pages-rate": 10240, "dirty-sync-count": 4 + look, "page-size": 4096, "mbps": 335.5 });
            let answer = json!({ "return": { "status": "active", "ram": ram, "expected-downtime": 300 },
                "id": format!("query-migrate#{look}") });
            lines.push(entry(look * 250_000 + 10, "receive", answer));
        }
        diagnosed(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
    }

    #[test]
    fn limits_are_those_that_held_at_the_end() {
        let set = json!({ "execute": "migrate-set-parameters", "id": "migrate-set-parameters#2",
            "arguments": { "max-bandwidth": 0, "downtime-limit": 2000 } });
        let codes = |told: &Diagnosis| told.causes.iter().map(|cause| cause.code.as_str()).collect::<Vec<_>>();
        let accepted = with_settings(&set, &json!({ "return": {}, "id": "migrate-set-parameters#2" }));
        let limits = accepted.source.as_ref().map(|side| (side.bandwidth_limit, side.downtime_limit_ms));
        assert_eq!((limits, codes(&accepted)), (Some((None, Some(2000))), vec!["not-converging"]));
        let refusal = json!({ "error": { "class": "GenericError", "desc": "no" }, "id": "migrate-set-parameters#2" });
        let refused = with_settings(&set, &refusal);
        assert_eq!(codes(&refused), ["bandwidth-capped"], "what QEMU refused does not hold: {refused:#?}");
        assert!(!refused.causes[0].fixable, "what is over is not mended");
    }

    #[test]
    fn a_migration_without_a_visible_cause_says_how_it_ended() {
        let told = diagnosed(&recording(false, &outcome("rolled-back")));
        assert!(told.causes.is_empty() && told.verdict.contains("disk-not-converging"), "{told:#?}");
        assert!(!told.is_healthy(), "a guest that was not moved is no success");
        assert!(diagnosed(&recording(true, &outcome("moved"))).is_healthy());
        let torn = diagnosed("{\"v\":1,\"type\":\"transcript\"}\nnot JSON\n{\"v\":1");
        assert!(torn.verdict.contains("no end") && !torn.is_healthy(), "{torn:#?}");
    }
    #[test]
    fn a_migration_whose_engine_died_has_no_owner() {
        let whole = recording(false, &outcome("rolled-back"));
        // the engine died while the mirror was copied
        let died: String = whole.lines().take(20).map(|line| format!("{line}\n")).collect();
        let codes = |told: &Diagnosis| told.causes.iter().map(|cause| cause.code.as_str()).collect::<Vec<_>>();
        let told = written(&died, Some(false));
        assert_eq!(codes(&told), ["ownerless"], "{told:#?}");
        assert!(
            told.verdict.starts_with("The recording has no end, and no engine writes it any more."),
            "{}",
            told.verdict
        );
        assert!(told.causes[0].remedy.contains("qferry recover") && !told.causes[0].fixable, "{told:#?}");
        // one that lives, one of which that is not known, and one that came to its end
        for (text, lives) in [(&died, Some(true)), (&died, None), (&whole, Some(false)), (&whole, None)] {
            let told = written(text, lives);
            assert_eq!(codes(&told), Vec::<&str>::new(), "{lives:?} {told:#?}");
        }
        // nothing was begun
        let begun: String = whole.lines().take(1).map(|line| format!("{line}\n")).collect();
        assert_eq!(codes(&written(&begun, Some(false))), Vec::<&str>::new());
        // what stands still besides comes first where it is certain
        let paused: String =
            recording(true, &outcome("stuck")).lines().take(20).map(|line| format!("{line}\n")).collect();
        assert_eq!(codes(&written(&paused, Some(false))), ["mirror-paused", "ownerless"]);
    }
}
