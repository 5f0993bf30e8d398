//! What a watch keeps of one side, the last looks and the events that nobody has taken yet, and what it remembers of
//! the migration.
//!
//! Owns the bounds of a watch's memory. Nothing here asks.
//!
//! Pure.

use super::{
    guest_queues::QueueLook,
    look::MonitorLook,
    pair::{JobErrors, Met, MonitorReach, PairLooks, SideLooks},
    report::Diagnosis,
    rules,
    steady_causes::SteadyCauses,
};
use crate::{
    codes::DiagnosisCode,
    progress::Side,
    qemu::reply::{MigrationStatus, RunState},
};
use serde::Serialize;
use serde_json::Value;
use std::{collections::VecDeque, time::Duration};

/// The time over which the rules judge: long enough to tell slow from stuck, short enough to tell when that ends.
const WINDOW: Duration = Duration::from_secs(4);
/// The most events of a side that wait to be taken.
const EVENTS: usize = 256;
/// The longest pause that is believed: beyond it, the clocks of the two hosts differ.
const BELIEVED: Duration = Duration::from_secs(600);

/// An event of QEMU that a watch has seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WatchedEvent {
    /// The side.
    pub side: Side,
    /// QEMU's name of the event, such as `BLOCK_JOB_READY`. Any name can occur.
    pub event: String,
    /// The clock of QEMU's host when it emitted the event, microseconds since the Unix epoch; absent where QEMU could
    /// not read it.
    pub qemu_us: Option<u64>,
    /// The event's data as QEMU sent them.
    pub(crate) data: Value,
    /// The time since the watch began.
    #[serde(skip)]
    pub at: Duration,
}

impl WatchedEvent {
    /// The event's data in words: the members that are texts, numbers or truths, first those that tell most.
    pub fn details(&self) -> String {
        const FIRST: [&str; 3] = ["status", "error", "pass"];
        let member = |(name, value): (&String, &Value)| match value {
            Value::String(text) => Some(format!("{name} {text}")),
            Value::Number(_) | Value::Bool(_) => Some(format!("{name} {value}")),
            _ => None,
        };
        let mut members: Vec<_> = self.data.as_object().into_iter().flatten().collect();
        members.sort_by_key(|(name, _)| !FIRST.contains(&name.as_str()));
        members.into_iter().filter_map(member).collect::<Vec<_>>().join(", ")
    }
}

/// The last looks at one side, and its events.
#[derive(Debug)]
pub(super) struct SideWindow {
    looks: SideLooks,
    /// The events BLOCK_JOB_ERROR, by the tenth of a second that they came in.
    errors: VecDeque<(Duration, JobErrors)>,
    events: VecDeque<WatchedEvent>,
    lost: u64,
}

impl SideWindow {
    pub(super) fn new(name: String) -> Self {
        let looks = SideLooks { met: Met::Never, ..SideLooks::new(name, MonitorReach::NotAsked) };
        Self { looks, errors: VecDeque::new(), events: VecDeque::new(), lost: 0 }
    }

    /// What is known of the side, for answers that stay the same.
    pub(super) fn side(&mut self) -> &mut SideLooks {
        &mut self.looks
    }

    /// Takes a look in, and forgets those before the window.
    pub(super) fn look(&mut self, look: MonitorLook) {
        let at = look.at;
        let old = |then: Duration| at.saturating_sub(then) > WINDOW;
        (self.looks.reach, self.looks.met) = (MonitorReach::Answers, Met::Seen);
        let looks = &mut self.looks.looks;
        looks.push(look);
        let gone = looks.iter().take_while(|look| old(look.at)).count();
        looks.drain(..gone.min(looks.len().saturating_sub(2)));
        self.errors.retain(|(then, _)| !old(*then));
    }

    /// Takes in what the queues of the guest's disks look like.
    pub(super) fn queues(&mut self, at: Duration, queues: Vec<QueueLook>) {
        let kept = &mut self.looks.queues;
        kept.push((at, queues));
        let gone = kept.iter().take_while(|(then, _)| at.saturating_sub(*then) > WINDOW).count();
        kept.drain(..gone.min(kept.len().saturating_sub(2)));
    }

    /// Takes in that the side cannot be looked at. What it said before is nothing that it says now.
    pub(super) fn lost(&mut self, reach: MonitorReach) {
        self.looks.reach = reach;
        self.looks.looks.clear();
        self.looks.queues.clear();
        self.errors.clear();
    }

    /// Takes an event in.
    pub(super) fn event(&mut self, at: Duration, name: &str, emitted: Option<Duration>, data: &Value) {
        let mut errors = JobErrors::default();
        errors.event(name, data);
        self.count_errors(at, errors);
        if self.events.len() == EVENTS {
            self.events.pop_front();
            self.lost = self.lost.saturating_add(1);
        }
        let qemu_us = emitted.and_then(|emitted| u64::try_from(emitted.as_micros()).ok());
        // the side is known once both have been looked at
        let event = WatchedEvent { side: Side::Source, event: name.to_owned(), qemu_us, data: data.clone(), at };
        self.events.push_back(event);
    }

    /// Takes in that so many events, of whatever kind, were not seen.
    pub(super) fn missed(&mut self, events: u64) {
        self.lost = self.lost.saturating_add(events);
    }

    fn count_errors(&mut self, at: Duration, errors: JobErrors) {
        match self.errors.back_mut() {
            _ if errors.is_empty() => {}
            Some((then, count)) if at.saturating_sub(*then) < Duration::from_millis(100) => count.add_all(&errors),
            _ => self.errors.push_back((at, errors)),
        }
    }

    /// What the rules judge.
    fn judged(&self) -> SideLooks {
        let mut job_errors = JobErrors::default();
        self.errors.iter().for_each(|(_, errors)| job_errors.add_all(errors));
        SideLooks { job_errors, ..self.looks.clone() }
    }

    /// Takes the events out, and how many were lost.
    fn take(&mut self) -> (Vec<WatchedEvent>, u64) {
        (self.events.drain(..).collect(), std::mem::take(&mut self.lost))
    }
}

/// What a watch says of a moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WatchSnapshot {
    /// The time since the watch began.
    pub at: Duration,
    /// What the rules find in the looks of the last seconds, and both sides in numbers.
    pub diagnosis: Diagnosis,
    /// The events since the snapshot before, in the order of their arrival.
    pub events: Vec<WatchedEvent>,
    /// The number of events that came too fast to be kept.
    pub lost_events: u64,
    /// The time from STOP on the source to RESUME on the destination, by the clocks of the two QEMUs' hosts; absent
    /// until both were seen.
    pub blackout: Option<Duration>,
    /// Whether the guest was seen to arrive: it waited on the destination, and runs there.
    pub moved: bool,
}

/// What is remembered of a migration for longer than the window.
#[derive(Debug, Default)]
pub(super) struct WatchedCourse {
    /// Whether the sides were given in the other order, by the last answers that told.
    swapped: bool,
    /// Whether the destination was seen to wait for a guest.
    waited: bool,
    causes: SteadyCauses,
    /// The events STOP of the source and RESUME of the destination.
    stopped: Option<u64>,
    resumed: Option<u64>,
}

impl WatchedCourse {
    /// What is to be said at a moment, with what could not be looked at.
    pub(super) fn snapshot(
        &mut self,
        at: Duration,
        windows: &mut [&mut SideWindow],
        unseen: Vec<String>,
    ) -> WatchSnapshot {
        let pair = self.pair(windows.iter().map(|window| window.judged()).collect());
        let (mut events, mut lost_events) = (Vec::new(), 0u64);
        for (number, window) in windows.iter_mut().enumerate() {
            let side = if (number == 0) == self.swapped { Side::Destination } else { Side::Source };
            let (taken, lost) = window.take();
            events.extend(taken.into_iter().map(|event| WatchedEvent { side, ..event }));
            lost_events = lost_events.saturating_add(lost);
        }
        events.sort_by_key(|event| event.at);
        events.iter().for_each(|event| self.follow(event));
        let moved = self.moved(&pair);
        let mut causes = rules::causes(&pair);
        causes.retain(|cause| !moved || cause.code != DiagnosisCode::SourceGone);
        let mut diagnosis = Diagnosis::with(&pair, self.causes.settle(at, causes), unseen);
        if pair.sides().all(|(_, side)| side.reach == MonitorReach::NotAsked) {
            diagnosis.verdict = "Nothing has been looked at yet.".to_owned();
        }
        if moved && diagnosis.causes.is_empty() {
            diagnosis.verdict = "The guest has moved: it runs on the destination.".to_owned();
        }
        WatchSnapshot { at, diagnosis, events, lost_events, blackout: self.blackout(), moved }
    }

    /// Finds out which side is which. Once QEMU's answers have told, that holds until they tell otherwise: a guest that
    /// has arrived looks like one that never left.
    fn pair(&mut self, mut sides: Vec<SideLooks>) -> PairLooks {
        let tells = |side: &SideLooks| (side.receives() && !side.sends(), side.sends() && !side.receives());
        match sides.as_slice() {
            [one, other] => {
                let ((one_receives, one_sends), (other_receives, other_sends)) = (tells(one), tells(other));
                self.swapped = match (one_receives || other_sends, one_sends || other_receives) {
                    (true, false) => true,
                    (false, true) => false,
                    _ => self.swapped,
                };
            }
            [only] => {
                let (receives, sends) = tells(only);
                self.swapped = receives || self.swapped && !sends;
            }
            _ => {}
        }
        let second = sides.pop();
        let first = sides.pop();
        let pair = match (first, second, self.swapped) {
            (None, only, false) => PairLooks { source: only, destination: None },
            (None, only, true) => PairLooks { source: None, destination: only },
            (first, second, false) => PairLooks { source: first, destination: second },
            (first, second, true) => PairLooks { source: second, destination: first },
        };
        self.waited |= pair.destination.as_ref().is_some_and(|side| side.run() == Some(&RunState::InMigrate));
        pair
    }

    /// Takes in what an event tells of the guest's pause.
    fn follow(&mut self, event: &WatchedEvent) {
        match (event.side, &*event.event) {
            (Side::Source, "STOP") => (self.stopped, self.resumed) = (event.qemu_us, None),
            (Side::Source, "RESUME") => (self.stopped, self.resumed) = (None, None),
            (Side::Destination, "RESUME") if self.resumed.is_none() => self.resumed = event.qemu_us,
            _ => {}
        }
    }

    fn blackout(&self) -> Option<Duration> {
        let (stopped, resumed) = self.stopped.zip(self.resumed)?;
        resumed.checked_sub(stopped).map(Duration::from_micros).filter(|pause| *pause <= BELIEVED)
    }

    /// Whether the destination, which waited for the guest, runs it, and the source has passed it on.
    fn moved(&self, pair: &PairLooks) -> bool {
        let Some((source, destination)) = pair.source.as_ref().zip(pair.destination.as_ref()) else { return false };
        let passed_on = matches!(source.reach, MonitorReach::Gone { .. })
            || source.status() == Some(&MigrationStatus::Completed) && !source.runs();
        // the event comes before the next look, and the source may end at once after that
        self.waited && (destination.runs() || self.resumed.is_some()) && passed_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A look at a side in this run state, whose migration has this status.
    fn look(ms: u64, run: &str, status: &str) -> MonitorLook {
        let mut look = MonitorLook { at: at(ms), ..MonitorLook::default() };
        look.take("query-status", &json!({ "status": run }));
        look.take(
            "query-migrate",
            &json!({ "status": status, "ram": { "transferred": 1, "remaining": 1, "total": 2 } }),
        );
        if run == "inmigrate" || status == "none" {
            look.take("query-migrate", &json!({}));
        }
        look
    }

    /// What both sides say over time, and what is made of it.
    struct Watched {
        windows: [SideWindow; 2],
        course: WatchedCourse,
    }

    impl Watched {
        fn new() -> Self {
            let windows = ["one", "other"].map(|name| SideWindow::new(name.to_owned()));
            Self { windows, course: WatchedCourse::default() }
        }

        fn look(&mut self, ms: u64, looks: [(&str, &str); 2]) -> WatchSnapshot {
            for (window, (run, status)) in self.windows.iter_mut().zip(looks) {
                window.look(look(ms, run, status));
            }
            self.now(ms)
        }

        fn now(&mut self, ms: u64) -> WatchSnapshot {
            let [one, other] = &mut self.windows;
            self.course.snapshot(at(ms), &mut [one, other], Vec::new())
        }
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut window = SideWindow::new("vm".to_owned());
        for number in 0..40 {
            window.look(look(number * 400, "running", "active"));
            window.event(at(number * 400), "BLOCK_JOB_ERROR", None, &json!({ "device": "m" }));
            window.missed(1000);
        }
        let judged = window.judged();
        assert_eq!((judged.looks.len(), judged.span(), judged.job_errors.of("m")), (11, at(4000), 11));
        // a look that took long is compared with the one before
        window.look(look(60_000, "running", "active"));
        assert_eq!(window.judged().looks.len(), 2);
        window.lost(MonitorReach::Gone { words: String::new() });
        assert!(window.judged().looks.is_empty());
    }

    #[test]
    fn the_sides_stay_what_they_were_when_the_guest_has_arrived() {
        // given in the other order
        let mut watched = Watched::new();
        let name = |snapshot: &WatchSnapshot| snapshot.diagnosis.source.as_ref().map(|side| side.address.clone());
        let seen = watched.look(0, [("inmigrate", "none"), ("running", "active")]);
        assert_eq!(name(&seen).as_deref(), Some("other"));
        watched.windows[1].event(at(300), "STOP", Some(at(5000)), &json!({}));
        watched.windows[0].event(at(310), "RESUME", Some(at(5012)), &json!({}));
        let seen = watched.look(400, [("running", "none"), ("postmigrate", "completed")]);
        assert_eq!(name(&seen).as_deref(), Some("other"));
        let sides: Vec<Side> = seen.events.iter().map(|event| event.side).collect();
        assert_eq!(sides, [Side::Source, Side::Destination]);
        assert_eq!((seen.blackout, seen.moved), (Some(at(12)), true));
        assert!(seen.diagnosis.verdict.contains("has moved"), "{}", seen.diagnosis.verdict);
        // its QEMU ends, as it should, also before the destination was looked at again
        let mut quick = Watched::new();
        quick.look(0, [("running", "active"), ("inmigrate", "none")]);
        quick.windows[0].event(at(300), "STOP", Some(at(5000)), &json!({}));
        quick.windows[1].event(at(310), "RESUME", Some(at(5012)), &json!({}));
        quick.windows[0].lost(MonitorReach::Gone { words: "closed".to_owned() });
        assert!(quick.now(350).moved);
        watched.windows[1].lost(MonitorReach::Gone { words: "closed".to_owned() });
        let seen = watched.now(800);
        assert!(seen.moved && seen.diagnosis.is_healthy() && name(&seen).as_deref() == Some("other"), "{seen:#?}");
    }

    #[test]
    fn a_source_that_dies_before_the_guest_has_arrived_is_gone() {
        let mut watched = Watched::new();
        watched.look(0, [("running", "active"), ("inmigrate", "none")]);
        watched.windows[0].lost(MonitorReach::Gone { words: "closed".to_owned() });
        let seen = watched.now(400);
        assert_eq!(seen.diagnosis.causes[0].code, DiagnosisCode::SourceGone);
        assert!(!seen.moved);
    }

    #[test]
    fn a_guest_that_goes_on_at_the_source_had_no_blackout() {
        let mut watched = Watched::new();
        watched.windows[0].event(at(1), "STOP", Some(at(1000)), &json!({}));
        watched.windows[0].event(at(2), "RESUME", Some(at(1500)), &json!({}));
        watched.windows[1].event(at(3), "RESUME", Some(at(9000)), &json!({}));
        assert_eq!(watched.look(4, [("running", "active"), ("inmigrate", "none")]).blackout, None);
    }

    #[test]
    fn the_members_of_an_event_are_told_in_words() {
        let mut window = SideWindow::new("vm".to_owned());
        let data = json!({ "device": "m", "len": 7, "ready": true, "status": "x", "nested": { "a": 1 } });
        window.event(at(1), "BLOCK_JOB_READY", None, &data);
        assert_eq!(window.take().0[0].details(), "status x, device m, len 7, ready true");
    }
}
