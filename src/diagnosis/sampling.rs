//! The looks: what is asked of each side, how often, and for how long.
//!
//! Asks only; a side that does not answer is asked once out of band, and not again. Each question has a deadline.

pub(super) use super::meeting::{Patience, meet};
use super::{
    guest_queues,
    look::{MonitorLook, bound, list},
    meeting::{closed, refused},
    pair::{Met, MonitorReach, PairLooks, SideLooks},
    process::{MonitorHolders, ProcessLook},
    report::Diagnosis,
    way_in::{BARRED, ObservedMonitor},
};
use crate::{
    endpoint::{Address, Endpoint},
    qmp::{ErrorClass, EventStream, ExecuteError, QmpClient, QmpOptions, QmpRequest, StreamItem},
};
use serde_json::Value;
use std::{os::unix::fs::FileTypeExt, time::Duration};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The time for an answer out of band.
const OUT_OF_BAND: Duration = Duration::from_secs(2);
/// The least time between two looks at the process of a monitor that is silent.
const SILENT: Duration = Duration::from_millis(500);
/// The time between two looks.
const PAUSE: Duration = Duration::from_millis(250);
/// The commands of a look. A look without the answers to the first two is none.
const LOOKED_AT: [&str; 6] =
    ["query-status", "query-migrate", "query-block-jobs", "query-jobs", "query-block-exports", "query-chardev"];
const NEEDED: usize = 2;
/// Through another program the clients of monitors tell nothing, for its own is one of them.
const TOLD_THROUGH_OTHERS: usize = 5;
/// The commands whose answers change rarely.
pub(super) const ONCE: [&str; 5] =
    ["query-uuid", "query-migrate-capabilities", "query-migrate-parameters", "query-yank", "x-debug-query-block-graph"];
/// What is not seen where one side alone was given.
pub(super) const ONE_SIDE: &str = "only one side was given: the other side's state is not known";
/// The least and the most time that is looked.
pub(crate) const LOOKED_FOR: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// What a look through libvirt has on it.
const LIBVIRT: &str = "libvirt passes nothing on out of band, and marks a domain that is looked at as tainted \
                       (custom-monitor) in its log until the domain ends";

/// What is to be looked at.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DiagnoseSettings {
    /// The monitors: of one side, or of the source and the destination. QEMU's answers decide which is which.
    pub sides: Vec<ObservedMonitor>,
    /// A process that is looked at without a monitor.
    pub pid: Option<u32>,
    /// How long is looked: at least 2 s, because only time tells slow from stuck, and at most 5 minutes.
    pub lasting: Duration,
}

impl DiagnoseSettings {
    /// Settings for these monitors, and 3 s.
    pub fn new(sides: impl IntoIterator<Item = impl Into<ObservedMonitor>>) -> Self {
        let sides = sides.into_iter().map(Into::into).collect();
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
    /// Both monitors are one.
    #[error("{one} and {other} are the same monitor: give that of the other side, or one alone")]
    SameMonitor {
        /// The one address.
        one: String,
        /// The other.
        other: String,
    },
    /// Both monitors are those of one QEMU.
    #[error("both monitors are those of one QEMU, process {pid}: give that of the other side, or one alone")]
    SameProcess {
        /// The pid.
        pid: u32,
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

#[cfg(feature = "cli")]
impl DiagnosisError {
    /// Whether the user asked for what makes no sense, and nothing was looked at.
    pub(crate) fn is_misuse(&self) -> bool {
        matches!(self, Self::Sides { .. } | Self::SameMonitor { .. } | Self::SameProcess { .. })
    }
}

/// The monitors are one or two, and not the same one twice: a monitor serves one client at a time.
pub(super) fn check_sides(sides: &[ObservedMonitor]) -> Result<(), DiagnosisError> {
    match sides {
        [one, other] if one.is_same(other) => {
            Err(DiagnosisError::SameMonitor { one: one.to_string(), other: other.to_string() })
        }
        [_] | [_, _] => Ok(()),
        _ => Err(DiagnosisError::Sides { given: sides.len() }),
    }
}

/// Looks at a migration for a few seconds, within a tokio runtime, and names what is wrong with it. Nothing is changed
/// in QEMU.
///
/// # Errors
/// See [`DiagnosisError`]. A side that cannot be reached while the other can is a cause, and no error.
pub async fn diagnose(settings: &DiagnoseSettings) -> Result<Diagnosis, DiagnosisError> {
    let given = settings.sides.len();
    if given > 0 || settings.pid.is_none() {
        check_sides(&settings.sides)?;
    }
    let lasting = settings.lasting.clamp(LOOKED_FOR.0, LOOKED_FOR.1);
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
    if let Some(pid) = one_process(&sides) {
        return Err(DiagnosisError::SameProcess { pid });
    }
    let words = |side: &SideLooks| match &side.reach {
        MonitorReach::Gone { words } if side.process.is_none() && side.met != Met::Seen => Some(words.clone()),
        MonitorReach::NoWay { words } if side.looks.is_empty() => Some(words.clone()),
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
    let mut notes = notes(&settings.sides);
    notes.extend(sides.iter().filter(|seen| seen.lacks_oob).map(without_oob));
    let looks = PairLooks::of(sides);
    unseen.extend(looks.strangers());
    Ok(Diagnosis { notes, ..Diagnosis::of(&looks, unseen) })
}

/// The process that both sides are, where they are one.
fn one_process(sides: &[SideLooks]) -> Option<u32> {
    let pid = |side: &SideLooks| side.process.as_ref().map(|process| process.pid);
    match sides {
        [one, other] => pid(one).filter(|one| pid(other) == Some(*one)),
        _ => None,
    }
}

/// What there is to know about the ways in.
pub(super) fn notes(sides: &[ObservedMonitor]) -> Vec<String> {
    let through_libvirt = sides.iter().any(|monitor| monitor.domain().is_some());
    through_libvirt.then(|| LIBVIRT.to_owned()).into_iter().collect()
}

/// What a build without out-of-band execution, such as Proxmox VE's, has on it.
fn without_oob(seen: &SideLooks) -> String {
    let name = &seen.name;
    format!("{name}: this build has no out-of-band execution: a main loop that hangs can be freed from outside alone")
}

/// What could not be looked at of a side.
pub(super) fn unseen_of(seen: &SideLooks) -> Vec<String> {
    let mut unseen: Vec<String> = seen.process.iter().flat_map(|process| process.hidden.clone()).collect();
    match &seen.reach {
        MonitorReach::NoWay { words } => unseen.push(words.clone()),
        MonitorReach::Gone { words } if seen.met != Met::Seen => {
            unseen.push(format!("{words}: see that the address is right"))
        }
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
    let (first, began) = (ProcessLook::read(pid)?, Instant::now());
    let mut seen = SideLooks::new(format!("process {pid}"), MonitorReach::NotAsked);
    sleep(lasting).await;
    again(&mut seen, first, began);
    let others = seen.process.iter().filter(|process| !process.is_emulator());
    let others: Vec<String> = others.map(ProcessLook::stranger).collect();
    seen.process.iter_mut().for_each(|process| process.hidden.extend(others.iter().cloned()));
    Some(seen)
}

/// Looks at a process for the last time, after a first look.
fn again(seen: &mut SideLooks, first: ProcessLook, began: Instant) {
    let Some(now) = ProcessLook::read_whole(first.pid) else {
        let words = format!("process {} has ended while it was looked at", first.pid);
        seen.reach = MonitorReach::Gone { words };
        seen.met = Met::Seen;
        return;
    };
    (seen.process, seen.earlier) = (Some(now), Some((first, began.elapsed())));
}

/// Looks at one side.
async fn side(at: &ObservedMonitor, lasting: Duration) -> SideLooks {
    let (name, began) = (at.to_string(), Instant::now());
    let look = |pid: u32| Some((ProcessLook::read(pid)?, Instant::now()));
    let known = at.pid().and_then(look);
    let (met, pid) = meet(at, QmpOptions::labelled(name.as_str())).await;
    let first = known.or_else(|| pid.and_then(look));
    let mut seen = match met {
        Ok(client) => {
            let mut seen = ask(name, &client, lasting, Patience::with(at)).await;
            (seen.is_direct, seen.is_wanted) = (is_direct(at), is_wanted(at));
            seen
        }
        Err(reach) => {
            // the process of a monitor that is silent is looked at twice as well
            if first.is_some() {
                sleep(lasting.saturating_sub(began.elapsed()).max(SILENT)).await;
            }
            let met = if left_socket(at) { Met::LeftSocket } else { Met::Never };
            SideLooks { met, ..SideLooks::new(name, reach) }
        }
    };
    if let MonitorReach::Gone { words } = &seen.reach {
        // a side that has greeted
        if !seen.version.is_empty() {
            seen.reach = closed(at, words.clone()).await;
        }
    }
    if let Some((first, began)) = first {
        again(&mut seen, first, began);
    }
    seen
}

/// Whether nothing lies between this program and QEMU but the kernel, or ssh.
pub(super) fn is_direct(at: &ObservedMonitor) -> bool {
    matches!(at, ObservedMonitor::Endpoint(Endpoint::Address(_)))
}

/// Whether another client waits for this monitor, which serves one at a time.
pub(super) fn is_wanted(at: &ObservedMonitor) -> bool {
    matches!(at, ObservedMonitor::Endpoint(endpoint) if MonitorHolders::is_waited_for(endpoint))
}

/// Whether there is a socket at the path of a monitor.
fn left_socket(at: &ObservedMonitor) -> bool {
    match at {
        ObservedMonitor::Endpoint(Endpoint::Address(Address::Unix(path))) => {
            std::fs::metadata(path).is_ok_and(|data| data.file_type().is_socket())
        }
        _ => false,
    }
}

/// Asks a QEMU that has greeted, until the time is over or it answers no more.
async fn ask(name: String, client: &QmpClient, lasting: Duration, patience: Patience) -> SideLooks {
    let mut seen = SideLooks::new(name, MonitorReach::Answers);
    seen.version = version(client);
    seen.lacks_oob = !patience.passed_on && client.greeting().is_some_and(|greeting| !greeting.offers_oob());
    let mut events = client.subscribe();
    let began = Instant::now();
    let mut disks = Vec::new();
    seen.began = Some(began.into_std());
    loop {
        let at = began.elapsed();
        match look(client, at, patience).await {
            Ok(look) => seen.looks.push(look),
            Err(error) => {
                seen.reach = match error {
                    ExecuteError::Refused { class, desc, .. } if patience.passed_on => not_passed_on(&class, desc),
                    error @ ExecuteError::Refused { .. } => refused(&seen.name, &error),
                    _ => unanswered(client, &mut seen, patience.answer).await,
                };
                return seen;
            }
        }
        let is_last = began.elapsed() >= lasting;
        if seen.looks.len() == 1 {
            once(client, &mut seen, patience).await;
            // each question through libvirt is a call of virsh
            if !patience.passed_on {
                disks = guest_queues::find(client, patience.answer).await;
            }
        }
        if seen.looks.len() == 1 || is_last {
            let at = began.elapsed();
            seen.queues.push((at, guest_queues::look(client, &disks, patience.answer).await));
        }
        if is_last {
            return seen;
        }
        count(&mut events, &mut seen, began + at + PAUSE).await;
    }
}

/// What it means that the program in between has not passed a question on.
pub(super) fn not_passed_on(class: &ErrorClass, words: String) -> MonitorReach {
    match class {
        ErrorClass::Other(class) if class == BARRED => MonitorReach::NoWay { words },
        _ => MonitorReach::Withheld { words },
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
            StreamItem::Event(event) => seen.job_errors.event(&event.name, &event.data),
            // what was lost was of any kind, and errors that come so fast are also among those that were not lost
            StreamItem::Lagged(_) => {}
            StreamItem::Closed(_) => return sleep_until(until).await,
        }
    }
}

/// One look, or why there is none.
pub(super) async fn look(client: &QmpClient, at: Duration, patience: Patience) -> Result<MonitorLook, ExecuteError> {
    let mut look = MonitorLook { at, ..MonitorLook::default() };
    // QEMU answers in the order of the questions, so all of them can be under way
    let names = if patience.passed_on { &LOOKED_AT[..TOLD_THROUGH_OTHERS] } else { &LOOKED_AT[..] };
    let start = |name: &&'static str| client.start(QmpRequest::named(*name), patience.answer);
    let asked: Vec<_> = names.iter().map(start).collect();
    for (number, (name, answer)) in names.iter().zip(asked).enumerate() {
        match answer.await {
            Ok(mut answer) => {
                bound(&mut answer);
                look.take(name, &answer);
            }
            Err(error) if number < NEEDED => return Err(error),
            Err(_) => {}
        }
    }
    Ok(look)
}

/// Asks for what stays the same while a diagnosis lasts.
async fn once(client: &QmpClient, seen: &mut SideLooks, patience: Patience) {
    let requests = ONCE.into_iter().map(QmpRequest::named);
    ask_for(client, requests.chain([nodes()]), patience, |name, answer| seen.take(name, answer)).await;
    if seen.announces_nothing() {
        ask_for(client, cards(), patience, |name, answer| seen.take(name, answer)).await;
    }
}

/// The question for the machine's devices, among which its network cards are.
pub(super) fn cards() -> impl Iterator<Item = QmpRequest> {
    std::iter::once(QmpRequest::named("query-pci"))
}

/// Asks for several things at once. What is not answered is left out.
pub(super) async fn ask_for(
    client: &QmpClient,
    requests: impl Iterator<Item = QmpRequest>,
    patience: Patience,
    mut take: impl FnMut(&str, &Value),
) {
    let start = |request: QmpRequest| (request.name().to_owned(), client.start(request, patience.answer));
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
    let answer = client.execute_oob(&qapi::qmp::query_yank {}, OUT_OF_BAND).await;
    if let Ok(yanks) = &answer {
        seen.yanks = serde_json::to_value(yanks).map(|yanks| list(&yanks)).unwrap_or_default();
    }
    MonitorReach::Hangs { waited, oob: Some(answer.is_ok()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::DiagnosisCode;
    use std::process::Command;

    #[tokio::test]
    async fn a_process_that_ends_while_it_is_looked_at_is_said_to_have_ended() {
        let mut child = Command::new("sleep").arg("1").spawn().expect("a process");
        let pid = child.id();
        let reaped = std::thread::spawn(move || child.wait());
        let settings = DiagnoseSettings {
            pid: Some(pid),
            lasting: Duration::from_secs(2),
            ..DiagnoseSettings::new([] as [Address; 0])
        };
        let told = diagnose(&settings).await.expect("a diagnosis");
        reaped.join().expect("a thread").expect("an end");
        let cause = told.causes.first().expect("a cause");
        assert_eq!(cause.code, DiagnosisCode::SourceGone);
        assert!(cause.evidence[0].contains(&format!("process {pid} has ended")), "{cause:#?}");
    }

    #[tokio::test]
    async fn a_process_that_is_no_qemu_is_said_to_be_none() {
        let mut child = Command::new("sleep").arg("9").spawn().expect("a process");
        let pid = Some(child.id());
        let settings =
            DiagnoseSettings { pid, lasting: Duration::from_secs(2), ..DiagnoseSettings::new([] as [Address; 0]) };
        let told = diagnose(&settings).await.expect("a diagnosis");
        child.kill().and_then(|()| child.wait()).expect("an end");
        assert!(told.unseen.iter().any(|words| words.contains("(sleep) is no QEMU")), "{told:#?}");
    }
}
