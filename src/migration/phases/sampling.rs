//! One look at mirrors and RAM: what the controller decides from, and what is reported of it.

use crate::{
    convergence::{History, MigrationSample, MirrorSample, RamSample, predicted_blackout},
    endpoint::Address,
    memory::sample,
    migration::{Effect, Failure, attempt::Attempt, context::Context, work_order::WorkOrder},
    preflight::{measure, measurements},
    progress::EventKind,
    qemu::{
        Process,
        reply::{BlockJobInfo, BlockStats, DirtyRate, JobStatus, MigrationInfo, MigrationStatus},
    },
    storage::{mirror::mirror_job, model::layout::DiskPair},
};
use qapi::qmp;
use std::time::Duration;
use tokio::time::Instant;

/// The window in which QEMU measures what the guest dirties beside RAM's first pass, which does not tell it; and the
/// window of a build that knows whole seconds only.
const WINDOW: Duration = Duration::from_millis(500);
const WHOLE_SECOND: Duration = Duration::from_secs(1);
/// For how long after the window the result is asked for.
const PATIENCE: Duration = Duration::from_secs(3);

/// For how long QEMU may connect to the destination's address for RAM.
const CONNECTS: Duration = Duration::from_secs(10);

/// What a look showed.
pub(super) struct Look {
    /// What the controller decides from.
    pub(super) sample: MigrationSample,
    pub(super) migration: Option<MigrationInfo>,
    jobs: Vec<BlockJobInfo>,
}

/// Looks at the source, again and again.
pub(super) struct Sampler<'a> {
    context: &'a Context,
    order: &'a WorkOrder,
    /// The guest's writes as they were last counted.
    stats: Vec<BlockStats>,
    dirty_rate: DirtyRateMeasurement,
    /// Since when QEMU has been connecting to the destination's address for RAM.
    connects: Option<Instant>,
}

/// How fast the guest dirties its RAM, measured again and again beside RAM's first pass.
#[derive(Default)]
struct DirtyRateMeasurement {
    /// When QEMU was asked to measure, if it is measuring.
    begun: Option<Instant>,
    window: Duration,
    /// Bytes per second, by the newest measurement.
    rate: Option<u64>,
    /// The number of measurements so far.
    count: u64,
    /// The controller wants another one.
    is_wanted: bool,
}

impl DirtyRateMeasurement {
    fn begin(&mut self, window: Duration) {
        (self.begun, self.window) = (Some(Instant::now()), window);
    }

    /// Whether QEMU may have a result.
    fn is_due(&self) -> bool {
        self.begun.is_some_and(|begun| (self.window..self.window + PATIENCE).contains(&begun.elapsed()))
    }

    /// Whether another measurement is wanted, and none is under way.
    fn is_to_begin(&self) -> bool {
        self.is_wanted && self.begun.is_none_or(|begun| begun.elapsed() >= self.window + PATIENCE)
    }

    fn take(&mut self, answer: &DirtyRate) {
        let Some(rate) = answer.measured() else { return };
        self.rate = Some(measurements::dirtied(rate, Duration::from_secs(1)));
        (self.begun, self.count) = (None, self.count + 1);
    }
}

impl<'a> Sampler<'a> {
    pub(super) fn new(context: &'a Context, order: &'a WorkOrder) -> Self {
        Self { context, order, stats: Vec::new(), dirty_rate: DirtyRateMeasurement::default(), connects: None }
    }

    /// Has QEMU measure how fast the guest dirties its RAM.
    pub(super) async fn begin_measurement(&mut self, source: &Process) {
        let window = window(source);
        if measure::begin(source, window, self.order.memory).await {
            self.dirty_rate.begin(window);
        }
    }

    /// Whether QEMU is to measure once more, at the next look.
    pub(super) fn want_measurement(&mut self, is_wanted: bool) {
        self.dirty_rate.is_wanted = is_wanted;
    }

    /// Looks at mirrors and RAM once. All questions are on their way before the first answer is awaited.
    pub(super) async fn look(&mut self, source: &Process, attempt: &mut Attempt) -> Result<Look, Failure> {
        let sends = attempt.log.effects().contains(&Effect::Migrate);
        let asked = Instant::now();
        let migration = sends.then(|| source.ask(&qmp::query_migrate {}));
        let jobs = (!self.order.route.pairs.is_empty()).then(|| mirror_job::progress(source, &self.order.route.pairs));
        let stats =
            (!self.order.route.pairs.is_empty()).then(|| source.ask(&qmp::query_blockstats { query_nodes: None }));
        let dirtied = self.dirty_rate.is_due().then(|| source.ask(&qmp::query_dirty_rate { calc_time_unit: None }));
        let begins = (sends && self.dirty_rate.is_to_begin()).then(|| {
            let window = window(source);
            self.dirty_rate.begin(window);
            measure::begin(source, window, self.order.memory)
        });
        let migration = answer(migration).await.transpose()?;
        self.require_connection(migration.as_ref())?;
        let first = migration.as_ref().map(|_| asked.elapsed());
        let jobs = answer(jobs).await.transpose()?.unwrap_or_default();
        let round_trip = first.unwrap_or_else(|| asked.elapsed());
        if let Some(Ok(stats)) = answer(stats).await {
            self.stats = stats.0;
            attempt.write_counts.look(&self.stats);
        }
        if let Some(Ok(dirtied)) = answer(dirtied).await {
            self.dirty_rate.take(&dirtied);
        }
        // A refusal is no matter: the result stays away, and after a while the next measurement may begin.
        answer(begins).await;
        if let Some(migration) = &migration {
            sample::fold(&mut attempt.ram, migration);
        }
        let mirror = |(pair, job): (&DiskPair, &BlockJobInfo)| {
            let written = pair.source.stats(&self.stats).cloned().unwrap_or_default();
            MirrorSample {
                disk: pair.source.name().to_owned(),
                len: job.len,
                offset: job.offset,
                ready: job.ready,
                actively_synced: job.actively_synced,
                paused: matches!(job.status, JobStatus::Paused | JobStatus::Standby),
                written: written.wr_bytes,
                writes: written.wr_operations,
                write_ns: written.wr_total_time_ns,
                flushes: written.flush_operations,
                flush_ns: written.flush_total_time_ns,
            }
        };
        let ram = migration.as_ref().and_then(|migration| migration.ram.as_ref().map(|ram| (migration, ram)));
        let sample = MigrationSample {
            at_ms: in_millis(self.context.began.elapsed()),
            round_trip_ms: in_millis(round_trip),
            stands: !attempt.guest.wants_running(),
            ram: ram.map(|(migration, ram)| RamSample {
                transferred: ram.transferred,
                processed: migration.processed(),
                remaining: ram.remaining,
                total: ram.total,
                measured_dirty_rate: self.dirty_rate.rate,
                measurements: self.dirty_rate.count,
                throttle_pct: migration.cpu_throttle_percentage.unwrap_or(0),
                syncs: ram.dirty_sync_count,
                postcopy: migration.status.as_ref().is_some_and(MigrationStatus::is_postcopy),
            }),
            mirrors: self.order.route.pairs.iter().zip(&jobs).map(mirror).collect(),
        };
        tracing::trace!(sample = %serde_json::json!(sample), "sample");
        Ok(Look { sample, jobs, migration })
    }

    /// Gives up an address that does not answer QEMU: the kernel would try for two minutes, and nothing tells of that.
    fn require_connection(&mut self, migration: Option<&MigrationInfo>) -> Result<(), Failure> {
        let address = self.order.route.ram();
        if migration.is_none_or(|migration| migration.status != Some(MigrationStatus::Setup)) {
            self.connects = None;
            return Ok(());
        }
        let waited = self.connects.get_or_insert_with(Instant::now).elapsed();
        match address {
            Address::Tcp { .. } if waited >= CONNECTS => {
                Err(Failure::NoAnswerFrom { address: address.clone(), waited: CONNECTS })
            }
            _ => Ok(()),
        }
    }

    /// Reports how far mirrors and RAM are, with what is known of them.
    pub(super) fn report(&self, look: &Look, history: &History) {
        let report = &self.context.report;
        let known = history.estimates();
        for (pair, job) in self.order.route.pairs.iter().zip(&look.jobs) {
            let disk = known.disks.get(pair.source.name()).copied().unwrap_or_default();
            report.emit(EventKind::Disk {
                disk: pair.source.name().to_owned(),
                status: job.status.to_string(),
                copied: job.offset,
                total: job.len,
                ready: job.ready,
                rate: disk.rate as u64,
                growth: disk.growth as u64,
                write_rate: disk.write_rate as u64,
                write_latency_us: disk.latency_since.or(disk.latency_before).map(|ms| (ms * 1000.0) as u64),
                eta_ms: disk.time_to_ready().map(|ms| ms as u64),
            });
        }
        let Some(mut event) = look.migration.as_ref().and_then(sample::event) else { return };
        if let (
            EventKind::Memory { dirty_rate, bandwidth, working_set, predicted_blackout_ms, eta_ms, .. },
            Some(memory),
        ) = (&mut event, known.memory)
        {
            (*dirty_rate, *bandwidth) = (memory.dirty_rate as u64, memory.bandwidth as u64);
            *working_set = memory.working_set as u64;
            let predicted = predicted_blackout(&self.context.settings.policy, history);
            *predicted_blackout_ms = predicted.map(|ms| ms as u64);
            let limit = history.downtime_limit().unwrap_or(self.context.settings.downtime).as_secs_f64();
            let time = memory.load().and_then(|load| memory.time_to(memory.bandwidth * limit, load));
            *eta_ms = time.map(|ms| ms as u64);
        }
        report.emit(event);
    }
}

/// Milliseconds in whole microseconds: a transcript has them as they are, so that a replay decides on the same.
fn in_millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// The shortest window that this build can measure in and that tells enough.
fn window(source: &Process) -> Duration {
    if source.features().dirty_rate_milliseconds { WINDOW } else { WHOLE_SECOND }
}

/// The answer to a question, where it was asked.
async fn answer<T>(asked: Option<impl Future<Output = T>>) -> Option<T> {
    match asked {
        Some(asked) => Some(asked.await),
        None => None,
    }
}
