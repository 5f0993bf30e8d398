//! All that was seen of a migration: one side or both, several times.
//!
//! Pure.

use super::{
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
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// The least time over which a status that does not change counts as kept. Each of the states in which a migration can
/// be stuck passes in a fraction of a second where nothing is wrong.
pub(super) const KEPT: Duration = Duration::from_secs(2);
/// The base class of network controllers in PCI.
const NETWORK: u64 = 2;
/// The part of its limit above which a rate counts as held down by the limit.
pub(super) const AT_LIMIT: f64 = 0.85;

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

/// One side.
#[derive(Debug, Clone)]
pub(super) struct SideLooks {
    /// The address, or the process.
    pub(super) name: String,
    pub(super) reach: MonitorReach,
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
    /// How many events BLOCK_JOB_ERROR came while the side was looked at.
    pub(super) job_errors: u64,
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
            version: String::new(),
            uuid: None,
            capabilities: BTreeSet::new(),
            parameters: Map::new(),
            nodes: Vec::new(),
            graph: BlockGraph::default(),
            yanks: Vec::new(),
            looks: Vec::new(),
            began: None,
            job_errors: 0,
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

    /// Whether any look tells of a migration that comes in.
    pub(super) fn receives(&self) -> bool {
        self.looks.iter().any(|look| look.run == Some(RunState::InMigrate))
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

    pub(super) fn sides(&self) -> impl Iterator<Item = (Side, &SideLooks)> {
        let source = self.source.iter().map(|side| (Side::Source, side));
        source.chain(self.destination.iter().map(|side| (Side::Destination, side)))
    }
}
