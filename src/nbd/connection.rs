//! The one task that owns an NBD socket.
//!
//! The task reads, writes and watches the deadlines at the same time. Payload goes from the socket into the buffer of
//! its own request. The task never waits for a caller, and ends the connection at the first reply that breaks the
//! protocol, because the meaning of every later byte is uncertain then.

use std::time::Duration;

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::assembly::ChunkRoom;
use super::buffers::ReadBuffers;
use super::error::NbdError;
use super::waiters::{RequestWaiter, RequestWaiters};
use super::wire::{self, ChunkContent, NbdCommand, ReplyChunk, ReplyForm};

/// Size of the read buffer, in bytes, for headers and small payloads. Larger payloads bypass the buffer, except for
/// their first bytes that were read with a header.
const READ_AHEAD: usize = 4096;

/// Most requests written at once.
const BATCH: usize = 64;

/// Time that a server which does not read may delay the end of the connection.
const DISCONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// A message from a handle to the task.
#[derive(Debug)]
pub(super) enum TaskMessage {
    Request(RequestWaiter),
    Close,
}

/// The buffered reading direction of a stream.
pub(super) type StreamReader<S> = BufReader<ReadHalf<S>>;

/// Splits a stream into its two directions.
pub(super) fn split_stream<S: AsyncRead + AsyncWrite>(stream: S) -> (StreamReader<S>, WriteHalf<S>) {
    let (reader, writer) = tokio::io::split(stream);
    (BufReader::with_capacity(READ_AHEAD, reader), writer)
}

/// The state of the task.
pub(super) struct NbdConnection<S> {
    pub(super) reader: StreamReader<S>,
    pub(super) writer: WriteHalf<S>,
    /// Whether structured replies were negotiated.
    pub(super) structured: bool,
    pub(super) deadline: Duration,
    pub(super) messages: mpsc::UnboundedReceiver<TaskMessage>,
    pub(super) closed: watch::Sender<Option<NbdError>>,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> NbdConnection<S> {
    /// Serves until either side ends the connection.
    pub(super) async fn run(mut self) {
        let waiters = RequestWaiters::default();
        let mut incoming = ReplyReader {
            structured: self.structured,
            deadline: self.deadline,
            waiters: &waiters,
            buffers: ReadBuffers::default(),
        };
        let cause = tokio::select! {
            cause = incoming.run(&mut self.reader) => cause,
            cause = write_requests(&mut self.writer, &mut self.messages, &waiters) => cause,
            cause = wait_overdue(&waiters, self.deadline) => cause,
        };
        tracing::debug!(%cause, "NBD connection closed");
        // The cause must be set before the channels are dropped: the drops wake waiters, who then ask for the cause.
        self.closed.send_replace(Some(cause));
    }
}

/// Reader of the replies on the socket.
struct ReplyReader<'a> {
    structured: bool,
    deadline: Duration,
    waiters: &'a RequestWaiters,
    buffers: ReadBuffers,
}

impl ReplyReader<'_> {
    async fn run<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> NbdError {
        loop {
            if let Err(cause) = self.read_reply(reader).await {
                return cause;
            }
        }
    }

    async fn read_reply<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> Result<(), NbdError> {
        match ReplyForm::decode(reader.read_u32().await?)? {
            ReplyForm::Simple => self.read_simple(reader).await,
            ReplyForm::Structured if self.structured => self.read_chunk(reader).await,
            ReplyForm::Structured => Err(NbdError::Unexpected { what: "a structured reply that was not negotiated" }),
        }
    }

    async fn read_chunk<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> Result<(), NbdError> {
        let chunk = ReplyChunk::decode(&read_array(reader).await?)?;
        let mut waiter = self.waiters.take(chunk.cookie)?;
        let at = waiter.deadline;
        read_before(self.deadline, at, take_payload(reader, &mut waiter, chunk, &mut self.buffers)).await?;
        if chunk.done {
            return waiter.finish(&mut self.buffers);
        }
        self.waiters.insert(chunk.cookie, waiter);
        Ok(())
    }

    async fn read_simple<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> Result<(), NbdError> {
        let (code, cookie) = wire::decode_simple_reply(&read_array(reader).await?)?;
        let mut waiter = self.waiters.take(cookie)?;
        match code {
            0 if self.structured => {
                return Err(NbdError::Unexpected { what: "a simple reply where structured ones were negotiated" });
            }
            0 => {
                let at = waiter.deadline;
                let assembly = waiter.assembly()?;
                let (offset, length) = assembly.range();
                let room = assembly.make_room(offset, length, &mut self.buffers)?;
                read_before(self.deadline, at, fill_room(reader, room)).await?;
            }
            // An error reply is simple in any mode: without a payload it cannot be misread, so the protocol allows it.
            code => waiter.fail(NbdError::Server { code, message: String::new() }),
        }
        waiter.finish(&mut self.buffers)
    }
}

/// Reads a payload under the deadline of its request, which is not among the watched waiters meanwhile.
async fn read_before<T>(
    waited: Duration,
    at: Instant,
    reading: impl Future<Output = Result<T, NbdError>>,
) -> Result<T, NbdError> {
    timeout_at(at, reading).await.unwrap_or_else(|_| Err(late_error(waited)))
}

/// Takes the payload of a chunk.
async fn take_payload<R: AsyncRead + Unpin>(
    reader: &mut R,
    waiter: &mut RequestWaiter,
    chunk: ReplyChunk,
    buffers: &mut ReadBuffers,
) -> Result<(), NbdError> {
    match chunk.content {
        ChunkContent::Nothing => Ok(()),
        ChunkContent::Data(length) => {
            let offset = reader.read_u64().await?;
            fill_room(reader, waiter.assembly()?.make_room(offset, length, buffers)?).await
        }
        ChunkContent::Hole => {
            let (offset, length) = wire::decode_hole(&read_array(reader).await?)?;
            waiter.assembly()?.add_hole(offset, length, buffers)
        }
        ChunkContent::Status => waiter.take_status(&read_payload(reader, chunk.length).await?),
        ChunkContent::Error => {
            waiter.fail(wire::decode_error(&read_payload(reader, chunk.length).await?)?);
            Ok(())
        }
    }
}

/// Reads the data of a chunk into its place in the read.
async fn fill_room<R: AsyncRead + Unpin>(reader: &mut R, room: ChunkRoom<'_>) -> Result<(), NbdError> {
    match room {
        ChunkRoom::Fill(slice) => {
            reader.read_exact(slice).await?;
        }
        ChunkRoom::Append(mut room) => {
            while room.has_remaining_mut() {
                if reader.read_buf(&mut room).await? == 0 {
                    return Err(NbdError::Ended);
                }
            }
        }
    }
    Ok(())
}

async fn read_array<const N: usize, R: AsyncRead + Unpin>(reader: &mut R) -> Result<[u8; N], NbdError> {
    let mut array = [0; N];
    reader.read_exact(&mut array).await?;
    Ok(array)
}

/// Reads a small payload. The caller must have checked the length.
pub(super) async fn read_payload<R: AsyncRead + Unpin>(reader: &mut R, length: u32) -> Result<Vec<u8>, NbdError> {
    let mut payload = vec![0; length as usize];
    reader.read_exact(&mut payload).await?;
    Ok(payload)
}

/// Sends requests until the last handle is dropped or asks to close, and then sends `NBD_CMD_DISC`.
async fn write_requests<W>(
    writer: &mut W,
    messages: &mut mpsc::UnboundedReceiver<TaskMessage>,
    waiters: &RequestWaiters,
) -> NbdError
where
    W: AsyncWrite + Unpin,
{
    let (mut taken, mut batch, mut cookie) = (Vec::with_capacity(BATCH), Vec::new(), 0);
    loop {
        let mut closing = messages.recv_many(&mut taken, BATCH).await == 0;
        batch.clear();
        for message in taken.drain(..) {
            match message {
                TaskMessage::Request(waiter) if waiter.is_abandoned() => {}
                TaskMessage::Request(waiter) => {
                    cookie += 1;
                    batch.extend(waiter.encode_request(cookie));
                    waiters.insert(cookie, waiter);
                }
                TaskMessage::Close => closing = true,
            }
        }
        if let Err(cause) = flush(writer, &batch).await {
            return cause;
        }
        if closing {
            let disconnect = async {
                flush(writer, &wire::encode_request(NbdCommand::Disconnect, cookie + 1, 0, 0)).await?;
                Ok::<_, NbdError>(writer.shutdown().await?)
            };
            // A failure to disconnect does not matter: the server sees the end of the stream in any case.
            drop(timeout(DISCONNECT_DEADLINE, disconnect).await);
            return NbdError::Closed;
        }
    }
}

pub(super) async fn flush<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> Result<(), NbdError> {
    writer.write_all(bytes).await?;
    Ok(writer.flush().await?)
}

/// Waits until the oldest request in flight has missed its deadline.
async fn wait_overdue(waiters: &RequestWaiters, deadline: Duration) -> NbdError {
    loop {
        // A request sent meanwhile has at least `deadline` left.
        sleep_until(waiters.deadline().unwrap_or_else(|| Instant::now() + deadline)).await;
        if waiters.deadline().is_some_and(|oldest| oldest <= Instant::now()) {
            return late_error(deadline);
        }
    }
}

pub(super) fn late_error(waited: Duration) -> NbdError {
    NbdError::TimedOut { what: "a request", waited }
}
