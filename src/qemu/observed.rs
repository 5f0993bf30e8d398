//! The state of a QEMU as its events tell it.
//!
//! A fold: events go in, the last seen run state, migration statuses and jobs come out, each with its moment. Waits are
//! for a condition on this state, so that no event is lost between a look and the wait after it. The state must never
//! be taken for the truth where a query can be had: events are hints.

use super::reply::{JobStatus, MigrationStatus, RunState};
use crate::{
    progress::Moment,
    qmp::{QmpClient, QmpEvent, StreamItem},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// The most names that are kept: far more than a QEMU reports. A hostile peer that sends more of them costs no memory.
const MOST: usize = 64;
/// How long a question may wait for its answer in a QEMU whose main loop works. A QEMU that has left one unanswered for
/// longer when it says STOP has stopped the guest before: from 9.0 on QEMU waits for the guest's I/O before it says so,
/// and its main loop stands still meanwhile.
const ANSWERS: Duration = Duration::from_millis(25);

/// The events of one job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobSeen {
    /// The job's last status.
    pub status: Option<JobStatus>,
    /// The moment when the job concluded.
    pub concluded: Option<Moment>,
    /// Whether the job was cancelled before it was ready.
    pub aborted: bool,
    /// QEMU's words for the job's error.
    pub error: Option<String>,
}

/// An event by which a guest stopped by itself: STOP, which follows, does not say why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaltSeen {
    /// When it was told.
    pub moment: Moment,
    /// The run state that the guest is about to enter.
    pub run: RunState,
}

/// SHUTDOWN: the guest has powered off, or QEMU is about to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownSeen {
    /// Whether the guest asked for it.
    pub guest: bool,
    /// QEMU's word for the cause, such as `guest-shutdown` or `host-qmp-quit`.
    pub reason: String,
}

/// The state of one QEMU, from its events since the engine connected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The last STOP.
    pub stopped: Option<Moment>,
    /// The moment from which the guest may have stood still, as it is judged at the last STOP.
    pub stood: Option<Moment>,
    /// The last RESUME.
    pub resumed: Option<Moment>,
    /// Every status that the last migration entered, with the moment of its last entry.
    pub migration: BTreeMap<MigrationStatus, Moment>,
    /// How many migrations have begun.
    pub migrations: u64,
    /// The number of the last bitmap sync, which most often ends a pass.
    pub pass: u64,
    /// The moment of that sync. QEMU counts the dirty pages once more right before it stops the guest.
    pub passed: Option<Moment>,
    /// The jobs by their ids.
    pub jobs: BTreeMap<String, JobSeen>,
    /// The ids and QOM paths of the devices that were unplugged.
    pub unplugged: BTreeSet<String>,
    /// How often the tray of a drive was opened or closed, as it is when a medium is changed.
    pub tray_moves: u64,
    /// The last event by which the guest stopped by itself.
    pub halted: Option<HaltSeen>,
    /// The last SHUTDOWN.
    pub shutdown: Option<ShutdownSeen>,
    /// How many events told that the guest may stand another way than before.
    pub stance_changes: u64,
    /// How many events were lost, because they came faster than they were taken in.
    pub lost: u64,
}

impl Observed {
    /// Starts the task that folds the client's events onto this state; it ends with the connection.
    pub(super) fn follow(self, client: &QmpClient) -> watch::Receiver<Self> {
        let mut events = client.subscribe();
        let (sender, receiver) = watch::channel(self);
        tokio::spawn(async move {
            loop {
                // The subscription keeps the connection open, so it must end with the last receiver.
                let item = tokio::select! {
                    () = sender.closed() => return,
                    item = events.next() => item,
                };
                match item {
                    StreamItem::Event(event) => {
                        tracing::trace!(name = %event.name, data = %event.data, "event");
                        sender.send_modify(|observed| observed.apply(&event));
                    }
                    // `until_known` asks for an overdue event, so a lost one ends no wait.
                    StreamItem::Lagged(lost) => {
                        tracing::warn!(lost, "events were lost");
                        sender.send_modify(|observed| observed.lost = observed.lost.saturating_add(lost));
                    }
                    StreamItem::Closed(_) => return,
                }
            }
        });
        receiver
    }

    /// Whether a QEMU that has closed its connection is proved not to have run the guest since the engine connected.
    ///
    /// QEMU says RESUME before the vCPUs run. After SHUTDOWN for a `quit` or a signal, QEMU leaves its main loop and
    /// carries out no command any more.
    pub fn ended_before_it_ran(&self) -> bool {
        let ends = |seen: &ShutdownSeen| !seen.guest && matches!(&*seen.reason, "host-qmp-quit" | "host-signal");
        self.shutdown.as_ref().is_some_and(ends) && self.resumed.is_none() && self.lost == 0
    }

    /// Folds one event into the state.
    pub fn apply(&mut self, event: &QmpEvent) {
        let moment = Moment::received(event.received, event.received_wall, event.emitted);
        let text = |key: &str| event.data.get(key).and_then(Value::as_str);
        if let Some(run) = halt_of(&event.name, text("action")) {
            self.halted = Some(HaltSeen { moment, run });
        }
        self.stance_changes += u64::from(STANCE.contains(&event.name.as_str()));
        match event.name.as_str() {
            "SHUTDOWN" => {
                let guest = event.data.get("guest").and_then(Value::as_bool).unwrap_or_default();
                self.shutdown = Some(ShutdownSeen { guest, reason: text("reason").unwrap_or("none").to_owned() });
            }
            "STOP" => {
                self.stopped = Some(moment);
                let ran = self.passed.map(|passed| passed.local).max(event.answered);
                self.stood = Some(stood(moment, event.unanswered, ran));
            }
            "RESUME" => self.resumed = Some(moment),
            "MIGRATION" => {
                if let Some(status) = text("status").map(MigrationStatus::from) {
                    if status == MigrationStatus::Setup {
                        // A QEMU can migrate again and again, and so can somebody else before this run does: a new
                        // migration must not inherit the end of the last one.
                        self.migration.clear();
                        self.migrations += 1;
                    }
                    if self.migration.len() < MOST || self.migration.contains_key(&status) {
                        self.migration.insert(status, moment);
                    }
                }
            }
            "DEVICE_DELETED" => {
                let names = [text("device"), text("path")];
                for name in names.into_iter().flatten() {
                    if self.unplugged.len() < MOST {
                        self.unplugged.insert(name.to_owned());
                    }
                }
            }
            "DEVICE_TRAY_MOVED" => self.tray_moves += 1,
            "MIGRATION_PASS" => {
                self.pass = event.data.get("pass").and_then(Value::as_u64).unwrap_or(self.pass);
                self.passed = Some(moment);
            }
            "JOB_STATUS_CHANGE" => {
                if let (Some(id), Some(status)) = (text("id"), text("status").map(JobStatus::from)) {
                    if let Some(job) = self.job(id) {
                        if status == JobStatus::Created {
                            // A job id can be used again; the new job must not inherit the old one's end.
                            *job = JobSeen::default();
                        }
                        if status == JobStatus::Concluded {
                            job.concluded = Some(moment);
                        }
                        job.status = Some(status);
                    }
                }
            }
            "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" | "BLOCK_JOB_ERROR" => {
                let error = match event.name.as_str() {
                    "BLOCK_JOB_ERROR" => Some(format!("{} error", text("operation").unwrap_or("I/O"))),
                    _ => text("error").map(str::to_owned),
                };
                if let Some(job) = text("device").and_then(|id| self.job(id)) {
                    job.aborted |= event.name == "BLOCK_JOB_CANCELLED";
                    job.error = error.or(job.error.take());
                }
            }
            _ => {}
        }
    }

    /// The moment when the given migration status was last entered.
    pub fn entered(&self, status: &MigrationStatus) -> Option<Moment> {
        self.migration.get(status).copied()
    }

    /// The moment of the last STOP, unless the guest has resumed since.
    pub fn stands_since(&self) -> Option<Moment> {
        self.stopped.filter(|_| !self.runs_again())
    }

    /// The moment from which the guest may have stood still, unless the guest has resumed since. A time limit of the
    /// guest's stop counts from there; [`Self::stands_since`] tells one STOP from another.
    pub fn stood_since(&self) -> Option<Moment> {
        self.stood.filter(|_| !self.runs_again())
    }

    /// The run state that the guest's own doing has brought about, unless it has resumed since.
    pub fn halts_as(&self) -> Option<&RunState> {
        let resumed_since = |halt: &HaltSeen| self.resumed.is_some_and(|resumed| resumed.local > halt.moment.local);
        self.halted.as_ref().filter(|halt| !resumed_since(halt)).map(|halt| &halt.run)
    }

    /// Whether the last RESUME came after the last STOP.
    pub fn runs_again(&self) -> bool {
        self.resumed.zip(self.stopped).is_some_and(|(resumed, stopped)| resumed.local >= stopped.local)
    }

    fn job(&mut self, id: &str) -> Option<&mut JobSeen> {
        if self.jobs.len() >= MOST && !self.jobs.contains_key(id) {
            return None;
        }
        Some(self.jobs.entry(id.to_owned()).or_default())
    }
}

/// The events after which `query-status` may answer something else than before.
const STANCE: [&str; 9] =
    ["STOP", "RESUME", "RESET", "SHUTDOWN", "SUSPEND", "WAKEUP", "GUEST_PANICKED", "BLOCK_IO_ERROR", "WATCHDOG"];

/// The run state that an event announces. A guest that QEMU lets run on has no such state.
fn halt_of(event: &str, action: Option<&str>) -> Option<RunState> {
    match (event, action) {
        ("SHUTDOWN", _) => Some(RunState::Shutdown),
        ("GUEST_PANICKED", Some("pause")) => Some(RunState::GuestPanicked),
        ("BLOCK_IO_ERROR", Some("stop")) => Some(RunState::IoError),
        ("WATCHDOG", Some("pause")) => Some(RunState::Watchdog),
        _ => None,
    }
}

/// The moment from which the guest may have stood still when QEMU says STOP. `unanswered` is when the oldest question
/// was sent that QEMU has not answered, `ran` the last moment at which the guest ran for certain.
fn stood(stop: Moment, unanswered: Option<Instant>, ran: Option<Instant>) -> Moment {
    let is_late = |asked: &Instant| stop.local.saturating_duration_since(*asked) > ANSWERS;
    match unanswered.filter(is_late) {
        Some(asked) => Moment::at(ran.unwrap_or(asked).min(stop.local), stop.wall),
        None => stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::SystemTime;

    fn fold(events: &[(&str, Value)]) -> Observed {
        let mut observed = Observed::default();
        for (sequence, (name, data)) in (1u64..).zip(events) {
            observed.apply(&QmpEvent {
                sequence,
                received: Instant::now(),
                received_wall: SystemTime::now(),
                emitted: Some(Duration::from_secs(sequence)),
                unanswered: None,
                answered: None,
                name: (*name).to_owned(),
                data: data.clone(),
            });
        }
        observed
    }

    fn at(moment: Option<Moment>) -> Option<u64> {
        moment.map(|moment| moment.wall.as_secs())
    }

    #[test]
    fn a_switchover_is_seen_with_its_moments() {
        let seen = fold(&[
            ("MIGRATION", json!({"status": "active"})),
            ("STOP", Value::Null),
            ("MIGRATION", json!({"status": "pre-switchover"})),
            ("BLOCK_JOB_COMPLETED", json!({"device": "j", "type": "mirror"})),
            ("JOB_STATUS_CHANGE", json!({"id": "j", "status": "concluded"})),
            ("RESUME", Value::Null),
        ]);
        assert_eq!((at(seen.stopped), at(seen.resumed), seen.runs_again()), (Some(2), Some(6), true));
        assert_eq!(at(seen.entered(&MigrationStatus::PreSwitchover)), Some(3));
        assert_eq!(at(seen.jobs["j"].concluded), Some(5));
        assert_eq!((seen.jobs["j"].error.as_deref(), seen.jobs["j"].aborted), (None, false));
    }

    #[test]
    fn a_guest_has_stood_since_qemu_fell_silent() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        // Milliseconds: the last sync, the last answer, the oldest question without an answer; STOP comes at 1000.
        for (passed, answered, unanswered, expected) in [
            (None, None, None, 1000),
            (Some(980), Some(900), None, 1000),
            (Some(980), Some(900), Some(985), 1000),
            (Some(205), Some(100), Some(210), 205),
            (Some(50), Some(190), Some(210), 190),
            (None, Some(190), Some(210), 190),
            (None, None, Some(210), 210),
        ] {
            let event = |name: &str, millis: u64| QmpEvent {
                sequence: 0,
                received: at(millis),
                received_wall: SystemTime::now(),
                emitted: None,
                unanswered: unanswered.map(at),
                answered: answered.map(at),
                name: name.to_owned(),
                data: json!({"pass": 1}),
            };
            let mut seen = Observed::default();
            passed.into_iter().for_each(|millis| seen.apply(&event("MIGRATION_PASS", millis)));
            seen.apply(&event("STOP", 1000));
            let since = seen.stood_since().expect("it stands").local;
            assert_eq!(since, at(expected), "{passed:?} {answered:?} {unanswered:?}");
            assert_eq!(seen.stands_since().map(|stop| stop.local), Some(at(1000)));
            seen.apply(&event("RESUME", 1001));
            assert_eq!(seen.stood_since(), None);
        }
    }

    #[test]
    fn how_a_job_ended_badly_is_kept() {
        let failed = fold(&[
            ("BLOCK_JOB_ERROR", json!({"device": "j", "operation": "write", "action": "report"})),
            ("BLOCK_JOB_COMPLETED", json!({"device": "j", "error": "Input/output error"})),
        ]);
        assert_eq!(failed.jobs["j"].error.as_deref(), Some("Input/output error"));
        let aborted = fold(&[("BLOCK_JOB_CANCELLED", json!({"device": "j"}))]);
        assert!(aborted.jobs["j"].aborted);
    }

    #[test]
    fn an_id_used_again_starts_afresh() {
        let seen = fold(&[
            ("BLOCK_JOB_CANCELLED", json!({"device": "j"})),
            ("JOB_STATUS_CHANGE", json!({"id": "j", "status": "concluded"})),
            ("JOB_STATUS_CHANGE", json!({"id": "j", "status": "created"})),
        ]);
        assert_eq!(seen.jobs["j"], JobSeen { status: Some(JobStatus::Created), ..JobSeen::default() });
    }

    #[test]
    fn a_migration_that_begins_inherits_no_status() {
        let status = |status: &str| ("MIGRATION", json!({ "status": status }));
        let earlier = [status("setup"), status("active"), status("completed")];
        let seen = fold(&[&earlier[..], &[status("setup"), status("active")]].concat());
        let entered: Vec<&MigrationStatus> = seen.migration.keys().collect();
        assert_eq!(entered, [&MigrationStatus::Setup, &MigrationStatus::Active]);
        // A channel that is made anew belongs to the same migration.
        let seen = fold(&[status("setup"), status("postcopy-active"), status("postcopy-recover-setup")]);
        assert!(seen.entered(&MigrationStatus::PostcopyActive).is_some());
    }

    #[test]
    fn devices_that_were_unplugged_are_kept() {
        let path = "/machine/peripheral/disk0";
        let seen = fold(&[
            ("DEVICE_DELETED", json!({"path": format!("{path}/virtio-backend")})),
            ("DEVICE_DELETED", json!({"device": "disk0", "path": path})),
            ("DEVICE_TRAY_MOVED", json!({"device": "", "id": "cd0", "tray-open": true})),
        ]);
        assert!(seen.unplugged.contains("disk0") && seen.unplugged.contains(path));
        assert_eq!(seen.tray_moves, 1);
    }

    #[test]
    fn why_a_guest_stands_is_told_before_it_stops() {
        for (name, data, run) in [
            ("SHUTDOWN", json!({"guest": true, "reason": "guest-shutdown"}), Some(RunState::Shutdown)),
            ("GUEST_PANICKED", json!({"action": "pause"}), Some(RunState::GuestPanicked)),
            ("GUEST_PANICKED", json!({"action": "run"}), None),
            ("BLOCK_IO_ERROR", json!({"action": "stop"}), Some(RunState::IoError)),
            ("BLOCK_IO_ERROR", json!({"action": "report"}), None),
            ("WATCHDOG", json!({"action": "pause"}), Some(RunState::Watchdog)),
            ("WATCHDOG", json!({"action": "none"}), None),
            ("SUSPEND", Value::Null, None),
        ] {
            let seen = fold(&[("RESUME", Value::Null), (name, data.clone()), ("STOP", Value::Null)]);
            assert_eq!((seen.halts_as(), seen.stance_changes), (run.as_ref(), 3), "{name} {data}");
            let resumed = fold(&[(name, data.clone()), ("STOP", Value::Null), ("RESUME", Value::Null)]);
            assert_eq!(resumed.halts_as(), None, "{name} {data}");
        }
        let ended = fold(&[("SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"}))]).shutdown;
        assert_eq!(ended, Some(ShutdownSeen { guest: false, reason: "host-qmp-quit".to_owned() }));
    }

    #[test]
    fn strange_events_and_floods_are_harmless() {
        let mut events: Vec<(&str, Value)> =
            vec![("STOP", json!([1])), ("MIGRATION", json!(7)), ("NEW", json!({"a": 1}))];
        let ids: Vec<Value> = (0..1000).map(|n| json!({"id": format!("j{n}"), "status": format!("s{n}")})).collect();
        events.extend(ids.iter().map(|data| ("JOB_STATUS_CHANGE", data.clone())));
        events.extend(ids.iter().map(|data| ("MIGRATION", data.clone())));
        events.extend((0..1000).map(|n| ("DEVICE_DELETED", json!({"device": format!("d{n}")}))));
        let seen = fold(&events);
        assert!(seen.jobs.len() <= MOST && seen.migration.len() <= MOST && seen.unplugged.len() <= MOST);
    }
}
