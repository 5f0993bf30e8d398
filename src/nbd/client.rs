//! The handle to one NBD export.
//!
//! The module owns the public requests and the checks that need no server. A handle never touches the socket after the
//! handshake (the connection task does), and has at most one request in flight for each call.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::assembly::ReadAssembly;
use super::connection::{NbdConnection, TaskMessage, late_error, split_stream};
use super::error::NbdError;
use super::extents::{self, AllocationExtent, DepthExtent, StatusRuns};
use super::handshake::{ALLOCATION, DEPTH, ExportHandshake, NegotiatedExport};
use super::options::NbdOptions;
use super::waiters::{ExpectedReply, RequestWaiter, StatusDescriptors};

/// Longest read of one request, in bytes: the length that every server must accept.
pub const MAX_READ: u32 = 32 << 20;

/// Longest range of one block status request, in bytes: below 4 GiB, and a multiple of any block size of a server.
const MAX_STATUS: u64 = (4 << 30) - (1 << 20);

/// Longest deadline. The bound keeps the sum of a deadline and the clock from overflowing.
const MAX_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A handle to one export. Clones share one connection, which is closed when the last of them is dropped.
#[derive(Clone, Debug)]
pub struct NbdClient {
    link: Arc<NbdLink>,
}

/// The state that every handle of a connection shares. Dropping the last handle ends the connection task.
#[derive(Debug)]
struct NbdLink {
    export: NegotiatedExport,
    deadline: Duration,
    messages: mpsc::UnboundedSender<TaskMessage>,
    closed: watch::Receiver<Option<NbdError>>,
}

impl NbdClient {
    /// Makes a client of a stream just connected to an NBD server, for the export of this name.
    ///
    /// # Errors
    /// See [`NbdError`]. Every error closes the stream.
    pub async fn connect<S>(stream: S, export: &str, options: NbdOptions) -> Result<Self, NbdError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let deadline = options.deadline.min(MAX_DEADLINE);
        let (mut reader, mut writer) = split_stream(stream);
        let handshake = ExportHandshake { reader: &mut reader, writer: &mut writer, name: export, deadline };
        let export = handshake.run(options.contexts).await?;
        let (messages, messages_end) = mpsc::unbounded_channel();
        let (closed_end, closed) = watch::channel(None);
        let structured = export.structured;
        tokio::spawn(
            NbdConnection { reader, writer, structured, deadline, messages: messages_end, closed: closed_end }.run(),
        );
        Ok(Self { link: Arc::new(NbdLink { export, deadline, messages, closed }) })
    }

    /// The size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.link.export.size
    }

    /// Whether the server says that the export cannot be written to.
    pub fn is_read_only(&self) -> bool {
        self.link.export.read_only
    }

    /// Reads a range of at most [`MAX_READ`] bytes, all of it or nothing. Holes read as zeros.
    ///
    /// Concurrent calls are in flight at the same time, so a fast copy makes several.
    ///
    /// # Errors
    /// See [`NbdError`].
    pub async fn read(&self, offset: u64, length: u32) -> Result<Bytes, NbdError> {
        self.check_range(offset, length.into())?;
        if length > MAX_READ {
            return Err(NbdError::ReadTooLong { length });
        }
        if length == 0 {
            return Ok(Bytes::new());
        }
        let assembly = ReadAssembly::new(offset, length);
        self.request(|reply| ExpectedReply::Data { assembly, reply }).await
    }

    /// Queries how a range is stored. The extents are in order and cover exactly the range, and neighbours differ.
    ///
    /// # Errors
    /// [`NbdError::NotOffered`] if the server has no `base:allocation`; [`NbdError::TooManyExtents`] if the range is in
    /// too many pieces; else see [`NbdError`].
    pub async fn query_extents(&self, offset: u64, length: u64) -> Result<Vec<AllocationExtent>, NbdError> {
        let context = self.link.export.allocation.ok_or(NbdError::NotOffered { context: ALLOCATION })?;
        Ok(extents::to_extents(offset, &self.query_status(context, extents::KNOWN_FLAGS, offset, length).await?))
    }

    /// Queries which layer of the backing chain a range comes from. The pieces are shaped as those of
    /// [`NbdClient::query_extents`].
    ///
    /// # Errors
    /// [`NbdError::NotOffered`] if the server has no `qemu:allocation-depth`, else as [`NbdClient::query_extents`].
    pub async fn query_depths(&self, offset: u64, length: u64) -> Result<Vec<DepthExtent>, NbdError> {
        let context = self.link.export.depth.ok_or(NbdError::NotOffered { context: DEPTH })?;
        Ok(extents::to_depths(offset, &self.query_status(context, u32::MAX, offset, length).await?))
    }

    /// Closes the connection, for all clones, and waits until it is closed. Requests still in flight fail with
    /// [`NbdError::Closed`].
    pub async fn close(self) {
        // `send` fails only where the task, and with it the connection, has ended already.
        drop(self.link.messages.send(TaskMessage::Close));
        drop(timeout(self.link.deadline, self.wait_closed()).await);
    }

    /// Queries the block status of a range, in as many requests as the server's answers make necessary.
    async fn query_status(&self, context: u32, mask: u32, offset: u64, length: u64) -> Result<StatusRuns, NbdError> {
        self.check_range(offset, length)?;
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
        expect: impl FnOnce(oneshot::Sender<Result<T, NbdError>>) -> ExpectedReply,
    ) -> Result<T, NbdError> {
        let deadline = Instant::now() + self.link.deadline;
        let (reply, receiver) = oneshot::channel();
        // After the end of the connection `send` hands the message back, and dropping it fails the receiver.
        drop(self.link.messages.send(TaskMessage::Request(RequestWaiter::new(expect(reply), deadline))));
        let answer = async {
            match receiver.await {
                Ok(answer) => answer,
                Err(_) => Err(self.wait_closed().await),
            }
        };
        timeout_at(deadline, answer).await.unwrap_or_else(|_| Err(late_error(self.link.deadline)))
    }

    /// Waits for the end of the connection and returns its cause.
    async fn wait_closed(&self) -> NbdError {
        let mut closed = self.link.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or(NbdError::Runtime),
            Err(_) => NbdError::Runtime,
        }
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<(), NbdError> {
        let size = self.size();
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            _ => Err(NbdError::OutOfRange { offset, length, size }),
        }
    }
}
