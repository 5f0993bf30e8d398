//! The watch: looks at one side or both again and again, for as long as somebody watches.
//!
//! Owns one task for each side, which looks, and what these have seen. Asks only. A side that cannot be reached, or
//! whose monitor closes, is dialled anew until it answers; it ends nothing. Whoever reads the snapshots can be as slow
//! as they like: what comes meanwhile is kept within bounds, and a QEMU never waits for it.

use super::{
    guest_queues,
    pair::MonitorReach,
    process::ProcessLook,
    sampling::{
        DiagnosisError, ONCE, ONE_SIDE, Patience, ask_for, cards, is_direct, is_wanted, look, meet, nodes,
        not_passed_on, notes, unanswered, unseen_of, version,
    },
    way_in::ObservedMonitor,
    window::{SideWindow, WatchSnapshot, WatchedCourse},
};
use crate::qmp::{EventStream, ExecuteError, QmpClient, QmpOptions, QmpRequest, StreamItem};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

/// The time between two looks. A look takes QEMU's main loop a fraction of a millisecond.
const PAUSE: Duration = Duration::from_millis(400);
/// The time after which what changes rarely is asked for again, and the process is looked at.
const RARELY: Duration = Duration::from_secs(2);
/// The time after which a side that was not reached is dialled anew.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest line of QEMU's that is read.
const LINE: usize = 4 << 20;
/// The longest event that is kept with its data.
const EVENT: usize = 2048;

/// What is to be watched.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WatchSettings {
    /// The monitors: of one side, or of the source and the destination. QEMU's answers decide which is which.
    pub sides: Vec<ObservedMonitor>,
}

impl WatchSettings {
    /// Settings for these monitors.
    pub fn new(sides: impl IntoIterator<Item = impl Into<ObservedMonitor>>) -> Self {
        Self { sides: sides.into_iter().map(Into::into).collect() }
    }
}

/// A watch over a migration, whoever has started it. Nothing is changed in QEMU. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watching {
    began: Instant,
    windows: Vec<Arc<Mutex<SideWindow>>>,
    tasks: Vec<AbortHandle>,
    course: WatchedCourse,
    notes: Vec<String>,
}

impl Watching {
    /// The time after which there is something new to see.
    pub const PAUSE: Duration = PAUSE;

    /// Begins to watch, within a tokio runtime.
    ///
    /// # Errors [`DiagnosisError::Sides`] where there is no monitor, or more than two, and
    /// [`DiagnosisError::SameMonitor`]. A monitor that cannot be reached is no error.
    pub fn start(settings: &WatchSettings) -> Result<Self, DiagnosisError> {
        super::sampling::check_sides(&settings.sides)?;
        let began = Instant::now();
        let window = |side: &ObservedMonitor| Arc::new(Mutex::new(SideWindow::new(side.to_string())));
        let windows: Vec<_> = settings.sides.iter().map(window).collect();
        let begin = |(side, window): (&ObservedMonitor, &Arc<Mutex<SideWindow>>)| {
            let look = SideWatch { began, window: window.clone(), patience: Patience::with(side) };
            tokio::spawn(look.at(side.clone())).abort_handle()
        };
        let tasks = settings.sides.iter().zip(&windows).map(begin).collect();
        Ok(Self { began, windows, tasks, course: WatchedCourse::default(), notes: notes(&settings.sides) })
    }

    /// What is seen now, with the events since the snapshot before. Waits for nothing, and can be called from any
    /// thread.
    pub fn snapshot(&mut self) -> WatchSnapshot {
        let mut windows: Vec<MutexGuard<'_, SideWindow>> = self.windows.iter().map(|window| lock(window)).collect();
        let mut unseen: Vec<String> = Vec::new();
        for window in &mut windows {
            let side = window.side();
            // a side that is not there is not there to be looked at
            if side.reach == MonitorReach::Answers {
                unseen.extend(unseen_of(side));
            }
        }
        if windows.len() == 1 {
            unseen.push(ONE_SIDE.to_owned());
        }
        let mut windows: Vec<&mut SideWindow> = windows.iter_mut().map(|window| &mut **window).collect();
        let mut snapshot = self.course.snapshot(self.began.elapsed(), &mut windows, unseen);
        snapshot.diagnosis.notes.clone_from(&self.notes);
        snapshot
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

fn lock(window: &Mutex<SideWindow>) -> MutexGuard<'_, SideWindow> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The watch over one side.
struct SideWatch {
    began: Instant,
    window: Arc<Mutex<SideWindow>>,
    patience: Patience,
}

impl SideWatch {
    /// Looks for ever.
    async fn at(self, side: ObservedMonitor) {
        let label = side.to_string();
        loop {
            let options = QmpOptions { max_line: LINE, max_event: EVENT, ..QmpOptions::labelled(label.as_str()) };
            let (met, pid) = meet(&side, options).await;
            match met {
                Ok(client) => self.follow(&side, &client, pid).await,
                Err(reach) => {
                    let process = pid.and_then(ProcessLook::read);
                    self.window().side().process = process;
                    self.window().lost(reach);
                }
            }
            sleep(AGAIN).await;
        }
    }

    fn window(&self) -> MutexGuard<'_, SideWindow> {
        lock(&self.window)
    }

    /// Looks until the monitor closes.
    async fn follow(&self, at: &ObservedMonitor, client: &QmpClient, pid: Option<u32>) {
        {
            let mut window = self.window();
            let side = window.side();
            (side.version, side.is_direct) = (version(client), is_direct(at));
        }
        let disks = match self.patience.passed_on {
            true => Vec::new(),
            false => guest_queues::find(client, self.patience.answer).await,
        };
        let mut events = client.subscribe();
        let mut asked: Option<(Instant, BTreeSet<String>)> = None;
        loop {
            let now = self.began.elapsed();
            match look(client, now, self.patience).await {
                Ok(look) => {
                    let jobs: BTreeSet<String> = look.mirrors.iter().map(|job| job.device.clone()).collect();
                    self.window().look(look);
                    // a mirror has nodes of its own
                    let is_new = asked.as_ref().is_none_or(|(_, before)| *before != jobs);
                    if is_new || asked.as_ref().is_some_and(|(then, _)| then.elapsed() >= RARELY) {
                        self.ask_rarely(client, pid, is_new).await;
                        let queues = guest_queues::look(client, &disks, self.patience.answer).await;
                        let is_wanted = is_wanted(at);
                        let mut window = self.window();
                        window.side().is_wanted = is_wanted;
                        window.queues(self.began.elapsed(), queues);
                        asked = Some((Instant::now(), jobs));
                    }
                }
                Err(_) if client.is_closed() => {}
                Err(ExecuteError::Refused { class, desc, .. }) if self.patience.passed_on => {
                    self.window().side().reach = not_passed_on(&class, desc);
                }
                Err(error @ ExecuteError::Refused { .. }) => {
                    let mut window = self.window();
                    let reach = super::meeting::refused(&window.side().name, &error);
                    window.lost(reach);
                }
                Err(_) => self.wait_for_answer(client, pid, &mut events).await,
            }
            if client.is_closed() {
                // a process that its parent has not waited for yet is as gone as any other
                let process = pid.and_then(ProcessLook::read).filter(|process| process.state != 'Z');
                let mut window = self.window();
                let words = format!("{} has closed its monitor", window.side().name);
                window.side().process = process;
                return window.lost(MonitorReach::Gone { words });
            }
            self.collect(&mut events, self.began + now + PAUSE).await;
        }
    }

    /// Asks for what changes rarely, and looks at the process.
    async fn ask_rarely(&self, client: &QmpClient, pid: Option<u32>, graph: bool) {
        let requests = ONCE.into_iter().map(QmpRequest::named).chain(graph.then(nodes));
        ask_for(client, requests, self.patience, |name, answer| self.window().side().take(name, answer)).await;
        if graph && self.window().side().announces_nothing() {
            ask_for(client, cards(), self.patience, |name, answer| self.window().side().take(name, answer)).await;
        }
        let process = pid.and_then(ProcessLook::read);
        self.window().side().process = process;
    }

    /// Waits for the answer that QEMU owes, for as long as the connection lives. Nothing else is asked in band
    /// meanwhile: QEMU reads no more, not out of band either, once eight commands wait.
    async fn wait_for_answer(&self, client: &QmpClient, pid: Option<u32>, events: &mut EventStream) {
        let since = Instant::now();
        loop {
            let mut side = self.window().side().clone();
            side.looks.clear();
            let reach = unanswered(client, &mut side, self.patience.answer + since.elapsed()).await;
            let process = pid.and_then(ProcessLook::read);
            {
                let mut window = self.window();
                (window.side().yanks, window.side().process, window.side().reach) = (side.yanks, process, reach);
            }
            self.collect(events, Instant::now() + PAUSE).await;
            // nothing is owed where this does not resolve at once
            let owed = timeout(Duration::from_millis(1), client.wait_unanswered(Duration::ZERO)).await.is_ok();
            if !owed || client.is_closed() {
                return;
            }
        }
    }

    /// Takes events in until a moment, or until the connection ends.
    async fn collect(&self, events: &mut EventStream, until: Instant) {
        while Instant::now() < until {
            let Ok(item) = timeout(until.saturating_duration_since(Instant::now()), events.next()).await else {
                return;
            };
            match item {
                StreamItem::Event(event) => {
                    let at = Instant::from_std(event.received).saturating_duration_since(self.began);
                    self.window().event(at, &event.name, event.emitted, &event.data);
                }
                StreamItem::Lagged(lost) => self.window().missed(lost),
                // the end is told at once, and the monitor dialled anew a little later
                StreamItem::Closed(_) => return sleep_until(Instant::now() + Duration::from_millis(1)).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{codes::DiagnosisCode, endpoint::Endpoint};
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex},
        sync::{mpsc, watch},
    };

    /// A monitor: whether it answers, and lines that it sends by itself.
    struct TestMonitor {
        answers: watch::Sender<bool>,
        lines: mpsc::UnboundedSender<Option<String>>,
        dialled: watch::Receiver<usize>,
    }

    /// A side whose QEMU says `status`, and answers while it is told to.
    fn monitor(status: &'static str) -> (Endpoint, TestMonitor) {
        let (answers, answering) = watch::channel(true);
        let (lines, sent) = mpsc::unbounded_channel::<Option<String>>();
        let (count, dialled) = watch::channel(0);
        let sent = Arc::new(tokio::sync::Mutex::new(sent));
        let endpoint = Endpoint::connector("vm", move || {
            let (near, far) = duplex(1 << 16);
            count.send_modify(|count| *count += 1);
            tokio::spawn(serve(far, status, answering.clone(), sent.clone()));
            async { Ok(near) }
        });
        (endpoint, TestMonitor { answers, lines, dialled })
    }

    async fn serve(
        stream: DuplexStream,
        status: &str,
        mut answering: watch::Receiver<bool>,
        sent: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Option<String>>>>,
    ) {
        let mut sent = sent.lock().await;
        let (read, mut write) = tokio::io::split(stream);
        let version = json!({ "qemu": { "major": 10, "minor": 0, "micro": 13 }, "package": "" });
        let greeting = json!({ "QMP": { "version": version, "capabilities": ["oob"] } });
        write.write_all(format!("{greeting}\n").as_bytes()).await.ok();
        let mut commands = BufReader::new(read).lines();
        loop {
            tokio::select! {
                line = sent.recv() => match line {
                    Some(Some(line)) => drop(write.write_all(format!("{line}\n").as_bytes()).await),
                    _ => return,
                },
                command = commands.next_line() => {
                    let Ok(Some(command)) = command else { return };
                    let command: Value = serde_json::from_str(&command).expect("JSON");
                    let name = command["execute"].as_str();
                    let answer = match name {
                        Some("query-status") => json!({ "status": status }),
                        Some("query-block-jobs" | "query-jobs" | "query-block-exports") => json!([]),
                        _ => json!({}),
                    };
                    if name.is_some() && answering.wait_for(|answers| *answers).await.is_err() {
                        return;
                    }
                    let answer = json!({ "return": answer, "id": command["id"] });
                    write.write_all(format!("{answer}\n").as_bytes()).await.ok();
                }
            }
        }
    }

    async fn after(watching: &mut Watching, seconds: u64) -> WatchSnapshot {
        sleep(Duration::from_secs(seconds)).await;
        watching.snapshot()
    }

    fn codes(snapshot: &WatchSnapshot) -> Vec<DiagnosisCode> {
        snapshot.diagnosis.causes.iter().map(|cause| cause.code).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_is_looked_at_again_and_again_and_its_events_are_kept() {
        let (endpoint, vm) = monitor("running");
        let mut watching = Watching::start(&WatchSettings::new(vec![endpoint])).expect("a watch");
        assert_eq!(watching.snapshot().diagnosis.verdict, "Nothing has been looked at yet.");
        let event = json!({ "event": "STOP", "timestamp": { "seconds": 7, "microseconds": 5 }, "data": { "a": 1 } });
        vm.lines.send(Some(event.to_string())).expect("it is read");
        let seen = after(&mut watching, 3).await;
        assert!(seen.diagnosis.is_healthy(), "{seen:#?}");
        let side = seen.diagnosis.source.expect("a side");
        assert_eq!((side.run_state.as_deref(), side.version.as_deref()), (Some("running"), Some("10.0.13")));
        assert_eq!(seen.events.len(), 1);
        let told = serde_json::to_value(&seen.events[0]).expect("JSON");
        assert_eq!(told, json!({ "side": "source", "event": "STOP", "qemu_us": 7_000_005, "data": { "a": 1 } }));
        assert!(after(&mut watching, 1).await.events.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_monitor_that_closes_is_said_to_be_gone_and_dialled_anew() {
        let (endpoint, vm) = monitor("running");
        let mut watching = Watching::start(&WatchSettings::new(vec![endpoint])).expect("a watch");
        assert!(after(&mut watching, 1).await.diagnosis.is_healthy());
        vm.lines.send(None).expect("it is read");
        sleep(Duration::from_millis(500)).await;
        assert_eq!(codes(&watching.snapshot()), [DiagnosisCode::SourceGone]);
        let seen = after(&mut watching, 3).await;
        assert!(seen.diagnosis.is_healthy(), "{seen:#?}");
        assert_eq!(*vm.dialled.borrow(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_main_loop_that_hangs_is_said_to_until_it_answers() {
        let (endpoint, vm) = monitor("running");
        let mut watching = Watching::start(&WatchSettings::new(vec![endpoint])).expect("a watch");
        assert!(after(&mut watching, 1).await.diagnosis.is_healthy());
        vm.answers.send_replace(false);
        for _ in 0..4 {
            let seen = after(&mut watching, 5).await;
            assert_eq!(codes(&seen).len(), 1, "{seen:#?}");
        }
        vm.answers.send_replace(true);
        let seen = after(&mut watching, 10).await;
        assert!(seen.diagnosis.is_healthy(), "{seen:#?}");
        assert_eq!(*vm.dialled.borrow(), 1, "the connection was kept");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_events_is_bounded_and_counted() {
        let (endpoint, vm) = monitor("running");
        let mut watching = Watching::start(&WatchSettings::new(vec![endpoint])).expect("a watch");
        for _ in 0..5000 {
            let event = json!({ "event": "RTC_CHANGE", "timestamp": { "seconds": 1, "microseconds": 0 } });
            vm.lines.send(Some(event.to_string())).expect("it is read");
        }
        let seen = after(&mut watching, 3).await;
        assert_eq!(seen.events.len() as u64 + seen.lost_events, 5000);
        assert!(seen.events.len() <= 256, "{}", seen.events.len());
        assert!(seen.diagnosis.is_healthy(), "events that were lost are no errors of a mirror: {seen:#?}");
    }

    #[tokio::test]
    async fn a_watch_has_one_side_or_two() {
        for given in [0, 3] {
            let sides = vec![monitor("running").0; given];
            assert!(matches!(Watching::start(&WatchSettings::new(sides)), Err(DiagnosisError::Sides { .. })));
        }
    }
}
