//! The caller's half of one command: the wait for its reply and the deadline.
//!
//! The module owns the errors of a command. A command that may be on the wire must never be reported as failed: its
//! outcome is *indeterminate*.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use super::claim::SendClaim;
use super::frame::{ErrorClass, ErrorReply};
use super::link::{CloseCause, QmpLink};
use super::request::EncodeError;

/// Reason why a command brought no result.
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
    #[error("{}", no_reply_text(command, *sent, *waited))]
    NoReply {
        /// The command.
        command: Cow<'static, str>,
        /// `false`: the command never left this process and never will. `true`: *indeterminate*, QEMU may have carried
        /// out the command, or may yet do so; ask for QEMU's state.
        sent: bool,
        /// Time that the caller waited.
        waited: Duration,
    },
    /// The connection ended first.
    #[error("{}", closed_text(command, *sent))]
    Closed {
        /// The command.
        command: Cow<'static, str>,
        /// As in [`ExecuteError::NoReply`].
        sent: bool,
        /// Cause of the end.
        #[source]
        cause: CloseCause,
    },
    /// An out-of-band command on a connection without out-of-band execution. The command was not sent.
    #[error("{command} was not sent because this monitor has no out-of-band execution")]
    OobNotNegotiated {
        /// The command.
        command: Cow<'static, str>,
    },
    /// The command could not be written as JSON and was not sent.
    #[error("a command could not be encoded")]
    Encode(#[from] EncodeError),
}

fn no_reply_text(command: &str, sent: bool, waited: Duration) -> String {
    match sent {
        true => {
            format!("QEMU did not answer {command} within {waited:?}, so its outcome is not known")
        }
        false => format!("{command} was withdrawn after {waited:?} without having been sent"),
    }
}

fn closed_text(command: &str, sent: bool) -> String {
    match sent {
        true => format!("the connection ended before {command} was answered, so its outcome is not known"),
        false => format!("the connection ended before {command} was sent"),
    }
}

fn refusal_error(command: Cow<'static, str>, ErrorReply { class, desc }: ErrorReply) -> ExecuteError {
    ExecuteError::Refused { command, class, desc }
}

/// A command under way: a future of its result.
///
/// The command is in the queue already, in call order. Dropping the future withdraws the command if it is not yet on
/// the wire; otherwise QEMU's reply will be counted as late. The connection stays open as long as the future lives.
#[must_use = "dropping the future withdraws the command"]
pub struct PendingReply {
    command: Cow<'static, str>,
    started: Instant,
    /// Deadline of the command; `None` when it lies beyond the range of the clock.
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

    /// A future that resolves at once, to `error`.
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
        // The reply is polled before the clock, so that an answer in hand wins over a deadline just missed.
        match Pin::new(&mut *reply).poll(context) {
            Poll::Ready(Ok(answer)) => {
                return Poll::Ready(answer.map_err(|refusal| refusal_error(command, refusal)));
            }
            Poll::Ready(Err(_)) if claim.is_withdrawn() => {
                let waited = self.started.elapsed();
                return Poll::Ready(Err(ExecuteError::NoReply { command, sent: false, waited }));
            }
            Poll::Ready(Err(_)) => {
                let sent = !claim.withdraw();
                return Poll::Ready(Err(ExecuteError::Closed { command, sent, cause: self.link.close_cause() }));
            }
            Poll::Pending => {}
        }
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        ready!(sleep.as_mut().poll(context));
        let sent = !claim.withdraw();
        // A reply may have come since the poll above. After `close` no reply can come, so no command is both answered
        // and reported as unanswered.
        reply.close();
        if let Ok(answer) = reply.try_recv() {
            return Poll::Ready(answer.map_err(|refusal| refusal_error(command, refusal)));
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
    fn an_unknown_outcome_says_so() {
        let unanswered = |sent| ExecuteError::NoReply { command: "cont".into(), sent, waited: Duration::from_secs(2) };
        assert!(unanswered(true).to_string().contains("not known"));
        assert!(unanswered(false).to_string().contains("without having been sent"));
    }
}
