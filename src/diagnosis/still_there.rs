//! Whether what a remedy is for is still there: the same QEMU, the same migration, the same job, the same cause.
//!
//! Pure. Between a diagnosis and the word of its user any time can pass, in which others act: a remedy that was right
//! for one migration would end another one.

use super::{
    cause::Cause,
    look::{ConcludedJob, JobLook, YankLook},
    pair::SideLooks,
    remedy::RemedyCommand,
    report::{Diagnosis, SideReport},
};
use crate::{progress::Side, qemu::reply::MigrationStatus};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// The difference between two reckonings of the moment at which one migration began.
const RECKONED: Duration = Duration::from_secs(1);
/// The time between two looks in which no other migration is brought into the same state.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The arguments of a command that say what the command is for. The others say what becomes of that.
const AIMS: [&str; 3] = ["device", "id", "instances"];

/// By what a side is known again.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SideIdentity {
    uuid: Option<String>,
    /// The moments of the first look and of the last one.
    looked: Option<(Instant, Instant)>,
    status: Option<MigrationStatus>,
    /// The age of the migration, at the last look; QEMU does not tell it in every status.
    age: Option<Duration>,
    jobs: Vec<JobLook>,
    /// The nodes that QEMU has put over the sources of mirrors. QEMU never gives one of its own names twice.
    filters: BTreeSet<String>,
    concluded: Vec<ConcludedJob>,
    exports: BTreeSet<String>,
}

impl SideIdentity {
    pub(super) fn of(side: &SideLooks) -> Self {
        let last = side.last();
        let moment = |at: Duration| side.began.and_then(|began| began.checked_add(at));
        let looked = side.first().zip(last).and_then(|(first, last)| moment(first.at).zip(moment(last.at)));
        let filters = side.nodes.iter().filter(|node| node.drv == "mirror_top" && node.node_name.starts_with('#'));
        Self {
            uuid: side.uuid.clone(),
            looked,
            status: side.status().cloned(),
            age: side.migration().and_then(|migration| migration.total_time).map(Duration::from_millis),
            jobs: last.map(|look| look.mirrors.clone()).unwrap_or_default(),
            filters: filters.map(|node| node.node_name.clone()).collect(),
            concluded: last.map(|look| look.concluded.clone()).unwrap_or_default(),
            exports: last.into_iter().flat_map(|look| &look.exports).map(|export| export.id.clone()).collect(),
        }
    }

    /// What tells that the migration is another one than it was, or that it may be.
    fn other_migration(&self, now: &Self) -> Option<String> {
        let status = |of: &Self| of.status.as_ref().map_or("none", MigrationStatus::as_str).to_owned();
        let (then_status, now_status) = (status(self), status(now));
        match (self.age, now.age, self.looked, now.looked) {
            (Some(then_age), Some(now_age), Some((_, then)), Some((_, at))) => {
                // the age of a migration that is over stands still
                let is_over = |of: &Self| of.status == Some(MigrationStatus::Completed);
                let expected = match is_over(self) && is_over(now) {
                    true => then_age,
                    false => then_age + at.saturating_duration_since(then),
                };
                let differs = expected.abs_diff(now_age)
                    > if is_over(self) { Duration::ZERO } else { RECKONED.min(then_age / 2) };
                differs.then(|| {
                    let seconds = |age: Duration| age.as_secs_f64();
                    format!(
                        "another migration is {now_status}: QEMU says that it began {:.1} s ago, and the one that was \
                         looked at would have begun {:.1} s ago",
                        seconds(now_age),
                        seconds(expected)
                    )
                })
            }
            _ if then_status != now_status => Some(format!("its migration was {then_status} and is {now_status}")),
            (_, _, Some((_, then)), Some((at, _))) if !is_known_without_age(self.status.as_ref()) => {
                let between = at.saturating_duration_since(then);
                (between > AT_ONCE).then(|| {
                    format!(
                        "QEMU does not tell the age of a migration in {now_status}, so that after {:.0} s it can be \
                         another one: --yes leaves no time in between",
                        between.as_secs_f64()
                    )
                })
            }
            _ => None,
        }
    }

    /// What tells that the job that a command names is another one than it was.
    fn other_job(&self, now: &Self, command: &RemedyCommand) -> Option<String> {
        if let Some(id) = text(command, "id") {
            let find = |of: &Self| of.concluded.iter().find(|job| job.id == id).cloned();
            return (find(self) != find(now)).then(|| format!("the job {id} is another one now"));
        }
        if command.name == "nbd-server-stop" {
            return (self.exports != now.exports).then(|| "it has other exports now".to_owned());
        }
        let device = text(command, "device");
        if let Some(device) = device {
            let find = |of: &Self| of.jobs.iter().find(|job| job.device == device).cloned();
            let (then, now) = (find(self)?, find(now));
            let goes_on = now.as_ref().is_some_and(|now| {
                let is_kept = !(then.is_paused() && now.is_paused()) || now.offset == then.offset;
                now.kind == then.kind && now.len >= then.len && now.offset >= then.offset && is_kept
            });
            if !goes_on {
                return Some(format!("the job {device} is another one now, or gone"));
            }
        }
        let cuts_disk = command.argument("instances").is_some_and(|instances| {
            let migration = YankLook::Migration.instance();
            instances.as_array().into_iter().flatten().any(|instance| Some(instance) != migration.as_ref())
        });
        let is_lost = (device.is_some() || cuts_disk) && !self.filters.is_subset(&now.filters);
        is_lost.then(|| "a mirror that was there has ended".to_owned())
    }
}

/// Whether a status without an age says all that there is to know: no migration is under way.
fn is_known_without_age(status: Option<&MigrationStatus>) -> bool {
    status.is_none_or(|status| *status == MigrationStatus::None || status.is_over())
}

fn text<'a>(command: &'a RemedyCommand, name: &str) -> Option<&'a str> {
    command.argument(name).and_then(Value::as_str)
}

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
        let of = |diagnosis: &Self, side: Side| match side {
            Side::Source => diagnosis.source.clone(),
            Side::Destination => diagnosis.destination.clone(),
        };
        for side in [Side::Source, Side::Destination] {
            let is_meant = cause.commands.iter().any(|command| command.side == side);
            match (of(before, side), of(self, side)) {
                (Some(then), Some(now)) => {
                    let changed = other_side(&then, &now).or_else(|| {
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
        let is_same = |now: &&Cause| {
            let pairs = now.commands.iter().zip(&cause.commands);
            now.code == cause.code
                && now.fixable
                && now.commands.len() == cause.commands.len()
                && pairs.into_iter().all(|(now, then)| is_same_aim(now, then))
        };
        match self.causes.iter().find(is_same) {
            Some(_) => None,
            None => Some(format!("{} is not found any more", cause.code)),
        }
    }
}

/// What tells that a side is another QEMU than it was, or has another migration.
fn other_side(then: &SideReport, now: &SideReport) -> Option<String> {
    if then.address != now.address {
        return Some(format!("it was {} and is {}", then.address, now.address));
    }
    let differ = |one: Option<String>, other: Option<String>| one.zip(other).filter(|(one, other)| one != other);
    let pid = |of: &SideReport| of.pid.map(|pid| format!("process {pid}"));
    let uuid = |of: &SideReport| of.identity.uuid.clone();
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
            pair::{MonitorReach, PairLooks},
        },
    };
    use serde_json::json;

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
        assert!(changed(MINUTE).is_some_and(|told| told.contains("--yes")), "{:?}", changed(MINUTE));
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
