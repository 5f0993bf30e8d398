//! A further monitor of a QEMU, over which the sweep itself hears when the guest stops and resumes, whoever moves it.
//!
//! Owns the connection. It asks, and presses keys of the guest's keyboard; it must never change how the guest runs.

use super::{host, run_changes::RunChanges};
use crate::{
    endpoint::{Address, dial},
    qmp::{QmpClient, QmpOptions, QmpRequest, StreamItem},
};
use serde_json::Value;
use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// A command to a monitor of the sweep's own.
pub(super) const COMMAND: Duration = Duration::from_secs(10);
/// How often a monitor that is not there yet is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// How often the CPU time of a QEMU is noted: one that is somebody else's child tells nothing once it is gone.
const NOTE: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct HeardOfQemu {
    client: Option<QmpClient>,
    pid: Option<u32>,
    cpu: Option<f64>,
    changes: RunChanges,
}

/// The monitor of one QEMU.
#[derive(Debug)]
pub(crate) struct EventMonitor {
    heard: Arc<Mutex<HeardOfQemu>>,
    task: JoinHandle<()>,
}

impl EventMonitor {
    /// Connects as soon as the socket is there, and listens from then on.
    pub(crate) fn watch(socket: &Path) -> Self {
        let heard = Arc::new(Mutex::new(HeardOfQemu::default()));
        let (shared, socket) = (heard.clone(), socket.to_owned());
        let task = tokio::spawn(async move {
            let Ok(address) = Address::unix(&socket) else { return };
            loop {
                if socket.exists() {
                    if let Ok(dialed) = dial(&address, COMMAND).await {
                        let pid = dialed.peer.as_ref().map(|peer| peer.pid());
                        if let Ok(client) = QmpClient::connect(dialed.stream, QmpOptions::labelled("sweep")).await {
                            return listen(client, pid, &shared).await;
                        }
                    }
                }
                sleep(LOOK).await;
            }
        });
        Self { heard, task }
    }

    /// Waits until it is connected; whether it is.
    pub(crate) async fn connected(&self) -> bool {
        let begun = Instant::now();
        while self.lock().client.is_none() {
            if begun.elapsed() > COMMAND {
                return false;
            }
            sleep(LOOK).await;
        }
        true
    }

    /// When the guest stopped and resumed.
    pub(crate) fn changes(&self) -> RunChanges {
        self.lock().changes.clone()
    }

    /// The CPU time of QEMU so far, in milliseconds, or that which was last noted of one that is gone.
    pub(crate) fn cpu(&self) -> Option<f64> {
        let (pid, noted) = {
            let heard = self.lock();
            (heard.pid, heard.cpu)
        };
        pid.and_then(host::cpu_time).or(noted)
    }

    /// The connection, once it is there.
    pub(crate) fn client(&self) -> Option<QmpClient> {
        self.lock().client.clone()
    }

    fn lock(&self) -> MutexGuard<'_, HeardOfQemu> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EventMonitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(client: QmpClient, pid: Option<u32>, heard: &Mutex<HeardOfQemu>) {
    let lock = || heard.lock().unwrap_or_else(PoisonError::into_inner);
    let mut events = client.subscribe();
    {
        let mut heard = lock();
        (heard.client, heard.pid) = (Some(client), pid);
    }
    loop {
        let item = timeout(NOTE, events.next()).await;
        if let Some(cpu) = pid.and_then(host::cpu_time) {
            lock().cpu = Some(cpu);
        }
        match item {
            Ok(StreamItem::Event(event)) => lock().changes.take(&event.name, event.emitted),
            Ok(StreamItem::Closed(_)) => return,
            Ok(StreamItem::Lagged(_)) | Err(_) => {}
        }
    }
}

/// Asks over a monitor.
///
/// # Errors
/// In one sentence.
pub(super) async fn ask(client: &QmpClient, request: QmpRequest) -> Result<Value, String> {
    client.start(request, COMMAND).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::UnixListener,
    };

    /// A QEMU of a few lines, whose monitor comes late.
    #[tokio::test]
    async fn stops_and_resumes_are_heard_from_a_monitor_that_comes_late() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("events");
        let monitor = EventMonitor::watch(&socket);
        assert!(monitor.client().is_none() && monitor.cpu().is_none());
        sleep(LOOK * 3).await;
        let listener = UnixListener::bind(&socket).expect("it can listen");
        let qemu = async {
            let (stream, _) = listener.accept().await.expect("somebody connects");
            let (read, mut write) = stream.into_split();
            write.write_all(b"{\"QMP\":{\"version\":{},\"capabilities\":[]}}\r\n").await.expect("greeted");
            let mut lines = BufReader::new(read).lines();
            let line = lines.next_line().await.expect("a line").expect("a command");
            let id = serde_json::from_str::<Value>(&line).expect("JSON")["id"].clone();
            let mut said = format!("{{\"return\":{{}},\"id\":{id}}}\r\n");
            for (name, seconds) in [("STOP", 5), ("NIC_RX_FILTER_CHANGED", 6), ("RESUME", 7), ("STOP", 8)] {
                said +=
                    &format!("{{\"timestamp\":{{\"seconds\":{seconds},\"microseconds\":4}},\"event\":\"{name}\"}}\r\n");
            }
            write.write_all(said.as_bytes()).await.expect("said");
            lines
        };
        let lines = qemu.await;
        assert!(monitor.connected().await);
        let expected = RunChanges { stops: vec![5_000_004, 8_000_004], resumes: vec![7_000_004] };
        let begun = Instant::now();
        while monitor.changes() != expected {
            assert!(begun.elapsed() < COMMAND, "{:?}", monitor.changes());
            sleep(LOOK).await;
        }
        assert!(monitor.cpu().is_some(), "the socket names its process, which is this one");
        drop(lines);
    }
}
