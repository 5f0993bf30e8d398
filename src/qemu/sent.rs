//! A command on its way to QEMU, as the value that its sender holds.

use super::error::{ProcessError, QemuName};
use crate::qmp::{ExecuteError, PendingReply};
use serde_json::Value;
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

/// A command that was sent when this value was made, in the order of the calls; a future of its reply.
///
/// The reply is awaited apart from the sending so that several commands can be on the wire in a fixed order. Dropping
/// the value withdraws a command that is not on the wire yet.
#[must_use = "the command is on its way: its reply tells whether QEMU carried it out"]
pub struct SentCommand<T> {
    at: QemuName,
    command: &'static str,
    reply: PendingReply,
    read: fn(Value) -> serde_json::Result<T>,
    /// Whether the process has left its last question unanswered, see [`super::Process::is_silent`].
    silent: Arc<AtomicBool>,
}

impl<T> SentCommand<T> {
    pub(super) fn new(
        at: QemuName,
        command: &'static str,
        reply: PendingReply,
        read: fn(Value) -> serde_json::Result<T>,
        silent: Arc<AtomicBool>,
    ) -> Self {
        Self { at, command, reply, read, silent }
    }

    fn note(&self, reply: &Result<Value, ExecuteError>) {
        match reply {
            Err(ExecuteError::NoReply { .. }) => self.silent.store(true, Ordering::Relaxed),
            Ok(_) | Err(ExecuteError::Refused { .. }) => self.silent.store(false, Ordering::Relaxed),
            Err(_) => {}
        }
    }
}

impl<T> Future for SentCommand<T> {
    type Output = Result<T, ProcessError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = ready!(Pin::new(&mut self.reply).poll(context));
        self.note(&reply);
        let (at, command) = (self.at.clone(), self.command);
        Poll::Ready(match reply {
            Ok(value) => (self.read)(value).map_err(|source| ProcessError::Answer { at, command, source }),
            Err(ExecuteError::Encode(source)) => Err(ProcessError::Encode { at, command, source }),
            Err(source) => Err(ProcessError::Execute { at, command, source }),
        })
    }
}
