//! The source's side of the disks: a `drive-mirror` per disk, from its proved start to its settled end.
//!
//! It must never complete a mirror (that would pivot the guest onto NBD), and never take a `block-job-cancel` that QEMU
//! accepted for one that went well: only a job that concludes without an error has everything on the other side.

use super::{
    export,
    start_race::{self, StartProof},
};
use crate::{
    endpoint::Address,
    progress::Moment,
    qemu::{
        Observed, Process, ProcessError,
        reply::{BlockJob, BlockNode, JobStatus, List},
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

/// How long a mirror may take to initialise its bitmap: it reads all metadata of the overlay, slowly where throttled.
const INITIALISE: Duration = Duration::from_secs(120);
/// How long a mirror that is ready may take to end gracefully, before it is made to.
const GRACEFUL: Duration = Duration::from_secs(2);
/// How long an aborted mirror may take to conclude.
const ABORT: Duration = Duration::from_secs(5);
/// How often the end of the initialisation is looked for: no event tells it.
const LOOK: Duration = Duration::from_millis(20);

/// Why the disks could not be carried over.
#[derive(Debug, Error)]
pub enum MirrorError {
    /// A mirror ended, or never caught up.
    #[error("the mirror of disk {disk} failed: {error}")]
    Failed {
        /// The disk's name.
        disk: String,
        /// QEMU's words.
        error: String,
    },
    /// A command failed.
    #[error("the disks could not be mirrored")]
    Process(#[from] ProcessError),
}

/// Starts a mirror for each pair, all at once, and judges each start. Gives the pairs into whose starts writes fell, with how
/// many bytes: their mirrors have been removed again. The others are proved to have missed no write.
///
/// # Errors
/// A mirror that is refused or ends, a bitmap that is refused.
pub async fn start<'a>(
    source: &Process,
    pairs: &[&'a DiskPair],
    nbd: &Address,
    speed: impl Fn(&DiskPair) -> Option<u64>,
) -> Result<Vec<(&'a DiskPair, u64)>, MirrorError> {
    // everything is on its way before any answer is awaited: the fewer round trips, the fewer writes fall in between
    let commands: Vec<_> = pairs
        .iter()
        .map(|pair| {
            let bitmap = source.act(&qmp::block_dirty_bitmap_add(guard_bitmap(pair)));
            let mirror = source.act(&qmp::drive_mirror(drive_mirror(pair, nbd, speed(pair))));
            async { try_join!(bitmap, mirror).map(drop) }
        })
        .collect();
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

/// Asks for the jobs and then for the nodes with their bitmaps: in this order, for a count is only worth something once
/// the job was seen past its initialisation.
fn look(source: &Process) -> impl Future<Output = Result<(List<BlockJob>, List<BlockNode>), ProcessError>> + use<> {
    let jobs = source.ask(&qmp::query_block_jobs {});
    let nodes = source.ask(&qmp::query_named_block_nodes { flat: Some(true) });
    async { try_join!(jobs, nodes) }
}

/// How far each mirror is, in the order of `pairs`.
///
/// # Errors
/// A mirror that ended.
pub fn progress<'a>(
    source: &Process,
    pairs: &'a [DiskPair],
) -> impl Future<Output = Result<Vec<BlockJob>, MirrorError>> + use<'a> {
    let jobs = source.ask(&qmp::query_block_jobs {});
    async {
        let jobs = jobs.await?.0;
        pairs.iter().map(|pair| find(&jobs, pair).cloned()).collect()
    }
}

/// Waits until the events have told that every mirror has caught up, or that one failed.
pub async fn turned(source: &Process, pairs: &[DiskPair]) {
    let mut watch = source.watch();
    let turned = |seen: &Observed| pairs.iter().all(|pair| is_ready(seen, pair)) || failed(seen, pairs).is_some();
    if watch.wait_for(turned).await.is_err() {
        // the connection is gone, which others notice and name
        std::future::pending().await
    }
}

/// Switches mirrors, each with what it may copy, to write-blocking: from when QEMU calls them actively synced on, no write is
/// behind.
///
/// A mirror that is ready sleeps for 100 ms (`BLOCK_JOB_SLICE_TIME`) before it looks whether it is in step. It is woken by
/// another limit, if that is none or more than it was (`block_job_set_speed_locked` in `blockjob.c`).
///
/// # Errors
/// What QEMU says: above all that it cannot.
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
        // they notice by themselves a little later
        tracing::debug!(%error, "the mirrors were not woken");
    }
    Ok(())
}

/// Limits what a mirror copies in the background, bytes per second; `None` is no limit.
///
/// # Errors
/// What QEMU says.
pub async fn limit(source: &Process, pair: &DiskPair, speed: Option<u64>) -> Result<(), ProcessError> {
    source.act(&set_speed(pair, speed)).await
}

fn set_speed(pair: &DiskPair, speed: Option<u64>) -> qmp::block_job_set_speed {
    // 0 is QEMU's word for no limit
    let speed = speed.map_or(0, |speed| i64::try_from(speed.max(1)).unwrap_or(i64::MAX));
    qmp::block_job_set_speed { device: pair.names.job.clone(), speed }
}

/// Waits until a mirror fails; for ever if none does.
pub async fn failure(source: &Process, pairs: &[DiskPair]) -> MirrorError {
    let mut watch = source.watch();
    let failed = watch.wait_for(|seen| failed(seen, pairs).is_some()).await.ok().and_then(|seen| failed(&seen, pairs));
    match failed {
        Some((disk, error)) => MirrorError::Failed { disk, error },
        // the connection is gone, which others notice and name
        None => std::future::pending().await,
    }
}

/// Ends every mirror gracefully, with the guest stopped: all its writes are on the other side when it concludes, which may
/// take this long. The commands are on their way when this returns.
///
/// # Errors
/// Any mirror that was not ready, concludes with an error, or does not conclude.
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
        // how they concluded is asked afterwards in any case
        let mirrors: Vec<&str> = pairs.iter().map(|pair| pair.names.job.as_str()).collect();
        let asked = || async { has_concluded(source, &mirrors).await.then(|| Ok(Some(Moment::now()))) };
        match source.until_known("end of the mirrors", deadline, told, asked).await? {
            Ok(last) => Ok(last),
            Err((disk, error)) => Err(MirrorError::Failed { disk, error }),
        }
    }
}

/// Removes the settled mirrors' records.
///
/// # Errors
/// What QEMU says.
pub async fn dismiss(source: &Process, pairs: &[DiskPair]) -> Result<(), ProcessError> {
    all(pairs.iter().map(|pair| source.act(&qmp::job_dismiss { id: pair.names.job.clone() }))).await
}

/// Ends one mirror, whatever its state, and removes its record; that there is none is fine.
///
/// # Errors
/// It does not conclude, or QEMU does not answer.
pub async fn abort(source: &Process, job: &str) -> Result<(), ProcessError> {
    let jobs = source.ask(&qmp::query_jobs {}).await?.0;
    let Some(found) = jobs.iter().find(|found| found.id == job) else {
        return Ok(());
    };
    let concluded = || async { has_concluded(source, &[job]).await.then(Moment::now) };
    let seen = |seen: &Observed| seen.jobs.get(job)?.concluded;
    // One that is ready ends gracefully as well, and first of all: while its guest writes and waits for the other side, a
    // forced end now and then corrupts the heap of QEMU 10.0.13, and takes the guest with it.
    let mut ended = found.status == JobStatus::Concluded;
    if found.status == JobStatus::Ready {
        let told = source.act(&qmp::block_job_cancel { device: job.to_owned(), force: None }).await;
        ended = told.is_ok() && source.until_known("end of a mirror", GRACEFUL, seen, concluded).await.is_ok();
    }
    if !ended {
        // refused if it concludes just now: the wait below tells
        if let Err(error) = source.act(&qmp::block_job_cancel { device: job.to_owned(), force: Some(true) }).await {
            if !error.is_refusal() {
                return Err(error);
            }
        }
        source.until_known("end of an aborted mirror", ABORT, seen, concluded).await?;
    }
    source.act(&qmp::job_dismiss { id: job.to_owned() }).await
}

/// The command that removes a pair's guard bitmap.
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

fn drive_mirror(pair: &DiskPair, nbd: &Address, speed: Option<u64>) -> qmp::DriveMirror {
    qmp::DriveMirror {
        job_id: Some(pair.names.job.clone()),
        device: pair.source.node.clone(),
        target: export::target(nbd, pair),
        node_name: Some(pair.names.target.clone()),
        sync: match pair.mode {
            CopyMode::Incremental => qmp::MirrorSyncMode::top,
            CopyMode::Full => qmp::MirrorSyncMode::full,
        },
        mode: Some(qmp::NewImageMode::existing),
        auto_dismiss: Some(false),
        speed: speed.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        on_source_error: None,
        // not `ignore`, which never ends once the peer is dead
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

/// Finds a pair's job, alive.
fn find<'a>(jobs: &'a [BlockJob], pair: &DiskPair) -> Result<&'a BlockJob, MirrorError> {
    let failed = |error: &str| MirrorError::Failed { disk: pair.source.name().to_owned(), error: error.to_owned() };
    let job = jobs.iter().find(|job| job.device == pair.names.job).ok_or_else(|| failed("its job has vanished"))?;
    match (&job.error, &job.status) {
        (Some(error), _) => Err(failed(error)),
        (None, JobStatus::Concluded) => Err(failed("its job ended early")),
        _ => Ok(job),
    }
}

/// Whether no mirror works any more, well ended or not.
async fn has_concluded(source: &Process, mirrors: &[&str]) -> bool {
    let Ok(jobs) = source.ask(&qmp::query_jobs {}).await else { return false };
    !jobs.0.iter().any(|job| mirrors.contains(&job.id.as_str()) && job.status != JobStatus::Concluded)
}

fn is_ready(seen: &Observed, pair: &DiskPair) -> bool {
    seen.jobs.get(&pair.names.job).is_some_and(|job| job.status == Some(JobStatus::Ready))
}

/// The first mirror that concluded. (One that met an error concludes at once, being told to report it.)
fn failed(seen: &Observed, pairs: &[DiskPair]) -> Option<(String, String)> {
    pairs.iter().find_map(|pair| {
        let job = seen.jobs.get(&pair.names.job).filter(|job| job.concluded.is_some())?;
        Some((pair.source.name().to_owned(), job.error.clone().unwrap_or_else(|| "its job ended early".to_owned())))
    })
}

/// The first mirror that ended otherwise than well.
fn failed_to_settle(seen: &Observed, pairs: &[DiskPair]) -> Option<(String, String)> {
    pairs.iter().find_map(|pair| {
        let job = seen.jobs.get(&pair.names.job)?;
        let error = match (&job.error, job.aborted) {
            (Some(error), _) => error.clone(),
            (None, true) => "it was not ready when the guest was stopped".to_owned(),
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
    // collected first: making the future sends the command, so all are on their way before any answer is awaited
    for answer in commands.collect::<Vec<_>>() {
        answer.await?;
    }
    Ok(())
}

fn late(source: &Process, what: &'static str, waited: Duration) -> ProcessError {
    ProcessError::Late { at: source.name().clone(), what, waited }
}
