//! The signals by which a user, or a terminal that closes, asks the command to give up.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP.
pub(super) struct Signals([Signal; 3]);

impl Signals {
    /// Watches them from now on; none where the system does not let us.
    pub(super) fn watch() -> Option<Self> {
        match [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal) {
            [Ok(interrupt), Ok(terminate), Ok(hangup)] => Some(Self([interrupt, terminate, hangup])),
            _ => None,
        }
    }

    /// Waits for one.
    pub(super) async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
