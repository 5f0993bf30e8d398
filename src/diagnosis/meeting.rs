//! The first contact with a monitor: what it means that no client of it came about.
//!
//! Owns the dialling and the greeting, and each error's meaning. What stands in the way of a client is told as what it
//! is: QEMU is said to be gone, or to hang, by evidence alone.

use super::{pair::MonitorReach, process::MonitorHolders, way_in::ObservedMonitor};
use crate::{
    endpoint::{DialError, Dialed, Endpoint, PeerPid},
    progress::describe,
    qmp::{ConnectError, ExecuteError, QmpClient, QmpOptions},
};
use std::{io::ErrorKind, time::Duration};
use tokio::time::{Instant, sleep};

/// The times that a side is given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For a connection, and again for its greeting.
    meet: Duration,
    /// For an answer. QEMU answers in well under a millisecond unless its main loop hangs.
    pub(super) answer: Duration,
    /// Whether a refusal of what QEMU never refuses is another program's, which was to pass the question on.
    pub(super) passed_on: bool,
}

impl Patience {
    /// The times for a monitor. A call of `virsh` has a deadline of its own, before these.
    pub(super) fn with(at: &ObservedMonitor) -> Self {
        let seconds = Duration::from_secs;
        match at.domain() {
            None => Self { meet: seconds(3), answer: seconds(2), passed_on: false },
            Some(_) => Self { meet: seconds(8), answer: seconds(8), passed_on: true },
        }
    }
}

/// The time after which a monitor whose queue was full is dialled again.
const AGAIN: Duration = Duration::from_millis(100);
/// The time that a QEMU whose monitor has closed has to go.
const CLOSING: Duration = Duration::from_secs(1);
/// The time before the end of the wait for a greeting at which is looked who holds the monitor: only while the own
/// connection is there can be seen whether QEMU has accepted it.
const LATE: Duration = Duration::from_millis(300);
/// Connects. A queue of clients that is full, as where a manager calls again and again, is waited for.
async fn dial(at: &Endpoint, patience: Duration) -> Result<Dialed, DialError> {
    let began = Instant::now();
    loop {
        match at.dial(patience.saturating_sub(began.elapsed())).await {
            Err(DialError::Io { source, .. })
                if source.kind() == ErrorKind::WouldBlock && began.elapsed() + AGAIN < patience =>
            {
                sleep(AGAIN).await;
            }
            dialed => return dialed,
        }
    }
}

/// Connects to a monitor, and tells whose it is where the kernel does.
pub(super) async fn meet(at: &ObservedMonitor, options: QmpOptions) -> (Result<QmpClient, MonitorReach>, Option<u32>) {
    let (known, patience) = (at.pid(), Patience::with(at));
    let dialed = match dial(&at.endpoint(), patience.meet).await {
        Ok(dialed) => dialed,
        Err(error) => return (Err(held(unreached(&error), at)), known),
    };
    let pid = dialed.peer.as_ref().map(PeerPid::pid).or(known);
    let options = QmpOptions { greeting_deadline: patience.meet, ..options };
    let connecting = QmpClient::connect(dialed.stream, options);
    tokio::pin!(connecting);
    let (met, held_by) = tokio::select! {
        met = &mut connecting => (met, MonitorHolders::default()),
        () = sleep(patience.meet.saturating_sub(LATE)) => {
            let holders = holders(at);
            (connecting.await, holders)
        }
    };
    let met = match met {
        Ok(client) => Ok(client),
        Err(error) => Err(unmet(error, at, held_by).await),
    };
    (met, pid)
}

/// What it means that a connection was made, and no client came of it.
async fn unmet(error: ConnectError, at: &ObservedMonitor, holders: MonitorHolders) -> MonitorReach {
    let words = describe(&error);
    match error {
        ConnectError::Silent { waited } => {
            let words = format!("{at}: a connection was made, and no greeting came within {waited:?}");
            MonitorReach::NoGreeting { words, holders }
        }
        ConnectError::NotQmp { .. } => {
            let words = format!("{at}: {words}; give the address of a -qmp, and not that of another socket of QEMU's");
            MonitorReach::NoWay { words }
        }
        ConnectError::Ended(_) => closed(at, format!("{at} has closed the connection before a greeting")).await,
        ConnectError::Negotiation(ExecuteError::Closed { .. }) => {
            closed(at, format!("{at} has greeted, and then closed the connection")).await
        }
        ConnectError::Negotiation(ExecuteError::NoReply { .. }) => MonitorReach::Greets { words },
        ConnectError::Negotiation(_) => MonitorReach::NoWay { words: format!("{at}: {words}") },
    }
}

/// An address that nobody listens at is a QEMU that is gone, and a queue of clients that is full is one of a QEMU that
/// takes none; anything else, such as a socket that may not be opened, says nothing about QEMU.
fn unreached(error: &DialError) -> MonitorReach {
    let words = describe(error);
    match error {
        DialError::Missing { .. } | DialError::Refused { .. } => MonitorReach::Gone { words },
        DialError::Connector { source, .. } => {
            // the error of a way in is a sentence of its own
            let words = if source.get_ref().is_some() { describe(source) } else { words };
            match source.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => MonitorReach::Gone { words },
                ErrorKind::ResourceBusy => MonitorReach::Withheld { words },
                _ => MonitorReach::NoWay { words },
            }
        }
        DialError::Io { source, .. } if source.kind() == ErrorKind::WouldBlock => {
            MonitorReach::NoGreeting { words, holders: MonitorHolders::default() }
        }
        _ => MonitorReach::NoWay { words },
    }
}

/// Who holds a monitor.
fn holders(at: &ObservedMonitor) -> MonitorHolders {
    match at {
        ObservedMonitor::Endpoint(endpoint) => MonitorHolders::find(endpoint),
        ObservedMonitor::Libvirt(_) => MonitorHolders::default(),
    }
}

/// The same reach, with those who hold a monitor that takes no client.
fn held(reach: MonitorReach, at: &ObservedMonitor) -> MonitorReach {
    match reach {
        MonitorReach::NoGreeting { words, .. } => MonitorReach::NoGreeting { words, holders: holders(at) },
        reach => reach,
    }
}

/// What it means that a monitor has closed: nobody listens there any more, as where QEMU ends, or somebody does. A QEMU
/// that ends closes its monitor a moment before its socket.
pub(super) async fn closed(at: &ObservedMonitor, words: String) -> MonitorReach {
    let began = Instant::now();
    loop {
        let dialed = at.endpoint().dial(Patience::with(at).meet).await;
        match dialed.map_err(|error| unreached(&error)) {
            Err(MonitorReach::Gone { words: gone }) => return MonitorReach::Gone { words: format!("{words}; {gone}") },
            _ if began.elapsed() >= CLOSING => {
                let words = format!("{words}, and takes connections all the same: whether it is QEMU is not known");
                return MonitorReach::NoWay { words };
            }
            _ => sleep(AGAIN).await,
        }
    }
}

/// What it means that the questions without which a look is none are refused: what is there is no QEMU in a state in
/// which a migration can be looked at.
pub(super) fn refused(name: &str, error: &ExecuteError) -> MonitorReach {
    MonitorReach::NoWay { words: format!("{name}: {}", describe(error)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codes::DiagnosisCode,
        diagnosis::{DiagnoseSettings, DiagnosisError, diagnose},
        endpoint::Address,
    };
    use std::io;
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader, duplex},
        net::UnixListener,
    };

    const GREETING: &str =
        "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 10, \"minor\": 0, \"micro\": 13}}, \"capabilities\": []}}\n";

    const NO: &str = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}, \"id\": ID}";
    const YES: &str = "{\"return\": {}, \"id\": ID}";

    /// A peer that says this, answers commands in order with these lines, and then closes where it is told to.
    fn peer(says: &'static str, answers: &'static [&'static str], closes: bool) -> ObservedMonitor {
        let endpoint = Endpoint::connector("peer", move || {
            let (near, far) = duplex(1 << 16);
            tokio::spawn(async move {
                let (read, mut write) = tokio::io::split(far);
                write.write_all(says.as_bytes()).await.ok();
                let mut lines = BufReader::new(read).lines();
                for answer in answers {
                    let Ok(Some(line)) = lines.next_line().await else { return };
                    let command: serde_json::Value = serde_json::from_str(&line).expect("JSON");
                    let answer = answer.replace("ID", &command["id"].to_string());
                    write.write_all(format!("{answer}\n").as_bytes()).await.ok();
                }
                if !closes {
                    while let Ok(Some(_)) = lines.next_line().await {}
                }
            });
            async { Ok(near) }
        });
        endpoint.into()
    }

    #[tokio::test(start_paused = true)]
    async fn each_peer_that_is_no_client_is_told_as_what_it_is() {
        for (at, words) in [
            (
                peer("QEMU 10.0.13 monitor - type 'help'\r\n(qemu) ", &[], false),
                "but \"QEMU 10.0.13 monitor - type 'help' (qemu)\"",
            ),
            (peer("SSH-2.0-OpenSSH_9.2\r\n", &[], false), "SSH-2.0-OpenSSH_9.2"),
            (peer("", &[], true), "closed the connection before a greeting, and takes connections all the same"),
            (
                peer(GREETING, &[], true),
                "has greeted, and then closed the connection, and takes connections all the same",
            ),
            (peer(GREETING, &[YES], true), "has closed its monitor, and takes connections all the same"),
            (peer(GREETING, &[NO], false), "not now"),
            (peer(GREETING, &[YES, NO], false), "QEMU refused query-status: not now"),
        ] {
            let told = match diagnose(&DiagnoseSettings::new([at])).await {
                Err(DiagnosisError::Nothing { words }) => words,
                told => panic!("{words}: {told:?}"),
            };
            assert!(told.contains(words) && !told.contains("unanswered"), "{words}: {told}");
        }
        // silence is a cause still
        for (says, code) in [("", DiagnosisCode::MonitorUnresponsive), (GREETING, DiagnosisCode::MonitorBlocked)] {
            let told = diagnose(&DiagnoseSettings::new([peer(says, &[], false)])).await.expect("a diagnosis");
            assert_eq!(told.causes.first().map(|cause| cause.code), Some(code), "{told:#?}");
        }
    }

    #[test]
    fn what_keeps_a_client_from_connecting_says_nothing_about_qemu() {
        let address = || Address::unix("/run/qmp").expect("an address");
        let error = |kind: ErrorKind| io::Error::from(kind);
        let connector = |source: io::Error| DialError::Connector { name: "c".to_owned(), source };
        for (dialled, word) in [
            (DialError::Missing { address: address(), source: error(ErrorKind::NotFound) }, "gone"),
            (DialError::Refused { address: address(), source: error(ErrorKind::ConnectionRefused) }, "gone"),
            (DialError::Permission { address: address(), source: error(ErrorKind::PermissionDenied) }, "no-way"),
            (DialError::NotASocket { address: address(), kind: "a plain file" }, "no-way"),
            (DialError::TimedOut { address: address(), waited: Duration::from_secs(3) }, "no-way"),
            (DialError::Io { address: address(), source: error(ErrorKind::HostUnreachable) }, "no-way"),
            (DialError::Io { address: address(), source: error(ErrorKind::WouldBlock) }, "silent"),
            (connector(error(ErrorKind::NotFound)), "gone"),
            (connector(error(ErrorKind::PermissionDenied)), "no-way"),
            (connector(io::Error::new(ErrorKind::ResourceBusy, "libvirt waits")), "withheld"),
        ] {
            assert_eq!(unreached(&dialled).word(), word, "{dialled:?}");
        }
    }

    #[tokio::test]
    async fn one_monitor_is_not_looked_at_as_both_sides() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("a listener");
        let other = folder.path().join("other");
        std::os::unix::fs::symlink(&path, &other).expect("a link");
        let at = |path: &std::path::Path| Address::unix(path).expect("an address");
        for sides in [[at(&path), at(&path)], [at(&path), at(&other)]] {
            let error = diagnose(&DiagnoseSettings::new(sides)).await.expect_err("a refusal");
            assert!(matches!(error, DiagnosisError::SameMonitor { .. }) && error.is_misuse(), "{error:?}");
        }
        // the monitor was not dialled
        let accepted = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(accepted.is_err(), "{accepted:?}");
    }

    /// A socket that is no monitor, such as that of a guest's agent: connections are accepted, and nothing is said.
    #[tokio::test]
    async fn a_peer_that_accepts_and_says_nothing_is_not_said_to_hang() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent");
        let listener = UnixListener::bind(&path).expect("a listener");
        let accepting = tokio::spawn(async move { listener.accept().await });
        let settings = DiagnoseSettings::new([Address::unix(&path).expect("an address")]);
        let told = diagnose(&settings).await.expect("a diagnosis");
        let cause = told.causes.first().expect("a cause");
        let words = format!("{cause:?}");
        assert!(words.contains("it is no QMP monitor") && words.contains("Possible"), "{cause:#?}");
        assert!(!words.contains("accepted no client"), "{cause:#?}");
        drop(accepting.await);
    }
}
