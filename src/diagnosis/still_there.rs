//! Whether what a remedy is for is still there: the same QEMU, the same migration, the same job, the same cause.
//!
//! Pure. Between a diagnosis and the word of its user any time can pass, in which others act: a remedy that was right
//! for one migration would end another one.

use super::{
    cause::Cause,
    remedy::RemedyCommand,
    report::{Diagnosis, SideReport},
};
use crate::progress::Side;

/// The arguments of a command that say what the command is for. The others say what becomes of that.
const AIMS: [&str; 3] = ["device", "id", "instances"];

/// Whether two commands do the same to the same.
fn is_same_aim(one: &RemedyCommand, other: &RemedyCommand) -> bool {
    let aims = |name: &&str| one.argument(name) == other.argument(name);
    (one.side, one.oob, &one.name) == (other.side, other.oob, &other.name) && AIMS.iter().all(aims)
}

impl Diagnosis {
    /// What has changed since an earlier look, so that the remedy of a cause of that look is not to be carried out;
    /// `None` where the same cause is there, of the same migration and the same job of the same QEMU. For the moment
    /// right before [`carry_out`](super::carry_out).
    pub fn changed_since(&self, before: &Self, cause: &Cause) -> Option<String> {
        for side in [Side::Source, Side::Destination] {
            let is_meant = cause.commands.iter().any(|command| command.side == side);
            match (before.side(side), self.side(side)) {
                (Some(then), Some(now)) => {
                    let changed = other_side(then, now).or_else(|| {
                        let own = cause.commands.iter().filter(|command| command.side == side);
                        own.into_iter().find_map(|command| then.identity.other_job(&now.identity, command))
                    });
                    if let Some(changed) = changed {
                        return Some(format!("the {side}: {changed}"));
                    }
                }
                (Some(_), None) if is_meant => return Some(format!("what was the {side} is the {side} no longer")),
                _ => {}
            }
        }
        match self.still_has(cause) {
            true => None,
            false => Some(format!("{} is not found any more", cause.code)),
        }
    }

    /// Whether a cause of an earlier look is found still, with the same remedy.
    pub(crate) fn still_has(&self, cause: &Cause) -> bool {
        let is_same = |now: &Cause| {
            let pairs = now.commands.iter().zip(&cause.commands);
            now.code == cause.code
                && now.fixable
                && now.commands.len() == cause.commands.len()
                && pairs.into_iter().all(|(now, then)| is_same_aim(now, then))
        };
        self.causes.iter().any(is_same)
    }
}

/// What tells that a side is another QEMU than it was, or has another migration.
fn other_side(then: &SideReport, now: &SideReport) -> Option<String> {
    if then.address != now.address {
        return Some(format!("it was {} and is {}", then.address, now.address));
    }
    let differ = |one: Option<String>, other: Option<String>| one.zip(other).filter(|(one, other)| one != other);
    let pid = |of: &SideReport| of.pid.map(|pid| format!("process {pid}"));
    let uuid = |of: &SideReport| of.identity.uuid();
    if let Some((was, is)) = differ(pid(then), pid(now)).or_else(|| differ(uuid(then), uuid(now))) {
        return Some(format!("another QEMU is there: {is}, and not {was}"));
    }
    then.identity.other_migration(&now.identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codes::DiagnosisCode,
        diagnosis::{
            cause::Confidence,
            look::{MonitorLook, list},
            pair::{MonitorReach, PairLooks, SideLooks},
        },
    };
    use serde_json::{Value, json};
    use std::time::{Duration, Instant};

    /// A side that was looked at from this moment on, for 3 s, and said this at the end.
    fn looked(from: Instant, migration: &Value, jobs: &Value) -> SideLooks {
        let mut side = SideLooks::new("unix:/s".to_owned(), MonitorReach::Answers);
        side.began = Some(from);
        for number in 0..7u64 {
            let mut look = MonitorLook { at: Duration::from_millis(500 * number), ..MonitorLook::default() };
            look.take("query-status", &json!({ "status": "finish-migrate" }));
            look.take("query-migrate", migration);
            look.take("query-block-jobs", jobs);
            look.concluded = list(&json!([]));
            side.looks.push(look);
        }
        side
    }

    fn said(side: SideLooks) -> Diagnosis {
        Diagnosis::of(&PairLooks { source: Some(side), destination: None }, Vec::new())
    }

    fn found(diagnosis: &Diagnosis, code: DiagnosisCode) -> Cause {
        diagnosis.causes.iter().find(|cause| cause.code == code).cloned().unwrap_or_else(|| panic!("{diagnosis:#?}"))
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_migration_is_known_again_by_the_moment_at_which_it_began() {
        let begun = Instant::now();
        let waits = |age: u64| json!({ "status": "pre-switchover", "total-time": age });
        let before = said(looked(begun, &waits(10_000), &json!([])));
        let cause = found(&before, DiagnosisCode::WaitingForContinue);
        let changed = |at: Duration, migration: Value| {
            said(looked(begun + at, &migration, &json!([]))).changed_since(&before, &cause)
        };
        assert_eq!(changed(MINUTE, waits(70_000)), None);
        assert_eq!(changed(Duration::from_secs(3), waits(13_010)), None);
        for (migration, words) in [
            // another one waits as well, begun since; for longer even than the first one had
            (waits(20_000), "another migration is pre-switchover: QEMU says that it began 20.0 s ago"),
            (waits(56_900), "another migration"),
            (json!({ "status": "active", "total-time": 20_000 }), "another migration is active"),
            // and none any more
            (json!({ "status": "cancelled" }), "was pre-switchover and is cancelled"),
            (json!({ "status": "active", "total-time": 70_000 }), "waiting-for-continue is not found any more"),
        ] {
            let told = changed(MINUTE, migration.clone()).unwrap_or_else(|| panic!("{migration}"));
            assert!(told.contains(words), "{told}");
        }
    }

    #[test]
    fn another_qemu_and_another_side_are_told() {
        let begun = Instant::now();
        let waits = || looked(begun, &json!({ "status": "pre-switchover", "total-time": 10_000 }), &json!([]));
        let with_uuid = |uuid: &str| SideLooks { uuid: Some(uuid.to_owned()), ..waits() };
        let before = said(with_uuid("a"));
        let cause = found(&before, DiagnosisCode::WaitingForContinue);
        assert_eq!(said(with_uuid("a")).changed_since(&before, &cause), None);
        let told = said(with_uuid("b")).changed_since(&before, &cause);
        assert!(told.is_some_and(|told| told.contains("another QEMU is there: b, and not a")));
        let swapped = Diagnosis::of(&PairLooks { source: None, destination: Some(waits()) }, Vec::new());
        let told = swapped.changed_since(&before, &cause);
        assert!(told.is_some_and(|told| told.contains("no longer")));
    }

    #[test]
    fn a_migration_without_an_age_is_trusted_for_a_moment() {
        let begun = Instant::now();
        let setup = || json!({ "status": "setup" });
        let before = said(looked(begun, &setup(), &json!([])));
        let cause = found(&before, DiagnosisCode::SetupBlocked);
        let changed = |at| said(looked(begun + at, &setup(), &json!([]))).changed_since(&before, &cause);
        // the first looks ended after 3 s
        assert_eq!(changed(Duration::from_millis(3200)), None);
        assert!(changed(MINUTE).is_some_and(|told| told.contains("without a question")), "{:?}", changed(MINUTE));
    }

    #[test]
    fn a_job_is_known_again_by_its_counters_and_by_its_node() {
        let begun = Instant::now();
        let job = |offset: u64, len: u64| {
            json!([{ "device": "m", "type": "mirror", "len": len, "offset": offset,
            "paused": true, "status": "paused" }])
        };
        let with = |jobs: &Value, node: &str| {
            let mut side = looked(begun, &json!({}), jobs);
            side.take("query-named-block-nodes", &json!([{ "node-name": node, "drv": "mirror_top" }]));
            said(side)
        };
        let before = with(&job(5, 100), "#block1");
        let cause = found(&before, DiagnosisCode::MirrorPaused);
        assert_eq!(with(&job(5, 100), "#block1").changed_since(&before, &cause), None);
        for now in [
            with(&job(4, 100), "#block1"),
            with(&job(6, 100), "#block1"),
            with(&job(5, 99), "#block1"),
            with(&json!([]), "#block1"),
            with(&job(5, 100), "#block2"),
        ] {
            assert!(now.changed_since(&before, &cause).is_some(), "{now:#?}");
        }
    }

    #[test]
    fn a_command_with_another_aim_is_not_the_one_that_was_agreed_to() {
        let begun = Instant::now();
        let before = said(looked(begun, &json!({}), &json!([])));
        let cause = |id: &str, error: u64| {
            let command = RemedyCommand::new(Side::Source, "job-dismiss", json!({ "id": id, "else": error }));
            Cause::new(DiagnosisCode::LeftoverJob, Confidence::Certain, Vec::new()).command(command).fixable()
        };
        let now = |found: Cause| Diagnosis { causes: vec![found], ..before.clone() };
        assert_eq!(now(cause("a", 2)).changed_since(&before, &cause("a", 1)), None);
        assert!(now(cause("b", 1)).changed_since(&before, &cause("a", 1)).is_some());
    }
}
