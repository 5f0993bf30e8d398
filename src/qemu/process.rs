//! The handle to one QEMU: typed questions, commands with deadlines, and waiting for what its events tell.
//!
//! Owns the connection and the task that folds its events. It must never retry, and never take silence for an answer:
//! a missed deadline is an error of its own.

use super::{
    error::{Gone, Name, ProcessError},
    features::Features,
    observed::Observed,
    reply::Query,
    schema::Schema,
    sent::SentCommand,
};
use crate::{
    endpoint::{Identity, PeerPid},
    qmp::{self, PendingReply, QmpClient, QmpRequest, StreamItem},
};
use qapi::{
    Command,
    qmp::{query_qmp_schema, query_yank},
};
use serde_json::Value;
use std::{
    future::{Future, pending},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::timeout,
};

/// How long a question may take. QEMU answers in well under a millisecond unless its main loop hangs.
const ASK: Duration = Duration::from_secs(10);
/// When an event is overdue, and what it would have told is asked for.
const OVERDUE: Duration = Duration::from_secs(1);
/// How long a command may take that makes QEMU open, connect or cancel something.
const ACT: Duration = Duration::from_secs(30);
/// How long a process is waited for that has not answered before: many things are asked of one on the way back.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the process of a monitor that has closed may take to be seen to have ended.
const DYING: Duration = Duration::from_secs(1);

/// One QEMU process.
#[derive(Debug)]
pub struct Process {
    name: Name,
    client: QmpClient,
    features: Features,
    peer: Option<PeerPid>,
    /// It was proved to have ended before anyone could connect.
    ended: bool,
    /// It has left the last question whose deadline has passed without an answer, and has answered none since.
    silent: Arc<AtomicBool>,
    observed: watch::Receiver<Observed>,
}

impl Process {
    /// Speaks QMP over `stream`: negotiates, begins to fold events, and reads the schema.
    ///
    /// # Errors
    /// No greeting in time (another client holds the monitor), a refused negotiation, a monitor that closes.
    pub async fn connect<S>(
        name: Name,
        stream: S,
        peer: Option<PeerPid>,
        options: qmp::QmpOptions,
    ) -> Result<Self, ProcessError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let client = match QmpClient::connect(stream, options).await {
            Ok(client) => client,
            Err(source) => return Err(ProcessError::Connect { at: name, source }),
        };
        let unread = Features::read(&Schema::new(&Value::Null));
        let process = Self::over(client, name, peer, unread, Observed::default());
        match process.client.execute(&query_qmp_schema {}, ASK).await {
            Ok(answer) => Ok(Self { features: Features::read(&Schema::new(&answer)), ..process }),
            Err(source) => Err(ProcessError::Execute { at: process.name, command: query_qmp_schema::NAME, source }),
        }
    }

    /// One that cannot be spoken to: what is asked of it fails at once. `ended` says that it is proved to have ended; if it
    /// is not, `peer` is the process that may yet run.
    pub async fn absent(name: Name, peer: Option<PeerPid>, ended: bool) -> Self {
        let client = QmpClient::adopt(tokio::io::empty(), false, qmp::QmpOptions::labelled(name.side.as_str()));
        client.wait_closed().await;
        let features = Features::read(&Schema::new(&Value::Null));
        Self { ended, ..Self::over(client, name, peer, features, Observed::default()) }
    }

    /// The same process over another connection, with what the events of the one before have told.
    ///
    /// # Errors
    /// As [`Process::connect`], but for the schema, which is known.
    pub async fn reconnect<S>(
        &self,
        stream: S,
        peer: Option<PeerPid>,
        options: qmp::QmpOptions,
    ) -> Result<Self, ProcessError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let name = self.name.clone();
        match QmpClient::connect(stream, options).await {
            Ok(client) => Ok(Self::over(client, name, peer, self.features.clone(), self.observed())),
            Err(source) => Err(ProcessError::Connect { at: name, source }),
        }
    }

    /// A process as it is reached over a connection, whose events are folded onto what was seen before.
    fn over(client: QmpClient, name: Name, peer: Option<PeerPid>, features: Features, seen: Observed) -> Self {
        let observed = fold(&client, seen);
        Self { name, client, features, peer, ended: false, silent: Arc::default(), observed }
    }

    /// Which side it is, and its address.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// What its build can do.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// The process behind a local socket.
    pub fn peer(&self) -> Option<&PeerPid> {
        self.peer.as_ref()
    }

    /// Asks, and reads the answer.
    ///
    /// # Errors
    /// Refused, no answer in time, gone, or an answer of the wrong shape.
    pub fn ask<Q: Query>(&self, question: &Q) -> SentCommand<Q::Answer> {
        let reply = self.client.execute(question, self.deadline(ASK));
        self.sent(Q::NAME, reply, serde_json::from_value)
    }

    /// Has something done. The reply says nothing but that QEMU carried the command out.
    ///
    /// # Errors
    /// Refused, no answer in time (the command may still have been carried out), or gone.
    pub fn act<C: Command>(&self, command: &C) -> SentCommand<()> {
        let reply = self.client.execute(command, self.deadline(ACT));
        self.sent(C::NAME, reply, |_| Ok(()))
    }

    /// [`Process::act`] for a request whose arguments the qapi crate does not know.
    ///
    /// # Errors
    /// As [`Process::act`].
    pub fn act_with(&self, name: &'static str, request: QmpRequest) -> SentCommand<()> {
        let reply = self.client.start(request, self.deadline(ACT));
        self.sent(name, reply, |_| Ok(()))
    }

    /// Has something done that QEMU does out of band, where that was negotiated: then also in a process whose main loop
    /// hangs, as it does where it touches a page that postcopy has not brought.
    ///
    /// # Errors
    /// As [`Process::act`].
    pub async fn act_oob<C: Command>(&self, command: &C) -> Result<(), ProcessError> {
        if !self.client.oob() {
            return self.act(command).await;
        }
        self.urgently(command, ASK).await.map(drop)
    }

    /// Whether it answers out of band, as it does while its main loop hangs.
    pub async fn answers_out_of_band(&self) -> bool {
        self.urgently(&query_yank {}, AGAIN).await.is_ok()
    }

    async fn urgently<C: Command>(&self, command: &C, deadline: Duration) -> Result<Value, ProcessError> {
        let answer = self.client.execute_oob(command, deadline).await;
        answer.map_err(|source| ProcessError::Execute { at: self.name.clone(), command: C::NAME, source })
    }

    /// Waits until it has left something unanswered for so long: its main loop hangs, or it was frozen.
    pub async fn unanswered(&self, patience: Duration) {
        self.client.wait_unanswered(patience).await;
    }

    /// Whether nothing was answered since a deadline was missed.
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// What its process can be found again by, where it is a QEMU on this host.
    pub fn identity(&self) -> Option<Identity> {
        self.peer.as_ref()?.identity()
    }

    /// Ends its process at once, where it is one on this host: also one that is frozen. `None` where it is not.
    pub fn kill(&self) -> Option<io::Result<()>> {
        self.peer.as_ref().map(PeerPid::kill)
    }

    /// Waits until its events have told what `look` looks for.
    ///
    /// # Errors
    /// Not within `deadline`, or gone.
    pub async fn until<T>(
        &self,
        what: &'static str,
        deadline: Duration,
        mut look: impl FnMut(&Observed) -> Option<T>,
    ) -> Result<T, ProcessError> {
        let mut observed = self.observed.clone();
        let seen = async {
            loop {
                if let Some(found) = look(&observed.borrow_and_update()) {
                    return Ok(found);
                }
                if observed.changed().await.is_err() {
                    return Err(self.gone().await.into());
                }
            }
        };
        match timeout(deadline, seen).await {
            Ok(seen) => seen,
            Err(_) => Err(ProcessError::Late { at: self.name.clone(), what, waited: deadline }),
        }
    }

    /// The same for what a question can tell as well: an event that is overdue may have been lost, and then the answer to
    /// `ask` counts. Events are hints, answers are truth; and nothing is asked as long as events come in time.
    ///
    /// # Errors
    /// As [`Process::until`].
    pub async fn until_known<T, A: Future<Output = Option<T>>>(
        &self,
        what: &'static str,
        deadline: Duration,
        mut look: impl FnMut(&Observed) -> Option<T>,
        mut ask: impl FnMut() -> A,
    ) -> Result<T, ProcessError> {
        let known = async {
            loop {
                match self.until(what, OVERDUE, &mut look).await {
                    Err(ProcessError::Late { .. }) => {}
                    told => return told,
                }
                if let Some(found) = ask().await {
                    return Ok(found);
                }
            }
        };
        match timeout(deadline, known).await {
            Ok(known) => known,
            Err(_) => Err(ProcessError::Late { at: self.name.clone(), what, waited: deadline }),
        }
    }

    /// What its events have told so far.
    pub fn observed(&self) -> Observed {
        self.observed.borrow().clone()
    }

    /// A receiver that changes with every event that matters.
    pub fn watch(&self) -> watch::Receiver<Observed> {
        self.observed.clone()
    }

    /// Waits until the process or its monitor is gone, or its events are not followed any more.
    pub async fn gone(&self) -> Gone {
        let died = async {
            match &self.peer {
                Some(peer) => peer.died().await,
                None => pending().await,
            }
        };
        let mut observed = self.observed.clone();
        let unfollowed = async { while observed.changed().await.is_ok() {} };
        tokio::select! {
            () = died => {}
            _ = self.client.wait_closed() => {}
            () = unfollowed => {}
        }
        self.describe().await
    }

    /// Whether it is gone, without waiting.
    pub fn is_gone(&self) -> bool {
        self.ended || self.client.is_closed() || self.peer.as_ref().is_some_and(PeerPid::has_died)
    }

    /// Waits until it has ended as far as can be seen: its process where that is known, and else its monitor.
    pub async fn ended(&self) {
        match &self.peer {
            Some(peer) => peer.died().await,
            None => drop(self.client.wait_closed().await),
        }
    }

    /// Whether it has ended as far as can be seen. A process that dies closes its monitor a moment before it has ended, so one
    /// whose monitor has closed is given that moment.
    pub async fn has_ended(&self) -> bool {
        self.is_gone() && timeout(DYING, self.ended()).await.is_ok()
    }

    /// Waits up to `patience` for proof that the process has ended.
    ///
    /// The proof needs both: a closed monitor alone can be QEMU's doing, and the process that the kernel names is the one
    /// that made the socket, which need not be QEMU where a manager passed it on.
    pub async fn proved_dead(&self, patience: Duration) -> bool {
        let Some(peer) = &self.peer else { return self.ended };
        let both = async { tokio::join!(peer.died(), self.client.wait_closed()) };
        timeout(patience, both).await.is_ok()
    }

    async fn describe(&self) -> Gone {
        let how = match self.ended || self.peer.as_ref().is_some_and(PeerPid::has_died) {
            true => "its process ended".to_owned(),
            false if !self.client.is_closed() => "its events are not followed any more".to_owned(),
            false => format!("its monitor closed: {}", self.client.wait_closed().await),
        };
        Gone { at: self.name.clone(), how }
    }

    /// How long the next command may take: a process that missed its last deadline is not given a long one again.
    fn deadline(&self, usual: Duration) -> Duration {
        if self.is_silent() { usual.min(AGAIN) } else { usual }
    }

    fn sent<T>(
        &self,
        command: &'static str,
        reply: PendingReply,
        read: fn(Value) -> serde_json::Result<T>,
    ) -> SentCommand<T> {
        SentCommand::new(self.name.clone(), command, reply, read, self.silent.clone())
    }
}

/// Starts the task that folds the client's events; it ends with the connection.
fn fold(client: &QmpClient, before: Observed) -> watch::Receiver<Observed> {
    let mut events = client.subscribe();
    let (sender, receiver) = watch::channel(before);
    tokio::spawn(async move {
        loop {
            // once nobody looks, the subscription must not keep the connection open
            let item = tokio::select! {
                () = sender.closed() => return,
                item = events.next() => item,
            };
            match item {
                StreamItem::Event(event) => {
                    tracing::trace!(name = %event.name, data = %event.data, "event");
                    sender.send_modify(|observed| observed.apply(&event));
                }
                // whoever waits for one of them asks when it is overdue
                StreamItem::Lagged(lost) => tracing::warn!(lost, "events were lost"),
                StreamItem::Closed(_) => return,
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Side;

    #[tokio::test]
    async fn a_process_that_has_closed_its_monitor_is_given_a_moment_to_die() {
        let mut child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let peer = PeerPid::open(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        let name = Name { side: Side::Destination, address: "unix:/x".to_owned() };
        let process = Process::absent(name, Some(peer), false).await;
        assert!(process.is_gone());
        assert!(!process.has_ended().await, "it lives");
        let dies = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            child.kill().await.unwrap();
        };
        assert!(tokio::join!(process.has_ended(), dies).0);
    }
}
