//! The signals by which a user, or a terminal that closes, asks the command to give up.

use crate::migration::Control;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that cancel.
pub(super) struct Signals([Signal; 3]);

impl Signals {
    /// Watches them from now on; none where the system does not let us.
    pub(super) fn watch() -> Option<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        match kinds {
            [Ok(interrupt), Ok(terminate), Ok(hangup)] => Some(Self([interrupt, terminate, hangup])),
            _ => None,
        }
    }

    /// Waits for the end, which a signal asks to come early.
    pub(super) async fn cancelling<T>(self, control: &Control, ended: impl Future<Output = T>) -> T {
        let Self([mut interrupt, mut terminate, mut hangup]) = self;
        tokio::pin!(ended);
        loop {
            tokio::select! {
                ended = &mut ended => return ended,
                _ = interrupt.recv() => control.cancel(),
                _ = terminate.recv() => control.cancel(),
                // nobody is there to see how it goes on
                _ = hangup.recv() => control.cancel(),
            }
        }
    }
}
