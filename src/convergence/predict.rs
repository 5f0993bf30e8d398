//! The estimate of a migration before it begins: the model of [`super::simulate`], fed with measurements of the guest.
//!
//! Pure.

use super::{
    Action, RamRung,
    job::ConvergenceJob,
    millis,
    policy::Policy,
    simulate::{DiskModel, GuestModel, LinkModel, SimulatedRun, simulate},
};
use crate::progress::{Estimate, EstimatedRung};
use std::time::Duration;

/// Bytes per second that RAM is sent at where nothing else limits it: QEMU's migration thread on one core, and the
/// destination's main loop on another; 340 to 600 MB/s were measured.
const MEMORY_RATE: f64 = 450e6;
/// Bytes per second that mirrors copy at where nothing else limits them: 300 to 400 MiB/s into unallocated clusters
/// were measured.
const MIRROR_RATE: f64 = 350e6;
/// Milliseconds of the blackout that no measurement beforehand shows: the guest's disks are drained and flushed, and
/// the guest is started again.
const QUIESCE: f64 = 6.0;
/// The most that full buffers add to the blackout below a ceiling, milliseconds: 10 to 20 ms were measured below 64
/// MiB/s on a link of 1 Gbit/s. The link itself is not measured there.
const BURST: f64 = 20.0;
/// Milliseconds from the end of the blackout to the end of the migration: what the run made is removed, and the source
/// quits. 10 to 16 ms were measured.
const END: f64 = 15.0;

/// The measurements that an estimate is made from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PredictionInput {
    /// The guest's memory, bytes.
    pub memory: u64,
    /// The part of the memory that is in use, bytes, where that is known.
    pub used: Option<u64>,
    /// The rate at which the guest dirties memory, bytes per second.
    pub dirty_rate: f64,
    /// The memory that the guest dirties again and again, bytes; `None` where no end of it was seen.
    pub working_set: Option<f64>,
    /// The disks that would be mirrored.
    pub disks: Vec<DiskInput>,
    /// The mean time of a write to a disk.
    pub write_latency: Option<Duration>,
    /// The bandwidth of the link, bytes per second, where it was probed.
    pub link: Option<f64>,
    /// The longer of the two round trips to the QEMUs.
    pub round_trip: Duration,
    /// The time that the checks took.
    pub before: Duration,
    /// QEMU can be told the bandwidth of the switchover.
    pub switchover_bandwidth: bool,
}

/// The measurements of a disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskInput {
    /// The disk's name.
    pub name: String,
    /// The bytes to copy.
    pub bytes: u64,
    /// The rate of the guest's writes, bytes per second.
    pub write_rate: u64,
}

/// Estimates a migration.
pub fn predict(policy: &Policy, job: &ConvergenceJob, input: &PredictionInput) -> Estimate {
    let memory = input.memory as f64;
    let used = input.used.map_or(memory, |used| (used as f64).min(memory));
    let disk = |disk: &DiskInput| DiskModel {
        name: disk.name.clone(),
        bytes: disk.bytes as f64,
        write_rate: disk.write_rate as f64,
    };
    let guest = GuestModel {
        memory,
        used,
        working_set: input.working_set.map_or(used, |set| set.min(used)),
        dirty_rate: input.dirty_rate,
        bursts: None,
        disks: input.disks.iter().map(disk).collect(),
    };
    // the flush that ends a mirror takes about as long as a write
    let flush = if guest.disks.is_empty() { 0.0 } else { input.write_latency.map_or(1.0, millis) };
    let bandwidth = input.link.unwrap_or(f64::MAX);
    let buffered = match job.ceiling {
        // below a ceiling the buffers are full for a part of the time: QEMU sends what a window of 100 ms may have at
        // once, and waits
        Some(ceiling) => (job.buffered as f64 / ceiling.0 as f64 * 500.0).min(BURST),
        None => job.buffered as f64 / bandwidth * 1000.0,
    };
    let link = LinkModel {
        bandwidth,
        memory_rate: MEMORY_RATE,
        mirror_rate: MIRROR_RATE,
        round_trip: millis(input.round_trip),
        device_state: millis(policy.device_state) + flush + QUIESCE + buffered,
        switchover_bandwidth: input.switchover_bandwidth,
    };
    let run = simulate(policy, job, &guest, &link);
    Estimate {
        total_ms: Some((millis(input.before) + run.total_ms + END) as u64),
        blackout_ms: run.blackout_ms.map(|ms| ms.round() as u64),
        disk_bytes: Some(run.disk_bytes as u64),
        ram_bytes: Some(run.ram_bytes as u64),
        converges: Some(run.moved()),
        rung: Some(furthest_rung(policy, job, &run)),
    }
}

fn furthest_rung(policy: &Policy, job: &ConvergenceJob, run: &SimulatedRun) -> EstimatedRung {
    let mut rung = EstimatedRung::None;
    let first = policy.first_limit(job.budget);
    for step in &run.actions {
        rung = match &step.action {
            Action::GiveUp { .. } => return EstimatedRung::GiveUp,
            Action::Postcopy => return EstimatedRung::Postcopy,
            Action::Throttle(_) => EstimatedRung::Throttle,
            Action::DowntimeLimit(limit) if *limit > job.budget && policy.ram.contains(&RamRung::StopAndCopy) => {
                EstimatedRung::StopAndCopy
            }
            Action::DowntimeLimit(limit) if *limit > first && rung == EstimatedRung::None => EstimatedRung::Downtime,
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
    fn an_estimate_follows_from_the_measurements() {
        let job = ConvergenceJob { budget: Duration::from_millis(300), memory: 512 * MIB, ..ConvergenceJob::default() };
        let input = PredictionInput {
            memory: 512 * MIB,
            used: Some(200 * MIB),
            link: Some(100e6),
            round_trip: Duration::from_micros(500),
            before: Duration::from_millis(100),
            ..PredictionInput::default()
        };
        let idle = predict(&Policy::default(), &job, &input);
        assert_eq!(idle.rung, Some(EstimatedRung::None));
        assert!(idle.total_ms.is_some_and(|ms| (2000..2700).contains(&ms)), "{idle:?}");
        assert!(idle.blackout_ms.is_some_and(|ms| ms < 20), "{idle:?}");
        let (dirty_rate, working_set) = ((200 * MIB) as f64, Some((100 * MIB) as f64));
        let busy = predict(&Policy::default(), &job, &PredictionInput { dirty_rate, working_set, ..input.clone() });
        assert!(
            busy.blackout_ms.is_none() && busy.rung == Some(EstimatedRung::GiveUp),
            "this guest may not be throttled: {busy:?}"
        );
        assert_eq!((idle.converges, busy.converges), (Some(true), Some(false)));
    }
}
