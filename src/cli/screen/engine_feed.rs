//! The view as the engine feeds it: its events, and no second monitor.
//!
//! Pure.

use super::{
    super::plain_text::one_line,
    live_view::{LiveView, ROWS, SideRow, TransferRow, time_left},
};
use crate::{
    progress::{Event, EventKind, Phase, PhaseState, Side},
    quantity::{Bytes, Rate},
};
use std::{collections::BTreeMap, time::Duration};

/// The least time between two values of a curve, milliseconds.
const APART_MS: u64 = 250;

/// The limits that the user has set.
#[derive(Debug, Clone)]
pub(crate) struct EngineLimits {
    /// The addresses of source and destination.
    pub(crate) addresses: [String; 2],
    /// The budget of the blackout.
    pub(crate) budget: Duration,
    /// The ceiling on the wire, in bytes per second.
    pub(crate) bandwidth: Option<Rate>,
    /// The name of the policy.
    pub(crate) policy: String,
}

/// What the engine has said so far.
#[derive(Debug)]
pub(crate) struct EngineFeed {
    view: LiveView,
    limits: EngineLimits,
    phase: Option<Phase>,
    begun: BTreeMap<Phase, u64>,
    /// The last value of each curve, milliseconds.
    plotted: BTreeMap<String, u64>,
    ram: Vec<String>,
    predicted_ms: Option<u64>,
}

impl EngineFeed {
    pub(crate) fn new(limits: EngineLimits) -> Self {
        let sides = [Side::Source, Side::Destination].into_iter().zip(&limits.addresses);
        let sides = sides.map(|(side, address)| SideRow::new(side, address)).collect();
        let view = LiveView { verdict: "The migration begins.".to_owned(), sides, ..LiveView::default() };
        let mut feed = Self {
            view,
            limits,
            phase: None,
            begun: BTreeMap::new(),
            plotted: BTreeMap::new(),
            ram: Vec::new(),
            predicted_ms: None,
        };
        feed.tell();
        feed
    }

    /// The view as it is now.
    pub(crate) fn view(&self) -> &LiveView {
        &self.view
    }

    /// A line of the command's own.
    pub(crate) fn note(&mut self, text: &str) {
        self.view.log(String::new(), "qferry", text);
    }

    /// Lets time pass.
    pub(crate) fn at(&mut self, elapsed: Duration) {
        self.view.elapsed = elapsed.max(self.view.elapsed);
    }

    /// Takes an event in.
    pub(crate) fn take(&mut self, event: &Event) {
        let at = event.t_ms;
        self.at(Duration::from_millis(at));
        let time = format!("+{:.3}s", at as f64 / 1000.0);
        match &event.kind {
            EventKind::Phase { phase, state: PhaseState::Begin } => {
                self.phase = Some(*phase);
                self.begun.insert(*phase, at);
            }
            EventKind::Phase { phase, state: PhaseState::End } => {
                let took = at.saturating_sub(self.begun.get(phase).copied().unwrap_or(at));
                self.view.log(time, "qferry", &format!("{phase} took {took} ms"));
            }
            EventKind::Disk { disk, status, copied, total, ready, rate, eta_ms, .. } => {
                let left = total.saturating_sub(*copied);
                let note = match (ready, eta_ms) {
                    (true, _) => "ready".to_owned(),
                    (false, Some(ms)) => time_left(*ms, 1000).unwrap_or_default(),
                    (false, None) => status.clone(),
                };
                self.transfer(TransferRow {
                    name: one_line(disk),
                    left,
                    total: *total,
                    rate: *rate,
                    note: one_line(&note),
                });
                self.plot(&format!("{disk} left"), false, left, at);
            }
            EventKind::Memory {
                status, transferred, remaining, total, dirty_rate, bandwidth, throttle_pct, ..
            } => {
                let note = match &**status {
                    "active" => time_left(*remaining, bandwidth.saturating_sub(*dirty_rate)).unwrap_or_default(),
                    status => one_line(status),
                };
                let row =
                    TransferRow { name: "RAM".to_owned(), left: *remaining, total: *total, rate: *bandwidth, note };
                self.transfer(row);
                self.plot("RAM left", false, *remaining, at);
                self.plot("RAM sent", true, *bandwidth, at);
                self.plot("RAM dirtied", true, *dirty_rate, at);
                self.ram = vec![format!("dirtied {}", Rate(*dirty_rate)), format!("{} sent", Bytes(*transferred))];
                self.ram.extend((*throttle_pct > 0).then(|| format!("guest throttled by {throttle_pct} %")));
                if let EventKind::Memory { predicted_blackout_ms, .. } = &event.kind {
                    self.predicted_ms = *predicted_blackout_ms;
                }
            }
            EventKind::Image { image, doing, done, total, rate } => {
                let name = image.rsplit('/').next().unwrap_or(image);
                let name = one_line(&format!("{doing} {name}"));
                let left = total.saturating_sub(*done);
                let note = if left == 0 { "done".to_owned() } else { String::new() };
                self.transfer(TransferRow { name, left, total: *total, rate: rate.unwrap_or_default(), note });
            }
            EventKind::Action { action, because, .. } => self.view.log(time, "qferry", &format!("{action}: {because}")),
            EventKind::Warning { message, .. } => self.view.log(time, "qferry", &format!("warning: {message}")),
            _ => {}
        }
        self.tell();
    }

    /// Shows a row in place of the one of this name. RAM stays the last.
    fn transfer(&mut self, row: TransferRow) {
        let rows = &mut self.view.transfers;
        if let Some(other) = rows.iter_mut().find(|other| other.name == row.name) {
            *other = row;
        } else if rows.len() < ROWS {
            let at = rows.iter().position(|other| other.name == "RAM").unwrap_or(rows.len());
            rows.insert(at, row);
        }
    }

    fn plot(&mut self, name: &str, is_rate: bool, value: u64, at: u64) {
        if self.plotted.get(name).is_none_or(|last| at.saturating_sub(*last) >= APART_MS) && self.plotted.len() <= ROWS
        {
            self.plotted.insert(name.to_owned(), at);
            self.view.plot(name, is_rate, value);
        }
    }

    /// Says what goes on.
    fn tell(&mut self) {
        let disks: Vec<&TransferRow> = self.view.transfers.iter().filter(|row| row.name != "RAM").collect();
        let left: u64 = disks.iter().map(|row| row.left).fold(0, u64::saturating_add);
        let rate: u64 = disks.iter().map(|row| row.rate).fold(0, u64::saturating_add);
        let ends =
            |left: u64, rate: u64| time_left(left, rate).map_or_else(String::new, |time| format!(", about {time}"));
        let ram = self.view.transfers.iter().find(|row| row.name == "RAM");
        self.view.verdict = match (self.phase, ram) {
            (None, _) => "The migration begins.".to_owned(),
            (Some(Phase::Connect), _) => "Both monitors are being connected.".to_owned(),
            (Some(Phase::Preflight), _) => "Both sides are being checked; nothing is changed.".to_owned(),
            (Some(Phase::Prepare), _) => "The destination is being prepared.".to_owned(),
            (Some(Phase::Storage), _) => {
                format!("Disks are being copied: {} left at {}{}.", Bytes(left), Rate(rate), ends(left, rate))
            }
            (Some(Phase::Memory), Some(ram)) => {
                format!("RAM is being sent: {} left at {}, {}.", Bytes(ram.left), Rate(ram.rate), ram.note)
            }
            (Some(Phase::Memory), None) => "RAM is being sent.".to_owned(),
            (Some(Phase::Switchover), _) => "The guest is stopped; the mirrors are being settled.".to_owned(),
            (Some(Phase::Handover), _) => "The guest is being handed over.".to_owned(),
            (Some(Phase::Postcopy), _) => "The guest runs on the destination, and its pages follow.".to_owned(),
            (Some(phase), _) => format!("Phase {phase}."),
        };
        let mut facts = Vec::new();
        if !self.ram.is_empty() {
            facts.push(("RAM", self.ram.join(", ")));
        }
        let predicted = self.predicted_ms.map_or_else(String::new, |ms| format!("estimated {ms} ms, "));
        facts.push(("blackout", format!("{predicted}budget {} ms", self.limits.budget.as_millis())));
        let ceiling = self.limits.bandwidth.map_or_else(|| "no ceiling".to_owned(), |rate| format!("ceiling {rate}"));
        facts.push(("limits", one_line(&format!("{ceiling}, policy {}", self.limits.policy))));
        self.view.facts = facts;
    }
}
