//! The signals by which a user, or a terminal that closes, asks the command to give up, and those by which a terminal
//! would stop the command.

use super::render;
use crate::migration::Control;
use nix::sys::signal::{SigSet, Signal as SignalName};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Has no terminal stop the command for its output in the background (`stty tostop`), for the reason of
/// [`Signals::watch`].
///
/// A signal that is caught would have the write to the terminal begun again for ever; one that is blocked lets the
/// write pass. Threads that begin later inherit the block, so it must come before the first. The standard library lifts
/// the block for programs that the command starts.
pub(super) fn block_those_of_a_terminal() {
    let mut of_terminal = SigSet::empty();
    of_terminal.add(SignalName::SIGTTIN);
    of_terminal.add(SignalName::SIGTTOU);
    // a system that lets no signal be blocked stops the command as ever
    of_terminal.thread_block().ok();
}

/// The signals that cancel, and the one that is answered with a word.
pub(super) struct Signals {
    cancelling: [Signal; 3],
    suspend: Signal,
}

impl Signals {
    /// Watches them from now on; none where the system does not let us.
    ///
    /// An engine that a terminal has stopped (Ctrl-Z) answers no QEMU, and the guest may stand still until the engine
    /// goes on. So Ctrl-Z is answered with a word.
    pub(super) fn watch() -> Option<Self> {
        let suspend = signal(SignalKind::from_raw(SignalName::SIGTSTP as i32)).ok()?;
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        match kinds {
            [Ok(interrupt), Ok(terminate), Ok(hangup)] => {
                Some(Self { cancelling: [interrupt, terminate, hangup], suspend })
            }
            _ => None,
        }
    }

    /// Waits for a signal that asks for the end.
    pub(super) async fn asked(&mut self) {
        asked(&mut self.cancelling).await;
    }

    /// Waits for the end, which a signal asks to come early.
    pub(super) async fn cancelling<T>(self, control: &Control, ended: impl Future<Output = T>) -> T {
        let Self { mut cancelling, mut suspend } = self;
        tokio::pin!(ended);
        loop {
            tokio::select! {
                ended = &mut ended => return ended,
                () = asked(&mut cancelling) => control.cancel(),
                _ = suspend.recv() => {
                    render::say("qferry: not suspended, since the guest could stand still meanwhile; Ctrl-C gives up");
                }
            }
        }
    }
}

/// Waits for one of these signals. A terminal that closes is one: nobody is there to see how it goes on.
async fn asked([interrupt, terminate, hangup]: &mut [Signal; 3]) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
