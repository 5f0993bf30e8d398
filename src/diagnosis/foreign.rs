//! What a recording of another program tells of a migration: libvirt's log, a dump of QMP lines, QEMU's own log.
//!
//! Pure. Such a recording holds what its program happened to ask, so less is known than of a recording of the engine's:
//! the answers before the end of the migration where there are some, and else the states that events have told, which
//! hold until the next event. What is missing is said.

use super::{
    look::MonitorLook,
    pair::{PairLooks, SideLooks},
    recorded::{RecordedSide, WINDOW},
    report::Diagnosis,
};
use crate::{
    progress::{Side, describe_devices},
    qemu::{
        log_line::{DeviceLine, DeviceLines},
        reply::{MigrationInfo, MigrationStatus},
    },
    recording::{ForeignContent, ForeignLine, foreign_value},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// The most monitors that are followed at once, and the most commands of one whose answers are awaited.
const MONITORS: usize = 64;
const COMMANDS: usize = 64;
/// The longest answer that is read, in bytes: that to `query-named-block-nodes` of a guest with many disks.
const ANSWER: usize = 256 << 10;
/// The most devices that are told by name.
const NAMED: usize = 8;
/// The least time between two looks for rates to be known from them.
const APART: Duration = Duration::from_secs(2);

/// A recording, or those of both ends, read line by line in bounded memory.
#[derive(Debug, Default)]
pub(crate) struct ForeignLooks {
    /// By file and monitor.
    monitors: BTreeMap<(usize, String), ForeignMonitor>,
    /// The time of the last line of any file, since the Unix epoch.
    last: Duration,
    /// The number of lines without a time before them.
    untimed: u64,
    read: u64,
}

/// A monitor, or the log of a QEMU.
#[derive(Debug)]
struct ForeignMonitor {
    side: RecordedSide,
    /// The commands that wait for an answer: their ids and names.
    asked: VecDeque<(String, String)>,
    /// The time of the last line.
    last: Duration,
    /// The time of the last `migrate` or `migrate-incoming`, or of the first status of a migration.
    began: Option<Duration>,
    /// The migration was cancelled on command: what is seen later follows from that.
    cancelled: bool,
    /// The last time that an event or QEMU's log told a status or a run state.
    told: Duration,
    complaint: Option<String>,
    /// How long devices took in the last migration, as QEMU's log has it.
    saved: DeviceLines,
    loaded: DeviceLines,
}

impl ForeignMonitor {
    fn new(name: &str) -> Self {
        Self {
            side: RecordedSide::new(name),
            asked: VecDeque::new(),
            last: Duration::ZERO,
            began: None,
            cancelled: false,
            told: Duration::ZERO,
            complaint: None,
            saved: DeviceLines::new(Side::Source),
            loaded: DeviceLines::new(Side::Destination),
        }
    }

    /// A migration begins, and nothing of an earlier one counts.
    fn begin(&mut self, at: Duration) {
        let name = std::mem::take(&mut self.side.looks.name);
        let run = self.side.now.run.take();
        self.side = RecordedSide::new(&name);
        self.side.now = MonitorLook { run, ..MonitorLook::default() };
        (self.began, self.cancelled, self.complaint) = (Some(at), false, None);
    }

    fn add(&mut self, at: Duration, content: ForeignContent<'_>) {
        self.last = self.last.max(at);
        match content {
            ForeignContent::Command { name, id, arguments } => {
                let arguments = arguments.and_then(|arguments| foreign_value(arguments, ANSWER)).unwrap_or_default();
                self.side.command(&id, &name, &arguments);
                match name.as_str() {
                    "migrate" | "migrate-incoming" => self.begin(at),
                    "migrate_cancel" => self.cancelled = true,
                    _ => {}
                }
                if self.asked.len() == COMMANDS {
                    self.asked.pop_front();
                }
                self.asked.push_back((id, name));
            }
            _ if self.cancelled => {}
            ForeignContent::Answer { id, value } => {
                // QEMU answers in band in the order of the commands, which tells those without an id apart
                let position = self.asked.iter().position(|(asked, _)| *asked == id);
                let command = position.and_then(|position| self.asked.remove(position)).map(|(_, name)| name);
                // an answer without what returned is a refusal
                self.side.answered(&id, value.is_some());
                let value = value.and_then(|value| foreign_value(value, ANSWER));
                if let (Some(command), Some(value)) = (command, value) {
                    self.side.answer(at, &command, &value);
                }
            }
            ForeignContent::Event { name, status, device } => {
                self.side.event(&name, &json!({ "device": device }));
                match status.filter(|_| name == "MIGRATION") {
                    Some(status) => self.status(at, &status),
                    None if matches!(name.as_str(), "STOP" | "RESUME") => self.told = at,
                    None => {}
                }
            }
            ForeignContent::Status(status) => self.status(at, &status),
            ForeignContent::Device(line) => self.device(&line),
            ForeignContent::Complaint(words) => {
                self.complaint.get_or_insert(words);
            }
        }
    }

    /// Takes in how long a device took. A device that comes once more begins another migration.
    fn device(&mut self, line: &DeviceLine<'_>) {
        for (lines, side) in [(&mut self.saved, Side::Source), (&mut self.loaded, Side::Destination)] {
            lines.take(line, |_| false);
            if lines.is_doubtful() {
                *lines = DeviceLines::new(side);
                lines.take(line, |_| false);
            }
        }
    }

    /// What the log tells of devices, in words.
    fn devices(&mut self) -> Vec<String> {
        let name = &self.side.looks.name;
        let told = [(&mut self.saved, Side::Source, "save"), (&mut self.loaded, Side::Destination, "load")];
        let told = told.into_iter().filter_map(|(lines, side, verb)| {
            let told = std::mem::replace(lines, DeviceLines::new(side)).told().filter(|told| !told.is_empty())?;
            Some(format!("{name}: QEMU took to {verb} devices {}", describe_devices(told.iter(), NAMED)))
        });
        told.collect()
    }

    fn status(&mut self, at: Duration, status: &str) {
        self.began.get_or_insert(at);
        self.told = at;
        (self.side.now.migration.status, self.side.now.is_whole) = (Some(status.into()), false);
    }

    /// The looks before the end of the recording. Where nobody has asked for so long, the states that were told last
    /// have held since; no counter is known then.
    fn looks(mut self, end: Duration, unseen: &mut Vec<String>) -> SideLooks {
        let end = if self.cancelled { self.last } else { end.max(self.last) };
        let looks = &mut self.side.looks;
        let recent = looks.looks.last().is_some_and(|look| end.saturating_sub(look.at) <= WINDOW);
        if !recent {
            let MonitorLook { run, migration, .. } = self.side.now;
            let migration = MigrationInfo {
                status: migration.status,
                error_desc: migration.error_desc,
                blocked_reasons: migration.blocked_reasons,
                ..MigrationInfo::default()
            };
            let look =
                |at| MonitorLook { at, run: run.clone(), migration: migration.clone(), ..MonitorLook::default() };
            looks.looks = vec![look(self.told.min(end)), look(end)];
            unseen.push(format!(
                "{}: nobody asked for counters in the last {} s: only the states that QEMU told by itself are known",
                looks.name,
                WINDOW.as_secs()
            ));
        } else if looks.span() < APART {
            unseen.push(format!("{}: asked too seldom for rates to be known", looks.name));
        }
        let is_done = |look: &MonitorLook| look.migration.status == Some(MigrationStatus::Completed);
        if let Some(words) = self.complaint.filter(|_| !looks.looks.last().is_some_and(is_done)) {
            // QEMU's log is the only place where an older QEMU tells why it refused the state
            for look in &mut looks.looks {
                look.migration.error_desc.get_or_insert_with(|| words.clone());
                look.migration.status = Some(MigrationStatus::Failed);
            }
        }
        self.side.looks
    }
}

impl ForeignLooks {
    /// Adds a line of a file. A line without a time is of the time of the last one.
    pub(crate) fn add(&mut self, file: usize, name: &str, line: ForeignLine<'_>) {
        self.read += 1;
        let ForeignLine { at, monitor, content } = line;
        let at = at.unwrap_or_else(|| {
            self.untimed += 1;
            self.monitors.values().map(|monitor| monitor.last).max().unwrap_or_default()
        });
        self.last = self.last.max(at);
        let key = (file, monitor.to_owned());
        if !self.monitors.contains_key(&key) && self.monitors.len() == MONITORS {
            // the monitor that is silent for longest goes, one without a migration first
            let idle = self.monitors.iter().min_by_key(|(_, monitor)| (monitor.began.is_some(), monitor.last));
            if let Some(idle) = idle.map(|(key, _)| key.clone()) {
                self.monitors.remove(&idle);
            }
        }
        let named = if monitor.is_empty() { name.to_owned() } else { format!("{name}, monitor {monitor}") };
        self.monitors.entry(key).or_insert_with(|| ForeignMonitor::new(&named)).add(at, content);
    }

    /// The number of lines that told something.
    pub(crate) fn read(&self) -> u64 {
        self.read
    }

    /// What was wrong at the end of the recording, or before somebody cancelled.
    pub(crate) fn diagnose(self) -> Diagnosis {
        let Self { monitors, last, untimed, read } = self;
        let mut unseen = vec!["the processes and their connections are not in a recording".to_owned()];
        if untimed * 2 > read {
            unseen.push("most lines have no time, so how long a state was kept is not known".to_owned());
        }
        let mut migrating: Vec<ForeignMonitor> = monitors.into_values().collect();
        let notes: Vec<String> = migrating.iter_mut().flat_map(ForeignMonitor::devices).collect();
        if migrating.iter().any(|monitor| monitor.began.is_some()) {
            migrating.retain(|monitor| monitor.began.is_some());
        }
        // the last migration of the recording, of which two monitors at most tell
        migrating.sort_by_key(|monitor| std::cmp::Reverse(monitor.began));
        let others = migrating.len().saturating_sub(2);
        migrating.truncate(2);
        if others > 0 {
            unseen.push(format!("{others} monitors with earlier migrations were left out"));
        }
        if migrating.len() == 1 {
            unseen.push("only one side is in the recording".to_owned());
        }
        let cancelled = migrating.iter().any(|monitor| monitor.cancelled);
        let sides = migrating.into_iter().map(|monitor| monitor.looks(last, &mut unseen)).collect();
        let pair = PairLooks::of(sides);
        let said = |side: Option<&SideLooks>| {
            let side = side?;
            let run = side.run().map_or("unknown", |run| run.as_str());
            Some(format!("{run}, migration {}", side.status().map_or("none", MigrationStatus::as_str)))
        };
        let source = said(pair.source.as_ref()).map(|said| format!("source {said}"));
        let destination = said(pair.destination.as_ref()).map(|said| format!("destination {said}"));
        let ended: Vec<String> = source.into_iter().chain(destination).collect();
        let cancel = if cancelled { ", where somebody cancelled the migration" } else { "" };
        let mut diagnosis = Diagnosis { notes, ..Diagnosis::of(&pair, unseen) };
        diagnosis.leave_remedies_to_people();
        let found = diagnosis.causes.first().map(|cause| format!(" {}", cause.code.meaning()));
        diagnosis.verdict = match ended.is_empty() {
            true => "The recording tells of no migration.".to_owned(),
            false => format!("The recording ends{cancel}: {}.{}", ended.join("; "), found.unwrap_or_default()),
        };
        diagnosis
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::read_foreign;
    use serde_json::{Value, json};

    /// A file of lines, each with its time in seconds.
    fn libvirt(lines: &[(f64, &str, Value)]) -> String {
        let line = |(at, monitor, value): &(f64, &str, Value)| {
            let kind = match value {
                value if value.get("execute").is_some() => "SEND_MSG: mon=M msg=",
                value if value.get("event").is_some() => "RECV_EVENT: mon=M event=",
                _ => "RECV_REPLY: mon=M reply=",
            };
            format!("2026-11-30 10:00:{at:06.3}+0000: 1: info : f:1 : QEMU_MONITOR_{kind}{value}\n")
                .replace("=M", &format!("={monitor}"))
        };
        lines.iter().map(line).collect()
    }

    fn status(name: &str) -> Value {
        json!({ "timestamp": { "seconds": 0, "microseconds": 0 }, "event": "MIGRATION", "data": { "status": name } })
    }

    fn told(files: &[&str]) -> Diagnosis {
        let mut looks = ForeignLooks::default();
        for (number, file) in files.iter().enumerate() {
            for line in file.lines().filter_map(read_foreign) {
                looks.add(number, "log", line);
            }
        }
        looks.diagnose()
    }

    fn codes(diagnosis: &Diagnosis) -> Vec<&str> {
        diagnosis.causes.iter().map(|cause| cause.code.as_str()).collect()
    }

    /// The source's log until it waits for the manager, which sends nothing more.
    fn waiting() -> Vec<(f64, &'static str, Value)> {
        vec![
            (1.0, "0xa", json!({ "execute": "migrate", "id": "libvirt-1" })),
            (1.1, "0xa", json!({ "return": {}, "id": "libvirt-1" })),
            (1.2, "0xa", status("active")),
            (3.0, "0xa", json!({ "event": "STOP" })),
            (3.1, "0xa", status("pre-switchover")),
        ]
    }

    #[test]
    fn states_that_events_told_hold_until_the_end_of_the_log() {
        let mut lines = waiting();
        lines.push((20.0, "0xb", json!({ "execute": "query-status", "id": "libvirt-2" })));
        let told = told(&[&libvirt(&lines)]);
        assert_eq!(codes(&told), ["waiting-for-continue"], "{told:#?}");
        assert!(told.verdict.contains("source paused, migration pre-switchover"), "{}", told.verdict);
        assert!(told.unseen.iter().any(|unseen| unseen.contains("counters")), "{:?}", told.unseen);
    }

    #[test]
    fn what_follows_a_cancel_is_no_cause() {
        let mut lines = waiting();
        lines.push((10.0, "0xa", json!({ "execute": "migrate_cancel", "id": "libvirt-3" })));
        lines.push((10.1, "0xa", status("cancelled")));
        lines.push((30.0, "0xa", json!({ "event": "RESUME" })));
        let found = told(&[&libvirt(&lines)]);
        assert!(found.verdict.contains("cancelled the migration"), "{}", found.verdict);
        assert_eq!(codes(&found), ["waiting-for-continue"]);
        // a migration that begins anew and completes is well
        lines.push((31.0, "0xa", json!({ "execute": "migrate", "id": "libvirt-4" })));
        lines.push((32.0, "0xa", status("completed")));
        assert!(told(&[&libvirt(&lines)]).is_healthy());
    }

    #[test]
    fn counters_are_read_from_answers_and_tell_rates() {
        let mut lines = vec![(0.0, "0xa", json!({ "execute": "migrate", "id": "libvirt-1" }))];
        for second in 1..9 {
            let id = format!("libvirt-{second}");
            let job = json!([{ "device": "m", "type": "mirror", "len": 1000, "offset": 10, "ready": false,
                "paused": true, "status": "paused", "io-status": "ok" }]);
            lines.push((f64::from(second), "0xa", json!({ "execute": "query-block-jobs", "id": id })));
            lines.push((f64::from(second) + 0.1, "0xa", json!({ "return": job, "id": id })));
        }
        assert_eq!(codes(&told(&[&libvirt(&lines)])), ["mirror-paused"]);
    }

    #[test]
    fn the_log_of_a_destination_tells_why_it_refused_the_state() {
        let source = libvirt(&[
            (1.0, "0xa", json!({ "execute": "migrate", "id": "libvirt-1" })),
            (2.0, "0xa", status("active")),
            (3.0, "0xa", status("failed")),
            (9.0, "0xa", json!({ "event": "RESUME" })),
        ]);
        let words = "error while loading state for instance 0x0 of device '0000:00:03.0/virtio-blk'";
        let destination = format!(
            "2026-11-30T10:00:01.000000Z migrate_set_state new state active\n\
             2026-11-30T10:00:02.900000Z qemu-system-x86_64: {words}\n"
        );
        let told = told(&[&source, &destination]);
        assert_eq!(codes(&told), ["state-refused"], "{told:#?}");
        assert!(told.causes[0].evidence[0].contains(words), "{told:#?}");
    }

    #[test]
    fn the_log_of_a_qemu_tells_how_long_devices_took_in_its_last_migration() {
        let line = |phase: &str, device: &str, us: u64| {
            format!("vmstate_downtime_{phase} type=non-iterable idstr={device} instance_id=0 downtime={us}\n")
        };
        let saves = [("cpu", 9000), ("pit", 1), ("cpu", 5), ("pit", 20)].map(|(device, us)| line("save", device, us));
        let told = told(&[&saves.concat(), &line("load", "cpu", 7)]);
        assert_eq!(
            told.notes,
            [
                "log: QEMU took to save devices 0.025 ms: pit 0.020, cpu 0.005",
                "log: QEMU took to load devices 0.007 ms: cpu 0.007",
            ]
        );
        assert!(told.is_healthy(), "{told:#?}");
    }

    #[test]
    fn a_hostile_log_costs_bounded_memory() {
        let mut looks = ForeignLooks::default();
        for number in 0..5000 {
            let line = format!(
                "x QEMU_MONITOR_SEND_MSG: mon={number} msg={{\"execute\":\"query-status\",\"id\":\"{number}\"}}"
            );
            looks.add(0, "log", read_foreign(&line).unwrap());
            let same = "x QEMU_MONITOR_SEND_MSG: mon=0 msg={\"execute\":\"query-status\",\"id\":\"1\"}";
            looks.add(0, "log", read_foreign(same).unwrap());
        }
        assert!(looks.monitors.len() <= MONITORS);
        assert!(looks.monitors.values().all(|monitor| monitor.asked.len() <= COMMANDS));
        assert!(looks.diagnose().unseen.iter().any(|unseen| unseen.contains("no time")));
        assert!(told(&[""]).verdict.contains("no migration"));
    }
}
