//! By what a side is known again after some time: its QEMU, its migration, its jobs.
//!
//! Pure.

use super::{
    look::{ConcludedJob, JobLook, YankLook},
    pair::SideLooks,
    remedy::RemedyCommand,
};
use crate::qemu::reply::MigrationStatus;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// The difference between two reckonings of the moment at which one migration began.
const RECKONED: Duration = Duration::from_secs(1);
/// The time between two looks in which no other migration is brought into the same state.
const AT_ONCE: Duration = Duration::from_secs(1);
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

    pub(super) fn uuid(&self) -> Option<String> {
        self.uuid.clone()
    }

    /// What tells that the migration is another one than it was, or that it may be.
    pub(super) fn other_migration(&self, now: &Self) -> Option<String> {
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
                         another one: without a question no time is in between",
                        between.as_secs_f64()
                    )
                })
            }
            _ => None,
        }
    }

    /// What tells that the job that a command names is another one than it was.
    pub(super) fn other_job(&self, now: &Self, command: &RemedyCommand) -> Option<String> {
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
