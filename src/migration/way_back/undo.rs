//! Steps of the way back that take one thing out of a QEMU.

use crate::{
    qemu::{Process, ProcessError},
    storage::{mirror::mirror_job, model::layout::DiskPair},
};

/// Ends a mirror, and removes the bitmap that proved its start.
///
/// # Errors
/// The job does not end, or QEMU does not answer.
pub(super) async fn remove_mirror(source: &Process, pair: &DiskPair) -> Result<(), ProcessError> {
    mirror_job::abort(source, &pair.names.job).await?;
    allow_refusal(source.act(&mirror_job::remove_bitmap(pair)).await)
}

/// A refusal to remove what is not there is no failure; that nothing is there is asked afterwards.
///
/// # Errors
/// Every error that is no refusal.
pub(super) fn allow_refusal(result: Result<(), ProcessError>) -> Result<(), ProcessError> {
    match result {
        Err(error) if error.is_refusal() => Ok(()),
        other => other,
    }
}
