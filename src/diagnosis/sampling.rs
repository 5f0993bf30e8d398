//! The looks: what is asked of each side, how often, and for how long.
//!
//! Asks only; a side that does not answer is asked once out of band, and not again. Each question has a deadline.

use super::{
    look::{MonitorLook, bound, list},
    pair::{MonitorReach, PairLooks, SideLooks},
    process_look::ProcessLook,
    report::Diagnosis,
};
use crate::{
    endpoint::{DialError, Endpoint, PeerPid},
    progress::describe,
    qmp::{ConnectError, EventStream, QmpClient, QmpOptions, QmpRequest, StreamItem},
};
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The time for a connection and its greeting.
const MEET: Duration = Duration::from_secs(3);
/// The time for an answer. QEMU answers in well under a millisecond unless its main loop hangs.
pub(super) const ANSWER: Duration = Duration::from_secs(2);
/// The time between two looks.
const PAUSE: Duration = Duration::from_millis(250);
/// The commands of a look. A look without the answers to the first two is none.
const LOOKED_AT: [&str; 5] = ["query-status", "query-migrate", "query-block-jobs", "query-jobs", "query-block-exports"];
const NEEDED: usize = 2;
/// The commands whose answers change rarely.
pub(super) const ONCE: [&str; 4] =
    ["query-uuid", "query-migrate-capabilities", "query-migrate-parameters", "query-yank"];
/// What is not seen where one side alone was given.
pub(super) const ONE_SIDE: &str = "only one side was given: the other side's state is not known";
/// The least and the most time that is looked.
const LASTING: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// What is to be looked at.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DiagnoseSettings {
    /// The monitors: of one side, or of the source and the destination. QEMU's answers decide which is which.
    pub sides: Vec<Endpoint>,
    /// A process that is looked at without a monitor.
    pub pid: Option<u32>,
    /// How long is looked; at least 2 s, because only time tells slow from stuck.
    pub lasting: Duration,
}

impl DiagnoseSettings {
    /// Settings for these monitors, and 3 s.
    pub fn new(sides: Vec<Endpoint>) -> Self {
        Self { sides, pid: None, lasting: Duration::from_secs(3) }
    }
}

/// Why nothing could be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiagnosisError {
    /// There is neither a monitor nor a process, or more than two monitors.
    #[error("a diagnosis looks at one monitor or two, or at a process; {given} monitors were given")]
    Sides {
        /// The number of monitors.
        given: usize,
    },
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoProcess {
        /// The pid.
        pid: u32,
    },
    /// None of the monitors exists, and no process is known.
    #[error("nothing could be looked at: {words}")]
    Nothing {
        /// What stands in the way, for each side.
        words: String,
    },
}

/// Looks at a migration for a few seconds, within a tokio runtime, and names what is wrong with it. Nothing is changed
/// in QEMU.
///
/// # Errors
/// See [`DiagnosisError`]. A side that cannot be reached while the other can is a cause, and no error.
pub async fn diagnose(settings: &DiagnoseSettings) -> Result<Diagnosis, DiagnosisError> {
    let given = settings.sides.len();
    if given > 2 || given == 0 && settings.pid.is_none() {
        return Err(DiagnosisError::Sides { given });
    }
    let lasting = settings.lasting.clamp(LASTING.0, LASTING.1);
    let mut unseen: Vec<String> = Vec::new();
    let mut sides = Vec::new();
    match (settings.sides.as_slice(), settings.pid) {
        ([one, other], _) => {
            let (one, other) = tokio::join!(side(one, lasting), side(other, lasting));
            sides.extend([one, other]);
        }
        ([one], _) => sides.push(side(one, lasting).await),
        ([..], Some(pid)) => sides.push(process(pid, lasting).await.ok_or(DiagnosisError::NoProcess { pid })?),
        ([..], None) => {}
    }
    let words = |side: &SideLooks| match &side.reach {
        MonitorReach::Gone { words } if side.process.is_none() => Some(words.clone()),
        _ => None,
    };
    let gone: Vec<String> = sides.iter().filter_map(words).collect();
    if gone.len() == sides.len() {
        return Err(DiagnosisError::Nothing { words: gone.join("; ") });
    }
    for seen in &sides {
        unseen.extend(unseen_of(seen));
    }
    if given == 1 {
        unseen.push(ONE_SIDE.to_owned());
    }
    Ok(Diagnosis::of(&PairLooks::of(sides), unseen))
}

/// What could not be looked at of a side.
pub(super) fn unseen_of(seen: &SideLooks) -> Vec<String> {
    let mut unseen: Vec<String> = seen.process.iter().flat_map(|process| process.hidden.clone()).collect();
    match seen.reach {
        MonitorReach::NotAsked => unseen.push("no monitor was asked: QEMU's own state is not known".to_owned()),
        _ if seen.process.is_none() => {
            unseen.push(format!("{}: its process is not known, so threads and queues are not seen", seen.name));
        }
        _ => {}
    }
    unseen
}

/// Looks at a process alone.
async fn process(pid: u32, lasting: Duration) -> Option<SideLooks> {
    let first = ProcessLook::read(pid)?;
    let mut seen = SideLooks::new(format!("process {pid}"), MonitorReach::NotAsked);
    sleep(lasting).await;
    seen.process = ProcessLook::read(pid).or(Some(first));
    Some(seen)
}

/// Looks at one side.
async fn side(at: &Endpoint, lasting: Duration) -> SideLooks {
    let name = at.to_string();
    let (met, pid) = meet(at, QmpOptions::labelled(name.as_str())).await;
    let mut seen = match met {
        Ok(client) => {
            let process = pid.and_then(ProcessLook::read);
            SideLooks { process, ..ask(name, &client, lasting).await }
        }
        Err(reach) => SideLooks::new(name, reach),
    };
    seen.process = pid.and_then(ProcessLook::read).or(seen.process);
    seen
}

/// Connects to a monitor, and tells whose it is where the kernel does.
pub(super) async fn meet(at: &Endpoint, options: QmpOptions) -> (Result<QmpClient, MonitorReach>, Option<u32>) {
    let dialed = match at.dial(MEET).await {
        Ok(dialed) => dialed,
        Err(error) => return (Err(unreached(&error)), None),
    };
    let pid = dialed.peer.as_ref().map(PeerPid::pid);
    let options = QmpOptions { greeting_deadline: MEET, ..options };
    let met = QmpClient::connect(dialed.stream, options).await.map_err(|error| {
        let words = describe(&error);
        match error {
            ConnectError::Ended(_) => MonitorReach::Gone { words },
            ConnectError::Negotiation(_) => MonitorReach::Greets { words },
            _ => MonitorReach::NoGreeting { words },
        }
    });
    (met, pid)
}

/// An address that nobody listens at is a QEMU that is gone; anything else says nothing about QEMU.
fn unreached(error: &DialError) -> MonitorReach {
    let words = describe(error);
    match error {
        DialError::Missing { .. } | DialError::Refused { .. } => MonitorReach::Gone { words },
        _ => MonitorReach::NoGreeting { words },
    }
}

/// Asks a QEMU that has greeted, until the time is over or it answers no more.
async fn ask(name: String, client: &QmpClient, lasting: Duration) -> SideLooks {
    let mut seen = SideLooks::new(name, MonitorReach::Answers);
    seen.version = version(client);
    let mut events = client.subscribe();
    let began = Instant::now();
    loop {
        let at = began.elapsed();
        match look(client, at).await {
            Some(look) => seen.looks.push(look),
            None => {
                seen.reach = unanswered(client, &mut seen, ANSWER).await;
                return seen;
            }
        }
        if seen.looks.len() == 1 {
            once(client, &mut seen).await;
        }
        if began.elapsed() >= lasting {
            return seen;
        }
        count(&mut events, &mut seen, began + at + PAUSE).await;
    }
}

/// QEMU's version, as the greeting tells it.
pub(super) fn version(client: &QmpClient) -> String {
    let version = client.greeting().and_then(|greeting| greeting.version);
    version.map(|version| version.to_string()).unwrap_or_default()
}

/// Counts events until a moment.
async fn count(events: &mut EventStream, seen: &mut SideLooks, until: Instant) {
    loop {
        let Ok(item) = timeout(until.saturating_duration_since(Instant::now()), events.next()).await else { return };
        match item {
            StreamItem::Event(event) => seen.job_errors += u64::from(event.name == "BLOCK_JOB_ERROR"),
            // nothing else comes so fast that events are lost
            StreamItem::Lagged(lost) => seen.job_errors += lost,
            StreamItem::Closed(_) => return sleep_until(until).await,
        }
    }
}

/// One look; `None` where QEMU does not answer.
pub(super) async fn look(client: &QmpClient, at: Duration) -> Option<MonitorLook> {
    let mut look = MonitorLook { at, ..MonitorLook::default() };
    // QEMU answers in the order of the questions, so all of them can be under way
    let asked = LOOKED_AT.map(|name| client.start(QmpRequest::named(name), ANSWER));
    for (number, (name, answer)) in LOOKED_AT.into_iter().zip(asked).enumerate() {
        match answer.await {
            Ok(mut answer) => {
                bound(&mut answer);
                look.take(name, &answer);
            }
            Err(_) if number < NEEDED => return None,
            Err(_) => {}
        }
    }
    Some(look)
}

/// Asks for what stays the same while a diagnosis lasts.
async fn once(client: &QmpClient, seen: &mut SideLooks) {
    let requests = ONCE.into_iter().map(QmpRequest::named);
    ask_for(client, requests.chain([nodes()]), |name, answer| seen.take(name, answer)).await;
}

/// Asks for several things at once. What is not answered is left out.
pub(super) async fn ask_for(
    client: &QmpClient,
    requests: impl Iterator<Item = QmpRequest>,
    mut take: impl FnMut(&str, &Value),
) {
    let start = |request: QmpRequest| (request.name().to_owned(), client.start(request, ANSWER));
    let asked: Vec<_> = requests.map(start).collect();
    for (name, answer) in asked {
        if let Ok(mut answer) = answer.await {
            bound(&mut answer);
            take(&name, &answer);
        }
    }
}

/// The question for the nodes of the block graph.
pub(super) fn nodes() -> QmpRequest {
    QmpRequest::named("query-named-block-nodes").with("flat", true)
}

/// Finds out whether a QEMU that has not answered for some time does so out of band.
pub(super) async fn unanswered(client: &QmpClient, seen: &mut SideLooks, waited: Duration) -> MonitorReach {
    if client.is_closed() {
        let words = format!("{} has closed its monitor", seen.name);
        return MonitorReach::Gone { words };
    }
    if !client.oob() {
        return MonitorReach::Hangs { waited, oob: None };
    }
    let answer = client.execute_oob(&qapi::qmp::query_yank {}, ANSWER).await;
    if let Ok(yanks) = &answer {
        seen.yanks = serde_json::to_value(yanks).map(|yanks| list(&yanks)).unwrap_or_default();
    }
    MonitorReach::Hangs { waited, oob: Some(answer.is_ok()) }
}
