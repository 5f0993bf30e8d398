//! Replies about jobs.

use super::open_enum::open_enum;
use serde::Deserialize;

open_enum! {
    /// The status of a job.
    JobStatus {
        /// The job exists and has not started.
        Created = "created",
        /// The job copies.
        Running = "running",
        /// The target has caught up once.
        Ready = "ready",
        /// The job is paused.
        Paused = "paused",
        /// The job is paused after its target has caught up once.
        Standby = "standby",
        /// The job is over, and is listed until it is dismissed.
        Concluded = "concluded",
    }
}

/// An element of `query-block-jobs`. Sizes in bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJobInfo {
    /// The job's id.
    pub device: String,
    /// The bytes to copy in all, as known now.
    pub len: u64,
    /// The part that has been copied.
    pub offset: u64,
    /// Whether the target has caught up once.
    pub ready: bool,
    /// The job's status.
    pub status: JobStatus,
    /// Whether every write of the guest reaches the target before the guest is told that it is done (8.2).
    pub actively_synced: Option<bool>,
    /// QEMU's words for why the job ended badly.
    pub error: Option<String>,
}

/// An element of `query-jobs`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobInfo {
    /// The job's id.
    pub id: String,
    /// The job's status.
    pub status: JobStatus,
    /// The work that is done, in the job's own unit (bytes for a mirror).
    #[serde(default)]
    pub current_progress: u64,
    /// QEMU's words for why the job ended badly.
    pub error: Option<String>,
}
