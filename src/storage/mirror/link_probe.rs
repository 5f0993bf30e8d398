//! A probe of the link between the QEMUs: how fast bytes arrive over the path that the mirrors would take.
//!
//! A mirror job copies zeros from a `null-co` node on the source to another on the destination, through an NBD server
//! that runs only meanwhile. No image is read or written. The probe must leave nothing behind, however it ends; only a
//! killed process leaves parts behind, under names with the engine's prefix.

use super::{export, mirror_job};
use crate::{
    endpoint::{Address, dial},
    progress::describe,
    qemu::{Features, Process, ProcessError, reply::JobStatus},
    qmp::QmpRequest,
    run_id::RunId,
};
use qapi::qmp;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::time::sleep;

/// The most bytes that a probe sends.
const MOST: u64 = 1 << 30;
/// The mirror's buffer, which bounds the size of a request, bytes. Larger requests keep QEMU's main loop busy for
/// longer and are no faster.
const REQUEST: i64 = 256 << 10;
/// How long a connection to the NBD server may take.
const DIAL: Duration = Duration::from_secs(2);
/// The connections to the NBD server: the one from this process, which may not have been seen to close yet, and the
/// source's.
const CONNECTIONS: usize = 2;
/// How often the probe asks how much has arrived.
const LOOK: Duration = Duration::from_millis(20);

/// Why the link could not be probed.
#[derive(Debug, Error)]
pub enum LinkProbeError {
    /// The mirror job ended before the probe was over.
    #[error("the probe ended early: {0}")]
    Ended(String),
    /// No connection to the address could be opened from this process.
    #[error("this host cannot connect to the address, so the source was not asked to try: {0}")]
    Unreachable(String),
    /// A command failed.
    #[error("the link could not be probed")]
    Process(#[from] ProcessError),
}

/// The course of a probe: times since its start, each with the bytes that had arrived by then.
pub type ArrivalSamples = Vec<(Duration, u64)>;

/// Sends zeros, under names of the run, from the source to the destination's `address` until `is_over` returns true,
/// 1 GiB is sent, or `cancelled` is ready. All parts of the probe are removed before the function returns; the second
/// result is the first failure to remove a part.
pub async fn run(
    run: &RunId,
    source: &Process,
    destination: &Process,
    address: &Address,
    is_over: impl Fn(&[(Duration, u64)]) -> bool,
    cancelled: impl Future<Output = ()>,
) -> (Result<ArrivalSamples, LinkProbeError>, Result<(), ProcessError>) {
    let mut probe = LinkProbe { run, source, destination, address, made: ProbeParts::default() };
    let sent = match probe.open().await {
        Ok(()) => tokio::select! {
            biased;
            () = cancelled => Ok(ArrivalSamples::new()),
            samples = probe.watch(is_over) => samples,
        },
        Err(error) => Err(error),
    };
    (sent, probe.close().await)
}

/// The parts of a probe that exist, or may exist because QEMU did not answer.
#[derive(Debug, Default)]
struct ProbeParts {
    sink: bool,
    server: bool,
    export: bool,
    zeros: bool,
    target: bool,
    job: bool,
}

struct LinkProbe<'a> {
    run: &'a RunId,
    source: &'a Process,
    destination: &'a Process,
    address: &'a Address,
    made: ProbeParts,
}

impl LinkProbe<'_> {
    async fn open(&mut self) -> Result<(), LinkProbeError> {
        let (run, source, destination, made) = (self.run, self.source, self.destination, &mut self.made);
        // A sink that reads as zeros would look up to date already, and the mirror would send nothing.
        make(&mut made.sink, add(destination, &null(run, "sink", false))).await?;
        make(&mut made.server, export::start_server(destination, self.address, Some(CONNECTIONS))).await?;
        let export = name(run, "export");
        let options = export::options(&export, &export, &name(run, "sink"), true);
        make(&mut made.export, destination.act(&qmp::block_export_add(options))).await?;
        if let Address::Tcp { .. } = self.address {
            // A QEMU that connects to an address where a firewall drops every packet hangs for two minutes: try from
            // here.
            let dialed = dial(self.address, DIAL).await;
            dialed.map_err(|error| LinkProbeError::Unreachable(describe(&error)))?;
        }
        make(&mut made.zeros, add(source, &null(run, "zeros", true))).await?;
        make(&mut made.target, add(source, &target(run, self.address, source.features()))).await?;
        make(&mut made.job, source.act(&blockdev_mirror(run))).await?;
        Ok(())
    }

    /// Samples how much has arrived until the probe is over.
    async fn watch(&self, is_over: impl Fn(&[(Duration, u64)]) -> bool) -> Result<ArrivalSamples, LinkProbeError> {
        let (began, id) = (Instant::now(), name(self.run, "job"));
        let mut samples = ArrivalSamples::new();
        loop {
            let jobs = self.source.ask(&qmp::query_jobs {}).await?.0;
            let job = jobs.into_iter().find(|job| job.id == id);
            let job = job.ok_or_else(|| LinkProbeError::Ended("its mirror job has vanished".to_owned()))?;
            if job.status == JobStatus::Concluded {
                return Err(LinkProbeError::Ended(job.error.unwrap_or_else(|| "without an error".to_owned())));
            }
            samples.push((began.elapsed(), job.current_progress));
            if job.status == JobStatus::Ready || is_over(&samples) {
                return Ok(samples);
            }
            sleep(LOOK).await;
        }
    }

    /// Removes the parts, the last one first. A part that cannot be removed does not keep the others.
    async fn close(self) -> Result<(), ProcessError> {
        let Self { run, source, destination, address, made } = self;
        let mut first = Ok(());
        let mut note = |done: Result<(), ProcessError>| {
            if let Err(error) = done {
                tracing::debug!(%error, "a part of the probe could not be removed");
                if first.is_ok() {
                    first = Err(error);
                }
            }
        };
        if made.job {
            note(mirror_job::abort(source, &name(run, "job")).await);
        }
        for (made, node) in [(made.target, "nbd"), (made.zeros, "zeros")] {
            if made {
                note(source.act(&qmp::blockdev_del { node_name: name(run, node) }).await);
            }
        }
        if made.export {
            let mode = Some(qmp::BlockExportRemoveMode::hard);
            // An export that is already closed is no failure: stopping the server proves that it is closed.
            drop(destination.act(&qmp::block_export_del { id: name(run, "export"), mode }).await);
        }
        if made.server {
            note(destination.act(&qmp::nbd_server_stop {}).await);
            if let Address::Unix(path) = address {
                // QEMU itself removes the socket, unless QEMU was killed.
                drop(std::fs::remove_file(path));
            }
        }
        if made.sink {
            note(destination.act(&qmp::blockdev_del { node_name: name(run, "sink") }).await);
        }
        first
    }
}

/// Awaits the command that makes a part. Unless the command provably had no effect, the part counts as made.
async fn make(made: &mut bool, done: impl Future<Output = Result<(), ProcessError>>) -> Result<(), ProcessError> {
    let done = done.await;
    *made = done.as_ref().err().is_none_or(|error| !error.is_without_effect());
    done
}

/// The name that a run gives to a part of its probe. QEMU's limit for the names of nodes allows `what` five characters.
fn name(run: &RunId, what: &str) -> String {
    run.name(format_args!("probe-{what}"))
}

/// Adds a node with these options of `blockdev-add`.
fn add(process: &Process, options: &Value) -> impl Future<Output = Result<(), ProcessError>> + use<> {
    let options = options.as_object().into_iter().flatten();
    let request =
        options.fold(QmpRequest::named("blockdev-add"), |request, (key, value)| request.with(key, value.clone()));
    process.act_with("blockdev-add", request)
}

/// A node that accepts writes and stores nothing. Without `zeros` a read returns arbitrary bytes.
fn null(run: &RunId, what: &str, zeros: bool) -> Value {
    json!({ "driver": "null-co", "node-name": name(run, what), "size": MOST, "read-zeroes": zeros })
}

/// The export, as a node of the source to which QEMU writes zeros as data: blkdebug rejects "write zeroes" requests
/// that are smaller than `opt-write-zero`, and every request of the mirror is. (A source node that did not read as
/// zeros would send remains of QEMU's memory.)
fn target(run: &RunId, address: &Address, source: &Features) -> Value {
    // The NBD node has no name of its own, so QEMU removes it together with this node.
    let image = json!({ "driver": "nbd", "server": export::server(address, source), "export": name(run, "export") });
    json!({ "driver": "blkdebug", "node-name": name(run, "nbd"), "opt-write-zero": 32 << 20, "image": image })
}

fn blockdev_mirror(run: &RunId) -> qmp::blockdev_mirror {
    qmp::blockdev_mirror {
        job_id: Some(name(run, "job")),
        device: name(run, "zeros"),
        target: name(run, "nbd"),
        sync: qmp::MirrorSyncMode::full,
        auto_dismiss: Some(false),
        buf_size: Some(REQUEST),
        on_target_error: Some(qmp::BlockdevOnError::report),
        auto_finalize: None,
        copy_mode: None,
        filter_node_name: None,
        granularity: None,
        on_source_error: None,
        replaces: None,
        speed: None,
    }
}
