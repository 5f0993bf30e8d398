//! A scripted QEMU monitor for tests.
//!
//! The scripted monitor behaves like the real one where that matters: greeting first, in-band commands one after the
//! other, out-of-band commands at once, one client. A table with defaults has the answers, and a test overrides entries
//! before or during the run. The handle pushes events, freezes the in-band lane and closes the connection at any time.
//!
//! ```ignore
//! let (fake, stream) = MonitorScript::new().answer("query-status", json!({"status": "paused"})).duplex();
//! let client = Client::connect(stream, Options::default()).await.unwrap();
//! fake.event("STOP", json!({}));
//! ```

// Every test program compiles this file and uses its own part of it.
#![allow(dead_code, unreachable_pub)]

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A command as the fake received it.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedCommand {
    /// The name of the command, such as `query-status`.
    pub name: String,
    /// The arguments; `Null` without any.
    pub arguments: Value,
    /// The id, as sent.
    pub id: Option<Value>,
    /// Whether the command came as `exec-oob`.
    pub oob: bool,
    /// The time of arrival.
    pub at: Instant,
}

/// One step of an answer. The steps of a command run in order, and in-band commands wait for each other.
#[derive(Clone, Debug)]
pub enum AnswerStep {
    /// The reply, with the command's id.
    Return(Value),
    /// An error reply, with the command's id.
    Error { class: String, desc: String },
    /// An event.
    Event { name: String, data: Value },
    /// Bytes as they are.
    Raw(Vec<u8>),
    /// A pause.
    Delay(Duration),
    /// A pause until [`FakeMonitor::release`] of this tag.
    Hold(&'static str),
    /// The end of the connection, after everything before it was written.
    Close,
}

impl AnswerStep {
    /// A `GenericError`.
    pub fn error(desc: &str) -> Self {
        Self::Error { class: "GenericError".into(), desc: desc.into() }
    }

    /// An event.
    pub fn event(name: &str, data: Value) -> Self {
        Self::Event { name: name.into(), data }
    }
}

type Handler = Box<dyn FnMut(&ReceivedCommand) -> Vec<AnswerStep> + Send>;

/// The commands to several monitors in order of arrival, each with the label of its monitor.
pub type CommandLog = Arc<Mutex<Vec<(String, ReceivedCommand)>>>;

/// The behaviour of a scripted monitor.
pub struct MonitorScript {
    opening: Vec<u8>,
    handlers: HashMap<String, Handler>,
    log: Option<(String, CommandLog)>,
    reading: bool,
    buffer: usize,
}

/// The greeting of a 10.0.13 with these capabilities.
pub fn greeting(capabilities: &[&str]) -> Value {
    let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "fake"});
    json!({"QMP": {"version": version, "capabilities": capabilities}})
}

impl Default for MonitorScript {
    fn default() -> Self {
        Self::new()
    }
}

impl MonitorScript {
    /// Offers `oob` and answers the most usual commands of a running guest; any other is `CommandNotFound`.
    pub fn new() -> Self {
        let mut script = Self {
            opening: line(&greeting(&["oob"])),
            handlers: HashMap::new(),
            log: None,
            reading: true,
            buffer: 64 * 1024,
        };
        for name in ["qmp_capabilities", "stop", "cont", "migrate_cancel", "migrate-pause", "yank"] {
            script = script.answer(name, json!({}));
        }
        for name in ["query-yank", "query-jobs", "query-block-jobs", "query-block-exports"] {
            script = script.answer(name, json!([]));
        }
        script
            .answer("query-status", json!({"running": true, "status": "running"}))
            .answer("query-migrate", json!({}))
            .on("quit", |_| vec![AnswerStep::Return(json!({})), AnswerStep::Close])
    }

    /// Another greeting.
    pub fn greeting(self, greeting: &Value) -> Self {
        self.opening(line(greeting))
    }

    /// Bytes in place of the greeting; empty for silence.
    pub fn opening(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.opening = bytes.into();
        self
    }

    /// A fixed result for a command.
    pub fn answer(self, name: &str, value: Value) -> Self {
        self.on(name, move |_| vec![AnswerStep::Return(value.clone())])
    }

    /// A handler for a command.
    pub fn on(mut self, name: &str, handler: impl FnMut(&ReceivedCommand) -> Vec<AnswerStep> + Send + 'static) -> Self {
        self.handlers.insert(name.into(), Box::new(handler));
        self
    }

    /// Also writes what is received to a log shared with other fakes.
    pub fn log(mut self, label: &str, log: &CommandLog) -> Self {
        self.log = Some((label.into(), log.clone()));
        self
    }

    /// Reads nothing until [`FakeMonitor::read_on`].
    pub fn not_reading(mut self) -> Self {
        self.reading = false;
        self
    }

    /// The size of the socket buffer of [`MonitorScript::duplex`], in bytes.
    pub fn buffer(mut self, bytes: usize) -> Self {
        self.buffer = bytes;
        self
    }

    /// Serves one end of an in-memory stream and returns the other.
    pub fn duplex(self) -> (FakeMonitor, DuplexStream) {
        let (own, client) = tokio::io::duplex(self.buffer);
        (self.serve(own), client)
    }

    /// Serves the first client of a unix socket; further ones connect and hear nothing, as with QEMU.
    pub fn listen_unix(self, path: &Path) -> FakeMonitor {
        let listener = UnixListener::bind(path).unwrap();
        self.serve_once(async move { (listener.accept().await.unwrap().0, listener) })
    }

    /// Serves the first client of a TCP port, and says which port.
    pub async fn listen_tcp(self) -> (FakeMonitor, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = async move { (listener.accept().await.unwrap().0, listener) };
        (self.serve_once(accepted), port)
    }

    /// Serves a connected stream.
    pub fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> FakeMonitor {
        self.serve_once(async move { (stream, ()) })
    }

    fn serve_once<S, L>(self, accepted: impl Future<Output = (S, L)> + Send + 'static) -> FakeMonitor
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        L: Send + 'static,
    {
        let (output, outputs) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            handlers: Mutex::new(self.handlers),
            log: self.log,
            output,
            seen: watch::Sender::new(Vec::new()),
            released: watch::Sender::new(HashSet::new()),
            frozen: watch::Sender::new(false),
            reading: watch::Sender::new(self.reading),
        });
        shared.send(Output::Bytes(self.opening));
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            let (stream, listener) = accepted.await;
            let (reader, writer) = tokio::io::split(stream);
            let (lane, in_band) = mpsc::unbounded_channel();
            tokio::select! {
                () = write(writer, outputs) => {}
                () = read(reader, &serving, lane) => {}
                () = work(&serving, in_band) => {}
            }
            drop(listener);
        });
        FakeMonitor { shared, task }
    }
}

/// The handle to a running fake. Dropping it closes the connection.
pub struct FakeMonitor {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    handlers: Mutex<HashMap<String, Handler>>,
    log: Option<(String, CommandLog)>,
    output: mpsc::UnboundedSender<Output>,
    seen: watch::Sender<Vec<ReceivedCommand>>,
    released: watch::Sender<HashSet<&'static str>>,
    frozen: watch::Sender<bool>,
    reading: watch::Sender<bool>,
}

enum Output {
    Bytes(Vec<u8>),
    Close,
}

/// A handle for handlers, which may push events at any time, also to the client of another monitor.
#[derive(Clone)]
pub struct EventSender(mpsc::UnboundedSender<Output>);

impl EventSender {
    /// Sends an event. After the end of the connection the event is dropped.
    pub fn event(&self, name: &str, data: &Value) {
        drop(self.0.send(Output::Bytes(event(name, data))));
    }

    /// Closes the connection once everything sent before is written.
    pub fn close(&self) {
        drop(self.0.send(Output::Close));
    }
}

impl FakeMonitor {
    /// Sends an event.
    #[expect(clippy::needless_pass_by_value, reason = "a test writes the data on the spot")]
    pub fn event(&self, name: &str, data: Value) {
        self.raw(event(name, &data));
    }

    /// A handle with which handlers push events.
    pub fn emitter(&self) -> EventSender {
        EventSender(self.shared.output.clone())
    }

    /// Sends bytes as they are.
    pub fn raw(&self, bytes: impl Into<Vec<u8>>) {
        self.shared.send(Output::Bytes(bytes.into()));
    }

    /// Lets [`AnswerStep::Hold`] of this tag go on, now and from now on.
    pub fn release(&self, tag: &'static str) {
        self.shared.released.send_modify(|tags| {
            tags.insert(tag);
        });
    }

    /// Stops the in-band lane before its next command, as a main loop that hangs does. Out-of-band commands still work.
    pub fn freeze(&self) {
        self.shared.frozen.send_replace(true);
    }

    /// Does the same from a handler.
    pub fn freezer(&self) -> impl Fn() + Send + use<> {
        let shared = self.shared.clone();
        move || {
            shared.frozen.send_replace(true);
        }
    }

    /// Ends [`FakeMonitor::freeze`].
    pub fn thaw(&self) {
        self.shared.frozen.send_replace(false);
    }

    /// Does the same from a handler.
    pub fn thawer(&self) -> impl Fn() + Send + use<> {
        let shared = self.shared.clone();
        move || {
            shared.frozen.send_replace(false);
        }
    }

    /// Ends [`MonitorScript::not_reading`].
    pub fn read_on(&self) {
        self.shared.reading.send_replace(true);
    }

    /// Closes the connection once everything sent before is written.
    pub fn close(&self) {
        self.shared.send(Output::Close);
    }

    /// Replaces the answer to a command from now on.
    pub fn on(&self, name: &str, handler: impl FnMut(&ReceivedCommand) -> Vec<AnswerStep> + Send + 'static) {
        self.shared.handlers.lock().unwrap().insert(name.into(), Box::new(handler));
    }

    /// Replaces the answer to a command by a fixed result.
    pub fn answer(&self, name: &str, value: Value) {
        self.on(name, move |_| vec![AnswerStep::Return(value.clone())]);
    }

    /// Every command so far, in order of arrival.
    pub fn seen(&self) -> Vec<ReceivedCommand> {
        self.shared.seen.borrow().clone()
    }

    /// The names of [`FakeMonitor::seen`], without the negotiation.
    pub fn names(&self) -> Vec<String> {
        let names = self.seen().into_iter().map(|seen| seen.name);
        names.filter(|name| name != "qmp_capabilities").collect()
    }

    /// Waits until a command of this name has arrived, and returns the first.
    pub async fn saw(&self, name: &str) -> ReceivedCommand {
        let find = |seen: &Vec<ReceivedCommand>| seen.iter().find(|seen| seen.name == name).cloned();
        let mut seen = self.shared.seen.subscribe();
        let seen = seen.wait_for(|seen| find(seen).is_some()).await.unwrap();
        find(&seen).unwrap()
    }

    /// Waits until this many commands of this name have arrived.
    pub async fn saw_times(&self, name: &str, times: usize) {
        let count = |seen: &Vec<ReceivedCommand>| seen.iter().filter(|seen| seen.name == name).count();
        self.shared.seen.subscribe().wait_for(|seen| count(seen) >= times).await.unwrap();
    }

    /// Waits until this many commands have arrived, the negotiation included.
    pub async fn saw_many(&self, count: usize) {
        self.shared.seen.subscribe().wait_for(|seen| seen.len() >= count).await.unwrap();
    }

    /// Waits until the connection is over on this side.
    pub async fn ended(&mut self) {
        (&mut self.task).await.unwrap();
    }
}

impl Drop for FakeMonitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn send(&self, output: Output) {
        // After the end of the connection the output is dropped.
        drop(self.output.send(output));
    }

    fn note(&self, seen: &ReceivedCommand) {
        self.seen.send_modify(|all| all.push(seen.clone()));
        if let Some((label, log)) = &self.log {
            log.lock().unwrap().push((label.clone(), seen.clone()));
        }
    }

    async fn carry_out(&self, seen: &ReceivedCommand) {
        let actions = match self.handlers.lock().unwrap().get_mut(&seen.name) {
            Some(handler) => handler(seen),
            None => vec![AnswerStep::Error {
                class: "CommandNotFound".into(),
                desc: format!("The command {} has not been found", seen.name),
            }],
        };
        for action in actions {
            let bytes = match action {
                AnswerStep::Return(value) => line(&json!({"return": value, "id": seen.id})),
                AnswerStep::Error { class, desc } => {
                    line(&json!({"error": {"class": class, "desc": desc}, "id": seen.id}))
                }
                AnswerStep::Event { name, data } => event(&name, &data),
                AnswerStep::Raw(bytes) => bytes,
                AnswerStep::Delay(pause) => {
                    tokio::time::sleep(pause).await;
                    continue;
                }
                AnswerStep::Hold(tag) => {
                    let mut released = self.released.subscribe();
                    released.wait_for(|tags| tags.contains(tag)).await.unwrap();
                    continue;
                }
                AnswerStep::Close => return self.send(Output::Close),
            };
            self.send(Output::Bytes(bytes));
        }
    }
}

async fn read(reader: impl AsyncRead + Unpin, shared: &Arc<Shared>, lane: mpsc::UnboundedSender<ReceivedCommand>) {
    let mut lines = BufReader::new(reader).lines();
    loop {
        shared.reading.subscribe().wait_for(|reading| *reading).await.unwrap();
        let Ok(Some(text)) = lines.next_line().await else {
            return;
        };
        let Ok(message) = serde_json::from_str::<Value>(&text) else {
            let error = json!({"class": "GenericError", "desc": "JSON parse error"});
            shared.send(Output::Bytes(line(&json!({"error": error}))));
            continue;
        };
        let oob = message.get("exec-oob").is_some();
        let name = message[if oob { "exec-oob" } else { "execute" }].as_str().unwrap();
        let (arguments, id) = (message["arguments"].clone(), message.get("id").cloned());
        let seen = ReceivedCommand { name: name.into(), arguments, id, oob, at: Instant::now() };
        shared.note(&seen);
        if oob {
            let shared = shared.clone();
            tokio::spawn(async move { shared.carry_out(&seen).await });
        } else {
            lane.send(seen).unwrap();
        }
    }
}

async fn work(shared: &Shared, mut in_band: mpsc::UnboundedReceiver<ReceivedCommand>) {
    while let Some(seen) = in_band.recv().await {
        shared.frozen.subscribe().wait_for(|frozen| !frozen).await.unwrap();
        shared.carry_out(&seen).await;
    }
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut outputs: mpsc::UnboundedReceiver<Output>) {
    while let Some(Output::Bytes(bytes)) = outputs.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            // The client has closed the connection. The reading half still reads all commands, and then ends the
            // monitor.
            std::future::pending::<()>().await;
        }
    }
    drop(writer.shutdown().await);
}

fn line(value: &Value) -> Vec<u8> {
    format!("{value}\r\n").into_bytes()
}

fn event(name: &str, data: &Value) -> Vec<u8> {
    line(&json!({"event": name, "data": data, "timestamp": {"seconds": 1_700_000_000, "microseconds": 5}}))
}
