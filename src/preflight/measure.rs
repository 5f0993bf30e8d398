//! Measures the guest's work and the connection to the destination, for a prediction.
//!
//! The measurements take about a second and a half, and three seconds more for a guest that dirties much. Exports
//! that are opened are closed again, also when the measurement is cancelled. A failure here never forbids a
//! migration: a note says which measurement is missing, and the others are made.

use super::{
    facts::SideFacts,
    measurements::{self, DiskRate, GuestMeasurements, MissingMeasurement},
};
use crate::{
    endpoint::Address,
    progress::{Reporter, describe},
    qemu::{
        Process, ProcessError,
        reply::{BlockStats, RunState},
    },
    quantity::Rate,
    run_id::RunId,
    storage::{mirror::link_probe, model::layout::Disk},
};
use qapi::qmp;
use std::{
    fs,
    time::{Duration, Instant},
};
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

/// The number of queries that a round trip is measured with.
const QUESTIONS: usize = 5;
/// The interval at which QEMU is asked whether a window is over.
const LOOK: Duration = Duration::from_millis(10);
/// The time after its window in which a measurement may still be reading the guest's pages.
const READING: Duration = Duration::from_secs(5);
/// The time that the kernel has to tell which pages of a process are in memory.
const MAPPINGS: Duration = Duration::from_secs(2);

/// The source of the bandwidth that a prediction uses.
#[derive(Debug, Clone, Copy)]
pub enum BandwidthSource<'a> {
    /// The setting for the ceiling, so nothing is measured.
    Ceiling,
    /// A probe: the run sends data to an NBD server of the destination at this address.
    Probe(&'a RunId, &'a Address),
}

/// Measures. `facts` are the source's, and `disks` are those of its disks that would move. Gives `None` when the
/// measurement was cancelled; its exports are closed then, too.
pub async fn measure(
    source: &Process,
    destination: &Process,
    facts: &SideFacts,
    disks: &[&Disk],
    way: BandwidthSource<'_>,
    report: &Reporter,
    cancelled: impl Future<Output = ()>,
) -> Option<GuestMeasurements> {
    let mut measured = GuestMeasurements { running: facts.run == RunState::Running, ..GuestMeasurements::default() };
    let mut cancelled = std::pin::pin!(cancelled);
    let looked = async {
        measured.source_round_trip = measured.take("round-trip", round_trip(source).await);
        measured.destination_round_trip = measured.take("round-trip", round_trip(destination).await);
        measured.used = used(facts).await;
        if measured.running {
            look_at_guest(source, facts, disks, &mut measured).await;
        }
    };
    // no export is open so far, and QEMU ends its own measurement by itself
    tokio::select! {
        biased;
        () = &mut cancelled => return None,
        () = looked => {}
    }
    // the probe comes last: it could slow the guest down while its work is measured
    let (bandwidth, is_cancelled) = match way {
        BandwidthSource::Ceiling => (Ok(None), false),
        BandwidthSource::Probe(run, address) => {
            let mut is_cancelled = false;
            let cancelled = async {
                cancelled.await;
                is_cancelled = true;
            };
            let bandwidth = bandwidth(run, source, destination, address, report, cancelled).await;
            (bandwidth, is_cancelled)
        }
    };
    measured.bandwidth = measured.take("bandwidth", bandwidth);
    (!is_cancelled).then_some(measured)
}

impl GuestMeasurements {
    /// Takes the result of a measurement, or notes why there is none.
    fn take<T: Default>(&mut self, what: &'static str, result: Result<T, String>) -> T {
        result.unwrap_or_else(|why| {
            self.missing.push(MissingMeasurement { what, why });
            T::default()
        })
    }
}

/// The median time from a query to its answer.
async fn round_trip(process: &Process) -> Result<Duration, String> {
    let mut times = Vec::new();
    for _ in 0..QUESTIONS {
        let asked = Instant::now();
        process.ask(&qmp::query_status {}).await.map_err(|error| describe(&error))?;
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    Ok(times[QUESTIONS / 2])
}

/// Measures the memory that the guest dirties and the bytes that it writes to disks, at the same time.
async fn look_at_guest(source: &Process, facts: &SideFacts, disks: &[&Disk], measured: &mut GuestMeasurements) {
    let before = stats(source).await;
    let dirtied = dirtied(source, facts).await;
    // without a window of the dirty rate there is no time in which writes are counted, so one is waited for
    if dirtied.as_ref().map_or(true, Vec::is_empty) {
        sleep(measurements::WINDOW[0]).await;
    }
    let after = stats(source).await;
    measured.dirtied = measured.take("dirty-rate", dirtied);
    let rates = before.and_then(|(since, before)| {
        let (until, after) = after?;
        Ok(disks.iter().map(|disk| rate(disk, &before, &after, until - since)).collect())
    });
    let rates: Vec<Result<DiskRate, String>> = measured.take("disk-rate", rates);
    for rate in rates {
        match rate {
            Ok(rate) => measured.disks.push(rate),
            Err(why) => measured.missing.push(MissingMeasurement { what: "disk-rate", why }),
        }
    }
}

/// The statistics of all devices, with the time of the answer.
async fn stats(source: &Process) -> Result<(Instant, Vec<BlockStats>), String> {
    let answer = source.ask(&qmp::query_blockstats { query_nodes: None }).await;
    answer.map(|list| (Instant::now(), list.0)).map_err(|error| describe(&error))
}

fn rate(disk: &Disk, before: &[BlockStats], after: &[BlockStats], window: Duration) -> Result<DiskRate, String> {
    let rate = measurements::disk_rate(disk, before, after, window);
    rate.ok_or_else(|| format!("QEMU's statistics do not have the disk {}", disk.name()))
}

/// The bytes of memory that the guest dirties in each window.
async fn dirtied(source: &Process, facts: &SideFacts) -> Result<Vec<(Duration, u64)>, String> {
    let pages = measurements::sample_pages(&blocks(facts))?;
    let milliseconds = source.features().dirty_rate_milliseconds;
    let mut found = Vec::new();
    let mut windows = measurements::windows(milliseconds).to_vec();
    while let Some(&window) = windows.get(found.len()) {
        let rate = dirty_rate(source, window, milliseconds, pages).await.map_err(|error| describe(&error))?;
        found.push((window, measurements::dirtied(rate, window)));
        if found.len() == windows.len() {
            windows.extend(measurements::another(&found));
        }
    }
    Ok(found)
}

/// Begins to measure the memory that the guest dirties in a window, which has whole seconds where the build knows no
/// others; `query-dirty-rate` has the result afterwards. The command is sent when the function is called. Gives whether
/// the measurement began: a build that cannot measure, a guest with little memory, or a measurement that is under way
/// already are no errors.
pub fn begin(source: &Process, window: Duration, ram: u64) -> impl Future<Output = bool> + use<> {
    let milliseconds = source.features().dirty_rate_milliseconds;
    let pages = measurements::sample_pages(&[ram]).ok().filter(|_| source.features().dirty_rate);
    let asked = pages.map(|pages| source.act(&calc_dirty_rate(window, milliseconds, pages)));
    async {
        match asked {
            Some(asked) => asked.await.is_ok(),
            None => false,
        }
    }
}

/// The dirty rate of a window, MiB/s. Pages are sampled, which neither slows the guest nor needs a feature of the
/// accelerator. The other modes are never used: without KVM, QEMU 7.2 crashes when it is asked for them.
async fn dirty_rate(source: &Process, window: Duration, milliseconds: bool, pages: u64) -> Result<u64, ProcessError> {
    source.act(&calc_dirty_rate(window, milliseconds, pages)).await?;
    let measured = async {
        sleep(window).await;
        loop {
            let answer = source.ask(&qmp::query_dirty_rate { calc_time_unit: None }).await?;
            match answer.measured() {
                Some(rate) => return Ok(rate),
                None => sleep(LOOK).await,
            }
        }
    };
    let waited = window + READING;
    let late = ProcessError::Late { at: source.name().clone(), what: "dirty rate", waited };
    timeout(waited, measured).await.unwrap_or(Err(late))
}

fn calc_dirty_rate(window: Duration, milliseconds: bool, pages: u64) -> qmp::calc_dirty_rate {
    let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
    qmp::calc_dirty_rate {
        calc_time: if milliseconds { number(window.as_millis()) } else { number(u128::from(window.as_secs())) },
        calc_time_unit: milliseconds.then_some(qmp::TimeUnit::millisecond),
        mode: None,
        sample_pages: i64::try_from(pages).ok(),
    }
}

/// The sizes of the blocks that the guest's RAM is made of.
fn blocks(facts: &SideFacts) -> Vec<u64> {
    match &facts.machine.ram_blocks {
        // small blocks are video memory and firmware
        Some(blocks) => blocks.values().map(|block| block.used).filter(|used| *used > facts.ram / 64).collect(),
        None => vec![facts.ram],
    }
}

/// The bytes of RAM that were ever touched; `None` where the source's `smaps` cannot be read.
async fn used(facts: &SideFacts) -> Option<u64> {
    let (pid, blocks) = (facts.pid?, blocks(facts));
    let read = spawn_blocking(move || {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
        measurements::used(&smaps, &blocks)
    });
    timeout(MAPPINGS, read).await.ok()?.ok()?
}

/// The rate at which a probe arrives at the destination.
async fn bandwidth(
    run: &RunId,
    source: &Process,
    destination: &Process,
    address: &Address,
    report: &Reporter,
    cancelled: impl Future<Output = ()>,
) -> Result<Option<Rate>, String> {
    let (samples, closed) =
        link_probe::run(run, source, destination, address, measurements::is_probed, cancelled).await;
    if let Err(error) = closed {
        let why = describe(&error);
        report.warn("probe-not-closed", format!("the export or node of the probe may still be there: {why}"));
    }
    match samples {
        Ok(samples) => measurements::bandwidth(&samples).map(Some).ok_or_else(|| "nothing arrived".to_owned()),
        Err(error) => Err(describe(&error)),
    }
}
