//! A monitor in the clothes of QMP: what is sent to it goes through `virsh`, and libvirt's events come out of it.
//!
//! Owns one end of a stream, whose other end a client of QMP has. Commands that come together go in one call of
//! `virsh`. The greeting offers no out-of-band execution, because libvirt passes none on.

use super::{
    virsh_call::{ask, not_started, virsh},
    virsh_domain::VirshDomain,
    virsh_words::{VirshError, event},
};
use crate::{
    endpoint::{Connect, Connecting, Socket},
    progress::describe,
    qmp::frame::{LineCut, LineCutter},
};
use serde_json::{Map, Value, json};
use std::{io, process::Stdio, time::Duration};
use tokio::{
    io::{
        AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf, duplex,
        split,
    },
    process::{Child, ChildStdout},
    time::timeout,
};

/// The bytes that wait between the two ends.
const ROOM: usize = 1 << 20;
/// The time for further commands to come after one, and the most that go in one call.
const GATHER: Duration = Duration::from_millis(5);
const TOGETHER: usize = 16;
/// The longest line of an event.
const EVENT: usize = 64 << 10;

/// Connects to the monitor of a domain.
#[derive(Debug)]
pub(super) struct VirshConnector {
    domain: VirshDomain,
}

impl VirshConnector {
    pub(super) fn new(domain: VirshDomain) -> Self {
        Self { domain }
    }

    async fn open(&self) -> Result<DuplexStream, VirshError> {
        let asked = ask(&self.domain, &[json!({ "execute": "query-version" }).to_string()]).await?;
        let answer = asked.into_iter().next().transpose()?.unwrap_or_default();
        let version = answer.get("return").cloned().unwrap_or_else(|| json!({}));
        // events are hints: a libvirt that gives none is looked at all the same
        let mut events = virsh(&self.domain, &self.domain.verb("qemu-monitor-event", "--loop"));
        let events = events.stderr(Stdio::null()).spawn().map_err(not_started)?;
        let (near, far) = duplex(ROOM);
        tokio::spawn(VirshBridge::new(self.domain.clone(), far, events).run(version));
        Ok(near)
    }
}

impl Connect for VirshConnector {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async { Ok(Box::new(self.open().await.map_err(VirshError::into_io)?) as Box<dyn Socket>) })
    }
}

/// The far end of the stream.
struct VirshBridge {
    domain: VirshDomain,
    commands: Lines<BufReader<ReadHalf<DuplexStream>>>,
    out: WriteHalf<DuplexStream>,
    events: EventLines,
}

/// The lines of `qemu-monitor-event`, until it ends.
struct EventLines {
    /// The child is killed with the bridge.
    _child: Child,
    stdout: Option<ChildStdout>,
    lines: LineCutter,
}

impl EventLines {
    /// The next event; none comes after the end of the child. Cancel-safe.
    async fn next(&mut self) -> Value {
        loop {
            while let Some(cut) = self.lines.next_cut() {
                if let LineCut::Line(line) = cut {
                    if let Some(event) = event(&String::from_utf8_lossy(&line)) {
                        return event;
                    }
                }
            }
            let read = match &mut self.stdout {
                Some(stdout) => stdout.read_buf(self.lines.reserve_space()).await,
                None => std::future::pending().await,
            };
            if !matches!(read, Ok(1..)) {
                self.stdout = None;
            }
        }
    }
}

impl VirshBridge {
    fn new(domain: VirshDomain, far: DuplexStream, mut events: Child) -> Self {
        let (reader, out) = split(far);
        let stdout = events.stdout.take();
        let events = EventLines { _child: events, stdout, lines: LineCutter::new(EVENT) };
        Self { domain, commands: BufReader::new(reader).lines(), out, events }
    }

    /// Serves until the client is gone, or the domain is.
    async fn run(mut self, version: Value) {
        let greeting = json!({ "QMP": { "version": version, "capabilities": [] } });
        if self.say(&greeting).await.is_ok() {
            // an error is the end of the client, who has no use for it
            self.serve().await.ok();
        }
    }

    async fn serve(&mut self) -> io::Result<()> {
        loop {
            let first = tokio::select! {
                line = self.commands.next_line() => line?,
                event = self.events.next() => {
                    self.say(&event).await?;
                    continue;
                }
            };
            let Some(first) = first else { return Ok(()) };
            let mut lines = vec![first];
            while lines.len() < TOGETHER {
                match timeout(GATHER, self.commands.next_line()).await {
                    Ok(line) => match line? {
                        Some(line) => lines.push(line),
                        None => return Ok(()),
                    },
                    Err(_) => break,
                }
            }
            self.answer(lines).await?;
        }
    }

    /// Answers some commands, and passes on events that come meanwhile.
    async fn answer(&mut self, lines: Vec<String>) -> io::Result<()> {
        let (mut ids, mut commands) = (Vec::new(), Vec::new());
        for line in lines {
            let Ok(Value::Object(mut command)) = serde_json::from_str(&line) else { continue };
            let id = command.remove("id").unwrap_or_default();
            if command.get("execute").is_some_and(|name| name == "qmp_capabilities") {
                self.reply(id, Map::from_iter([("return".to_owned(), json!({}))])).await?;
            } else {
                ids.push(id);
                commands.push(Value::from(command).to_string());
            }
        }
        if commands.is_empty() {
            return Ok(());
        }
        let domain = self.domain.clone();
        let asking = ask(&domain, &commands);
        tokio::pin!(asking);
        let asked = loop {
            tokio::select! {
                asked = &mut asking => break asked,
                event = self.events.next() => self.say(&event).await?,
            }
        };
        let mut asked = match asked {
            Ok(answers) => answers.into_iter(),
            Err(error) => vec![Err(error)].into_iter(),
        };
        let mut refused = Map::new();
        for id in ids {
            let answer = match asked.next() {
                Some(Ok(answer)) => answer,
                Some(Err(error)) if error.is_end() => return Err(io::ErrorKind::NotConnected.into()),
                Some(Err(error)) => {
                    let desc = json!({ "class": error.class(), "desc": describe(&error) });
                    refused = Map::from_iter([("error".to_owned(), desc)]);
                    refused.clone()
                }
                // one error for all
                None => refused.clone(),
            };
            self.reply(id, answer).await?;
        }
        Ok(())
    }

    async fn reply(&mut self, id: Value, mut answer: Map<String, Value>) -> io::Result<()> {
        answer.insert("id".to_owned(), id);
        self.say(&answer.into()).await
    }

    async fn say(&mut self, line: &Value) -> io::Result<()> {
        self.out.write_all(format!("{line}\n").as_bytes()).await
    }
}
