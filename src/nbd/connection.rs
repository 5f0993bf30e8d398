//! The one task that owns an NBD socket.
//!
//! Reads, writes and watches the deadline at the same time. Payload goes from the socket into its request's own buffer.
//! It never waits for a caller, and ends the connection at the first reply that cannot be right: after one, no byte of
//! the stream can be trusted to be what it seems.

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

/// Room for headers and small payloads. Larger payloads do not go through it but for what is read ahead.
const READ_AHEAD: usize = 4096;

/// Requests written at once, at most.
const BATCH: usize = 64;

/// How long a server that does not read may hold up the end.
const GOODBYE: Duration = Duration::from_secs(1);

/// What the handles send to the task.
#[derive(Debug)]
pub(super) enum TaskMessage {
    Request(RequestWaiter),
    Close,
}

pub(super) type StreamReader<S> = BufReader<ReadHalf<S>>;

/// The two directions of a stream.
pub(super) fn halves<S: AsyncRead + AsyncWrite>(stream: S) -> (StreamReader<S>, WriteHalf<S>) {
    let (reader, writer) = tokio::io::split(stream);
    (BufReader::with_capacity(READ_AHEAD, reader), writer)
}

pub(super) struct NbdConnection<S> {
    pub(super) reader: StreamReader<S>,
    pub(super) writer: WriteHalf<S>,
    /// Whether structured replies were negotiated.
    pub(super) structured: bool,
    pub(super) deadline: Duration,
    pub(super) jobs: mpsc::UnboundedReceiver<TaskMessage>,
    pub(super) closed: watch::Sender<Option<NbdError>>,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> NbdConnection<S> {
    /// Serves until the connection ends, by whichever side.
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
            cause = write(&mut self.writer, &mut self.jobs, &waiters) => cause,
            cause = expire(&waiters, self.deadline) => cause,
        };
        tracing::debug!(%cause, "NBD connection closed");
        // The cause first: whoever is woken by the drops asks for it.
        self.closed.send_replace(Some(cause));
    }
}

/// Takes replies off the socket.
struct ReplyReader<'a> {
    structured: bool,
    deadline: Duration,
    waiters: &'a RequestWaiters,
    buffers: ReadBuffers,
}

impl ReplyReader<'_> {
    async fn run<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> NbdError {
        loop {
            if let Err(cause) = self.reply(reader).await {
                return cause;
            }
        }
    }

    async fn reply<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> Result<(), NbdError> {
        match ReplyForm::decode(reader.read_u32().await?)? {
            ReplyForm::Simple => self.simple(reader).await,
            ReplyForm::Structured if self.structured => self.chunk(reader).await,
            ReplyForm::Structured => Err(NbdError::Unexpected { what: "a structured reply that was not negotiated" }),
        }
    }

    async fn chunk<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> Result<(), NbdError> {
        let chunk = ReplyChunk::decode(&array(reader).await?)?;
        let mut waiter = self.waiters.take(chunk.cookie)?;
        let at = waiter.deadline;
        within(self.deadline, at, take(reader, &mut waiter, chunk, &mut self.buffers)).await?;
        if chunk.done {
            return waiter.finish(&mut self.buffers);
        }
        self.waiters.insert(chunk.cookie, waiter);
        Ok(())
    }

    async fn simple<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> Result<(), NbdError> {
        let (code, cookie) = wire::simple(&array(reader).await?)?;
        let mut waiter = self.waiters.take(cookie)?;
        match code {
            0 if self.structured => {
                return Err(NbdError::Unexpected { what: "a simple reply where structured ones were negotiated" });
            }
            0 => {
                let at = waiter.deadline;
                let assembly = waiter.assembly()?;
                let (offset, length) = assembly.range();
                let room = assembly.data(offset, length, &mut self.buffers)?;
                within(self.deadline, at, fill(reader, room)).await?;
            }
            // Without a payload it cannot be mistaken, so servers may send it even beside structured ones.
            code => waiter.fail(NbdError::Server { code, message: String::new() }),
        }
        waiter.finish(&mut self.buffers)
    }
}

/// While a payload is being read its request is not among the waiters, whose deadline is watched.
async fn within<T>(
    waited: Duration,
    at: Instant,
    reading: impl Future<Output = Result<T, NbdError>>,
) -> Result<T, NbdError> {
    timeout_at(at, reading).await.unwrap_or_else(|_| Err(late(waited)))
}

/// Takes the payload of a chunk.
async fn take<R: AsyncRead + Unpin>(
    reader: &mut R,
    waiter: &mut RequestWaiter,
    chunk: ReplyChunk,
    buffers: &mut ReadBuffers,
) -> Result<(), NbdError> {
    match chunk.content {
        ChunkContent::Nothing => Ok(()),
        ChunkContent::Data(length) => {
            let offset = reader.read_u64().await?;
            fill(reader, waiter.assembly()?.data(offset, length, buffers)?).await
        }
        ChunkContent::Hole => {
            let (offset, length) = wire::hole(&array(reader).await?)?;
            waiter.assembly()?.hole(offset, length, buffers)
        }
        ChunkContent::Status => waiter.status(&payload(reader, chunk.length).await?),
        ChunkContent::Error => {
            waiter.fail(wire::error(&payload(reader, chunk.length).await?)?);
            Ok(())
        }
    }
}

/// Reads what a chunk of data holds to where it belongs.
async fn fill<R: AsyncRead + Unpin>(reader: &mut R, room: ChunkRoom<'_>) -> Result<(), NbdError> {
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

async fn array<const N: usize, R: AsyncRead + Unpin>(reader: &mut R) -> Result<[u8; N], NbdError> {
    let mut array = [0; N];
    reader.read_exact(&mut array).await?;
    Ok(array)
}

/// A small payload, whose length has been found to be one.
pub(super) async fn payload<R: AsyncRead + Unpin>(reader: &mut R, length: u32) -> Result<Vec<u8>, NbdError> {
    let mut payload = vec![0; length as usize];
    reader.read_exact(&mut payload).await?;
    Ok(payload)
}

/// Sends requests until no handle is left or one says to close, and then says goodbye.
async fn write<W>(writer: &mut W, jobs: &mut mpsc::UnboundedReceiver<TaskMessage>, waiters: &RequestWaiters) -> NbdError
where
    W: AsyncWrite + Unpin,
{
    let (mut taken, mut batch, mut cookie) = (Vec::with_capacity(BATCH), Vec::new(), 0);
    loop {
        let mut closing = jobs.recv_many(&mut taken, BATCH).await == 0;
        batch.clear();
        for job in taken.drain(..) {
            match job {
                TaskMessage::Request(waiter) if waiter.is_abandoned() => {}
                TaskMessage::Request(waiter) => {
                    cookie += 1;
                    batch.extend(waiter.request(cookie));
                    waiters.insert(cookie, waiter);
                }
                TaskMessage::Close => closing = true,
            }
        }
        if let Err(cause) = flush(writer, &batch).await {
            return cause;
        }
        if closing {
            let goodbye = async {
                flush(writer, &wire::request(NbdCommand::Disconnect, cookie + 1, 0, 0)).await?;
                Ok::<_, NbdError>(writer.shutdown().await?)
            };
            // It is a courtesy: the server sees the end of the stream in any case.
            drop(timeout(GOODBYE, goodbye).await);
            return NbdError::Closed;
        }
    }
}

pub(super) async fn flush<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> Result<(), NbdError> {
    writer.write_all(bytes).await?;
    Ok(writer.flush().await?)
}

/// Returns when the oldest request in flight has waited too long.
async fn expire(waiters: &RequestWaiters, deadline: Duration) -> NbdError {
    loop {
        // One sent meanwhile has at least that much time.
        sleep_until(waiters.deadline().unwrap_or_else(|| Instant::now() + deadline)).await;
        if waiters.deadline().is_some_and(|oldest| oldest <= Instant::now()) {
            return late(deadline);
        }
    }
}

pub(super) fn late(waited: Duration) -> NbdError {
    NbdError::TimedOut { what: "a request", waited }
}
