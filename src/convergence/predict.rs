//! What a migration will come to: the model of [`super::simulate`], fed with what was measured beforehand.
//!
//! Pure.

use super::{
    Action, RamRung,
    history::Task,
    policy::Policy,
    simulate::{Course, Guest, GuestDisk, Link, simulate},
};
use serde::Serialize;
use std::time::Duration;

/// Bytes per second that RAM is sent at where nothing else limits it: what QEMU's migration thread does on one core.
const MEMORY_RATE: f64 = 600e6;
/// Bytes per second that mirrors copy at where nothing else limits them (facts: 300 to 400 MiB/s into unallocated clusters).
const MIRROR_RATE: f64 = 350e6;
/// How much less different memory in a window than its rate would make is taken for the working set's end.
const KNEE: f64 = 0.85;
/// Milliseconds of the blackout that no question shows: the guest's disks drained and flushed, the guest started again.
const QUIESCE: f64 = 6.0;
/// Milliseconds from the end of RAM to the end of all: the source quits.
const END: f64 = 60.0;

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measurements {
    /// The guest's memory, bytes, and what of it is in use.
    pub memory: u64,
    /// What of it is in use, where that is known.
    pub used: Option<u64>,
    /// Different memory that was dirtied in windows of growing length, bytes.
    pub dirtied: Vec<(Duration, u64)>,
    /// Each disk: bytes to copy, bytes per second written.
    pub disks: Vec<(String, u64, u64)>,
    /// The mean time of a write.
    pub write_latency: Option<Duration>,
    /// What the link carries, bytes per second, where it was probed.
    pub link: Option<f64>,
    /// The longer round trip of the two sides.
    pub round_trip: Duration,
    /// How long it took until the checks were done.
    pub before: Duration,
    /// QEMU counts what is dirty ten times a second.
    pub continuous: bool,
    /// QEMU can be told with which bandwidth to reckon.
    pub switchover_bandwidth: bool,
}

/// What it will come to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Milliseconds in all.
    pub total_ms: f64,
    /// Milliseconds of blackout; None where it will not move.
    pub blackout_ms: Option<f64>,
    /// Bytes of RAM over the wire.
    pub ram_bytes: f64,
    /// Bytes of disks.
    pub disk_bytes: f64,
    /// The furthest rung that it takes: `none`, `downtime`, `throttle`, `postcopy`, `stop-and-copy`, `give-up`.
    pub rung: &'static str,
}

/// Foretells a migration.
pub fn predict(policy: &Policy, task: &Task, seen: &Measurements) -> Prediction {
    let memory = seen.memory as f64;
    let used = seen.used.map_or(memory, |used| (used as f64).min(memory));
    let (dirty_rate, working_set) = work(&seen.dirtied, used);
    let disk = |(name, bytes, written): &(String, u64, u64)| GuestDisk {
        name: name.clone(),
        bytes: *bytes as f64,
        write_rate: *written as f64,
    };
    let guest =
        Guest { memory, used, working_set, dirty_rate, bursts: None, disks: seen.disks.iter().map(disk).collect() };
    let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let settle = if guest.disks.is_empty() { 0.0 } else { seen.write_latency.map_or(1.0, millis) };
    let bandwidth = seen.link.unwrap_or(f64::MAX);
    let buffered = if task.ceiling.is_some() { 0.0 } else { task.buffered as f64 / bandwidth * 1000.0 };
    let link = Link {
        bandwidth,
        memory_rate: MEMORY_RATE,
        mirror_rate: MIRROR_RATE,
        round_trip: millis(seen.round_trip),
        device_state: millis(policy.device_state) + settle + QUIESCE + buffered,
        continuous: seen.continuous,
        switchover_bandwidth: seen.switchover_bandwidth,
    };
    let course = simulate(policy, task, &guest, &link);
    Prediction {
        total_ms: millis(seen.before) + course.total_ms + END,
        blackout_ms: course.blackout_ms,
        ram_bytes: course.ram_bytes,
        disk_bytes: course.disk_bytes,
        rung: rung(policy, task, &course),
    }
}

/// How fast a guest dirties, bytes per second, and how much it dirties again and again.
fn work(dirtied: &[(Duration, u64)], used: f64) -> (f64, f64) {
    let rate = |&(window, bytes): &(Duration, u64)| bytes as f64 / window.as_secs_f64().max(f64::MIN_POSITIVE);
    let rates = dirtied.iter().map(rate);
    let fastest = rates.fold(0.0, f64::max);
    // a longer window with less than the rate makes of it has seen all there is
    let knee = dirtied.iter().rfind(|one| rate(one) < fastest * KNEE).map(|(_, bytes)| *bytes as f64);
    let most = dirtied.iter().map(|(_, bytes)| *bytes as f64).fold(0.0, f64::max);
    (fastest, knee.map_or(used, |_| most).min(used))
}

fn rung(policy: &Policy, task: &Task, course: &Course) -> &'static str {
    let mut rung = "none";
    let first = policy.first_limit(task.budget);
    for (_, action, _) in &course.actions {
        rung = match action {
            Action::GiveUp { .. } => return "give-up",
            Action::Postcopy => return "postcopy",
            Action::Throttle(_) => "throttle",
            Action::DowntimeLimit(limit) if *limit > task.budget && policy.ram.contains(&RamRung::StopAndCopy) => {
                "stop-and-copy"
            }
            Action::DowntimeLimit(limit) if *limit > first && rung == "none" => "downtime",
            _ => rung,
        };
    }
    rung
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn window(millis: u64, mib: u64) -> (Duration, u64) {
        (Duration::from_millis(millis), mib * MIB)
    }

    #[test]
    fn windows_show_how_fast_and_how_much() {
        let used = (512 * MIB) as f64;
        for (windows, rate, set) in [
            (vec![], 0, 512),
            (vec![window(200, 2), window(800, 8)], 10, 512),
            (vec![window(200, 2), window(800, 4)], 10, 4),
            (vec![window(200, 20), window(800, 80), window(3000, 128)], 100, 128),
            (vec![window(200, 200), window(800, 800)], 1000, 512),
        ] {
            let (found, found_set) = work(&windows, used);
            assert_eq!(((found / MIB as f64).round() as u64, found_set as u64 / MIB), (rate, set), "{windows:?}");
        }
    }

    #[test]
    fn what_is_foretold_follows_from_what_was_measured() {
        let task = Task { budget: Duration::from_millis(300), memory: 512 * MIB, ..Task::default() };
        let seen = Measurements {
            memory: 512 * MIB,
            used: Some(200 * MIB),
            link: Some(100e6),
            round_trip: Duration::from_micros(500),
            before: Duration::from_millis(100),
            ..Measurements::default()
        };
        let idle = predict(&Policy::default(), &task, &seen);
        assert_eq!(idle.rung, "none");
        assert!((2000.0..2700.0).contains(&idle.total_ms), "{idle:?}");
        assert!(idle.blackout_ms.is_some_and(|ms| ms < 20.0), "{idle:?}");
        let dirtied = vec![window(200, 40), window(800, 100)];
        let busy = predict(&Policy::default(), &task, &Measurements { dirtied, ..seen.clone() });
        assert!(busy.blackout_ms.is_none() && busy.rung == "give-up", "it may not be throttled here: {busy:?}");
    }
}
