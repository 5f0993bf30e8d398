//! What a migration will come to: the model of [`super::simulate`], fed with what was measured beforehand.
//!
//! Pure.

use super::{
    Action, RamRung,
    history::ConvergenceJob,
    millis,
    policy::Policy,
    simulate::{DiskModel, GuestModel, LinkModel, SimulatedRun, simulate},
};
use crate::progress::Estimate;
use std::time::Duration;

/// Bytes per second that RAM is sent at where nothing else limits it: what QEMU's migration thread does on one core.
const MEMORY_RATE: f64 = 600e6;
/// Bytes per second that mirrors copy at where nothing else limits them (facts: 300 to 400 MiB/s into unallocated clusters).
const MIRROR_RATE: f64 = 350e6;
/// Milliseconds of the blackout that no question shows: the guest's disks drained and flushed, the guest started again.
const QUIESCE: f64 = 6.0;
/// Milliseconds from the end of RAM to the end of all: the source quits.
const END: f64 = 60.0;

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PredictionInput {
    /// The guest's memory, bytes, and what of it is in use.
    pub memory: u64,
    /// What of it is in use, where that is known.
    pub used: Option<u64>,
    /// How fast the guest dirties it, bytes per second.
    pub dirty_rate: f64,
    /// What it dirties again and again, bytes; None where no end of it was seen.
    pub working_set: Option<f64>,
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

/// Foretells a migration.
pub fn predict(policy: &Policy, job: &ConvergenceJob, seen: &PredictionInput) -> Estimate {
    let memory = seen.memory as f64;
    let used = seen.used.map_or(memory, |used| (used as f64).min(memory));
    let working_set = seen.working_set.map_or(used, |set| set.min(used));
    let disk = |(name, bytes, written): &(String, u64, u64)| DiskModel {
        name: name.clone(),
        bytes: *bytes as f64,
        write_rate: *written as f64,
    };
    let guest = GuestModel {
        memory,
        used,
        working_set,
        dirty_rate: seen.dirty_rate,
        bursts: None,
        disks: seen.disks.iter().map(disk).collect(),
    };
    let settle = if guest.disks.is_empty() { 0.0 } else { seen.write_latency.map_or(1.0, millis) };
    let bandwidth = seen.link.unwrap_or(f64::MAX);
    let buffered = if job.ceiling.is_some() { 0.0 } else { job.buffered as f64 / bandwidth * 1000.0 };
    let link = LinkModel {
        bandwidth,
        memory_rate: MEMORY_RATE,
        mirror_rate: MIRROR_RATE,
        round_trip: millis(seen.round_trip),
        device_state: millis(policy.device_state) + settle + QUIESCE + buffered,
        continuous: seen.continuous,
        switchover_bandwidth: seen.switchover_bandwidth,
    };
    let course = simulate(policy, job, &guest, &link);
    Estimate {
        total_ms: Some((millis(seen.before) + course.total_ms + END) as u64),
        blackout_ms: course.blackout_ms.map(|ms| ms.round() as u64),
        disk_bytes: Some(course.disk_bytes as u64),
        ram_bytes: Some(course.ram_bytes as u64),
        converges: Some(course.moved()),
        rung: Some(rung(policy, job, &course)),
    }
}

fn rung(policy: &Policy, job: &ConvergenceJob, course: &SimulatedRun) -> &'static str {
    let mut rung = "none";
    let first = policy.first_limit(job.budget);
    for (_, action, _) in &course.actions {
        rung = match action {
            Action::GiveUp { .. } => return "give-up",
            Action::Postcopy => return "postcopy",
            Action::Throttle(_) => "throttle",
            Action::DowntimeLimit(limit) if *limit > job.budget && policy.ram.contains(&RamRung::StopAndCopy) => {
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

    #[test]
    fn what_is_foretold_follows_from_what_was_measured() {
        let job = ConvergenceJob { budget: Duration::from_millis(300), memory: 512 * MIB, ..ConvergenceJob::default() };
        let seen = PredictionInput {
            memory: 512 * MIB,
            used: Some(200 * MIB),
            link: Some(100e6),
            round_trip: Duration::from_micros(500),
            before: Duration::from_millis(100),
            ..PredictionInput::default()
        };
        let idle = predict(&Policy::default(), &job, &seen);
        assert_eq!(idle.rung, Some("none"));
        assert!(idle.total_ms.is_some_and(|ms| (2000..2700).contains(&ms)), "{idle:?}");
        assert!(idle.blackout_ms.is_some_and(|ms| ms < 20), "{idle:?}");
        let (dirty_rate, working_set) = ((200 * MIB) as f64, Some((100 * MIB) as f64));
        let busy = predict(&Policy::default(), &job, &PredictionInput { dirty_rate, working_set, ..seen.clone() });
        assert!(busy.blackout_ms.is_none() && busy.rung == Some("give-up"), "it may not be throttled here: {busy:?}");
        assert_eq!((idle.converges, busy.converges), (Some(true), Some(false)));
    }
}
