//! The two QEMUs of a migration.

use crate::{
    progress::{Moment, Side},
    qemu::{Process, reply::MigrationStatus},
};
use std::time::Duration;

/// Both QEMUs.
pub(crate) struct QemuPair {
    pub(crate) source: Process,
    pub(crate) destination: Process,
}

impl QemuPair {
    /// One of the two.
    pub(crate) fn side(&self, side: Side) -> &Process {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    /// How long the guest has stood still: since QEMU stopped its vCPUs where that was seen, and else since `found`.
    pub(crate) fn stood(&self, found: Moment) -> Duration {
        let stop = self.source.observed().stood_since();
        stop.map_or(found.elapsed(), |stop| stop.elapsed().max(found.elapsed()))
    }

    /// Whether the source has reported a status of postcopy.
    pub(crate) fn has_been_in_postcopy(&self) -> bool {
        self.source.observed().migration.keys().any(MigrationStatus::is_postcopy)
    }
}
