//! The figures of one trial, made of what was seen and heard.
//!
//! Pure. Times are nanoseconds of one clock of this host, as everything was stamped when it arrived.

use super::{
    debug_lines::{GuestCounts, GuestHeard},
    run_changes::RunChanges,
    spec::SweepSpec,
};
use crate::progress::Outcome;
use std::{collections::BTreeMap, ops::Range};

const SECOND: f64 = 1e9;
/// The guest must be back for this long to count as recovered.
const BACK: u64 = 200_000_000;
/// And for this share of its throughput before.
const BACK_SHARE: f64 = 0.95;

/// A UDP answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EchoAnswer {
    /// When it was received.
    pub(crate) received: u64,
    /// How long the way to and fro took.
    pub(crate) took: u64,
    pub(crate) from_destination: bool,
}

/// What was seen and heard of one trial.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrialObservation {
    /// The beginning of the time before the migration, its begin and end, and the end of the time after it.
    pub(crate) watched_from: u64,
    pub(crate) begin: u64,
    pub(crate) end: u64,
    pub(crate) watched_until: u64,
    pub(crate) source: GuestHeard,
    pub(crate) destination: GuestHeard,
    pub(crate) echoes: Vec<EchoAnswer>,
    /// When the destination first announced the guest's address.
    pub(crate) announced: Option<u64>,
    pub(crate) outcome: Option<Outcome>,
    /// What the sweep itself heard of the source's QEMU and the destination's.
    pub(crate) changes: [RunChanges; 2],
    /// The time in which the destination's QEMU was started before the migration, in milliseconds.
    pub(crate) start: Option<f64>,
    /// CPU times in milliseconds of the source's QEMU, the destination's, and the engine.
    pub(crate) cpu: [Option<f64>; 3],
    pub(crate) steal: Option<f64>,
    pub(crate) load: Option<f64>,
    /// The bytes that the link carried.
    pub(crate) carried: Option<u64>,
}

/// The figures of a trial by their names.
pub(crate) type Figures = BTreeMap<String, f64>;

/// The gap of the guest as it was heard: its last beat on the source, and its first on the destination.
pub(crate) fn gap(seen: &TrialObservation) -> Option<Range<u64>> {
    let last = seen.source.beats.last()?;
    let first = seen.destination.beats.iter().find(|beat| *beat >= last)?;
    Some(*last..*first)
}

/// The guest's counts of both sides, in the order of time.
pub(crate) fn all_counts(seen: &TrialObservation) -> Vec<&GuestCounts> {
    let mut all: Vec<&GuestCounts> = seen.source.counts.iter().chain(&seen.destination.counts).collect();
    all.sort_by_key(|counts| counts.heard);
    all
}

/// Makes the figures. What was not measured is not there.
pub(crate) fn figures(setup: &SweepSpec, seen: &TrialObservation) -> Figures {
    let mut figures = FigureBook(Figures::new());
    figures.put("command", Some(milliseconds(seen.end.saturating_sub(seen.begin))));
    figures.put("total.with-start", seen.start.map(|start| start + milliseconds(seen.end.saturating_sub(seen.begin))));
    figures.put("blackout.events", blackout_by_events(&seen.changes));
    if let Some(outcome) = &seen.outcome {
        figures.outcome(setup, outcome);
    }
    for (name, cpu) in ["cpu.source", "cpu.destination", "cpu.engine"].into_iter().zip(seen.cpu) {
        figures.put(name, cpu);
    }
    figures.put("link.bytes", seen.carried.map(|bytes| bytes as f64));
    figures.put("host.steal", seen.steal);
    figures.put("host.load", seen.load);
    let gap = gap(seen);
    figures.put("outside.beats", gap.as_ref().map(|gap| milliseconds(gap.end - gap.start)));
    figures.put("outside.error", beat_error(seen));
    figures.echoes(seen);
    let source_ends = gap.as_ref().map_or(seen.end, |gap| gap.start);
    let after_begins = gap.as_ref().map_or(seen.end, |gap| gap.end);
    let windows = [
        ("before", seen.watched_from..seen.begin),
        ("during", seen.begin..source_ends),
        ("after", after_begins..seen.watched_until),
    ];
    let counts = all_counts(seen);
    for (window, time) in windows {
        figures.window(setup, &counts, window, &time);
    }
    if let Some(gap) = &gap {
        if let Some(before) = figures.0.get("guest.pages.before").copied() {
            figures.put("guest.recovery", recovery(&counts, gap.end, before).map(milliseconds));
        }
        let first = counts.iter().find(|counts| counts.heard >= gap.end);
        if let (Some(first), Some(last)) = (first, counts.last()) {
            figures.put("verified.pages", Some(last.pages_checked.saturating_sub(first.pages_checked) as f64));
            figures.put("verified.blocks", Some(last.blocks_checked.saturating_sub(first.blocks_checked) as f64));
        }
    }
    figures.0
}

/// From the last STOP of the source before the first RESUME of the destination to this, in milliseconds.
fn blackout_by_events([source, destination]: &[RunChanges; 2]) -> Option<f64> {
    let resumed = *destination.resumes.first()?;
    let stopped = source.stops.iter().rev().find(|stopped| **stopped <= resumed)?;
    Some((resumed - stopped) as f64 / 1e3)
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

struct FigureBook(Figures);

impl FigureBook {
    fn put(&mut self, name: &str, value: Option<f64>) {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.0.insert(name.to_owned(), value);
        }
    }

    fn outcome(&mut self, setup: &SweepSpec, outcome: &Outcome) {
        self.put("total", Some(outcome.total_ms as f64));
        self.put("blackout", outcome.blackout_ms);
        self.put("qemu-downtime", outcome.qemu_downtime_ms.map(|downtime| downtime as f64));
        for span in &outcome.ledger {
            self.put(&format!("ledger.{}", span.span), Some(span.ms));
        }
        let ram = &outcome.ram;
        self.put("ram.bytes", Some(ram.bytes as f64));
        self.put("ram.amplification", Some(ram.bytes as f64 / setup.machine.memory.0 as f64));
        self.put("ram.iterations", Some(ram.iterations as f64));
        self.put("ram.throttle", Some(ram.throttle_max_pct as f64));
        if let Some(blocked) = &ram.postcopy_blocktime {
            self.put("postcopy.blocked", Some(blocked.all_vcpus_ms as f64));
            self.put("postcopy.fault", blocked.mean_fault_us.map(|time| time as f64));
            self.put("postcopy.fault.p99", blocked.p99_fault_at_most_us.map(|time| time as f64));
        }
        if !outcome.disks.is_empty() {
            let copied: u64 = outcome.disks.iter().map(|disk| disk.bytes_copied).sum();
            self.put("disk.bytes", Some(copied as f64));
            let filled = setup.disks.filled.0 * u64::from(setup.disks.count);
            self.put("disk.amplification", (filled > 0).then(|| copied as f64 / filled as f64));
        }
        if let Some(predicted) = &outcome.predicted {
            let figures = [
                ("total", predicted.total_ms),
                ("blackout", predicted.blackout_ms),
                ("ram.bytes", predicted.ram_bytes),
                ("disk.bytes", predicted.disk_bytes),
            ];
            for (figure, value) in figures {
                self.put(&format!("predicted.{figure}"), value.map(|value| value as f64));
            }
        }
    }

    fn echoes(&mut self, seen: &TrialObservation) {
        let last = seen.echoes.iter().rev().find(|answer| !answer.from_destination);
        let first = seen.echoes.iter().find(|answer| answer.from_destination);
        if let (Some(last), Some(first)) = (last, first) {
            self.put("outside.echo", Some(milliseconds(first.received.saturating_sub(last.received))));
            let announced = seen.announced.map(|announced| milliseconds(announced.saturating_sub(last.received)));
            self.put("outside.announce", announced);
        }
        // a guest that stayed answers after the migration, too
        let border = last.filter(|_| first.is_some()).map_or(seen.end, |answer| answer.received);
        let after = first.map_or(seen.end, |answer| answer.received);
        let windows = [
            ("before", seen.watched_from..seen.begin),
            ("during", seen.begin..border + 1),
            // What had waited in a queue for the guest is no echo of this time.
            ("after", after + 50_000_000..seen.watched_until),
        ];
        for (window, time) in windows {
            let mut took: Vec<u64> =
                seen.echoes.iter().filter(|answer| time.contains(&answer.received)).map(|answer| answer.took).collect();
            took.sort_unstable();
            let at = |share: f64| took.get(((took.len() as f64 * share) as usize).min(took.len().saturating_sub(1)));
            self.put(&format!("echo.{window}"), at(0.5).map(|time| *time as f64 / 1e3));
            self.put(&format!("echo.p99.{window}"), at(0.99).map(|time| *time as f64 / 1e3));
        }
    }

    fn window(&mut self, setup: &SweepSpec, counts: &[&GuestCounts], window: &str, time: &Range<u64>) {
        let inside: Vec<&&GuestCounts> = counts.iter().filter(|counts| time.contains(&counts.heard)).collect();
        let (Some(first), Some(last)) = (inside.first(), inside.last()) else { return };
        let seconds = (last.heard - first.heard) as f64 / SECOND;
        let rate = |count: fn(&GuestCounts) -> u64| {
            (seconds > 0.0).then(|| count(last).saturating_sub(count(first)) as f64 / seconds)
        };
        if setup.workload.dirty != "0" {
            self.put(&format!("guest.pages.{window}"), rate(|counts| counts.pages_written));
        }
        if setup.workload.writes > 0 && setup.disks.count > 0 {
            self.put(&format!("guest.writes.{window}"), rate(|counts| counts.disk_writes));
        }
        // The times of a line are those since the line before: the first one's are from before the window.
        for (name, times) in [("page", page_times as TimesOf), ("write", disk_times)] {
            let mut bins = [0_u64; 64];
            for (power, count) in inside.iter().skip(1).flat_map(|counts| times(counts)) {
                bins[usize::from(*power) % 64] += u64::from(*count);
            }
            self.put(&format!("guest.{name}-time.{window}"), at_most(&bins, 0.5));
            self.put(&format!("guest.{name}-time.p99.{window}"), at_most(&bins, 0.99));
        }
    }
}

type TimesOf = fn(&GuestCounts) -> &[(u8, u32)];

fn page_times(counts: &GuestCounts) -> &[(u8, u32)] {
    &counts.page_times
}

fn disk_times(counts: &GuestCounts) -> &[(u8, u32)] {
    &counts.disk_times
}

/// The upper end, in microseconds, of the bin in which this share of the writes is reached.
fn at_most(bins: &[u64; 64], share: f64) -> Option<f64> {
    let all: u64 = bins.iter().sum();
    let wanted = (all as f64 * share).ceil().max(1.0) as u64;
    let mut sum = 0;
    let power = bins.iter().position(|count| {
        sum += count;
        sum >= wanted
    })?;
    (all > 0).then(|| 2_f64.powi(power as i32 + 1) / 1e3)
}

fn beat_error(seen: &TrialObservation) -> Option<f64> {
    let before: Vec<u64> =
        seen.source.beats.iter().copied().filter(|beat| (seen.watched_from..seen.begin).contains(beat)).collect();
    let mut apart: Vec<u64> = before.windows(2).map(|pair| pair[1] - pair[0]).collect();
    apart.sort_unstable();
    let last = apart.len().checked_sub(1)?;
    apart.get((apart.len() * 99 / 100).min(last)).map(|apart| milliseconds(*apart))
}

/// The time from `from` until the guest's throughput is back.
fn recovery(counts: &[&GuestCounts], from: u64, before: f64) -> Option<u64> {
    let after: Vec<&&GuestCounts> = counts.iter().filter(|counts| counts.heard >= from).collect();
    after.iter().enumerate().find_map(|(at, first)| {
        let last = after[at..].iter().find(|counts| counts.heard >= first.heard + BACK)?;
        let pages = last.pages_written.saturating_sub(first.pages_written) as f64;
        let rate = pages / ((last.heard - first.heard) as f64 / SECOND);
        (rate >= before * BACK_SHARE).then(|| first.heard - from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::metrics;

    const MS: u64 = 1_000_000;

    /// A guest that writes 1000 pages a second, stands still from 2.000 to 2.030 s, and then writes half as much for
    /// 0.5 s.
    fn seen() -> TrialObservation {
        let mut seen = TrialObservation {
            watched_from: 0,
            begin: 1000 * MS,
            end: 2100 * MS,
            watched_until: 4000 * MS,
            outcome: serde_json::from_str(OUTCOME).ok(),
            cpu: [Some(5.0), None, Some(7.0)],
            announced: Some(2035 * MS),
            carried: Some(123),
            start: Some(250.0),
            changes: [
                RunChanges { stops: vec![7_000, 900_000], resumes: vec![8_000] },
                RunChanges { stops: vec![2_000_000], resumes: vec![921_500, 3_000_000] },
            ],
            ..TrialObservation::default()
        };
        let mut pages = 0;
        for ms in (0..=4000).filter(|ms| !(2001..2030).contains(ms)) {
            pages += if (2030..2530).contains(&ms) { ms % 2 } else { 1 };
            let side = if ms <= 2000 { &mut seen.source } else { &mut seen.destination };
            side.beats.push(ms * MS);
            if ms % 50 == 0 {
                side.counts.push(GuestCounts {
                    heard: ms * MS,
                    pages_written: pages,
                    disk_writes: ms / 10,
                    pages_checked: 2 * ms,
                    blocks_checked: 0,
                    page_times: vec![(9, 49), (20, 1)],
                    disk_times: vec![],
                });
            }
            seen.echoes.push(EchoAnswer { received: ms * MS, took: MS, from_destination: ms > 2000 });
        }
        seen
    }

    const OUTCOME: &str = include_str!("outcome.json");

    fn setup() -> SweepSpec {
        let mut setup = SweepSpec::default();
        setup.workload.dirty = "4MiB/s".into();
        setup
    }

    #[test]
    fn figures_are_what_was_seen() {
        let figures = figures(&setup(), &seen());
        let expected = [
            ("command", 1100.0),
            ("total.with-start", 1350.0),
            ("total", 1529.0),
            ("blackout", 21.137),
            ("blackout.events", 21.5),
            ("ledger.quiesce", 2.106),
            ("outside.beats", 30.0),
            ("outside.echo", 30.0),
            ("outside.announce", 35.0),
            ("outside.error", 1.0),
            ("guest.pages.before", 1000.0),
            ("guest.pages.during", 1000.0),
            ("guest.writes.before", 100.0),
            ("guest.page-time.before", 1.024),
            ("guest.page-time.p99.before", 2097.152),
            ("echo.before", 1000.0),
            ("echo.p99.after", 1000.0),
            ("link.bytes", 123.0),
            ("cpu.source", 5.0),
            ("cpu.engine", 7.0),
            ("ram.amplification", 0.5),
            ("verified.pages", 3900.0),
        ];
        for (name, value) in expected {
            let found = figures.get(name).copied();
            assert!(found.is_some_and(|found| (found - value).abs() < 1e-6), "{name}: {found:?} instead of {value}");
        }
        let recovery = figures["guest.recovery"];
        assert!((400.0..=600.0).contains(&recovery), "{recovery}");
        assert!(!figures.contains_key("cpu.destination"), "what was not measured is left out");
    }

    #[test]
    fn without_an_outcome_there_is_what_is_measured_for_every_program() {
        let told = figures(&setup(), &TrialObservation { outcome: None, ..seen() });
        let measured = ["command", "total.with-start", "blackout.events", "outside.beats"].map(|name| told[name]);
        assert_eq!(measured, [1100.0, 1350.0, 21.5, 30.0]);
        assert!(!told.contains_key("total") && !told.contains_key("blackout"), "what the engine alone tells");
    }

    #[test]
    fn a_blackout_is_between_a_stop_and_the_resume_behind_it() {
        let changes = |stops: &[u64], resumes: &[u64]| RunChanges { stops: stops.into(), resumes: resumes.into() };
        let cases = [
            (changes(&[1000, 5000], &[]), changes(&[], &[7000]), Some(2.0)),
            // a guest that came to the source by a migration of its own, and one that stopped again behind the end
            (changes(&[5000, 9000], &[100]), changes(&[8000], &[7000, 9500]), Some(2.0)),
            (changes(&[8000], &[]), changes(&[], &[7000]), None),
            (changes(&[], &[]), changes(&[], &[7000]), None),
            (changes(&[1000], &[2000]), changes(&[], &[]), None),
        ];
        for (source, destination, blackout) in cases {
            assert_eq!(blackout_by_events(&[source.clone(), destination]), blackout, "{source:?}");
        }
    }

    #[test]
    fn every_figure_has_a_definition() {
        let mut seen = seen();
        seen.steal = Some(0.0);
        for name in figures(&setup(), &seen).keys() {
            assert!(metrics::definition(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_guest_that_was_never_heard_gives_only_what_the_engine_says() {
        let seen = TrialObservation { begin: 5, end: 10 * MS, ..TrialObservation::default() };
        assert_eq!(figures(&setup(), &seen).into_keys().collect::<Vec<_>>(), ["command"]);
    }

    #[test]
    fn a_guest_that_does_not_recover_has_no_time_of_recovery() {
        let mut seen = seen();
        seen.destination.counts.iter_mut().for_each(|counts| counts.pages_written = 2001);
        let figures = figures(&setup(), &seen);
        assert!(!figures.contains_key("guest.recovery"));
        assert_eq!(figures.get("guest.pages.after"), Some(&0.0));
    }
}
