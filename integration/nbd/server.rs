//! A scripted NBD server, which shares no code with the client and sends any bytes that a test asks for.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub(crate) const DONE: u16 = 1;
pub(crate) const NONE: u16 = 0;
pub(crate) const DATA: u16 = 1;
pub(crate) const HOLE: u16 = 2;
pub(crate) const STATUS: u16 = 5;
pub(crate) const ERROR: u16 = (1 << 15) + 1;

const ACK: u32 = 1;
const UNSUPPORTED: u32 = (1 << 31) + 1;

/// Results of a correct handshake.
pub(crate) struct Shape {
    pub(crate) size: u64,
    pub(crate) structured: bool,
    pub(crate) contexts: Vec<(u32, &'static str)>,
}

impl Default for Shape {
    fn default() -> Self {
        let contexts = vec![(7, "base:allocation"), (8, "qemu:allocation-depth")];
        Self { size: 4096, structured: true, contexts }
    }
}

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

pub(crate) struct Server {
    stream: DuplexStream,
}

impl Server {
    pub(crate) fn new() -> (Self, DuplexStream) {
        let (stream, client) = tokio::io::duplex(1 << 16);
        (Self { stream }, client)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Sends bytes. `false` if the client has closed the connection.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    pub(crate) async fn send_greeting(&mut self, flags: u64) {
        self.send(&[b"NBDMAGICIHAVEOPT".to_vec(), be(&[(flags, 2)])].concat()).await;
        assert_eq!(u64::from(self.stream.read_u32().await.unwrap()), flags & 3);
    }

    /// Reads the next option and its data.
    pub(crate) async fn read_option(&mut self) -> (u32, Vec<u8>) {
        let mut magic = [0; 8];
        self.stream.read_exact(&mut magic).await.unwrap();
        assert_eq!(&magic, b"IHAVEOPT");
        let option = self.stream.read_u32().await.unwrap();
        let mut payload = vec![0; self.stream.read_u32().await.unwrap() as usize];
        self.stream.read_exact(&mut payload).await.unwrap();
        (option, payload)
    }

    /// Answers one option as a correct server does; returns whether the option was the last.
    pub(crate) async fn answer(&mut self, shape: &Shape, option: u32, payload: &[u8]) -> bool {
        let mut answer = Vec::new();
        match option {
            8 => answer.extend(option_reply(8, if shape.structured { ACK } else { UNSUPPORTED }, &[])),
            10 => {
                for (id, name) in &shape.contexts {
                    let offer = [be(&[(u64::from(*id), 4)]), name.as_bytes().to_vec()].concat();
                    answer.extend(option_reply(10, 4, &offer));
                }
                answer.extend(option_reply(10, ACK, &[]));
            }
            7 => {
                assert_eq!(payload, b"\0\0\0\x04disk\0\0");
                answer.extend(option_reply(7, 3, &be(&[(3, 2), (1, 4), (4096, 4), (32 << 20, 4)])));
                answer.extend(option_reply(7, 3, &be(&[(0, 2), (shape.size, 8), (0b11, 2)])));
                answer.extend(option_reply(7, ACK, &[]));
            }
            other => panic!("option {other}"),
        }
        self.send(&answer).await;
        option == 7
    }

    /// Runs a correct handshake; returns the data of `NBD_OPT_SET_META_CONTEXT`, if the client sent that option.
    pub(crate) async fn run_handshake(&mut self, shape: &Shape) -> Option<Vec<u8>> {
        self.send_greeting(3).await;
        let mut queries = None;
        loop {
            let (option, payload) = self.read_option().await;
            if option == 10 {
                queries = Some(payload.clone());
            }
            if self.answer(shape, option, &payload).await {
                return queries;
            }
        }
    }

    /// Reads the next request; `None` at the end of the stream.
    pub(crate) async fn read_request(&mut self) -> Option<Request> {
        let magic = self.stream.read_u32().await.ok()?;
        assert_eq!(magic, 0x2560_9513);
        assert_eq!(self.stream.read_u16().await.unwrap(), 0);
        Some(Request {
            command: self.stream.read_u16().await.unwrap(),
            cookie: self.stream.read_u64().await.unwrap(),
            offset: self.stream.read_u64().await.unwrap(),
            length: self.stream.read_u32().await.unwrap(),
        })
    }

    pub(crate) async fn send_chunk(&mut self, flags: u16, kind: u16, cookie: u64, payload: &[u8]) {
        self.send(&chunk(flags, kind, cookie, payload)).await;
    }

    pub(crate) async fn send_simple(&mut self, code: u32, cookie: u64, payload: &[u8]) {
        self.send(&simple(code, cookie, payload)).await;
    }
}

/// Numbers as big-endian bytes, each with its length in bytes.
pub(crate) fn be(numbers: &[(u64, usize)]) -> Vec<u8> {
    numbers.iter().flat_map(|(number, bytes)| number.to_be_bytes()[8 - bytes..].to_vec()).collect()
}

pub(crate) fn option_reply(option: u64, kind: u32, payload: &[u8]) -> Vec<u8> {
    let header = be(&[(0x3_e889_0455_65a9, 8), (option, 4), (kind.into(), 4), (payload.len() as u64, 4)]);
    [&header, payload].concat()
}

pub(crate) fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u64;
    let header = be(&[(0x668e_33ef, 4), (flags.into(), 2), (kind.into(), 2), (cookie, 8), (length, 4)]);
    [&header, payload].concat()
}

pub(crate) fn simple(code: u32, cookie: u64, payload: &[u8]) -> Vec<u8> {
    [&be(&[(0x6744_6698, 4), (code.into(), 4), (cookie, 8)]), payload].concat()
}

pub(crate) fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&be(&[(offset, 8)]), bytes].concat()
}

pub(crate) fn hole(offset: u64, length: u32) -> Vec<u8> {
    be(&[(offset, 8), (length.into(), 4)])
}

pub(crate) fn status(context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = be(&[(context.into(), 4)]);
    for (length, flags) in extents {
        payload.extend(be(&[((*length).into(), 4), ((*flags).into(), 4)]));
    }
    payload
}

pub(crate) fn error(code: u32, message: &str) -> Vec<u8> {
    [&be(&[(code.into(), 4), (message.len() as u64, 2)]), message.as_bytes()].concat()
}

/// Data of `NBD_OPT_SET_META_CONTEXT` for these contexts.
pub(crate) fn context(export: &str, names: &[&str]) -> Vec<u8> {
    let string = |text: &str| [&be(&[(text.len() as u64, 4)]), text.as_bytes()].concat();
    let names_bytes: Vec<u8> = names.iter().flat_map(|name| string(name)).collect();
    [string(export), be(&[(names.len() as u64, 4)]), names_bytes].concat()
}
