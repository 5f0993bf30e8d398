//! The handle to one NBD export.
//!
//! Owns what callers ask for and the checks that need no server. It never touches the socket after the handshake (the
//! connection task does) and sends at most one request at a time for each call.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::assembly::ReadAssembly;
use super::connection::{NbdConnection, TaskMessage, halves, late};
use super::error::NbdError;
use super::extents::{self, AllocationExtent, DepthExtent, StatusRuns};
use super::handshake::{ALLOCATION, DEPTH, ExportHandshake, NegotiatedExport};
use super::waiters::{ExpectedReply, RequestWaiter, StatusDescriptors};

/// Longest read of one request, in bytes: what every server has to take.
pub const MAX_READ: u32 = 32 << 20;

/// Longest range of one block status request: below 4 GiB and aligned for any server.
const MAX_STATUS: u64 = (4 << 30) - (1 << 20);

/// No deadline is longer; it keeps clocks from running over.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How a connection behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NbdOptions {
    /// How long each step of the handshake may take, and each request from the call to its last byte. A request that
    /// misses it ends the connection: a server that answers late cannot be told from one that never will.
    pub deadline: Duration,
    /// What block status is to be had. A server computes all of it for each request, whichever is used.
    pub contexts: MetaContexts,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), contexts: MetaContexts::default() }
    }
}

/// Metadata contexts to ask the server for. One that it does not have is no error before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaContexts {
    /// `base:allocation`, for [`NbdClient::extents`].
    pub allocation: bool,
    /// `qemu:allocation-depth`, for [`NbdClient::depths`].
    pub depth: bool,
}

impl Default for MetaContexts {
    fn default() -> Self {
        Self { allocation: true, depth: true }
    }
}

/// A handle to one export. Clones share one connection, which is closed when the last of them is dropped.
#[derive(Clone, Debug)]
pub struct NbdClient {
    link: Arc<NbdLink>,
}

/// What every handle shares. It ends the connection task by being dropped.
#[derive(Debug)]
struct NbdLink {
    export: NegotiatedExport,
    deadline: Duration,
    jobs: mpsc::UnboundedSender<TaskMessage>,
    closed: watch::Receiver<Option<NbdError>>,
}

impl NbdClient {
    /// Makes a client of a stream just connected to an NBD server, for the export of this name.
    ///
    /// # Errors
    /// See [`NbdError`]. Whatever the error, the stream is closed.
    pub async fn connect<S>(stream: S, export: &str, options: NbdOptions) -> Result<Self, NbdError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let deadline = options.deadline.min(FOREVER);
        let (mut reader, mut writer) = halves(stream);
        let handshake = ExportHandshake { reader: &mut reader, writer: &mut writer, name: export, deadline };
        let export = handshake.run(options.contexts).await?;
        let (jobs, jobs_end) = mpsc::unbounded_channel();
        let (closed_end, closed) = watch::channel(None);
        let structured = export.structured;
        tokio::spawn(NbdConnection { reader, writer, structured, deadline, jobs: jobs_end, closed: closed_end }.run());
        Ok(Self { link: Arc::new(NbdLink { export, deadline, jobs, closed }) })
    }

    /// The size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.link.export.size
    }

    /// Whether the server says that the export cannot be written to.
    pub fn is_read_only(&self) -> bool {
        self.link.export.read_only
    }

    /// Reads a range of at most [`MAX_READ`] bytes, all of it or nothing. Holes come as zeros.
    ///
    /// Calls made at the same time are in flight at the same time; that is what makes it fast.
    ///
    /// # Errors
    /// See [`NbdError`].
    pub async fn read(&self, offset: u64, length: u32) -> Result<Bytes, NbdError> {
        self.check(offset, length.into())?;
        if length > MAX_READ {
            return Err(NbdError::ReadTooLong { length });
        }
        if length == 0 {
            return Ok(Bytes::new());
        }
        let assembly = ReadAssembly::new(offset, length);
        self.request(|reply| ExpectedReply::Data { assembly, reply }).await
    }

    /// How a range is stored: extents in order, without gaps, neighbours different, covering exactly the range.
    ///
    /// # Errors
    /// [`NbdError::NotOffered`] if the server has no `base:allocation`; [`NbdError::TooManyExtents`] if a smaller range
    /// must be asked for; else see [`NbdError`].
    pub async fn extents(&self, offset: u64, length: u64) -> Result<Vec<AllocationExtent>, NbdError> {
        let context = self.link.export.allocation.ok_or(NbdError::NotOffered { context: ALLOCATION })?;
        let known = 3;
        Ok(extents::extents(offset, &self.status(context, known, offset, length).await?))
    }

    /// Which layer of the chain a range comes from, shaped as [`NbdClient::extents`].
    ///
    /// # Errors
    /// [`NbdError::NotOffered`] if the server has no `qemu:allocation-depth`, else as [`NbdClient::extents`].
    pub async fn depths(&self, offset: u64, length: u64) -> Result<Vec<DepthExtent>, NbdError> {
        let context = self.link.export.depth.ok_or(NbdError::NotOffered { context: DEPTH })?;
        Ok(extents::depths(offset, &self.status(context, u32::MAX, offset, length).await?))
    }

    /// Closes the connection, for all clones, and waits until it is closed. Requests still in flight fail with
    /// [`NbdError::Closed`].
    pub async fn close(self) {
        // If the task has ended already, so has the connection.
        drop(self.link.jobs.send(TaskMessage::Close));
        drop(timeout(self.link.deadline, self.cause()).await);
    }

    /// All of a range, in as many requests as the server's answers make necessary.
    async fn status(&self, context: u32, mask: u32, offset: u64, length: u64) -> Result<StatusRuns, NbdError> {
        self.check(offset, length)?;
        let mut runs = StatusRuns::default();
        while runs.covered() < length {
            let at = offset + runs.covered();
            let length = (length - runs.covered()).min(MAX_STATUS) as u32;
            let descriptors: StatusDescriptors = self
                .request(|reply| ExpectedReply::Status { offset: at, length, context, descriptors: None, reply })
                .await?;
            runs.extend(&descriptors, mask)?;
        }
        Ok(runs)
    }

    async fn request<T>(
        &self,
        wanted: impl FnOnce(oneshot::Sender<Result<T, NbdError>>) -> ExpectedReply,
    ) -> Result<T, NbdError> {
        let deadline = Instant::now() + self.link.deadline;
        let (reply, receiver) = oneshot::channel();
        // After the end of the connection the job comes straight back, and dropping it is what fails the receiver.
        drop(self.link.jobs.send(TaskMessage::Request(RequestWaiter::new(wanted(reply), deadline))));
        let answer = async {
            match receiver.await {
                Ok(answer) => answer,
                Err(_) => Err(self.cause().await),
            }
        };
        timeout_at(deadline, answer).await.unwrap_or_else(|_| Err(late(self.link.deadline)))
    }

    /// Waits for the end of the connection and returns what ended it.
    async fn cause(&self) -> NbdError {
        let mut closed = self.link.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or(NbdError::Runtime),
            Err(_) => NbdError::Runtime,
        }
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), NbdError> {
        let size = self.size();
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            _ => Err(NbdError::OutOfRange { offset, length, size }),
        }
    }
}
