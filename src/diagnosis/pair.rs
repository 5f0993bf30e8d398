//! All that was seen of a migration: one side or both, several times.
//!
//! Pure.

use super::{
    cause::Confidence,
    guest_queues::QueueLook,
    look::{JobLook, KEPT_OF_LIST, MonitorLook, NodeLook, YankLook, list},
    mirror_nodes,
    process::{ConnectionLook, ConnectionState, MonitorHolders, ProcessLook},
};
use crate::{
    progress::Side,
    qemu::reply::{BlockGraph, MigrationCapabilityStatus, MigrationInfo, MigrationStatus, RunState},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// The least time over which a status that does not change counts as kept. Each of the states in which a migration can
/// be stuck passes in a fraction of a second where nothing is wrong.
pub(super) const KEPT: Duration = Duration::from_secs(2);
/// The base class of network controllers in PCI.
const NETWORK: u64 = 2;
/// The part of its limit above which a rate counts as held down by the limit.
pub(super) const AT_LIMIT: f64 = 0.85;

/// The UUID of a guest that was given none.
const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";

/// How far the monitor of a side could be reached.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum MonitorReach {
    /// QEMU answers.
    Answers,
    /// Commands are not answered in band; with the time that was waited.
    Hangs {
        waited: Duration,
        /// Whether an out-of-band command was answered; `None` where the monitor has none.
        oob: Option<bool>,
    },
    /// QEMU has greeted, and has left the first command unanswered. The thread of the monitor greets, and the main loop
    /// answers, so out-of-band execution cannot be negotiated any more.
    Greets { words: String },
    /// A connection was made, and QEMU has not greeted.
    NoGreeting { words: String, holders: MonitorHolders },
    /// libvirt does not pass the questions on: it waits for QEMU, or for its own lock.
    Withheld { words: String },
    /// Nobody listens there.
    Gone { words: String },
    /// The way to the monitor is broken, which says nothing about QEMU.
    NoWay { words: String },
    /// Nobody has asked: only the process is looked at.
    NotAsked,
}

impl MonitorReach {
    /// One word for programs.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Answers => "answers",
            Self::Hangs { .. } => "hangs",
            Self::Greets { .. } => "greets",
            Self::NoGreeting { .. } => "silent",
            Self::Withheld { .. } => "withheld",
            Self::NoWay { .. } => "no-way",
            Self::Gone { .. } => "gone",
            Self::NotAsked => "not-asked",
        }
    }
}

/// Whether a side was ever seen, and so how much its absence tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    /// It has answered, or its process was seen.
    Seen,
    /// There is a socket at its path at which nobody listens, as a QEMU leaves it behind that was killed.
    LeftSocket,
    /// Nothing: a wrong address looks the same.
    Never,
}

/// Jobs of which errors are counted; QEMU has no bound.
const JOBS_WITH_ERRORS: usize = 256;

/// Counts of the events BLOCK_JOB_ERROR, by the job that each names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct JobErrors(BTreeMap<String, u64>);

impl JobErrors {
    /// Counts an event of QEMU, if it is such an error.
    pub(super) fn event(&mut self, name: &str, data: &Value) {
        if let Some(job) = data.get("device").and_then(Value::as_str).filter(|_| name == "BLOCK_JOB_ERROR") {
            self.add(job, 1);
        }
    }

    /// Counts errors of a job.
    pub(super) fn add(&mut self, job: &str, errors: u64) {
        if let Some(count) = self.0.get_mut(job) {
            *count = count.saturating_add(errors);
        } else if self.0.len() < JOBS_WITH_ERRORS {
            self.0.insert(job.to_owned(), errors);
        }
    }

    /// Adds all that another count has.
    pub(super) fn add_all(&mut self, other: &Self) {
        other.0.iter().for_each(|(job, errors)| self.add(job, *errors));
    }

    /// The errors of a job.
    pub(super) fn of(&self, job: &str) -> u64 {
        self.0.get(job).copied().unwrap_or_default()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One side.
#[derive(Debug, Clone)]
pub(super) struct SideLooks {
    /// The address, or the process.
    pub(super) name: String,
    pub(super) reach: MonitorReach,
    pub(super) met: Met,
    /// QEMU's version, as the greeting tells it.
    pub(super) version: String,
    pub(super) uuid: Option<String>,
    /// The names of the capabilities of migrations that are on.
    pub(super) capabilities: BTreeSet<String>,
    pub(super) parameters: Map<String, Value>,
    pub(super) nodes: Vec<NodeLook>,
    /// Which node uses which, where QEMU tells.
    pub(super) graph: BlockGraph,
    pub(super) yanks: Vec<YankLook>,
    pub(super) looks: Vec<MonitorLook>,
    /// The moment from which the times of the looks count, where that is known.
    pub(super) began: Option<Instant>,
    /// The events BLOCK_JOB_ERROR that came while the side was looked at, by their job.
    pub(super) job_errors: JobErrors,
    /// The last look at the process, where the process is known.
    pub(super) process: Option<ProcessLook>,
    /// An earlier look at the same process, and how long before.
    pub(super) earlier: Option<(ProcessLook, Duration)>,
    /// Whether QEMU's own monitor has greeted without out-of-band execution.
    pub(super) lacks_oob: bool,
    /// Whether the monitor's one client is the program that looks, and no other program in between.
    pub(super) is_direct: bool,
    /// Whether another client waits for the monitor while this one has it.
    pub(super) is_wanted: bool,
    /// Looks at the queues of the guest's disks, the time since the first look with each.
    pub(super) queues: Vec<(Duration, Vec<QueueLook>)>,
    /// Whether the machine has a network card; looked for where QEMU announces nothing by itself.
    pub(super) has_network_card: bool,
}

impl SideLooks {
    pub(super) fn new(name: String, reach: MonitorReach) -> Self {
        Self {
            name,
            reach,
            met: Met::Seen,
            version: String::new(),
            uuid: None,
            capabilities: BTreeSet::new(),
            parameters: Map::new(),
            nodes: Vec::new(),
            graph: BlockGraph::default(),
            yanks: Vec::new(),
            looks: Vec::new(),
            began: None,
            job_errors: JobErrors::default(),
            process: None,
            earlier: None,
            lacks_oob: false,
            is_direct: false,
            is_wanted: false,
            queues: Vec::new(),
            has_network_card: false,
        }
    }

    /// Takes the answer to a command in that is asked once, because what it tells stays the same.
    pub(super) fn take(&mut self, command: &str, answer: &Value) {
        match command {
            "query-uuid" => self.uuid = answer.get("UUID").and_then(Value::as_str).map(str::to_owned),
            "query-migrate-capabilities" => {
                let all: Vec<MigrationCapabilityStatus> = list(answer);
                self.capabilities = all.into_iter().filter(|one| one.state).map(|one| one.capability).collect();
            }
            "query-migrate-parameters" => self.parameters = answer.as_object().cloned().unwrap_or_default(),
            "x-debug-query-block-graph" => self.graph = graph(answer),
            "query-yank" => self.yanks = list(answer),
            "query-named-block-nodes" => self.nodes = list(answer),
            "query-pci" => self.has_network_card = has_network_card(answer),
            _ => {}
        }
    }

    pub(super) fn first(&self) -> Option<&MonitorLook> {
        self.looks.first()
    }

    pub(super) fn last(&self) -> Option<&MonitorLook> {
        self.looks.last()
    }

    /// The time between the first and the last look.
    pub(super) fn span(&self) -> Duration {
        let at = |look: Option<&MonitorLook>| look.map(|look| look.at).unwrap_or_default();
        at(self.last()).saturating_sub(at(self.first()))
    }

    /// The run state at the last look.
    pub(super) fn run(&self) -> Option<&RunState> {
        self.last()?.run.as_ref()
    }

    /// `query-migrate` at the last look.
    pub(super) fn migration(&self) -> Option<&MigrationInfo> {
        self.last().map(|look| &look.migration)
    }

    /// The status of the migration at the last look.
    pub(super) fn status(&self) -> Option<&MigrationStatus> {
        self.migration()?.status.as_ref()
    }

    /// Whether the looks lie far enough apart to tell slow from stuck.
    pub(super) fn lasted(&self) -> bool {
        self.span() >= KEPT
    }

    /// Whether every look saw this status, for long enough.
    pub(super) fn kept(&self, status: &MigrationStatus) -> bool {
        let same = |look: &MonitorLook| look.migration.status.as_ref() == Some(status);
        self.lasted() && self.looks.iter().all(same)
    }

    /// Whether every look saw a guest that stands still, and not by its own doing.
    pub(super) fn stood(&self) -> bool {
        let stands = |look: &MonitorLook| {
            look.run.as_ref().is_some_and(|run| {
                matches!(
                    run,
                    RunState::Paused
                        | RunState::FinishMigrate
                        | RunState::PostMigrate
                        | RunState::Prelaunch
                        | RunState::InMigrate
                )
            })
        };
        !self.looks.is_empty() && self.looks.iter().all(stands)
    }

    pub(super) fn runs(&self) -> bool {
        self.run() == Some(&RunState::Running)
    }

    /// The mirrors at the last look.
    pub(super) fn mirrors(&self) -> impl Iterator<Item = &JobLook> {
        self.last().into_iter().flat_map(|look| &look.mirrors).filter(|job| job.kind == "mirror" || job.kind.is_empty())
    }

    /// A job at the first look.
    pub(super) fn at_first(&self, device: &str) -> Option<&JobLook> {
        self.first()?.mirrors.iter().find(|job| job.device == device)
    }

    /// The bytes that a job has yet to copy, at each look that saw the job.
    pub(super) fn remaining(&self, device: &str) -> Vec<u64> {
        let jobs = self.looks.iter().filter_map(|look| look.mirrors.iter().find(|job| job.device == device));
        jobs.map(JobLook::remaining).collect()
    }

    /// Whether QEMU has been told to announce nothing where a guest arrives.
    pub(super) fn announces_nothing(&self) -> bool {
        self.parameter("announce-rounds") == Some(0)
    }

    /// A parameter of migrations that is a number.
    pub(super) fn parameter(&self, name: &str) -> Option<u64> {
        self.parameters.get(name).and_then(Value::as_u64)
    }

    /// The connections to NBD servers, or all others, that are in this state.
    pub(super) fn connections(&self, nbd: bool, state: ConnectionState) -> impl Iterator<Item = &ConnectionLook> {
        let of_nbd =
            move |connection: &ConnectionLook| self.nodes.iter().any(|node| node.leads_to(connection.remote_port));
        let all = self.process.iter().flat_map(|process| &process.connections);
        all.filter(move |connection| connection.state == state && of_nbd(connection) == nbd)
    }

    /// The connections in this state that are a mirror's alone; those to all NBD servers where QEMU does not tell whose
    /// they are.
    pub(super) fn of_mirror(&self, job: &str, state: ConnectionState) -> Vec<&ConnectionLook> {
        let own = self.mirror_nodes(job);
        let nodes = self.nodes.iter().filter(move |node| own.is_empty() || own.contains(&node.node_name));
        let nodes: Vec<&NodeLook> = nodes.collect();
        let all = self.process.iter().flat_map(|process| &process.connections);
        let is_own = |connection: &&ConnectionLook| nodes.iter().any(|node| node.leads_to(connection.remote_port));
        all.filter(|connection| connection.state == state).filter(is_own).collect()
    }

    /// The names of the nodes that are a mirror's alone; empty where QEMU does not tell.
    pub(super) fn mirror_nodes(&self, job: &str) -> BTreeSet<String> {
        mirror_nodes::of_mirror_alone(&self.graph, job)
    }

    /// The connections, other than to NBD servers, whose peer does not acknowledge what was sent; in words.
    pub(super) fn unacknowledged(&self) -> Vec<String> {
        in_words(self.connections(false, ConnectionState::Established))
    }

    /// The connections of a mirror whose peer does not acknowledge what was sent; in words.
    pub(super) fn unacknowledged_of_mirror(&self, job: &str) -> Vec<String> {
        in_words(self.of_mirror(job, ConnectionState::Established).into_iter())
    }

    /// The connections of this side that a mirror of it, and nothing else, writes to, as arguments of `yank`.
    pub(super) fn yanks_of_mirror(&self, job: &str) -> Vec<Value> {
        let own = self.mirror_nodes(job);
        let is_own = |yank: &&YankLook| matches!(yank, YankLook::BlockNode { node_name } if own.contains(node_name));
        self.yanks.iter().filter(is_own).filter_map(YankLook::instance).collect()
    }

    /// Whether any look tells of a migration that leaves this side.
    pub(super) fn sends(&self) -> bool {
        self.looks.iter().any(|look| look.migration.ram.is_some())
            || self.mirrors().next().is_some() && self.run() != Some(&RunState::InMigrate)
    }

    /// Whether any look tells of a migration that comes in, or has come in.
    pub(super) fn receives(&self) -> bool {
        self.looks.iter().any(|look| look.run == Some(RunState::InMigrate)) || self.has_arrived()
    }

    /// Whether a migration has come in to its end. QEMU tells of RAM on the side alone that has sent it.
    pub(super) fn has_arrived(&self) -> bool {
        let is_over = |migration: &MigrationInfo| migration.status == Some(MigrationStatus::Completed);
        self.last().is_some_and(|look| look.is_whole && is_over(&look.migration) && look.migration.ram.is_none())
    }

    /// Whether RAM or disks leave this side while it is looked at: then there is somebody who takes them.
    pub(super) fn flows(&self) -> bool {
        let sent = |look: &MonitorLook| look.migration.ram.as_ref().map(|ram| ram.transferred);
        let is_active = self.status() == Some(&MigrationStatus::Active);
        let ram = self.first().and_then(sent).zip(self.last().and_then(sent)).is_some_and(|(then, now)| now > then);
        let grows = |job: &JobLook| self.at_first(&job.device).is_some_and(|first| job.offset > first.offset);
        is_active && ram || self.mirrors().any(grows)
    }
}

/// Whether an answer to `query-pci`, or a part of one, has a device of the class of network cards.
fn has_network_card(answer: &Value) -> bool {
    // behind bridges there are further devices; QEMU nests them to any depth
    let mut left = vec![answer];
    while let Some(part) = left.pop() {
        match part {
            Value::Array(parts) => left.extend(parts),
            Value::Object(members) => {
                if part["class_info"]["class"].as_u64().is_some_and(|class| class >> 8 == NETWORK) {
                    return true;
                }
                left.extend(members.values());
            }
            _ => {}
        }
    }
    false
}

/// The block graph, unless it is so large that a part of it was cut: that part may use what the rest seems not to.
fn graph(answer: &Value) -> BlockGraph {
    let is_whole =
        |list: &str| answer.get(list).and_then(Value::as_array).is_some_and(|list| list.len() < KEPT_OF_LIST);
    match is_whole("nodes") && is_whole("edges") {
        true => BlockGraph::deserialize(answer).unwrap_or_default(),
        false => BlockGraph::default(),
    }
}

/// The connections on which bytes wait to be acknowledged, each in words.
fn in_words<'a>(connections: impl Iterator<Item = &'a ConnectionLook>) -> Vec<String> {
    let stuck = connections.filter(|connection| connection.unsent > 0);
    stuck
        .map(|ConnectionLook { unsent, remote, retransmits, .. }| {
            format!("{unsent} bytes wait to be acknowledged by {remote}, sent again {retransmits} times")
        })
        .collect()
}

/// A migration.
#[derive(Debug, Clone, Default)]
pub(super) struct PairLooks {
    pub(super) source: Option<SideLooks>,
    pub(super) destination: Option<SideLooks>,
}

impl PairLooks {
    /// Finds out which side is which. What QEMU tells decides; the order in which the sides were given does where
    /// QEMU's answers leave it open.
    pub(super) fn of(sides: Vec<SideLooks>) -> Self {
        let mut sides = sides.into_iter();
        match (sides.next(), sides.next()) {
            (Some(one), Some(other)) => {
                let swapped = one.receives() && !one.sends() || other.sends() && !other.receives() && !one.sends();
                let (source, destination) = if swapped { (other, one) } else { (one, other) };
                Self { source: Some(source), destination: Some(destination) }
            }
            (Some(only), None) if only.receives() && !only.sends() => Self { source: None, destination: Some(only) },
            (source, _) => Self { source, destination: None },
        }
    }

    /// Whether the guest runs on the destination, which has all of it, and the source is done.
    pub(super) fn has_moved(&self) -> bool {
        let arrived = self.destination.as_ref().is_some_and(|side| side.has_arrived() && side.runs());
        arrived
            && self.source.as_ref().is_none_or(|source| match &source.reach {
                MonitorReach::Gone { .. } => true,
                _ => source.status() == Some(&MigrationStatus::Completed) && !source.runs(),
            })
    }

    /// What proves that both sides are one guest's, and how surely; an error where that is not known, or is not so.
    pub(super) fn one_guest(&self) -> Result<(Confidence, String), String> {
        let (Some(source), Some(destination)) = (&self.source, &self.destination) else {
            return Err("only one side was looked at".to_owned());
        };
        let pid = |side: &SideLooks| side.process.as_ref().map(|process| process.pid);
        if let Some(pid) = pid(source).filter(|source| pid(destination) == Some(*source)) {
            return Err(format!("both monitors are those of process {pid}"));
        }
        let uuid = |side: &SideLooks| side.uuid.clone().filter(|uuid| uuid != NO_UUID);
        match (uuid(source), uuid(destination)) {
            (Some(one), Some(other)) if one == other => {
                return Ok((Confidence::Certain, format!("both have the UUID {one}")));
            }
            (Some(one), Some(other)) => return Err(format!("their UUIDs differ: {one} and {other}")),
            _ => {}
        }
        let leads = |from: &SideLooks, to: &SideLooks| {
            from.process.as_ref().zip(pid(to)).is_some_and(|(process, to)| process.peers().any(|peer| peer == to))
        };
        if leads(source, destination) || leads(destination, source) {
            return Ok((Confidence::Likely, "a connection leads from the one's process to the other's".to_owned()));
        }
        let has_sent = |look: &MonitorLook| {
            look.migration.status == Some(MigrationStatus::Completed) && look.migration.ram.is_some()
        };
        if source.last().is_some_and(has_sent) && destination.has_arrived() {
            let words = "the one has sent a guest to its end, and the other has taken one in";
            return Ok((Confidence::Likely, words.to_owned()));
        }
        Err("neither a UUID nor a connection nor a migration tells so".to_owned())
    }

    /// That two guests were given that are not known to be one, where that matters.
    pub(super) fn strangers(&self) -> Option<String> {
        let why = self.one_guest().err()?;
        let (source, destination) = self.source.as_ref().zip(self.destination.as_ref())?;
        let differ = source.uuid.as_ref().zip(destination.uuid.as_ref()).is_some_and(|(one, other)| one != other);
        let matters = differ || source.runs() && destination.runs();
        matters.then(|| format!("the two are not known to be one guest: {why}"))
    }

    pub(super) fn sides(&self) -> impl Iterator<Item = (Side, &SideLooks)> {
        let source = self.source.iter().map(|side| (Side::Source, side));
        source.chain(self.destination.iter().map(|side| (Side::Destination, side)))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Diagnosis, *};
    use crate::{
        codes::DiagnosisCode as Code,
        diagnosis::process::{ProgramLook, SocketPeer},
    };
    use serde_json::json;

    /// A side that says this for 3 s; `sent` is what RAM has left it at each look.
    fn side(run: &str, status: &str, sent: Option<[u64; 7]>) -> SideLooks {
        let mut side = SideLooks::new(format!("unix:/{run}"), MonitorReach::Answers);
        for number in 0..7 {
            let mut look = MonitorLook { at: Duration::from_millis(500 * number as u64), ..MonitorLook::default() };
            let ram = sent.map(|sent| json!({ "transferred": sent[number], "remaining": 9, "total": 99 }));
            look.take("query-status", &json!({ "status": run }));
            look.take("query-migrate", &json!({ "status": status, "ram": ram }));
            side.looks.push(look);
        }
        side
    }

    fn absent(met: Met) -> SideLooks {
        SideLooks {
            met,
            ..SideLooks::new("unix:/absent".to_owned(), MonitorReach::Gone { words: "no socket".to_owned() })
        }
    }

    fn both(source: SideLooks, destination: SideLooks) -> PairLooks {
        PairLooks { source: Some(source), destination: Some(destination) }
    }

    fn found(looks: &PairLooks) -> Vec<(Code, Confidence, bool)> {
        let diagnosis = Diagnosis::of(looks, Vec::new());
        diagnosis.causes.iter().map(|cause| (cause.code, cause.confidence, cause.fixable)).collect()
    }

    const FLOWS: Option<[u64; 7]> = Some([1, 2, 3, 4, 5, 6, 7]);
    const STANDS: Option<[u64; 7]> = Some([1; 7]);

    #[test]
    fn a_side_that_was_never_seen_is_not_surely_gone() {
        let first = |looks: PairLooks| found(&looks).into_iter().find(|(code, ..)| *code == Code::DestinationGone);
        for (met, flows, stands) in [
            // what was seen to answer, and does so no more, is gone, whatever was sent before
            (Met::Seen, Some(Confidence::Certain), Some((Confidence::Certain, true))),
            // a socket that a QEMU has left
            (Met::LeftSocket, None, Some((Confidence::Likely, true))),
            // a wrong path, which is never a reason to cancel
            (Met::Never, None, Some((Confidence::Possible, false))),
        ] {
            let told = first(both(side("running", "active", FLOWS), absent(met)));
            assert_eq!(told.map(|(_, confidence, _)| confidence), flows, "{met:?}");
            let told = first(both(side("finish-migrate", "pre-switchover", STANDS), absent(met)));
            assert_eq!(told.map(|(_, confidence, fixable)| (confidence, fixable)), stands, "{met:?}");
        }
        let healthy = Diagnosis::of(&both(side("running", "active", FLOWS), absent(Met::Never)), Vec::new());
        assert!(healthy.verdict.contains("nothing is known of the destination"), "{}", healthy.verdict);
    }

    #[test]
    fn the_end_of_a_good_migration_is_no_cause() {
        let arrived = || side("running", "completed", None);
        for source in [absent(Met::Seen), absent(Met::Never), side("postmigrate", "completed", FLOWS)] {
            let told = Diagnosis::of(&both(source, arrived()), Vec::new());
            assert!(told.is_healthy() && told.verdict.contains("has moved"), "{told:#?}");
        }
        let mut unreaped = absent(Met::Seen);
        unreaped.process = Some(ProcessLook { pid: 7, state: 'Z', ..ProcessLook::default() });
        assert_eq!(found(&both(unreaped.clone(), arrived())), []);
        // the same beside a destination that has not all of the guest
        let told = found(&both(unreaped, side("inmigrate", "active", None)));
        assert!(told.iter().any(|(code, ..)| *code == Code::ProcessStopped), "{told:?}");
    }

    #[test]
    fn two_guests_are_one_by_proof_alone() {
        let runs = || side("running", "none", None);
        let with_uuid = |uuid: &str| SideLooks { uuid: Some(uuid.to_owned()), ..runs() };
        let process = |pid, peer| {
            let peer =
                SocketPeer::Process { program: ProgramLook { pid: peer, program: "qemu".to_owned() }, held: None };
            let connections = vec![ConnectionLook { peer, ..ConnectionLook::default() }];
            Some(ProcessLook { pid, state: 'S', connections, ..ProcessLook::default() })
        };
        let joined = |peer| SideLooks { process: process(7, peer), ..runs() };
        let other = |pid| SideLooks { process: process(pid, 1), ..runs() };
        let sent = || side("running", "completed", FLOWS);
        for (one, two, confidence) in [
            (runs(), runs(), None),
            (with_uuid(NO_UUID), with_uuid(NO_UUID), None),
            (with_uuid("a"), with_uuid(NO_UUID), None),
            (with_uuid("a"), with_uuid("b"), None),
            (joined(9), other(8), None),
            // two monitors of one QEMU
            (
                SideLooks { uuid: Some("a".to_owned()), ..joined(9) },
                SideLooks { uuid: Some("a".to_owned()), ..other(7) },
                None,
            ),
            (with_uuid("a"), with_uuid("a"), Some(Confidence::Certain)),
            (joined(8), other(8), Some(Confidence::Likely)),
            (sent(), side("running", "completed", None), Some(Confidence::Likely)),
        ] {
            let looks = both(one, two);
            let told = found(&looks).into_iter().find(|(code, ..)| *code == Code::BothRunning);
            assert_eq!(told.map(|(_, confidence, _)| confidence), confidence, "{looks:?}");
            assert_eq!(looks.strangers().is_some(), confidence.is_none(), "{looks:?}");
        }
        let paused = || side("paused", "none", None);
        assert_eq!(found(&both(paused(), paused())), []);
    }

    #[test]
    fn a_guest_that_has_arrived_and_was_never_started_is_a_cause() {
        let arrived = |run: &str| PairLooks::of(vec![side(run, "completed", None)]);
        assert!(arrived("paused").source.is_none());
        assert_eq!(found(&arrived("paused")), [(Code::BothPaused, Confidence::Possible, false)]);
        assert_eq!(found(&arrived("running")), []);
        let alone = both(absent(Met::Seen), side("paused", "completed", None));
        assert!(found(&alone).contains(&(Code::BothPaused, Confidence::Likely, false)), "{:?}", found(&alone));
        // a source that has sent its guest tells of RAM
        assert!(PairLooks::of(vec![side("postmigrate", "completed", FLOWS)]).destination.is_none());
        // another cause may fit as well, and the verdict says so
        let verdict = Diagnosis::of(&arrived("paused"), Vec::new()).verdict;
        assert!(verdict.starts_with("Perhaps: "), "{verdict}");
    }
}
