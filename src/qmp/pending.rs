//! The caller's half of one command: the wait, the deadline, and the exact answer to "did it leave?".
//!
//! Owns the claim that the caller and the connection task compete for, so that a command reported as unsent can never
//! be sent afterwards. It must never report a command that may be on the wire as failed: that is *indeterminate*.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use super::client::QmpLink;
use super::connection::CloseCause;
use super::frame::{ErrorClass, ErrorReply};
use super::request::EncodeError;

/// Why a command brought no result.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// QEMU answered with an error: the command was not carried out, or not to its end.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The command.
        command: Cow<'static, str>,
        /// QEMU's error class.
        class: ErrorClass,
        /// QEMU's text for people.
        desc: String,
    },
    /// No answer came within the deadline.
    #[error("{}", no_reply(command, *sent, *waited))]
    NoReply {
        /// The command.
        command: Cow<'static, str>,
        /// `false`: it never left this process and never will. `true`: *indeterminate*, it may have been carried out
        /// or may yet be; look again.
        sent: bool,
        /// How long the caller waited.
        waited: Duration,
    },
    /// The connection ended first.
    #[error("{}", closed(command, *sent))]
    Closed {
        /// The command.
        command: Cow<'static, str>,
        /// As in [`ExecuteError::NoReply`].
        sent: bool,
        /// What ended the connection.
        #[source]
        cause: CloseCause,
    },
    /// An out-of-band command on a connection without out-of-band execution. It was not sent.
    #[error("{command} was not sent because this monitor has no out-of-band execution")]
    OobNotNegotiated {
        /// The command.
        command: Cow<'static, str>,
    },
    /// The command could not be written as JSON. It was not sent.
    #[error("a command could not be encoded")]
    Encode(#[from] EncodeError),
}

fn no_reply(command: &str, sent: bool, waited: Duration) -> String {
    match sent {
        true => {
            format!("QEMU did not answer {command} within {waited:?}, so its outcome is not known")
        }
        false => format!("{command} was withdrawn after {waited:?} without having been sent"),
    }
}

fn closed(command: &str, sent: bool) -> String {
    match sent {
        true => format!("the connection ended before {command} was answered, so its outcome is not known"),
        false => format!("the connection ended before {command} was sent"),
    }
}

fn refused(command: Cow<'static, str>, ErrorReply { class, desc }: ErrorReply) -> ExecuteError {
    ExecuteError::Refused { command, class, desc }
}

/// Who has a command: still the queue, the wire, or nobody any more.
///
/// One compare-exchange decides between the caller that withdraws and the task that writes; both can never win.
#[derive(Debug, Default)]
pub(super) struct SendClaim(AtomicU8);

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const WITHDRAWN: u8 = 2;

impl SendClaim {
    /// The task takes the command to write it. `false` if it was withdrawn.
    pub(super) fn send(&self) -> bool {
        self.leave_queue(SENT)
    }

    /// The command is taken back: by its caller, or by the task that finds its deadline missed. `false` if it may be
    /// on the wire.
    pub(super) fn withdraw(&self) -> bool {
        self.leave_queue(WITHDRAWN) || self.is_withdrawn()
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        self.0.load(Ordering::Acquire) == WITHDRAWN
    }

    fn leave_queue(&self, to: u8) -> bool {
        self.0.compare_exchange(QUEUED, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A command under way: a future of its result.
///
/// It was queued when this was made, in call order. Dropping it withdraws the command if it is not yet on the wire;
/// otherwise QEMU's reply will be counted as late. It keeps the connection open.
#[must_use = "dropping it withdraws the command"]
pub struct PendingReply {
    command: Cow<'static, str>,
    started: Instant,
    /// `None` when so far away that no clock reaches it.
    deadline: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    state: PendingState,
    link: Arc<QmpLink>,
}

enum PendingState {
    Waiting { claim: Arc<SendClaim>, reply: oneshot::Receiver<Result<Value, ErrorReply>> },
    Failed(ExecuteError),
    Done,
}

impl PendingReply {
    pub(super) fn waiting(
        link: Arc<QmpLink>,
        command: Cow<'static, str>,
        (started, deadline): (Instant, Option<Instant>),
        claim: Arc<SendClaim>,
        reply: oneshot::Receiver<Result<Value, ErrorReply>>,
    ) -> Self {
        Self { command, started, deadline, sleep: None, state: PendingState::Waiting { claim, reply }, link }
    }

    /// One that resolves at once, to `error`.
    pub(super) fn failed(link: Arc<QmpLink>, command: Cow<'static, str>, error: ExecuteError) -> Self {
        let started = Instant::now();
        Self { command, started, deadline: None, sleep: None, state: PendingState::Failed(error), link }
    }

    /// The command's name.
    pub fn command(&self) -> &str {
        &self.command
    }

    fn poll_reply(&mut self, context: &mut Context<'_>) -> Poll<Result<Value, ExecuteError>> {
        let PendingState::Waiting { claim, reply } = &mut self.state else {
            return match std::mem::replace(&mut self.state, PendingState::Done) {
                PendingState::Failed(error) => Poll::Ready(Err(error)),
                _ => panic!("`PendingReply` polled after it was ready"),
            };
        };
        let command = self.command.clone();
        // The reply is looked at before the clock: an answer in hand always wins over a deadline just missed.
        match Pin::new(&mut *reply).poll(context) {
            Poll::Ready(Ok(answer)) => {
                return Poll::Ready(answer.map_err(|refusal| refused(command, refusal)));
            }
            Poll::Ready(Err(_)) if claim.is_withdrawn() => {
                let waited = self.started.elapsed();
                return Poll::Ready(Err(ExecuteError::NoReply { command, sent: false, waited }));
            }
            Poll::Ready(Err(_)) => {
                let sent = !claim.withdraw();
                return Poll::Ready(Err(ExecuteError::Closed { command, sent, cause: self.link.cause() }));
            }
            Poll::Pending => {}
        }
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        ready!(sleep.as_mut().poll(context));
        let sent = !claim.withdraw();
        // A reply may have come since it was looked for above; after this none can, so nothing is both given out as
        // answered and reported as unanswered.
        reply.close();
        if let Ok(answer) = reply.try_recv() {
            return Poll::Ready(answer.map_err(|refusal| refused(command, refusal)));
        }
        let waited = self.started.elapsed();
        Poll::Ready(Err(ExecuteError::NoReply { command, sent, waited }))
    }
}

impl Future for PendingReply {
    type Output = Result<Value, ExecuteError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(self.poll_reply(context));
        self.state = PendingState::Done;
        Poll::Ready(result)
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        if let PendingState::Waiting { claim, .. } = &self.state {
            claim.withdraw();
        }
    }
}

impl fmt::Debug for PendingReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("command", &self.command).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_won_once() {
        let claim = SendClaim::default();
        assert!(claim.send());
        assert!(!claim.withdraw());
        assert!(!claim.is_withdrawn());
        let claim = SendClaim::default();
        assert!(claim.withdraw());
        assert!(claim.withdraw(), "it stays withdrawn, whoever asks");
        assert!(!claim.send());
        assert!(claim.is_withdrawn());
    }

    #[test]
    fn a_contested_claim_has_one_winner() {
        for _ in 0..200 {
            let claim = SendClaim::default();
            let (sent, withdrawn) = std::thread::scope(|scope| {
                let writer = scope.spawn(|| claim.send());
                (claim.withdraw(), writer.join().unwrap())
            });
            assert!(sent != withdrawn);
        }
    }

    #[test]
    fn an_unknown_outcome_says_so() {
        let unanswered = |sent| ExecuteError::NoReply { command: "cont".into(), sent, waited: Duration::from_secs(2) };
        assert!(unanswered(true).to_string().contains("not known"));
        assert!(unanswered(false).to_string().contains("without having been sent"));
    }
}
