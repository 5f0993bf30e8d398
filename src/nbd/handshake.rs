//! The handshake: from a fresh stream to an export.
//!
//! The module owns the order of the steps, each with its deadline. A server may lack structured replies and metadata
//! contexts, which are only useful; a server that lacks anything required is refused. The handshake from before 2011,
//! which has no options, is never tried.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;

use super::connection::{flush, read_payload};
use super::error::NbdError;
use super::options::MetaContexts;
use super::wire::{self, HandshakeOption, OptionReply, OptionReplyKind};

pub(super) const ALLOCATION: &str = "base:allocation";
pub(super) const DEPTH: &str = "qemu:allocation-depth";

/// Most replies to one option.
const MAX_REPLIES: usize = 32;

/// An export with the results of the negotiation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NegotiatedExport {
    pub(super) size: u64,
    pub(super) read_only: bool,
    pub(super) structured: bool,
    /// Id of `base:allocation`; `None` where the server does not offer it.
    pub(super) allocation: Option<u32>,
    /// Id of `qemu:allocation-depth`; `None` where the server does not offer it.
    pub(super) depth: Option<u32>,
}

/// A handshake for the export of this name.
pub(super) struct ExportHandshake<'a, R, W> {
    pub(super) reader: &'a mut R,
    pub(super) writer: &'a mut W,
    pub(super) name: &'a str,
    pub(super) deadline: Duration,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> ExportHandshake<'_, R, W> {
    /// Runs all steps.
    pub(super) async fn run(mut self, contexts: MetaContexts) -> Result<NegotiatedExport, NbdError> {
        if self.name.len() > wire::MAX_STRING {
            return Err(NbdError::NameTooLong { length: self.name.len() });
        }
        let deadline = self.deadline;
        run_step(deadline, "with its greeting", self.read_greeting()).await?;
        let structured =
            run_step(deadline, HandshakeOption::StructuredReply.name(), self.ask_structured_replies()).await?;
        let mut export = NegotiatedExport { structured, ..NegotiatedExport::default() };
        if structured && (contexts.allocation || contexts.depth) {
            run_step(deadline, HandshakeOption::SetMetaContext.name(), self.ask_contexts(contexts, &mut export))
                .await?;
        }
        run_step(deadline, HandshakeOption::Go.name(), self.enter_export(&mut export)).await?;
        Ok(export)
    }

    async fn read_greeting(&mut self) -> Result<(), NbdError> {
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

    /// Asks for structured replies. `true` if the server agreed.
    async fn ask_structured_replies(&mut self) -> Result<bool, NbdError> {
        flush(self.writer, &HandshakeOption::StructuredReply.encode(&[])).await?;
        match self.read_answer(HandshakeOption::StructuredReply).await? {
            (OptionReplyKind::Ack, _) => Ok(true),
            (OptionReplyKind::Refused(_), _) => Ok(false),
            _ => {
                Err(NbdError::Handshake { what: "the request for structured replies got an unexpected kind of reply" })
            }
        }
    }

    async fn ask_contexts(&mut self, wanted: MetaContexts, export: &mut NegotiatedExport) -> Result<(), NbdError> {
        let names = [wanted.allocation.then_some(ALLOCATION), wanted.depth.then_some(DEPTH)];
        let names: Vec<&str> = names.into_iter().flatten().collect();
        flush(self.writer, &HandshakeOption::SetMetaContext.encode(&wire::encode_meta_contexts(self.name, &names)))
            .await?;
        for _ in 0..MAX_REPLIES {
            match self.read_answer(HandshakeOption::SetMetaContext).await? {
                (OptionReplyKind::Ack, _) if export.allocation.is_some() && export.allocation == export.depth => {
                    return Err(NbdError::Handshake { what: "two metadata contexts have the same id" });
                }
                (OptionReplyKind::Ack, _) => return Ok(()),
                (OptionReplyKind::Refused(OptionReply::UNKNOWN_EXPORT), message) => {
                    return Err(self.no_such_export(&message));
                }
                (OptionReplyKind::Refused(_), _) => {
                    (export.allocation, export.depth) = (None, None);
                    return Ok(());
                }
                (OptionReplyKind::MetaContext, payload) => {
                    let (id, name) = wire::decode_meta_context(&payload)?;
                    let slot = match name {
                        name if name == ALLOCATION.as_bytes() && wanted.allocation => &mut export.allocation,
                        name if name == DEPTH.as_bytes() && wanted.depth => &mut export.depth,
                        _ => {
                            return Err(NbdError::Handshake {
                                what: "the server offered a metadata context that was not asked for",
                            });
                        }
                    };
                    if slot.replace(id).is_some() {
                        return Err(NbdError::Handshake { what: "a metadata context was offered twice" });
                    }
                }
                (OptionReplyKind::Info, _) => {
                    return Err(NbdError::Handshake {
                        what: "the request for metadata contexts got an unexpected kind of reply",
                    });
                }
            }
        }
        Err(NbdError::Handshake { what: "the server sent endless replies to one option" })
    }

    async fn enter_export(&mut self, export: &mut NegotiatedExport) -> Result<(), NbdError> {
        flush(self.writer, &HandshakeOption::Go.encode(&wire::encode_go(self.name))).await?;
        let mut has_size = false;
        for _ in 0..MAX_REPLIES {
            match self.read_answer(HandshakeOption::Go).await? {
                (OptionReplyKind::Info, payload) => {
                    let Some((size, flags)) = wire::decode_export_info(&payload)? else { continue };
                    if flags & wire::HAS_FLAGS == 0 {
                        return Err(NbdError::Handshake {
                            what: "the export's transmission flags lack NBD_FLAG_HAS_FLAGS",
                        });
                    }
                    has_size = true;
                    (export.size, export.read_only) = (size, flags & wire::READ_ONLY != 0);
                }
                (OptionReplyKind::Ack, _) if has_size => return Ok(()),
                (OptionReplyKind::Ack, _) => {
                    return Err(NbdError::Handshake {
                        what: "the server entered the export without announcing its size",
                    });
                }
                (OptionReplyKind::Refused(OptionReply::UNKNOWN_EXPORT), message) => {
                    return Err(self.no_such_export(&message));
                }
                (OptionReplyKind::Refused(reason), message) => {
                    let (reason, message) = (wire::refusal_name(reason), wire::printable_text(&message));
                    return Err(NbdError::Declined { option: HandshakeOption::Go.name(), reason, message });
                }
                (OptionReplyKind::MetaContext, _) => {
                    return Err(NbdError::Handshake {
                        what: "the request for the export got an unexpected kind of reply",
                    });
                }
            }
        }
        Err(NbdError::Handshake { what: "the server sent endless replies to one option" })
    }

    /// Reads the next reply to an option, with its payload.
    async fn read_answer(&mut self, option: HandshakeOption) -> Result<(OptionReplyKind, Vec<u8>), NbdError> {
        let mut header = [0; OptionReply::LENGTH];
        self.reader.read_exact(&mut header).await?;
        let reply = OptionReply::decode(&header, option)?;
        Ok((reply.kind, read_payload(self.reader, reply.length).await?))
    }

    fn no_such_export(&self, message: &[u8]) -> NbdError {
        NbdError::NoSuchExport { name: self.name.to_owned(), message: wire::printable_text(message) }
    }
}

/// Runs a step under the deadline.
async fn run_step<T>(
    waited: Duration,
    what: &'static str,
    step: impl Future<Output = Result<T, NbdError>>,
) -> Result<T, NbdError> {
    timeout(waited, step).await.unwrap_or_else(|_| Err(NbdError::TimedOut { what, waited }))
}
