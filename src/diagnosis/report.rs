//! The result of a diagnosis.

use super::{
    cause::Cause,
    look::JobLook,
    pair::{MonitorReach, PairLooks, SideLooks},
    process_report::ProcessReport,
    rules,
    side_identity::SideIdentity,
};
use crate::{
    progress::Side,
    qemu::reply::{MigrationRamStats, MigrationStatus},
    quantity::{Bytes, Rate},
};
use serde::Serialize;
use std::time::Duration;

/// QEMU counts the sync before the first pass, and measures from one sync to the next.
const MEASURED: u64 = 2;

/// What is wrong with a migration, best cause first.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// One line: what the migration waits for, or that nothing wrong was found.
    pub verdict: String,
    /// The causes, the most certain one first; empty where nothing wrong was found.
    pub causes: Vec<Cause>,
    /// The source, as far as it was looked at.
    pub source: Option<SideReport>,
    /// The destination.
    pub destination: Option<SideReport>,
    /// What could not be looked at, and what would be needed.
    pub unseen: Vec<String>,
    /// Whether the guest was moved, where a recording of the engine's was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved: Option<bool>,
    /// What else there is to know about the way in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One side, in numbers. Rates are over the time that was looked.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SideReport {
    /// The address or the process.
    pub address: String,
    /// Whether the monitor answers: `answers`, `hangs`, `greets` and answers nothing, `silent` without a greeting,
    /// `withheld` by libvirt, `gone`, `no-way` to it, or `not-asked`.
    pub monitor: String,
    /// QEMU's version.
    pub version: Option<String>,
    /// The run state.
    pub run_state: Option<String>,
    /// The status of the migration.
    pub migration: Option<String>,
    /// The guest's RAM, bytes.
    pub ram_total: Option<u64>,
    /// The passes over RAM so far.
    pub passes: Option<u64>,
    /// RAM that was sent, bytes.
    pub transferred: Option<u64>,
    /// RAM yet to send at each look, bytes.
    pub remaining: Vec<u64>,
    /// RAM sent from each look to the next, bytes per second.
    pub bandwidths: Vec<u64>,
    /// RAM dirtied by the guest, bytes per second, as QEMU had measured it at each look; empty before QEMU has.
    pub dirty_rates: Vec<u64>,
    /// RAM sent, bytes per second.
    pub bandwidth: Option<u64>,
    /// RAM dirtied by the guest, bytes per second, as QEMU last measured it; absent in the first pass, before QEMU has.
    pub dirty_rate: Option<u64>,
    /// The limit of the bandwidth, bytes per second; absent without one.
    pub bandwidth_limit: Option<u64>,
    /// The pause that QEMU expects, milliseconds.
    pub expected_downtime_ms: Option<u64>,
    /// The pause that QEMU has made, milliseconds, once the migration is over.
    pub downtime_ms: Option<u64>,
    /// The pause that QEMU may make, milliseconds.
    pub downtime_limit_ms: Option<u64>,
    /// The throttle of the guest's vCPUs, per cent.
    pub throttle_pct: Option<u64>,
    /// The mirrors.
    pub mirrors: Vec<MirrorReport>,
    /// The ids of the exports.
    pub exports: Vec<String>,
    /// The process.
    pub pid: Option<u32>,
    /// The state of its main thread.
    pub process_state: Option<String>,
    /// What the kernel tells of the process.
    pub process: Option<ProcessReport>,
    /// By what the side is known again.
    #[serde(skip)]
    pub(crate) identity: SideIdentity,
}

/// A mirror, in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MirrorReport {
    /// The job's id.
    pub id: String,
    /// The job's status.
    pub status: String,
    /// Bytes copied.
    pub copied: u64,
    /// Bytes to copy in all.
    pub total: u64,
    /// Bytes per second over the time that was looked.
    pub rate: u64,
    /// The job's own limit, bytes per second; absent without one.
    pub limit: Option<u64>,
    /// Bytes yet to copy at each look.
    pub remaining: Vec<u64>,
    /// Whether the target has caught up once.
    pub ready: bool,
}

impl Diagnosis {
    pub(super) fn of(looks: &PairLooks, unseen: Vec<String>) -> Self {
        Self::with(looks, rules::causes(looks), unseen)
    }

    /// A diagnosis of these looks with these causes.
    pub(super) fn with(looks: &PairLooks, causes: Vec<Cause>, unseen: Vec<String>) -> Self {
        let verdict = match causes.first() {
            Some(cause) => cause.verdict(),
            None => healthy(looks),
        };
        let of_side = |side: &Option<SideLooks>| side.as_ref().map(SideReport::of);
        let (source, destination) = (of_side(&looks.source), of_side(&looks.destination));
        Self { verdict, causes, source, destination, unseen, moved: None, notes: Vec::new() }
    }

    /// A side, as far as it was looked at.
    pub(crate) fn side(&self, side: Side) -> Option<&SideReport> {
        match side {
            Side::Source => self.source.as_ref(),
            Side::Destination => self.destination.as_ref(),
        }
    }

    /// Whether nothing wrong was found, and, where a recording of the engine's was read, the guest was moved.
    pub fn is_healthy(&self) -> bool {
        self.causes.is_empty() && self.moved != Some(false)
    }

    /// Leaves every remedy as advice: what was seen is over, or another program's.
    #[cfg(feature = "cli")] // the command alone reads recordings
    pub(super) fn leave_remedies_to_people(&mut self) {
        self.causes.iter_mut().for_each(|cause| cause.fixable = false);
    }
}

/// What a migration does that nothing is wrong with, and the time left.
fn healthy(looks: &PairLooks) -> String {
    if looks.has_moved() {
        return "The guest has moved: it runs on the destination.".to_owned();
    }
    if let Some((side, MonitorReach::Gone { words } | MonitorReach::NoWay { words })) = looks
        .sides()
        .map(|(side, seen)| (side, &seen.reach))
        .find(|(_, reach)| matches!(reach, MonitorReach::Gone { .. } | MonitorReach::NoWay { .. }))
    {
        return format!("Nothing wrong found on the side that was seen; nothing is known of the {side}: {words}.");
    }
    let Some(source) = &looks.source else {
        return "Nothing wrong found on this side; the source tells more.".to_owned();
    };
    if source.looks.is_empty() {
        return "Nothing wrong found with the process; its monitor was not asked.".to_owned();
    }
    let report = SideReport::of(source);
    let untold = source.mirrors().filter(|mirror| !mirror.ready).filter_map(|mirror| {
        let between = mirror.untold(source.span())?;
        Some((mirror, between.as_secs_f64().mul_add(2.0, 1.0).ceil()))
    });
    if let Some((mirror, needed)) = untold.max_by(|(_, one), (_, other)| one.total_cmp(other)) {
        return format!(
            "Nothing wrong was seen, and that is too early to tell: at its limit of {} the mirror {} copies in bursts; \
             look for {needed:.0} s.",
            Rate(mirror.speed),
            mirror.device
        );
    }
    let found =
        if source.lasted() { "Nothing wrong found" } else { "Nothing wrong seen yet, and it is too early to tell" };
    let copying: u64 = source.mirrors().filter(|mirror| !mirror.ready).map(JobLook::remaining).sum();
    let rate: u64 = report.mirrors.iter().map(|mirror| mirror.rate).sum();
    if copying > 0 {
        let left = time_left(copying, rate);
        return format!("{found}: {} of disks are left to copy at {}{left}.", Bytes(copying), Rate(rate));
    }
    match source.status() {
        Some(MigrationStatus::Active) => {
            let remaining = report.remaining.last().copied().unwrap_or_default();
            let rate = report.bandwidth.unwrap_or_default();
            let left = match report.dirty_rate {
                Some(dirty_rate) => time_left(remaining, rate.saturating_sub(dirty_rate)),
                None => ", in the first pass: how fast the guest dirties RAM is not known yet".to_owned(),
            };
            format!("{found}: {} of RAM are left to send at {}{left}.", Bytes(remaining), Rate(rate))
        }
        Some(MigrationStatus::None) | None if source.mirrors().next().is_some() => {
            "Nothing wrong found: every mirror is ready, and RAM has not been begun.".to_owned()
        }
        Some(MigrationStatus::None) | None => "Nothing wrong found: no migration is under way.".to_owned(),
        Some(status) => format!("Nothing wrong found: the migration is {status}."),
    }
}

/// The time that this many bytes take, as the end of a sentence; nothing where the rate says nothing.
fn time_left(bytes: u64, rate: u64) -> String {
    match bytes.checked_div(rate) {
        Some(seconds) => format!(", about {seconds} s left"),
        None => String::new(),
    }
}

/// What the guest dirties, once QEMU has measured it.
fn dirty_rate(ram: &MigrationRamStats) -> Option<u64> {
    let is_measured = ram.dirty_sync_count >= MEASURED || ram.dirty_pages_rate > 0;
    is_measured.then(|| ram.dirty_pages_rate.saturating_mul(ram.page_size))
}

/// RAM sent from each look to the next.
fn bandwidths(side: &SideLooks) -> Vec<u64> {
    let sent = side.looks.iter().filter_map(|look| Some((look.at, look.migration.ram.as_ref()?.transferred)));
    let sent: Vec<(Duration, u64)> = sent.collect();
    let rate = |pair: &[(Duration, u64)]| {
        let seconds = pair[1].0.saturating_sub(pair[0].0).as_secs_f64();
        (seconds > 0.0).then(|| (pair[1].1.saturating_sub(pair[0].1) as f64 / seconds) as u64)
    };
    sent.windows(2).filter_map(rate).collect()
}

impl SideReport {
    fn of(side: &SideLooks) -> Self {
        let seconds = side.span().as_secs_f64();
        let rate = |now: u64, first: u64| match seconds > 0.0 {
            true => (now.saturating_sub(first) as f64 / seconds) as u64,
            false => 0,
        };
        let ram = side.migration().and_then(|migration| migration.ram.as_ref());
        // RAM may have begun while the side was looked at
        let begun = side.looks.iter().find_map(|look| Some((look.at, look.migration.ram.as_ref()?)));
        let bandwidth = ram.zip(begun).zip(side.last()).and_then(|((now, (at, first)), last)| {
            let seconds = last.at.saturating_sub(at).as_secs_f64();
            (seconds > 0.0).then(|| (now.transferred.saturating_sub(first.transferred) as f64 / seconds) as u64)
        });
        let positive = |name: &str| side.parameter(name).filter(|&limit| limit > 0);
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Self {
            address: side.name.clone(),
            monitor: side.reach.word().to_owned(),
            version: text(&side.version),
            run_state: side.run().map(ToString::to_string),
            migration: side.status().map(ToString::to_string),
            ram_total: ram.map(|ram| ram.total),
            passes: ram.map(|ram| ram.dirty_sync_count),
            transferred: ram.map(|ram| ram.transferred),
            remaining: side.looks.iter().filter_map(|look| Some(look.migration.ram.as_ref()?.remaining)).collect(),
            bandwidths: bandwidths(side),
            dirty_rates: side.looks.iter().filter_map(|look| dirty_rate(look.migration.ram.as_ref()?)).collect(),
            bandwidth,
            dirty_rate: ram.and_then(dirty_rate),
            bandwidth_limit: positive("max-bandwidth"),
            expected_downtime_ms: side.migration().and_then(|migration| migration.expected_downtime),
            downtime_ms: side.migration().and_then(|migration| migration.downtime),
            downtime_limit_ms: side.parameter("downtime-limit"),
            throttle_pct: side.migration().and_then(|migration| migration.cpu_throttle_percentage),
            mirrors: side
                .mirrors()
                .map(|now| MirrorReport {
                    id: now.device.clone(),
                    status: now.status.clone(),
                    copied: now.offset,
                    total: now.len,
                    rate: side.at_first(&now.device).map_or(0, |first| rate(now.offset, first.offset)),
                    limit: Some(now.speed).filter(|&speed| speed > 0),
                    remaining: side.remaining(&now.device),
                    ready: now.ready,
                })
                .collect(),
            exports: side.last().into_iter().flat_map(|look| &look.exports).map(|export| export.id.clone()).collect(),
            pid: side.process.as_ref().map(|process| process.pid),
            process_state: side.process.as_ref().map(|process| match process.held() {
                Some(held) => held.to_owned(),
                None => process.state.to_string(),
            }),
            process: side.process.as_ref().map(|process| ProcessReport::of(process, side.earlier.as_ref())),
            identity: SideIdentity::of(side),
        }
    }
}
