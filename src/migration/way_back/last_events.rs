//! Hears a QEMU out that is gone: what its events told before counts, though its end is known sooner.
//!
//! An engine that stood still itself finds the end of a process and the last events of its monitor at the same moment.

use crate::qemu::Process;
use std::time::Duration;
use tokio::time::timeout;

/// How long the last events of a QEMU that is gone may take to be read.
const LAST_EVENTS: Duration = Duration::from_millis(200);

/// Waits, where a QEMU is gone, until every event is taken in that its monitor has sent before it closed.
pub(crate) async fn hear_out(process: &Process) {
    if process.is_gone() {
        let mut events = process.watch();
        let heard = async { while events.changed().await.is_ok() {} };
        // The monitor of a process that a command has fenced may stay open, and has nothing more to say.
        if timeout(LAST_EVENTS, heard).await.is_err() {
            tracing::debug!(at = %process.name(), "gone, with a monitor that is open");
        }
    }
}
