//! The handle to one QEMU: typed questions, commands with deadlines, and waits for what its events tell.
//!
//! Owns the connection and the task that folds its events. The handle must never retry, and never take silence for an
//! answer: a missed deadline is an error of its own.

mod program;

use super::{
    connection_origin::ConnectionOrigin,
    error::{Gone, ProcessError, QemuName},
    features::Features,
    grace::AnswerGrace,
    observed::Observed,
    reply::Query,
    schema::Schema,
    sent::SentCommand,
};
use crate::{
    endpoint::{PeerPid, ProcessIdentity, UnseenProcess},
    qmp::{self, PendingReply, QemuVersion, QmpClient, QmpRequest},
};
use qapi::{
    Command,
    qmp::{query_yank, quit},
};
use serde_json::Value;
use std::{
    future::{Future, pending},
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::timeout,
};

/// The time for a reply to a query. QEMU answers in well under a millisecond unless its main loop hangs.
const ASK: Duration = Duration::from_secs(10);
/// The time after which an awaited event is overdue, and QEMU is asked for the state that the event would have told.
const OVERDUE: Duration = Duration::from_secs(1);
/// The time for a command that makes QEMU open, connect or cancel something.
const ACT: Duration = Duration::from_secs(30);
/// The time for a reply from a process that left the last command unanswered. The way back asks such a process many
/// things, and each wait lengthens the guest's pause.
const AGAIN: Duration = Duration::from_secs(1);
/// The time that a process may take to end after its monitor has closed.
const DYING: Duration = Duration::from_secs(1);

/// The handle to one QEMU process.
#[derive(Debug)]
pub struct Process {
    name: QemuName,
    client: QmpClient,
    features: Features,
    peer: Option<PeerPid>,
    /// Why there is no such process.
    unseen: Option<UnseenProcess>,
    /// Whether the process is proved to have ended by something else than its monitor and its pidfd.
    ended: Arc<AtomicBool>,
    /// What this connection was when it was made.
    origin: ConnectionOrigin,
    /// Whether QEMU has accepted a `quit` of this engine.
    quitting: Arc<AtomicBool>,
    /// The threads of the vCPUs on QEMU's host, once they were asked for.
    threads: OnceLock<Vec<i64>>,
    /// Whether the last command with a known result missed its deadline.
    silent: Arc<AtomicBool>,
    /// The least time for an answer.
    pub(crate) grace: AnswerGrace,
    observed: watch::Receiver<Observed>,
    /// Which of the migrations is the engine's.
    pub(crate) own_migration: super::migrations::OwnMigration,
}

impl Process {
    /// [`Process::meet`], and reads the schema.
    ///
    /// # Errors
    /// As [`Process::meet`], and QEMU does not tell its schema.
    pub async fn connect<S>(
        name: QemuName,
        stream: S,
        peer: Option<PeerPid>,
        options: qmp::QmpOptions,
    ) -> Result<Self, ProcessError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self::meet(name, stream, peer, options).await?.read_features().await
    }

    /// Speaks QMP over `stream`: negotiates, and begins to fold events. The features are not known yet.
    ///
    /// # Errors
    /// No greeting in time (another client holds the monitor), a refused negotiation, a monitor that closes.
    pub async fn meet<S>(
        name: QemuName,
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
        Ok(Self::over(client, name, peer, Features::read(&Schema::default()), Observed::default()))
    }

    /// A QEMU whose monitor cannot be reached: every command to it fails at once.
    ///
    /// `ended` says that the process is proved to have ended; otherwise `peer` is the process that may still run.
    pub async fn absent(name: QemuName, peer: Option<PeerPid>, ended: bool) -> Self {
        let client = QmpClient::adopt(tokio::io::empty(), false, qmp::QmpOptions::labelled(name.side.as_str()));
        client.wait_closed().await;
        let features = Features::read(&Schema::default());
        let (ended, origin) = (Arc::new(ended.into()), ConnectionOrigin::None);
        Self { ended, origin, ..Self::over(client, name, peer, features, Observed::default()) }
    }

    /// A QEMU at whose address another QEMU answers; `peer` is the process that may still run.
    pub async fn replaced(name: QemuName, peer: Option<PeerPid>) -> Self {
        Self { origin: ConnectionOrigin::Another, ..Self::absent(name, peer, false).await }
    }

    /// The same process over a new connection, with what the events of the old connection have told.
    ///
    /// # Errors
    /// As [`Process::connect`]; the schema is read again only where it was never read.
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
        if self.is_absent() {
            let again = Self::connect(name, stream, peer, options).await?;
            return Ok(Self { origin: ConnectionOrigin::Again, ..again });
        }
        match QmpClient::connect(stream, options).await {
            Ok(client) => {
                let again = Self::over(client, name, peer, self.features.clone(), self.observed());
                // The threads are asked for anew: the QEMU may be another.
                let (ended, quitting) = (self.ended.clone(), self.quitting.clone());
                let own_migration = self.own_migration.clone();
                Ok(Self { origin: ConnectionOrigin::Again, ended, quitting, own_migration, ..again })
            }
            Err(source) => Err(ProcessError::Connect { at: name, source }),
        }
    }

    /// The handle over a connected client, whose events are folded onto `seen`.
    fn over(client: QmpClient, name: QemuName, peer: Option<PeerPid>, features: Features, seen: Observed) -> Self {
        let observed = seen.follow(&client);
        let origin = ConnectionOrigin::First;
        let (ended, quitting, threads, silent, grace, own_migration) = Default::default();
        let unseen = None;
        Self {
            name,
            client,
            features,
            peer,
            unseen,
            ended,
            origin,
            quitting,
            threads,
            silent,
            grace,
            observed,
            own_migration,
        }
    }

    /// The side and the address of this QEMU.
    pub fn name(&self) -> &QemuName {
        &self.name
    }

    /// The features of its build.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// The version in QEMU's greeting. Features are read from the schema, never from here.
    pub fn version(&self) -> Option<QemuVersion> {
        self.client.greeting()?.version
    }

    /// Whether the QEMU could not be reached, so that it never answered this engine.
    pub fn is_absent(&self) -> bool {
        matches!(self.origin, ConnectionOrigin::None | ConnectionOrigin::Another)
    }

    /// Whether its first connection has closed and this one took its place: events in between were missed.
    pub fn is_reconnected(&self) -> bool {
        self.origin == ConnectionOrigin::Again
    }

    /// The process behind the monitor's socket, where that is a local one.
    pub fn peer(&self) -> Option<&PeerPid> {
        self.peer.as_ref()
    }

    /// Whether another QEMU answers at the address: nothing may be done to it, nor to whatever is at that address.
    pub fn was_replaced(&self) -> bool {
        self.origin == ConnectionOrigin::Another
    }

    /// Whether the monitor is closed, and another connection may yet reach the QEMU.
    pub fn may_be_reached_again(&self) -> bool {
        let has_died = self.peer.as_ref().is_some_and(PeerPid::has_died);
        self.client.is_closed() && !(self.was_replaced() || self.is_noted_ended() || self.has_quit() || has_died)
    }

    /// Whether its process is one of this host, and is stopped (SIGSTOP): then its guest does not run.
    pub fn is_stopped(&self) -> bool {
        self.peer.as_ref().is_some_and(PeerPid::is_stopped)
    }

    /// Tells QEMU to quit. Once QEMU has accepted, it runs no guest, and the end of its monitor is its own end.
    ///
    /// # Errors
    /// As [`Process::act`]. QEMU may exit before its answer is out, which proves nothing to an engine on another host.
    pub async fn quit(&self) -> Result<(), ProcessError> {
        self.act(&quit {}).await?;
        self.quitting.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Sends a query; the reply is read into the query's type.
    ///
    /// # Errors
    /// Refused, no answer in time, gone, or an answer of the wrong shape.
    pub fn ask<Q: Query>(&self, question: &Q) -> SentCommand<Q::Returned> {
        let reply = self.client.execute(question, self.deadline(ASK));
        self.sent(Q::NAME, reply, serde_json::from_value)
    }

    /// Sends a command that changes something. The reply only says that QEMU carried the command out.
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

    /// Has a command carried out, out of band where that was negotiated.
    ///
    /// An out-of-band command also reaches a QEMU whose main loop hangs, as it does while it touches a page that
    /// postcopy has not brought yet.
    ///
    /// # Errors
    /// As [`Process::act`].
    pub async fn act_oob<C: Command>(&self, command: &C) -> Result<(), ProcessError> {
        if !self.client.oob() {
            return self.act(command).await;
        }
        self.urgently(command, ASK).await.map(drop)
    }

    /// Whether commands can be carried out out of band.
    pub fn has_out_of_band(&self) -> bool {
        self.client.oob()
    }

    /// Whether QEMU answers out of band: a QEMU whose main loop hangs does, a frozen process does not.
    pub async fn answers_out_of_band(&self) -> bool {
        self.urgently(&query_yank {}, AGAIN).await.is_ok()
    }

    async fn urgently<C: Command>(&self, command: &C, deadline: Duration) -> Result<Value, ProcessError> {
        let answer = self.client.execute_oob(command, deadline).await;
        answer.map_err(|source| ProcessError::Execute { at: self.name.clone(), command: C::NAME, source })
    }

    /// Waits until QEMU has left a command unanswered for that long: its main loop hangs, or the process was frozen.
    pub async fn unanswered(&self, patience: Duration) {
        self.client.wait_unanswered(patience).await;
    }

    /// Whether QEMU has left a command unanswered for that long by now.
    pub async fn has_left_unanswered(&self, patience: Duration) -> bool {
        timeout(Duration::ZERO, self.unanswered(patience)).await.is_ok()
    }

    /// Whether a deadline was missed and QEMU has answered nothing since.
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// The mark by which its process can be found again, where QEMU runs on this host.
    pub fn identity(&self) -> Option<ProcessIdentity> {
        self.peer.as_ref()?.identity()
    }

    /// Kills its process, also a frozen one; `None` where QEMU does not run on this host.
    pub fn kill(&self) -> Option<io::Result<()>> {
        self.peer.as_ref().map(PeerPid::kill)
    }

    /// Waits until `look` finds in the observed events what it looks for.
    ///
    /// # Errors
    /// [`ProcessError::Late`] with `what` after `deadline`, or gone.
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

    /// [`Process::until`] for a state that a query can tell as well.
    ///
    /// An overdue event may have been lost: then the answer to `ask` counts, for events are hints and answers are the
    /// truth. QEMU is asked nothing as long as events come in time.
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

    /// A copy of the state that its events have told so far.
    pub fn observed(&self) -> Observed {
        self.observed.borrow().clone()
    }

    /// A receiver of the observed state that is notified of every event.
    pub fn watch(&self) -> watch::Receiver<Observed> {
        self.observed.clone()
    }

    /// Waits until the process has ended, its monitor has closed, or its events are not followed any more.
    pub async fn gone(&self) -> Gone {
        if self.is_noted_ended() {
            return self.describe().await;
        }
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

    /// Whether the process has ended or its monitor has closed, as far as is seen without waiting.
    pub fn is_gone(&self) -> bool {
        self.is_noted_ended() || self.client.is_closed() || self.peer.as_ref().is_some_and(PeerPid::has_died)
    }

    /// Waits for the end of the process: by the kernel's word, or, where the process is not known, by the end of a
    /// monitor over which QEMU has accepted `quit`. A monitor that closes for any other reason proves nothing, and the
    /// wait goes on.
    pub async fn ended(&self) {
        match &self.peer {
            _ if self.is_noted_ended() => {}
            Some(peer) => peer.died().await,
            None => {
                self.client.wait_closed().await;
                if !self.quitting.load(Ordering::Relaxed) {
                    pending().await
                }
            }
        }
    }

    /// Whether the process ends within `patience`, as by [`Self::ended`].
    pub async fn ends_within(&self, patience: Duration) -> bool {
        match &self.peer {
            Some(_) => timeout(patience, self.ended()).await.is_ok(),
            None => {
                self.is_noted_ended() || (timeout(patience, self.client.wait_closed()).await.is_ok() && self.has_quit())
            }
        }
    }

    /// Whether the process is proved to have ended, as by [`Self::ended`].
    ///
    /// A dying process closes its monitor a moment before the kernel reports its death, so a process whose monitor has
    /// closed is given that moment.
    pub async fn has_ended(&self) -> bool {
        match &self.peer {
            Some(_) => self.is_gone() && timeout(DYING, self.ended()).await.is_ok(),
            None => self.is_noted_ended() || self.has_quit(),
        }
    }

    /// Waits up to `patience` for proof that QEMU has ended.
    ///
    /// The proof takes both a closed monitor and a dead process: a living QEMU can close its monitor, and what an
    /// embedder names as the process of a QEMU may be another.
    pub async fn proved_dead(&self, patience: Duration) -> bool {
        let Some(peer) = &self.peer else { return self.is_noted_ended() || self.has_quit() };
        let both = async { tokio::join!(peer.died(), self.client.wait_closed()) };
        timeout(patience, both).await.is_ok()
    }

    /// Notes that the process runs no more: a fence command has said so, or the journal of an engine that knew.
    pub fn note_ended(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn is_noted_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether QEMU has accepted `quit`, and its monitor has closed since.
    fn has_quit(&self) -> bool {
        self.quitting.load(Ordering::Relaxed) && self.client.is_closed()
    }

    async fn describe(&self) -> Gone {
        let how = match self.is_noted_ended() || self.peer.as_ref().is_some_and(PeerPid::has_died) {
            true => "its process ended".to_owned(),
            false if !self.client.is_closed() => "its events are not followed any more".to_owned(),
            false => format!("its monitor closed: {}", self.client.wait_closed().await),
        };
        Gone { at: self.name.clone(), how }
    }

    /// The deadline for the next command: a process that missed its last deadline is not given a long one again.
    fn deadline(&self, usual: Duration) -> Duration {
        if self.is_silent() { usual.min(AGAIN) } else { self.grace.bound(usual) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Side;

    #[tokio::test]
    async fn a_process_that_has_closed_its_monitor_is_given_a_moment_to_die() {
        let mut child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let peer = PeerPid::open(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        let name = QemuName { side: Side::Destination, address: "unix:/x".to_owned() };
        let process = Process::absent(name, Some(peer), false).await;
        assert!(process.is_gone());
        assert!(!process.has_ended().await, "the process lives");
        let dies = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            child.kill().await.unwrap();
        };
        assert!(tokio::join!(process.has_ended(), dies).0);
    }

    #[tokio::test]
    async fn a_monitor_that_closes_is_no_end_unless_quit_was_accepted() {
        let name = || QemuName { side: Side::Destination, address: "tcp:h:1".to_owned() };
        let process = Process::absent(name(), None, false).await;
        assert!(process.is_gone() && process.is_absent());
        assert!(!process.has_ended().await && !process.proved_dead(DYING).await);
        assert!(timeout(Duration::from_millis(20), process.ended()).await.is_err());
        process.quitting.store(true, Ordering::Relaxed);
        assert!(process.has_ended().await && process.proved_dead(DYING).await);
        process.ended().await;
        let ended = Process::absent(name(), None, true).await;
        assert!(ended.has_ended().await && ended.proved_dead(DYING).await);
        ended.ended().await;
    }
}
