//! Finds out how much arrives from one QEMU at the other, over the way that the mirrors would take.
//!
//! Zeros are mirrored from a node of nothing on the source to one on the destination, through an NBD server that is there
//! for that time only. No image is read or written. It must leave nothing behind, whatever happens on the way; a killed
//! process does, and what it leaves is named as ours.

use super::{export, mirror_job};
use crate::{
    endpoint::{Address, dial},
    progress::describe,
    qemu::{Process, ProcessError, reply::JobStatus},
    qmp::QmpRequest,
    storage::model::layout::PREFIX,
};
use qapi::qmp;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::time::sleep;

/// The most that is sent.
const MOST: u64 = 1 << 30;
/// What a mirror's request has at most. With more, QEMU's main loop is kept from the guest for longer, and is no faster.
const REQUEST: i64 = 256 << 10;
/// How long a connection may take.
const DIAL: Duration = Duration::from_secs(2);
/// How often is looked how much arrived.
const LOOK: Duration = Duration::from_millis(20);

/// Why nothing could be probed.
#[derive(Debug, Error)]
pub enum LinkProbeError {
    /// The job ended.
    #[error("the probe ended early: {0}")]
    Ended(String),
    /// Nobody answers at the address.
    #[error("nobody can be reached there from here, so the source was not asked to try: {0}")]
    Unreachable(String),
    /// A command failed.
    #[error("no probe could be sent")]
    Process(#[from] ProcessError),
}

/// How a probe went: each time since its start, with the bytes that had arrived by then.
pub type ArrivalSamples = Vec<(Duration, u64)>;

/// Sends zeros from the source to the destination's `address` until `is_over` says so, all is sent, or `cancelled` is
/// ready. Everything is removed again before this returns; what could not be is told in the second part.
pub async fn run(
    source: &Process,
    destination: &Process,
    address: &Address,
    is_over: impl Fn(&[(Duration, u64)]) -> bool,
    cancelled: impl Future<Output = ()>,
) -> (Result<ArrivalSamples, LinkProbeError>, Result<(), ProcessError>) {
    let mut probe = LinkProbe { source, destination, address, made: ProbeParts::default() };
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

/// What was made, or may have been.
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
    source: &'a Process,
    destination: &'a Process,
    address: &'a Address,
    made: ProbeParts,
}

impl LinkProbe<'_> {
    async fn open(&mut self) -> Result<(), LinkProbeError> {
        let (here, there, made) = (self.source, self.destination, &mut self.made);
        // one that read as zeros would be seen to hold them already, and nothing would be sent
        make(&mut made.sink, add(there, &null("sink", false))).await?;
        make(&mut made.server, export::start_server(there, self.address)).await?;
        let export = name("export");
        let options = export::options(&export, &export, &name("sink"), true);
        make(&mut made.export, there.act(&qmp::block_export_add(options))).await?;
        if let Address::Tcp { .. } = self.address {
            // a QEMU that connects to an address that swallows everything does nothing else for two minutes
            let dialed = dial(self.address, DIAL).await;
            dialed.map_err(|error| LinkProbeError::Unreachable(describe(&error)))?;
        }
        make(&mut made.zeros, add(here, &null("zeros", true))).await?;
        make(&mut made.target, add(here, &target(self.address))).await?;
        make(&mut made.job, here.act(&blockdev_mirror())).await?;
        Ok(())
    }

    /// Looks how much has arrived, again and again.
    async fn watch(&self, is_over: impl Fn(&[(Duration, u64)]) -> bool) -> Result<ArrivalSamples, LinkProbeError> {
        let (began, id) = (Instant::now(), name("job"));
        let mut samples = ArrivalSamples::new();
        loop {
            let jobs = self.source.ask(&qmp::query_jobs {}).await?.0;
            let job = jobs.into_iter().find(|job| job.id == id);
            let job = job.ok_or_else(|| LinkProbeError::Ended("its job has vanished".to_owned()))?;
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

    /// Removes what was made, the last first. Everything is tried, whatever fails on the way.
    async fn close(self) -> Result<(), ProcessError> {
        let Self { source, destination, address, made } = self;
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
            note(mirror_job::abort(source, &name("job")).await);
        }
        for (made, node) in [(made.target, "target"), (made.zeros, "zeros")] {
            if made {
                note(source.act(&qmp::blockdev_del { node_name: name(node) }).await);
            }
        }
        if made.export {
            let mode = Some(qmp::BlockExportRemoveMode::hard);
            // one that is gone already is no failure: the server's end is the proof
            drop(destination.act(&qmp::block_export_del { id: name("export"), mode }).await);
        }
        if made.server {
            note(destination.act(&qmp::nbd_server_stop {}).await);
            if let Address::Unix(path) = address {
                // QEMU removes it itself, unless it was killed
                drop(std::fs::remove_file(path));
            }
        }
        if made.sink {
            note(destination.act(&qmp::blockdev_del { node_name: name("sink") }).await);
        }
        first
    }
}

/// Notes that something was made, also where nobody knows.
async fn make(made: &mut bool, done: impl Future<Output = Result<(), ProcessError>>) -> Result<(), ProcessError> {
    let done = done.await;
    *made = done.as_ref().err().is_none_or(|error| !error.is_without_effect());
    done
}

fn name(what: &str) -> String {
    format!("{PREFIX}probe-{what}")
}

/// Adds a node, whose options are written as QEMU takes them.
fn add(process: &Process, options: &Value) -> impl Future<Output = Result<(), ProcessError>> + use<> {
    let options = options.as_object().into_iter().flatten();
    let request =
        options.fold(QmpRequest::named("blockdev-add"), |request, (key, value)| request.with(key, value.clone()));
    process.act_with("blockdev-add", request)
}

/// A node that takes everything and keeps nothing. Without `zeros` what is read from it is anything.
fn null(what: &str, zeros: bool) -> Value {
    json!({ "driver": "null-co", "node-name": name(what), "size": MOST, "read-zeroes": zeros })
}

/// The export, as a node of the source that does not know how to write zeros without sending them. The other way, a node
/// that does not tell that it reads as zeros, would send what is left in QEMU's own memory.
fn target(address: &Address) -> Value {
    // the node of the connection has no name of its own, so that it goes with this one
    let image = json!({ "driver": "nbd", "server": export::server(address), "export": name("export") });
    json!({ "driver": "blkdebug", "node-name": name("target"), "opt-write-zero": 32 << 20, "image": image })
}

fn blockdev_mirror() -> qmp::blockdev_mirror {
    qmp::blockdev_mirror {
        job_id: Some(name("job")),
        device: name("zeros"),
        target: name("target"),
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
