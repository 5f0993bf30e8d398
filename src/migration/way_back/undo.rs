//! Steps of the way back that take one thing out of a QEMU.

use crate::{
    handover::watchdog,
    qemu::{Process, ProcessError},
    storage::{mirror::mirror_job, model::layout::DiskPair},
};
use std::time::Duration;

/// How often the connection of a mirror that does not end is ended, and how long QEMU may take then.
const YANKS: usize = 10;
const ENDS: Duration = Duration::from_secs(1);

/// Ends a mirror, and removes the bitmap that proved its start.
///
/// # Errors
/// The job does not end, or QEMU does not answer.
pub(super) async fn remove_mirror(source: &Process, pair: &DiskPair) -> Result<(), ProcessError> {
    mirror_job::abort(source, &pair.names.job).await?;
    allow_refusal(source.act(&mirror_job::remove_bitmap(pair)).await)
}

/// Ends the connection of a mirror that does not end, until the mirror does. The NBD server may be behind a dead link,
/// where nothing else ends the mirror; and for each request that is still to fail QEMU may connect anew, and wait there
/// again.
pub(super) async fn free_mirror(source: &Process, pair: &DiskPair) {
    for _ in 0..YANKS {
        let freed = watchdog::free(source, [pair.names.nbd.as_str()].into_iter(), false).await;
        tracing::info!(?freed, "the mirror did not end");
        if source.is_gone() || mirror_job::ends(source, &pair.names.job, ENDS).await {
            return;
        }
    }
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
