//! The mirrors on the source: a `drive-mirror` job per disk, from its proved start to its settled end.
//!
//! The engine must never complete a mirror, which would pivot the guest onto NBD. A `block-job-cancel` that QEMU
//! accepts is no success yet: only a job that concludes without an error has copied everything to the destination.

use super::{
    export,
    start_race::{self, StartProof},
};
use crate::{
    endpoint::Address,
    progress::Moment,
    qemu::{
        Observed, Process, ProcessError,
        reply::{BlockJobInfo, BlockNode, JobStatus, TolerantList},
    },
    storage::model::layout::{CopyMode, DiskPair},
};
use qapi::qmp;
use std::time::Duration;
use thiserror::Error;
use tokio::{
    time::{sleep, timeout},
    try_join,
};

/// How long a mirror may take to initialise its bitmap: QEMU reads all metadata of the overlay, slowly if throttled.
const INITIALISE: Duration = Duration::from_secs(120);
/// How long a ready mirror may take to end gracefully before the engine forces the end.
const GRACEFUL: Duration = Duration::from_secs(2);
/// How long an aborted mirror may take to conclude.
const ABORT: Duration = Duration::from_secs(5);
/// How often the engine asks whether mirrors have initialised: QEMU sends no event.
const LOOK: Duration = Duration::from_millis(20);

/// What is said of a mirror that concluded without an error, though the engine had not told it to end.
const ENDED_EARLY: &str = "its job ended early: another client has cancelled or completed it";

/// Why the disks could not be mirrored.
#[derive(Debug, Error)]
pub enum MirrorError {
    /// A mirror ended, or never caught up.
    #[error("the mirror of disk {disk} failed: {error}")]
    Failed {
        /// The disk's name.
        disk: String,
        /// QEMU's error text.
        error: String,
    },
    /// A command failed.
    #[error("the disks could not be mirrored")]
    Process(#[from] ProcessError),
}

/// Starts a mirror for each pair, all at once, and judges each start. Returns the pairs into whose start a write fell,
/// each with the bytes written: their mirrors are removed again. The other mirrors are proved to have missed no write,
/// by their bitmaps or by a version of QEMU that lacks the race.
///
/// # Errors
/// QEMU refuses a mirror or a bitmap, or a mirror ends.
pub async fn start<'a>(
    source: &Process,
    pairs: &[&'a DiskPair],
    nbd: &Address,
    speed: impl Fn(&DiskPair) -> Option<u64>,
) -> Result<Vec<(&'a DiskPair, u64)>, MirrorError> {
    // Send every command before awaiting any answer: fewer round trips leave less time for a write to fall into a
    // start.
    let commands: Vec<_> = pairs
        .iter()
        .map(|pair| {
            let bitmap = source.act(&qmp::block_dirty_bitmap_add(guard_bitmap(pair)));
            let mirror = source.act(&qmp::drive_mirror(drive_mirror(
                pair,
                export::target(nbd, pair, source.features()),
                speed(pair),
            )));
            async { try_join!(bitmap, mirror).map(drop) }
        })
        .collect();
    let has_race = start_race::may_be_in(source.version());
    let mut look = look(source);
    all(commands.into_iter()).await?;

    let mut dirty = Vec::new();
    let mut pending = pairs.to_vec();
    let judged = async {
        loop {
            let (jobs, nodes) = look.await?;
            let mut unfinished = Vec::new();
            for &pair in &pending {
                let job = find(&jobs.0, pair)?;
                match start_race::judge(job, &nodes.0, &pair.source.node, &pair.names.bitmap) {
                    StartProof::Unfinished => unfinished.push(pair),
                    StartProof::Clean => {}
                    StartProof::Dirty(_) if !has_race => {}
                    StartProof::Dirty(bytes) => dirty.push((pair, bytes)),
                }
            }
            pending = unfinished;
            if pending.is_empty() {
                return Ok::<(), MirrorError>(());
            }
            sleep(LOOK).await;
            look = self::look(source);
        }
    };
    timeout(INITIALISE, judged).await.map_err(|_| late(source, "end of the mirrors' initialisation", INITIALISE))??;

    for (pair, _) in &dirty {
        abort(source, &pair.names.job).await?;
    }
    all(pairs.iter().map(|pair| source.act(&remove_bitmap(pair)))).await?;
    Ok(dirty)
}

/// Asks for the jobs and then for the nodes with their bitmaps. The order matters: a bitmap's count proves something
/// only if the job had initialised before QEMU read the count.
fn look(
    source: &Process,
) -> impl Future<Output = Result<(TolerantList<BlockJobInfo>, TolerantList<BlockNode>), ProcessError>> + use<> {
    let jobs = source.ask(&qmp::query_block_jobs {});
    let nodes = source.ask(&qmp::query_named_block_nodes { flat: Some(true) });
    async { try_join!(jobs, nodes) }
}

/// The progress of each mirror, in the order of `pairs`.
///
/// # Errors
/// A mirror has ended.
pub fn progress<'a>(
    source: &Process,
    pairs: &'a [DiskPair],
) -> impl Future<Output = Result<Vec<BlockJobInfo>, MirrorError>> + use<'a> {
    let jobs = source.ask(&qmp::query_block_jobs {});
    async {
        let jobs = jobs.await?.0;
        pairs.iter().map(|pair| find(&jobs, pair).cloned()).collect()
    }
}

/// Waits until QEMU's events report that every mirror is ready, or that one failed.
pub async fn turned(source: &Process, pairs: &[DiskPair]) {
    let mut watch = source.watch();
    let turned = |seen: &Observed| pairs.iter().all(|pair| is_ready(seen, pair)) || failed(seen, pairs).is_some();
    if watch.wait_for(turned).await.is_err() {
        // The connection has closed, which the engine notices elsewhere.
        std::future::pending().await
    }
}

/// Switches mirrors to write-blocking, each with its current limit in bytes per second: as soon as QEMU reports a
/// mirror as actively synced, the destination has every write.
///
/// A ready mirror sleeps for 100 ms (`BLOCK_JOB_SLICE_TIME`) before it checks whether it is synced. A new limit wakes
/// the mirror, if the limit is lifted or raised (`block_job_set_speed_locked` in `blockjob.c`).
///
/// # Errors
/// QEMU refuses, above all because its version cannot change the mode of a running mirror.
pub async fn write_blocking(source: &Process, pairs: &[(&DiskPair, Option<u64>)]) -> Result<(), ProcessError> {
    all(pairs.iter().map(|(pair, _)| {
        source.act(&qmp::block_job_change(qmp::BlockJobChangeOptions::mirror {
            id: pair.names.job.clone(),
            mirror: qmp::BlockJobChangeOptionsMirror { copy_mode: qmp::MirrorCopyMode::write_blocking },
        }))
    }))
    .await?;
    let more = |speed: Option<u64>| speed.map(|speed| speed.saturating_add(1));
    if let Err(error) = all(pairs.iter().map(|(pair, speed)| source.act(&set_speed(pair, more(*speed))))).await {
        // The mirrors notice by themselves a little later.
        tracing::debug!(%error, "the mirrors were not woken");
    }
    Ok(())
}

/// Limits the background copy of a mirror, bytes per second; `None` is no limit.
///
/// # Errors
/// QEMU refuses, or does not answer.
pub async fn limit(source: &Process, pair: &DiskPair, speed: Option<u64>) -> Result<(), ProcessError> {
    source.act(&set_speed(pair, speed)).await
}

fn set_speed(pair: &DiskPair, speed: Option<u64>) -> qmp::block_job_set_speed {
    // QEMU reads 0 as no limit.
    let speed = speed.map_or(0, |speed| i64::try_from(speed.max(1)).unwrap_or(i64::MAX));
    qmp::block_job_set_speed { device: pair.names.job.clone(), speed }
}

/// Waits until a mirror fails; never returns if none does.
pub async fn failure(source: &Process, pairs: &[DiskPair]) -> MirrorError {
    let mut watch = source.watch();
    let failed = watch.wait_for(|seen| failed(seen, pairs).is_some()).await.ok().and_then(|seen| failed(&seen, pairs));
    match failed {
        Some((disk, error)) => MirrorError::Failed { disk, error },
        // The connection has closed, which the engine notices elsewhere.
        None => std::future::pending().await,
    }
}

/// Ends every mirror gracefully while the guest is stopped: when a mirror concludes, the destination has all its
/// writes. Returns the moment when the last one concluded. The commands are sent when the function is called, before
/// the future is awaited.
///
/// # Errors
/// A mirror was not ready, concludes with an error, or does not conclude before `deadline`.
pub fn settle<'a>(
    source: &'a Process,
    pairs: &'a [DiskPair],
    deadline: Duration,
) -> impl Future<Output = Result<Option<Moment>, MirrorError>> + use<'a> {
    let cancels: Vec<_> = pairs
        .iter()
        .map(|pair| source.act(&qmp::block_job_cancel { device: pair.names.job.clone(), force: None }))
        .collect();
    async move {
        all(cancels.into_iter()).await?;
        let told = |seen: &Observed| match failed_to_settle(seen, pairs) {
            Some(failure) => Some(Err(failure)),
            None => last_concluded(seen, pairs).map(Ok),
        };
        // The engine asks for the error of each concluded job afterwards, so this answer need not tell.
        let mirrors: Vec<&str> = pairs.iter().map(|pair| pair.names.job.as_str()).collect();
        let asked = || async { has_concluded(source, &mirrors).await.then(|| Ok(Some(Moment::now()))) };
        match source.until_known("end of the mirrors", deadline, told, asked).await? {
            Ok(last) => Ok(last),
            Err((disk, error)) => Err(MirrorError::Failed { disk, error }),
        }
    }
}

/// Dismisses the settled mirrors, which QEMU keeps listed after they concluded.
///
/// # Errors
/// QEMU refuses, or does not answer.
pub async fn dismiss(source: &Process, pairs: &[DiskPair]) -> Result<(), ProcessError> {
    all(pairs.iter().map(|pair| source.act(&qmp::job_dismiss { id: pair.names.job.clone() }))).await
}

/// Ends one mirror, whatever its state, and dismisses it. A job that does not exist is no error.
///
/// # Errors
/// The job does not conclude, or QEMU does not answer.
pub async fn abort(source: &Process, job: &str) -> Result<(), ProcessError> {
    let jobs = source.ask(&qmp::query_jobs {}).await?.0;
    let Some(found) = jobs.iter().find(|found| found.id == job) else {
        return Ok(());
    };
    // End a ready mirror gracefully first. While the guest writes and waits for the destination, a forced end sometimes
    // corrupts the heap of QEMU 10.0.13, which kills the guest.
    let mut ended = found.status == JobStatus::Concluded;
    if found.status == JobStatus::Ready {
        let told = source.act(&qmp::block_job_cancel { device: job.to_owned(), force: None }).await;
        ended = told.is_ok() && ends(source, job, GRACEFUL).await;
    }
    if !ended {
        // QEMU refuses if the job concludes just now; the wait below shows the end.
        if let Err(error) = source.act(&qmp::block_job_cancel { device: job.to_owned(), force: Some(true) }).await {
            if !error.is_refusal() {
                return Err(error);
            }
        }
        until_ended(source, job, "end of an aborted mirror", ABORT).await?;
    }
    source.act(&qmp::job_dismiss { id: job.to_owned() }).await
}

/// Whether a mirror concludes within a time.
pub async fn ends(source: &Process, job: &str, within: Duration) -> bool {
    until_ended(source, job, "end of a mirror", within).await.is_ok()
}

async fn until_ended(
    source: &Process,
    job: &str,
    what: &'static str,
    within: Duration,
) -> Result<Moment, ProcessError> {
    let concluded = || async { has_concluded(source, &[job]).await.then(Moment::now) };
    source.until_known(what, within, |seen| seen.jobs.get(job)?.concluded, concluded).await
}

/// The command that removes the bitmap that proved a pair's start.
pub fn remove_bitmap(pair: &DiskPair) -> qmp::block_dirty_bitmap_remove {
    qmp::block_dirty_bitmap_remove(qmp::BlockDirtyBitmap {
        name: pair.names.bitmap.clone(),
        node: pair.source.node.clone(),
    })
}

fn guard_bitmap(pair: &DiskPair) -> qmp::BlockDirtyBitmapAdd {
    qmp::BlockDirtyBitmapAdd {
        name: pair.names.bitmap.clone(),
        node: pair.source.node.clone(),
        persistent: Some(false),
        disabled: None,
        granularity: None,
    }
}

fn drive_mirror(pair: &DiskPair, target: String, speed: Option<u64>) -> qmp::DriveMirror {
    qmp::DriveMirror {
        job_id: Some(pair.names.job.clone()),
        device: pair.source.node.clone(),
        target,
        node_name: Some(pair.names.target.clone()),
        sync: match pair.mode {
            CopyMode::Incremental => qmp::MirrorSyncMode::top,
            CopyMode::Full => qmp::MirrorSyncMode::full,
        },
        mode: Some(qmp::NewImageMode::existing),
        auto_dismiss: Some(false),
        speed: speed.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        on_source_error: None,
        // `ignore` would never end once the destination is dead.
        on_target_error: Some(qmp::BlockdevOnError::report),
        auto_finalize: None,
        buf_size: None,
        copy_mode: None,
        format: None,
        granularity: None,
        replaces: None,
        unmap: None,
    }
}

/// The running job of a pair.
fn find<'a>(jobs: &'a [BlockJobInfo], pair: &DiskPair) -> Result<&'a BlockJobInfo, MirrorError> {
    let failed = |error: &str| MirrorError::Failed { disk: pair.source.name().to_owned(), error: error.to_owned() };
    let job = jobs.iter().find(|job| job.device == pair.names.job).ok_or_else(|| failed("its job has vanished"))?;
    match (&job.error, &job.status) {
        (Some(error), _) => Err(failed(error)),
        (None, JobStatus::Concluded) => Err(failed(ENDED_EARLY)),
        _ => Ok(job),
    }
}

/// Whether all mirrors have ended, well or not. A QEMU that does not answer counts as `false`.
async fn has_concluded(source: &Process, mirrors: &[&str]) -> bool {
    let Ok(jobs) = source.ask(&qmp::query_jobs {}).await else { return false };
    !jobs.0.iter().any(|job| mirrors.contains(&job.id.as_str()) && job.status != JobStatus::Concluded)
}

fn is_ready(seen: &Observed, pair: &DiskPair) -> bool {
    seen.jobs.get(&pair.names.job).is_some_and(|job| job.status == Some(JobStatus::Ready))
}

/// The first mirror that concluded. A mirror with an error concludes at once, because of `on-target-error=report`.
fn failed(seen: &Observed, pairs: &[DiskPair]) -> Option<(String, String)> {
    pairs.iter().find_map(|pair| {
        let job = seen.jobs.get(&pair.names.job).filter(|job| job.concluded.is_some())?;
        Some((pair.source.name().to_owned(), job.error.clone().unwrap_or_else(|| ENDED_EARLY.to_owned())))
    })
}

/// The first mirror that ended with an error, or before it was ready.
fn failed_to_settle(seen: &Observed, pairs: &[DiskPair]) -> Option<(String, String)> {
    pairs.iter().find_map(|pair| {
        let job = seen.jobs.get(&pair.names.job)?;
        let error = match (&job.error, job.aborted) {
            (Some(error), _) => error.clone(),
            (None, true) => "the mirror was not ready when the guest was stopped".to_owned(),
            (None, false) => return None,
        };
        Some((pair.source.name().to_owned(), error))
    })
}

/// When the last mirror concluded, once all have: `Some(None)` where there are no mirrors.
fn last_concluded(seen: &Observed, pairs: &[DiskPair]) -> Option<Option<Moment>> {
    let concluded = pairs.iter().map(|pair| seen.jobs.get(&pair.names.job)?.concluded);
    let moments: Vec<Moment> = concluded.collect::<Option<_>>()?;
    Some(moments.into_iter().max_by_key(|moment| moment.local))
}

async fn all<T>(commands: impl Iterator<Item = T>) -> Result<(), ProcessError>
where
    T: Future<Output = Result<(), ProcessError>>,
{
    // Collect first: making a future sends its command, so every command is sent before any answer is awaited.
    for answer in commands.collect::<Vec<_>>() {
        answer.await?;
    }
    Ok(())
}

fn late(source: &Process, what: &'static str, waited: Duration) -> ProcessError {
    ProcessError::Late { at: source.name().clone(), what, waited }
}
