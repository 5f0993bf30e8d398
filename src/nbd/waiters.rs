//! The requests in flight, by cookie.
//!
//! The module owns the expected reply of each request. It never touches the socket, and the lock is never held across
//! an await.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::assembly::ReadAssembly;
use super::buffers::ReadBuffers;
use super::error::NbdError;
use super::extents::fit_to_request;
use super::wire::{self, NbdCommand, REQUEST_LENGTH};

/// Descriptors in the order of the reply, each a length and flags.
pub(super) type StatusDescriptors = Vec<(u32, u32)>;

/// One request and the part of its reply that has come.
#[derive(Debug)]
pub(super) struct RequestWaiter {
    pub(super) expected: ExpectedReply,
    /// Time after which the connection is given up.
    pub(super) deadline: Instant,
    /// The first error that the server sent.
    failure: Option<NbdError>,
}

/// The reply that a request expects, and the channel to its caller.
#[derive(Debug)]
pub(super) enum ExpectedReply {
    Data {
        assembly: ReadAssembly,
        reply: oneshot::Sender<Result<Bytes, NbdError>>,
    },
    Status {
        offset: u64,
        length: u32,
        /// Id of the context to keep. Servers send the status of every negotiated context.
        context: u32,
        descriptors: Option<StatusDescriptors>,
        reply: oneshot::Sender<Result<StatusDescriptors, NbdError>>,
    },
}

impl RequestWaiter {
    pub(super) fn new(expected: ExpectedReply, deadline: Instant) -> Self {
        Self { expected, deadline, failure: None }
    }

    /// Whether the caller has given up.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.expected {
            ExpectedReply::Data { reply, .. } => reply.is_closed(),
            ExpectedReply::Status { reply, .. } => reply.is_closed(),
        }
    }

    pub(super) fn encode_request(&self, cookie: u64) -> [u8; REQUEST_LENGTH] {
        match &self.expected {
            ExpectedReply::Data { assembly, .. } => {
                let (offset, length) = assembly.range();
                wire::encode_request(NbdCommand::Read, cookie, offset, length)
            }
            ExpectedReply::Status { offset, length, .. } => {
                wire::encode_request(NbdCommand::BlockStatus, cookie, *offset, *length)
            }
        }
    }

    pub(super) fn assembly(&mut self) -> Result<&mut ReadAssembly, NbdError> {
        match &mut self.expected {
            ExpectedReply::Data { assembly, .. } => Ok(assembly),
            ExpectedReply::Status { .. } => Err(NbdError::Unexpected { what: "data to a request for block status" }),
        }
    }

    /// Takes a block status chunk.
    pub(super) fn take_status(&mut self, payload: &[u8]) -> Result<(), NbdError> {
        let ExpectedReply::Status { length, context, descriptors, .. } = &mut self.expected else {
            return Err(NbdError::Unexpected { what: "block status to a read" });
        };
        let (of, described) = wire::decode_status(payload)?;
        let described = fit_to_request(described, *length)?;
        if of != *context {
            return Ok(());
        }
        match descriptors.replace(described) {
            None => Ok(()),
            Some(_) => Err(NbdError::Unexpected { what: "block status of one context twice" }),
        }
    }

    /// Notes an error that the server sent. Later errors of the same request are ignored.
    pub(super) fn fail(&mut self, error: NbdError) {
        self.failure.get_or_insert(error);
    }

    /// Answers the caller.
    ///
    /// # Errors
    /// An incomplete reply, which ends the connection.
    pub(super) fn finish(self, buffers: &mut ReadBuffers) -> Result<(), NbdError> {
        // `send` fails only where the caller has given up.
        match (self.expected, self.failure) {
            (ExpectedReply::Data { reply, .. }, Some(failure)) => drop(reply.send(Err(failure))),
            (ExpectedReply::Status { reply, .. }, Some(failure)) => drop(reply.send(Err(failure))),
            (ExpectedReply::Data { assembly, reply }, None) => drop(reply.send(Ok(assembly.finish(buffers)?))),
            (ExpectedReply::Status { descriptors, reply, .. }, None) => {
                let missing = NbdError::Unexpected { what: "block status without the context that was asked for" };
                drop(reply.send(Ok(descriptors.ok_or(missing)?)));
            }
        }
        Ok(())
    }
}

/// All requests in flight, shared by the reading and the writing half of the connection task.
#[derive(Debug, Default)]
pub(super) struct RequestWaiters {
    by_cookie: Mutex<BTreeMap<u64, RequestWaiter>>,
}

impl RequestWaiters {
    pub(super) fn insert(&self, cookie: u64, waiter: RequestWaiter) {
        self.lock().insert(cookie, waiter);
    }

    pub(super) fn take(&self, cookie: u64) -> Result<RequestWaiter, NbdError> {
        self.lock().remove(&cookie).ok_or(NbdError::UnknownCookie { cookie })
    }

    /// Deadline of the oldest request. Cookies grow, so the oldest request is the first.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.lock().first_key_value().map(|(_, waiter)| waiter.deadline)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, RequestWaiter>> {
        self.by_cookie.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
