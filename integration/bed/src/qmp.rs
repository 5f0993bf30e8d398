//! A small blocking QMP client. The bed has its own, so as not to judge the engine by the engine's code.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};

/// The limit for one command.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection to a QEMU's monitor.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
    events: VecDeque<Event>,
    sent: u64,
}

/// An event, as QEMU sent it.
#[derive(Clone, Debug)]
pub struct Event {
    /// The name, such as `STOP`.
    pub name: String,
    /// The data, or null.
    pub data: Value,
    /// QEMU's own time stamp, since the epoch.
    pub time: Duration,
}

/// A command's answer: the returned value, or the refusal.
pub type Answer = std::result::Result<Value, Refusal>;

/// The refusal of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error class, such as `GenericError` or `CommandNotFound`.
    pub class: String,
    /// QEMU's words.
    pub description: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.description, self.class)
    }
}

impl Qmp {
    /// Connects and leaves capabilities negotiation.
    ///
    /// # Errors
    /// Nobody listens on that socket, or no QMP server does.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context(|| format!("connecting to {}", path.display()))?;
        let mut qmp = Self { stream: BufReader::new(stream), line: Vec::new(), events: VecDeque::new(), sent: 0 };
        let greeting = qmp.receive(Instant::now() + PATIENCE)?;
        if greeting.as_ref().is_none_or(|greeting| greeting.get("QMP").is_none()) {
            return Err(Error::new(format!("{} sent no greeting", path.display())));
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// QEMU refused it, or did not answer in 30 seconds.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.ask(command, arguments)?.context(|| command)
    }

    /// Runs a command whose refusal is an answer too.
    ///
    /// # Errors
    /// The connection is gone, or QEMU did not answer in 30 seconds.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Answer> {
        self.sent += 1;
        let request = format!("{}\n", json!({"execute": command, "arguments": arguments, "id": self.sent}));
        self.stream.get_mut().write_all(request.as_bytes()).context(|| format!("sending {command}"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(message) = self.receive(deadline).context(|| command)? else {
                return Err(Error::new(format!("{command}: no answer in {PATIENCE:?}")));
            };
            if message.get("event").is_some() {
                self.events.push_back(event(&message));
            } else if message["id"] == self.sent {
                return Ok(answer(&message));
            }
        }
    }

    /// Waits for the next event that `wanted` accepts; those before it are dropped.
    ///
    /// # Errors
    /// The connection is gone, or no such event came in time; the error has the names of those that came.
    pub fn wait(&mut self, what: &str, patience: Duration, mut wanted: impl FnMut(&Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + patience;
        let mut passed = Vec::new();
        loop {
            while let Some(event) = self.events.pop_front() {
                if wanted(&event) {
                    return Ok(event);
                }
                passed.push(event.name);
            }
            match self.receive(deadline).context(|| format!("waiting for {what}"))? {
                Some(message) if message.get("event").is_some() => self.events.push_back(event(&message)),
                Some(_) => {}
                None => {
                    return Err(Error::new(format!("no {what} in {patience:?}, only {passed:?}")));
                }
            }
        }
    }

    /// The events that have come since the last call.
    ///
    /// # Errors
    /// The bytes received are not QMP. A closed connection is no error, for its events were sent before.
    pub fn events(&mut self) -> Result<Vec<Event>> {
        while let Ok(Some(message)) = self.receive(Instant::now()) {
            if message.get("event").is_some() {
                self.events.push_back(event(&message));
            }
        }
        Ok(self.events.drain(..).collect())
    }

    /// The next message, or none by the deadline. The part of a message that came by then is kept for the next call.
    fn receive(&mut self, deadline: Instant) -> Result<Option<Value>> {
        loop {
            // A timeout of zero would mean none at all.
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(100));
            self.stream.get_ref().set_read_timeout(Some(left)).context(|| "setting a deadline")?;
            match self.stream.read_until(b'\n', &mut self.line) {
                Ok(_) if self.line.ends_with(b"\n") => {
                    let message = serde_json::from_slice(&self.line).context(|| "not JSON from QMP")?;
                    self.line.clear();
                    return Ok(Some(message));
                }
                Ok(_) => return Err(Error::new("QEMU closed the connection")),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error).context(|| "reading from QMP"),
            }
        }
    }
}

fn event(message: &Value) -> Event {
    let part = |name: &str| message["timestamp"][name].as_u64().unwrap_or_default();
    Event {
        name: message["event"].as_str().unwrap_or_default().to_owned(),
        data: message["data"].clone(),
        time: Duration::from_secs(part("seconds")) + Duration::from_micros(part("microseconds")),
    }
}

fn answer(message: &Value) -> Answer {
    match message.get("error") {
        Some(error) => {
            let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
            Err(Refusal { class: text("class"), description: text("desc") })
        }
        None => Ok(message["return"].clone()),
    }
}
