//! The bytes of NBD: options and requests out, headers and small payloads in. Pure.
//!
//! The module owns the numbers of the protocol and their layout, all big-endian. Each function sees one message and
//! keeps no state, so no function can judge whether a reply fits its request. The numbers are those of `doc/proto.md`
//! of the NBD project.

use super::error::NbdError;

pub(super) const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
pub(super) const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Second magic of a server from before 2011, which has no options.
pub(super) const OLDSTYLE: u64 = 0x0000_4202_8186_1253;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Handshake flags. The flags of the client have the same bits.
pub(super) const FIXED_NEWSTYLE: u16 = 1;
pub(super) const NO_ZEROES: u16 = 1 << 1;

/// Transmission flags.
pub(super) const HAS_FLAGS: u16 = 1;
pub(super) const READ_ONLY: u16 = 1 << 1;

/// Longest name or message, in bytes.
pub(super) const MAX_STRING: usize = 4096;
/// Most descriptors in one block status reply: as many as QEMU sends.
const MAX_STATUS: usize = (1 << 20) / 8;
/// Longest payload of an option reply, in bytes: a name and a few numbers.
const MAX_OPTION_REPLY: u32 = MAX_STRING as u32 + 64;

/// The options this client uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandshakeOption {
    Go,
    StructuredReply,
    SetMetaContext,
}

impl HandshakeOption {
    fn number(self) -> u32 {
        match self {
            Self::Go => 7,
            Self::StructuredReply => 8,
            Self::SetMetaContext => 10,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Go => "NBD_OPT_GO",
            Self::StructuredReply => "NBD_OPT_STRUCTURED_REPLY",
            Self::SetMetaContext => "NBD_OPT_SET_META_CONTEXT",
        }
    }

    pub(super) fn encode(self, data: &[u8]) -> Vec<u8> {
        let mut message = IHAVEOPT.to_be_bytes().to_vec();
        message.extend(self.number().to_be_bytes());
        put_string(&mut message, data);
        message
    }
}

/// Encodes the data of `NBD_OPT_GO`: the name of the export, and no request for further information.
pub(super) fn encode_go(export: &str) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(&mut data, export.as_bytes());
    data.extend(0_u16.to_be_bytes());
    data
}

/// Encodes the data of `NBD_OPT_SET_META_CONTEXT`.
pub(super) fn encode_meta_contexts(export: &str, names: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(&mut data, export.as_bytes());
    data.extend((names.len() as u32).to_be_bytes());
    for name in names {
        put_string(&mut data, name.as_bytes());
    }
    data
}

/// Appends a length of 32 bits, and the bytes. Callers only pass strings of at most [`MAX_STRING`] bytes, or a few of
/// them, so the length fits.
fn put_string(message: &mut Vec<u8>, bytes: &[u8]) {
    message.extend((bytes.len() as u32).to_be_bytes());
    message.extend(bytes);
}

/// Kind of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OptionReplyKind {
    Ack,
    Info,
    MetaContext,
    /// Number of an `NBD_REP_ERR` reply, without the error bit.
    Refused(u32),
}

/// The header of an option reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OptionReply {
    pub(super) kind: OptionReplyKind,
    /// Length of the payload that follows, in bytes.
    pub(super) length: u32,
}

impl OptionReply {
    pub(super) const LENGTH: usize = 20;
    pub(super) const UNSUPPORTED: u32 = 1;
    pub(super) const UNKNOWN_EXPORT: u32 = 6;
    const ERROR_BIT: u32 = 1 << 31;

    pub(super) fn decode(header: &[u8; Self::LENGTH], option: HandshakeOption) -> Result<Self, NbdError> {
        let mut fields = MessageFields(header);
        if fields.u64()? != OPTION_REPLY {
            return Err(NbdError::Handshake { what: "the reply to an option has a wrong magic" });
        }
        if fields.u32()? != option.number() {
            return Err(NbdError::Handshake { what: "the server answered another option than the one sent" });
        }
        let kind = match fields.u32()? {
            1 => OptionReplyKind::Ack,
            3 => OptionReplyKind::Info,
            4 => OptionReplyKind::MetaContext,
            error if error & Self::ERROR_BIT != 0 => OptionReplyKind::Refused(error & !Self::ERROR_BIT),
            _ => return Err(NbdError::Handshake { what: "the reply to an option is of an unknown kind" }),
        };
        let length = fields.u32()?;
        if length > MAX_OPTION_REPLY {
            return Err(NbdError::TooLong { what: "payload to an option", length: length.into() });
        }
        Ok(Self { kind, length })
    }
}

/// The protocol's name for the refusal of an option.
pub(super) fn refusal_name(number: u32) -> String {
    let name = match number {
        OptionReply::UNSUPPORTED => "NBD_REP_ERR_UNSUP",
        2 => "NBD_REP_ERR_POLICY",
        3 => "NBD_REP_ERR_INVALID",
        4 => "NBD_REP_ERR_PLATFORM",
        5 => "NBD_REP_ERR_TLS_REQD",
        OptionReply::UNKNOWN_EXPORT => "NBD_REP_ERR_UNKNOWN",
        7 => "NBD_REP_ERR_SHUTDOWN",
        8 => "NBD_REP_ERR_BLOCK_SIZE_REQD",
        9 => "NBD_REP_ERR_TOO_BIG",
        other => return format!("error {other}"),
    };
    name.to_owned()
}

/// Decodes an `NBD_REP_INFO`: the size of the export in bytes and its transmission flags. `None` where the reply is
/// about something else.
pub(super) fn decode_export_info(payload: &[u8]) -> Result<Option<(u64, u16)>, NbdError> {
    let mut fields = MessageFields(payload);
    if fields.u16()? != 0 {
        return Ok(None);
    }
    let info = (fields.u64()?, fields.u16()?);
    match fields.0 {
        [] => Ok(Some(info)),
        _ => Err(NbdError::Handshake { what: "the information about the export has extra bytes" }),
    }
}

/// Decodes an `NBD_REP_META_CONTEXT`: the id and the name of the context.
pub(super) fn decode_meta_context(payload: &[u8]) -> Result<(u32, &[u8]), NbdError> {
    let mut fields = MessageFields(payload);
    Ok((fields.u32()?, fields.0))
}

/// A request of the transmission phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum NbdCommand {
    Read = 0,
    Disconnect = 2,
    BlockStatus = 7,
}

pub(super) const REQUEST_LENGTH: usize = 28;

pub(super) fn encode_request(command: NbdCommand, cookie: u64, offset: u64, length: u32) -> [u8; REQUEST_LENGTH] {
    let mut message = [0; REQUEST_LENGTH];
    message[0..4].copy_from_slice(&REQUEST.to_be_bytes());
    message[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    message[8..16].copy_from_slice(&cookie.to_be_bytes());
    message[16..24].copy_from_slice(&offset.to_be_bytes());
    message[24..28].copy_from_slice(&length.to_be_bytes());
    message
}

/// The two forms of a reply, distinguished by their magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyForm {
    Simple,
    Structured,
}

impl ReplyForm {
    pub(super) fn decode(magic: u32) -> Result<Self, NbdError> {
        match magic {
            SIMPLE_REPLY => Ok(Self::Simple),
            STRUCTURED_REPLY => Ok(Self::Structured),
            magic => Err(NbdError::Magic { magic }),
        }
    }
}

/// Decodes the rest of the header of a simple reply, after its magic: the error number and the cookie.
pub(super) fn decode_simple_reply(rest: &[u8; 12]) -> Result<(u32, u64), NbdError> {
    let mut fields = MessageFields(rest);
    Ok((fields.u32()?, fields.u64()?))
}

/// Content of a chunk of a structured reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkContent {
    Nothing,
    /// Number of data bytes, which follow their offset.
    Data(u32),
    Hole,
    Status,
    /// Error of any kind, with or without the offset at which the server met it.
    Error,
}

/// The header of a chunk of a structured reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyChunk {
    pub(super) done: bool,
    pub(super) content: ChunkContent,
    pub(super) cookie: u64,
    /// Length of the payload that follows, in bytes, including an offset.
    pub(super) length: u32,
}

impl ReplyChunk {
    /// Decodes the rest of the header, after its magic, and checks that the length is valid for the kind of chunk.
    pub(super) fn decode(rest: &[u8; 16]) -> Result<Self, NbdError> {
        let mut fields = MessageFields(rest);
        let (flags, kind, cookie, length) = (fields.u16()?, fields.u16()?, fields.u64()?, fields.u32()?);
        let too_long = |what| Err(NbdError::TooLong { what, length: length.into() });
        let unexpected = |what| Err(NbdError::Unexpected { what });
        let done = flags & 1 != 0;
        let content = match kind {
            0 if length > 0 => return too_long("payload to a chunk that holds nothing"),
            0 if !done => return unexpected("an empty chunk that is not the last"),
            0 => ChunkContent::Nothing,
            1 => match length.checked_sub(8) {
                None | Some(0) => return unexpected("a chunk of data without data"),
                Some(data) => ChunkContent::Data(data),
            },
            2 if length == 12 => ChunkContent::Hole,
            2 => return unexpected("a hole whose description has a wrong length"),
            5 if length as usize > 4 + 8 * MAX_STATUS => return too_long("block status"),
            5 => ChunkContent::Status,
            error if error & (1 << 15) != 0 => match length as usize {
                0..6 => return unexpected("an error without its number"),
                6..=8192 => ChunkContent::Error,
                _ => return too_long("error message"),
            },
            _ => return unexpected("a chunk of an unknown kind"),
        };
        Ok(Self { done, content, cookie, length })
    }
}

/// Decodes a hole: its offset and length in bytes.
pub(super) fn decode_hole(payload: &[u8; 12]) -> Result<(u64, u32), NbdError> {
    let mut fields = MessageFields(payload);
    match (fields.u64()?, fields.u32()?) {
        (_, 0) => Err(NbdError::Unexpected { what: "a hole of length 0" }),
        hole => Ok(hole),
    }
}

/// Decodes an error chunk.
pub(super) fn decode_error(payload: &[u8]) -> Result<NbdError, NbdError> {
    let mut fields = MessageFields(payload);
    let (code, length) = (fields.u32()?, fields.u16()?);
    let message = fields.take(length.into())?;
    match code {
        0 => Err(NbdError::Unexpected { what: "an error whose number says success" }),
        code => Ok(NbdError::Server { code, message: printable_text(message) }),
    }
}

/// Decodes block status: the id of the context and its descriptors, each a length and flags.
pub(super) fn decode_status(payload: &[u8]) -> Result<(u32, Vec<(u32, u32)>), NbdError> {
    let mut fields = MessageFields(payload);
    let context = fields.u32()?;
    let mut descriptors = Vec::with_capacity(fields.0.len() / 8);
    while !fields.0.is_empty() {
        descriptors.push((fields.u32()?, fields.u32()?));
    }
    if descriptors.is_empty() {
        return Err(NbdError::Unexpected { what: "block status without an extent" });
    }
    Ok((context, descriptors))
}

/// Makes the text of a server safe for a terminal.
pub(super) fn printable_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(MAX_STRING).collect()
}

/// The unread rest of a message.
struct MessageFields<'a>(&'a [u8]);

impl<'a> MessageFields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], NbdError> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or(NbdError::Unexpected { what: "the message is cut short" })?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NbdError> {
        let (taken, rest) =
            self.0.split_first_chunk().ok_or(NbdError::Unexpected { what: "the message is cut short" })?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, NbdError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, NbdError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, NbdError> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_are_as_the_protocol_has_them() {
        assert_eq!(HandshakeOption::StructuredReply.encode(&[]), b"IHAVEOPT\0\0\0\x08\0\0\0\0");
        assert_eq!(HandshakeOption::Go.encode(&encode_go("ab")), b"IHAVEOPT\0\0\0\x07\0\0\0\x08\0\0\0\x02ab\0\0");
        let data = encode_meta_contexts("e", &["base:allocation"]);
        assert_eq!(data, b"\0\0\0\x01e\0\0\0\x01\0\0\0\x0fbase:allocation");
    }

    #[test]
    fn a_request_is_as_the_protocol_has_it() {
        let wanted = b"\x25\x60\x95\x13\0\0\0\x07\0\0\0\0\0\0\0\x05\0\0\0\0\0\x01\0\0\0\0\x02\0";
        assert_eq!(&encode_request(NbdCommand::BlockStatus, 5, 65536, 512), wanted);
    }

    #[test]
    fn chunks_of_impossible_lengths_are_refused() {
        let chunk = |flags: u16, kind: u16, length: u32| {
            let mut rest = [0; 16];
            rest[0..2].copy_from_slice(&flags.to_be_bytes());
            rest[2..4].copy_from_slice(&kind.to_be_bytes());
            rest[12..16].copy_from_slice(&length.to_be_bytes());
            ReplyChunk::decode(&rest)
        };
        assert_eq!(chunk(1, 1, 9).unwrap().content, ChunkContent::Data(1));
        assert_eq!(chunk(0, 2, 12).unwrap().content, ChunkContent::Hole);
        assert!(!chunk(0, 2, 12).unwrap().done);
        assert_eq!(chunk(1, (1 << 15) + 77, 6).unwrap().content, ChunkContent::Error);
        for (flags, kind, length) in [
            (1, 0, 1),
            (0, 0, 0),
            (1, 1, 8),
            (1, 1, 0),
            (1, 2, 11),
            (1, 2, 13),
            (1, 3, 4),
            (1, 5, u32::MAX),
            (1, (1 << 15) + 1, 5),
            (1, (1 << 15) + 1, 1 << 20),
        ] {
            assert!(chunk(flags, kind, length).is_err(), "{flags} {kind} {length}");
        }
    }

    #[test]
    fn control_characters_of_a_message_are_removed() {
        let said = decode_error(b"\0\0\0\x05\0\x09no\x1b[31mway").unwrap();
        assert!(said.to_string().ends_with("EIO: no[31mwa"), "{said}");
        assert!(decode_error(b"\0\0\0\x05\0\x09no").is_err());
        assert!(decode_error(b"\0\0\0\0\0\0").is_err());
    }

    proptest! {
        #[test]
        fn no_payload_makes_it_panic(payload in prop::collection::vec(any::<u8>(), 0..64)) {
            drop((
                decode_export_info(&payload),
                decode_status(&payload),
                decode_error(&payload),
                printable_text(&payload),
            ));
            drop(decode_meta_context(&payload).map(|_| ()));
            if let Some(header) = payload.first_chunk() {
                drop(OptionReply::decode(header, HandshakeOption::Go));
            }
            if let Some(rest) = payload.first_chunk() {
                drop(ReplyChunk::decode(rest));
            }
        }
    }
}
