//! The requests in flight, by cookie.
//!
//! Owns what each of them still waits for. It never touches the socket, and its lock is never held across an await.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::assembly::ReadAssembly;
use super::buffers::ReadBuffers;
use super::error::NbdError;
use super::extents::fit;
use super::wire::{self, NbdCommand, REQUEST_LENGTH};

/// Descriptors as they came, each a length and flags.
pub(super) type StatusDescriptors = Vec<(u32, u32)>;

/// One request and what has come of its reply.
#[derive(Debug)]
pub(super) struct RequestWaiter {
    pub(super) wanted: ExpectedReply,
    /// After this the connection is given up.
    pub(super) deadline: Instant,
    /// The first error that the server sent.
    failure: Option<NbdError>,
}

/// What a request asks for, and who.
#[derive(Debug)]
pub(super) enum ExpectedReply {
    Data {
        assembly: ReadAssembly,
        reply: oneshot::Sender<Result<Bytes, NbdError>>,
    },
    Status {
        offset: u64,
        length: u32,
        /// The one context that is kept; servers send all that were negotiated.
        context: u32,
        descriptors: Option<StatusDescriptors>,
        reply: oneshot::Sender<Result<StatusDescriptors, NbdError>>,
    },
}

impl RequestWaiter {
    pub(super) fn new(wanted: ExpectedReply, deadline: Instant) -> Self {
        Self { wanted, deadline, failure: None }
    }

    /// Whether nobody waits any more.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.wanted {
            ExpectedReply::Data { reply, .. } => reply.is_closed(),
            ExpectedReply::Status { reply, .. } => reply.is_closed(),
        }
    }

    pub(super) fn request(&self, cookie: u64) -> [u8; REQUEST_LENGTH] {
        match &self.wanted {
            ExpectedReply::Data { assembly, .. } => {
                let (offset, length) = assembly.range();
                wire::request(NbdCommand::Read, cookie, offset, length)
            }
            ExpectedReply::Status { offset, length, .. } => {
                wire::request(NbdCommand::BlockStatus, cookie, *offset, *length)
            }
        }
    }

    pub(super) fn assembly(&mut self) -> Result<&mut ReadAssembly, NbdError> {
        match &mut self.wanted {
            ExpectedReply::Data { assembly, .. } => Ok(assembly),
            ExpectedReply::Status { .. } => Err(NbdError::Unexpected { what: "data to a request for block status" }),
        }
    }

    /// Takes a block status chunk.
    pub(super) fn status(&mut self, payload: &[u8]) -> Result<(), NbdError> {
        let ExpectedReply::Status { length, context, descriptors, .. } = &mut self.wanted else {
            return Err(NbdError::Unexpected { what: "block status to a read" });
        };
        let (of, described) = wire::status(payload)?;
        let described = fit(described, *length)?;
        if of != *context {
            return Ok(());
        }
        match descriptors.replace(described) {
            None => Ok(()),
            Some(_) => Err(NbdError::Unexpected { what: "block status of one context twice" }),
        }
    }

    /// Notes an error that the server sent; what comes after it changes nothing.
    pub(super) fn fail(&mut self, error: NbdError) {
        self.failure.get_or_insert(error);
    }

    /// Answers the caller. An error is one that ends the connection.
    pub(super) fn finish(self, buffers: &mut ReadBuffers) -> Result<(), NbdError> {
        // A caller that has gone away misses nothing.
        match (self.wanted, self.failure) {
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

/// All that are in flight. The two halves of the connection task share it.
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

    /// When the oldest must have been answered. Cookies grow, so it is the first.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.lock().first_key_value().map(|(_, waiter)| waiter.deadline)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, RequestWaiter>> {
        self.by_cookie.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
