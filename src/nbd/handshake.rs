//! The handshake: from a fresh stream to an export.
//!
//! Owns the order of its steps, each with its deadline. It falls back where a server lacks what is only useful
//! (structured replies, metadata contexts) and refuses where it lacks what is needed; it never tries the handshake from
//! before options.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;

use super::client::MetaContexts;
use super::connection::{flush, payload};
use super::error::NbdError;
use super::wire::{self, HandshakeOption, OptionReply, OptionReplyKind};

pub(super) const ALLOCATION: &str = "base:allocation";
pub(super) const DEPTH: &str = "qemu:allocation-depth";

/// Replies to one option, at most.
const MAX_REPLIES: usize = 32;

/// What was agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NegotiatedExport {
    pub(super) size: u64,
    pub(super) read_only: bool,
    pub(super) structured: bool,
    /// The id of `base:allocation`.
    pub(super) allocation: Option<u32>,
    /// The id of `qemu:allocation-depth`.
    pub(super) depth: Option<u32>,
}

pub(super) struct ExportHandshake<'a, R, W> {
    pub(super) reader: &'a mut R,
    pub(super) writer: &'a mut W,
    pub(super) name: &'a str,
    pub(super) deadline: Duration,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> ExportHandshake<'_, R, W> {
    /// All of it.
    pub(super) async fn run(mut self, contexts: MetaContexts) -> Result<NegotiatedExport, NbdError> {
        if self.name.len() > wire::MAX_STRING {
            return Err(NbdError::NameTooLong { length: self.name.len() });
        }
        let deadline = self.deadline;
        within(deadline, "with its greeting", self.greeting()).await?;
        let structured = within(deadline, HandshakeOption::StructuredReply.name(), self.structured()).await?;
        let mut export = NegotiatedExport { structured, ..NegotiatedExport::default() };
        if structured && (contexts.allocation || contexts.depth) {
            within(deadline, HandshakeOption::SetMetaContext.name(), self.contexts(contexts, &mut export)).await?;
        }
        within(deadline, HandshakeOption::Go.name(), self.go(&mut export)).await?;
        Ok(export)
    }

    async fn greeting(&mut self) -> Result<(), NbdError> {
        let began = self.reader.read_u64().await?;
        if began != wire::NBDMAGIC {
            return Err(NbdError::NotNbd { began });
        }
        match self.reader.read_u64().await? {
            wire::IHAVEOPT => {}
            wire::OLDSTYLE => return Err(NbdError::TooOld),
            began => return Err(NbdError::NotNbd { began }),
        }
        let offered = self.reader.read_u16().await?;
        if offered & wire::FIXED_NEWSTYLE == 0 {
            return Err(NbdError::TooOld);
        }
        let flags = offered & (wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
        flush(self.writer, &u32::from(flags).to_be_bytes()).await
    }

    /// Whether structured replies are on from here.
    async fn structured(&mut self) -> Result<bool, NbdError> {
        flush(self.writer, &HandshakeOption::StructuredReply.encode(&[])).await?;
        match self.answer(HandshakeOption::StructuredReply).await? {
            (OptionReplyKind::Ack, _) => Ok(true),
            (OptionReplyKind::Refused(_), _) => Ok(false),
            _ => Err(NbdError::Handshake { what: "structured replies were answered with something else" }),
        }
    }

    async fn contexts(&mut self, wanted: MetaContexts, export: &mut NegotiatedExport) -> Result<(), NbdError> {
        let names = [wanted.allocation.then_some(ALLOCATION), wanted.depth.then_some(DEPTH)];
        let names: Vec<&str> = names.into_iter().flatten().collect();
        flush(self.writer, &HandshakeOption::SetMetaContext.encode(&wire::meta_contexts(self.name, &names))).await?;
        for _ in 0..MAX_REPLIES {
            match self.answer(HandshakeOption::SetMetaContext).await? {
                (OptionReplyKind::Ack, _) if export.allocation.is_some() && export.allocation == export.depth => {
                    return Err(NbdError::Handshake { what: "two metadata contexts have the same id" });
                }
                (OptionReplyKind::Ack, _) => return Ok(()),
                (OptionReplyKind::Refused(OptionReply::UNKNOWN_EXPORT), message) => return Err(self.unknown(&message)),
                (OptionReplyKind::Refused(_), _) => {
                    (export.allocation, export.depth) = (None, None);
                    return Ok(());
                }
                (OptionReplyKind::MetaContext, payload) => {
                    let (id, name) = wire::meta_context(&payload)?;
                    let slot = match name {
                        name if name == ALLOCATION.as_bytes() && wanted.allocation => &mut export.allocation,
                        name if name == DEPTH.as_bytes() && wanted.depth => &mut export.depth,
                        _ => return Err(NbdError::Handshake { what: "a metadata context that was not asked for" }),
                    };
                    if slot.replace(id).is_some() {
                        return Err(NbdError::Handshake { what: "a metadata context was offered twice" });
                    }
                }
                (OptionReplyKind::Info, _) => {
                    return Err(NbdError::Handshake { what: "metadata contexts were answered with something else" });
                }
            }
        }
        Err(NbdError::Handshake { what: "an option was answered without end" })
    }

    async fn go(&mut self, export: &mut NegotiatedExport) -> Result<(), NbdError> {
        flush(self.writer, &HandshakeOption::Go.encode(&wire::go(self.name))).await?;
        let mut told = false;
        for _ in 0..MAX_REPLIES {
            match self.answer(HandshakeOption::Go).await? {
                (OptionReplyKind::Info, payload) => {
                    let Some((size, flags)) = wire::export_info(&payload)? else { continue };
                    if flags & wire::HAS_FLAGS == 0 {
                        return Err(NbdError::Handshake { what: "the export's flags say that there are none" });
                    }
                    told = true;
                    (export.size, export.read_only) = (size, flags & wire::READ_ONLY != 0);
                }
                (OptionReplyKind::Ack, _) if told => return Ok(()),
                (OptionReplyKind::Ack, _) => {
                    return Err(NbdError::Handshake { what: "the export was entered without its size" });
                }
                (OptionReplyKind::Refused(OptionReply::UNKNOWN_EXPORT), message) => return Err(self.unknown(&message)),
                (OptionReplyKind::Refused(reason), message) => {
                    let (reason, message) = (wire::refusal(reason), wire::text(&message));
                    return Err(NbdError::Declined { option: HandshakeOption::Go.name(), reason, message });
                }
                (OptionReplyKind::MetaContext, _) => {
                    return Err(NbdError::Handshake { what: "the export was answered with something else" });
                }
            }
        }
        Err(NbdError::Handshake { what: "an option was answered without end" })
    }

    /// The next reply to an option, with its payload.
    async fn answer(&mut self, option: HandshakeOption) -> Result<(OptionReplyKind, Vec<u8>), NbdError> {
        let mut header = [0; OptionReply::LENGTH];
        self.reader.read_exact(&mut header).await?;
        let reply = OptionReply::decode(&header, option)?;
        Ok((reply.verdict, payload(self.reader, reply.length).await?))
    }

    fn unknown(&self, message: &[u8]) -> NbdError {
        NbdError::NoSuchExport { name: self.name.to_owned(), message: wire::text(message) }
    }
}

async fn within<T>(
    waited: Duration,
    what: &'static str,
    step: impl Future<Output = Result<T, NbdError>>,
) -> Result<T, NbdError> {
    timeout(waited, step).await.unwrap_or_else(|_| Err(NbdError::TimedOut { what, waited }))
}
